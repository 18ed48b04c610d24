"""The rules for labels, groups and splits of a user's own images, however they are stored.

A *kind* is a way to store images: one folder per class, a table of paths, array files, Parquet
files or tars. The module of a kind finds the *rows*, one per image, and the text that the data give
as label, group and split of each row. This module turns the text into classes, groups and splits.
It refuses text that is not a plausible label, group or split, and names the rows. All kinds have
the same rules.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from shlex import quote
from typing import Any

import numpy as np

from tasks.sources.base import Item, Listing, RawRequest, Split, first_of
from tasks.sources.tables import COLUMNS, SEVERAL, column_key, unused_flags

# Words that say that something is not known, in lower case. There are four sets, because a word may
# name a class and still be no patient's id:
# - MISSING: the cell is blank, or holds a program's word for that.
# - UNKNOWN: a word that people use as the name of a class.
# Both are refused as a label unless they are in ``label_map``; the messages differ. Neither is
# ever an id.
# - NO_IDS adds the words for a patient whose name was taken out.
# - PLACEHOLDERS adds ids that look real. One patient may have such an id, but not most of them.
MISSING = (
    frozenset({"", ".", "?", "na", "n/a"})  # R, SAS and ARFF
    | {"nan", "-nan", "<na>", "none", "nat", "inf", "-inf", "+inf"}  # numpy and pandas
    | {"null", "nil"}  # JSON and databases
    | {"#n/a", "#value!", "#ref!", "#name?", "#div/0!", "#null!", "#num!"}  # spreadsheets
)
"""Text that programs write for a missing value."""
UNKNOWN = (
    frozenset({"-", "--", "missing", "unspecified", "undefined"})
    | {"unknown", "unk", "not known", "not available", "uncertain", "unsure", "undetermined"}
    | {"unlabeled", "unlabelled", "no label", "tbd", "todo"}
    | {"ignore", "ignored", "not applicable", "n.a."}
)
"""Words that people write if they do not know the class; a class may have such a name."""
NO_IDS = MISSING | UNKNOWN | {"anon", "anonymous", "anonymized", "anonymised"}
"""Text that is not a patient's id."""
PLACEHOLDERS = NO_IDS | {"0", "x"}
"""Ids that programs for anonymization give to many patients."""
SYNONYMS = {"true": "1", "yes": "1", "false": "0", "no": "0", "pos": "positive", "neg": "negative"}
"""Word -> the word that stands for it when two names of classes are compared."""
INITIALS = {"y": "yes", "n": "no", "t": "true", "f": "false", "p": "positive", "+": "positive"}
"""Letter -> the word that it abbreviates. It is expanded only if the full word is also a class.
Otherwise the letter stays the name of a class."""
QUOTES = "'\"`\u2018\u2019\u201c\u201d"
SEPARATOR = re.compile(r"[|;,&+/]")
"""Characters between the classes of a cell that lists several."""
MISSING_CODES = (99, 255, 999, 9999, 65535)
"""Numbers that mean "unknown" if they lie far above the other classes; 255 is -1 in a byte."""
MAX_LABEL_LENGTH = 200
"""Characters of a class name."""
LABEL_MAP_HINT = "Say what they mean with --label-map or label_map"
TRAITS = ("site", "scanner", "manufacturer", "model", "view", "device")
"""Columns that must not predict the label. If the data have them, they are compared with it."""
ONE_HOT = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
"""Text in a one-hot column -> whether the image is of the column's class."""
MAX_NAMED = 10
"""Names in one flag or message."""
MAX_NAME_LENGTH = 30
"""Characters of a column's name in a flag."""
FROM_ZERO = "the first row is 0"
"""The way in which numpy and pandas count the rows of arrays and Parquet files."""
HIDDEN = "hidden, by the dot before its name"
"""Reason for leaving out a file."""


class GivenSplit(Enum):
    """The split that the data give a row. An item has no validation split, see `Split`."""

    NONE = ""
    TRAIN = "train"
    TEST = "test"
    VALIDATION = "validation"


