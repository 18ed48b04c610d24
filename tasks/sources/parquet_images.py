"""A user's images in Parquet files, which hold the images and their labels.

Layout: ``datasets`` documentation, "Image dataset" and ``Features``. A column ``image`` of
``struct<bytes: binary, path: string>`` or plain ``binary``. Class names stand in the schema's
metadata under ``huggingface``, the same in all files. The set is one file or a folder of files. A
folder ``split=train`` is a column of the files in it, as pandas and Spark write partitions.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Sample, SkipItem
from tasks.sources.dicom import INTENSITY
from tasks.sources.own.columns import Cells, Columns, JoinedFiles, common_columns, find_columns
from tasks.sources.own.listing import count_hidden, own_listing
from tasks.sources.own.rows import FROM_ZERO, Rows
from tasks.sources.own.splits import GivenSplit, is_split_word, split_of_file
from tasks.sources.pictures import decode_image
from tasks.sources.raw import MARK, raw_names
from tasks.sources.tables import MANIFESTS, cell_text

ROWS_AT_ONCE = 32
"""Images that are held at once while a file is read forward."""
LABELS_AT_ONCE = 1024
"""Rows whose labels are converted to text at once."""
COLUMNS_READ = ("image", "label", "group", "split")
DAMAGED = "damaged or unreadable Parquet file"
TABLE_HINT = "Give the right table itself, or move the others away"
BLANK_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""Folder name of the partition whose value is missing, as Hive, Spark and pandas write it."""


def holds_images(path: Path) -> bool:
    """Return whether a Parquet file has a column of bytes or structs, which may be images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException, ValueError):
        return False
    kinds = (pa.types.is_struct, pa.types.is_binary, pa.types.is_large_binary)
    return any(is_kind(column.type) for column in schema for is_kind in kinds)


def is_parquet_name(name: str) -> bool:
    """Return whether a file has the ending of Parquet."""
    return name.lower().endswith(".parquet")


def num_rows(path: Path) -> int:
    """Return how many rows a file has, or 0 if it is damaged."""
    try:
        return int(_open(path).metadata.num_rows)
    except SkipItem:
        return 0


def _image_files(names: Iterable[str], request: RawRequest) -> list[str]:
    """Return the names of the Parquet files among all files.

    Raises:
        DataError: There are none, or they belong to several configs, which are one set in several
            forms.
    """
    files = list(filter(is_parquet_name, names))
    if not files:
        raise request.error(
            f"the folder has neither {MANIFESTS[0]}, nor one table in each split, nor a Parquet "
            "file",
            hint=TABLE_HINT,
        )
    configs = set()
    for name in files:
        if split_of_file(name, request) is not GivenSplit.NONE:
            folder = PurePosixPath(name).parent
            configs.add(folder.parent if is_split_word(folder.name) else folder)
    if len(configs) > 1:
        raise request.error(
            "the folder has several configs with splits: "
            f"{', '.join(sorted(map(str, configs))[:5])}",
            hint="Give the folder of one of them, or put the files of all into one",
        )
    return files


def list_parquet(request: RawRequest) -> Listing:
    """List the rows of all Parquet files, in the order of file names and rows.

    Raises:
        DataError: A file is damaged, files differ in their columns or class names, or labels,
            groups or splits break a rule of :mod:`tasks.sources.own`.
    """
    hidden: list[str] = []
    all_names = raw_names(request, hidden)
    names = _image_files(all_names, request)
    contents = [_read_labels(name, request) for name in names]
    columns = common_columns([content.columns for content in contents], request)
    label_names = contents[0].label_names
    splits = []
    for name, content in zip(names, contents, strict=True):
        splits.append(split_of_file(name, request))
        if content.label_names != label_names:
            raise request.error(
                f"{request.hashed(name)} names the labels otherwise than the first file, or not "
                "at all",
                hint="Write all files with to_parquet of the package datasets",
            )
    files = JoinedFiles([content.cells for content in contents])

    def locator(row: int) -> str:
        return f"{names[files.file_of(row)]}{MARK}{files.row_in_file(row)}"

    def row_name(row: int) -> str:
        name = names[files.file_of(row)]
        return f"row {files.row_in_file(row)} of {request.hashed(name)}"

    rows = Rows(
        cells=files.cells,
        locator=locator,
        name=row_name,
        file_split=lambda row: splits[files.file_of(row)],
    )
    excluded = count_hidden(hidden, is_parquet_name)
    excluded["not a .parquet by its ending"] = len(all_names) - len(names)
    draft = Listing(excluded=excluded, intensity=INTENSITY)
    return own_listing(
        rows, request, dataset_flags=columns.flags, class_names=label_names, draft=draft
    )


@dataclass(frozen=True)
class _FileContent:
    """The columns of a Parquet file but its images.

    Attributes:
        columns: The columns that are read.
        cells: Labels, groups, splits and traits, one entry per row.
        label_names: Class names in its schema's metadata; empty if there are none.
    """

    columns: Columns
    cells: Cells
    label_names: tuple[str, ...]


def _read_labels(name: str, request: RawRequest) -> _FileContent:
    """Read all columns of a file that are needed, but the images."""
    import pyarrow as pa

    file_text = f"{request.dataset.name}: {request.hashed(name)}"
    try:
        file = _open(request.base() / name)
        partitions = _partitions(name)
        header = [*file.schema_arrow.names, *partitions]
        columns = find_columns(header, COLUMNS_READ, request)
        _check_header(file_text, header, columns)
        texts = _column_texts(file, columns, partitions)
    except (SkipItem, OSError, pa.ArrowException, MemoryError):
        raise DataError(f"{file_text} cannot be read: {DAMAGED}") from None
    cells = columns.cells(texts, request, lambda row: f"row {row} ({FROM_ZERO})")
    return _FileContent(columns, cells, _label_names(file.schema_arrow, columns.labels[0]))


def _partitions(name: str) -> dict[str, str]:
    """Return the columns that folders above a file give all of its rows: ``split=train``."""
    partitions = {}
    for folder in name.split("/")[:-1]:
        column, equals, value = folder.partition("=")
        if equals:
            partitions[column] = unquote(value).replace(BLANK_PARTITION, "")
    return partitions


def _check_header(file_text: str, header: Sequence[str], columns: Columns) -> None:
    """Check that a file has its columns of images and labels, and each once."""
    needed = {*columns.labels, columns.name_in_data.get("image", "")}
    if not columns.labels or not needed <= set(header):
        raise DataError(
            f"{file_text} has the columns {', '.join(header[:10])}, but needs image and label",
            hint="Name the column of labels: label_columns: [NAME], or --label-columns NAME",
        )
    used = {*columns.labels, *columns.name_in_data.values()}
    repeated = sorted(name for name in used if header.count(name) > 1)
    if repeated:
        raise DataError(f"{file_text} has several columns named {', '.join(repeated)}")


def _column_texts(file: Any, columns: Columns, partitions: dict[str, str]) -> dict[str, list[str]]:
    """Return the columns that are read as text, under the names that the file has."""
    texts: dict[str, list[str]] = {name: [] for name in columns.labels}
    for column, name in columns.name_in_data.items():
        if column not in ("image", "label"):
            texts[name] = []
    stored = [name for name in texts if name not in partitions]
    for batch in file.iter_batches(batch_size=LABELS_AT_ONCE, columns=stored):
        for name, values in batch.to_pydict().items():
            texts[name] += map(cell_text, values)
    # A partition's folder holds the value of all its rows, whatever the file itself says.
    for name in texts.keys() & partitions.keys():
        texts[name] = [partitions[name]] * file.metadata.num_rows
    return texts


def _label_names(schema: Any, column: str) -> tuple[str, ...]:
    """Return the names of a ``ClassLabel`` as ``datasets`` writes them, or nothing."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, ValueError, TypeError):
        return ()
    if not isinstance(names, list):
        return ()
    return tuple(map(str, names))


