"""Your own images: one folder per class.

Layout: torchvision's ``ImageFolder`` and ``timm``'s folder reader; sets of Kaggle named below.

``<raw>/<class>/image.png``: pictures, or DICOM files, on a disk also without an ending. ``<raw>``
may be an archive of such folders.

- Groups: images in a subfolder of a class (``<raw>/<class>/<group>/image.png``), however deep,
  share a group. Equal group names in different classes are one group. A folder called ``images`` is
  no group (Tiny ImageNet).
- Masks are left out and counted: files in a folder called ``masks`` (COVID-19 Radiography
  Database), a mask beside its image (BUSI's ``x_mask.png`` beside ``x.png``), and a class of masks
  (``cats_mask`` beside ``cats``).
- Splits: ``<raw>/train/<class>/...`` and ``<raw>/test/<class>/...``. ``val`` beside them is left
  out and counted.
- Layout ``group/class``: ``<raw>/<group>/<class>/image.png``. It looks like the usual layout if
  every folder on top has the same folders in it. Then the patients in DICOM headers decide, or else
  the user's ``layout``.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from search_spaces.specs import Layout
from tasks.sources.base import Listing, RawRequest, Source, Split, first_of
from tasks.sources.dicom import (
    INTENSITY,
    is_dicom_name,
    is_single_image_name,
    read_header,
    single_reader,
)
from tasks.sources.own import (
    PLACEHOLDERS,
    VALIDATION_LEFT_OUT,
    Rows,
    hidden_count,
    own_listing,
    plain_id,
    split_of,
)
from tasks.sources.raw import MARK, RawTree, is_archive_name

EXPECTED = (
    "expected: FOLDER/<class>/image.png, or FOLDER/train/<class>/image.png and FOLDER/test/..."
)
MAX_SHARED_FOLDERS = 20
"""Names of folders that several folders on top may share before they are no classes any more."""
MAX_HEADERS = 200
"""DICOM headers that are read to find the layout, in all folders together."""
MAX_NAMED = 20
"""Empty class folders that are flagged by name."""
SPLIT_WORD = re.compile(
    r"(?<![A-Za-z])(?i:train(?:ing)?|trn|test(?:ing)?|tst|val(?:id|idation)?)(?=[A-Z]?(?![A-Za-z]))"
)
"""A split in a longer name: ``seg_train``, ``test-set``, ``trainA``."""
NO_GROUPS = frozenset({"image", "images", "img", "imgs"})
"""Folders in class folders that are no patients, in lower case."""
MASK_FOLDERS = frozenset({"mask", "masks", "segmentation", "segmentations"})
"""Folders in class folders that hold no images, in lower case."""
MASK_NAME = re.compile(r"(.+?)[ _-](?:mask|masks|seg|segmentation)(?:[ _-]?\d+)?", re.IGNORECASE)
"""Name of a mask; the first group is the name of its image."""
TABLE_HINT = "with a table of labels beside it, give the table (kind table)"
ARCHIVE_HINT = "there are archives: give one archive of class folders itself, or unpack them here"
ARRAY_HINT = "give the array file itself"
NIFTI_HINT = "NIfTI volumes are read by a table of path and label (kind table)"
HINTS = {
    ".csv": TABLE_HINT,
    ".tsv": TABLE_HINT,
    ".xlsx": TABLE_HINT,
    ".jsonl": TABLE_HINT,
    ".zip": ARCHIVE_HINT,
    ".tar": ARCHIVE_HINT,
    ".arrow": "write what datasets' save_to_disk made with to_parquet",
    ".npz": ARRAY_HINT,
    ".h5": ARRAY_HINT,
    ".hdf5": ARRAY_HINT,
    ".nii": NIFTI_HINT,
    ".gz": NIFTI_HINT,
    "": "files without an ending are looked at on a disk, and taken when they are DICOM",
}
"""Ending of a file in a folder without class folders -> hint for the user."""


@dataclass(frozen=True)
class PlacedImage:
    """An image and the folders around it, below those of a split.

    Attributes:
        name: Name of the image in the tree.
        top: The topmost folder.
        inner: The folders in it around the image, from the top.
        split: The split that the folders above ``top`` mean.
    """

    name: str
    top: str
    inner: tuple[str, ...]
    split: Split

    @property
    def first_inner(self) -> str:
        """The folder in the topmost one; empty if the image lies right below the top."""
        return self.inner[0] if self.inner else ""


@dataclass(frozen=True)
class ClassImage:
    """An image with its class and group.

    Attributes:
        name: Name of the image in the tree.
        label: Name of its class.
        group: Name of its group; empty if it is its own.
        split: Its split.
        is_deep: Whether it lies in a folder in its group's folder.
    """

    name: str
    label: str
    group: str
    split: Split
    is_deep: bool


def list_folder(request: RawRequest) -> Listing:
    """List the images of all class folders; classes are in the order of their names.

    Raises:
        DataError: There are no two class folders, it is unclear which folders are the classes, or
            labels, groups or splits break a rule of :mod:`tasks.sources.own`.
    """
    root = request.root()
    if root.is_file() and not is_archive_name(root.name):
        raise request.error(
            "the source must be a folder", "a file", "unpack it, or pack it as .zip or .tar"
        )
    tree = RawTree(request)
    images = [
        name for name in tree if is_single_image_name(name) or _is_bare_dicom(tree, name, request)
    ]
    packed = _packed_beside_images(tree, images)
    images = [name for name in images if name not in packed]
    wrapper = _wrapper(images, is_archive=root.is_file())
    with_splits = _has_splits(images, wrapper, request)
    placed, excluded = _place(tree, images, packed, wrapper, with_splits)
    excluded.update(hidden_count(tree.hidden, is_single_image_name))
    layout, layout_flags = _choose_layout(placed, tree, request)
    class_images = _with_classes(placed, layout)
    excluded["outside the class folders"] += len(placed) - len(class_images)
    _check_two_classes(class_images, excluded["outside the class folders"], tree, request)
    counts = _empty_folders(tree, class_images, with_splits, layout)
    labels = []
    locators = []
    num_deep = 0
    for image in class_images:
        labels.append(image.label)
        locators.append(tree.locator(image.name))
        num_deep += image.is_deep
    if num_deep:
        counts["in a folder in a group's folder, and taken as that group's"] = num_deep
    if wrapper:
        counts["the one top folder taken as the source"] = 1
    rows = Rows(
        cells={"label": labels},
        locator=locators.__getitem__,
        name=lambda row: request.hashed(locators[row]),
        counting=lambda _: "",
        default_group=lambda row: class_images[row].group,
        split=lambda row: class_images[row].split,
    )
    draft = Listing(flags=counts, excluded=excluded, intensity=INTENSITY)
    return own_listing(rows, request, flags=layout_flags, order=_sort_as_text, draft=draft)


def _sort_as_text(labels: Iterable[str]) -> tuple[str, ...]:
    """Sort class names as text, as torchvision's ``ImageFolder`` does."""
    return tuple(sorted(labels))


