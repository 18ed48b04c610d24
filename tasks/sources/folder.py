"""List a user's images that lie in one folder per class.

``<raw>`` is the folder or archive that the user gives. Three terms are used below:

- *Wrapper*: a single folder around all classes or splits, or several such folders inside each
  other. Many archives have one.
- *Top folder*: the first folder of an image's path, after the wrapper and the split are removed. It
  is a class or a group, depending on the layout.
- *Inner archive*: an archive inside the archive ``<raw>``.

A file has a *name* and a *locator*. The name is its path below ``<raw>``, as if all archives were
unpacked in place. The locator is its stored address, in which :data:`MARK` (``!/``) separates an
archive from the path in it: ``raw.zip!/cats/1.png``.

The default layout is called ``class/group``. The path of an image is ``<raw>/<class>/image.png``,
as in torchvision's ``ImageFolder`` and timm's folder reader. A class may have subfolders for
groups. Images are pictures or DICOM files. A DICOM file needs no extension, unless it is in an
archive.

- Groups: all images in a subfolder of a class, ``<raw>/<class>/<group>/image.png``, are one group.
  Images in deeper folders belong to the same group. Equal group names in different classes are one
  group. A folder called ``images`` is not a group (Tiny ImageNet has such folders).
- Masks are left out and counted. A mask is a file in a folder called ``masks`` (COVID-19
  Radiography Database), a file beside its image (BUSI has ``x_mask.png`` beside ``x.png``), or a
  file in a class of masks or its subfolders (``cats_mask`` beside ``cats``).
- Splits: ``<raw>/train/<class>/...`` and ``<raw>/test/<class>/...``. Images in a folder ``val``
  beside them are left out and counted.
- Layout ``group/class``: the groups are above the classes, ``<raw>/<group>/<class>/image.png``. If
  all top folders have the same subfolders, both layouts are possible. Then the user's option
  ``layout`` decides. Without this option, the patient ids in DICOM headers decide.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from search_spaces.errors import plural
from search_spaces.specs import Layout
from tasks.sources.base import Listing, RawRequest, Source, first_of
from tasks.sources.dicom import (
    INTENSITY,
    SIGNATURE_BYTES,
    is_dicom,
    is_single_image_name,
    read_header,
    single_reader,
)
from tasks.sources.own.groups import plain_id
from tasks.sources.own.listing import count_hidden, own_listing
from tasks.sources.own.rows import Rows
from tasks.sources.own.splits import (
    VALIDATION_LEFT_OUT,
    GivenSplit,
    is_split_word,
    parse_split,
    parse_splits,
)
from tasks.sources.own.words import PLACEHOLDERS
from tasks.sources.pictures import is_image_name
from tasks.sources.raw import MARK, RawTree, is_archive_name, split_locator

LAYOUT_HINT = (
    "Use FOLDER/<class>/image.png, or FOLDER/train/<class>/image.png and "
    "FOLDER/test/<class>/image.png"
)
MAX_SHARED_FOLDERS = 20
"""Largest number of different subfolder names that may be classes. If there are more names, the
subfolders are patients, so the layout is ``class/group``."""
MAX_HEADERS = 200
"""Number of DICOM headers that are read to choose the layout. Each subfolder has an equal share of
them, but at least one header is read in each."""
MAX_NAMED_FOLDERS = 20
"""Largest number of empty class folders that are flagged by name. The others are counted."""
SPLIT_WORD_IN_NAME = re.compile(
    r"""
    (?<![A-Za-z])                                     # no letter before the word
    (?i:train(?:ing)?|trn|test(?:ing)?|tst|val(?:id|idation)?)
    (?=[A-Z]?(?![A-Za-z]))                            # at most one capital letter after it
    """,
    re.VERBOSE,
)
"""The word for a split in a longer name, such as ``seg_train``, ``test-set`` or ``trainA``."""
NOT_GROUP_FOLDERS = frozenset({"image", "images", "img", "imgs"})
"""Names of subfolders that are not groups, in lower case."""
MASK_FOLDERS = frozenset({"mask", "masks", "segmentation", "segmentations"})
"""Names of subfolders of masks, in lower case."""
MASK_NAME = re.compile(r"(.+?)[ _-](?:mask|masks|seg|segmentation)(?:[ _-]?\d+)?", re.IGNORECASE)
"""Name of a mask. The first group of the pattern is the name of the image."""
TABLE_HINT = (
    "If the table in this folder lists the images, set kind to table and use the path of the table"
)
TABLE_EXTENSIONS = (".csv", ".tsv", ".xlsx", ".jsonl")
"""Extensions of files that may be the table of labels."""
ARCHIVE_HINT = (
    "The folder contains archives: use the path of one archive, or unpack the archives here"
)
ARRAY_HINT = "The folder contains a file of arrays: use its path"
NIFTI_HINT = (
    "The folder contains NIfTI volumes: list their paths and labels in a table (kind table)"
)
HINT_BY_EXTENSION = {
    **dict.fromkeys(TABLE_EXTENSIONS, TABLE_HINT),
    ".zip": ARCHIVE_HINT,
    ".tar": ARCHIVE_HINT,
    ".arrow": "Convert the output of `datasets.save_to_disk` with `to_parquet`",
    ".npz": ARRAY_HINT,
    ".h5": ARRAY_HINT,
    ".hdf5": ARRAY_HINT,
    ".nii": NIFTI_HINT,
    ".gz": NIFTI_HINT,
    "": "Add an extension to the files: only DICOM files outside archives may have none",
}
"""Extension of files in a folder without class folders -> hint for the user."""
OUTSIDE_CLASSES = "outside the class folders"
"""Reason for leaving out an image."""
TRAIN_AND_TEST = frozenset({GivenSplit.TRAIN, GivenSplit.TEST})
"""The splits whose images are used."""


@dataclass(frozen=True)
class ImagePath:
    """The path of an image, divided into its folders.

    Attributes:
        name: Name of the image: its path below the raw folder.
        top: The top folder.
        subfolders: The folders between ``top`` and the image, from the outermost one, without those
            in :data:`NOT_GROUP_FOLDERS`.
        split: The split in the name of the folder above ``top``.
    """

    name: str
    top: str
    subfolders: tuple[str, ...]
    split: GivenSplit

    @property
    def first_subfolder(self) -> str | None:
        """The subfolder of ``top``; None if the image lies directly in ``top``."""
        return self.subfolders[0] if self.subfolders else None

    def class_and_group(self, layout: Layout) -> tuple[str | None, str | None]:
        """Return the names of the image's class folder and group folder; None without one."""
        if layout == "class/group":
            return self.top, self.first_subfolder
        return self.first_subfolder, self.top


