"""The rules for labels, groups and splits of a user's own data, the same for every kind.

A kind (table, arrays, tars, folders) finds rows and the text that stands for each of them. Here
text becomes classes, groups and splits. Text that cannot be meant is refused, with the rows in
which it stands. No kind has a rule of its own for any of these.

A class has one spelling, and is never a word for "missing".
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import PurePath
from shlex import quote
from typing import Any

import numpy as np

from tasks.sources.base import Item, Listing, RawRequest, Split, first_of
from tasks.sources.tables import COLUMNS, SEVERAL, column_key, unused_flags

MISSING = (
    frozenset({"", ".", "?", "na", "n/a"})  # R, SAS and ARFF
    | {"nan", "-nan", "<na>", "none", "nat", "inf", "-inf", "+inf"}  # numpy and pandas
    | {"null", "nil"}  # JSON and databases
    | {"#n/a", "#value!", "#ref!", "#name?", "#div/0!", "#null!", "#num!"}  # spreadsheets
)
"""Text that stands for a missing value, in lower case."""
UNKNOWN = (
    frozenset({"-", "--", "missing", "unspecified", "undefined"})
    | {"unknown", "unk", "not known", "not available", "uncertain", "unsure", "undetermined"}
    | {"unlabeled", "unlabelled", "no label", "tbd", "todo"}
    | {"ignore", "ignored", "not applicable", "n.a."}
)
"""Words that may name a class but mostly say that the class is not known, in lower case."""
NOBODY = MISSING | UNKNOWN | {"anon", "anonymous", "anonymized", "anonymised"}
"""Text that is no patient's id, in lower case."""
PLACEHOLDERS = NOBODY - {"."} | {"0", "x"}
"""Ids that anonymisers give to many patients, in lower case."""
SYNONYMS = {"true": "1", "yes": "1", "false": "0", "no": "0", "pos": "positive", "neg": "negative"}
"""Word -> the word that it is compared as."""
INITIALS = {"y": "yes", "n": "no", "t": "true", "f": "false", "p": "positive", "+": "positive"}
"""Letter -> the word that it stands for if the data have that word too; else a class by itself."""
QUOTES = "'\"`\u2018\u2019\u201c\u201d"
SEPARATOR = re.compile(r"[|;,&+/]")
"""Characters between classes where one cell lists several."""
MISSING_CODES = (99, 255, 999, 9999, 65535)
"""Numbers that mean "unknown" if they lie far above the other classes; 255 is -1 in a byte."""
MAX_LABEL_LENGTH = 200
LABEL_MAP_HINT = "say what they mean with --label-map or label_map"
TRAITS = ("site", "scanner", "manufacturer", "model", "view", "device")
"""Columns that must not tell the label; they are compared with it if the data have them."""
ONE_HOT = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
MAX_NAMED = 10
"""Names in one flag or message."""
MAX_NAME_LENGTH = 30
FROM_ZERO = "the first row is 0"
"""The way in which numpy and pandas count rows of arrays and Parquet."""
HIDDEN = "hidden, by the dot before its name"

SPLITS: dict[str, Split | None] = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    **dict.fromkeys(("val", "valid", "validation")),
}
"""Word -> the split that it means; None for validation."""
VALIDATION_LEFT_OUT = "validation split"
"""Reason for leaving out a validation split: the study trains without one, and tuning draws its
own."""
NO_TEST_SPLIT = (
    "no test split beside train and val: call the validation split test, or give train alone"
)


def is_missing(cell: str) -> bool:
    """Return whether a cell says that there is no value."""
    return cell.strip().casefold() in MISSING


