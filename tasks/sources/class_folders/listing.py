"""List a user's images that lie in one folder per class.

:mod:`tasks.sources.class_folders` describes the layouts of the folders and the terms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from shlex import quote

from search_spaces.errors import plural
from search_spaces.specs import Layout
from tasks.sources.base import Listing, RawRequest, Source
from tasks.sources.class_folders.layout import choose_layout
from tasks.sources.class_folders.masks import is_mask_of
from tasks.sources.class_folders.paths import ImagePath
from tasks.sources.class_folders.scan import OUTSIDE_CLASSES, FolderScan, scan_folder
from tasks.sources.class_folders.split_checks import (
    LAYOUT_HINT,
    check_splits_are_above_classes,
)
from tasks.sources.class_folders.upper_folders import TRAIN_AND_TEST
from tasks.sources.dicom import INTENSITY, single_reader
from tasks.sources.own.listing import named_flags, own_listing
from tasks.sources.own.rows import Rows
from tasks.sources.raw import ARCHIVES, RawTree, is_archive_name

MAX_NAMED_FOLDERS = 20
"""Largest number of empty class folders that flags name. A further flag contains only the
number of the other folders."""
TABLE_EXTENSIONS = (".csv", ".tsv", ".xlsx", ".jsonl")
"""Extensions of files that may be a table with the labels."""
HINT_BY_EXTENSIONS = {
    TABLE_EXTENSIONS: (
        "If the table in this folder lists the images, set kind to table and use the path of "
        "the table"
    ),
    ARCHIVES: (
        "The folder contains archives: use the path of one archive, or unpack the archives here"
    ),
    (".arrow",): "Convert the output of `datasets.save_to_disk` with `to_parquet`",
    (".npz", ".h5", ".hdf5"): "The folder contains a file of arrays: use its path",
    (".nii", ".nii.gz"): (
        "The folder contains NIfTI volumes: list their paths and labels in a table (kind table)"
    ),
}
"""Extensions of files -> hint for a folder that has such files but no class folders."""
NO_EXTENSION_HINT = "Add an extension to the files: only DICOM files outside archives may have none"
"""Hint for a folder that has files without extensions, but no class folders."""


@dataclass(frozen=True)
class ClassImage:
    """An image with its class and group.

    Attributes:
        path: Path of the image.
        class_name: Name of the class folder.
        group: Name of the group folder; empty if there is none.
    """

    path: ImagePath
    class_name: str
    group: str


def list_folder(request: RawRequest) -> Listing:
    """List the images of all class folders. Classes are in the order of their names.

    Raises:
        DataError: There are fewer than two class folders. Or it is unclear which folders are
            the classes. Or labels, groups or splits break a rule of :mod:`tasks.sources.own`.
    """
    root = request.root()
    if root.is_file() and not is_archive_name(root.name):
        raise request.error(
            "the path is a file, not a folder or an archive",
            hint="Use the path of a folder, a .zip or a .tar",
        )
    tree = RawTree(request)
    scan = scan_folder(tree, request)
    check_splits_are_above_classes(scan.image_paths, request)
    _check_distinct_names(tree, scan.image_paths, request)
    layout, layout_flags = choose_layout(scan.image_paths, tree, request)
    images = _images_of_classes(scan.image_paths, layout)
    num_without_class = len(scan.image_paths) - len(images)
    excluded = scan.excluded + Counter({OUTSIDE_CLASSES: num_without_class})
    left_out_folders = scan.mask_folders
    if layout == "group/class":
        left_out_folders = left_out_folders | _folders_in_place_of_classes(scan.image_paths)
    _check_two_classes(images, left_out_folders, excluded[OUTSIDE_CLASSES], tree, request)
    flags = dict.fromkeys(layout_flags, len(images))
    flags |= _flag_empty_folders(tree, images, scan, layout)
    flags |= _folder_flags(images, left_out_folders, scan)
    locators = [tree.locator(image.path.name) for image in images]
    rows = Rows(
        cells={"label": [image.class_name for image in images]},
        locator=lambda row: locators[row],
        name=lambda row: request.hashed(locators[row]),
        # Messages identify an image by its hash, so they need no explanation of row numbers.
        numbering=lambda _: "",
        default_group=lambda row: images[row].group,
        image_path=lambda row: images[row].path.name,
        group_hint="put all images of a patient into a subfolder of the class",
        file_split=lambda row: images[row].path.split,
    )
    base_listing = Listing(flags=flags, excluded=excluded, intensity=INTENSITY)
    # Names are sorted as text, even if they are numbers, as in torchvision's ImageFolder.
    return own_listing(rows, request, base_listing, sort_classes=sorted)


def _images_of_classes(image_paths: Sequence[ImagePath], layout: Layout) -> list[ClassImage]:
    """Return the images that lie in a class folder."""
    images = []
    for path in image_paths:
        if layout == "class/group":
            images.append(ClassImage(path, path.top, path.first_subfolder or ""))
        elif path.first_subfolder is not None:
            images.append(ClassImage(path, path.first_subfolder, path.top))
    return images


def _folders_in_place_of_classes(image_paths: Iterable[ImagePath]) -> set[str]:
    """Return the names of folders such as ``images`` that lie in a group but are not classes."""
    names = set()
    for path in image_paths:
        if path.first_subfolder is None:
            names.update(path.name.removeprefix(f"{path.top_path}/").split("/")[:-1])
    return names


def _check_two_classes(
    images: Sequence[ClassImage],
    left_out_folders: Iterable[str],
    num_outside: int,
    tree: RawTree,
    request: RawRequest,
) -> None:
    """Check that there are two class folders.

    Args:
        images: The images of all classes.
        left_out_folders: Names of folders that lie at the level of class folders, but are left
            out.
        num_outside: Number of images outside class folders.
        tree: All files of the raw folder.
        request: The dataset.

    Raises:
        DataError: There are fewer than two class folders. The hint depends on the files in the
            folder.
    """
    classes = {image.class_name for image in images}
    if len(classes) >= 2:
        return
    is_archive = request.root().is_file()
    lower_names = [name.lower() for name in tree]
    hints = []
    if not classes and num_outside:
        hints.append("If this folder contains only one class, use the folder above it")
    tops = {image.path.top for image in images}
    if not is_archive and classes == tops and all(image.group for image in images):
        for name in tops:
            hints.append(f"If the classes are the subfolders of {name!r}, use the path of {name!r}")
    for name in sorted(left_out_folders):
        hints.append(
            f"The folder {name!r} was left out, because folders of this name usually contain "
            f"no class. If it is a class, add {_option_for_class(name)} (in a sweep file: "
            "label_map)"
        )
    hints.append(LAYOUT_HINT)
    for hint_extensions, hint in HINT_BY_EXTENSIONS.items():
        if not any(name.endswith(hint_extensions) for name in lower_names):
            continue
        if is_archive and hint_extensions == TABLE_EXTENSIONS:
            hint += ", after you have unpacked the archive"
        hints.append(hint)
    if any(not PurePath(name).suffix for name in lower_names):
        hints.append(NO_EXTENSION_HINT)
    raise request.error(
        f"the folder has {plural(len(classes), 'class folder')} with images and {num_outside} "
        "images outside class folders, but two classes are needed",
        hint=". ".join(hints),
    )


def _option_for_class(name: str) -> str:
    """Return the option that uses a left-out folder as a class."""
    return f"--label-map {quote(f'{name}={name}')}"


def _check_distinct_names(
    tree: RawTree, image_paths: Sequence[ImagePath], request: RawRequest
) -> None:
    """Check that no two files of an archive, or of archives inside it, have the same name.

    Raises:
        DataError: Two files have the same name.
    """
    # RawTree lists the second file with the same name under its locator, for example
    # raw.zip!/b.zip!/1.png.
    has_equal_names = any(tree.locator(image.name) == image.name for image in image_paths)
    if request.root().is_file() and has_equal_names:
        raise request.error(
            "two files in the archive, or in archives inside it, have the same path",
            hint="Unpack the archives into one folder, with a subfolder for each archive, so "
            "that every file has a different path. Then use this folder",
        )


def _flag_empty_folders(
    tree: RawTree, images: Iterable[ClassImage], scan: FolderScan, layout: Layout
) -> dict[str, int]:
    """Return flags for top folders without an image: flag -> number of folders.

    The flag of a class contains its name. For groups, a flag contains only their number,
    because the name of a group may be the name of a patient. Folders of masks need no images,
    so they get no flag.
    """
    folders_with_images = {image.path.top_path for image in images}
    all_folders = set(map(str.casefold, tree.folders))
    upper_folders = scan.upper_folders
    empty_folders = []
    for folder_path in tree.folders:
        path = upper_folders.divide_folder(folder_path)
        if path is None or path.top_path != folder_path:
            continue  # not a top folder
        is_in_unused_split = upper_folders.has_splits and path.split not in TRAIN_AND_TEST
        needs_no_images = path.top in scan.mask_folders or is_mask_of(folder_path, all_folders)
        if not (is_in_unused_split or needs_no_images or folder_path in folders_with_images):
            empty_folders.append(folder_path)
    if layout == "class/group":
        return named_flags("class folder without an image", empty_folders, MAX_NAMED_FOLDERS)
    return {"folder without an image": len(empty_folders)} if empty_folders else {}


def _folder_flags(
    images: Iterable[ClassImage], left_out_folders: Iterable[str], scan: FolderScan
) -> dict[str, int]:
    """Return flags for folders that are left out, for deep folders and for a wrapper."""
    flags = {}
    for name in sorted(left_out_folders):
        flags[f"folder left out; to use it as a class: {_option_for_class(name)}"] = 1
    num_in_deeper_folder = sum(len(image.path.subfolders) > 1 for image in images)
    if num_in_deeper_folder:
        flags["in a deeper folder, counted to its group"] = num_in_deeper_folder
    if scan.upper_folders.wrapper:
        flags["a wrapper folder was skipped"] = 1
    return flags


FOLDER_SOURCE = Source(list_folder, single_reader)