@dataclass(frozen=True)
class ClassImage:
    """An image with its class and group.

    Attributes:
        path: Path of the image.
        class_name: Name of the class folder.
        group: Name of the group folder; empty without one.
    """

    path: ImagePath
    class_name: str
    group: str


@dataclass(frozen=True)
class FolderScan:
    """The images of a raw folder before their classes are known.

    Attributes:
        image_paths: The images that are not left out.
        excluded: Reason -> number of files that are left out.
        wrapper: Path of the wrapper with a final slash; empty without a wrapper.
        has_splits: Whether the folders directly below the wrapper are splits.
    """

    image_paths: list[ImagePath]
    excluded: Counter[str]
    wrapper: str
    has_splits: bool


def list_folder(request: RawRequest) -> Listing:
    """List the images of all class folders. Classes are in the order of their names.

    Raises:
        DataError: There are fewer than two class folders, it is unclear which folders are the
            classes, or labels, groups or splits break a rule of :mod:`tasks.sources.own`.
    """
    root = request.root()
    if root.is_file() and not is_archive_name(root.name):
        raise request.error(
            "the source is a file, not a folder", hint="Use the path of a folder, a .zip or a .tar"
        )
    tree = RawTree(request)
    scan = _scan_folder(tree, request)
    _check_splits_are_on_top(scan.image_paths, request)
    _check_distinct_paths(scan.image_paths, request)
    layout, layout_flags = _choose_layout(scan.image_paths, tree, request)
    images = _images_of_classes(scan.image_paths, layout)
    num_without_class = len(scan.image_paths) - len(images)
    excluded = scan.excluded + Counter({OUTSIDE_CLASSES: num_without_class})
    _check_two_classes(images, excluded[OUTSIDE_CLASSES], tree, request)
    # Flag -> number of images or folders that it concerns.
    flags = _flag_empty_folders(tree, images, scan, layout)
    num_nested_deeper = sum(len(image.path.subfolders) > 1 for image in images)
    if num_nested_deeper:
        flags["in a deeper folder, counted to its group"] = num_nested_deeper
    if scan.wrapper:
        flags["a wrapper folder was skipped"] = 1
    locators = [tree.locator(image.path.name) for image in images]
    rows = Rows(
        cells={"label": [image.class_name for image in images]},
        locator=lambda row: locators[row],
        name=lambda row: request.hashed(locators[row]),
        # Messages identify an image by its hash. So there are no row numbers to explain.
        numbering=lambda _: "",
        default_group=lambda row: images[row].group,
        file_split=lambda row: images[row].path.split,
    )
    return own_listing(
        rows,
        request,
        dataset_flags=layout_flags,
        # Names are sorted as text, even if they are numbers, as in torchvision's ImageFolder.
        sort_classes=sorted,
        listing_fields=Listing(flags=flags, excluded=excluded, intensity=INTENSITY),
    )


