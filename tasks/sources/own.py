"""What own data say of their images: one set of rules for every kind.

A kind (table, arrays, tars, folders) finds rows and what is written of each; here written labels become
classes, ids become groups, words become splits, and what cannot be meant is refused with the rows it stands
in. No kind has a rule of its own for any of these.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Split
from tasks.sources.labels import PLACEHOLDERS, check_spellings, is_missing, plain_id, sort_labels
from tasks.sources.tables import SEVERAL, column_key

COLUMNS = {
    "path": ("filename", "file_name", "filepath", "file_path", "image", "image_path", "img_path"),
    "image": ("img", "image_bytes", "bytes"),
    "label": ("labels", "class", "class_name", "label_name", "target", "cls", "y"),
    "group": (
        *("groups", "patient_id", "patient", "patientid", "subject_id", "subject"),
        *("participant_id", "case_id"),
    ),
    "split": ("splits", "set", "subset", "partition", "fold_name"),
}
"""What is asked of a table's columns, a .json's keys or a file's arrays -> other usual names of it, taken
only where it is not there under its own name."""
TRAITS = ("site", "scanner", "manufacturer", "model", "view", "device")
"""Columns that, if there are any, must not tell the label."""
ONE_HOT = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
MAX_NAMED = 10
MAX_NAME = 30
MAX_ROWS_NAMED = 5

SPLITS: dict[str, Split | None] = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "test": "test",
    "testing": "test",
    "tst": "test",
    "val": None,
    "valid": None,
    "validation": None,
}
VALIDATION_LEFT_OUT = "validation split"
"""Reason to count: training has its own fixed test set, and a validation split is drawn when tuning."""
WAY_OUT = "take them out, or say what they mean with --label-map or label_map"


def split_of(word: str) -> Split | None:
    """Return the split that a word means: ``train``, ``test``, None for validation, empty for no split.

    Hugging Face's hub calls the folder of a large split's first files ``partial-train``.
    """
    return SPLITS.get(word.strip().casefold().removeprefix("partial-"), "")


def split_of_file(name: str, request: RawRequest) -> Split | None:
    """Return the split that a word of a file's name, or else a folder above it, means.

    ``train-00000-of-00002.parquet``, ``skin_test_01.tar`` and ``val/0000.tar`` all say it.

    Raises:
        DataError: when the words of one name mean several.
    """
    parts = name.split("/")
    for words in (re.split(r"[\W_]+", parts[-1]), *([part] for part in parts[-2::-1])):
        meant = {split_of(word) for word in words} - {""}
        if len(meant) > 1:
            rule = f"{request.dataset.name}: a file's name must say one split"
            raise DataError(rule, request.hashed(name), "rename it: train-..., test-... or val-...")
        if meant:
            return meant.pop()
    return ""


@dataclass(frozen=True)
class Columns:
    """Which of the columns is what.

    Attributes:
        of: Our name -> theirs, for each that is there.
        labels: The columns of labels: one, or one of 0 and 1 for each class; none when there is none.
        flags: What to tell: columns read by another name, and those that nobody reads.
    """

    of: dict[str, str]
    labels: tuple[str, ...]
    flags: tuple[str, ...]


def find_columns(
    header: Sequence[str],
    wanted: Sequence[str],
    request: RawRequest,
    *,
    more: Sequence[str] = (),
    known: dict[str, str] | None = None,
) -> Columns:
    """Return which columns are the ``wanted`` ones of :data:`COLUMNS`, and traits; ``more`` are read, too.

    Args:
        header: The names as written.
        wanted: Keys of :data:`COLUMNS`.
        request: Whose ``label_columns`` go before all names.
        more: Others that the kind reads.
        known: Those that the kind found by itself, our name -> theirs.

    Raises:
        DataError: when several columns could be one of them; which one is meant is not for us to guess.
    """
    given = request.dataset.label_columns
    by_key = {column_key(name): name for name in reversed(header)}
    of, flags = dict(known or {}), []
    for ours in wanted:
        if ours == "label" and given:
            continue
        names = dict.fromkeys(column_key(other) for other in (*COLUMNS[ours], ours))
        near = [by_key[key] for key in names if key in by_key and key != column_key(ours)]
        own = of.get(ours) or by_key.get(column_key(ours))
        if own is None and len(near) > 1:
            rule = f"{request.dataset.name}: one column must be the {ours}"
            raise DataError(rule, ", ".join(sorted(near)), f"call it {ours}")
        if own is None and near:
            own = near.pop()
            plural = column_key(own) == f"{ours}s"
            flags += [] if plural else [f"column {own} read as {ours}"]
        if own is not None:
            flags += [f"column {other} not used, since there is {ours}" for other in near if other != own]
            of[ours] = own
    of |= {trait: by_key[trait] for trait in TRAITS if trait in by_key}
    labels = given or ((of["label"],) if "label" in of else ())
    near_names = {column_key(other) for ours in wanted for other in COLUMNS[ours]}
    read = near_names | {column_key(name) for name in (*of.values(), *labels, *more)}
    others = [name.strip()[:MAX_NAME] for name in header if column_key(name) not in read]
    others = [name for name in others if name and name.isprintable()]
    if others:
        dots = ", ..." if len(others) > MAX_NAMED else ""
        flags.append(f"columns not used: {', '.join(others[:MAX_NAMED])}{dots}")
    return Columns(of, labels, tuple(flags))


def one_hot(cells: Mapping[str, Sequence[str]], request: RawRequest) -> list[str]:
    """Return the label of every row from columns of 0 and 1, one for each class.

    Raises:
        DataError: for other cells, and for rows of no class or of several.
    """
    found, odd, none, several = [], 0, 0, 0
    for row in zip(*cells.values(), strict=True):
        values = [ONE_HOT.get(cell.strip().casefold()) for cell in row]
        chosen = [label for label, value in zip(cells, values, strict=True) if value]
        odd += None in values
        none += not chosen
        several += len(chosen) > 1
        found.append(chosen[0] if chosen else "")
    if odd or none or several:
        raise DataError(
            f"{request.dataset.name}: in every row one of {len(cells)} label columns must be 1, others 0",
            f"{none} rows of no class, {several} of several, {odd} with other cells",
            "take those rows out; an image of several classes cannot be used",
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What is written of images, one entry each.

    Attributes:
        labels: Classes as written.
        locator: Where a row's image is.
        name: What a row is called in messages; no id and no file name.
        groups: Ids as written in a column; None where there is no such column.
        alone: Group of a row without such a column, as its folder or volume says it; empty when it is its
        own. splits: Words as written in a column; None where there is none. side: Split that a row's file or
        folder says; None for validation. traits: Columns that must not tell the label. details: Of the row's
        item, besides its traits.
    """

    labels: Sequence[str]
    locator: Callable[[int], str]
    name: Callable[[int], str] = "row {}".format
    groups: Sequence[str] | None = None
    alone: Callable[[int], str] = lambda _: ""
    splits: Sequence[str] | None = None
    side: Callable[[int], Split | None] = lambda _: ""
    traits: dict[str, Sequence[str]] = field(default_factory=dict)
    details: Callable[[int], tuple[str | int | float | None, ...]] = lambda _: ()

    def named(self, rows: Iterable[int]) -> str:
        """Spell how many rows, and the first of them."""
        listed = list(rows)
        dots = ", ..." if len(listed) > MAX_ROWS_NAMED else ""
        return f"{len(listed)}: {', '.join(map(self.name, listed[:MAX_ROWS_NAMED]))}{dots}"