folder = Source(list_folder, single_reader)


def _packed_beside_images(tree: RawTree, images: Sequence[str]) -> set[str]:
    """Return images in an archive in the raw archive that lies in a folder of unpacked images.

    Such an archive most often holds the same images again.
    """
    parts_by_name = {name: tree.locator(name).split(MARK) for name in images}
    folders = set()
    for name, parts in parts_by_name.items():
        if len(parts) == 2:  # right in the raw archive, not in one inside it
            folders.add(name.rpartition("/")[0])
    folders.discard("")
    packed = set()
    for name, parts in parts_by_name.items():
        archive_folder = name.removesuffix(parts[-1]).rstrip("/")
        if len(parts) > 2 and archive_folder in folders:
            packed.add(name)
    return packed


def _with_classes(placed: Iterable[PlacedImage], layout: Layout) -> list[ClassImage]:
    """Return the images that lie in a class folder, with class and group."""
    images = []
    for image in placed:
        if layout == "class/group":
            label = image.top
            group = image.first_inner
        elif image.inner:
            # Folders in a patient's folder are visits or series of that patient.
            label = image.inner[0]
            group = image.top
        else:
            continue
        images.append(ClassImage(image.name, label, group, image.split, len(image.inner) > 1))
    return images


def _check_two_classes(
    images: Iterable[ClassImage], num_outside: int, tree: RawTree, request: RawRequest
) -> None:
    """Check that there are two class folders, and say what else could be read here if not."""
    num_classes = len({image.label for image in images})
    if num_classes >= 2:
        return
    is_archive = request.root().is_file()
    endings = {PurePath(name).suffix.lower() for name in tree}
    hints = [EXPECTED]
    for ending, hint in HINTS.items():
        if ending in endings and is_archive and hint == TABLE_HINT:
            hints.append(f"{hint}, unpacked with its images")
        elif ending in endings:
            hints.append(hint)
    raise request.error(
        "the folder must hold one subfolder of images per class, two at least",
        f"{num_classes} with images, {num_outside} images outside of any",
        "; ".join(dict.fromkeys(hints)),
    )


