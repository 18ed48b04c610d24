"""Read tables of any format, all cells as text: ids keep their zeros, and "NA" stays "NA".

A table is text with a separator, JSON lines (https://jsonlines.org), xlsx (ECMA-376, as read by
openpyxl), Parquet, or SAS (as read by :func:`pandas.read_sas`). ``metadata.jsonl`` and
``metadata.parquet`` follow the ``datasets`` documentation ("Create an image dataset").

A table is given by its path, or by its locator below the raw folder, which may lead into an
archive.
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

from search_spaces.errors import DataError, plural
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
"""Our name of a column, JSON key or array -> other usual names, used if ours is not there."""
GROUP_WORDS = ("patient", "subject", "participant", "person", "case", "lesion", "group")
"""Beginnings of the names of columns that may tell which images belong together."""
MAX_COLUMNS = 1_000
MAX_UNPACKED_BYTES = 1 << 30
"""Bytes of a workbook after unpacking, or characters of a Parquet file's cells."""
MAX_WORKBOOK_PARTS = 1_000
"""Members of the zip that an xlsx file is."""
MAX_CELL_LENGTH = 1 << 20
"""Characters of a cell in a text table."""
ROWS_AT_ONCE = 256
"""Rows of Parquet that are converted to text at once."""
MAX_PEEKED_ROWS = 1_000
"""Rows in which a filled cell is searched, of a sheet that is not read."""
REPEATED_KEY = "a key twice"
SEVERAL = "several values"
"""Text of a list, an object or bytes in a cell; none of them can be a path, label or group."""
DELIMITERS = (",", ";", "\t", "|")
HEADER_NAME = re.compile(r"[^\W\d](?:[^\W\d]|[ -])*")
"""Name of a column that may be shown: words without digits, so it is no id, date or path."""
MANIFESTS = ("manifest.csv", "manifest.tsv", "metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Usual file names of a table that lies in a folder of images."""
MAX_NAMED = 10
"""Names in one message or flag."""
MAX_NAME_LENGTH = 30
"""Characters of a column's name in a message or flag."""


@dataclass(frozen=True)
class Lines:
    """The rows of a table as text.

    Row numbers in messages are those that a viewer of the file shows. Spreadsheets and editors
    number all rows, the header and blank ones too. JSON lines are numbered by line, and rows of
    Parquet from 0, as in pandas.

    Attributes:
        rows: The header, then all rows that are not blank.
        numbers: Number of each of these rows. If the header is no row of the file, its number is
            one below the first.
        other_sheets: Number of sheets of a workbook that hold something and are not read.
    """

    rows: list[list[str]]
    numbers: Sequence[int]
    other_sheets: int = 0


def counting(numbers: Sequence[int]) -> str:
    """Describe how a table's rows are counted, from the ``numbers`` of its :class:`Lines`."""
    if numbers[0] > 0:
        return f"the header is row {numbers[0]}"
    return f"the first row is {numbers[0] + 1}"


class TableError(Exception):
    """A table that cannot be read.

    Args:
        problem: What is wrong, to follow the table's name; it quotes no cell.
        hint: What to do.
    """

    def __init__(self, problem: str, *, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


def read_xlsx(body: bytes) -> Lines:
    """Return the first sheet's rows; whole numbers lose their ``.0``.

    Raises:
        TableError: openpyxl is missing, or the workbook unpacks to too much.
    """
    try:
        import openpyxl
    except ImportError:
        raise TableError(
            "needs openpyxl, which is not installed", hint="Run `pip install 'isweep[medical]'`"
        ) from None
    parts = open_zip(io.BytesIO(body), MAX_WORKBOOK_PARTS).infolist()
    if sum(part.file_size for part in parts) > MAX_UNPACKED_BYTES:
        raise TableError(f"declares more than {MAX_UNPACKED_BYTES:,} bytes")
    stream = io.BytesIO(body)
    book = openpyxl.load_workbook(stream, read_only=True, data_only=True, keep_links=False)
    sheet = book.worksheets[0]
    # openpyxl pads every row to the declared size of the sheet, which may be wrong and huge.
    sheet.reset_dimensions()
    rows = []
    numbers = []
    for number, values in enumerate(sheet.iter_rows(values_only=True), 1):
        cells = list(map(_number_text, values))
        # Cells that are formatted but empty often follow the data.
        while cells and not cells[-1].strip():
            cells.pop()
        _check_width(cells)
        if cells:
            rows.append(cells)
            numbers.append(number)
    width = max(map(len, rows), default=0)
    for row in rows:
        row += [""] * (width - len(row))
    other_sheets = sum(map(_is_filled, book.worksheets[1:]))
    return Lines(rows, numbers, other_sheets)


def _is_filled(sheet: Any) -> bool:
    """Return whether one of the first rows of a sheet has a cell that is not blank."""
    sheet.reset_dimensions()
    first_rows = islice(sheet.iter_rows(values_only=True), MAX_PEEKED_ROWS)
    return any("".join(map(cell_text, row)).strip() for row in first_rows)


def read_sas(body: bytes) -> Lines:
    """Return the rows of a ``sas7bdat`` table; missing values are empty."""
    import pandas as pd

    frame = pd.read_sas(io.BytesIO(body), format="sas7bdat", encoding="latin-1")
    rows = [list(map(str, frame.columns))]
    for values in frame.itertuples(index=False):
        rows.append(list(map(_number_text, values)))
    return Lines(rows, range(len(rows)))


def read_jsonl(body: bytes) -> Lines:
    """Return JSON objects, one a line, as rows below a header of all their keys.

    Raises:
        TableError: A line holds something else.
    """
    records = []
    numbers = [0]  # the header is no line of the file
    keys: dict[str, None] = {}
    for number, line in enumerate(body.decode("utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = read_json(line)
        except (ValueError, RecursionError) as error:
            reason = f" ({REPEATED_KEY})" if str(error) == REPEATED_KEY else ""
            raise TableError(f"has no JSON object in line {number}{reason}") from None
        if not isinstance(record, dict):
            raise TableError(f"has no JSON object in line {number}")
        records.append(record)
        numbers.append(number)
        keys |= dict.fromkeys(record)
    _check_width(keys)
    header = list(keys)
    rows = [header]
    for record in records:
        rows.append([cell_text(record.get(key)) for key in header])
    return Lines(rows, numbers)


def read_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: It is no JSON, or an object has a key twice, so that a value would be lost.
    """
    return json.loads(text, object_pairs_hook=_object_of)


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict. Raises ValueError if a key is repeated."""
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError(REPEATED_KEY)
    return record


def read_parquet(body: bytes) -> Lines:
    """Return the rows of a Parquet file; cells of bytes or several values are :data:`SEVERAL`.

    Raises:
        TableError: Its cells take too much memory as text.
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
        blank = [SEVERAL] * batch.num_rows
        texts = [list(map(cell_text, values[name])) if name in values else blank for name in header]
        for row in zip(*texts, strict=True):
            rows.append(list(row))
            num_characters += sum(map(len, row))
        if num_characters > MAX_UNPACKED_BYTES:
            raise TableError(f"unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")
    # The header is no row of the file; pandas counts the rows from 0.
    return Lines(rows, range(-1, len(rows) - 1))


def read_text(body: bytes) -> Lines:
    """Return the lines of text with one of the :data:`DELIMITERS`, blank ones left out.

    A line above the header that begins with ``#`` is a comment, unless it has the usual name of a
    column.

    Raises:
        TableError: It is not UTF-8, or its quotes do not match.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TableError("is not UTF-8 text", hint="Save it as .csv in UTF-8") from None
    if "\0" in text:
        raise TableError("is not text: it has zero bytes", hint="Save it as .csv in UTF-8")
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
            f"has broken quotes or a huge cell in the row after {number}",
            hint="Close what is quoted",
        ) from None
    while rows and rows[0][0].startswith("#") and KNOWN_KEYS.isdisjoint(map(column_key, rows[0])):
        del rows[0]
        del numbers[0]
    return Lines(rows, numbers)


def _delimiter(text: str) -> str:
    """Return the delimiter with the most occurrences in the first line that is no comment."""
    lines = [line for line in text.splitlines() if line.strip()]
    for line in lines:
        if not line.startswith("#"):
            return max(DELIMITERS, key=line.count)
    return max(DELIMITERS, key="".join(lines[:1]).count)


class TableFormat(NamedTuple):
    """A format of tables.

    Attributes:
        read: Returns the lines in the bytes of a file.
        name: The format in words, for messages.
    """

    read: Callable[[bytes], Lines]
    name: str


JSON_LINES = TableFormat(read_jsonl, "UTF-8 text with one JSON object a line")
READERS: dict[str, TableFormat] = {
    ".xlsx": TableFormat(read_xlsx, "an xlsx workbook"),
    ".sas7bdat": TableFormat(read_sas, "a SAS table"),
    ".jsonl": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".json": JSON_LINES,
    ".parquet": TableFormat(read_parquet, "a whole Parquet file"),
}
"""Ending -> format of a table that is not text with delimiters."""
SAVE_AGAIN = "Copy it again, or save it as .csv. Its name must end as its format does"


def _check_width(cells: Collection[str]) -> None:
    """Check that a row has at most :data:`MAX_COLUMNS` cells."""
    if len(cells) > MAX_COLUMNS:
        raise TableError(f"has a cell to the right of column {MAX_COLUMNS:,}")


def label_text(value: object) -> str:
    """Return a value of an array as text. Bytes that are not UTF-8 are escaped."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return cell_text(value)


def cell_text(value: object) -> str:
    """Return a value as text: empty for None and NaN, :data:`SEVERAL` for lists and bytes."""
    if value is None or value != value:  # NaN and NaT are unequal to themselves
        return ""
    if isinstance(value, (list, dict, bytes)):
        return SEVERAL
    return str(value)


def _number_text(value: object) -> str:
    """Return a value as text, whole numbers without ``.0``: spreadsheets have only floats."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return cell_text(value)


def read_table(
    path: Path | str, request: RawRequest, needed: Sequence[str], optional: Sequence[str] = ()
) -> list[dict[str, str]]:
    """Return the rows of a table as dicts of stripped text, see :func:`read_columns`."""
    columns = read_columns(path, read_lines(path, request), request, needed, optional)
    for name, column in columns.items():
        columns[name] = list(map(str.strip, column))
    rows = []
    for cells in zip(*columns.values(), strict=True):
        rows.append(dict(zip(columns, cells, strict=True)))
    return rows


def read_columns(
    path: Path | str,
    lines: Lines,
    request: RawRequest,
    needed: Sequence[str],
    optional: Sequence[str],
) -> dict[str, list[str]]:
    """Return columns of a table by name, as they are written.

    Names of columns are compared by their :func:`column_key`. No message quotes a cell below the
    header.

    Args:
        path: Path or locator of the table, for errors.
        lines: Its lines.
        request: For errors.
        needed: Columns that must be there.
        optional: Columns that are returned if they are there.

    Raises:
        DataError: The table has no line, columns are missing or repeated, or rows are ragged.
    """
    if not lines.rows:
        raise _error(request, path, "is empty")
    keys = list(map(column_key, lines.rows[0]))
    names = dict.fromkeys((*needed, *optional))
    missing = [name for name in needed if column_key(name) not in keys]
    if missing:
        raise _error(
            request,
            path,
            f"has no column {', '.join(missing)}{header_names(lines.rows[0], tuple(names))}",
            hint=f"Call it {missing[0]}",
        )
    repeated = [name for name in names if keys.count(column_key(name)) > 1]
    if repeated:
        raise _error(request, path, f"has several columns named {', '.join(repeated)}")
    _check_even(path, lines, request)
    columns = {}
    for name in names:
        if column_key(name) in keys:
            index = keys.index(column_key(name))
            columns[name] = [row[index] for row in lines.rows[1:]]
    return columns


def _check_even(path: Path | str, table: Lines, request: RawRequest) -> None:
    """Check that every row has as many cells as the header."""
    width = len(table.rows[0])
    ragged = []
    for number, row in zip(table.numbers, table.rows, strict=True):
        if len(row) != width:
            ragged.append(number)
    if ragged:
        count = plural(len(ragged), "row")
        raise _error(
            request,
            path,
            f"has {count} with another number of cells than the {width} of the header; the first "
            f"is row {ragged[0]} ({counting(table.numbers)})",
        )


def read_lines(path: Path | str, request: RawRequest) -> Lines:
    """Return the header and rows of a table.

    Args:
        path: Path or locator of the table; its ending is that of its format.
        request: Where locators start, and for errors.

    Raises:
        DataError: It cannot be read, or not in this format.
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
    except Exception as error:  # readers raise almost anything, with cells in the text
        raise _error(
            request, path, f"is not {table_format.name} ({type(error).__name__})", hint=SAVE_AGAIN
        ) from None


def column_keys(path: Path | str, request: RawRequest) -> set[str]:
    """Return the :func:`column_key` of a table's columns; empty if it cannot be read."""
    try:
        rows = read_lines(path, request).rows
    except DataError:
        return set()
    return set(map(column_key, rows[0] if rows else ()))


def column_key(name: str) -> str:
    """Return a column's name without case, blanks, ``_`` and ``-``, to compare names."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def unused_flags(names: Sequence[str]) -> list[str]:
    """Return flags for columns that are not read.

    A column that may tell which images belong together is a question of its own: without it,
    images of one patient may be trained on and tested on.
    """
    flags: list[str] = []
    others: list[str] = []
    for name in names:
        if column_key(name).startswith(GROUP_WORDS):
            flags.append(f"column {name} not used: do its images belong together? call it group")
        else:
            others.append(name)
    if others:
        flags.append(f"columns not used: {first_of(others, MAX_NAMED)}")
    return flags


KNOWN_KEYS = frozenset(
    column_key(name) for column, aliases in COLUMNS.items() for name in (column, *aliases)
)


def _error(request: RawRequest, path: Path | str, problem: str, *, hint: str = "") -> DataError:
    """Return an error about a table, which it names by a hash."""
    return request.error(f"table {request.hashed(PurePath(path).name)} {problem}", hint=hint)


def header_names(row: Sequence[str], expected_names: Sequence[str] = ()) -> str:
    """Format the names in a header line for a message, unless the line may hold data.

    If a table has no header, its first line holds the data of a patient, which must not be shown.
    So the line is shown only if it has no digit, dot or slash, as ids, dates, class numbers and
    paths have, and if it contains a usual name of a column.

    Args:
        row: The cells of the line.
        expected_names: Further names that only a header contains.
    """
    names = list(map(str.strip, row))
    known_keys = KNOWN_KEYS.union(map(column_key, expected_names))
    are_words = all(map(HEADER_NAME.fullmatch, names))
    if not are_words or known_keys.isdisjoint(map(column_key, names)):
        return "; the first line may be no header"
    return f" among {first_of((name[:MAX_NAME_LENGTH] for name in names), MAX_NAMED)}"


def first_hashed(request: RawRequest, names: Sequence[str]) -> str:
    """Format how many names there are, and the keyed hashes of the first five."""
    if not names:
        return "0"
    return f"{len(names)}, first (hashed) {', '.join(map(request.hashed, names[:5]))}"