def own_listing(
    rows: Rows,
    request: RawRequest,
    *,
    names: Sequence[str] = (),
    order: Callable[[Iterable[str]], tuple[str, ...]] = sort_labels,
    excluded: dict[str, int] | None = None,
    flags: Iterable[str] = (),
    **known: Any,
) -> Listing:
    """Return one item per row that is in no validation split.

    Args:
        rows: What is written of them.
        request: Whose ``label_map`` says what labels mean.
        names: Names of the labels 0, 1, ... where the data give them.
        order: Sorts the classes.
        excluded: What the kind left out, by reason.
        flags: Names of what the kind doubts about all rows.
        known: Other fields of the listing.

    Raises:
        DataError: for missing labels, words that are no class, fewer than two classes, ids that cannot tell
            patients apart or are on both sides, and words that are no split.
    """
    labels = class_labels(rows.labels, request, rows.named, names)
    sides = _sides(rows, request)
    if rows.groups is not None:
        _check_groups(rows, request)
    kept = np.array([row for row, side in enumerate(sides) if side is not None], np.int64)
    classes = order({labels[row] for row in kept})
    if len(classes) < 2:
        found = f"one only: {classes[0]}" if classes else "none"
        raise DataError(f"{request.dataset.name}: labels need two classes", found)
    index = {name: code for code, name in enumerate(classes)}
    codes = np.array([index[labels[row]] for row in kept], np.int64)
    items = RowItems(rows, kept, codes, sides)
    _check_group_sides(rows, kept, sides, request)
    left = {VALIDATION_LEFT_OUT: len(sides) - len(kept)} if len(kept) < len(sides) else {}
    told = dict.fromkeys(flags, len(sides)) | known.pop("counts", {})
    counted = Counter(excluded or {}) + Counter(left)
    return Listing(items, classes, excluded=dict(counted), flags=told, **known)


