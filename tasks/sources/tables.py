"""Label tables read as text only, whatever file holds them: ids keep their zeros, "NA" stays "NA".

A table is text with any separator, JSON lines (https://jsonlines.org), xlsx (ECMA-376, as read by openpyxl),
Parquet, or SAS (as read by :func:`pandas.read_sas`). It is given by its path, or by its locator below the raw
folder, which may lead into an archive.
"""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

from search_spaces.errors import DataError
from tasks.sources.base import RawRequest, SkipItem
from tasks.sources.raw import DAMAGE, RefusedArchive, check_zip_member, read_locator, read_plain

MAX_COLUMNS = 1_000
MAX_UNPACKED = 1 << 30
MAX_PART = 512 << 20
MAX_PARTS = 1_000


class TableError(Exception):
    """A table that cannot be read: ``rule`` it breaks, and what was found; neither quotes a cell."""

    def __init__(self, rule: str, found: str) -> None:
        super().__init__(rule, found)
        self.rule, self.found = rule, found


def read_xlsx(body: bytes) -> list[list[str]]:
    """Return the first sheet's rows as text; numbers that are whole lose their ``.0``.

    A lone cell far to the right or below costs nothing: cells beyond column 1,000 are refused by count, and
    rows are read one by one.

    Raises:
        TableError: for no workbook, a bomb, or too many columns.
    """
    try:
        import openpyxl
    except ImportError:
        raise TableError("needs openpyxl", "not installed: pip install 'isweep[medical]'") from None
    _check_parts(body)
    try:
        book = openpyxl.load_workbook(io.BytesIO(body), read_only=True, data_only=True, keep_links=False)
        sheet = book.worksheets[0]
        # What a sheet says of its own size decides how wide openpyxl pads every row; it may say anything.
        sheet.reset_dimensions()
        rows = []
        for values in sheet.iter_rows(values_only=True):
            cells = [_cell(value) for value in values]
            while cells and not cells[-1].strip():
                cells.pop()
            if len(cells) > MAX_COLUMNS:
                raise TableError(f"must have at most {MAX_COLUMNS:,} columns", "a cell further right")
            if cells:
                rows.append(cells)
    except TableError:
        raise
    except Exception as error:  # openpyxl raises whatever its XML and zip readers do
        raise TableError("must be an xlsx workbook", type(error).__name__) from None
    width = max(map(len, rows), default=0)
    return [row + [""] * (width - len(row)) for row in rows]


def _check_parts(body: bytes) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            members = archive.infolist()
        for member in members:
            check_zip_member(member)
    except RefusedArchive as refused:
        raise TableError("must be an xlsx workbook", refused.reason) from None
    except DAMAGE:
        raise TableError("must be an xlsx workbook", "damaged") from None
    sizes = [member.file_size for member in members]
    if len(sizes) > MAX_PARTS or sum(sizes) > MAX_UNPACKED or max(sizes, default=0) > MAX_PART:
        raise TableError(f"must unpack to less than {MAX_UNPACKED:,} bytes", "more, by its own account")


def read_sas(body: bytes) -> list[list[str]]:
    """Return a ``sas7bdat`` table as a header and rows of text; missing values are empty.

    Raises:
        TableError: when it is none or damaged.
    """
    import pandas as pd

    try:
        frame = pd.read_sas(io.BytesIO(body), format="sas7bdat", encoding="latin-1")
    except Exception as error:  # pandas' SAS reader raises almost anything on damaged files
        raise TableError("must be a SAS table", type(error).__name__) from None
    header = [str(name) for name in frame.columns]
    return [header, *([_cell(value) for value in row] for row in frame.itertuples(index=False))]


def _cell(value: object) -> str:
    if value is None or value != value:  # NaN and NaT are unequal to themselves
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


# Tables whose rows are records: JSON lines and Parquet, as lines of text cells like any other table.
#
# Layout: ``metadata.jsonl`` and ``metadata.parquet`` of the ``imagefolder`` builder, in the ``datasets``
# documentation ("Create an image dataset"); JSON lines as on https://jsonlines.org.