ITEM_SPLITS: dict[GivenSplit, Split] = {
    GivenSplit.NONE: "",
    GivenSplit.TRAIN: "train",
    GivenSplit.TEST: "test",
}
"""The split of an item. Rows of a validation split become no items."""
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), GivenSplit.TRAIN),
    **dict.fromkeys(("test", "testing", "tst"), GivenSplit.TEST),
    **dict.fromkeys(("val", "valid", "validation"), GivenSplit.VALIDATION),
}
"""Word, in lower case -> the split that it means."""
VALIDATION_LEFT_OUT = "validation split"
"""Reason for leaving out a row. The study trains without validation images, and tuning draws its
own from the training images."""
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


def parse_split(word: str) -> GivenSplit:
    """Return the split that a word means; case does not matter.

    The Hugging Face Hub stores the first files of a large split in a folder ``partial-train``.
    """
    return SPLIT_WORDS.get(word.strip().casefold().removeprefix("partial-"), GivenSplit.NONE)


def parse_splits(words: Iterable[str]) -> set[GivenSplit]:
    """Return the splits that words mean; words of no split are ignored."""
    return set(map(parse_split, words)) - {GivenSplit.NONE}


def is_split_word(word: str) -> bool:
    """Return whether a word means a split."""
    return parse_split(word) is not GivenSplit.NONE


def split_of_file(name: str, request: RawRequest) -> GivenSplit:
    """Return the split that a file's name means, or else that of the nearest folder with one.

    Examples are ``train-00000-of-00002.parquet``, ``skin_test_01.tar`` and ``val/0000.tar``. If the
    user gave the file itself as the raw data, its name means no split.

    Raises:
        DataError: The name has the words of two splits.
    """
    if request.root().is_file():
        return GivenSplit.NONE
    *folders, file_name = name.split("/")
    # The word may be a part of the file's name, but it must be the whole name of a folder.
    for words in (re.split(r"[\W_]+", file_name), *([folder] for folder in reversed(folders))):
        splits = parse_splits(words)
        if len(splits) > 1:
            raise request.error(
                "a file's name must say one split",
                request.hashed(name),
                "Rename it: train-..., test-... or val-...",
            )
        if splits:
            return splits.pop()
    return GivenSplit.NONE


def count_hidden(names: Iterable[str], is_readable: Callable[[str], bool]) -> dict[str, int]:
    """Count hidden folders, and hidden files that would be read if they were not hidden.

    Args:
        names: Names that the search for files left out; folders end with a slash.
        is_readable: Returns whether files of that name are read.
    """
    count = 0
    for name in names:
        if PurePath(name).name.startswith("."):
            count += name.endswith("/") or is_readable(name)
    return {HIDDEN: count}


Cells = Mapping[str, Sequence[str]]
"""Name of a column -> its text, one entry per row."""


@dataclass(frozen=True)
class Columns:
    """The columns of the data that are read, and what each of them holds.

    Attributes:
        name_in_data: Our name of a column, such as ``group`` -> its name in the data, such as
            ``patient_id``.
        labels: Columns of labels in the data: one, or a column of 0 and 1 for each class.
        flags: Doubts about the choice, and the columns that are not read.
    """

    name_in_data: dict[str, str]
    labels: tuple[str, ...]
    flags: tuple[str, ...]

    def cells(self, data: Cells, request: RawRequest, row_name: Callable[[int], str]) -> Cells:
        """Return the columns under our names. One-hot columns become one column of labels.

        Args:
            data: Columns under their names in the data.
            request: For errors.
            row_name: Returns the name of a row in messages.
        """
        labels = {name: data[name] for name in self.labels}
        if len(labels) > 1:
            cells: dict[str, Sequence[str]] = {"label": one_hot(labels, request, row_name)}
        else:
            cells = {"label": labels[self.labels[0]]}
        for column, name in self.name_in_data.items():
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
    """Choose which columns of the data to read.

    Args:
        header: Names of the columns in the data.
        our_names: Columns to choose, by their names in :data:`tasks.sources.tables.COLUMNS`.
        request: If its dataset has ``label_columns``, these are the labels.
        more: Further columns that the kind reads by itself, so that they are not flagged.
        fixed: Our name -> name in the data, for columns that the kind has chosen already.

    Raises:
        DataError: Several columns could be the same one; a guess might train on the wrong label.
    """
    given_labels = request.dataset.label_columns
    # Reversed, so that the first of several columns with one key is chosen.
    by_key = {column_key(name): name for name in reversed(header)}
    names = dict(fixed or {})
    flags: list[str] = []
    for column in our_names:
        if column == "label" and given_labels:
            continue
        exact = names.get(column) or by_key.get(column_key(column))
        chosen = _choose_column(column, exact, by_key, request, flags)
        if chosen is not None:
            names[column] = chosen
    for trait in TRAITS:
        if trait in by_key:
            names[trait] = by_key[trait]
    labels = given_labels or ((names["label"],) if "label" in names else ())
    unused = _unused_columns(header, our_names, (*names.values(), *labels, *more))
    flags += unused_flags(unused, MAX_NAMED)
    return Columns(names, labels, tuple(flags))


