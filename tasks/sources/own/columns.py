"""Choose which columns of a user's data to read, and join the columns of several files.

A *column* is a column of a table, a key of JSON objects, or an array with one entry per image.
The *role* of a column is its use: ``path``, ``image``, ``label``, ``group``, ``split``, or one
of :data:`TRAITS`. A column may have the name of its role or one of several other names, which
:data:`tasks.sources.tables.COLUMNS` lists.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import NamedTuple

from tasks.sources.base import RawRequest
from tasks.sources.tables import COLUMNS, column_key, flags_for_unused_columns

TRAITS = ("site", "scanner", "manufacturer", "model", "view", "device")
"""Roles of columns that should not predict the label. If one of these columns predicts the
label, the record of the prepared dataset gets a flag."""
ONE_HOT = {
    "0": False,
    "0.0": False,
    "false": False,
    "1": True,
    "1.0": True,
    "true": True,
}
"""Text in a one-hot column -> whether the image belongs to the column's class."""
Cells = Mapping[str, Sequence[str]]
"""Name or role of a column -> the text of its cells, one entry per row."""


@dataclass(frozen=True)
class Columns:
    """The columns of the data that are read.

    Attributes:
        name_by_role: Role, such as ``group`` -> name of the column in the data, such as
            ``patient_id``.
        labels: Names of the label columns in the data. Usually this is one column. One-hot
            labels have one column of 0 and 1 for each class.
        choice_flags: Flags, in words, about chosen columns that do not have the name of their
            role.
        unused: Names of columns that are not read and have no flag in ``choice_flags``.
    """

    name_by_role: dict[str, str]
    labels: tuple[str, ...]
    choice_flags: tuple[str, ...]
    unused: tuple[str, ...]

    def flags(self, group_like: Collection[str]) -> tuple[str, ...]:
        """Return the flags in ``choice_flags``, and flags for the columns that are not read.

        Args:
            group_like: The unused columns whose values look like patient ids.
        """
        return (*self.choice_flags, *flags_for_unused_columns(self.unused, group_like))

    def cells(self, data: Cells, request: RawRequest, row_name: Callable[[int], str]) -> Cells:
        """Return the cells of the columns that are read, by the role of the column.

        One-hot labels become one column of class names.

        Args:
            data: Name of a column in the data -> its cells.
            request: The request. Its method ``error`` makes the errors.
            row_name: Function that returns the name of a row for messages.
        """
        cells: dict[str, Sequence[str]] = {}
        for role, name in self.name_by_role.items():
            if name in data:
                cells[role] = data[name]
        if len(self.labels) == 1:
            cells["label"] = data[self.labels[0]]
        else:
            one_hot = {name: data[name] for name in self.labels}
            cells["label"] = decode_one_hot(one_hot, request, row_name)
        return cells


class _Choice(NamedTuple):
    """The column that isweep chose for a role.

    Attributes:
        name: Name of the column in the data.
        flags: Flags about this choice, in words.
    """

    name: str
    flags: list[str]


def find_columns(
    header: Sequence[str],
    roles: Sequence[str],
    request: RawRequest,
    *,
    also_read: Sequence[str] = (),
) -> Columns:
    """Choose which columns of the data to read.

    Args:
        header: Names of the columns in the data.
        roles: Roles for which this function searches a column. They are keys of
            :data:`tasks.sources.tables.COLUMNS`. Columns with a role in :data:`TRAITS` are
            always chosen too.
        request: The request. If its dataset sets ``label_columns``, these columns are the
            labels.
        also_read: Names of columns without a role that the caller reads. They get no flag.

    Raises:
        DataError: Several columns could have the same role, so networks might be trained on
            the wrong label. Or the name of a chosen column differs from another name only in
            case and punctuation. Or ``label_columns`` repeats a name.
    """
    labels = request.dataset.label_columns
    if len(set(labels)) < len(labels):
        raise request.error(
            f"label_columns has the same column twice: {', '.join(labels)}",
            hint="Write each column only once in label_columns",
        )
    searched_roles = list(roles)
    if labels and "label" in roles:
        searched_roles.remove("label")
    names_by_key: defaultdict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(header):
        names_by_key[column_key(name)].append(name)
    name_by_role: dict[str, str] = {}
    flags: list[str] = []
    for role in searched_roles:
        choice = _choose_column(role, names_by_key, request)
        if choice is not None:
            name_by_role[role] = choice.name
            flags += choice.flags
    for trait in TRAITS:
        if trait in names_by_key:
            name_by_role[trait] = names_by_key[trait][0]
    _check_distinct_names(name_by_role, names_by_key, request)
    if "label" in name_by_role:
        labels = (name_by_role["label"],)
    unused = _unused_columns(header, roles, (*name_by_role.values(), *labels, *also_read))
    return Columns(name_by_role, labels, tuple(flags), tuple(unused))


