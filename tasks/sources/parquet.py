"""Your own images inside Parquet files, as Hugging Face ``datasets`` stores them.

Layout: ``datasets`` documentation, "Image dataset" and ``Features``: a column ``image`` of ``struct<bytes:
binary, path: string>`` (or plain ``binary``) and a column ``label``; class names stand in the schema's
metadata under ``huggingface``. ``<raw>`` is one file or a folder of them; the split is the first word of a
file's name (``train-00000-of-00002.parquet``) or its folder's. A group column may be called ``group`` or
``patient_id``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from search_spaces.errors import DataError
from tasks.sources.archives import MARK
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem, Split
from tasks.sources.files import walk
from tasks.sources.image_files import decode_image
from tasks.sources.labels import check_spellings, is_missing, mapped_label, sort_labels
from tasks.sources.one_image import INTENSITY
from tasks.sources.splits import VALIDATION_LEFT_OUT, split_of

IMAGE_COLUMNS = ("image", "img", "image_bytes", "bytes")
LABEL_COLUMNS = ("label", "labels", "class", "target")
GROUP_COLUMNS = ("group", "patient_id")
ROWS_AT_ONCE = 32
MAX_LABEL = 1_000


class Parquet:
    """Rows of Parquet files, in the order of file names and rows."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per row.

        Raises:
            DataError: for damaged files, absent columns, missing labels, or a class spelt in two ways.
        """
        items: list[tuple[str, str, str, Split]] = []
        left_out = 0
        for name in _files(request):
            split = _split(name)
            found = list(_labels(request.base() / name, request))
            if split is None:
                left_out += len(found)
                continue
            items += [(f"{name}{MARK}{row}", label, group, split) for row, (label, group) in enumerate(found)]
        names = sort_labels(label for _, label, _, _ in items)
        check_spellings(names, request)
        if len(names) < 2:
            raise DataError(f"{request.dataset.name}: labels need two classes", f"{len(names)}")
        index = {name: label for label, name in enumerate(names)}
        return Listing(
            [Item(place, index[label], group, split) for place, label, group, split in items],
            names,
            excluded={VALIDATION_LEFT_OUT: left_out} if left_out else {},
            intensity=INTENSITY,
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of rows, cheap in rising order: a file is read forward, a few rows at a time."""
        base = request.base()
        opened: dict[str, _Stream] = {}

        def read(item: Item) -> tuple[Sample]:
            file, _, row = item.locator.rpartition(MARK)
            stream = opened.get(file)
            if stream is None or int(row) < stream.next_row:
                opened.clear()
                stream = opened[file] = _Stream(base / file)
            return (decode_image(stream.image(int(row))),)

        return read


def _files(request: RawRequest) -> list[str]:
    root = request.root()
    if root.is_file():
        return [root.name]
    names = [name for name in walk(root, request) if name.lower().endswith(".parquet")]
    if not names:
        raise DataError(f"{request.dataset.name}: the folder must hold .parquet files", "none")
    return names


def _split(name: str) -> Split | None:
    """Return the split that a file's name or folder gives."""
    parts = name.split("/")
    for word in (parts[-1].split(".")[0].split("-")[0], *parts[-2::-1]):
        if split_of(word) != "":
            return split_of(word)
    return ""


def _open(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, memory_map=False)
    except (OSError, pa.ArrowException, ValueError):
        raise SkipItem("damaged Parquet file") from None


def _column(file: Any, names: tuple[str, ...]) -> str | None:
    present = {name.casefold(): name for name in file.schema_arrow.names}
    return next((present[name] for name in names if name in present), None)


def _labels(path: Path, request: RawRequest) -> Iterator[tuple[str, str]]:
    """Yield label and group of every row.

    Raises:
        DataError: see :meth:`Parquet.list_items`.
    """
    import pyarrow as pa

    name, where = request.dataset.name, request.hashed(path.name)
    try:
        file = _open(path)
        label, group = _column(file, LABEL_COLUMNS), _column(file, GROUP_COLUMNS)
        if label is None or _column(file, IMAGE_COLUMNS) is None:
            shown = ", ".join(file.schema_arrow.names[:10])
            raise DataError(f"{name}: {where} must have columns image and label", f"it has {shown}")
        names = _class_names(file, label)
        for batch in file.iter_batches(batch_size=1024, columns=[label, *([group] if group else [])]):
            groups = batch.column(1).to_pylist() if group else [""] * len(batch)
            for value, patient in zip(batch.column(0).to_pylist(), groups, strict=True):
                yield _label(value, names, request), "" if patient is None else str(patient)
    except SkipItem as skip:
        raise DataError(f"{name}: {where} must be whole", skip.reason) from None
    except (OSError, pa.ArrowException, MemoryError):
        raise DataError(f"{name}: {where} must be whole", "damaged Parquet file") from None


def _label(value: object, names: tuple[str, ...], request: RawRequest) -> str:
    if isinstance(value, (list, dict, float)) or len(str(value)) > MAX_LABEL:
        rule = f"{request.dataset.name}: labels must be whole numbers or texts, one per image"
        raise DataError(rule, type(value).__name__)
    if isinstance(value, int) and names:
        if not 0 <= value < len(names):
            found = f"{value} of {len(names)} names"
            raise DataError(f"{request.dataset.name}: labels must be numbers of the class names", found)
        return mapped_label(names[value], request)
    text = mapped_label("" if value is None else str(value), request)
    if is_missing(text) or value == -1:
        raise DataError(
            f"{request.dataset.name}: every row needs a label", "blank, None or -1", "drop those rows"
        )
    return text


def _class_names(file: Any, label: str) -> tuple[str, ...]:
    """Return the names that ``datasets`` wrote for a ``ClassLabel``, if it did."""
    try:
        info = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])
        names = info["info"]["features"][label]["names"]
    except (KeyError, ValueError, TypeError):
        return ()
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


class _Stream:
    """Images of one file, forward."""

    def __init__(self, path: Path) -> None:
        file = _open(path)
        name = _column(file, IMAGE_COLUMNS)
        self.next_row = 0
        self._batches = file.iter_batches(batch_size=ROWS_AT_ONCE, columns=[name], use_threads=False)
        self._rows: Any = None
        self._end = 0

    def image(self, row: int) -> bytes:
        """Return the bytes of one row's image; ``row`` may only rise."""
        import pyarrow as pa

        try:
            while row >= self._end:
                self._rows = next(self._batches).column(0)
                self._end += len(self._rows)
            value = self._rows[row - self._end + len(self._rows)].as_py()
        except (StopIteration, OSError, pa.ArrowException, MemoryError):
            raise SkipItem("damaged Parquet file") from None
        self.next_row = row
        body = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(body, bytes) or not body:
            raise SkipItem("no image bytes in the row")
        return body