def _choose_layout(
    placed: Sequence[PlacedImage], tree: RawTree, request: RawRequest
) -> tuple[Layout, list[str]]:
    """Decide whether classes or groups are on top.

    Returns:
        The layout, and a flag if it had to be found by headers.

    Raises:
        DataError: It is unclear, or the folders on top seem to be splits.
    """
    tops_by_inner: defaultdict[str, set[str]] = defaultdict(set)
    for image in placed:
        tops_by_inner[image.first_inner].add(image.top)
    tops = sorted(set().union(*tops_by_inner.values()))
    _check_no_splits(tops, set(tops_by_inner) - {""}, request)
    if request.root().is_file() and any(MARK in image.name for image in placed):
        raise request.error(
            "a name must be once in an archive and those in it",
            "the same names in several",
            "unpack them into one folder",
        )
    if request.dataset.layout is not None:
        return request.dataset.layout, []
    # Both layouts are possible if every image lies in one of a few folders that several folders on
    # top have.
    is_open = (
        1 < len(tops_by_inner) <= MAX_SHARED_FOLDERS
        and "" not in tops_by_inner
        and min(map(len, tops_by_inner.values())) > 1
    )
    if not is_open:
        return "class/group", []
    layout = _layout_by_headers(placed, tree, request)
    if layout is None:
        raise request.error(
            "it must be plain which folders are the classes",
            f"{len(tops)} folders on top share {len(tops_by_inner)} folders in them: classes with "
            "patients or parts in them, or patients, sites or folds with classes in them",
            "say which: layout: class/group or layout: group/class (--layout), give a table, or of "
            "folds one",
        )
    return layout, [f"layout {layout}, by the patients in the headers"]


def _check_no_splits(tops: Sequence[str], inner: set[str], request: RawRequest) -> None:
    """Check that neither the folders on top nor those in them are splits by another name."""
    if len(tops) > 1 and inner and "" not in map(split_of, inner):
        raise request.error(
            "splits must be above the classes",
            f"{', '.join(sorted(inner)[:5])} below them",
            EXPECTED,
        )
    named = []
    splits = set()
    for top in tops:
        top_splits = set(map(split_of, SPLIT_WORD.findall(top))) - {""}
        splits |= top_splits
        if top_splits:
            named.append(top)
    # A class may be called "test strip": it takes train, another split, and half of all folders.
    if "train" in splits and len(splits) > 1 and 2 * len(named) >= len(tops):
        raise request.error(
            "the top folders must be classes, or splits called train, test and val",
            ", ".join(named[:5]),
            f"call them so, with the classes right below; {EXPECTED}",
        )


def _layout_by_headers(
    placed: Sequence[PlacedImage], tree: RawTree, request: RawRequest
) -> Layout | None:
    """Return the layout in which every patient of the DICOM headers has one folder, or None."""
    tops: defaultdict[str, set[str]] = defaultdict(set)
    inner: defaultdict[str, set[str]] = defaultdict(set)
    num_read: Counter[tuple[str, str]] = Counter()
    num_folders = len({(image.top, image.first_inner) for image in placed})
    num_per_folder = MAX_HEADERS // num_folders or 1
    for image in placed:
        place = (image.top, image.first_inner)
        if num_read[place] == num_per_folder or not is_dicom_name(image.name):
            continue
        num_read[place] += 1
        header = read_header(request.base(), tree.locator(image.name))
        patient = plain_id(header.patient) if header else ""
        if patient in PLACEHOLDERS:
            return None  # an anonymised set, whose headers tell nothing
        tops[patient].add(image.top)
        inner[patient].add(image.first_inner)
    have_one_top = set(map(len, tops.values())) == {1}
    have_one_inner = set(map(len, inner.values())) == {1}
    if have_one_top is have_one_inner or len(tops) < 2:
        return None
    return "group/class" if have_one_top else "class/group"


def _is_bare_dicom(tree: RawTree, name: str, request: RawRequest) -> bool:
    """Return whether a file on the disk is DICOM by its content, if its ending says nothing.

    Scanners name files by numbers, so an ending of digits says nothing, too.
    """
    ending = PurePath(name).suffix[1:]
    locator = tree.locator(name)
    if (ending and not ending.isdigit()) or MARK in locator:
        return False
    try:
        with (request.base() / locator).open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _masks(images: Sequence[str]) -> set[str]:
    """Return the images that are masks of others, by their own name or their folder's."""
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
    """Return the path of the image, or class, that a path is the mask of by its last part."""
    parent, _, last = path.rpartition("/")
    match = MASK_NAME.fullmatch(last)
    if match is None:
        return None
    return f"{parent}/{match[1]}".lstrip("/").casefold()