def _open(path: Path) -> Any:
    """Open a Parquet file; raises SkipItem if it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, memory_map=False)
    except (OSError, pa.ArrowException, ValueError):
        raise SkipItem(DAMAGED) from None


class ParquetReader:
    """A reader of the images in Parquet rows; it is cheap if items are read in rising order.

    A file is read forward, a few rows at a time. A row before the last one opens the file again.
    """

    def __init__(self, request: RawRequest) -> None:
        self._request = request
        self._base = request.base()
        self._name = ""
        self._next_row = 0
        self._values: Iterator[Any] = iter(())

    def __call__(self, item: Item) -> list[Sample]:
        """Read the image of one row; raises SkipItem if there is none."""
        name, _, row = item.locator.rpartition(MARK)
        value = self._value(name, int(row))
        body = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(body, bytes) or not body:
            raise SkipItem("no image bytes in the row")
        return [decode_image(body)]

    def _value(self, name: str, row: int) -> Any:
        import pyarrow as pa

        try:
            if self._name != name or self._next_row > row:
                self._open_at(name, row)
            value = next(itertools.islice(self._values, row - self._next_row, None))
        except (StopIteration, OSError, pa.ArrowException, MemoryError):
            self._name = ""  # the batches that are left may be damaged, too
            raise SkipItem(DAMAGED) from None
        self._next_row = row + 1
        return value

    def _open_at(self, name: str, row: int) -> None:
        """Start at the row group that holds a row."""
        file = _open(self._base / name)
        column = find_columns(file.schema_arrow.names, COLUMNS_READ, self._request).name_in_data[
            "image"
        ]
        num_groups = file.metadata.num_row_groups
        sizes = [file.metadata.row_group(group).num_rows for group in range(num_groups)]
        ends = np.cumsum(sizes)
        first = int(np.searchsorted(ends, row, side="right"))
        batches = file.iter_batches(
            batch_size=ROWS_AT_ONCE,
            row_groups=range(first, num_groups),
            columns=[column],
            use_threads=False,
        )
        self._values = (value for batch in batches for value in batch.column(0).to_pylist())
        self._next_row = int(ends[first - 1]) if first else 0
        self._name = name
