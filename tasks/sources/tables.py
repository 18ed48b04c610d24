"""Read tables of several formats. All cells are text, so that ids keep their leading zeros.

A table is text with a delimiter, JSON lines (https://jsonlines.org), xlsx (ECMA-376, as read
by openpyxl), Parquet, or SAS (as read by :func:`pandas.read_sas`). The documentation of
Hugging Face's ``datasets`` ("Create an image dataset") describes ``metadata.jsonl`` and
``metadata.parquet``.

The argument ``path`` of the functions below is the path of a table, or its locator below the
raw folder. A table with a locator may be in an archive.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from search_spaces.errors import DataError, did_you_mean, plural
from tasks.sources.base import RawRequest, SkipItem, first_of
from tasks.sources.raw import open_zip, read_locator, read_plain

COLUMNS = {
    "path": ("filename", "file_path", "image", "image_path", "img_path"),
    "image": ("img", "image_bytes", "bytes"),
    "label": ("labels", "class", "class_name", "label_name", "target", "cls", "y"),
    "group": (
        "groups",
        "patient_id",
        "patient",
        "subject_id",
        "subject",
        "participant_id",
        "case_id",
    ),
    "split": ("splits", "set", "subset", "partition", "fold_name"),
}
"""Role of a column, JSON key or array -> other names for this role. If no column has the name
of the role, isweep tries these names. The name ``image`` has two meanings. In a table of
paths, it is another name for ``path``. In a Parquet file with images, it is the role of the
images."""
GROUP_WORDS = ("patient", "subject", "participant", "person", "case", "lesion", "group")
"""A column whose name begins with one of these words probably contains groups."""
ATTRIBUTE_WORDS = ("age", "sex", "gender", "weight", "height", "size", "width", "position")
"""Names of columns that describe a patient or an image. Their values are never group ids."""
MAX_COLUMNS = 1_000
"""Largest number of columns of a table."""
MAX_UNPACKED_BYTES = 1 << 30
"""An unpacked workbook may have at most this number of bytes, and the cells of a Parquet file
may have this number of characters."""
MAX_WORKBOOK_PARTS = 1_000
"""Largest number of members of an xlsx file, which is a zip."""
MAX_CELL_LENGTH = 1 << 20
"""Largest number of characters in a cell of a text table."""
ROWS_AT_ONCE = 256
"""Number of Parquet rows that are converted to text at once."""
MAX_PEEKED_ROWS = 1_000
"""In every sheet except the first, isweep searches only this number of rows for a filled cell."""
NOT_ONE_VALUE = "several values"
"""Text that replaces a list, an object or bytes in a cell. Such a cell cannot be a path, label
or group."""
DELIMITERS = (",", ";", "\t", "|")
HEADER_NAME = re.compile(r"[^\W\d](?:[^\W\d]|[ -])*")
"""Pattern of column names that messages may show: words without digits. Such a name cannot be
an id, a date or a path."""
SHEET_NAME = re.compile(
    r"(sheet|table|tabelle|data|info|notes?|readme|images?|labels?|train|test)\s?\d{0,2}",
    re.IGNORECASE,
)
"""Pattern of sheet names that messages may show. These usual words cannot be a patient's
name."""
MANIFESTS = ("manifest.csv", "manifest.tsv", "metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Usual file names of a table in a folder of images."""
MAX_NAMED = 10
"""Largest number of names in one message or flag."""
MAX_NAME_LENGTH = 30
"""Largest number of characters of a column's name in a message or flag."""


def column_key(name: str) -> str:
    """Return a column's name in lower case, without spaces, ``_`` and ``-``.

    Two names mean the same column if this function returns the same text for both.
    """
    return re.sub(r"[\s_-]+", "", name).casefold()


KNOWN_KEYS = frozenset(
    column_key(name) for column, aliases in COLUMNS.items() for name in (column, *aliases)
)
"""The :func:`column_key` of every name in :data:`COLUMNS`. A line with one of these names may
be a header."""


