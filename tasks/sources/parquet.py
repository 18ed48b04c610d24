"""Your own images inside Parquet files, as Hugging Face ``datasets`` stores them.

Layout: ``datasets`` documentation, "Image dataset" and ``Features``: a column ``image`` of ``struct<bytes:
binary, path: string>`` (or plain ``binary``) and a column ``label``; class names stand in the schema's
metadata under ``huggingface``, the same in all files. ``<raw>`` is one file or a folder of them; the split
is that of a column ``split``, or else a word of a file's name (``train-00000-of-00002.parquet``) or its
folder's (``<config>/train/0000.parquet``, as the Hub converts a set; of several configs one must be named,
since they often hold the same images).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem
from tasks.sources.dicom import INTENSITY
from tasks.sources.own import (
    TRAITS,
    Columns,
    Rows,
    find_columns,
    one_hot,
    own_listing,
    split_of,
    split_of_file,
)
from tasks.sources.pictures import decode_image
from tasks.sources.raw import MARK, walk
from tasks.sources.tables import cell_text, holds_images

ROWS_AT_ONCE = 32
LABELS_AT_ONCE = 1024
WANTED = ("image", "label", "group", "split")


def parquet_files(request: RawRequest) -> list[str]:
    """Return the Parquet files that hold images: the raw file itself, or all below the raw folder.

    Raises:
        DataError: when they are several configs of one set.
    """
    root = request.root()
    if root.is_file():
        return [root.name] if root.suffix.lower() == ".parquet" and holds_images(root) else []
    names = [name for name in walk(root, request) if name.lower().endswith(".parquet")]
    _check_one_config(names, request)
    return names


def _check_one_config(names: list[str], request: RawRequest) -> None:
    """Check that files with splits in their names lie in one folder: configs are one set in several forms."""
    folders = {name.rpartition("/")[0] for name in names if split_of_file(name, request) != ""}
    configs = {
        folder.rpartition("/")[0] if split_of(folder.rpartition("/")[2]) != "" else folder
        for folder in folders
    }
    if len(configs) > 1:
        rule = f"{request.dataset.name}: the folder must hold one config of a set with splits"
        way_out = "give the folder of one of them, or put the files of all into one"
        raise DataError(rule, ", ".join(sorted(configs)[:5]), way_out)


def list_parquet(files: Sequence[str], request: RawRequest) -> Listing:
    """Return one item per row, in the order of file names and rows.

    Raises:
        DataError: for damaged files, absent columns, and what :func:`tasks.sources.own.own_listing` refuses.
    """
    name = request.dataset.name
    cells: dict[str, list[str]] = {}
    ends: list[int] = []
    known: list[tuple[Columns, tuple[str, ...]]] = []
    for file in files:
        found = _read(file, request)
        known.append(found[:2])
        for ours, column in found[2].items():
            cells.setdefault(ours, [""] * (ends[-1] if ends else 0)).extend(column)
        ends.append(len(cells["label"]))
        cells |= {ours: column + [""] * (ends[-1] - len(column)) for ours, column in cells.items()}
    columns, names = known[0]
    for file, (others, other_names) in zip(files, known, strict=True):
        if other_names != names:
            rule = f"{name}: all files must give the labels the same names, in their schema's metadata"
            found_there = f"{request.hashed(file)} has others or none"
            raise DataError(rule, found_there, "write all with datasets' to_parquet")
        if others.of != columns.of:
            rule = f"{name}: all files must call their columns alike"
            raise DataError(rule, f"{request.hashed(file)} has others", "rename them")
    sides = [split_of_file(file, request) for file in files]

    def place(row: int) -> tuple[int, int]:
        file = int(np.searchsorted(ends, row, side="right"))
        return file, row - (ends[file - 1] if file else 0)

    rows = Rows(
        labels=cells["label"],
        locator=lambda row: f"{files[place(row)[0]]}{MARK}{place(row)[1]}",
        name=lambda row: f"row {place(row)[1]} of {request.hashed(files[place(row)[0]])}",
        groups=cells.get("group"),
        splits=cells.get("split"),
        side=lambda row: sides[place(row)[0]],
        traits={trait: cells[trait] for trait in TRAITS if trait in cells},
    )
    return own_listing(rows, request, names=names, flags=columns.flags, intensity=INTENSITY)


def _read(name: str, request: RawRequest) -> tuple[Columns, tuple[str, ...], dict[str, list[str]]]:
    """Return a file's columns, its class names, and the cells of all columns that are read but the images."""
    import pyarrow as pa

    where = f"{request.dataset.name}: {request.hashed(name)}"
    try:
        file = _open(request.base() / name)
        header = file.schema_arrow.names
        columns = find_columns(header, WANTED, request)
        if not {*columns.labels, columns.of.get("image", "")} <= set(header) or not columns.labels:
            shown = ", ".join(header[:10])
            way_out = "or name the column of labels: label_columns: [NAME], or --label-columns NAME"
            raise DataError(f"{where} must have columns image and label", f"it has {shown}", way_out)
        read = {ours: column for ours, column in columns.of.items() if ours not in ("image", "label")}
        found: dict[str, list[str]] = {column: [] for column in (*columns.labels, *read.values())}
        for batch in file.iter_batches(batch_size=LABELS_AT_ONCE, columns=list(found)):
            for column, cells in batch.to_pydict().items():
                found[column] += map(cell_text, cells)
    except SkipItem as skip:
        raise DataError(f"{where} must be whole", skip.reason) from None
    except (OSError, pa.ArrowException, MemoryError):
        raise DataError(f"{where} must be whole", "damaged Parquet file") from None
    labels = {column: found[column] for column in columns.labels}
    written = one_hot(labels, request) if len(labels) > 1 else next(iter(labels.values()))
    cells = {ours: found[column] for ours, column in read.items()}
    return columns, _class_names(file, columns.labels[0]), cells | {"label": written}


