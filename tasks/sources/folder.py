"""A user's images in one folder per class.

The default layout is called ``class/group``. It is that of torchvision's ``ImageFolder`` and timm's
folder reader: ``<raw>/<class>/image.png``, with or without folders of groups in a class. Images are
pictures or DICOM files. A DICOM file on the disk may lack an ending. ``<raw>`` may be an archive of
such folders.

- Groups: all images in a subfolder of a class (``<raw>/<class>/<group>/image.png``), and in its own
  subfolders, are one group. Equal group names in different classes are one group. A folder called
  ``images`` is no group (Tiny ImageNet has such folders).
- Masks are left out and counted: files in a folder called ``masks`` (COVID-19 Radiography
  Database), a mask beside its image (BUSI has ``x_mask.png`` beside ``x.png``), and a class of
  masks (``cats_mask`` beside ``cats``).
- Splits: ``<raw>/train/<class>/...`` and ``<raw>/test/<class>/...``. Images in a folder ``val``
  beside them are left out and counted.
- Layout ``group/class``: the groups are above the classes, ``<raw>/<group>/<class>/image.png``. If
  every top folder has the same subfolders, both layouts are possible. Then the user's ``layout``
  decides, or else the patient ids in DICOM headers.

Terms:

- *Top folder*: a folder right below ``<raw>``, below the wrapper, or below the folder of a split.
- *Wrapper*: a single folder around all classes or splits, as archives often have one.
- *Inner archive*: an archive in the archive that ``<raw>`` is.
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
    is_dicom_name,
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
from tasks.sources.raw import MARK, RawTree, is_archive_name

EXPECTED = (
    "Use FOLDER/<class>/image.png, or FOLDER/train/<class>/image.png and "
    "FOLDER/test/<class>/image.png"
)
MAX_SHARED_FOLDERS = 20
"""Most subfolder names for which the layout may be ``group/class``. If the top folders share more
names than this, the names are taken for patients."""
MAX_HEADERS = 200
"""DICOM headers that are read to choose the layout, in all folders together."""
MAX_NAMED_FOLDERS = 20
"""Empty class folders that are flagged by name."""
SPLIT_WORD_IN_NAME = re.compile(
    r"(?<![A-Za-z])(?i:train(?:ing)?|trn|test(?:ing)?|tst|val(?:id|idation)?)(?=[A-Z]?(?![A-Za-z]))"
)
"""The word for a split in a longer name: ``seg_train``, ``test-set``, ``trainA``."""
NO_GROUPS = frozenset({"image", "images", "img", "imgs"})
"""Names of subfolders that are not groups, in lower case."""
MASK_FOLDERS = frozenset({"mask", "masks", "segmentation", "segmentations"})
"""Names of subfolders that hold masks, in lower case."""
MASK_NAME = re.compile(r"(.+?)[ _-](?:mask|masks|seg|segmentation)(?:[ _-]?\d+)?", re.IGNORECASE)
"""Name of a mask; the first group is the name of its image."""
TABLE_HINT = "With a table of labels beside it, give the table (kind table)"
TABLE_ENDINGS = (".csv", ".tsv", ".xlsx", ".jsonl")
"""Endings of files that may be the table of labels."""
ARCHIVE_HINT = "There are archives: give one archive of class folders itself, or unpack them here"
ARRAY_HINT = "Give the array file itself"
NIFTI_HINT = "NIfTI volumes are read by a table of path and label (kind table)"
HINTS = {
    **dict.fromkeys(TABLE_ENDINGS, TABLE_HINT),
    ".zip": ARCHIVE_HINT,
    ".tar": ARCHIVE_HINT,
    ".arrow": "Write what datasets' save_to_disk made with to_parquet",
    ".npz": ARRAY_HINT,
    ".h5": ARRAY_HINT,
    ".hdf5": ARRAY_HINT,
    ".nii": NIFTI_HINT,
    ".gz": NIFTI_HINT,
    "": "Files without an ending are read only if they are DICOM and not in an archive",
}
"""Ending of a file that lies where class folders are expected -> hint for the user."""


@dataclass(frozen=True)
class ImagePath:
    """The path of an image, taken apart into its folders.

    Attributes:
        name: Name of the image in the tree, which is its path below the raw folder.
        top: The top folder.
        subfolders: The folders between ``top`` and the image, from the outermost one.
        split: The split that the folder above ``top`` means.
    """

    name: str
    top: str
    subfolders: tuple[str, ...]
    split: GivenSplit

    @property
    def first_subfolder(self) -> str:
        """The subfolder of ``top``; empty if the image lies right in ``top``."""
        return self.subfolders[0] if self.subfolders else ""

    def class_and_group(self, layout: Layout) -> tuple[str, str]:
        """Return the names of the image's class and group; empty if there is no such folder."""
        if layout == "class/group":
            return self.top, self.first_subfolder
        return self.first_subfolder, self.top


