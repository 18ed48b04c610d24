"""Label tables read as text only, whatever file holds them: ids keep their zeros, "NA" stays "NA".

A table is text with any separator, JSON lines (https://jsonlines.org), xlsx (ECMA-376, as read by openpyxl),
Parquet, or SAS (as read by :func:`pandas.read_sas`); ``metadata.jsonl`` and ``metadata.parquet`` as in the
``datasets`` documentation ("Create an image dataset"). It is given by its path, or by its locator below the
raw folder, which may lead into an archive.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

from search_spaces.errors import DataError
from tasks.sources.base import RawRequest, SkipItem
from tasks.sources.raw import open_zip, read_locator, read_plain

COLUMNS = {
    "path": ("filename", "file_path", "image", "image_path", "img_path"),
    "image": ("img", "image_bytes", "bytes"),
    "label": ("labels", "class", "class_name", "label_name", "target", "cls", "y"),
    "group": ("groups", "patient_id", "patient", "subject_id", "subject", "participant_id", "case_id"),
    "split": ("splits", "set", "subset", "partition", "fold_name"),
}
"""What is asked of a table's columns, a .json's keys or a file's arrays -> other usual names of it, taken
only where it is not there under its own name."""
MAX_COLUMNS = 1_000
MAX_UNPACKED = 1 << 30
MAX_PARTS = 1_000
MAX_CELL = 1 << 20
ROWS_AT_ONCE = 256
MAX_BLANK_ROWS = 1_000
"""So far down a sheet that is not read is looked at."""
TWICE = "a key twice"
SEVERAL = "several values"
"""How a list or an object is spelt: no path, label or group can be one."""
DELIMITERS = (",", ";", "\t", "|")
HEADER_NAME = re.compile(r"[^\W\d](?:[^\W\d]|[ -])*")
MANIFESTS = ("manifest.csv", "manifest.tsv", "metadata.csv", "metadata.jsonl", "metadata.parquet")
"""What a table in a folder of images is called."""
MAX_SHOWN = 10
MAX_SHOWN_LENGTH = 30


Lines = list[list[str]]


class TableError(Exception):
    """A table that cannot be read: the rule it breaks, and what was found; neither quotes a cell."""


def read_xlsx(body: bytes) -> Lines:
    """Return the first sheet's rows as text; numbers that are whole lose their ``.0``."""
    try:
        import openpyxl
    except ImportError:
        raise TableError("needs openpyxl", "not installed: pip install 'isweep[medical]'") from None
    if sum(part.file_size for part in open_zip(io.BytesIO(body), MAX_PARTS).infolist()) > MAX_UNPACKED:
        raise TableError(f"must unpack to less than {MAX_UNPACKED:,} bytes", "more, by its own account")
    book = openpyxl.load_workbook(io.BytesIO(body), read_only=True, data_only=True, keep_links=False)
    sheet = book.worksheets[0]
    # What a sheet says of its own size decides how wide openpyxl pads every row; it may say anything.
    sheet.reset_dimensions()
    rows = []
    for values in sheet.iter_rows(values_only=True):
        cells = [_cell(value) for value in values]
        while cells and not cells[-1].strip():
            cells.pop()
        _check_width(cells)
        if cells:
            rows.append(cells)
    width = max(map(len, rows), default=0)
    return [row + [""] * (width - len(row)) for row in rows]


def read_sas(body: bytes) -> Lines:
    """Return a ``sas7bdat`` table as a header and rows of text; missing values are empty."""
    import pandas as pd

    frame = pd.read_sas(io.BytesIO(body), format="sas7bdat", encoding="latin-1")
    header = [str(name) for name in frame.columns]
    return [header, *([_cell(value) for value in row] for row in frame.itertuples(index=False))]


def read_jsonl(body: bytes) -> Lines:
    """Return JSON objects, one a line, as a header of all their keys and rows of text."""
    records = []
    for number, line in enumerate(body.decode("utf-8-sig").splitlines(), 1):
        try:
            records += [dict(**read_json(line))] if line.strip() else []
        except (ValueError, TypeError, RecursionError) as error:
            found = f"another in line {number}{f', {error}' if str(error) == TWICE else ''}"
            raise TableError("must have one JSON object a line", found) from None
    header = list(dict.fromkeys(key for record in records for key in record))
    _check_width(header)
    return [header, *([cell_text(record.get(key)) for key in header] for record in records)]