ROWS_AT_ONCE = 256
SEVERAL = "several values"
"""How a list or an object is spelt: no path, label or group can be one."""


def read_jsonl(body: bytes) -> list[list[str]]:
    """Return JSON objects, one a line, as a header of all their keys and rows of text.

    Raises:
        TableError: for other text, or too many keys.
    """
    try:
        records = [json.loads(line) for line in body.decode("utf-8-sig").splitlines() if line.strip()]
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise TableError("must have one JSON object a line, as UTF-8", "another line") from None
    if not all(isinstance(record, dict) for record in records):
        raise TableError("must have one JSON object a line", "another value")
    header = list(dict.fromkeys(key for record in records for key in record))
    _check_width(header)
    return [header, *([cell_text(record.get(key)) for key in header] for record in records)]


def jsonl_header(line: bytes) -> list[str]:
    """Return the keys in the first line of JSON lines; none when it is no object."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (UnicodeDecodeError, ValueError, RecursionError):
        return []
    return list(record) if isinstance(record, dict) else []


def read_parquet(body: bytes) -> list[list[str]]:
    """Return a Parquet file as a header and rows of text; columns of bytes or of several values hold none.

    Raises:
        TableError: for damage, too many columns, or text beyond a GiB.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(body))
        header = list(file.schema_arrow.names)
        _check_width(header)
        told = [name for name in header if not _is_many(file.schema_arrow.field(name).type)]
        rows, size = [header], 0
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=told, use_threads=False):
            cells = batch.to_pydict()
            for row in range(batch.num_rows):
                rows.append([cell_text(cells[name][row]) if name in cells else SEVERAL for name in header])
                size += sum(map(len, rows[-1]))
            if size > MAX_UNPACKED:
                raise TableError(f"must unpack to less than {MAX_UNPACKED:,} bytes", "more")
    except (OSError, pa.ArrowException, ValueError, MemoryError):
        raise TableError("must be a whole Parquet file", "damaged") from None
    return rows


def holds_images(path: Path) -> bool:
    """Tell whether a Parquet file holds the images themselves."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException, ValueError):
        return False
    return any(pa.types.is_struct(field.type) or _is_bytes(field.type) for field in schema)


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_many(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_nested(kind) or _is_bytes(kind))


def _check_width(header: Iterable[str]) -> None:
    if len(list(header)) > MAX_COLUMNS:
        raise TableError(f"must have at most {MAX_COLUMNS:,} columns", "more")


def label_text(value: object) -> str:
    """Spell a value of an array; bytes that are no UTF-8 stay apart from one another."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else cell_text(value)


def cell_text(value: object) -> str:
    """Spell a value as in a table of text: nothing and NaN are empty, several values are none."""
    if value is None or value != value:  # NaN is unequal to itself
        return ""
    return SEVERAL if isinstance(value, (list, dict, bytes)) else str(value)


DELIMITERS = (",", ";", "\t", "|")
MAX_CELL = 1 << 20
HEADER_NAME = re.compile(r"[^\W\d](?:[^\W\d]|[ -])*")
READERS = {".xlsx": read_xlsx, ".sas7bdat": read_sas, ".jsonl": read_jsonl, ".parquet": read_parquet}
"""Ending -> how a table is read that is not text with separators."""
MANIFESTS = (
    *("manifest.csv", "manifest.tsv"),
    *("metadata.csv", "metadata.jsonl", "metadata.parquet"),
)
"""What a table in a folder of images is called."""
MAX_SHOWN = 10
MAX_SHOWN_LENGTH = 30


