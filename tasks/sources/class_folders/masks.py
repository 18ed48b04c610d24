"""Find the images that are masks of other images, by the names of files and folders."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

MASK_FOLDERS = frozenset({"mask", "masks", "segmentation", "segmentations"})
"""Names of subfolders of masks, in lower case."""
MASK_NAME = re.compile(r"(.+?)[ _-](?:mask|masks|seg|segmentation)(?:[ _-]?\d+)?", re.IGNORECASE)
"""Name of a mask. The first group of the pattern is the name of the image."""


def find_masks(image_names: Sequence[str]) -> set[str]:
    """Return the masks among the images.

    A file is a mask if its image is beside it: ``cats/1_mask.png`` beside ``cats/1.png``. All files
    in a folder are masks if the folder of the images is beside it: ``cats_mask`` beside ``cats``.
    """
    # Masks and images may have different extensions.
    image_paths = {_without_extension(name).casefold() for name in image_names}
    folders: set[str] = set()
    for name in image_names:
        folders.update(_folders_above(name.casefold()))
    masks = set()
    for name in image_names:
        is_in_mask_folder = any(is_mask_of(folder, folders) for folder in _folders_above(name))
        if is_in_mask_folder or is_mask_of(_without_extension(name), image_paths):
            masks.add(name)
    return masks


def has_mask_folder(folders: Iterable[str]) -> bool:
    """Return whether a folder has a name such as ``masks``."""
    return not MASK_FOLDERS.isdisjoint(map(str.casefold, folders))


def is_mask_of(path: str, other_paths: Collection[str]) -> bool:
    """Return whether a path is the name of a mask, and ``other_paths`` has the path of its image.

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
    return name.rpartition(".")[0]


def _folders_above(name: str) -> list[str]:
    """Return the paths of all folders that contain a file, from the innermost one."""
    folders = []
    folder = name.rpartition("/")[0]
    while folder:
        folders.append(folder)
        folder = folder.rpartition("/")[0]
    return folders