def sort_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Sort distinct labels as numbers if all are whole numbers, else as text."""
    distinct = set(labels)
    if all(label.isascii() and label.isdigit() for label in distinct):
        return tuple(sorted(distinct, key=lambda label: (int(label), label)))
    return tuple(sorted(distinct))


def split_of(word: str) -> Split | None:
    """Return the split that a word means: train, test, None for validation, or empty for none.

    Hugging Face's hub calls the folder of a large split's first files ``partial-train``.
    """
    return SPLITS.get(word.strip().casefold().removeprefix("partial-"), "")


def split_of_file(name: str, request: RawRequest) -> Split | None:
    """Return the split that a file's name means, or else that of the nearest folder with one.

    Examples are ``train-00000-of-00002.parquet``, ``skin_test_01.tar`` and ``val/0000.tar``. A file
    that the user named directly has no split, whatever its name.

    Raises:
        DataError: The name has the words of two splits.
    """
    if request.root().is_file():
        return ""
    *folders, file_name = name.split("/")
    # A file's name may hold a split among other words; a folder must be called like one.
    for words in (re.split(r"[\W_]+", file_name), *([folder] for folder in reversed(folders))):
        splits = set(map(split_of, words)) - {""}
        if len(splits) > 1:
            raise request.error(
                "a file's name must say one split",
                request.hashed(name),
                "rename it: train-..., test-... or val-...",
            )
        if splits:
            return splits.pop()
    return ""


def hidden_count(names: Iterable[str], reads: Callable[[str], bool]) -> dict[str, int]:
    """Count hidden folders, and hidden files that would be read if they were not hidden.

    Args:
        names: Names that a walk left out; folders end with a slash.
        reads: Whether a file of that name is read.
    """
    count = 0
    for name in names:
        if PurePath(name).name.startswith("."):
            count += name.endswith("/") or reads(name)
    return {HIDDEN: count}


Cells = Mapping[str, Sequence[str]]
"""Column -> its text, one entry per row."""


@dataclass(frozen=True)
class Columns:
    """The columns of some data that are read, and what they mean.

    Attributes:
        of: Our name of a column, such as ``group`` -> the name in the data.
        labels: Columns of labels in the data: one, or one of 0 and 1 for each class.
        flags: Doubts about the choice, and the columns that nobody reads.
    """

    of: dict[str, str]
    labels: tuple[str, ...]
    flags: tuple[str, ...]

    def cells(self, data: Cells, request: RawRequest, row_name: Callable[[int], str]) -> Cells:
        """Return columns under our names, one-hot labels decoded.

        Args:
            data: Columns under the names that the data have.
            request: For errors.
            row_name: Names a row in messages by its index.
        """
        labels = {name: data[name] for name in self.labels}
        if len(labels) > 1:
            cells: dict[str, Sequence[str]] = {"label": one_hot(labels, request, row_name)}
        else:
            cells = {"label": labels[self.labels[0]]}
        for column, name in self.of.items():
            if column != "label" and name in data:
                cells[column] = data[name]
        return cells


def find_columns(
    header: Sequence[str],
    our_names: Sequence[str],
    request: RawRequest,
    *,
    more: Sequence[str] = (),
    fixed: Mapping[str, str] | None = None,
) -> Columns:
    """Find the columns that are read among those that there are.

    Args:
        header: Names of the columns in the data.
        our_names: Columns to find, of :data:`tasks.sources.tables.COLUMNS`.
        request: ``label_columns`` of its dataset go before all usual names.
        more: Further columns that the kind reads by itself.
        fixed: Our name -> name in the data, for columns that the kind has found already.

    Raises:
        DataError: Several columns could be the same one; a guess might train on the wrong label.
    """
    given_labels = request.dataset.label_columns
    # Reversed, so that the first of several columns with one key is found.
    by_key = {column_key(name): name for name in reversed(header)}
    names = dict(fixed or {})
    flags = []
    for column in our_names:
        if column == "label" and given_labels:
            continue
        chosen = names.get(column) or by_key.get(column_key(column))
        keys = dict.fromkeys(map(column_key, COLUMNS[column]))
        aliases = [by_key[key] for key in keys if key in by_key and key != column_key(column)]
        if chosen is None and len(aliases) > 1:
            raise request.error(
                f"one column must be the {column}", ", ".join(sorted(aliases)), f"call it {column}"
            )
        if chosen is None and aliases:
            chosen = aliases.pop()
            if column_key(chosen) != f"{column}s":  # a plural is no doubt
                flags.append(f"column {chosen} read as {column}")
        if chosen is not None:
            names[column] = chosen
            for alias in aliases:
                if alias != chosen:
                    flags.append(f"column {alias} not used, since there is {column}")
    for trait in TRAITS:
        if trait in by_key:
            names[trait] = by_key[trait]
    labels = given_labels or ((names["label"],) if "label" in names else ())
    unused = _unused_columns(header, our_names, (*names.values(), *labels, *more))
    flags += unused_flags(unused, MAX_NAMED)
    return Columns(names, labels, tuple(flags))


def common_columns(columns_of_files: Sequence[Columns], request: RawRequest) -> Columns:
    """Return the columns of all files of a set.

    Raises:
        DataError: Some file calls its columns otherwise than the first.
    """
    columns = columns_of_files[0]
    num_others = sum(file_columns.of != columns.of for file_columns in columns_of_files)
    if num_others:
        raise request.error(
            "all tables of a set must call their columns alike",
            f"other names in {num_others} of {len(columns_of_files)}",
            "rename them",
        )
    return columns


def _unused_columns(
    header: Sequence[str], our_names: Sequence[str], used: Sequence[str]
) -> list[str]:
    """Return printable names of columns that are neither read nor flagged one by one."""
    known_keys = set(map(column_key, used))
    for column in our_names:
        known_keys.update(map(column_key, COLUMNS[column]))
    unused = []
    for name in header:
        text = name.strip()[:MAX_NAME_LENGTH]
        if column_key(name) not in known_keys and text and text.isprintable():
            unused.append(text)
    return unused


def one_hot(cells: Cells, request: RawRequest, row_name: Callable[[int], str]) -> list[str]:
    """Decode one-hot label columns.

    Args:
        cells: Class -> its column of 0 and 1.
        request: For errors.
        row_name: Names a row in messages by its index.

    Returns:
        The class of every row.

    Raises:
        DataError: Some row has not exactly one 1.
    """
    labels = []
    faults: defaultdict[str, list[int]] = defaultdict(list)
    for row, texts in enumerate(zip(*cells.values(), strict=True)):
        values = [ONE_HOT.get(text.strip().casefold()) for text in texts]
        classes = [label for label, value in zip(cells, values, strict=True) if value]
        if None in values:
            faults["with other cells"].append(row)
        elif len(classes) > 1:
            faults["of several classes"].append(row)
        elif not classes:
            faults["of no class"].append(row)
        else:
            labels += classes
    if faults:
        listed = [
            f"{len(rows)} {fault}, first {row_name(rows[0])}" for fault, rows in faults.items()
        ]
        raise request.error(
            f"in every row one of {len(cells)} label columns must be 1, others 0",
            ", ".join(listed),
            "take those rows out; an image of several classes cannot be used",
        )
    return labels


class JoinedFiles:
    """The columns of several files, one after the other.

    Attributes:
        cells: Columns of all rows; blank for the rows of a file that lacks a column.
    """

    def __init__(self, files: Sequence[Cells]) -> None:
        self._starts = [0]
        for file in files:
            self._starts.append(self._starts[-1] + len(file["label"]))
        self.cells: dict[str, list[str]] = {name: [] for file in files for name in file}
        for name, column in self.cells.items():
            for file in files:
                column += file.get(name, [""] * len(file["label"]))

    def file_of(self, row: int) -> int:
        """Return the index of the file that holds a row."""
        return bisect_right(self._starts, row) - 1

    def row_in_file(self, row: int) -> int:
        """Return the index of a row in its own file."""
        return row - self._starts[self.file_of(row)]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of own data, one per image, as a kind finds them.

    Attributes:
        cells: The column ``label`` and, if there are any, ``group``, ``split`` and traits.
        locator: Locator of a row's image.
        name: Name of a row in messages; no id and no file name.
        counting: The way in which the row's file counts, such as ``the first row is 0``; empty if
            rows have no numbers.
        default_group: Group of a row if there is no such column, from its folder or volume.
        split: Split that a row's file or folder means; None for validation.
        details: Details of a row's item.
    """

    cells: Cells
    locator: Callable[[int], str]
    name: Callable[[int], str] = "row {}".format
    counting: Callable[[int], str] = lambda _: FROM_ZERO
    default_group: Callable[[int], str] = lambda _: ""
    split: Callable[[int], Split | None] = lambda _: ""
    details: Callable[[int], tuple[str | int | float | None, ...]] = lambda _: ()

    def group(self, row: int) -> str:
        """Return the group id of a row."""
        if "group" in self.cells:
            return self.cells["group"][row]
        return self.default_group(row)

    def named(self, rows: Iterable[int]) -> str:
        """Format how many rows these are, and the names of the first ones."""
        listed = list(rows)
        return f"{len(listed)}: {first_of(map(self.name, listed))}{self.counted(listed)}"

    def counted(self, rows: Sequence[int]) -> str:
        """Format how these rows are counted; empty if they have no numbers."""
        if not rows or not self.counting(rows[0]):
            return ""
        return f" ({self.counting(rows[0])})"

    def with_labels(self, cells: set[str]) -> str:
        """Format the rows whose label is written as one of these."""
        return self.named(row for row, cell in enumerate(self.cells["label"]) if cell in cells)