def _choose_column(
    role: str, names_by_key: Mapping[str, Sequence[str]], request: RawRequest
) -> _Choice | None:
    """Return the column with a role; None if there is no such column.

    If a column has the name of the role, this column is chosen. Otherwise a column with
    another name for the role is chosen. If several names have the same key, the first one is
    used.

    Args:
        role: The role.
        names_by_key: Key from :func:`column_key` -> the names in the data with this key, in
            the order of the data.
        request: The request. Its method ``error`` makes the errors.

    Raises:
        DataError: No column has the name of the role, and several columns have another name
            for it.
    """
    role_key = column_key(role)
    alias_keys = dict.fromkeys(map(column_key, COLUMNS[role]))
    aliases = [names_by_key[key][0] for key in alias_keys if key in names_by_key]
    if role_key in names_by_key:
        flags = [f"column {alias} not used, since there is {role}" for alias in aliases]
        return _Choice(names_by_key[role_key][0], flags)
    if not aliases:
        return None
    if len(aliases) > 1:
        raise request.error(
            f"several columns could contain the {role}: {', '.join(sorted(aliases))}",
            hint=f"Rename the right column to {role}",
        )
    alias = aliases[0]
    if column_key(alias) == f"{role}s":  # the plural of a role needs no flag
        return _Choice(alias, [])
    return _Choice(alias, [f"column {alias} read as {role}"])


def _check_distinct_names(
    name_by_role: Mapping[str, str], names_by_key: Mapping[str, Sequence[str]], request: RawRequest
) -> None:
    """Check that the names of chosen columns are unique, even without case and punctuation.

    Raises:
        DataError: Another column has the name of a chosen column that is not the label column.
    """
    for role, name in name_by_role.items():
        same_key = names_by_key[column_key(name)]
        if role != "label" and len(same_key) > 1:
            raise request.error(
                f"several columns could contain the {role}: {', '.join(sorted(same_key))}",
                hint=f"Rename the right column to {role}, and remove the others",
            )


def common_columns(columns_of_files: Sequence[Columns], request: RawRequest) -> Columns:
    """Return the columns of a dataset that consists of several files.

    The result is the columns of the first file, but its field ``unused`` contains the unused
    columns of all files.

    Raises:
        DataError: A file has other column names than the first file.
    """
    columns = columns_of_files[0]
    unused: dict[str, None] = {}  # the keys are the names, in order
    num_different = 0
    for file_columns in columns_of_files:
        unused |= dict.fromkeys(file_columns.unused)
        if file_columns.name_by_role != columns.name_by_role:
            num_different += 1
    if num_different:
        raise request.error(
            f"{num_different} of {len(columns_of_files)} tables have other column names than the "
            "first table",
            hint="Give the columns the same names in all tables",
        )
    return replace(columns, unused=tuple(unused))


def _unused_columns(header: Sequence[str], roles: Sequence[str], used: Sequence[str]) -> list[str]:
    """Return the names of columns that are not read and cannot have a role.

    Args:
        header: Names of all columns in the data.
        roles: Roles of columns. A column that could have one of these roles is not in the
            result, because isweep reads it, flags it, or uses ``label_columns`` instead.
        used: Names of the columns that are read.
    """
    other_keys = set(map(column_key, used))
    for role in roles:
        other_keys.update(map(column_key, COLUMNS[role]))
    unused = []
    for name in header:
        is_readable = name.strip() and name.isprintable()
        if is_readable and column_key(name) not in other_keys:
            unused.append(name)
    return unused


def decode_one_hot(cells: Cells, request: RawRequest, row_name: Callable[[int], str]) -> list[str]:
    """Return the class of every row, from one-hot columns.

    Args:
        cells: Name of a class -> the cells of its column, which contain 0 or 1.
        request: The request. Its method ``error`` makes the errors.
        row_name: Function that returns the name of a row for messages.

    Raises:
        DataError: A row does not have exactly one 1.
    """
    classes = []
    rows_by_fault: defaultdict[str, list[int]] = defaultdict(list)
    for row, texts in enumerate(zip(*cells.values(), strict=True)):
        values = [ONE_HOT.get(text.strip().casefold()) for text in texts]
        row_classes = [name for name, value in zip(cells, values, strict=True) if value]
        if None in values:
            rows_by_fault["with text other than 0 and 1"].append(row)
        elif len(row_classes) > 1:
            rows_by_fault["of several classes"].append(row)
        elif not row_classes:
            rows_by_fault["of no class"].append(row)
        else:
            classes += row_classes
    if rows_by_fault:
        listed = []
        for fault, rows in rows_by_fault.items():
            listed.append(f"{len(rows)} {fault}, first {row_name(rows[0])}")
        raise request.error(
            f"some rows do not have exactly one 1 in the {len(cells)} label columns: "
            f"{', '.join(listed)}",
            hint="Remove these rows. isweep cannot use images of several classes",
        )
    return classes


class JoinedTables:
    """The rows of several tables as one table: the rows of the first table come first.

    A table is a table file, a Parquet file, or an image array with its labels.

    Attributes:
        cells: Name or role of a column -> the cells of all rows. If a table does not have the
            column, its rows have blank cells.
    """

    def __init__(self, tables: Sequence[Cells]) -> None:
        self._num_rows = [len(table["label"]) for table in tables]
        self._starts = [0, *accumulate(self._num_rows)]
        self.cells = self.join(tables)

    def join(self, tables: Sequence[Cells]) -> dict[str, list[str]]:
        """Join further columns of the same tables. A table without a column gets blank cells."""
        joined = {}
        for name in dict.fromkeys(chain(*tables)):
            column: list[str] = []
            for table, num_rows in zip(tables, self._num_rows, strict=True):
                column += table.get(name, [""] * num_rows)
            joined[name] = column
        return joined

    def table_of(self, row: int) -> int:
        """Return the index of the table that contains a row."""
        return bisect_right(self._starts, row) - 1

    def row_in_table(self, row: int) -> int:
        """Return the index of a row in its table."""
        return row - self._starts[self.table_of(row)]
