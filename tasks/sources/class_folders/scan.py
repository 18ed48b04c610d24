"""Find the images to use in a raw folder, and count the files that are left out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
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
MASK_BESIDE_IMAGE = "a mask beside its image"
"""Reason for leaving out a mask that lies beside its image."""
IN_MASK_FOLDER = "in a folder of masks"
"""Reason for leaving out a file in a folder of masks."""


@dataclass(frozen=True)
class FolderScan:
    """The images of a raw folder before their classes are known.

    Attributes:
        image_paths: The images that are not left out.
        excluded: Reason -> number of files that are left out.
        upper_folders: The wrapper and the splits.
        mask_folders: Names of folders that are left out as masks. They lie where class folders
            lie, so the user may have meant them as classes.
    """

    image_paths: list[ImagePath]
    excluded: Counter[str]
    upper_folders: UpperFolders
    mask_folders: set[str]


@dataclass(frozen=True)
class _FileSets:
    """Sets of file names in a raw folder. They decide which files are left out.

    Attributes:
        repeated: Images in inner archives that also lie beside the archive, by file name.
        distinct_images: Images that are not repeated.
        masks: Masks that lie beside their image.
        in_mask_folders: Images in a folder called ``masks``, at any level.
    """

    repeated: Collection[str]
    distinct_images: Collection[str]
    masks: Collection[str]
    in_mask_folders: Collection[str]

    def reason_to_leave_out(self, name: str, path: ImagePath | None) -> str | None:
        """Return the first reason that applies to a file; None if the file is used.

        Args:
            name: Name of the file.
            path: Its path, divided into folders; None if the file has no top folder.
        """
        if name in self.repeated:
            return "in an archive beside images"
        if name not in self.distinct_images:
            return "not an image by its extension"
        if path is None:
            return OUTSIDE_CLASSES
        if path.split is GivenSplit.VALIDATION:
            return VALIDATION_LEFT_OUT
        if name in self.masks:
            # Masks in a class of masks have this reason too.
            return MASK_BESIDE_IMAGE
        if name in self.in_mask_folders or is_in_mask_subfolder(path):
            return IN_MASK_FOLDER
        return None


def scan_folder(tree: RawTree, request: RawRequest) -> FolderScan:
    """Choose the images to use, and divide their paths into folders.

    Raises:
        DataError: Some folders are splits, and others are probably splits with unusual names.
            Or it is unclear whether an inner archive repeats images.
    """
    # Only images, without repeated ones, decide about the wrapper and the splits. So other
    # files and repeated images are removed first.
    image_names = []
    for name in tree:
        if is_single_image_name(name) or _is_bare_dicom(tree, name, request):
            image_names.append(name)
    repeated = find_repeated(tree, image_names, request)
    distinct_names = [name for name in image_names if name not in repeated]
    # There are three kinds of masks: files in a folder called ``masks`` at any level, a mask
    # beside its image, and files in a subfolder such as ``mask`` below a class.
    class_labels = dict(request.dataset.label_map)
    in_mask_folders = find_files_in_mask_folders(distinct_names, class_labels)
    # Masks may lie beside the wrapper, so they do not decide about it either.
    deciding_names = [name for name in distinct_names if name not in in_mask_folders]
    upper_folders = find_upper_folders(deciding_names, request)
    file_sets = _FileSets(
        repeated=repeated,
        distinct_images=set(distinct_names),
        masks=find_masks_beside_images(distinct_names, class_labels),
        in_mask_folders=in_mask_folders,
    )
    excluded: Counter[str] = Counter()
    # The key None has the paths of the images to use.
    paths_by_reason: defaultdict[str | None, list[ImagePath]] = defaultdict(list)
    for name in tree:
        path = upper_folders.divide(name)
        reason = file_sets.reason_to_leave_out(name, path)
        if reason is not None:
            excluded[reason] += 1
        if path is not None:
            paths_by_reason[reason].append(path)
    image_paths = paths_by_reason[None]
    mask_folders = _mask_folders(
        files_in_folders=paths_by_reason[IN_MASK_FOLDER],
        masks_beside_images=paths_by_reason[MASK_BESIDE_IMAGE],
        image_paths=image_paths,
        is_group_on_top=request.dataset.layout == "group/class",
    )
    excluded.update(count_hidden(tree.hidden, is_single_image_name))
    return FolderScan(image_paths, excluded, upper_folders, mask_folders)


def _mask_folders(
    *,
    files_in_folders: Iterable[ImagePath],
    masks_beside_images: Iterable[ImagePath],
    image_paths: Iterable[ImagePath],
    is_group_on_top: bool,
) -> set[str]:
    """Return the names of folders of masks that lie where class folders lie.

    Args:
        files_in_folders: Paths of the files in folders of masks.
        masks_beside_images: Paths of the masks that lie beside their image.
        image_paths: Paths of the images that are not left out.
        is_group_on_top: Whether the user chose the layout ``group/class``. If the user chose
            no layout, ``class/group`` is assumed here.
    """
    mask_folders = set()
    for path in files_in_folders:
        class_folder = path.first_subfolder if is_group_on_top else path.top
        if class_folder is not None and class_folder.casefold() in MASK_FOLDER_NAMES:
            mask_folders.add(class_folder)
    if not is_group_on_top:
        # Top folders of masks alone, such as ``cats_mask``.
        tops_with_masks = {path.top for path in masks_beside_images}
        mask_folders |= tops_with_masks - {path.top for path in image_paths}
    return mask_folders


def _is_bare_dicom(tree: RawTree, name: str, request: RawRequest) -> bool:
    """Return whether a file that is not in an archive is DICOM although it has no extension.

    Digits after a dot are not an extension: scanners use numbers as file names.
    """
    extension = PurePath(name).suffix[1:]
    locator = tree.locator(name)
    if (extension and not extension.isdigit()) or len(split_locator(locator)) > 1:
        return False
    try:
        with (request.base() / locator).open("rb") as file:
            return is_dicom(file.read(SIGNATURE_BYTES))
    except OSError:
        return False