def read_json(text: str) -> Any:
    """Read JSON; a key that stands twice in an object is a ValueError, since one value would be lost."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError(TWICE)
        return found

    return json.loads(text, object_pairs_hook=once)


def read_parquet(body: bytes) -> Lines:
    """Return a Parquet file as a header and rows of text; columns of bytes or of several values hold none."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(io.BytesIO(body))
    header = list(file.schema_arrow.names)
    _check_width(header)
    told = [field.name for field in file.schema_arrow if not _is_many(field.type)]
    rows, size = [header], 0
    for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=told, use_threads=False):
        cells = batch.to_pydict()
        for row in range(batch.num_rows):
            rows.append([cell_text(cells[name][row]) if name in cells else SEVERAL for name in header])
            size += sum(map(len, rows[-1]))
        if size > MAX_UNPACKED:
            raise TableError(f"must unpack to less than {MAX_UNPACKED:,} bytes", "more")
    return rows


def read_text(body: bytes) -> Lines:
    """Return the lines of text with one of the :data:`DELIMITERS`, without blank ones.

    A line that begins with ``#`` above the header is a comment, unless it names a usual column.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TableError("must be UTF-8 text", "other bytes; save it as UTF-8") from None
    if "\0" in text:
        raise TableError("must be UTF-8 text", "zero bytes; save it as UTF-8")
    written = [line for line in text.splitlines() if line.strip()]
    first = next((line for line in written if not line.startswith("#")), "".join(written[:1]))
    delimiter = max(DELIMITERS, key=first.count)
    csv.field_size_limit(MAX_CELL)
    file = io.StringIO(text, newline="")
    reader = csv.reader(file, delimiter=delimiter, strict=True, skipinitialspace=True)
    rows: Lines = []
    try:
        rows += (row for row in reader if any(cell.strip() for cell in row))
    except csv.Error:
        found = f"broken quotes or a huge cell in the row after {len(rows)}"
        raise TableError("must be well-formed", f"{found}; close what is quoted") from None
    while rows and rows[0][0].startswith("#") and KNOWN.isdisjoint(map(column_key, rows[0])):
        del rows[0]
    return rows


READERS: dict[str, tuple[Callable[[bytes], Lines], str]] = {
    ".xlsx": (read_xlsx, "an xlsx workbook"),
    ".sas7bdat": (read_sas, "a SAS table"),
    ".jsonl": (read_jsonl, "UTF-8 text with one JSON object a line"),
    ".parquet": (read_parquet, "a whole Parquet file"),
}
"""Ending -> how a table is read that is not text with separators, and what it must be."""


def holds_images(path: Path) -> bool:
    """Tell whether a Parquet file holds the images themselves."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException, ValueError):
        return False
    kinds = (pa.types.is_struct, pa.types.is_binary, pa.types.is_large_binary)
    return any(is_kind(field.type) for field in schema for is_kind in kinds)


