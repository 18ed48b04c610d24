"""What own data say of their images: one set of rules for every kind.

A kind (table, arrays, tars, folders) finds rows and what is written of each; here written labels
become classes, ids become groups, words become splits, and what cannot be meant is refused with the
rows it stands in. No kind has a rule of its own for any of these. A class has one spelling, and
never a word for "missing".
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import PurePath
from shlex import quote
from typing import Any

import numpy as np

from tasks.sources.base import Item, Listing, RawRequest, Split, first_of
from tasks.sources.tables import COLUMNS, SEVERAL, column_key

MISSING = frozenset(
    {"", "nan", "-nan", "na", "n/a", "#n/a", "<na>", "none", "null", "nat", "nil", ".", "?"}
)
MISSING |= {"inf", "-inf", "+inf"}
MISSING |= {"#value!", "#ref!", "#name?", "#div/0!", "#null!", "#num!"}
"""What spreadsheets, pandas, R, SAS and ARFF write where there is nothing, in lower case."""
UNKNOWN = frozenset(
    {"-", "--", "unknown", "unk", "missing", "unlabeled", "unlabelled", "unspecified"}
)
UNKNOWN |= {
    "not available",
    "not known",
    "tbd",
    "todo",
    "uncertain",
    "unsure",
    "undetermined",
    "undefined",
}
UNKNOWN |= {"ignore", "ignored", "not applicable", "n.a.", "no label"}
"""Words that may name a class, and mostly say that there is none, in lower case."""
NOBODY = MISSING | UNKNOWN | {"anon", "anonymous", "anonymized", "anonymised"}
"""What is no patient's id."""
PLACEHOLDERS = NOBODY - {"."} | {"0", "x"}
"""Patient ids that many patients share."""
SAME = {"true": "1", "yes": "1", "false": "0", "no": "0", "pos": "positive", "neg": "negative"}
INITIALS = {"y": "yes", "n": "no", "t": "true", "f": "false", "p": "positive", "+": "positive"}
"""One class with the whole word where that is there; else letters are classes of their own."""
QUOTES = "'\"`\u2018\u2019\u201c\u201d"
SEPARATOR = re.compile(r"[|;,&+/]")
MISSING_CODES = (99, 255, 999, 9999, 65535)
"""Numbers that stand for "unknown" where they lie far above the classes; 255 is -1 in a byte."""
MAX_LENGTH = 200
MEANT = "say what they mean with --label-map or label_map"
TRAITS = ("site", "scanner", "manufacturer", "model", "view", "device")
"""Columns that, if there are any, must not tell the label."""
ONE_HOT = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
MAX_NAMED = 10
MAX_NAME = 30
FROM_ZERO = "the first row is 0"
"""Of arrays and Parquet, as numpy and pandas count."""
HIDDEN = "hidden, by the dot before its name"

SPLITS: dict[str, Split | None] = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    **dict.fromkeys(("val", "valid", "validation")),
}
VALIDATION_LEFT_OUT = "validation split"
"""Reason to count: training has its own fixed test set, and a validation split is drawn when
tuning."""


def is_missing(cell: str) -> bool:
    """Tell whether a cell says that there is no value."""
    return cell.strip().casefold() in MISSING


def sort_labels(names: Iterable[str]) -> tuple[str, ...]:
    """Sort as numbers when all are whole numbers, else as text."""
    found = set(names)
    if all(name.isascii() and name.isdigit() for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))


def split_of(word: str) -> Split | None:
    """Return the split that a word means: ``train``, ``test``, None for validation, empty for no
    split.

    Hugging Face's hub calls the folder of a large split's first files ``partial-train``.
    """
    return SPLITS.get(word.strip().casefold().removeprefix("partial-"), "")


def split_of_file(name: str, request: RawRequest) -> Split | None:
    """Return the split that a word of a file's name, or else a folder above it, means; one at most.

    ``train-00000-of-00002.parquet``, ``skin_test_01.tar`` and ``val/0000.tar`` all say it; a file
    given alone says none, whatever it is called.
    """
    if request.root().is_file():
        return ""
    parts = name.split("/")
    for words in (re.split(r"[\W_]+", parts[-1]), *([part] for part in parts[-2::-1])):
        meant = {split_of(word) for word in words} - {""}
        if len(meant) > 1:
            rule = "a file's name must say one split"
            raise request.error(
                rule, request.hashed(name), "rename it: train-..., test-... or val-..."
            )
        if meant:
            return meant.pop()
    return ""


