"""Your own images: one folder per class.

Layout: torchvision's ``ImageFolder`` and ``timm``'s folder reader; sets of Kaggle named below.

``<raw>/<class>/image.png``, pictures or DICOM files (on a disk without an ending, too); images in a
subfolder of a class (``<raw>/<class>/<group>/image.png``), however deep, share a group, and equal
group names in different classes are the same group; a folder called ``images`` is none (Tiny
ImageNet), and what lies in one called ``masks`` is left out and counted (COVID-19 Radiography
Database). A mask beside its image (BUSI's ``x_mask.png`` beside ``x.png``), or a class of them
(``cats_mask`` beside ``cats``), is left out and counted, too. ``<raw>/train/<class>/...`` and
``<raw>/test/<class>/...`` give the split; ``val`` beside them is left out and counted. ``<raw>``
may be an archive of such folders. ``layout: group/class`` reads
``<raw>/<group>/<class>/image.png``: the two look alike where every folder on top has the same ones
in it. Then the patients in DICOM headers decide, or else ``layout`` has to say it.
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
MAX_SHARED = 20
MAX_HEADERS = 200
MAX_NAMED = 20
SPLIT_WORD = re.compile(
    r"(?<![A-Za-z])(?i:train(?:ing)?|trn|test(?:ing)?|tst|val(?:id|idation)?)(?=[A-Z]?(?![A-Za-z]))"
)
"""A split in a longer name: ``seg_train``, ``test-set``, ``trainA``."""
NO_GROUPS = frozenset({"image", "images", "img", "imgs"})
"""Folders in class folders that are no patients, in lower case."""
MASKS = frozenset({"mask", "masks", "segmentation", "segmentations"})
"""Folders in class folders that hold no images, in lower case."""
MASK = re.compile(r"(.+?)[ _-](?:mask|masks|seg|segmentation)(?:[ _-]?\d+)?", re.IGNORECASE)
"""Name of a mask whose image is called as the first group."""
OF_TABLE = "with a table of labels beside it, give the table (kind table)"
HINTS = {
    **dict.fromkeys((".csv", ".tsv", ".xlsx", ".jsonl"), OF_TABLE),
    **dict.fromkeys(
        (".zip", ".tar"),
        "there are archives: give one archive of class folders itself, or unpack them here",
    ),
    ".arrow": "write what datasets' save_to_disk made with to_parquet",
    **dict.fromkeys((".npz", ".h5", ".hdf5"), "give the array file itself"),
    **dict.fromkeys(
        (".nii", ".gz"), "NIfTI volumes are read by a table of path and label (kind table)"
    ),
    "": "files without an ending are looked at on a disk, and taken when they are DICOM",
}
"""Ending of a file that lies in a folder without class folders -> the way out."""


@dataclass(frozen=True)
class Placed:
    """An image and the folders around it, below the splits: those on top and in it that may be one
    thing.
    """

    name: str
    top: str
    inside: tuple[str, ...]
    split: Split

    def as_class(self, layout: Layout) -> tuple[str, str] | None:
        """Return class and group; None for what lies in a patient's folder, but in no class's.

        Folders in a patient's are visits or series: all of them are that patient's.
        """
        if layout == "class/group":
            return self.top, self.inside[0] if self.inside else ""
        return (self.inside[0], self.top) if self.inside else None


def list_folder(request: RawRequest) -> Listing:
    """Return all images, classes in the order of their names."""
    root = request.root()
    if root.is_file() and not is_archive_name(root.name):
        raise request.error(
            "the source must be a folder", "a file", "unpack it, or pack it as .zip or .tar"
        )
    tree = RawTree(request)
    images = [
        name for name in tree if is_single_image_name(name) or _is_bare_dicom(tree, name, request)
    ]
    # Images of archives in an archive that lie in a folder of images, a class's or a group's.
    parts = {name: tree.locator(name).split(MARK) for name in images}
    folders = {name.rpartition("/")[0] for name, found in parts.items() if len(found) == 2} - {""}
    inner = {name: found[-1] for name, found in parts.items() if len(found) > 2}
    packed = {
        name for name, member in inner.items() if name.removesuffix(member).rstrip("/") in folders
    }
    images = [name for name in images if name not in packed]
    wrapper = _wrapper(images, is_archive=root.is_file())
    with_splits = _has_splits(images, wrapper, request)
    placed, excluded = _placed(
        [name for name in tree if name not in packed], images, wrapper, with_splits
    )
    excluded["in an archive beside images"] += len(packed)
    excluded.update(hidden_count(tree.hidden, is_single_image_name))
    layout, told = _choose_layout(placed, tree, request)
    meant = [(one, own) for one in placed if (own := one.as_class(layout)) is not None]
    excluded["outside the class folders"] += len(placed) - len(meant)
    classes = {label for _, (label, _) in meant}
    if len(classes) < 2:
        rule = "the folder must hold one subfolder of images per class, two at least"
        endings = {
            PurePath(name).suffix.lower() for name in tree
        }  # what else is there that could be read
        hints = dict.fromkeys(hint for ending, hint in HINTS.items() if ending in endings)
        unpack = ", unpacked with its images" if root.is_file() else ""
        way_out = "; ".join([EXPECTED, *(hint + unpack * (hint == OF_TABLE) for hint in hints)])
        found = (
            f"{len(classes)} with images, {excluded['outside the class folders']} images "
            "outside of any"
        )
        raise request.error(rule, found, way_out)
    counts = _empty_folders(tree, [one.name for one, _ in meant], with_splits, layout)
    if deeper := sum(len(one.inside) > 1 for one, _ in meant):
        counts["in a folder in a group's folder, and taken as that group's"] = deeper
    if wrapper:
        counts["the one top folder taken as the source"] = 1
    locators = [tree.locator(one.name) for one, _ in meant]
    rows = Rows(
        cells={"label": [label for _, (label, _) in meant]},
        locator=locators.__getitem__,
        name=lambda row: request.hashed(locators[row]),
        counting=lambda _: "",
        alone=lambda row: meant[row][1][1],
        side=lambda row: meant[row][0].split,
    )
    return own_listing(
        rows,
        request,
        order=lambda names: tuple(sorted(names)),  # as torchvision's ImageFolder does
        excluded=excluded,
        flags=told,
        counts=counts,
        intensity=INTENSITY,
    )


folder = Source(list_folder, single_reader)


def _choose_layout(
    placed: Sequence[Placed], tree: RawTree, request: RawRequest
) -> tuple[Layout, list[str]]:
    """Return what is on top, and flags of how that was found."""
    tops_of: defaultdict[str, set[str]] = defaultdict(set)
    for one in placed:
        tops_of[one.inside[0] if one.inside else ""].add(one.top)
    # Every image lies in one of a few folders that several folders on top have.
    shared = (
        1 < len(tops_of) <= MAX_SHARED and "" not in tops_of and min(map(len, tops_of.values())) > 1
    )
    tops = sorted({one.top for one in placed})
    inner = set(tops_of) - {""}
    if len(tops) > 1 and inner and all(split_of(folder) != "" for folder in inner):
        found_there = f"{', '.join(sorted(inner)[:5])} below them"
        raise request.error("splits must be above the classes", found_there, EXPECTED)
    splits = {top: {split_of(word) for word in SPLIT_WORD.findall(top)} - {""} for top in tops}
    named, meant = [top for top in tops if splits[top]], set().union(*splits.values())
    if "train" in meant and len(meant) > 1 and 2 * len(named) >= len(tops):
        rule = "the top folders must be classes, or splits called train, test and val"
        way_out = f"call them so, with the classes right below; {EXPECTED}"
        raise request.error(rule, ", ".join(named[:5]), way_out)
    if request.root().is_file() and any(MARK in one.name for one in placed):
        rule, what = (
            "a name must be once in an archive and those in it",
            "the same names in several",
        )
        raise request.error(rule, what, "unpack them into one folder")
    if request.dataset.layout is not None:
        return request.dataset.layout, []
    if not shared:
        return "class/group", []
    found = _by_headers(placed, tree, request)
    if found is None:
        raise request.error(
            "it must be plain which folders are the classes",
            f"{len(tops)} folders on top share {len(tops_of)} folders in them: classes with "
            "patients or "
            "parts in them, or patients, sites or folds with classes in them",
            (
                "say which: layout: class/group or layout: group/class (--layout), give a table, "
                "or of "
                "folds one"
            ),
        )
    return found, [f"layout {found}, by the patients in the headers"]


def _by_headers(placed: Sequence[Placed], tree: RawTree, request: RawRequest) -> Layout | None:
    """Tell by the patients in DICOM headers which folders are theirs; None when these do not."""
    tops: defaultdict[str, set[str]] = defaultdict(set)
    inside: defaultdict[str, set[str]] = defaultdict(set)
    opened: defaultdict[tuple[str, str], int] = defaultdict(int)
    several = MAX_HEADERS // len({(one.top, one.inside[0]) for one in placed}) or 1
    for one in placed:
        pair = one.top, one.inside[0]
        if opened[pair] == several or not is_dicom_name(one.name):
            continue
        opened[pair] += 1
        header = read_header(request.base(), tree.locator(one.name))
        patient = plain_id(header.patient) if header else ""
        if patient in PLACEHOLDERS:
            return None
        tops[patient].add(one.top)
        inside[patient].add(one.inside[0])
    on_top = all(len(found) == 1 for found in tops.values())
    below = all(len(found) == 1 for found in inside.values())
    if on_top is below or len(tops) < 2:
        return None
    return "group/class" if on_top else "class/group"


def _is_bare_dicom(tree: RawTree, name: str, request: RawRequest) -> bool:
    """Tell whether a file on the disk whose name has no ending, or a number, says itself that it is
    DICOM.
    """
    ending, locator = PurePath(name).suffix[1:], tree.locator(name)
    if (ending and not ending.isdigit()) or MARK in locator:
        return False
    try:
        with (request.base() / locator).open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _placed(
    tree: Iterable[str], images: list[str], wrapper: str, with_splits: bool
) -> tuple[list[Placed], Counter[str]]:
    """Return where the images lie, and what is left out."""
    # Masks of others by their names: own, or their folder's.
    stems = {name.rpartition(".")[0].casefold() for name in images}
    folders = {name.rpartition("/")[0].casefold() for name in images}
    masks, known = set(), set(images)
    for name in images:
        for path, others in ((name.rpartition(".")[0], stems), (name.rpartition("/")[0], folders)):
            place, _, last = path.rpartition("/")
            found = MASK.fullmatch(last)
            if found and f"{place}/{found[1]}".lstrip("/").casefold() in others:
                masks.add(name)
    excluded: Counter[str] = Counter()
    placed: list[Placed] = []
    for name in tree:
        parts = name.removeprefix(wrapper).split("/")
        split = split_of(parts.pop(0)) if with_splits and len(parts) > 1 else ""
        if name not in known:
            excluded["not an image by its ending"] += 1
        elif len(parts) < 2:
            excluded["outside the class folders"] += 1
        elif split is None:
            excluded[VALIDATION_LEFT_OUT] += 1
        elif name in masks:
            excluded["a mask beside its image"] += 1
        elif any(part.casefold() in MASKS for part in parts[1:-1]):
            excluded["in a folder of masks"] += 1
        else:
            inside = tuple(part for part in parts[1:-1] if part.casefold() not in NO_GROUPS)
            placed.append(Placed(name, parts[0], inside, split))
    return placed, excluded


def _wrapper(names: list[str], *, is_archive: bool) -> str:
    """Return the folder, or folders in each other, around everything, with slashes; empty when
    there is none.

    Archives are often made of a folder; a folder's own one subfolder may be a class, unless it
    holds splits.
    """
    images = [name.split("/") for name in names]
    around: list[str] = []
    while len(tops := {parts[0] for parts in images}) == 1:
        top = tops.pop()
        if split_of(top) != "" or any(len(parts) < 3 for parts in images):
            break
        images = [parts[1:] for parts in images]
        around.append(f"{top}/")
    holds_splits = {split_of(parts[0]) for parts in images} >= {"train", "test"}
    return "".join(around) if is_archive or holds_splits else ""


def _has_splits(images: list[str], wrapper: str, request: RawRequest) -> bool:
    """Tell whether the top folders are splits; files beside them do not matter."""
    below = [name.removeprefix(wrapper).split("/") for name in images]
    tops = {parts[0] for parts in below if len(parts) > 1}
    splits = {top for top in tops if split_of(top) != ""}
    if splits == tops:
        return bool(tops)
    inner = [
        {parts[1] for parts in below if len(parts) > 2 and (parts[0] in splits) is ours}
        for ours in (True, False)
    ]
    shared = len(inner[0] & inner[1]) > 1  # the classes: the others are splits by another name
    if shared or {split_of(top) for top in splits} >= {"train", "test"}:
        others = sorted(tops - splits)
        raise request.error(
            "the top folders must be classes, or splits, not both",
            f"{', '.join(sorted(splits))} beside {first_of(others)}",
            "move the others elsewhere, or give the folder of one split",
        )
    return False


def _empty_folders(
    tree: RawTree, used: Sequence[str], with_splits: bool, layout: Layout
) -> dict[str, int]:
    """Flag folders without an image where class folders or patients' lie, whose names are not
    told.
    """
    depth = 2 if with_splits else 1
    with_images = {tuple(name.split("/")[:depth]) for name in used}
    folders = (tuple(folder.split("/")) for folder in tree.folders)
    empty = [
        "/".join(parts)
        for parts in folders
        if len(parts) == depth
        and parts not in with_images
        and (not with_splits or split_of(parts[0]))
    ]
    if layout == "class/group":
        return {f"class folder without an image: {name}": 1 for name in empty[:MAX_NAMED]}
    return {"folder without an image": len(empty)} if empty else {}