class RowItems(Sequence[Item]):
    """Items of rows, made when asked for: millions of small images need no list."""

    def __init__(
        self,
        rows: Rows,
        kept: np.ndarray[Any, np.dtype[np.int64]],
        codes: np.ndarray[Any, np.dtype[np.int64]],
        sides: Sequence[Split | None],
    ) -> None:
        self._rows, self._kept, self._codes, self._sides = rows, kept, codes, sides

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return RowItems(self._rows, self._kept[index], self._codes[index], self._sides)
        row, rows = int(self._kept[index]), self._rows
        group = rows.groups[row] if rows.groups is not None else rows.alone(row)
        traits = (text for name, cells in rows.traits.items() for text in (name, cells[row]))
        details = (*rows.details(row), *traits)
        return Item(rows.locator(row), int(self._codes[index]), group, self._sides[row] or "", details)

    def __reduce__(self) -> tuple[type[list[Item]], tuple[list[Item]]]:
        """Travel as a plain list: a block must not carry the columns of all the others to its task."""
        return list, (list(self),)

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))


def class_labels(
    written: Sequence[str],
    request: RawRequest,
    named: Callable[[Iterable[int]], str],
    names: Sequence[str] = (),
) -> list[str]:
    """Return the class of each written label: through ``label_map``, or the name of its number.

    Raises:
        DataError: for missing labels, several in one, numbers without a name, and words that are no class.
    """
    dataset = request.dataset
    mapping = dict(dataset.label_map)
    if names:
        check_spellings(names, request)
        if len(set(names)) < len(names):
            raise DataError(f"{dataset.name}: names of classes must differ", "a name twice")
    classes: dict[str, str] = {}
    for cell in dict.fromkeys(written):
        label = mapping.get(cell.strip())
        if label is None and names and not is_missing(cell):
            if not (cell.isascii() and cell.isdigit() and int(cell) < len(names)):
                rule = f"{dataset.name}: labels must be numbers of the class names, 0 to {len(names) - 1}"
                raise DataError(rule, _rows_of({cell}, written, named), WAY_OUT)
            label = mapping.get(names[int(cell)].strip(), names[int(cell)])
        classes[cell] = cell if label is None else label
    meant = set(mapping.values())
    if SEVERAL in classes and SEVERAL not in mapping:
        rule = f"{dataset.name}: a row must have one label, as text or number"
        found = f"several labels, or bytes, in {_rows_of({SEVERAL}, written, named)}"
        raise DataError(rule, found, "write one class per image")
    if absent := {cell for cell, label in classes.items() if is_missing(label) and label not in meant}:
        raise DataError(
            f"{dataset.name}: every row needs a label",
            f"blank in {_rows_of(absent, written, named)}",
            "give them a class or take them out; blank, NaN and NA are classes only if label_map says so",
        )
    check_spellings(set(classes.values()), request)
    return [classes[cell] for cell in written]