def read_table(
    path: Path | str,
    request: RawRequest,
    needed: Sequence[str],
    optional: Sequence[str] = (),
    *,
    raw: Sequence[str] = (),
    lines: list[list[str]] | None = None,
) -> list[dict[str, str]]:
    """Return the rows of a table as dicts of text, with the needed and optional columns only.

    Cells are stripped but for the columns ``raw``; ``lines`` are those of the table, where they were read.

    A byte-order mark, CRLF, quotes and newlines in quotes, and any of ``, ; tab |`` are accepted. Column
    names are matched without regard to case, blanks, ``_`` and ``-``.

    Raises:
        DataError: for a missing file, missing or repeated columns, ragged rows, or text that is not UTF-8;
            no cell below the header is ever quoted.
    """
    rows = read_lines(path, request) if lines is None else lines
    if not rows:
        raise _error(request, path, "must have a header line", "no line at all")
    columns, body = _columns(rows[0], needed, optional, path, request), rows[1:]
    ragged = sum(len(row) != len(rows[0]) for row in body)
    if ragged:
        found = f"{ragged} lines with another number of columns"
        raise _error(request, path, f"must have {len(rows[0])} columns in every line", found)
    return [
        {name: row[place] if name in raw else row[place].strip() for name, place in columns.items()}
        for row in body
    ]


def read_lines(path: Path | str, request: RawRequest) -> list[list[str]]:
    """Return the lines of a table without blank ones, header and all, as text cells.

    Raises:
        DataError: see :func:`read_table`.
    """
    try:
        body = read_plain(path) if isinstance(path, Path) else read_locator(request.base(), path)
    except SkipItem as skip:
        raise _error(request, path, "must be readable", skip.reason) from None
    read = READERS.get(PurePath(path).suffix.lower(), _read_text)
    try:
        return read(body)
    except TableError as error:
        raise _error(request, path, error.rule, error.found) from None


def header_of(path: Path | str, request: RawRequest) -> list[str]:
    """Return the column names of a table as :func:`column_key` spells them; none when it is no table."""
    try:
        lines = read_lines(path, request)
    except DataError:
        return []
    return [column_key(cell) for cell in lines[0]] if lines else []


def column_key(name: str) -> str:
    """Spell a column's name without what people write differently: case, blanks, ``_`` and ``-``."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _error(request: RawRequest, path: Path | str, rule: str, found: str) -> DataError:
    return DataError(f"{request.dataset.name}: table {request.hashed(PurePath(path).name)} {rule}", found)


def header_names(row: Sequence[str]) -> str:
    """Spell the names in a header line; nothing of a line that may be data, for want of a header.

    Paths, ids, dates and class numbers all have a digit, dot or slash somewhere in their line.
    """
    names = [cell.strip() for cell in row]
    if not all(map(HEADER_NAME.fullmatch, names)):
        return "; the first line may be no header"
    more = ", ..." if len(names) > MAX_SHOWN else ""
    return f" among {', '.join(name[:MAX_SHOWN_LENGTH] for name in names[:MAX_SHOWN])}{more}"


def _columns(
    row: Sequence[str],
    needed: Sequence[str],
    optional: Sequence[str],
    path: Path | str,
    request: RawRequest,
) -> dict[str, int]:
    header = [column_key(cell) for cell in row]
    missing = [name for name in needed if column_key(name) not in header]
    if missing:
        found = f"no {', '.join(missing)}{header_names(row)}"
        raise _error(request, path, f"must have the columns {', '.join(needed)}", found)
    wanted = [name for name in (*needed, *optional) if column_key(name) in header]
    repeated = [name for name in wanted if header.count(column_key(name)) > 1]
    if repeated:
        raise _error(request, path, "must have each column once", f"{', '.join(repeated)} repeated")
    return {name: header.index(column_key(name)) for name in wanted}


def _read_text(body: bytes) -> list[list[str]]:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TableError("must be UTF-8 text", "other bytes; save it as UTF-8") from None
    if "\0" in text:
        raise TableError("must be UTF-8 text", "zero bytes; save it as UTF-8")
    first = text.split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=first.count)
    csv.field_size_limit(MAX_CELL)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        return [row for row in reader if any(cell.strip() for cell in row)]
    except csv.Error:
        raise TableError("must be well-formed", "broken quotes or a huge cell") from None


def first_hashed(request: RawRequest, names: Iterable[str], limit: int = 5) -> str:
    """Spell the first few names as keyed hashes."""
    listed = list(names)
    shown = ", ".join(request.hashed(name) for name in listed[:limit])
    return f"{len(listed)}, first (hashed) {shown}" if listed else "0"
