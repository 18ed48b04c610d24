"""Label tables read as text only, whatever file holds them: ids keep their zeros, "NA" stays "NA".

A table is text with any separator, JSON lines (https://jsonlines.org), xlsx (ECMA-376, as read by
openpyxl), Parquet, or SAS (as read by :func:`pandas.read_sas`); ``metadata.jsonl`` and
``metadata.parquet`` as in the ``datasets`` documentation ("Create an image dataset"). It is given
by its path, or by its locator below the raw folder, which may lead into an archive.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
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
"""What is asked of a table's columns, a .json's keys or a file's arrays -> other usual names of it,
taken only where it is not there under its own name."""
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


class Lines(NamedTuple):
    """Rows of text, the header's first and no blank one, and the number that viewers of the file
    give each.

    Spreadsheets and editors count the header and blank rows; JSON lines have their line, Parquet
    rows that of pandas, from 0. A header that is no row of the file has the number before.
    ``other_sheets`` of a workbook hold something and are not read.
    """

    rows: list[list[str]]
    numbers: Sequence[int]
    other_sheets: int = 0


def counting(numbers: Sequence[int]) -> str:
    """Say how rows are numbered."""
    return (
        f"the header is row {numbers[0]}"
        if numbers[0] > 0
        else f"the first row is {numbers[0] + 1}"
    )


class TableError(Exception):
    """A table that cannot be read: the rule it breaks, and what was found; neither quotes a
    cell.
    """


def read_xlsx(body: bytes) -> Lines:
    """Return the first sheet's rows as text; numbers that are whole lose their ``.0``."""
    try:
        import openpyxl
    except ImportError:
        raise TableError("needs openpyxl", "not installed: pip install 'isweep[medical]'") from None
    if (
        sum(part.file_size for part in open_zip(io.BytesIO(body), MAX_PARTS).infolist())
        > MAX_UNPACKED
    ):
        raise TableError(
            f"must unpack to less than {MAX_UNPACKED:,} bytes", "more, by its own account"
        )
    book = openpyxl.load_workbook(
        io.BytesIO(body), read_only=True, data_only=True, keep_links=False
    )
    sheet = book.worksheets[0]
    # What a sheet says of its own size decides how wide openpyxl pads every row; it may say
    # anything.
    sheet.reset_dimensions()
    rows, numbers = [], []
    for number, values in enumerate(sheet.iter_rows(values_only=True), 1):
        cells = [_cell(value) for value in values]
        while cells and not cells[-1].strip():
            cells.pop()
        _check_width(cells)
        if cells:
            rows.append(cells)
            numbers.append(number)
    width, others = max(map(len, rows), default=0), 0
    for sheet in book.worksheets[1:]:
        sheet.reset_dimensions()
        first = islice(sheet.iter_rows(values_only=True), MAX_BLANK_ROWS)
        others += any("".join(map(cell_text, row)).strip() for row in first)
    return Lines([row + [""] * (width - len(row)) for row in rows], numbers, others)


def read_sas(body: bytes) -> Lines:
    """Return a ``sas7bdat`` table as a header and rows of text; missing values are empty."""
    import pandas as pd

    frame = pd.read_sas(io.BytesIO(body), format="sas7bdat", encoding="latin-1")
    header = [str(name) for name in frame.columns]
    rows = [header, *([_cell(value) for value in row] for row in frame.itertuples(index=False))]
    return Lines(rows, range(len(rows)))


def read_jsonl(body: bytes) -> Lines:
    """Return JSON objects, one a line, as a header of all their keys and rows of text."""
    records, numbers = [], [0]
    for number, line in enumerate(body.decode("utf-8-sig").split("\n"), 1):
        try:
            if not line.strip():
                continue
            records.append(read_json(line))
            numbers.append(number)
            if not isinstance(records[-1], dict):
                raise ValueError("another value")
        except (ValueError, RecursionError) as error:
            found = f"another in line {number}{f', {error}' if str(error) == TWICE else ''}"
            raise TableError("must have one JSON object a line", found) from None
    header = list(dict.fromkeys(key for record in records for key in record))
    _check_width(header)
    return Lines(
        [header, *([cell_text(record.get(key)) for key in header] for record in records)], numbers
    )


def read_json(text: str) -> Any:
    """Read JSON; a key that stands twice in an object is a ValueError, since one value would be
    lost.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError(TWICE)
        return found

    return json.loads(text, object_pairs_hook=once)


def read_parquet(body: bytes) -> Lines:
    """Return a Parquet file as a header and rows of text; columns of bytes or of several values
    hold none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(io.BytesIO(body))
    header = list(file.schema_arrow.names)
    _check_width(header)
    many = (pa.types.is_nested, pa.types.is_binary, pa.types.is_large_binary)
    told = [
        field.name
        for field in file.schema_arrow
        if not any(is_kind(field.type) for is_kind in many)
    ]
    rows, size = [header], 0
    for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=told, use_threads=False):
        cells = batch.to_pydict()
        for row in range(batch.num_rows):
            rows.append(
                [cell_text(cells[name][row]) if name in cells else SEVERAL for name in header]
            )
            size += sum(map(len, rows[-1]))
        if size > MAX_UNPACKED:
            raise TableError(f"must unpack to less than {MAX_UNPACKED:,} bytes", "more")
    return Lines(rows, range(-1, len(rows) - 1))