folder = Source(list_folder, single_reader)


def _images_of_classes(image_paths: Sequence[ImagePath], layout: Layout) -> list[ClassImage]:
    """Return the images that lie in a class folder."""
    images = []
    for path in image_paths:
        class_name, group = path.class_and_group(layout)
        if class_name is not None:
            images.append(ClassImage(path, class_name, group or ""))
    return images


def _scan_folder(tree: RawTree, request: RawRequest) -> FolderScan:
    """Choose the images to use, and divide their paths into folders.

    Raises:
        DataError: Some folders are splits, and others are probably splits with unusual names.
    """
    # Only images, without repeated ones, decide about the wrapper and the splits. So other files
    # and repeated images are removed first.
    image_names = []
    for name in tree:
        if is_single_image_name(name) or _is_bare_dicom(tree, name, request):
            image_names.append(name)
    repeated = _repeated_in_inner_archives(tree, image_names, request)
    distinct_names = [name for name in image_names if name not in repeated]
    wrapper = _find_wrapper(distinct_names, is_archive=request.root().is_file())
    has_splits = _has_splits(distinct_names, wrapper, request)
    masks = _find_masks(distinct_names)
    used_names = set(distinct_names)
    excluded: Counter[str] = Counter()
    image_paths = []
    for name in tree:
        path = _divide_path(name, wrapper, has_splits=has_splits)
        # If several conditions apply to a file, the first one is the reason that is counted.
        if name in repeated:
            excluded["in an archive beside images"] += 1
        elif name not in used_names:
            excluded["not an image by its extension"] += 1
        elif path is None:
            excluded[OUTSIDE_CLASSES] += 1
        elif path.split is GivenSplit.VALIDATION:
            excluded[VALIDATION_LEFT_OUT] += 1
        elif name in masks:
            # Masks in a class of masks are counted here too.
            excluded["a mask beside its image"] += 1
        elif not MASK_FOLDERS.isdisjoint(map(str.casefold, path.subfolders)):
            excluded["in a folder of masks"] += 1
        else:
            image_paths.append(path)
    excluded.update(count_hidden(tree.hidden, is_single_image_name))
    return FolderScan(image_paths, excluded, wrapper, has_splits)