def hidden_count(names: Iterable[str], reads: Callable[[str], bool]) -> dict[str, int]:
    """Count hidden folders, and hidden files that would be read by another name."""
    hidden = [name for name in names if PurePath(name).name.startswith(".")]
    return {HIDDEN: sum(name[-1] == "/" or reads(name) for name in hidden)}


Cells = Mapping[str, Sequence[str]]
"""Name of a column -> what is written in it, one entry for each row."""


@dataclass(frozen=True)
class Columns:
    """Which of the columns is what: our name -> theirs; those of labels, one or one a class; what
    to tell.
    """

    of: dict[str, str]
    labels: tuple[str, ...]
    flags: tuple[str, ...]

    def cells(self, found: Cells, request: RawRequest, row: Callable[[int], str]) -> Cells:
        """Return columns by our names, labels of the classes too; ``row`` is what one is called."""
        own = {
            ours: found[name] for ours, name in self.of.items() if ours != "label" and name in found
        }
        labels = {name: found[name] for name in self.labels}
        label = one_hot(labels, request, row) if len(labels) > 1 else labels[self.labels[0]]
        return own | {"label": label}


def find_columns(
    header: Sequence[str],
    wanted: Sequence[str],
    request: RawRequest,
    *,
    more: Sequence[str] = (),
    known: dict[str, str] | None = None,
) -> Columns:
    """Return which columns are the ``wanted`` ones of :data:`COLUMNS`, and traits; ``more`` are
    read, too.

    ``label_columns`` of the request go before all names, and so do those ``known`` to the kind (our
    name -> theirs). Where several columns could be one, which is meant is not for us to guess: a
    DataError.
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
            rule = f"one column must be the {ours}"
            raise request.error(rule, ", ".join(sorted(near)), f"call it {ours}")
        if own is None and near:
            own = near.pop()
            plural = column_key(own) == f"{ours}s"
            flags += [] if plural else [f"column {own} read as {ours}"]
        if own is not None:
            flags += [
                f"column {other} not used, since there is {ours}" for other in near if other != own
            ]
            of[ours] = own
    of |= {trait: by_key[trait] for trait in TRAITS if trait in by_key}
    labels = given or ((of["label"],) if "label" in of else ())
    near_names = {column_key(other) for ours in wanted for other in COLUMNS[ours]}
    read = near_names | {column_key(name) for name in (*of.values(), *labels, *more)}
    others = [name.strip()[:MAX_NAME] for name in header if column_key(name) not in read]
    if others := [name for name in others if name and name.isprintable()]:
        flags.append(f"columns not used: {first_of(others, MAX_NAMED)}")
    return Columns(of, labels, tuple(flags))


def one_hot(cells: Cells, request: RawRequest, name: Callable[[int], str]) -> list[str]:
    """Return the label of every row from columns of 0 and 1, one a class; other rows are a
    DataError.
    """
    found = []
    wrong: defaultdict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(zip(*cells.values(), strict=True)):
        values = [ONE_HOT.get(cell.strip().casefold()) for cell in row]
        chosen = [label for label, value in zip(cells, values, strict=True) if value]
        if None in values or len(chosen) != 1:
            what = (
                "with other cells"
                if None in values
                else "of several classes"
                if chosen
                else "of no class"
            )
            wrong[what].append(number)
        found += chosen[:1]
    if wrong:
        raise request.error(
            f"in every row one of {len(cells)} label columns must be 1, others 0",
            ", ".join(f"{len(rows)} {what}, first {name(rows[0])}" for what, rows in wrong.items()),
            "take those rows out; an image of several classes cannot be used",
        )
    return found


def joined(parts: Sequence[Cells]) -> tuple[dict[str, list[str]], Callable[[int], tuple[int, int]]]:
    """Return columns of several files, blank where one has none, and row -> number of its file, row
    there.
    """
    sizes = [len(part["label"]) for part in parts]
    ends = [0, *itertools.accumulate(sizes)]
    cells: dict[str, list[str]] = {name: [] for part in parts for name in part}
    for name, column in cells.items():
        for part, size in zip(parts, sizes, strict=True):
            column += part.get(name, [""] * size)

    def place(row: int) -> tuple[int, int]:
        part = bisect_right(ends, row) - 1
        return part, row - ends[part]

    return cells, place


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What is written of images, one entry each.

    Attributes:
        cells: Columns label and, where they are, group, split and those that must not tell the
            label.
        locator: Where a row's image is.
        name: What a row is called in messages; no id and no file name.
        counting: How the numbers of a row's file are counted; empty where rows are no numbers.
        alone: Group of a row without such a column, as its folder or volume says it.
        side: Split that a row's file or folder says; None for validation.
        details: Of the row's item.
    """

    cells: Cells
    locator: Callable[[int], str]
    name: Callable[[int], str] = "row {}".format
    counting: Callable[[int], str] = lambda _: FROM_ZERO
    alone: Callable[[int], str] = lambda _: ""
    side: Callable[[int], Split | None] = lambda _: ""
    details: Callable[[int], tuple[str | int | float | None, ...]] = lambda _: ()

    def group(self, row: int) -> str:
        """Return the id of a row's patient."""
        return self.cells["group"][row] if "group" in self.cells else self.alone(row)

    def named(self, rows: Iterable[int]) -> str:
        """Spell how many rows, and the first of them."""
        listed = list(rows)
        return f"{len(listed)}: {first_of(map(self.name, listed))}{self.counted(listed)}"

    def counted(self, rows: Sequence[int]) -> str:
        """Say how rows are numbered where some were named by their number."""
        how = self.counting(rows[0]) if rows else ""
        return f" ({how})" if how else ""

    def with_labels(self, cells: set[str]) -> str:
        """Spell the rows in which one of these is written as the label."""
        return self.named(row for row, cell in enumerate(self.cells["label"]) if cell in cells)


