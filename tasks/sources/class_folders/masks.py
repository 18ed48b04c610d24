"""Find the images that are masks of other images, by the names of files and folders."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from tasks.sources.class_folders.paths import NOT_GROUP_FOLDERS, ImagePath

MASK_FOLDER_NAMES = frozenset({"mask", "masks", "segmentation", "segmentations"})
"""Names of mask folders, in lower case. A folder called ``mask`` or ``segmentation`` may also
be a class, for example of faces with a mask. It is a mask folder only if it lies below a top
folder or beside a folder such as ``images``."""
UNAMBIGUOUS_MASK_FOLDER_NAMES = frozenset({"masks", "segmentations"})
"""Names in lower case. A folder with such a name is a mask folder at every level."""
MASK_NAME = re.compile(r"(.+?)[ _-](?:mask|masks|seg|segmentation)(?:[ _-]?\d+)?", re.IGNORECASE)
"""Pattern of the name of a mask. Its first group is the name of the image."""


def find_masks_beside_images(image_names: Sequence[str], class_labels: Collection[str]) -> set[str]:
    """Return the masks that lie beside their image, or in a folder beside the folder of images.

    Examples are the file ``cats/1_mask.png`` beside ``cats/1.png``, and all files in the
    folder ``cats_mask`` beside ``cats``.

    Args:
        image_names: Names of all images.
        class_labels: Names of folders that the user calls classes. They are not mask folders.
    """
    folders = _all_folders(image_names)
    lower_folders = {folder.casefold() for folder in folders}
    mask_folders = set()
    for folder in folders:
        if folder.rpartition("/")[2] not in class_labels and is_mask_of(folder, lower_folders):
            mask_folders.add(folder)
    masks = _files_in(mask_folders, image_names)
    # Masks and images may have different extensions.
    lower_stems = {_without_extension(name).casefold() for name in image_names}
    for name in image_names:
        if is_mask_of(_without_extension(name), lower_stems):
            masks.add(name)
    return masks


def find_files_in_mask_folders(
    image_names: Sequence[str], class_labels: Collection[str]
) -> set[str]:
    """Return the images in a folder called ``masks`` or ``segmentations``, at any level.

    The images in a folder called ``mask`` or ``segmentation`` are returned only if a folder
    such as ``images`` is beside it. If all images are in mask folders, the result is empty,
    because these folders must contain the classes.

    Args:
        image_names: Names of all images.
        class_labels: Names of folders that the user calls classes. They are not mask folders.
    """
    folders = _all_folders(image_names)
    lower_folders = {folder.casefold() for folder in folders}
    mask_folders = set()
    for folder in folders:
        parent, slash, last = folder.rpartition("/")
        possible_image_folders = {
            f"{parent}{slash}{other}".casefold() for other in NOT_GROUP_FOLDERS
        }
        has_images_beside = not possible_image_folders.isdisjoint(lower_folders)
        mask_names = MASK_FOLDER_NAMES if has_images_beside else UNAMBIGUOUS_MASK_FOLDER_NAMES
        if last not in class_labels and last.casefold() in mask_names:
            mask_folders.add(folder)
    files = _files_in(mask_folders, image_names)
    return files if len(files) < len(image_names) else set()


def is_in_mask_subfolder(path: ImagePath) -> bool:
    """Return whether a subfolder of the top folder has a name such as ``masks``."""
    below_class = path.subfolders[1:] if path.is_subfolder_class else path.subfolders
    return not MASK_FOLDER_NAMES.isdisjoint(map(str.casefold, below_class))


def is_mask_of(path: str, other_paths: Collection[str]) -> bool:
    """Return whether a path is the name of a mask whose image is in ``other_paths``.

    Args:
        path: Path of a file without its extension, or of a folder.
        other_paths: Paths of files or folders, in lower case.
    """
    parent, slash, last = path.rpartition("/")
    match = MASK_NAME.fullmatch(last)
    if match is None:
        return False
    return f"{parent}{slash}{match[1]}".casefold() in other_paths


def _without_extension(name: str) -> str:
    """Return the path of a file without its extension.

    Digits after a dot are not an extension.
    """
    folder, slash, file_name = name.rpartition("/")
    stem, dot, extension = file_name.rpartition(".")
    if not dot or extension.isdigit():
        return name
    return f"{folder}{slash}{stem}"


def _all_folders(names: Iterable[str]) -> set[str]:
    """Return the paths of all folders that contain one of these files."""
    return set().union(*map(_folders_above, names))


def _files_in(folders: set[str], names: Iterable[str]) -> set[str]:
    """Return the names of the files in one of these folders, or in a folder below it."""
    return {name for name in names if not folders.isdisjoint(_folders_above(name))}


def _folders_above(name: str) -> list[str]:
    """Return the paths of all folders that contain a file, from the innermost one."""
    folders = []
    folder = name.rpartition("/")[0]
    while folder:
        folders.append(folder)
        folder = folder.rpartition("/")[0]
    return folders