def _is_many(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _check_width(cells: Sequence[str]) -> None:
    if len(cells) > MAX_COLUMNS:
        raise TableError(f"must have at most {MAX_COLUMNS:,} columns", "a cell further right")


def label_text(value: object) -> str:
    """Spell a value of an array; bytes that are no UTF-8 stay apart from one another."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else cell_text(value)


def cell_text(value: object) -> str:
    """Spell a value as in a table of text: nothing and NaN are empty, several values are none."""
    if value is None or value != value:  # NaN and NaT are unequal to themselves
        return ""
    return SEVERAL if isinstance(value, (list, dict, bytes)) else str(value)


def _cell(value: object) -> str:
    return cell_text(int(value) if isinstance(value, float) and value.is_integer() else value)


def read_table(
    path: Path | str,
    request: RawRequest,
    needed: Sequence[str],
    optional: Sequence[str] = (),
    *,
    raw: Sequence[str] = (),
    lines: Lines | None = None,
) -> list[dict[str, str]]:
    """Return the rows of a table as dicts of text, with the needed and optional columns only.

    Cells are stripped but for the columns ``raw``; ``lines`` are those of the table, where they were read.
    Column names are matched without regard to case, blanks, ``_`` and ``-``. A missing file, missing or
    repeated columns, and ragged rows are a DataError; no cell below the header is ever quoted.
    """
    rows = read_lines(path, request) if lines is None else lines
    if not rows:
        raise _error(request, path, "must have a header line", "no line at all")
    header = [column_key(cell) for cell in rows[0]]
    if missing := [name for name in needed if column_key(name) not in header]:
        found = f"no {', '.join(missing)}{header_names(rows[0], (*needed, *optional))}"
        way_out = f"call it {missing[0]}"
        raise _error(request, path, f"must have the columns {', '.join(needed)}", found, way_out)
    wanted = [name for name in dict.fromkeys((*needed, *optional)) if column_key(name) in header]
    if repeated := [name for name in wanted if header.count(column_key(name)) > 1]:
        raise _error(request, path, "must have each column once", f"{', '.join(repeated)} repeated")
    if ragged := [number for number, row in enumerate(rows, 1) if len(row) != len(header)]:
        found = f"{len(ragged)} lines with another number of columns, first row {ragged[0]}"
        raise _error(request, path, f"must have {len(header)} columns in every line", found)
    places = {name: header.index(column_key(name)) for name in wanted}
    return [
        {name: row[place] if name in raw else row[place].strip() for name, place in places.items()}
        for row in rows[1:]
    ]


def read_lines(path: Path | str, request: RawRequest) -> Lines:
    """Return the lines of a table without blank ones, header and all, as text cells."""
    read, what = READERS.get(PurePath(path).suffix.lower(), (read_text, "text"))
    try:
        return read(read_plain(path) if isinstance(path, Path) else read_locator(request.base(), path))
    except TableError as error:
        raise _error(request, path, *error.args) from None
    except SkipItem as skip:
        raise _error(request, path, "must be readable", skip.reason) from None
    except Exception as error:  # readers raise almost anything on damaged files, with values in the text
        raise _error(request, path, f"must be {what}", type(error).__name__) from None


def other_sheets(path: Path, request: RawRequest) -> int:
    """Return how many sheets of a workbook hold something and are not read: all but the first."""
    if path.suffix.lower() != ".xlsx":
        return 0
    try:
        import openpyxl

        book = openpyxl.load_workbook(path, read_only=True, data_only=True, keep_links=False)
        found = 0
        for sheet in book.worksheets[1:]:
            sheet.reset_dimensions()
            rows = islice(sheet.iter_rows(values_only=True), MAX_BLANK_ROWS)
            found += any("".join(map(cell_text, row)).strip() for row in rows)
        return found
    except Exception as error:  # as in read_lines
        raise _error(request, path, "must be an xlsx workbook", type(error).__name__) from None


def header_of(path: Path | str, request: RawRequest) -> list[str]:
    """Return the column names of a table as :func:`column_key` spells them; none when it is no table."""
    try:
        lines = read_lines(path, request)
    except DataError:
        return []
    return [column_key(cell) for cell in lines[0]] if lines else []


def column_key(name: str) -> str:
    """Spell a column's name without what people write differently: case, blanks, ``_`` and ``-``."""
    return re.sub(r"[\s_-]+", "", name).casefold()


KNOWN = frozenset(column_key(name) for ours, others in COLUMNS.items() for name in (ours, *others))


def _error(request: RawRequest, path: Path | str, rule: str, found: str, way_out: str = "") -> DataError:
    where = f"{request.dataset.name}: table {request.hashed(PurePath(path).name)}"
    return DataError(f"{where} {rule}", found, way_out)


def header_names(row: Sequence[str], asked: Sequence[str] = ()) -> str:
    """Spell the names in a header line; nothing of a line that may be data, for want of a header.

    Paths, ids, dates and class numbers all have a digit, dot or slash somewhere in their line, and a header
    has a name that is usual or ``asked`` for.
    """
    names = [cell.strip() for cell in row]
    known = KNOWN.union(map(column_key, asked))
    if not all(map(HEADER_NAME.fullmatch, names)) or known.isdisjoint(map(column_key, names)):
        return "; the first line may be no header"
    more = ", ..." if len(names) > MAX_SHOWN else ""
    return f" among {', '.join(name[:MAX_SHOWN_LENGTH] for name in names[:MAX_SHOWN])}{more}"


def first_hashed(request: RawRequest, names: Sequence[str], limit: int = 5) -> str:
    """Spell how many names, and the first few as keyed hashes."""
    shown = ", ".join(map(request.hashed, names[:limit]))
    return f"{len(names)}, first (hashed) {shown}" if names else "0"