@dataclass(frozen=True)
class Sheet:
    """A sheet of a workbook.

    Attributes:
        number: Position in the workbook. The first sheet has the number 1.
        name: Name of the sheet, which may be the name of a patient.
        header: The cells of the first row that is not blank; empty for a blank sheet.
    """

    number: int
    name: str
    header: Sequence[str]

    @property
    def text(self) -> str:
        """The sheet as messages describe it.

        The text contains the sheet's number. It contains the sheet's name only if this name
        cannot identify a patient.
        """
        if SHEET_NAME.fullmatch(self.name):
            return f"sheet {self.number} ({self.name})"
        return f"sheet {self.number}"


@dataclass(frozen=True)
class TableRows:
    """The rows of a table as text.

    Messages contain the row numbers that other programs show. Spreadsheets and text editors
    number all rows, including the header and blank rows. In JSON lines, the number of a row is
    its line number. The first row of a Parquet file has the number 0, as in pandas.

    Attributes:
        rows: The header, then all rows that are not blank.
        numbers: For each of these rows, the row number that messages print. If the file has no
            header row (JSON lines, Parquet), ``numbers[0]`` is one less than the number of the
            first row.
        sheet: The sheet that contains these rows; None if the file is not a workbook.
        other_sheets: The further sheets of the workbook that have a filled cell. isweep does
            not read their rows.
    """

    rows: list[list[str]]
    numbers: Sequence[int]
    sheet: Sheet | None = None
    other_sheets: Sequence[Sheet] = ()

    def error_without(self, names: Collection[str], problem: str, *, hint: str) -> TableError:
        """Return the error for missing columns.

        If another sheet of the workbook has one of these columns, the message names this
        sheet.

        Args:
            names: Names of the missing columns.
            problem: The problem in words, see :class:`TableError`.
            hint: The hint if no other sheet has one of the columns.
        """
        keys = set(map(column_key, names))
        for sheet in self.other_sheets:
            columns = [name.strip() for name in sheet.header if column_key(name) in keys]
            if self.sheet is not None and columns:
                return TableError(
                    f"{problem}. isweep read only {self.sheet.text} of the workbook. The column "
                    f"{columns[0]!r} is in {sheet.text}",
                    hint=f"Make {sheet.text} the first sheet, or save this sheet as CSV",
                )
        return TableError(problem, hint=hint)


def describe_numbering(numbers: Sequence[int]) -> str:
    """Return a text for messages that explains the row numbers of a table.

    Args:
        numbers: The row numbers, see :class:`TableRows`.
    """
    if numbers[0] > 0:
        return f"the header is row {numbers[0]}"
    return f"the first row is {numbers[0] + 1}"


class RepeatedKeyError(ValueError):
    """Error for a JSON object that has a key twice. A dict could keep only one of the values."""