def _choose_column(
    column: str,
    exact: str | None,
    by_key: Mapping[str, str],
    request: RawRequest,
    flags: list[str],
) -> str | None:
    """Return the name in the data of one of our columns, or None if the data lack it.

    Args:
        column: Our name.
        exact: The column of the data with our name, or None. It goes before all other usual names.
        by_key: Key of a name -> name, of all columns of the data.
        request: For errors.
        flags: Doubts about the choice are added here.

    Raises:
        DataError: Several columns have a usual name, and none has ours.
    """
    keys = dict.fromkeys(map(column_key, COLUMNS[column]))
    aliases = [by_key[key] for key in keys if key in by_key and key != column_key(column)]
    if exact is not None:
        for alias in aliases:
            if alias != exact:
                flags.append(f"column {alias} not used, since there is {column}")
        return exact
    if not aliases:
        return None
    if len(aliases) > 1:
        raise request.error(
            f"one column must be the {column}", ", ".join(sorted(aliases)), f"Call it {column}"
        )
    alias = aliases[0]
    is_plural = column_key(alias) == f"{column}s"
    if not is_plural:  # the plural of our own name leaves no doubt, so it gets no flag
        flags.append(f"column {alias} read as {column}")
    return alias


def common_columns(columns_of_files: Sequence[Columns], request: RawRequest) -> Columns:
    """Return the columns of a dataset of several files.

    Raises:
        DataError: A file has other names for its columns than the first file.
    """
    columns = columns_of_files[0]
    num_others = sum(
        file_columns.name_in_data != columns.name_in_data for file_columns in columns_of_files
    )
    if num_others:
        raise request.error(
            "all tables of a dataset must have the same names of columns",
            f"other names in {num_others} of {len(columns_of_files)}",
            "Rename them",
        )
    return columns


