"""Choose which columns of a user's table, JSON keys or arrays are read; join those of files."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from tasks.sources.base import RawRequest
from tasks.sources.tables import COLUMNS, MAX_NAME_LENGTH, column_key, unused_flags

TRAITS = ("site", "scanner", "manufacturer", "model", "view", "device")
"""Columns that must not predict the label. If the data have them, they are compared with it."""
ONE_HOT = {
    "0": False,
    "0.0": False,
    "false": False,
    "1": True,
    "1.0": True,
    "true": True,
}
"""Text in a one-hot column -> whether the image is of the column's class."""
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
        cells: dict[str, Sequence[str]] = {}
        for column, name in self.name_in_data.items():
            if name in data:
                cells[column] = data[name]
        cells["label"] = data[self.labels[0]]
        if len(self.labels) > 1:
            one_hot_columns = {name: data[name] for name in self.labels}
            cells["label"] = one_hot(one_hot_columns, request, row_name)
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
    flags += unused_flags(unused)
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
            f"several columns may be the {column}: {', '.join(sorted(aliases))}",
            hint=f"Call the right one {column}",
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
    num_others = 0
    for file_columns in columns_of_files:
        num_others += file_columns.name_in_data != columns.name_in_data
    if num_others:
        raise request.error(
            f"{num_others} of {len(columns_of_files)} tables have other names of columns than the "
            "first",
            hint="Rename them",
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
        listed = []
        for fault, rows in bad_rows.items():
            listed.append(f"{len(rows)} {fault}, first {row_name(rows[0])}")
        raise request.error(
            f"not every row has exactly one 1 in its {len(cells)} label columns: "
            f"{', '.join(listed)}",
            hint="Take those rows out. An image of several classes cannot be used",
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
        self.cells: dict[str, list[str]] = {}
        for name in dict.fromkeys(chain(*files)):
            column: list[str] = []
            for file in files:
                column += file.get(name, [""] * len(file["label"]))
            self.cells[name] = column

    def file_of(self, row: int) -> int:
        """Return the index of the file that holds a row."""
        return bisect_right(self._starts, row) - 1

    def row_in_file(self, row: int) -> int:
        """Return the index of a row in its own file."""
        return row - self._starts[self.file_of(row)]