def own_listing(
    rows: Rows,
    request: RawRequest,
    *,
    flags: Iterable[str] = (),
    names: Sequence[str] = (),
    order: Callable[[Iterable[str]], tuple[str, ...]] = sort_labels,
    draft: Listing,
) -> Listing:
    """Make the listing of own data: one item per row that is in no validation split.

    Args:
        rows: The rows as the kind found them.
        request: Dataset and key.
        flags: Doubts about all rows.
        names: Names of the labels 0, 1, ... if the data give them.
        order: Sorts the names of the classes.
        draft: A listing without items and classes; its other fields are kept or added to.

    Raises:
        DataError: Labels, groups or splits cannot be meant as they are.
    """
    labels = class_labels(rows, request, names)
    splits = _row_splits(rows, request)
    _check_groups(rows, request)
    kept_rows = []
    kept_labels = []
    for row, split in enumerate(splits):
        if split is not None:
            kept_rows.append(row)
            kept_labels.append(labels[row])
    num_validation = len(splits) - len(kept_rows)
    classes = order(set(kept_labels))
    if len(classes) < 2:
        value = f"one only: {classes[0]}" if classes else "none"
        if num_validation:
            value += f"; {num_validation} rows are of a validation split"
        raise request.error("labels need two classes", value)
    codes = {label: code for code, label in enumerate(classes)}
    kept_codes = list(map(codes.__getitem__, kept_labels))
    _check_group_splits(rows, kept_rows, splits, request)
    excluded = Counter(draft.excluded) + Counter({VALIDATION_LEFT_OUT: num_validation})
    counts = dict.fromkeys(flags, len(splits)) | draft.flags
    counts |= _split_flags(rows, splits, excluded[VALIDATION_LEFT_OUT])
    label_map = dict(request.dataset.label_map)
    absent = [name for name in names if label_map.get(name, name) not in codes]
    for name in absent[:MAX_NAMED]:
        counts[f"class without an image: {name}"] = 1
    row_array = np.array(kept_rows, np.int64)
    items = RowItems(rows, row_array, np.array(kept_codes, np.int64), splits)
    return replace(draft, items=items, label_names=classes, excluded=dict(excluded), flags=counts)


