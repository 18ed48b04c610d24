"""Tables whose rows are records: JSON lines and Parquet, as lines of text cells like any other table.

Layout: ``metadata.jsonl`` and ``metadata.parquet`` of the ``imagefolder`` builder, in the ``datasets``
documentation ("Create an image dataset"); JSON lines as on https://jsonlines.org.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tasks.sources.binary_tables import MAX_COLUMNS, MAX_UNPACKED, TableError

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