def _divide_path(name: str, wrapper: str, *, has_splits: bool) -> ImagePath | None:
    """Divide the path of a file into its folders, or return None if it has no top folder.

    Args:
        name: Name of the file.
        wrapper: Path of the wrapper with a final slash; empty without a wrapper.
        has_splits: Whether the folders directly below ``wrapper`` are splits.
    """
    *folders, _ = name.removeprefix(wrapper).split("/")
    split = GivenSplit.NONE
    if has_splits and folders:
        split = parse_split(folders.pop(0))
    if not folders:
        return None
    top, *subfolders = folders
    kept = [folder for folder in subfolders if folder.casefold() not in NOT_GROUP_FOLDERS]
    return ImagePath(name, top, tuple(kept), split)


def _repeated_in_inner_archives(
    tree: RawTree, image_names: Sequence[str], request: RawRequest
) -> set[str]:
    """Return the images of inner archives that repeat the images beside the archive.

    If ``raw.zip`` has ``a/1.png`` and ``a/copy.zip``, and ``copy.zip`` contains only ``1.png``, the
    image in ``copy.zip`` is left out. If ``copy.zip`` contains only ``2.png``, it is read. An inner
    archive at the top of ``raw.zip`` is always read.

    Raises:
        DataError: Only some images of an inner archive have the file name of an image beside it.
    """
    # An archive is identified by the members that lead to it. In raw.zip!/a/copy.zip!/1.png, it is
    # ("a/copy.zip",). The archive raw.zip itself is the empty tuple.
    file_names: defaultdict[tuple[tuple[str, ...], str], set[str]] = defaultdict(set)
    images_by_archive: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in image_names:
        _, *members = split_locator(tree.locator(name))
        if not members:  # the image is not in an archive
            continue
        archive = tuple(members[:-1])
        image_folder, _, file_name = members[-1].rpartition("/")
        file_names[archive, image_folder].add(file_name)
        for depth in range(1, len(members)):
            images_by_archive[archive[:depth]].append(name)
    repeated: set[str] = set()
    for archive, names in images_by_archive.items():
        folders = [member.rpartition("/")[0] for member in archive]
        if not any(folders):  # the archive is at the top
            continue
        names_beside = file_names.get((archive[:-1], folders[-1]), set())
        repeats = {name for name in names if PurePath(tree.locator(name)).name in names_beside}
        if 0 < len(repeats) < len(names):
            raise request.error(
                f"{len(repeats)} of the {len(names)} images in the inner archive "
                f"{request.hashed(MARK.join(archive))} have the file name of an image beside it, "
                "so it is unclear whether this archive repeats those images",
                hint="Remove the inner archive, or unpack the other images beside it and then "
                "remove it",
            )
        repeated |= repeats
    return repeated


def _check_two_classes(
    images: Sequence[ClassImage], num_outside: int, tree: RawTree, request: RawRequest
) -> None:
    """Check that there are two class folders.

    Raises:
        DataError: There are fewer than two. The hint depends on the files in the folder.
    """
    classes = {image.class_name for image in images}
    if len(classes) >= 2:
        return
    is_archive = request.root().is_file()
    extensions = {PurePath(name).suffix.lower() for name in tree}
    hints = []
    if not classes and num_outside:
        hints.append("If this folder contains only one class, use the folder above it")
    hints.append(LAYOUT_HINT)
    for extension, hint in HINT_BY_EXTENSION.items():
        if extension not in extensions:
            continue
        if is_archive and extension in TABLE_EXTENSIONS:
            hints.append(f"{hint}, after you have unpacked the archive")
        else:
            hints.append(hint)
    raise request.error(
        f"the folder has {plural(len(classes), 'class folder')} with images and {num_outside} "
        "images outside class folders, but two classes are needed",
        hint=". ".join(dict.fromkeys(hints)),
    )


