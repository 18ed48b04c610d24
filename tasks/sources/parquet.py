"""Your own images inside Parquet files, as Hugging Face ``datasets`` stores them.

Layout: ``datasets`` documentation, "Image dataset" and ``Features``: a column ``image`` of ``struct<bytes:
binary, path: string>`` (or plain ``binary``) and a column ``label``; class names stand in the schema's
metadata under ``huggingface``, the same in all files. ``<raw>`` is one file or a folder of them; the split
is that of a column ``split``, or else a word of a file's name (``train-00000-of-00002.parquet``) or its
folder's (``<config>/train/0000.parquet``, as the Hub converts a set; of several configs one must be named,
since they often hold the same images). A group column may be called ``group``, ``patient_id`` and the like;
two columns that could be the label, the image or the group are refused, others are named as not used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem, Split
from tasks.sources.labels import check_spellings, is_missing, mapped_label, sort_labels
from tasks.sources.manifest import ALIASES, INTENSITY
from tasks.sources.own import (
    VALIDATION_LEFT_OUT,
    check_group_sides,
    check_whole_groups,
    split_of,
    split_of_file,
)
from tasks.sources.pictures import decode_image
from tasks.sources.raw import MARK, walk
from tasks.sources.tables import column_key

IMAGE_COLUMNS = ("image", "img", "image_bytes", "bytes")
LABEL_COLUMNS = ("label", "labels", "class", "target")
GROUP_COLUMNS = ("group", *ALIASES["group"])
SPLIT_COLUMNS = ("split",)
MAX_NAMED = 10
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
        named: set[tuple[str, ...]] = set()
        files = _files(request)
        for name in files:
            whole = split_of_file(name, request)
            for row, (label, group, cell) in enumerate(_labels(request.base() / name, request, named)):
                split = _row_split(cell, request) if cell is not None else whole
                if split is None:
                    left_out += 1
                else:
                    items.append((f"{name}{MARK}{row}", label, group, split))
        check_whole_groups((group for _, _, group, _ in items), request)
        check_group_sides(((group, split) for _, _, group, split in items), request)
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
            flags=dict.fromkeys(_told_columns(request.base() / files[0], request), len(items)),
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
                stream = opened[file] = _Stream(base / file, request, int(row))
            return (decode_image(stream.image(int(row))),)

        return read


def _files(request: RawRequest) -> list[str]:
    root = request.root()
    if root.is_file():
        return [root.name]
    names = [name for name in walk(root, request) if name.lower().endswith(".parquet")]
    if not names:
        raise DataError(f"{request.dataset.name}: the folder must hold .parquet files", "none")
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


def _row_split(cell: str, request: RawRequest) -> Split | None:
    """Return the split that a row's own cell gives."""
    split = split_of(cell)
    if split == "" and not is_missing(cell):
        rule = f"{request.dataset.name}: split must be train, test, val or blank"
        raise DataError(rule, "another cell", "rename what the column split holds")
    return split


def _open(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, memory_map=False)
    except (OSError, pa.ArrowException, ValueError):
        raise SkipItem("damaged Parquet file") from None


def _column(file: Any, names: tuple[str, ...], request: RawRequest) -> str | None:
    """Return the one column that has one of the names.

    Raises:
        DataError: when several have; which one is meant is not for us to guess.
    """
    known = {column_key(name) for name in names}
    found = [name for name in file.schema_arrow.names if column_key(name) in known]
    if len(found) > 1:
        rule = f"{request.dataset.name}: one column alone may be the {names[0]}"
        raise DataError(
            rule, " and ".join(found[:5]), f"drop the others, or keep the right one as {names[0]}"
        )
    return found[0] if found else None


def _label_columns(request: RawRequest) -> tuple[str, ...]:
    """Return what the column of labels may be called."""
    given = request.dataset.label_columns
    if len(given) > 1:
        rule = f"{request.dataset.name}: label_columns must name one column of Parquet files with images"
        raise DataError(rule, f"{len(given)}", "write one column label")
    return given or LABEL_COLUMNS


def _told_columns(path: Path, request: RawRequest) -> list[str]:
    """Return what to tell of a file's columns: which is the group, and which nobody reads."""
    file = _open(path)
    group = _column(file, GROUP_COLUMNS, request)
    known = (IMAGE_COLUMNS, _label_columns(request), GROUP_COLUMNS, SPLIT_COLUMNS)
    used = {_column(file, names, request) for names in known}
    unused = sorted(set(file.schema_arrow.names) - used)[:MAX_NAMED]
    told = [f"column {group} read as group"] if group and column_key(group) != "group" else []
    return told + [f"column not used: {name}" for name in unused]


def _labels(
    path: Path, request: RawRequest, named: set[tuple[str, ...]]
) -> Iterator[tuple[str, str, str | None]]:
    """Yield label, group and split cell of every row; ``named`` gathers the class names of all files.

    Raises:
        DataError: see :meth:`Parquet.list_items`.
    """
    import pyarrow as pa

    name, where = request.dataset.name, request.hashed(path.name)
    try:
        file = _open(path)
        label, group = (_column(file, names, request) for names in (_label_columns(request), GROUP_COLUMNS))
        if label is None or _column(file, IMAGE_COLUMNS, request) is None:
            shown = ", ".join(file.schema_arrow.names[:10])
            way_out = "or name the column of labels: label_columns: [NAME], or --label-columns NAME"
            raise DataError(f"{name}: {where} must have columns image and label", f"it has {shown}", way_out)
        names, split = _class_names(file, label), _column(file, SPLIT_COLUMNS, request)
        named.add(names)
        if len(named) > 1:
            rule = f"{name}: all files must give the labels the same names, in their schema's metadata"
            raise DataError(rule, f"{where} has others or none", "write all with datasets' to_parquet")
        for batch in file.iter_batches(batch_size=1024, columns=[c for c in (label, group, split) if c]):
            cells = batch.to_pydict()
            for row, value in enumerate(cells[label]):
                patient = cells[group][row] if group else None
                yield (
                    _label(value, names, request),
                    "" if patient is None else str(patient),
                    str(cells[split][row] or "") if split else None,
                )
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
    """Images of one file, forward from the row group that holds a row."""

    def __init__(self, path: Path, request: RawRequest, row: int) -> None:
        file = _open(path)
        name = _column(file, IMAGE_COLUMNS, request)
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