def _place(
    tree: RawTree, images: Sequence[str], packed: set[str], wrapper: str, with_splits: bool
) -> tuple[list[PlacedImage], Counter[str]]:
    """Find the folders around all images.

    Args:
        tree: All files.
        images: Those that are images.
        packed: Those in an archive beside images, which are left out.
        wrapper: Folder around everything, see :func:`_wrapper`.
        with_splits: Whether the topmost folders are splits.

    Returns:
        The images, and reason -> number of files that are left out.
    """
    masks = _masks(images)
    image_names = set(images)
    excluded: Counter[str] = Counter()
    placed = []
    for name in tree:
        parts = name.removeprefix(wrapper).split("/")
        split: Split | None = ""
        if with_splits and len(parts) > 1:
            split = split_of(parts.pop(0))
        if name in packed:
            excluded["in an archive beside images"] += 1
        elif name not in image_names:
            excluded["not an image by its ending"] += 1
        elif len(parts) < 2:
            excluded["outside the class folders"] += 1
        elif split is None:
            excluded[VALIDATION_LEFT_OUT] += 1
        elif name in masks:
            excluded["a mask beside its image"] += 1
        elif not MASK_FOLDERS.isdisjoint(map(str.casefold, parts[1:-1])):
            excluded["in a folder of masks"] += 1
        else:
            inner = tuple(part for part in parts[1:-1] if part.casefold() not in NO_GROUPS)
            placed.append(PlacedImage(name, parts[0], inner, split))
    return placed, excluded


def _wrapper(images: Iterable[str], *, is_archive: bool) -> str:
    """Return the common parent path of all images, with a slash at its end, or "".

    Archives often have one folder around everything. The one subfolder of a folder may be a class,
    so it is only taken for a wrapper if it holds splits.
    """
    paths = [name.split("/") for name in images]
    wrapper = []
    # Folders in each other, as <set>/<set>-v2/<class>/, are all around everything.
    while len({path[0] for path in paths}) == 1:
        top = paths[0][0]
        if split_of(top) != "" or min(map(len, paths)) < 3:
            break
        paths = [path[1:] for path in paths]
        wrapper.append(f"{top}/")
    holds_splits = {split_of(path[0]) for path in paths} >= {"train", "test"}
    return "".join(wrapper) if is_archive or holds_splits else ""


def _has_splits(images: Iterable[str], wrapper: str, request: RawRequest) -> bool:
    """Return whether the top folders are splits; files beside them do not matter.

    Raises:
        DataError: Some top folders are splits and others are not.
    """
    tops = set()
    inner_of_splits: set[str] = set()
    inner_of_others: set[str] = set()
    for name in images:
        parts = name.removeprefix(wrapper).split("/")
        if len(parts) > 1:
            tops.add(parts[0])
        if len(parts) > 2:
            inner = inner_of_others if split_of(parts[0]) == "" else inner_of_splits
            inner.add(parts[1])
    splits = {top for top in tops if split_of(top) != ""}
    if splits == tops:
        return bool(tops)
    # If other top folders hold the same classes, they are splits by another name.
    share_classes = len(inner_of_splits & inner_of_others) > 1
    if share_classes or set(map(split_of, splits)) >= {"train", "test"}:
        raise request.error(
            "the top folders must be classes, or splits, not both",
            f"{', '.join(sorted(splits))} beside {first_of(sorted(tops - splits))}",
            "move the others elsewhere, or give the folder of one split",
        )
    return False


def _empty_folders(
    tree: RawTree, images: Iterable[ClassImage], with_splits: bool, layout: Layout
) -> dict[str, int]:
    """Flag folders without an image where those of classes or groups lie.

    Classes are flagged by name. Groups are only counted, because their names may be patients'.
    """
    depth = 2 if with_splits else 1
    with_images = {tuple(image.name.split("/")[:depth]) for image in images}
    empty = []
    for name in tree.folders:
        parts = tuple(name.split("/"))
        is_validation_or_other = with_splits and not split_of(parts[0])
        if len(parts) == depth and parts not in with_images and not is_validation_or_other:
            empty.append(name)
    if layout == "class/group":
        return {f"class folder without an image: {name}": 1 for name in empty[:MAX_NAMED]}
    if not empty:
        return {}
    return {"folder without an image": len(empty)}