def own_listing(
    rows: Rows,
    request: RawRequest,
    *,
    flags: Iterable[str],
    excluded: Mapping[str, int],
    counts: Mapping[str, int] | None = None,
    names: Sequence[str] = (),
    order: Callable[[Iterable[str]], tuple[str, ...]] = sort_labels,
    **known: Any,
) -> Listing:
    """Return one item per row that is in no validation split; what cannot be meant is a DataError.

    ``names`` are those of the labels 0, 1, ... where the data give them; ``order`` sorts the
    classes; ``flags`` name what the kind doubts about all rows, ``counts`` what about some;
    ``excluded`` is what it left out, by reason; ``known`` are other fields of the listing.
    """
    labels, sides = class_labels(rows, request, names), _sides(rows, request)
    _check_groups(rows, request)
    kept = np.array([row for row, side in enumerate(sides) if side is not None], np.int64)
    left = len(sides) - len(kept)
    classes = order({labels[row] for row in kept})
    if len(classes) < 2:
        found = f"one only: {classes[0]}" if classes else "none"
        more = f"; {left} rows are of a validation split" if left else ""
        raise request.error("labels need two classes", found + more)
    index = {name: code for code, name in enumerate(classes)}
    codes = np.array([index[labels[row]] for row in kept], np.int64)
    _check_group_sides(rows, kept, sides, request)
    left_out = Counter(excluded) + Counter({VALIDATION_LEFT_OUT: left})
    told = dict.fromkeys(flags, len(sides)) | dict(counts or {})
    free = sum(side == "" for side in sides)
    if "split" in rows.cells and free:
        told["row without a split: used for training or testing"] = free
    left = left_out[VALIDATION_LEFT_OUT]
    if left and set(sides) - {None} == {"train"}:
        told[
            (
                "no test split beside train and val: call the validation split test, or give train "
                "alone"
            )
        ] = left
    mapping = dict(request.dataset.label_map)
    absent = [name for name in names if mapping.get(name, name) not in index]
    told |= {f"class without an image: {name}": 1 for name in absent[:MAX_NAMED]}
    items = RowItems(rows, kept, codes, sides)
    return Listing(items, classes, excluded=dict(left_out), flags=told, **known)


Numbers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class RowItems(Sequence[Item]):
    """Items of rows, made when asked for: millions of small images need no list."""

    rows: Rows
    kept: Numbers
    codes: Numbers
    sides: Sequence[Split | None]

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return RowItems(self.rows, self.kept[index], self.codes[index], self.sides)
        row, rows = int(self.kept[index]), self.rows
        traits = tuple((name, rows.cells[name][row]) for name in TRAITS if name in rows.cells)
        known = rows.group(row), self.sides[row] or "", rows.details(row), traits
        return Item(rows.locator(row), int(self.codes[index]), *known)

    def __reduce__(self) -> tuple[type[list[Item]], tuple[list[Item]]]:
        """Travel as a plain list: a block must not carry the columns of all the others to its
        task.
        """
        return list, (list(self),)