def _unused_columns(
    header: Sequence[str], our_names: Sequence[str], used: Sequence[str]
) -> list[str]:
    """Return the names of columns that are not read, and that have no flag of their own yet."""
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
        row_name: Returns the name of a row in messages.

    Returns:
        The class of every row.

    Raises:
        DataError: Some row has not exactly one 1.
    """
    class_of_row = []
    bad_rows: defaultdict[str, list[int]] = defaultdict(list)
    for row, texts in enumerate(zip(*cells.values(), strict=True)):
        values = [ONE_HOT.get(text.strip().casefold()) for text in texts]
        row_classes = [name for name, value in zip(cells, values, strict=True) if value]
        if None in values:
            bad_rows["with other cells"].append(row)
        elif len(row_classes) > 1:
            bad_rows["of several classes"].append(row)
        elif not row_classes:
            bad_rows["of no class"].append(row)
        else:
            class_of_row += row_classes
    if bad_rows:
        listed = [
            f"{len(rows)} {fault}, first {row_name(rows[0])}" for fault, rows in bad_rows.items()
        ]
        raise request.error(
            f"in every row one of {len(cells)} label columns must be 1, the others 0",
            ", ".join(listed),
            "Take those rows out; an image of several classes cannot be used",
        )
    return class_of_row


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
    """The rows of a user's data, one per image, as the module of a kind finds them.

    Attributes:
        cells: The columns ``label`` and, if the data have them, ``group``, ``split`` and
            :data:`TRAITS`.
        locator: Returns the locator of a row's image.
        name: Returns the name of a row in messages, which holds no id and no file name.
        numbering: Returns how the row's file numbers rows, such as ``the first row is 0``; empty if
            rows have no numbers.
        default_group: Returns the group of a row if there is no such column: its folder or volume.
        file_split: Returns the split that a row's file or folder means.
        details: Returns the details of a row's item.
    """

    cells: Cells
    locator: Callable[[int], str]
    name: Callable[[int], str] = "row {}".format
    numbering: Callable[[int], str] = lambda _: FROM_ZERO
    default_group: Callable[[int], str] = lambda _: ""
    file_split: Callable[[int], GivenSplit] = lambda _: GivenSplit.NONE
    details: Callable[[int], tuple[str | int | float | None, ...]] = lambda _: ()

    def group(self, row: int) -> str:
        """Return the group id of a row."""
        if "group" in self.cells:
            return self.cells["group"][row]
        return self.default_group(row)

    def describe(self, rows: Iterable[int]) -> str:
        """Format how many rows these are, and the names of the first ones."""
        listed = list(rows)
        return f"{len(listed)}: {first_of(map(self.name, listed))}{self.describe_numbering(listed)}"

    def describe_numbering(self, rows: Sequence[int]) -> str:
        """Format how rows are numbered, with a blank before it; empty if they have no numbers."""
        if not rows or not self.numbering(rows[0]):
            return ""
        return f" ({self.numbering(rows[0])})"

    def describe_labeled(self, labels: set[str]) -> str:
        """Format the rows that have one of these labels, as the data write them."""
        return self.describe(row for row, cell in enumerate(self.cells["label"]) if cell in labels)


def own_listing(
    rows: Rows,
    request: RawRequest,
    *,
    dataset_flags: Iterable[str] = (),
    class_names: Sequence[str] = (),
    order: Callable[[Iterable[str]], tuple[str, ...]] = sort_labels,
    draft: Listing,
) -> Listing:
    """Return the listing of a user's data: an item for every row outside a validation split.

    Args:
        rows: The rows as the kind found them.
        request: The dataset, and the key of hashes in messages.
        dataset_flags: Doubts about all rows.
        class_names: Names of the labels 0, 1, ... if the data give them.
        order: Sorts the names of the classes.
        draft: A listing without items and classes. Its other fields are kept or added to.

    Raises:
        DataError: Labels, groups or splits break a rule of this module.
    """
    class_of_row = classes_of_rows(rows, request, class_names)
    splits = _row_splits(rows, request)
    _check_groups(rows, request)
    kept_rows = []
    kept_classes = []
    for row, split in enumerate(splits):
        if split is not GivenSplit.VALIDATION:
            kept_rows.append(row)
            kept_classes.append(class_of_row[row])
    num_validation = len(splits) - len(kept_rows)
    classes = order(set(kept_classes))
    if len(classes) < 2:
        value = f"one only: {classes[0]}" if classes else "none"
        if num_validation:
            value += f"; {num_validation} rows are in a validation split"
        raise request.error("the labels must have two classes or more", value)
    codes = {class_name: code for code, class_name in enumerate(classes)}
    kept_codes = list(map(codes.__getitem__, kept_classes))
    _check_id_spellings(rows, kept_rows, request)
    _check_no_leak(rows, kept_rows, splits, request)
    excluded = Counter(draft.excluded) + Counter({VALIDATION_LEFT_OUT: num_validation})
    flag_counts = dict.fromkeys(dataset_flags, len(splits)) | draft.flags
    flag_counts |= _split_flags(rows, splits, excluded[VALIDATION_LEFT_OUT])
    label_map = dict(request.dataset.label_map)
    absent = [name for name in class_names if label_map.get(name, name) not in codes]
    for name in absent[:MAX_NAMED]:
        flag_counts[f"class without an image: {name}"] = 1
    row_array = np.array(kept_rows, np.int64)
    items = RowItems(rows, row_array, np.array(kept_codes, np.int64), splits)
    return replace(
        draft, items=items, label_names=classes, excluded=dict(excluded), flags=flag_counts
    )


def _split_flags(rows: Rows, splits: Sequence[GivenSplit], num_validation: int) -> dict[str, int]:
    """Return doubts about the splits -> number of rows that they concern."""
    flags = {}
    num_without = splits.count(GivenSplit.NONE)
    if "split" in rows.cells and num_without:
        flags["row without a split: used for training or testing"] = num_without
    if num_validation and set(splits) - {GivenSplit.VALIDATION} == {GivenSplit.TRAIN}:
        flags[NO_TEST_SPLIT] = num_validation
    return flags


Integers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class RowItems(Sequence[Item]):
    """The items of rows, each made when it is read: a list would be large for small images.

    Attributes:
        rows: All rows.
        kept_rows: Rows that become items, ``(num_items,)``.
        codes: Class index of every item, ``(num_items,)``.
        splits: Split of every row, also of those that become no item.
    """

    rows: Rows
    kept_rows: Integers
    codes: Integers
    splits: Sequence[GivenSplit]

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
            split=ITEM_SPLITS[self.splits[row]],
            details=self.rows.details(row),
            traits=tuple((name, cells[name][row]) for name in TRAITS if name in cells),
        )

    def __reduce__(self) -> tuple[type[list[Item]], tuple[list[Item]]]:
        """Pickle as a plain list: a block must not carry the columns of all others to its task."""
        return list, (list(self),)


def classes_of_rows(rows: Rows, request: RawRequest, class_names: Sequence[str] = ()) -> list[str]:
    """Return the class of each row: its label, after ``label_map`` and ``class_names`` are applied.

    Args:
        rows: Only the labels are read.
        request: Its dataset has the ``label_map``.
        class_names: Names of the labels 0, 1, ... if the data give them.

    Raises:
        DataError: Labels are missing, are different spellings of one class, or are not plausible
            names of classes.
    """
    written = rows.cells["label"]
    label_map = dict(request.dataset.label_map)
    if class_names:
        check_class_names(class_names, request)
        if len(set(class_names)) < len(class_names):
            raise request.error("names of classes must be different", "a name twice")
    class_of_cell = {}
    for cell in dict.fromkeys(written):
        class_of_cell[cell] = _class_of(cell, rows, request, class_names)
    _check_label_map(label_map, {*class_of_cell, *class_names}, request)
    if SEVERAL in class_of_cell and SEVERAL not in label_map:
        raise request.error(
            "a row must have one label, as text or number",
            f"several labels, or bytes, in {rows.describe_labeled({SEVERAL})}",
            "Write one class per image",
        )
    mapped = set(label_map.values())
    blank = set()
    for cell, class_name in class_of_cell.items():
        if is_missing(class_name) and class_name not in mapped:
            blank.add(cell)
    if blank:
        raise request.error(
            "every row needs a label",
            f"blank in {rows.describe_labeled(blank)}",
            "Give them a class or take them out; blank, NaN and NA are classes only if label_map "
            "says so",
        )
    check_class_names(set(class_of_cell.values()), request)
    return [class_of_cell[cell] for cell in written]


def _class_of(cell: str, rows: Rows, request: RawRequest, class_names: Sequence[str]) -> str:
    """Return the class of the rows whose label is ``cell``, see :func:`classes_of_rows`.

    Raises:
        DataError: The data name the labels by number, and ``cell`` is not one of these numbers.
    """
    label_map = dict(request.dataset.label_map)
    mapped = label_map.get(cell.strip())
    if mapped is not None:
        return mapped
    if not class_names or is_missing(cell):
        return cell
    if not (cell.isascii() and cell.isdigit() and int(cell) < len(class_names)):
        raise request.error(
            f"labels must be numbers of the class names, 0 to {len(class_names) - 1}",
            rows.describe_labeled({cell}),
            f"Take them out, or {LABEL_MAP_HINT}",
        )
    class_name = class_names[int(cell)]
    return label_map.get(class_name.strip(), class_name)


def _check_label_map(label_map: Mapping[str, str], labels: set[str], request: RawRequest) -> None:
    """Check that every label of the map is in the data: a misspelled one would have no effect."""
    unused = sorted(label_map.keys() - set(map(str.strip, labels)))
    if unused:
        raise request.error(
            "label_map must name labels as they are written",
            f"no label is {', '.join(map(repr, unused[:MAX_NAMED]))}",
            "Correct or drop it",
        )


def _row_splits(rows: Rows, request: RawRequest) -> list[GivenSplit]:
    """Return the split of every row: that of its cell, or of its file if the cell is blank.

    Raises:
        DataError: A cell is no word for a split, or contradicts the split of the row's file.
    """
    file_splits = list(map(rows.file_split, range(len(rows.cells["label"]))))
    cells = rows.cells.get("split")
    if cells is None:
        return file_splits
    unknown = []
    contradictory = []
    splits = []
    for row, (cell, file_split) in enumerate(zip(cells, file_splits, strict=True)):
        split = parse_split(cell) if cell.strip() else file_split
        if cell.strip() and split is GivenSplit.NONE:
            unknown.append(row)
        if file_split not in (GivenSplit.NONE, split):
            contradictory.append(row)
        splits.append(split)
    if unknown:
        raise request.error(
            f"split must be one of {', '.join(SPLIT_WORDS)} or blank",
            f"other cells in {rows.describe(unknown)}",
        )
    if contradictory:
        raise request.error(
            "the column split must agree with the name of the folder or file",
            f"another split in {rows.describe(contradictory)}",
            "Drop the column or move the files",
        )
    return splits


def _check_groups(rows: Rows, request: RawRequest) -> None:
    """Refuse group ids that are blank, a word for "unknown", or one placeholder for most rows.

    A word for "unknown" must not be an id: all rows with it would be images of one patient.
    """
    groups = rows.cells.get("group", ())
    if not groups:
        return
    no_ids = NO_IDS | {SEVERAL}
    blank = [row for row, group in enumerate(groups) if group.strip().casefold() in no_ids]
    if blank:
        raise request.error(
            "every row needs a group when there is such a column",
            f"blank, NaN, None, a word for unknown or several in {rows.describe(blank)}",
            "Give each row a group id, or drop these rows or the column; a patient who really has "
            "this name needs another id",
        )
    counts = Counter(groups)
    commonest, count = counts.most_common(1)[0]
    # One patient may have the id 0. If more than half of all rows have it, it is a placeholder.
    is_placeholder = commonest.casefold() in PLACEHOLDERS and 2 * count > len(groups)
    if len(counts) < 2 or is_placeholder:
        raise request.error(
            "group ids must be different for different patients, to split by patient",
            f"one id for {count} of {len(groups)} rows",
            "Give ids, or drop the column",
        )


def _check_id_spellings(rows: Rows, kept_rows: Sequence[int], request: RawRequest) -> None:
    """Check that every group id has one spelling."""
    first_rows: dict[str, int] = {}
    for row in kept_rows:
        first_rows.setdefault(rows.group(row), row)
    first_rows.pop("", None)  # a blank is no id: these images are groups of their own
    rows_by_id: defaultdict[str, list[int]] = defaultdict(list)
    for group, row in first_rows.items():
        rows_by_id[plain_id(group)].append(row)
    doubtful: list[int] = []
    for rows_of_spellings in rows_by_id.values():
        if len(rows_of_spellings) > 1:
            doubtful += rows_of_spellings
    if doubtful:
        raise request.error(
            "every group id must have one spelling: not p0 and P0, or 7, 07 and 7.0",
            rows.describe(doubtful),
            "Write the id of a patient in one way",
        )


def _check_no_leak(
    rows: Rows, kept_rows: Sequence[int], splits: Sequence[GivenSplit], request: RawRequest
) -> None:
    """Check that no group is in training and test."""
    first_rows: defaultdict[str, dict[GivenSplit, int]] = defaultdict(dict)
    for row in kept_rows:
        group = rows.group(row)
        if group:
            first_rows[group].setdefault(splits[row], row)
    train_and_test = {GivenSplit.TRAIN, GivenSplit.TEST}
    leaking = [by_split for by_split in first_rows.values() if train_and_test <= by_split.keys()]
    if leaking:
        train_row = leaking[0][GivenSplit.TRAIN]
        test_row = leaking[0][GivenSplit.TEST]
        pair = f"{rows.name(train_row)} and {rows.name(test_row)}"
        raise request.error(
            "no group may be in train and test",
            f"{len(leaking)}, first in {pair}{rows.describe_numbering([train_row])}",
            "Split by patient, not by image",
        )


def check_class_names(names: Iterable[str], request: RawRequest) -> None:
    """Check that every class has one spelling, and a name that can be printed.

    Names that differ only in these are the same class, so they are refused as two spellings:

    - letter case, quotes, and Unicode forms (NFKC);
    - blanks, hyphens and underscores between words;
    - how a number, a truth value, positive or negative is written.

    A list of other classes and a word for "unknown" are refused too, unless ``label_map`` names
    them.

    Raises:
        DataError: A rule is broken. The message shows the names, which are not confidential.
    """
    classes = set(names)
    unmapped = classes.difference(dict(request.dataset.label_map).values())
    _check_printable(classes, request)
    _check_numbers(classes, request)
    _check_no_unknown_word(unmapped, request)
    _check_no_list(classes, unmapped, request)
    _check_one_spelling(classes, request)


def _check_printable(classes: set[str], request: RawRequest) -> None:
    """Check that names can be printed: control characters could change a user's terminal."""
    odd = []
    for name in sorted(classes):
        if not name.strip() or not name.isprintable() or len(name) > MAX_LABEL_LENGTH:
            odd.append(name)
    if odd:
        raise request.error(
            f"class names must be printable, not blank, {MAX_LABEL_LENGTH} characters at most",
            f"{len(odd)}, first {odd[0][:MAX_LABEL_LENGTH]!a}",
            f"Rename them, or {LABEL_MAP_HINT}",
        )


