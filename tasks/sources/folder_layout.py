"""Class folders or patients' folders on top: which of the two a tree of folders means.

``<class>/<patient>/image.png`` and ``<patient>/<class>/image.png`` look alike where every folder on top has
the same ones in it. Then the patients in DICOM headers decide, or else ``layout`` has to say it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from search_spaces.errors import DataError
from search_spaces.specs import Layout
from tasks.sources.base import RawRequest, Split
from tasks.sources.dicom import is_dicom_name
from tasks.sources.dicom_headers import read_header
from tasks.sources.labels import PLACEHOLDERS, plain_id
from tasks.sources.own import split_of
from tasks.sources.raw import MARK, RawTree

EXPECTED = "expected: FOLDER/<class>/image.png, or FOLDER/train/<class>/image.png and FOLDER/test/..."
MAX_SHARED = 20
MAX_HEADERS = 200
SPLIT_WORD = re.compile(
    r"(?<![A-Za-z])(?i:train(?:ing)?|trn|test(?:ing)?|tst|val(?:id|idation)?)(?=[A-Z]?(?![A-Za-z]))"
)
"""A split in a longer name: ``seg_train``, ``test-set``, ``trainA``."""
FOLD = re.compile(r"(?:fold|part|split|batch|set|shard|chunk)[ _-]?\d+", re.IGNORECASE)
NO_GROUPS = frozenset({"image", "images", "img", "imgs"})
"""Folders in class folders that are no patients, in lower case."""


@dataclass(frozen=True)
class Placed:
    """An image and the folders around it, below the splits: those on top and in it that may be one thing."""

    name: str
    top: str
    inside: tuple[str, ...]
    split: Split


@dataclass(frozen=True)
class Found:
    """An image with its class and group."""

    name: str
    label: str
    group: str
    split: Split


def place(name: str, folders: Sequence[str], split: Split) -> Placed:
    """Return where an image lies, without folders that tell nothing."""
    inside = tuple(folder for folder in folders[1:] if folder.casefold() not in NO_GROUPS)
    return Placed(name, folders[0], inside, split)


def arrange(placed: Sequence[Placed], layout: Layout) -> list[Found]:
    """Return images with class and group; those without a class folder in their patient's are left out."""
    if layout == "class/group":
        return [Found(one.name, one.top, "/".join(one.inside), one.split) for one in placed]
    return [
        Found(one.name, one.inside[0], "/".join((one.top, *one.inside[1:])), one.split)
        for one in placed
        if one.inside
    ]


def choose_layout(placed: Sequence[Placed], tree: RawTree, request: RawRequest) -> tuple[Layout, list[str]]:
    """Return what is on top, and flags of how that was found.

    Raises:
        DataError: when folders on top are splits by another name or folds, when names are in an archive
            twice, and when folders on top may be patients as well as classes.
    """
    _check_tops(placed, request)
    if request.dataset.layout is not None:
        return request.dataset.layout, []
    if not _share_all(placed):
        return "class/group", []
    found = _by_headers(placed, tree, request)
    if found is None:
        tops, inside = {one.top for one in placed}, {one.inside[0] for one in placed}
        raise DataError(
            f"{request.dataset.name}: it must be plain which folders are the classes",
            f"{len(tops)} folders on top share {len(inside)} folders in them: classes with patients or "
            "parts in them, or patients or sites with classes in them",
            "say which: layout: class/group or layout: group/class (--layout), or give a table",
        )
    return found, [f"layout {found}, by the patients in the headers"]


def _check_tops(placed: Sequence[Placed], request: RawRequest) -> None:
    name = request.dataset.name
    if request.root().is_file() and any(MARK in one.name for one in placed):
        rule, what = f"{name}: a name must be once in an archive and those in it", "the same names in several"
        raise DataError(rule, what, "unpack them into one folder")
    tops = sorted({one.top for one in placed})
    meant = {split for top in tops for word in SPLIT_WORD.findall(top) if (split := split_of(word)) != ""}
    named = [top for top in tops if any(split_of(word) != "" for word in SPLIT_WORD.findall(top))]
    inner = {one.inside[0] for one in placed if one.inside}
    if len(tops) > 1 and inner and all(split_of(folder) != "" for folder in inner):
        rule = f"{name}: splits must be above the classes"
        raise DataError(rule, f"{', '.join(sorted(inner)[:5])} below them", EXPECTED)
    if "train" in meant and len(meant) > 1 and 2 * len(named) >= len(tops):
        raise DataError(
            f"{name}: the top folders must be classes, or splits called train, test and val",
            ", ".join(named[:5]),
            f"call them so, with the classes right below; {EXPECTED}",
        )
    if _share_all(placed) and all(map(FOLD.fullmatch, tops)):
        raise DataError(
            f"{name}: the top folders must be classes, or train and test",
            f"{', '.join(tops[:5])}, each with the same folders",
            "give one of them, or call those to train on train and the others test",
        )


def _share_all(placed: Sequence[Placed]) -> bool:
    """Tell whether every image lies in one of a few folders that several folders on top have."""
    tops_of: defaultdict[str, set[str]] = defaultdict(set)
    for one in placed:
        tops_of[one.inside[0] if one.inside else ""].add(one.top)
    return (
        1 < len(tops_of) <= MAX_SHARED
        and "" not in tops_of
        and all(len(tops) > 1 for tops in tops_of.values())
    )


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
    if not tops or on_top is below or len(tops) < 2:
        return None
    return "group/class" if on_top else "class/group"