def class_labels(rows: Rows, request: RawRequest, names: Sequence[str] = ()) -> list[str]:
    """Return each row's class: its label through ``label_map``, or the name of its number."""
    dataset, written = request.dataset, rows.cells["label"]
    mapping = dict(dataset.label_map)
    if names:
        check_spellings(names, request)
        if len(set(names)) < len(names):
            raise request.error("names of classes must differ", "a name twice")
    classes: dict[str, str] = {}
    for cell in dict.fromkeys(written):
        label = mapping.get(cell.strip())
        if label is None and names and not is_missing(cell):
            if not (cell.isascii() and cell.isdigit() and int(cell) < len(names)):
                rule = f"labels must be numbers of the class names, 0 to {len(names) - 1}"
                raise request.error(rule, rows.with_labels({cell}), f"take them out, or {MEANT}")
            label = mapping.get(names[int(cell)].strip(), names[int(cell)])
        classes[cell] = cell if label is None else label
    meant = set(mapping.values())
    known = {cell.strip() for cell in (*classes, *names)}
    if unused := sorted(mapping.keys() - known):
        found = f"no label is {', '.join(map(repr, unused[:MAX_NAMED]))}"
        raise request.error(
            "label_map must name labels as they are written", found, "mend or drop it"
        )
    if SEVERAL in classes and SEVERAL not in mapping:
        rule = "a row must have one label, as text or number"
        found = f"several labels, or bytes, in {rows.with_labels({SEVERAL})}"
        raise request.error(rule, found, "write one class per image")
    if absent := {
        cell for cell, label in classes.items() if is_missing(label) and label not in meant
    }:
        raise request.error(
            "every row needs a label",
            f"blank in {rows.with_labels(absent)}",
            (
                "give them a class or take them out; blank, NaN and NA are classes only if "
                "label_map "
                "says so"
            ),
        )
    check_spellings(set(classes.values()), request)
    return [classes[cell] for cell in written]


def _sides(rows: Rows, request: RawRequest) -> list[Split | None]:
    """Return the split of every row: of its cell, or where that is blank of its file."""
    cells = rows.cells.get("split")
    given = [rows.side(row) for row in range(len(rows.cells["label"]))]
    if cells is None:
        return given
    if bad := [row for row, cell in enumerate(cells) if cell.strip() and split_of(cell) == ""]:
        known = ", ".join(SPLITS)
        raise request.error(
            f"split must be one of {known} or blank", f"other cells in {rows.named(bad)}"
        )
    sides = [
        split_of(cell) if cell.strip() else side for cell, side in zip(cells, given, strict=True)
    ]
    if unlike := [row for row, side in enumerate(given) if side not in ("", sides[row])]:
        rule = "the column split must say what the folder or file says"
        found = f"another split in {rows.named(unlike)}"
        raise request.error(rule, found, "drop the column or move the files")
    return sides


def _check_groups(rows: Rows, request: RawRequest) -> None:
    """Check that ids in a column are whole and tell patients apart: a shared "nan" is no
    patient.
    """
    groups = rows.cells.get("group", ())
    if not groups:
        return
    nobody = NOBODY | {SEVERAL}
    if absent := [row for row, group in enumerate(groups) if group.strip().casefold() in nobody]:
        found = f"blank, NaN, None, a word for unknown or several in {rows.named(absent)}"
        way_out = (
            "give them a patient, or drop them or the column; one who is called so needs another id"
        )
        raise request.error("every row needs a group when there is such a column", found, way_out)
    counts = Counter(groups)
    top, count = counts.most_common(1)[0]
    if len(counts) < 2 or (top.casefold() in PLACEHOLDERS and 2 * count > len(groups)):
        rule = "group ids must tell patients apart, or no patient-level split exists"
        raise request.error(
            rule, f"one id for {count} of {len(groups)} rows", "give ids, or drop the column"
        )


def _check_group_sides(
    rows: Rows, kept: Numbers, sides: Sequence[Split | None], request: RawRequest
) -> None:
    """Check that no group is in training and test, and that no two differ only as :func:`plain_id`
    says.
    """
    first: defaultdict[str, dict[Split | None, int]] = defaultdict(dict)
    spellings: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for row in kept.tolist():
        group = rows.group(row)
        if group and sides[row] not in first[group]:
            first[group][sides[row]] = row
            spellings[plain_id(group)].setdefault(group, row)
    if doubtful := [
        row for alike in spellings.values() if len(alike) > 1 for row in alike.values()
    ]:
        rule = "every group id must be spelt one way, as p0 or P0, 7, 07 or 7.0"
        raise request.error(rule, rows.named(doubtful), "spell one patient's ids alike")
    if both := [places for places in first.values() if {"train", "test"} <= places.keys()]:
        pair = " and ".join(rows.name(both[0][side]) for side in ("train", "test"))
        rule = "no group may be in train and test"
        found = f"{len(both)}, first in {pair}{rows.counted([both[0]['train']])}"
        raise request.error(rule, found, "split by patient, not by image")