def _choose_layout(
    image_paths: Sequence[ImagePath], tree: RawTree, request: RawRequest
) -> tuple[Layout, list[str]]:
    """Choose whether the top folders are classes or groups.

    Returns:
        The layout, and a flag if patient ids in DICOM headers decided it.

    Raises:
        DataError: The layout is unclear.
    """
    if request.dataset.layout is not None:
        return request.dataset.layout, []
    tops_by_subfolder: defaultdict[str | None, set[str]] = defaultdict(set)
    for image in image_paths:
        tops_by_subfolder[image.first_subfolder].add(image.top)
    # Both layouts are possible if the subfolders may be classes too.
    are_all_in_subfolders = None not in tops_by_subfolder
    are_few_names = 1 < len(tops_by_subfolder) <= MAX_SHARED_FOLDERS
    are_shared = all(len(tops) > 1 for tops in tops_by_subfolder.values())
    if not (are_all_in_subfolders and are_few_names and are_shared):
        return "class/group", []
    layout = _layout_by_headers(image_paths, tree, request)
    if layout is None:
        tops = set().union(*tops_by_subfolder.values())
        raise request.error(
            f"{len(tops)} top folders have the same {len(tops_by_subfolder)} subfolders, so it is "
            "unclear whether the top folders or the subfolders are the classes",
            hint="If the top folders are the classes, set `layout: class/group` (--layout). "
            "If the subfolders are the classes, set `layout: group/class`. If the top "
            "folders are folds, use the path of one fold",
        )
    return layout, [f"layout {layout}, by the patient ids in DICOM headers"]


def _check_distinct_paths(image_paths: Sequence[ImagePath], request: RawRequest) -> None:
    """Check that no two files of an archive, or of archives inside it, have the same path.

    Raises:
        DataError: Two files have the same path.
    """
    # If two archives contain the same path, the name of the second file is its locator, which
    # contains MARK.
    if request.root().is_file() and any(MARK in image.name for image in image_paths):
        raise request.error(
            "two files in the archive, or in archives inside it, have the same path",
            hint="Unpack the archives into one folder so that every file has its own path. "
            "Then use this folder",
        )


def _check_splits_are_on_top(image_paths: Sequence[ImagePath], request: RawRequest) -> None:
    """Check that no folder looks like a split, except ``train`` and ``test`` below the wrapper.

    Raises:
        DataError: All subfolders are splits, or most top folders seem to be splits.
    """
    tops = sorted({image.top for image in image_paths})
    subfolders = {image.subfolders[0] for image in image_paths if image.subfolders}
    if len(tops) > 1 and subfolders and all(map(is_split_word, subfolders)):
        raise request.error(
            f"the splits {', '.join(sorted(subfolders)[:5])} are inside the class folders, but "
            "should be above them",
            hint=LAYOUT_HINT,
        )
    with_split_word = []
    splits = set()
    for top in tops:
        top_splits = parse_splits(SPLIT_WORD_IN_NAME.findall(top))
        splits |= top_splits
        if top_splits:
            with_split_word.append(top)
    # A class may be called "test strip". The top folders count as splits only if their names
    # contain "train" and another split, and if at least half of them have such a name.
    is_majority = 2 * len(with_split_word) >= len(tops)
    if GivenSplit.TRAIN in splits and len(splits) > 1 and is_majority:
        raise request.error(
            "the top folders are neither classes nor splits called train, test and val: "
            f"{', '.join(with_split_word[:5])}",
            hint=f"Rename the splits, and put the class folders into them. {LAYOUT_HINT}",
        )