def list_folder(request: RawRequest) -> Listing:
    """List the images of all class folders. Classes are in the order of their names.

    Raises:
        DataError: There are fewer than two class folders, it is unclear which folders are the
            classes, or labels, groups or splits break a rule of :mod:`tasks.sources.own`.
    """
    root = request.root()
    if root.is_file() and not is_archive_name(root.name):
        raise request.error(
            "the source is a file, not a folder", hint="Unpack it, or pack it as .zip or .tar"
        )
    tree = RawTree(request)
    images = []
    for name in tree:
        if is_single_image_name(name) or _is_bare_dicom(tree, name, request):
            images.append(name)
    packed = _packed_beside_images(tree, images)
    images = [name for name in images if name not in packed]
    wrapper = _wrapper(images, is_archive=root.is_file())
    has_splits = _has_splits(images, wrapper, request)
    image_paths, excluded = _parse_paths(tree, images, packed, wrapper, has_splits)
    excluded.update(count_hidden(tree.hidden, is_single_image_name))
    layout, layout_flags = _choose_layout(image_paths, tree, request)
    class_images = []
    labels = []
    groups = []
    num_below = 0
    for image in image_paths:
        label, group = image.class_and_group(layout)
        if label:
            class_images.append(image)
            labels.append(label)
            groups.append(group)
            num_below += len(image.subfolders) > 1
        else:
            excluded["outside the class folders"] += 1
    _check_two_classes(set(labels), excluded["outside the class folders"], tree, request)
    locators = [tree.locator(image.name) for image in class_images]
    flags = _empty_folders(tree, class_images, has_splits, layout)
    if num_below:
        flags["in a folder in a group's folder, and taken as that group's"] = num_below
    if wrapper:
        flags["the one top folder taken as the source"] = 1
    rows = Rows(
        cells={"label": labels},
        locator=locators.__getitem__,
        name=lambda row: request.hashed(locators[row]),
        numbering=lambda _: "",
        default_group=groups.__getitem__,
        file_split=lambda row: class_images[row].split,
    )
    draft = Listing(flags=flags, excluded=excluded, intensity=INTENSITY)
    # Names are sorted as text, as torchvision's ImageFolder does, also if they are numbers.
    return own_listing(rows, request, dataset_flags=layout_flags, order=sorted, draft=draft)


folder = Source(list_folder, single_reader)


def _packed_beside_images(tree: RawTree, images: Sequence[str]) -> set[str]:
    """Return the images of inner archives that lie beside unpacked images, in an archive.

    If there are unpacked images in the folder of an inner archive, it most often holds these images
    again.
    """
    parts_by_name = {name: tree.locator(name).split(MARK) for name in images}
    folders = set()
    for name, parts in parts_by_name.items():
        if len(parts) == 2:  # in the raw archive itself, not in an inner archive
            folders.add(name.rpartition("/")[0])
    folders.discard("")
    packed = set()
    for name, parts in parts_by_name.items():
        archive_folder = name.removesuffix(parts[-1]).rstrip("/")
        if len(parts) > 2 and archive_folder in folders:
            packed.add(name)
    return packed