def read_text(body: bytes) -> Lines:
    """Return the lines of text with one of the :data:`DELIMITERS`, without blank ones.

    A line that begins with ``#`` above the header is a comment, unless it names a usual column.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TableError("must be UTF-8 text", "other bytes; save it as .csv in UTF-8") from None
    if "\0" in text:
        raise TableError("must be UTF-8 text", "zero bytes; save it as .csv in UTF-8")
    written = [line for line in text.splitlines() if line.strip()]
    first = next((line for line in written if not line.startswith("#")), "".join(written[:1]))
    delimiter = max(DELIMITERS, key=first.count)
    csv.field_size_limit(MAX_CELL)
    file = io.StringIO(text, newline="")
    reader = csv.reader(file, delimiter=delimiter, strict=True, skipinitialspace=True)
    rows, numbers, number = list[list[str]](), list[int](), 0
    try:
        for number, row in enumerate(reader, 1):
            if any(cell.strip() for cell in row):
                rows.append(row)
                numbers.append(number)
    except csv.Error:
        found = f"broken quotes or a huge cell in the row after {number}"
        raise TableError("must be well-formed", f"{found}; close what is quoted") from None
    while rows and rows[0][0].startswith("#") and KNOWN.isdisjoint(map(column_key, rows[0])):
        del rows[0], numbers[0]
    return Lines(rows, numbers)


READERS: dict[str, tuple[Callable[[bytes], Lines], str]] = {
    ".xlsx": (read_xlsx, "an xlsx workbook"),
    ".sas7bdat": (read_sas, "a SAS table"),
    **dict.fromkeys(
        (".jsonl", ".ndjson", ".json"), (read_jsonl, "UTF-8 text with one JSON object a line")
    ),
    ".parquet": (read_parquet, "a whole Parquet file"),
}
"""Ending -> how a table is read that is not text with separators, and what it must be."""
SAVE_AGAIN = "copy it again, or save it as .csv; its name must end as its format does"


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


def _check_width(cells: Sequence[str]) -> None:
    if len(cells) > MAX_COLUMNS:
        raise TableError(f"must have at most {MAX_COLUMNS:,} columns", "a cell further right")


def label_text(value: object) -> str:
    """Spell a value of an array; bytes that are no UTF-8 stay apart from one another."""
    return (
        value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else cell_text(value)
    )


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

    Cells are stripped but for the columns ``raw``; ``lines`` are those of the table, where they
    were read. Column names are matched without regard to case, blanks, ``_`` and ``-``. A missing
    file, missing or repeated columns, and ragged rows are a DataError; no cell below the header is
    ever quoted.
    """
    rows, numbers, _ = read_lines(path, request) if lines is None else lines
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
    if ragged := [
        number for number, row in zip(numbers, rows, strict=True) if len(row) != len(header)
    ]:
        found = (
            f"{plural(len(ragged), 'row')} with another number of columns, first row {ragged[0]}"
        )
        found += f" ({counting(numbers)})"
        raise _error(request, path, f"must have {len(header)} columns in every line", found)
    places = {name: header.index(column_key(name)) for name in wanted}
    return [
        {name: row[place] if name in raw else row[place].strip() for name, place in places.items()}
        for row in rows[1:]
    ]


def read_lines(path: Path | str, request: RawRequest) -> Lines:
    """Return the rows of a table, header and all, as text cells."""
    read, what = READERS.get(PurePath(path).suffix.lower(), (read_text, "text"))
    try:
        return read(
            read_plain(path) if isinstance(path, Path) else read_locator(request.base(), path)
        )
    except TableError as error:
        raise _error(request, path, *error.args) from None
    except SkipItem as skip:
        raise _error(request, path, "must be readable", skip.reason, SAVE_AGAIN) from None
    except (
        Exception
    ) as error:  # readers raise almost anything on damaged files, with values in the text
        raise _error(request, path, f"must be {what}", type(error).__name__, SAVE_AGAIN) from None


def header_of(path: Path | str, request: RawRequest) -> list[str]:
    """Return the column names of a table as :func:`column_key` spells them; none when it is no
    table.
    """
    try:
        rows = read_lines(path, request).rows
    except DataError:
        return []
    return [column_key(cell) for cell in rows[0]] if rows else []


def column_key(name: str) -> str:
    """Spell a column's name without what people write differently: case, blanks, ``_`` and
    ``-``.
    """
    return re.sub(r"[\s_-]+", "", name).casefold()


KNOWN = frozenset(column_key(name) for ours, others in COLUMNS.items() for name in (ours, *others))


def _error(
    request: RawRequest, path: Path | str, rule: str, found: str, way_out: str = ""
) -> DataError:
    return request.error(f"table {request.hashed(PurePath(path).name)} {rule}", found, way_out)


def header_names(row: Sequence[str], asked: Sequence[str] = ()) -> str:
    """Spell the names in a header line; nothing of a line that may be data, for want of a header.

    Paths, ids, dates and class numbers all have a digit, dot or slash somewhere in their line, and
    a header has a name that is usual or ``asked`` for.
    """
    names = [cell.strip() for cell in row]
    known = KNOWN.union(map(column_key, asked))
    if not all(map(HEADER_NAME.fullmatch, names)) or known.isdisjoint(map(column_key, names)):
        return "; the first line may be no header"
    return f" among {first_of((name[:MAX_SHOWN_LENGTH] for name in names), MAX_SHOWN)}"


def first_hashed(request: RawRequest, names: Sequence[str]) -> str:
    """Spell how many names, and the first few as keyed hashes."""
    shown = ", ".join(map(request.hashed, names[:5]))
    return f"{len(names)}, first (hashed) {shown}" if names else "0"
