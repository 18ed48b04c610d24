"""Label tables (CSV, ``|``-separated text, xlsx) read as text only: ids keep their zeros, "NA" stays "NA"."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from search_spaces.errors import DataError
from tasks.sources.base import RawRequest, SkipItem
from tasks.sources.files import open_plain

DELIMITERS = (",", ";", "\t", "|")
MAX_CELL = 1 << 20
HEADER_NAME = re.compile(r"[^\W\d](?:[^\W\d]|[ -])*")
MAX_SHOWN = 10
MAX_SHOWN_LENGTH = 30


def read_table(
    path: Path, request: RawRequest, needed: Sequence[str], optional: Sequence[str] = ()
) -> list[dict[str, str]]:
    """Return the rows of a table as dicts of stripped text, with the needed and optional columns only.

    A byte-order mark, CRLF, quotes and newlines in quotes, and any of ``, ; tab |`` are accepted. Column
    names are matched without regard to case and surrounding blanks.

    Raises:
        DataError: for a missing file, missing or repeated columns, ragged rows, or text that is not UTF-8;
            no cell below the header is ever quoted.
    """
    rows = read_lines(path, request)
    if not rows:
        raise _error(request, path, "must have a header line", "no line at all")
    columns, body = _columns(rows[0], needed, optional, path, request), rows[1:]
    ragged = sum(len(row) != len(rows[0]) for row in body)
    if ragged:
        found = f"{ragged} lines with another number of columns"
        raise _error(request, path, f"must have {len(rows[0])} columns in every line", found)
    return [{name: row[place].strip() for name, place in columns.items()} for row in body]


def read_lines(path: Path, request: RawRequest) -> list[list[str]]:
    """Return the lines of a table without blank ones, header and all, as text cells.

    Raises:
        DataError: see :func:`read_table`.
    """
    try:
        body = open_plain(path)
    except SkipItem as skip:
        raise _error(request, path, "must be readable", skip.reason) from None
    is_book = path.suffix.lower() == ".xlsx"
    return _read_xlsx(body, path, request) if is_book else _read_text(body, path, request)


def _error(request: RawRequest, path: Path, rule: str, found: str) -> DataError:
    return DataError(f"{request.dataset.name}: table {request.hashed(path.name)} {rule}", found)


def _header_names(row: Sequence[str]) -> str:
    """Spell the names in a header line; nothing of a line that may be data, for want of a header.

    Paths, ids, dates and class numbers all have a digit, dot or slash somewhere in their line.
    """
    names = [cell.strip() for cell in row]
    if not all(map(HEADER_NAME.fullmatch, names)):
        return "; the first line may be no header"
    more = ", ..." if len(names) > MAX_SHOWN else ""
    return f" among {', '.join(name[:MAX_SHOWN_LENGTH] for name in names[:MAX_SHOWN])}{more}"


def _columns(
    row: Sequence[str], needed: Sequence[str], optional: Sequence[str], path: Path, request: RawRequest
) -> dict[str, int]:
    header = [cell.strip().casefold() for cell in row]
    missing = [name for name in needed if name.casefold() not in header]
    if missing:
        found = f"no {', '.join(missing)}{_header_names(row)}"
        raise _error(request, path, f"must have the columns {', '.join(needed)}", found)
    wanted = [name for name in (*needed, *optional) if name.casefold() in header]
    repeated = [name for name in wanted if header.count(name.casefold()) > 1]
    if repeated:
        raise _error(request, path, "must have each column once", f"{', '.join(repeated)} repeated")
    return {name: header.index(name.casefold()) for name in wanted}


def _read_text(body: bytes, path: Path, request: RawRequest) -> list[list[str]]:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _error(request, path, "must be UTF-8 text", "other bytes; save it as UTF-8") from None
    if "\0" in text:
        raise _error(request, path, "must be text", "zero bytes")
    first = text.split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=first.count)
    csv.field_size_limit(MAX_CELL)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        return [row for row in reader if any(cell.strip() for cell in row)]
    except csv.Error:
        raise _error(request, path, "must be well-formed", "broken quotes or a huge cell") from None


def _read_xlsx(body: bytes, path: Path, request: RawRequest) -> list[list[str]]:
    """Return the first sheet's rows as text; numbers that are whole lose their ``.0``."""
    try:
        import openpyxl
    except ImportError:
        raise _error(
            request, path, "needs openpyxl", "not installed: pip install 'isweep[medical]'"
        ) from None
    check_zip(body, path, request)
    try:
        book = openpyxl.load_workbook(io.BytesIO(body), read_only=True, data_only=True, keep_links=False)
        rows = [[_cell(value) for value in row] for row in book.worksheets[0].iter_rows(values_only=True)]
    except Exception as error:  # openpyxl raises whatever its XML and zip readers do
        raise _error(request, path, "must be an xlsx workbook", type(error).__name__) from None
    rows = [row for row in rows if any(row)]
    width = max((len(row) for row in rows), default=0)
    return [row + [""] * (width - len(row)) for row in rows]


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def check_zip(body: bytes | Path, path: Path, request: RawRequest, max_bytes: int = 1 << 30) -> None:
    """Refuse archives that would unpack to more than they should, before unpacking anything.

    Raises:
        DataError: for damage, encryption, repeated, absolute or ``..`` names, and declared sizes above the
            limit.
    """
    import zipfile

    try:
        with zipfile.ZipFile(io.BytesIO(body) if isinstance(body, bytes) else body) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError):
        raise _error(request, path, "must be a whole archive", "damaged") from None
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise _error(request, path, "must have each member once", "repeated names")
    if any(member.flag_bits & 1 for member in members):
        raise _error(request, path, "must not be encrypted", "encrypted members")
    if any(name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") for name in names):
        raise _error(request, path, "must hold plain names", "names that lead elsewhere")
    if len(names) > 1000 or sum(member.file_size for member in members) > max_bytes:
        raise _error(
            request, path, f"must unpack to less than {max_bytes:,} bytes", "more, by its own account"
        )


def first_hashed(request: RawRequest, names: Iterable[str], limit: int = 5) -> str:
    """Spell the first few names as keyed hashes."""
    listed = list(names)
    shown = ", ".join(request.hashed(name) for name in listed[:limit])
    return f"{len(listed)}, first (hashed) {shown}" if listed else "0"