def _check_numbers(classes: set[str], request: RawRequest) -> None:
    """Check that labels, if all are numbers, are not measurements and hold no code for unknown."""
    numerals = set()
    for name in classes:
        # Word processors write the minus sign U+2212; many languages have a decimal comma.
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
        return  # -1 and 1, or 0 and 255, are common names of two classes
    if numbers[0] < 0:
        rule = "labels must not be negative if there are three or more classes"
        code = numbers[0]
    elif numbers[-1] in MISSING_CODES and 2 * numbers[-2] < numbers[-1]:
        rule = "labels must not contain a code for unknown"
        code = numbers[-1]
    else:
        return
    raise request.error(
        rule,
        f"{code}, which often means unknown",
        f"Take those images out, or say what they mean with --label-map={code}=NAME or label_map",
    )


def _check_no_unknown_word(unmapped: set[str], request: RawRequest) -> None:
    """Check that no class is a word for unknown, unless ``label_map`` names it."""
    unknown = sorted(name for name in unmapped if name.strip().casefold() in UNKNOWN)
    if unknown:
        option = quote(f"{unknown[0]}={unknown[0]}")
        raise request.error(
            "a word for unknown is not the name of a class",
            ", ".join(map(repr, unknown)),
            f"Take those images out, or keep it with --label-map {option} or label_map",
        )


def _check_no_list(classes: set[str], unmapped: set[str], request: RawRequest) -> None:
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
            f"Take those images out, or {LABEL_MAP_HINT}",
        )


def _check_one_spelling(classes: set[str], request: RawRequest) -> None:
    """Check that no two names are spellings of the same class."""
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
            "every class must have one spelling",
            first_of(doubtful),
            f"Write them in one way, or {LABEL_MAP_HINT}",
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
    """Return a key that is equal for all spellings of one patient's id.

    It is in lower case and NFKC, without extra blanks, leading zeros and a final ``.0``.
    """
    text = " ".join(unicodedata.normalize("NFKC", group).casefold().split())
    number = re.fullmatch(r"0*(\d+)(?:\.0*)?", text)
    return number[1] if number else text