def _layout_by_headers(
    image_paths: Sequence[ImagePath], tree: RawTree, request: RawRequest
) -> Layout | None:
    """Return the layout in which every patient of the DICOM headers has one group folder.

    The table shows the layout by the number of folders in which a patient has images.

    ===================  ======================  =================================
    one top folder each  one subfolder name each  layout
    ===================  ======================  =================================
    yes                  no                      group/class
    no                   yes                     class/group
    yes                  yes                     None: both are possible
    no                   no                      None: the headers contradict both
    ===================  ======================  =================================

    The layout is also None if there are fewer than two patients, or if a patient id is missing or a
    placeholder.
    """
    tops: defaultdict[str, set[str]] = defaultdict(set)
    subfolders: defaultdict[str, set[str | None]] = defaultdict(set)
    num_read: Counter[tuple[str, str | None]] = Counter()
    num_folders = len({(image.top, image.first_subfolder) for image in image_paths})
    num_per_folder = max(MAX_HEADERS // num_folders, 1)
    for image in image_paths:
        folders = (image.top, image.first_subfolder)
        # All images except pictures are DICOM files, also those without an extension.
        if num_read[folders] == num_per_folder or is_image_name(image.name):
            continue
        num_read[folders] += 1
        header = read_header(request.base(), tree.locator(image.name))
        patient = plain_id(header.patient) if header else ""
        if patient in PLACEHOLDERS:
            return None
        tops[patient].add(image.top)
        subfolders[patient].add(image.first_subfolder)
    have_one_top = set(map(len, tops.values())) == {1}
    have_one_subfolder = set(map(len, subfolders.values())) == {1}
    if len(tops) < 2:
        return None
    if have_one_top and not have_one_subfolder:
        return "group/class"
    if have_one_subfolder and not have_one_top:
        return "class/group"
    return None


def _is_bare_dicom(tree: RawTree, name: str, request: RawRequest) -> bool:
    """Return whether a file that is not in an archive is DICOM although it has no extension.

    Digits after a dot are not an extension: scanners use numbers as file names.
    """
    extension = PurePath(name).suffix[1:]
    locator = tree.locator(name)
    if (extension and not extension.isdigit()) or MARK in locator:
        return False
    try:
        with (request.base() / locator).open("rb") as file:
            return is_dicom(file.read(SIGNATURE_BYTES))
    except OSError:
        return False


def _find_masks(image_names: Sequence[str]) -> set[str]:
    """Return the images that are masks of other images, by the name of the file or a folder."""
    stems = set()
    folders = set()
    for name in image_names:
        stems.add(name.rpartition(".")[0].casefold())
        folders.update(_folders_above(name.casefold()))
    masks = set()
    for name in image_names:
        stem = name.rpartition(".")[0]
        is_in_mask_folder = any(_is_mask(folder, folders) for folder in _folders_above(name))
        if is_in_mask_folder or _is_mask(stem, stems):
            masks.add(name)
    return masks


def _folders_above(name: str) -> list[str]:
    """Return the paths of all folders that contain a file, from the innermost one."""
    folders = []
    folder = name.rpartition("/")[0]
    while folder:
        folders.append(folder)
        folder = folder.rpartition("/")[0]
    return folders


def _is_mask(path: str, paths: set[str]) -> bool:
    """Return whether a path has the name of a mask and ``paths`` contains the path of its image."""
    image = _image_of_mask(path)
    return image is not None and image in paths


def _image_of_mask(path: str) -> str | None:
    """Return the path of a mask's image, or None if the path does not have the name of a mask.

    Args:
        path: Path of a file without its extension, or of a folder.
    """
    parent, _, last = path.rpartition("/")
    match = MASK_NAME.fullmatch(last)
    if match is None:
        return None
    return f"{parent}/{match[1]}".lstrip("/").casefold()


def _find_wrapper(image_names: Iterable[str], *, is_archive: bool) -> str:
    """Return the path of the wrapper with a final slash; empty without a wrapper.

    An archive often has a wrapper, or several nested ones: ``<name>/<name>-v2/<class>/``.

    A folder ``<raw>`` has a wrapper only if the folders in the wrapper are splits. So in
    ``<raw>/data/train/...`` the folder ``data`` is a wrapper, but in ``<raw>/cats/...`` the folder
    ``cats`` is not, because it may be a class.
    """
    # Parts of the paths below the wrapper.
    paths = [name.split("/") for name in image_names]
    wrapper = ""
    while len({path[0] for path in paths}) == 1:
        top = paths[0][0]
        has_class_folders = min(map(len, paths)) >= 3  # wrapper, class, image
        if is_split_word(top) or not has_class_folders:
            break
        paths = [path[1:] for path in paths]
        wrapper += f"{top}/"
    # Only now it is known whether the folders in the wrapper are splits.
    if is_archive or _has_train_and_test(path[0] for path in paths):
        return wrapper
    return ""


def _has_train_and_test(names: Iterable[str]) -> bool:
    """Return whether some folders are the training split and the test split."""
    return parse_splits(names).issuperset(TRAIN_AND_TEST)


def _has_splits(image_names: Iterable[str], wrapper: str, request: RawRequest) -> bool:
    """Return whether the folders below ``wrapper`` are splits. Files beside them are ignored.

    Raises:
        DataError: Some folders are splits, and others are probably splits with unusual names.
    """
    subfolders_by_top: defaultdict[str, set[str]] = defaultdict(set)
    for name in image_names:
        *folders, _ = name.removeprefix(wrapper).split("/")
        if folders:
            subfolders_by_top[folders[0]].update(folders[1:2])
    tops = set(subfolders_by_top)
    splits = set(filter(is_split_word, tops))
    if splits == tops:
        return bool(tops)
    # If other top folders have the same subfolders, they are probably splits with unusual names.
    subfolders_of_splits = set().union(*(subfolders_by_top[top] for top in splits))
    subfolders_of_others = set().union(*(subfolders_by_top[top] for top in tops - splits))
    have_same_classes = len(subfolders_of_splits & subfolders_of_others) > 1
    if have_same_classes or _has_train_and_test(splits):
        raise request.error(
            f"some top folders are splits ({', '.join(sorted(splits))}), and others are not "
            f"({first_of(sorted(tops - splits))})",
            hint="Move the other folders elsewhere, or use the path of one split",
        )
    return False


def _flag_empty_folders(
    tree: RawTree, images: Iterable[ClassImage], scan: FolderScan, layout: Layout
) -> dict[str, int]:
    """Return flags for top folders without an image: flag -> number of folders.

    At most :data:`MAX_NAMED_FOLDERS` classes are flagged by name. Groups are only counted, because
    a group's name may be a patient's. Folders of masks need no images, so they get no flag.
    """
    depth = 2 if scan.has_splits else 1
    with_images = set()
    for image in images:
        parts = image.path.name.removeprefix(scan.wrapper).split("/")
        with_images.add("/".join(parts[:depth]))
    all_folders = set(map(str.casefold, tree.folders))
    empty_folders = []
    for folder in tree.folders:
        name = folder.removeprefix(scan.wrapper)
        parts = name.split("/")
        is_read = not scan.has_splits or parse_split(parts[0]) in TRAIN_AND_TEST
        is_in_wrapper = folder.startswith(scan.wrapper)
        is_top = is_in_wrapper and len(parts) == depth
        if is_top and is_read and name not in with_images and not _is_mask(folder, all_folders):
            empty_folders.append(folder)
    if layout == "group/class":
        return {"folder without an image": len(empty_folders)} if empty_folders else {}
    flags = {}
    for folder in empty_folders[:MAX_NAMED_FOLDERS]:
        flags[f"class folder without an image: {folder}"] = 1
    if len(empty_folders) > MAX_NAMED_FOLDERS:
        flags["other class folder without an image"] = len(empty_folders) - MAX_NAMED_FOLDERS
    return flags