def _check_two_classes(
    classes: set[str], num_outside: int, tree: RawTree, request: RawRequest
) -> None:
    """Check that there are two class folders; the error names other ways to read these files."""
    if len(classes) >= 2:
        return
    is_archive = request.root().is_file()
    endings = {PurePath(name).suffix.lower() for name in tree}
    hints = [EXPECTED]
    for ending, hint in HINTS.items():
        if ending in endings and is_archive and ending in TABLE_ENDINGS:
            hints.append(f"{hint}, unpacked with its images")
        elif ending in endings:
            hints.append(hint)
    raise request.error(
        f"the folder has {plural(len(classes), 'class folder')} with images and {num_outside} "
        "images outside of any, but two classes are needed",
        hint=". ".join(dict.fromkeys(hints)),
    )


def _choose_layout(
    image_paths: Sequence[ImagePath], tree: RawTree, request: RawRequest
) -> tuple[Layout, list[str]]:
    """Decide whether the top folders are classes or groups.

    Returns:
        The layout, and a flag if the DICOM headers decided.

    Raises:
        DataError: It is unclear, or the top folders seem to be splits.
    """
    tops_by_subfolder: defaultdict[str, set[str]] = defaultdict(set)
    for image in image_paths:
        tops_by_subfolder[image.first_subfolder].add(image.top)
    tops = sorted(set().union(*tops_by_subfolder.values()))
    _check_no_splits(tops, set(tops_by_subfolder) - {""}, request)
    if request.root().is_file() and any(MARK in image.name for image in image_paths):
        raise request.error(
            "several archives, inner ones included, have files of the same name",
            hint="Unpack them into one folder",
        )
    if request.dataset.layout is not None:
        return request.dataset.layout, []
    # Both layouts are possible if all images lie in subfolders, the subfolders have few names, and
    # every name is in several top folders.
    is_ambiguous = (
        1 < len(tops_by_subfolder) <= MAX_SHARED_FOLDERS
        and "" not in tops_by_subfolder
        and min(map(len, tops_by_subfolder.values())) > 1
    )
    if not is_ambiguous:
        return "class/group", []
    layout = _layout_by_headers(image_paths, tree, request)
    if layout is None:
        raise request.error(
            f"{len(tops)} top folders have the same {len(tops_by_subfolder)} subfolders, so "
            "either may be the classes, and the others patients, sites or parts",
            hint="Choose layout: class/group or layout: group/class (--layout), or give a "
            "table. If the top folders are folds, give one of them",
        )
    return layout, [f"layout {layout}, by the patients in the headers"]


def _check_no_splits(tops: Sequence[str], subfolders: set[str], request: RawRequest) -> None:
    """Check that neither the top folders nor their subfolders seem to be splits.

    Raises:
        DataError: All subfolders are splits, or the names of top folders contain words for splits.
    """
    if len(tops) > 1 and subfolders and all(map(is_split_word, subfolders)):
        raise request.error(
            f"the splits {', '.join(sorted(subfolders)[:5])} lie below the class folders, not "
            "above them",
            hint=EXPECTED,
        )
    with_split_word = []
    splits = set()
    for top in tops:
        top_splits = parse_splits(SPLIT_WORD_IN_NAME.findall(top))
        splits |= top_splits
        if top_splits:
            with_split_word.append(top)
    # A class may be called "test strip". So the names must contain "train" and another split, and
    # at least half of all top folders must have such a name.
    is_majority = 2 * len(with_split_word) >= len(tops)
    if GivenSplit.TRAIN in splits and len(splits) > 1 and is_majority:
        raise request.error(
            "the top folders are neither classes nor splits called train, test and val: "
            f"{', '.join(with_split_word[:5])}",
            hint=f"Rename them, with the classes right below. {EXPECTED}",
        )