def _open(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, memory_map=False)
    except (OSError, pa.ArrowException, ValueError):
        raise SkipItem("damaged Parquet file") from None


def _class_names(file: Any, label: str) -> tuple[str, ...]:
    """Return the names that ``datasets`` wrote for a ``ClassLabel``, if it did."""
    try:
        info = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])
        names = info["info"]["features"][label]["names"]
    except (KeyError, ValueError, TypeError):
        return ()
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


def num_rows(path: Path) -> int:
    """Return how many rows a file has; none when it is damaged."""
    try:
        return int(_open(path).metadata.num_rows)
    except SkipItem:
        return 0


def is_row(locator: str) -> bool:
    """Tell whether a locator is one of a Parquet file's row."""
    file, mark, row = locator.rpartition(MARK)
    return bool(mark) and row.isdigit() and file.lower().endswith(".parquet")


def parquet_reader(request: RawRequest) -> Reader:
    """Return a reader of rows, cheap in rising order: a file is read forward, a few rows at a time."""
    base = request.base()
    opened: dict[str, _Stream] = {}

    def read(item: Item) -> list[Sample]:
        file, _, row = item.locator.rpartition(MARK)
        stream = opened.get(file)
        if stream is None or int(row) < stream.next_row:
            opened.clear()
            stream = opened[file] = _Stream(base / file, request, int(row))
        return [decode_image(stream.image(int(row))).with_traits(item.details)]

    return read


class _Stream:
    """Images of one file, forward from the row group that holds a row."""

    def __init__(self, path: Path, request: RawRequest, row: int) -> None:
        file = _open(path)
        name = find_columns(file.schema_arrow.names, WANTED, request).of["image"]
        groups = range(file.metadata.num_row_groups)
        ends = np.cumsum([file.metadata.row_group(group).num_rows for group in groups])
        first = int(np.searchsorted(ends, row, side="right"))
        self.next_row = self._end = int(ends[first - 1]) if first else 0
        self._batches = file.iter_batches(
            batch_size=ROWS_AT_ONCE, row_groups=groups[first:], columns=[name], use_threads=False
        )
        self._rows: Any = None

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
