"""Spreadsheets and SAS tables as lines of text cells, whatever they claim about their own size.

xlsx: ECMA-376 (SpreadsheetML) as read by openpyxl; ``sas7bdat``: as read by :func:`pandas.read_sas`.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

from tasks.sources.raw import PLAIN_METHODS

MAX_COLUMNS = 1_000
MAX_UNPACKED = 1 << 30
MAX_PART = 512 << 20
MAX_PARTS = 1_000
CHUNK = 1 << 22


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
        sizes = [member.file_size for member in members]
        honest = len(sizes) <= MAX_PARTS and all(_is_honest(body, member) for member in members)
    except (zipfile.BadZipFile, zlib.error, struct.error, OSError, ValueError, NotImplementedError):
        raise TableError("must be an xlsx workbook", "damaged") from None
    if not honest or sum(sizes) > MAX_UNPACKED or max(sizes, default=0) > MAX_PART:
        raise TableError(f"must unpack to less than {MAX_UNPACKED:,} bytes", "more, by its own account")


def _is_honest(body: bytes, member: zipfile.ZipInfo) -> bool:
    """Tell whether a member unpacks to no more than it declares: openpyxl asks for all of it at once."""
    if member.compress_type not in PLAIN_METHODS:
        return False
    if member.compress_type == zipfile.ZIP_STORED:
        return True
    name, extra = struct.unpack_from("<HH", body, member.header_offset + 26)
    start = member.header_offset + 30 + name + extra
    unpacker, packed, size = zlib.decompressobj(-15), body[start : start + member.compress_size], 0
    while packed and size <= member.file_size:
        size += len(unpacker.decompress(packed, CHUNK))
        packed = unpacker.unconsumed_tail
    return size <= member.file_size


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