def _layout_by_headers(
    image_paths: Sequence[ImagePath], tree: RawTree, request: RawRequest
) -> Layout | None:
    """Return the layout in which every patient of the DICOM headers has one group folder.

    ===================  ========================  ============
    one top folder each  one subfolder name each   layout
    ===================  ========================  ============
    yes                  no                        group/class
    no                   yes                       class/group
    yes                  yes                       None: both are possible
    no                   no                        None: the headers contradict both
    ===================  ========================  ============

    It is also None if there are fewer than two patients, or if a patient id is a placeholder.
    """
    tops: defaultdict[str, set[str]] = defaultdict(set)
    subfolders: defaultdict[str, set[str]] = defaultdict(set)
    num_read: Counter[tuple[str, str]] = Counter()
    num_folders = len({(image.top, image.first_subfolder) for image in image_paths})
    num_per_folder = max(MAX_HEADERS // num_folders, 1)
    for image in image_paths:
        folders = (image.top, image.first_subfolder)
        if num_read[folders] == num_per_folder or not is_dicom_name(image.name):
            continue
        num_read[folders] += 1
        header = read_header(request.base(), tree.locator(image.name))
        patient = plain_id(header.patient) if header else ""
        if patient in PLACEHOLDERS:
            return None  # no usable patient id: missing header or placeholder
        tops[patient].add(image.top)
        subfolders[patient].add(image.first_subfolder)
    have_one_top = set(map(len, tops.values())) == {1}
    have_one_subfolder = set(map(len, subfolders.values())) == {1}
    if have_one_top == have_one_subfolder or len(tops) < 2:
        return None
    return "group/class" if have_one_top else "class/group"


def _is_bare_dicom(tree: RawTree, name: str, request: RawRequest) -> bool:
    """Return whether a file on the disk is DICOM although it has no ending.

    Digits behind a dot are no ending: scanners name files by numbers.
    """
    ending = PurePath(name).suffix[1:]
    locator = tree.locator(name)
    if (ending and not ending.isdigit()) or MARK in locator:
        return False
    try:
        with (request.base() / locator).open("rb") as file:
            return is_dicom(file.read(SIGNATURE_BYTES))
    except OSError:
        return False


def _masks(images: Sequence[str]) -> set[str]:
    """Return the images that are masks of others, by the name of the file or of its folder."""
    stems = set()
    folders = set()
    for name in images:
        stems.add(name.rpartition(".")[0].casefold())
        folders.add(name.rpartition("/")[0].casefold())
    masks = set()
    for name in images:
        stem = name.rpartition(".")[0]
        parent = name.rpartition("/")[0]
        if _image_of_mask(stem) in stems or _image_of_mask(parent) in folders:
            masks.add(name)
    return masks


def _image_of_mask(path: str) -> str | None:
    """Return the path of the image that a path is the mask of, or None if it is no mask.

    Paths are those of files without their endings, or of folders of classes.
    """
    parent, _, last = path.rpartition("/")
    match = MASK_NAME.fullmatch(last)
    if match is None:
        return None
    return f"{parent}/{match[1]}".lstrip("/").casefold()


def _parse_paths(
    tree: RawTree, images: Sequence[str], packed: set[str], wrapper: str, has_splits: bool
) -> tuple[list[ImagePath], Counter[str]]:
    """Choose the images to use, and take their paths apart.

    Args:
        tree: All files.
        images: Names of the files that are images.
        packed: Names of files that are left out, see :func:`_packed_beside_images`.
        wrapper: Path that all images have in common, see :func:`_wrapper`.
        has_splits: Whether the folders right below ``wrapper`` are splits.

    Returns:
        The images that are used, and reason -> number of files that are left out.
    """
    masks = _masks(images)
    image_names = set(images)
    excluded: Counter[str] = Counter()
    image_paths = []
    for name in tree:
        parts = name.removeprefix(wrapper).split("/")
        split = GivenSplit.NONE
        if has_splits and len(parts) > 1:
            split = parse_split(parts.pop(0))
        if name in packed:
            excluded["in an archive beside images"] += 1
        elif name not in image_names:
            excluded["not an image by its ending"] += 1
        elif len(parts) < 2:
            excluded["outside the class folders"] += 1
        elif split is GivenSplit.VALIDATION:
            excluded[VALIDATION_LEFT_OUT] += 1
        elif name in masks:
            excluded["a mask beside its image"] += 1
        elif not MASK_FOLDERS.isdisjoint(map(str.casefold, parts[1:-1])):
            excluded["in a folder of masks"] += 1
        else:
            folders = [part for part in parts[1:-1] if part.casefold() not in NO_GROUPS]
            image_paths.append(ImagePath(name, parts[0], tuple(folders), split))
    return image_paths, excluded


def _wrapper(images: Iterable[str], *, is_archive: bool) -> str:
    """Return the path above the classes or splits that all images share, with a slash, or "".

    An archive often has one folder, or several nested ones, around all class folders:
    ``<name>/<name>-v2/<class>/``. If ``<raw>`` is a folder, its only subfolder may be a class, so
    it is a wrapper only if it holds splits.
    """
    paths = [name.split("/") for name in images]
    wrapper = []
    while len({path[0] for path in paths}) == 1:
        top = paths[0][0]
        has_class_folders = min(map(len, paths)) >= 3  # wrapper, class, image
        if is_split_word(top) or not has_class_folders:
            break
        paths = [path[1:] for path in paths]
        wrapper.append(f"{top}/")
    holds_splits = parse_splits(path[0] for path in paths) >= {GivenSplit.TRAIN, GivenSplit.TEST}
    return "".join(wrapper) if is_archive or holds_splits else ""


def _has_splits(images: Iterable[str], wrapper: str, request: RawRequest) -> bool:
    """Return whether the folders below ``wrapper`` are splits; files beside them do not matter.

    Raises:
        DataError: Some are splits, and others seem to be splits with another name.
    """
    tops = set()
    subfolders_of_splits: set[str] = set()
    subfolders_of_others: set[str] = set()
    for name in images:
        parts = name.removeprefix(wrapper).split("/")
        if len(parts) > 1:
            tops.add(parts[0])
        if len(parts) > 2 and is_split_word(parts[0]):
            subfolders_of_splits.add(parts[1])
        elif len(parts) > 2:
            subfolders_of_others.add(parts[1])
    splits = set(filter(is_split_word, tops))
    if splits == tops:
        return bool(tops)
    # If other top folders hold the same classes, they are splits with another name.
    share_classes = len(subfolders_of_splits & subfolders_of_others) > 1
    if share_classes or parse_splits(splits) >= {GivenSplit.TRAIN, GivenSplit.TEST}:
        raise request.error(
            f"the top folders mix splits ({', '.join(sorted(splits))}) with others "
            f"({first_of(sorted(tops - splits))})",
            hint="Move the others elsewhere, or give the folder of one split",
        )
    return False


def _empty_folders(
    tree: RawTree, images: Iterable[ImagePath], has_splits: bool, layout: Layout
) -> dict[str, int]:
    """Return flags for top folders without an image.

    Classes are flagged by name. Groups are only counted, because their names may be patients'.
    """
    depth = 2 if has_splits else 1
    with_images = {tuple(image.name.split("/")[:depth]) for image in images}
    empty = []
    for name in tree.folders:
        parts = tuple(name.split("/"))
        is_used = not has_splits or parse_split(parts[0]) in (GivenSplit.TRAIN, GivenSplit.TEST)
        if len(parts) == depth and parts not in with_images and is_used:
            empty.append(name)
    if layout == "class/group":
        return {f"class folder without an image: {name}": 1 for name in empty[:MAX_NAMED_FOLDERS]}
    if not empty:
        return {}
    return {"folder without an image": len(empty)}