def check_spellings(names: Iterable[str], request: RawRequest) -> None:
    """Check that every class has a name that can be shown, and that none is spelt in two ways.

    Letter case, blanks, hyphens and underscores between words, quotes, Unicode forms (NFKC) and
    ways to write a number, a truth value, positive or negative make no other class. A list of other
    classes is none. A word for "unknown" is asked about. What ``label_map`` says is meant so. What
    cannot be printed could not be told apart, and could drive a terminal. Each is a DataError with
    the spellings; class names may be shown.
    """
    found = set(names)
    odd = sorted(
        one for one in found if not one.strip() or not one.isprintable() or len(one) > MAX_LENGTH
    )
    if odd:
        rule = f"class names must be printable, not blank, {MAX_LENGTH} letters at most"
        shown = f"{len(odd)}, first {odd[0][:MAX_LENGTH]!a}"
        raise request.error(rule, shown, f"rename them, or {MEANT}")
    _check_numbers(found, request)
    own = found - {label for _, label in request.dataset.label_map}
    if unknown := sorted(one for one in own if one.strip().casefold() in UNKNOWN):
        raise request.error(
            "a word for unknown must be a class on purpose",
            ", ".join(map(repr, unknown)),
            "take those images out, or keep it with --label-map "
            f"{quote(f'{unknown[0]}={unknown[0]}')} "
            "or label_map",
        )
    # Mass|Nodule beside Mass and Nodule.
    parts = {one: SEPARATOR.split(one.strip("[]() ")) for one in own}
    parts = {one: [part.strip(" '\"") for part in several] for one, several in parts.items()}
    if lists := sorted(
        one for one, several in parts.items() if len(several) > 1 and found >= {*several}
    ):
        rule = "a label must be one class, not a list of them"
        found_lists = f"{len(lists)}: {first_of(map(repr, lists))}"
        raise request.error(rule, found_lists, f"take those images out, or {MEANT}")
    words = {one.strip().casefold() for one in found}
    spellings: defaultdict[str, set[str]] = defaultdict(set)
    for one in found:
        whole = INITIALS.get(one.strip().casefold())
        spellings[_key(whole if whole and whole in words else one)].add(one)
    doubtful = [
        " / ".join(map(repr, sorted(group))) for group in spellings.values() if len(group) > 1
    ]
    if doubtful:
        rule = "every class must be spelt one way"
        raise request.error(rule, first_of(doubtful), f"spell them alike, or {MEANT}")


def _check_numbers(found: set[str], request: RawRequest) -> None:
    """Check that labels which are all numbers are class numbers: no measurements, no codes for
    unknown.
    """
    plain = {
        one.strip().replace("\u2212", "-").replace(",", ".") for one in found
    }  # as Word writes minus
    if not plain or not all(re.fullmatch(r"[-+]?\d+([.]\d+)?", one, re.ASCII) for one in plain):
        return
    numbers = sorted(map(Decimal, plain))
    if parts := [number for number in numbers if number % 1]:
        shown = f"{len(numbers)} numbers, such as {parts[0]:.6g}"
        raise request.error("labels must be classes, not measurements", shown, MEANT)
    if len(numbers) < 3:
        return
    if numbers[0] < 0:
        rule, code = "labels must not be negative beside others", numbers[0]
    elif numbers[-1] in MISSING_CODES and 2 * numbers[-2] < numbers[-1]:
        rule, code = "labels must not hold a code for unknown", numbers[-1]
    else:
        return
    way_out = (
        f"take those images out, or say what they mean with --label-map={code}=NAME or label_map"
    )
    raise request.error(rule, f"{code}, which often means unknown", way_out)


def _key(name: str) -> str:
    plain = unicodedata.normalize("NFKC", name).casefold()
    plain = " ".join(re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", plain).split())
    plain = plain.strip(QUOTES) or plain
    plain = SAME.get(plain, plain)
    try:
        return f"number {Decimal(plain).normalize() + 0}"  # -0 is 0
    except ArithmeticError:
        return plain


def plain_id(group: str) -> str:
    """Spell an id without case, blanks, Unicode forms, leading zeros and a ``.0``."""
    plain = " ".join(unicodedata.normalize("NFKC", group).casefold().split())
    number = re.fullmatch(r"0*(\d+)(?:\.0*)?", plain)
    return number[1] if number else plain
