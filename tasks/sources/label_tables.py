"""Label tables read as text only, whatever file holds them: ids keep their zeros, "NA" stays "NA".

A table is text with any separator, JSON lines, xlsx, Parquet or SAS. It is given by its path, or by its
locator below the raw folder, which may lead into an archive.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from search_spaces.errors import DataError
from tasks.sources.base import RawRequest, SkipItem
from tasks.sources.binary_tables import TableError, read_sas, read_xlsx
from tasks.sources.raw import read_locator, read_plain
from tasks.sources.record_tables import read_jsonl, read_parquet

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