def _rows_of(cells: set[str], written: Sequence[str], named: Callable[[Iterable[int]], str]) -> str:
    return named(row for row, cell in enumerate(written) if cell in cells)


def _sides(rows: Rows, request: RawRequest) -> list[Split | None]:
    """Return the split of every row: of its cell, or where that is blank of its file."""
    name, count = request.dataset.name, len(rows.labels)
    given = [rows.side(row) for row in range(count)]
    if rows.splits is None:
        return given
    if bad := [row for row, cell in enumerate(rows.splits) if cell.strip() and split_of(cell) == ""]:
        known = ", ".join(SPLITS)
        raise DataError(f"{name}: split must be one of {known} or blank", f"other cells in {rows.named(bad)}")
    sides = [split_of(cell) if cell.strip() else side for cell, side in zip(rows.splits, given, strict=True)]
    if unlike := [row for row in range(count) if given[row] != "" and sides[row] != given[row]]:
        rule = f"{name}: the column split must say what the folder or file says"
        found = f"another split in {rows.named(unlike)}"
        raise DataError(rule, found, "drop the column or move the files")
    return sides


def _check_groups(rows: Rows, request: RawRequest) -> None:
    """Check that ids in a column are whole and tell patients apart: a shared "nan" is no patient."""
    groups, name = rows.groups or (), request.dataset.name
    if absent := [row for row, group in enumerate(groups) if is_missing(group) or group == SEVERAL]:
        rule = f"{name}: every row needs a group when there is such a column"
        found = f"blank, NaN, None or several in {rows.named(absent)}"
        raise DataError(rule, found, "give them a patient, take them out, or drop the column")
    counts = Counter(groups)
    top, count = counts.most_common(1)[0]
    if len(counts) < 2 or (top.casefold() in PLACEHOLDERS and 2 * count > len(groups)):
        rule = f"{name}: group ids must tell patients apart, or no patient-level split exists"
        raise DataError(rule, f"one id for {count} of {len(groups)} rows", "give ids, or drop the column")


def _check_group_sides(
    rows: Rows,
    kept: np.ndarray[Any, np.dtype[np.int64]],
    sides: Sequence[Split | None],
    request: RawRequest,
) -> None:
    """Check that no group is in training and test, and that no two differ only in how they are spelt.

    Case, blanks, Unicode forms, leading zeros and a ``.0`` make no other id: they may be one patient.
    """
    first: defaultdict[str, dict[Split | None, int]] = defaultdict(dict)
    spellings: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for row in kept.tolist():
        group = rows.groups[row] if rows.groups is not None else rows.alone(row)
        if group and sides[row] not in first[group]:
            first[group][sides[row]] = row
            spellings[plain_id(group)].setdefault(group, row)
    name = request.dataset.name
    doubtful = [row for alike in spellings.values() if len(alike) > 1 for row in alike.values()]
    if doubtful:
        rule = f"{name}: every group id must be spelt one way, as p0 or P0, 7, 07 or 7.0"
        raise DataError(rule, rows.named(doubtful), "spell one patient's ids alike")
    both = [places for places in first.values() if {"train", "test"} <= places.keys()]
    if both:
        pair = " and ".join(rows.name(both[0][side]) for side in ("train", "test"))
        rule = f"{name}: no group may be in train and test"
        raise DataError(rule, f"{len(both)}, first in {pair}", "split by patient, not by image")
