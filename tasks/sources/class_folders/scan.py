"""Find the images to use in a raw folder, and report the number of files that are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

from tasks.sources.base import RawRequest
from tasks.sources.class_folders.inner_archives import find_repeated
from tasks.sources.class_folders.masks import (
    MASK_FOLDER_NAMES,
    find_files_in_mask_folders,
    find_masks_beside_images,
    is_in_mask_subfolder,
)
from tasks.sources.class_folders.paths import ImagePath, UpperFolders
from tasks.sources.class_folders.upper_folders import find_upper_folders
from tasks.sources.dicom import SIGNATURE_BYTES, is_dicom, is_single_image_name
from tasks.sources.own.listing import count_hidden
from tasks.sources.own.splits import VALIDATION_LEFT_OUT, GivenSplit
from tasks.sources.raw import RawTree, split_locator

OUTSIDE_CLASSES = "outside the class folders"
"""Reason for leaving out an image."""


@dataclass(frozen=True)
class FolderScan:
    """The images of a raw folder before their classes are known.

    Attributes:
        image_paths: The images that are not left out.
        excluded: Reason -> number of files that are left out.
        upper_folders: The wrapper and the splits.
        mask_folders: Names of folders that are left out as masks. They lie at the level of
            class folders, so they may be classes for the user.
    """

    image_paths: list[ImagePath]
    excluded: Counter[str]
    upper_folders: UpperFolders
    mask_folders: set[str]


def scan_folder(tree: RawTree, request: RawRequest) -> FolderScan:
    """Choose the images to use, and divide their paths into folders.

    Raises:
        DataError: Some folders are splits, and others are probably splits with unusual names.
            Or it is unclear whether an inner archive repeats images.
    """
    # Only images may decide the wrapper and the splits. An image with copies must count once.
    # So other files and copies of images are removed first.
    image_names = []
    for name in tree:
        if is_single_image_name(name) or _is_dicom_without_extension(tree, name, request):
            image_names.append(name)
    repeated = find_repeated(tree, image_names, request)
    distinct_names = [name for name in image_names if name not in repeated]
    # There are three kinds of masks: files in a folder called ``masks`` at any level, a mask
    # beside its image, and files in a subfolder such as ``mask`` below a class.
    class_labels = dict(request.dataset.label_map)
    in_mask_folders = find_files_in_mask_folders(distinct_names, class_labels)
    # Masks may lie beside the wrapper, so they are removed before the wrapper is searched.
    deciding_names = [name for name in distinct_names if name not in in_mask_folders]
    upper_folders = find_upper_folders(deciding_names, request)
    masks_beside_images = find_masks_beside_images(distinct_names, class_labels)
    distinct_images = set(distinct_names)
    excluded: Counter[str] = Counter()
    image_paths = []
    paths_beside_images = []
    paths_in_mask_folders = []
    for name in tree:
        path = upper_folders.divide(name)
        if name in repeated:
            excluded["in an archive beside images"] += 1
        elif name not in distinct_images:
            excluded["not an image by its extension"] += 1
        elif path is None:  # the image is in no top folder
            excluded[OUTSIDE_CLASSES] += 1
        elif path.split is GivenSplit.VALIDATION:
            excluded[VALIDATION_LEFT_OUT] += 1
        elif name in masks_beside_images:  # includes all files in a class of masks
            excluded["a mask beside its image"] += 1
            paths_beside_images.append(path)
        elif name in in_mask_folders or is_in_mask_subfolder(path):
            excluded["in a folder of masks"] += 1
            paths_in_mask_folders.append(path)
        else:
            image_paths.append(path)
    mask_folders = _mask_folders(
        paths_in_mask_folders=paths_in_mask_folders,
        paths_beside_images=paths_beside_images,
        image_paths=image_paths,
        is_group_on_top=request.dataset.layout == "group/class",
    )
    excluded.update(count_hidden(tree.hidden, is_single_image_name))
    return FolderScan(image_paths, excluded, upper_folders, mask_folders)


def _mask_folders(
    *,
    paths_in_mask_folders: Iterable[ImagePath],
    paths_beside_images: Iterable[ImagePath],
    image_paths: Iterable[ImagePath],
    is_group_on_top: bool,
) -> set[str]:
    """Return the names of mask folders that lie at the level of class folders.

    Args:
        paths_in_mask_folders: Paths of the files in mask folders.
        paths_beside_images: Paths of the masks that lie beside their image.
        image_paths: Paths of the images that are not left out.
        is_group_on_top: True if the user chose the layout ``group/class``. If the user chose
            no layout, it is False.
    """
    mask_folders = set()
    for path in paths_in_mask_folders:
        class_folder = path.first_subfolder if is_group_on_top else path.top
        if class_folder is not None and class_folder.casefold() in MASK_FOLDER_NAMES:
            mask_folders.add(class_folder)
    if not is_group_on_top:
        # These are top folders that contain only masks, such as ``cats_mask``.
        tops_with_masks = {path.top for path in paths_beside_images}
        tops_with_images = {path.top for path in image_paths}
        mask_folders |= tops_with_masks - tops_with_images
    return mask_folders


def _is_dicom_without_extension(tree: RawTree, name: str, request: RawRequest) -> bool:
    """Return whether a file has no extension, is not in an archive, and is DICOM by its content.

    Digits after a dot are not an extension: scanners use numbers as file names.
    """
    extension = PurePath(name).suffix[1:]
    locator = tree.locator(name)
    is_archive_member = len(split_locator(locator)) > 1
    if (extension and not extension.isdigit()) or is_archive_member:
        return False
    try:
        with (request.base() / locator).open("rb") as file:
            return is_dicom(file.read(SIGNATURE_BYTES))
    except OSError:
        return False