class TableError(Exception):
    """Error for a table that cannot be read.

    Args:
        problem: What is wrong with the table, such as ``is empty``. The message consists of
            the name of the table and this text. The text contains no cell of the table.
        hint: The action that fixes the problem.
    """

    def __init__(self, problem: str, *, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


def read_xlsx(body: bytes) -> TableRows:
    """Return the rows of a workbook's first sheet. Whole numbers are written without ``.0``.

    Raises:
        TableError: openpyxl is not installed, or the workbook is too large.
    """
    try:
        import openpyxl
    except ImportError:
        raise TableError(
            "needs openpyxl, which is not installed",
            hint="Run `pip install 'isweep[medical]'`",
        ) from None
    parts = open_zip(io.BytesIO(body), MAX_WORKBOOK_PARTS).infolist()
    if sum(part.file_size for part in parts) > MAX_UNPACKED_BYTES:
        raise TableError(
            f"is too large: it unpacks to more than {MAX_UNPACKED_BYTES:,} bytes",
            hint="Save it as .csv",
        )
    stream = io.BytesIO(body)
    book = openpyxl.load_workbook(stream, read_only=True, data_only=True, keep_links=False)
    sheet = book.worksheets[0]
    # Without this call, openpyxl pads every row to the declared width of the sheet. This width
    # may be wrong and very large.
    sheet.reset_dimensions()
    rows = []
    numbers = []
    for number, values in enumerate(sheet.iter_rows(values_only=True), 1):
        cells = list(map(_number_text, values))
        # Spreadsheets often have empty cells to the right of the data.
        while cells and not cells[-1].strip():
            cells.pop()
        _check_width(cells)
        if cells:
            rows.append(cells)
            numbers.append(number)
    width = max(map(len, rows), default=0)
    for row in rows:
        row += [""] * (width - len(row))
    other_sheets = []
    for number, other in enumerate(book.worksheets[1:], 2):
        header = _first_filled_row(other)
        if header:
            other_sheets.append(Sheet(number, other.title, header))
    first_sheet = Sheet(1, sheet.title, next(iter(rows), []))
    return TableRows(rows, numbers, first_sheet, other_sheets)


def _first_filled_row(sheet: Any) -> list[str]:
    """Return the first row of a sheet that is not blank.

    If the first :data:`MAX_PEEKED_ROWS` rows are blank, return an empty list.
    """
    sheet.reset_dimensions()
    for row in islice(sheet.iter_rows(values_only=True), MAX_PEEKED_ROWS):
        cells = list(map(cell_text, row))
        if "".join(cells).strip():
            return cells
    return []


def read_sas(body: bytes) -> TableRows:
    """Return the rows of a ``sas7bdat`` table. Missing values are empty."""
    import pandas as pd

    frame = pd.read_sas(io.BytesIO(body), format="sas7bdat", encoding="latin-1")
    rows = [list(map(str, frame.columns))]
    for values in frame.itertuples(index=False):
        rows.append(list(map(_number_text, values)))
    return TableRows(rows, range(len(rows)))


def read_jsonl(body: bytes) -> TableRows:
    """Return the rows of a file with one JSON object per line.

    The header consists of the keys of all objects.

    Raises:
        TableError: A line is not a JSON object, or an object has a key twice.
    """
    records = []
    numbers = [0]  # the header is not a line of the file
    keys: dict[str, None] = {}
    for number, line in enumerate(body.decode("utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = read_json(line)
        except RepeatedKeyError:
            raise TableError(
                f"has a key twice in line {number}", hint="Remove one of the two keys"
            ) from None
        except (ValueError, RecursionError):
            raise _not_an_object(number) from None
        if not isinstance(record, dict):
            raise _not_an_object(number)
        records.append(record)
        numbers.append(number)
        keys |= dict.fromkeys(record)
    _check_width(keys)
    header = list(keys)
    rows = [header]
    for record in records:
        rows.append([cell_text(record.get(key)) for key in header])
    return TableRows(rows, numbers)


def _not_an_object(line: int) -> TableError:
    """Return the error for a line of a file that is not a JSON object."""
    return TableError(
        f"has no JSON object in line {line}", hint="Write one JSON object in each line"
    )


def read_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        RepeatedKeyError: An object has a key twice.
        ValueError: The text is not JSON.
    """
    return json.loads(text, object_pairs_hook=_object_of)


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object as a dict.

    Raises:
        RepeatedKeyError: A key is repeated.
    """
    record = dict(pairs)
    if len(record) < len(pairs):
        raise RepeatedKeyError
    return record


def read_parquet(body: bytes) -> TableRows:
    """Return the rows of a Parquet file.

    Cells that contain bytes or several values become :data:`NOT_ONE_VALUE`.

    Raises:
        TableError: The cells contain too much text.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(io.BytesIO(body))
    header = list(file.schema_arrow.names)
    _check_width(header)
    is_several = (pa.types.is_nested, pa.types.is_binary, pa.types.is_large_binary)
    single_columns = []
    for column in file.schema_arrow:
        if not any(is_kind(column.type) for is_kind in is_several):
            single_columns.append(column.name)
    rows = [header]
    num_characters = 0
    batches = file.iter_batches(batch_size=ROWS_AT_ONCE, columns=single_columns, use_threads=False)
    for batch in batches:
        values = batch.to_pydict()
        texts = []
        for name in header:
            column = [NOT_ONE_VALUE] * batch.num_rows
            if name in values:
                column = list(map(cell_text, values[name]))
            texts.append(column)
        for row in zip(*texts, strict=True):
            rows.append(list(row))
            num_characters += sum(map(len, row))
        if num_characters > MAX_UNPACKED_BYTES:
            raise TableError(
                f"is too large: its cells have more than {MAX_UNPACKED_BYTES:,} characters",
                hint="Remove the columns that are not needed",
            )
    # The header is not a row of the file. The first row has the number 0, as in pandas.
    return TableRows(rows, range(-1, len(rows) - 1))


def read_text(body: bytes) -> TableRows:
    """Return the rows of a text with one of the :data:`DELIMITERS`. Blank lines are left out.

    A line above the header that begins with ``#`` is a comment. If such a line contains a name
    in :data:`COLUMNS`, it is the header.

    Raises:
        TableError: The text is not UTF-8, a quote is not closed, or a cell is too long.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TableError("is not UTF-8 text", hint="Save it as .csv in UTF-8") from None
    if "\0" in text:
        raise TableError(
            "is not text, because it contains bytes with the value 0",
            hint="Save it as .csv in UTF-8",
        )
    csv.field_size_limit(MAX_CELL_LENGTH)
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=_delimiter(text),
        strict=True,
        skipinitialspace=True,
    )
    rows = []
    numbers = []
    number = 0
    try:
        for number, row in enumerate(reader, 1):
            if any(map(str.strip, row)):
                rows.append(row)
                numbers.append(number)
    except csv.Error:
        raise TableError(
            f"has an unclosed quote, or a cell of more than {MAX_CELL_LENGTH:,} characters, "
            f"in the row after row {number}",
            hint="Close the quote, or shorten the cell",
        ) from None
    while rows and rows[0][0].startswith("#") and KNOWN_KEYS.isdisjoint(map(column_key, rows[0])):
        del rows[0]
        del numbers[0]
    return TableRows(rows, numbers)


def _delimiter(text: str) -> str:
    """Return the delimiter that is most frequent in the first line that is not a comment."""
    lines = [line for line in text.splitlines() if line.strip()]
    for line in lines:
        if not line.startswith("#"):
            return max(DELIMITERS, key=line.count)
    return max(DELIMITERS, key="".join(lines[:1]).count)


class TableFormat(NamedTuple):
    """A format of tables.

    Attributes:
        read: Function that returns the rows of a table from the bytes of its file.
        name: The format in words, for messages.
    """

    read: Callable[[bytes], TableRows]
    name: str


JSON_LINES = TableFormat(read_jsonl, "UTF-8 text with one JSON object per line")
READERS: dict[str, TableFormat] = {
    ".xlsx": TableFormat(read_xlsx, "an xlsx workbook"),
    ".sas7bdat": TableFormat(read_sas, "a SAS table"),
    ".jsonl": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".json": JSON_LINES,
    ".parquet": TableFormat(read_parquet, "a complete Parquet file"),
}
"""File name extension -> format of the table. A file with any other extension is read as text
with delimiters."""
SAVE_AGAIN = "Copy the table again, or save it as .csv. Its file extension must match its format"


def _check_width(cells: Collection[str]) -> None:
    """Check that a row has at most :data:`MAX_COLUMNS` cells.

    Raises:
        TableError: The row has more cells.
    """
    if len(cells) > MAX_COLUMNS:
        raise TableError(
            f"has more than {MAX_COLUMNS:,} columns",
            hint="Remove the columns that are not needed",
        )


def label_text(value: object) -> str:
    """Return a value of an array as text. Bytes that are not UTF-8 are escaped."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return cell_text(value)


def cell_text(value: object) -> str:
    """Return a value as text.

    None and NaN become an empty text. Lists, objects and bytes become :data:`NOT_ONE_VALUE`.
    """
    if value is None or value != value:  # NaN and NaT are not equal to themselves
        return ""
    if isinstance(value, (list, dict, bytes)):
        return NOT_ONE_VALUE
    return str(value)


def _number_text(value: object) -> str:
    """Return a value as text. If a float is a whole number, the text does not end with ``.0``."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return cell_text(value)


def read_table(
    path: Path | str, request: RawRequest, needed: Sequence[str], optional: Sequence[str] = ()
) -> list[dict[str, str]]:
    """Return each row of a table as a dict: column name -> text of the cell.

    Spaces at the start and end of a cell are removed. :func:`read_columns` and
    :func:`read_table_rows` describe the arguments and errors.
    """
    columns = read_columns(path, read_table_rows(path, request), request, needed, optional)
    for name, column in columns.items():
        columns[name] = list(map(str.strip, column))
    rows = []
    for cells in zip(*columns.values(), strict=True):
        rows.append(dict(zip(columns, cells, strict=True)))
    return rows


def read_columns(
    path: Path | str,
    table: TableRows,
    request: RawRequest,
    needed: Sequence[str],
    optional: Sequence[str],
) -> dict[str, list[str]]:
    """Return columns of a table: name -> the text of its cells.

    The column names are compared by their :func:`column_key`. No message contains a cell below
    the header.

    Args:
        path: Path or locator of the table, for errors.
        table: The rows of the table.
        request: The request. Its method ``error`` makes the errors.
        needed: Names of columns that the table must have.
        optional: Names of columns that are returned if the table has them.

    Raises:
        DataError: The table is empty, columns are missing or repeated, or rows have different
            lengths.
    """
    names = dict.fromkeys((*needed, *optional))
    try:
        _check_columns(table, needed, list(names))
        _check_row_lengths(table)
    except TableError as error:
        raise _error(request, path, error.problem, hint=error.hint) from None
    keys = list(map(column_key, table.rows[0]))
    columns = {}
    for name in names:
        if column_key(name) in keys:
            index = keys.index(column_key(name))
            columns[name] = [row[index] for row in table.rows[1:]]
    return columns


def _check_columns(table: TableRows, needed: Sequence[str], names: Sequence[str]) -> None:
    """Check that a table has all needed columns, and that no column is repeated.

    Args:
        table: The rows of the table.
        needed: Names of columns that the table must have.
        names: Names of all columns that are read.

    Raises:
        TableError: The table is empty, or columns are missing or repeated.
    """
    if not table.rows:
        hint = "Use a table with a header and rows"
        raise table.error_without(needed, "is empty", hint=hint)
    keys = list(map(column_key, table.rows[0]))
    missing = [name for name in needed if column_key(name) not in keys]
    if missing:
        similar = ""
        if is_header(table.rows[0], names):
            keys_read = set(map(column_key, names))
            other_names = [cell for cell in table.rows[0] if column_key(cell) not in keys_read]
            similar = did_you_mean(missing[0], other_names)
        listed = ", ".join(map(repr, missing))
        raise table.error_without(
            missing,
            f"has no column {listed}{describe_header(table.rows[0], names)}",
            hint=f"Add this column. {similar}If it has another name, rename it to {missing[0]!r}",
        )
    repeated = [name for name in names if keys.count(column_key(name)) > 1]
    if repeated:
        raise TableError(
            f"has several columns named {', '.join(repeated)}", hint="Rename all but one of them"
        )


def cells_of_columns(table: TableRows, names: Sequence[str]) -> dict[str, list[str]]:
    """Return columns of a table: name -> the text of its cells.

    Columns that are missing or repeated are left out.
    """
    header = table.rows[0]
    columns = {}
    for name in names:
        if header.count(name) == 1:
            index = header.index(name)
            columns[name] = [row[index] for row in table.rows[1:]]
    return columns


def _check_row_lengths(table: TableRows) -> None:
    """Check that every row has as many cells as the header.

    Raises:
        TableError: A row has another number of cells.
    """
    width = len(table.rows[0])
    ragged = []
    for number, row in zip(table.numbers, table.rows, strict=True):
        if len(row) != width:
            ragged.append(number)
    if ragged:
        count = plural(len(ragged), "row")
        raise TableError(
            f"has {count} with more or fewer cells than the header, which has {width} cells. "
            f"The first of these is row {ragged[0]} ({describe_numbering(table.numbers)})",
            hint=f"Write {width} cells in every row",
        )


def read_table_rows(path: Path | str, request: RawRequest) -> TableRows:
    """Return the header and rows of a table.

    Args:
        path: Path or locator of the table. The extension decides the format.
        request: The request. It contains the raw folder to which locators are relative.

    Raises:
        DataError: The table cannot be read, or its format does not match its extension.
    """
    text = TableFormat(read_text, "text")
    table_format = READERS.get(PurePath(path).suffix.lower(), text)
    try:
        body = read_plain(path) if isinstance(path, Path) else read_locator(request.base(), path)
        return table_format.read(body)
    except TableError as error:
        raise _error(request, path, error.problem, hint=error.hint) from None
    except SkipItem as skip:
        raise _error(request, path, f"cannot be read: {skip.reason}", hint=SAVE_AGAIN) from None
    except Exception as error:  # of any type; its text may contain cells, so it is not shown
        problem = f"is not {table_format.name} ({type(error).__name__})"
        raise _error(request, path, problem, hint=SAVE_AGAIN) from None


def column_keys(path: Path | str, request: RawRequest) -> set[str]:
    """Return the :func:`column_key` of every column of a table; empty for an unreadable table."""
    try:
        rows = read_table_rows(path, request).rows
    except DataError:
        return set()
    return set(map(column_key, rows[0] if rows else ()))


def flags_for_unused_columns(
    names: Sequence[str],
    group_like: Collection[str] = (),
) -> list[str]:
    """Return flags for columns that are not read.

    A column that may contain groups gets a separate flag. If isweep ignores groups, the
    training set and the test set may both contain images of one patient.

    Args:
        names: Names of the columns that are not read.
        group_like: The columns whose values look like patient ids.
    """
    flags: list[str] = []
    others: list[str] = []
    for name in names:
        shown = name.strip()[:MAX_NAME_LENGTH]
        if is_name_of_groups(name):
            flags.append(f"column {shown} not used: do its images belong together? call it group")
        elif name in group_like and not is_name_of_attribute(name):
            flags.append(
                f"column {shown} not used, but its values repeat like ids of patients: do its "
                "images belong together? call it group"
            )
        else:
            others.append(shown)
    if others:
        flags.append(f"columns not used: {first_of(others, MAX_NAMED)}")
    return flags


def is_name_of_groups(name: str) -> bool:
    """Return whether a column's name, such as ``Patient No``, suggests that it contains groups."""
    key = column_key(name)
    return key.startswith(GROUP_WORDS) and not is_name_of_attribute(name)


def is_name_of_attribute(name: str) -> bool:
    """Return whether a column describes a patient or an image, such as ``PatientAge``."""
    key = column_key(name)
    for word in GROUP_WORDS:
        key = key.removeprefix(word)
    return key in ATTRIBUTE_WORDS


def _error(
    request: RawRequest,
    path: Path | str,
    problem: str,
    *,
    hint: str = "",
) -> DataError:
    """Return an error about a table.

    If the path that the user gave is the table itself, the message says "the table". Otherwise
    the message contains the keyed hash of the table's name.
    """
    subject = f"table {request.hashed(PurePath(path).name)}"
    if request.raw is not None and PurePath(path) == request.raw:
        subject = "the table"
    return request.error(f"{subject} {problem}", hint=hint)


def describe_header(row: Sequence[str], expected_names: Sequence[str] = ()) -> str:
    """Return the end of a message about missing columns, with the names in a table's first line.

    If the line is perhaps not a header, the text says so and contains no name, because the
    line may contain the data of a patient.

    Args:
        row: The cells of the line.
        expected_names: Names that only a header contains, besides those in :data:`COLUMNS`.
    """
    if not is_header(row, expected_names):
        return "; its first line is perhaps not a header"
    names = map(str.strip, row)
    return f" among {first_of((name[:MAX_NAME_LENGTH] for name in names), MAX_NAMED)}"


def is_header(row: Sequence[str], expected_names: Sequence[str] = ()) -> bool:
    """Return whether a line of a table is surely a header. Two conditions must be met.

    - The line has no digit, dot or slash. Ids, dates, class numbers and paths contain these
      characters.
    - The line contains a name in :data:`COLUMNS` or ``expected_names``.
    """
    names = list(map(str.strip, row))
    known_keys = KNOWN_KEYS.union(map(column_key, expected_names))
    are_words = all(map(HEADER_NAME.fullmatch, names))
    return are_words and not known_keys.isdisjoint(map(column_key, names))


def first_hashed(request: RawRequest, names: Sequence[str]) -> str:
    """Format the number of names and the keyed hashes of the first five."""
    if not names:
        return "0"
    hashes = ", ".join(map(request.hashed, names[:5]))
    return f"{len(names):,} (hashes of the first names: {hashes})"