def _split_flags(rows: Rows, splits: Sequence[Split | None], num_validation: int) -> dict[str, int]:
    """Return the doubts about the splits of all rows."""
    flags = {}
    num_without = splits.count("")
    if "split" in rows.cells and num_without:
        flags["row without a split: used for training or testing"] = num_without
    if num_validation and set(splits) - {None} == {"train"}:
        flags[NO_TEST_SPLIT] = num_validation
    return flags


Integers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class RowItems(Sequence[Item]):
    """The items of rows, made when asked for: millions of small images need no list.

    Attributes:
        rows: All rows.
        kept_rows: Rows that become items, ``(num_items,)``.
        codes: Class index of every item, ``(num_items,)``.
        splits: Split of every row.
    """

    rows: Rows
    kept_rows: Integers
    codes: Integers
    splits: Sequence[Split | None]

    def __len__(self) -> int:
        return len(self.kept_rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return RowItems(self.rows, self.kept_rows[index], self.codes[index], self.splits)
        row = int(self.kept_rows[index])
        cells = self.rows.cells
        return Item(
            locator=self.rows.locator(row),
            label=int(self.codes[index]),
            group=self.rows.group(row),
            split=self.splits[row] or "",
            details=self.rows.details(row),
            traits=tuple((name, cells[name][row]) for name in TRAITS if name in cells),
        )

    def __reduce__(self) -> tuple[type[list[Item]], tuple[list[Item]]]:
        """Pickle as a plain list: a block must not carry the columns of all others to its task."""
        return list, (list(self),)


def class_labels(rows: Rows, request: RawRequest, names: Sequence[str] = ()) -> list[str]:
    """Return the class of each row: its label through ``label_map``, or the name of its number.

    Args:
        rows: Only the labels are read.
        request: Its dataset has the ``label_map``.
        names: Names of the labels 0, 1, ... if the data give them.

    Raises:
        DataError: Labels are missing, cannot be told apart, or cannot be meant as classes.
    """
    written = rows.cells["label"]
    label_map = dict(request.dataset.label_map)
    if names:
        check_spellings(names, request)
        if len(set(names)) < len(names):
            raise request.error("names of classes must differ", "a name twice")
    classes = {}
    for cell in dict.fromkeys(written):
        classes[cell] = _class_of(cell, rows, request, names)
    _check_label_map(label_map, {*classes, *names}, request)
    if SEVERAL in classes and SEVERAL not in label_map:
        raise request.error(
            "a row must have one label, as text or number",
            f"several labels, or bytes, in {rows.with_labels({SEVERAL})}",
            "write one class per image",
        )
    mapped = set(label_map.values())
    blank = {cell for cell, label in classes.items() if is_missing(label) and label not in mapped}
    if blank:
        raise request.error(
            "every row needs a label",
            f"blank in {rows.with_labels(blank)}",
            "give them a class or take them out; blank, NaN and NA are classes only if label_map "
            "says so",
        )
    check_spellings(set(classes.values()), request)
    return [classes[cell] for cell in written]


def _class_of(cell: str, rows: Rows, request: RawRequest, names: Sequence[str]) -> str:
    """Return the class that a label means, see :func:`class_labels`."""
    label_map = dict(request.dataset.label_map)
    label = label_map.get(cell.strip())
    if label is not None:
        return label
    if not names or is_missing(cell):
        return cell
    if not (cell.isascii() and cell.isdigit() and int(cell) < len(names)):
        raise request.error(
            f"labels must be numbers of the class names, 0 to {len(names) - 1}",
            rows.with_labels({cell}),
            f"take them out, or {LABEL_MAP_HINT}",
        )
    name = names[int(cell)]
    return label_map.get(name.strip(), name)


def _check_label_map(label_map: Mapping[str, str], labels: set[str], request: RawRequest) -> None:
    """Check that every label of the map is in the data: a typing error would have no effect."""
    unused = sorted(label_map.keys() - set(map(str.strip, labels)))
    if unused:
        raise request.error(
            "label_map must name labels as they are written",
            f"no label is {', '.join(map(repr, unused[:MAX_NAMED]))}",
            "correct or drop it",
        )


def _row_splits(rows: Rows, request: RawRequest) -> list[Split | None]:
    """Return the split of every row: that of its cell, or of its file if the cell is blank."""
    file_splits = list(map(rows.split, range(len(rows.cells["label"]))))
    cells = rows.cells.get("split")
    if cells is None:
        return file_splits
    unknown = []
    contradictory = []
    splits = []
    for row, (cell, file_split) in enumerate(zip(cells, file_splits, strict=True)):
        split = split_of(cell) if cell.strip() else file_split
        if cell.strip() and split == "":
            unknown.append(row)
        if file_split not in ("", split):
            contradictory.append(row)
        splits.append(split)
    if unknown:
        raise request.error(
            f"split must be one of {', '.join(SPLITS)} or blank",
            f"other cells in {rows.named(unknown)}",
        )
    if contradictory:
        raise request.error(
            "the column split must say what the folder or file says",
            f"another split in {rows.named(contradictory)}",
            "drop the column or move the files",
        )
    return splits


def _check_groups(rows: Rows, request: RawRequest) -> None:
    """Check that ids in a column tell patients apart: "nan" for all would be one patient."""
    groups = rows.cells.get("group", ())
    if not groups:
        return
    nobody = NOBODY | {SEVERAL}
    blank = [row for row, group in enumerate(groups) if group.strip().casefold() in nobody]
    if blank:
        raise request.error(
            "every row needs a group when there is such a column",
            f"blank, NaN, None, a word for unknown or several in {rows.named(blank)}",
            "give them a patient, or drop them or the column; one who is called so needs another "
            "id",
        )
    counts = Counter(groups)
    commonest, count = counts.most_common(1)[0]
    # One patient may be called 0. An id of more than half of all rows is a placeholder.
    is_placeholder = commonest.casefold() in PLACEHOLDERS and 2 * count > len(groups)
    if len(counts) < 2 or is_placeholder:
        raise request.error(
            "group ids must tell patients apart, or no patient-level split exists",
            f"one id for {count} of {len(groups)} rows",
            "give ids, or drop the column",
        )


def _check_group_splits(
    rows: Rows, kept_rows: Iterable[int], splits: Sequence[Split | None], request: RawRequest
) -> None:
    """Check that no group is in training and test, and that every id has one spelling."""
    first_rows: defaultdict[str, dict[Split | None, int]] = defaultdict(dict)
    spellings: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for row in kept_rows:
        group = rows.group(row)
        if group and splits[row] not in first_rows[group]:
            first_rows[group][splits[row]] = row
            spellings[plain_id(group)].setdefault(group, row)
    doubtful: list[int] = []
    for row_by_spelling in spellings.values():
        if len(row_by_spelling) > 1:
            doubtful += row_by_spelling.values()
    if doubtful:
        raise request.error(
            "every group id must be spelt one way, as p0 or P0, 7, 07 or 7.0",
            rows.named(doubtful),
            "spell one patient's ids alike",
        )
    leaking = [by_split for by_split in first_rows.values() if {"train", "test"} <= by_split.keys()]
    if leaking:
        train_row = leaking[0]["train"]
        pair = f"{rows.name(train_row)} and {rows.name(leaking[0]['test'])}"
        raise request.error(
            "no group may be in train and test",
            f"{len(leaking)}, first in {pair}{rows.counted([train_row])}",
            "split by patient, not by image",
        )


def check_spellings(names: Iterable[str], request: RawRequest) -> None:
    """Check that every class has a name that can be shown, and only one spelling.

    These make no other class: letter case; blanks, hyphens and underscores between words; quotes;
    Unicode forms (NFKC); ways to write a number, a truth value, positive or negative. A list of
    other classes is refused, and a word for "unknown" too, unless ``label_map`` says that it is
    meant.

    Raises:
        DataError: A rule is broken; the message shows the names, which are no secret.
    """
    classes = set(names)
    unmapped = classes.difference(dict(request.dataset.label_map).values())
    _check_printable(classes, request)
    _check_numbers(classes, request)
    _check_known(unmapped, request)
    _check_single(classes, unmapped, request)
    _check_spelt_once(classes, request)


def _check_printable(classes: set[str], request: RawRequest) -> None:
    """Check that names can be shown: others look alike, or could drive a terminal."""
    odd = []
    for name in sorted(classes):
        if not name.strip() or not name.isprintable() or len(name) > MAX_LABEL_LENGTH:
            odd.append(name)
    if odd:
        raise request.error(
            f"class names must be printable, not blank, {MAX_LABEL_LENGTH} letters at most",
            f"{len(odd)}, first {odd[0][:MAX_LABEL_LENGTH]!a}",
            f"rename them, or {LABEL_MAP_HINT}",
        )


def _check_numbers(classes: set[str], request: RawRequest) -> None:
    """Check that labels which are all numbers are classes, no measurements or codes for unknown."""
    numerals = set()
    for name in classes:
        # Word writes a minus sign of its own; half of Europe writes a decimal comma.
        numeral = name.strip().replace("\u2212", "-").replace(",", ".")
        if not re.fullmatch(r"[-+]?\d+([.]\d+)?", numeral, re.ASCII):
            return
        numerals.add(numeral)
    numbers = sorted(map(Decimal, numerals))
    fractions = [number for number in numbers if number % 1]
    if fractions:
        raise request.error(
            "labels must be classes, not measurements",
            f"{len(numbers)} numbers, such as {fractions[0]:.6g}",
            LABEL_MAP_HINT,
        )
    if len(numbers) < 3:
        return  # of two classes, -1 and 1 or 0 and 255 are common names
    if numbers[0] < 0:
        rule = "labels must not be negative beside others"
        code = numbers[0]
    elif numbers[-1] in MISSING_CODES and 2 * numbers[-2] < numbers[-1]:
        rule = "labels must not hold a code for unknown"
        code = numbers[-1]
    else:
        return
    raise request.error(
        rule,
        f"{code}, which often means unknown",
        f"take those images out, or say what they mean with --label-map={code}=NAME or label_map",
    )


def _check_known(unmapped: set[str], request: RawRequest) -> None:
    """Check that no class is a word for unknown, unless ``label_map`` says that it is meant."""
    unknown = sorted(name for name in unmapped if name.strip().casefold() in UNKNOWN)
    if unknown:
        option = quote(f"{unknown[0]}={unknown[0]}")
        raise request.error(
            "a word for unknown must be a class on purpose",
            ", ".join(map(repr, unknown)),
            f"take those images out, or keep it with --label-map {option} or label_map",
        )


def _check_single(classes: set[str], unmapped: set[str], request: RawRequest) -> None:
    """Check that no name lists other classes, as ``Mass|Nodule`` with ``Mass`` and ``Nodule``."""
    lists = []
    for name in sorted(unmapped):
        parts = [part.strip(" '\"") for part in SEPARATOR.split(name.strip("[]() "))]
        if len(parts) > 1 and classes.issuperset(parts):
            lists.append(name)
    if lists:
        raise request.error(
            "a label must be one class, not a list of them",
            f"{len(lists)}: {first_of(map(repr, lists))}",
            f"take those images out, or {LABEL_MAP_HINT}",
        )


def _check_spelt_once(classes: set[str], request: RawRequest) -> None:
    """Check that no two names are spellings of one class."""
    words = {name.strip().casefold() for name in classes}
    spellings: defaultdict[str, set[str]] = defaultdict(set)
    for name in classes:
        word = INITIALS.get(name.strip().casefold(), "")
        spellings[_spelling_key(word if word in words else name)].add(name)
    doubtful = []
    for alike in spellings.values():
        if len(alike) > 1:
            doubtful.append(" / ".join(map(repr, sorted(alike))))
    if doubtful:
        raise request.error(
            "every class must be spelt one way",
            first_of(doubtful),
            f"spell them alike, or {LABEL_MAP_HINT}",
        )


def _spelling_key(name: str) -> str:
    """Return a key that is equal for all spellings of one class."""
    text = unicodedata.normalize("NFKC", name).casefold()
    text = re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", text)
    text = " ".join(text.split())
    text = text.strip(QUOTES) or text
    text = SYNONYMS.get(text, text)
    try:
        return f"number {Decimal(text).normalize() + 0}"  # adding 0 makes -0 equal 0
    except ArithmeticError:
        return text


def plain_id(group: str) -> str:
    """Return an id without case, extra blanks, Unicode forms, leading zeros and a final ``.0``."""
    text = " ".join(unicodedata.normalize("NFKC", group).casefold().split())
    number = re.fullmatch(r"0*(\d+)(?:\.0*)?", text)
    return number[1] if number else text
