"""List and read a user's images in Parquet files, which contain the images and their labels.

The documentation of Hugging Face's ``datasets`` describes the layout ("Image dataset" and
``Features``). A column ``image`` has the type ``struct<bytes: binary, path: string>`` or
``binary``. The schema's metadata may contain class names under the key ``huggingface``. These
names must be the same in all files.

``<raw>`` is one file or a folder of files. As in partitioned datasets of pandas and Spark, a
folder ``split=train`` gives each row of its files the value ``train`` in a column ``split``.
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
from tasks.sources.own.columns import (
    Cells,
    Columns,
    JoinedTables,
    common_columns,
    find_columns,
)
from tasks.sources.own.listing import count_hidden, own_listing
from tasks.sources.own.rows import FROM_ZERO, Rows
from tasks.sources.own.splits import GivenSplit, is_split_word, split_of_file
from tasks.sources.pictures import decode_image
from tasks.sources.raw import MARK, raw_content
from tasks.sources.tables import MANIFESTS, cell_text

ROWS_AT_ONCE = 32
"""Number of images in memory at once while a file is read."""
LABELS_AT_ONCE = 1024
"""Number of rows whose labels are converted to text at once."""
COLUMNS_READ = ("image", "label", "group", "split")
DAMAGED = "damaged or unreadable Parquet file"
BLANK_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""Text that Hive, Spark and pandas write in a folder's name for a missing value."""


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
    """Return whether a file name has the extension of a Parquet file."""
    return name.lower().endswith(".parquet")


def count_rows(path: Path) -> int:
    """Return the number of rows of a file; 0 if it is damaged."""
    try:
        return int(_open(path).metadata.num_rows)
    except SkipItem:
        return 0


def _image_files(names: Iterable[str], request: RawRequest) -> list[str]:
    """Return the names that are Parquet files.

    Raises:
        DataError: There are no Parquet files, or they belong to several configurations.
            Configurations are versions of the same Hugging Face dataset.
    """
    files = list(filter(is_parquet_name, names))
    if not files:
        raise request.error(
            f"the folder has neither {MANIFESTS[0]}, nor one table in each split, nor a "
            "Parquet file",
            hint=f"Use the path of the table itself, or rename the table to {MANIFESTS[0]}. If the "
            "subfolders are classes of images, set `kind: folder`",
        )
    configs = set()
    for name in files:
        if split_of_file(name, request) is not GivenSplit.NONE:
            folder = PurePosixPath(name).parent
            configs.add(folder.parent if is_split_word(folder.name) else folder)
    if len(configs) > 1:
        raise request.error(
            "the folder contains several configurations of a Hugging Face dataset, for example "
            f"{' and '.join(sorted(map(str, configs))[:2])}",
            hint="Use the folder of one configuration, or move all files into one folder",
        )
    return files


def list_parquet(request: RawRequest) -> Listing:
    """List the rows of all Parquet files, in the order of file names and rows.

    Raises:
        DataError: A file is damaged. Or files differ in their columns or class names. Or
            labels, groups or splits break a rule of :mod:`tasks.sources.own`.
    """
    folder_content = raw_content(request)
    names = _image_files(folder_content.files, request)
    tables = [_read_table(name, request) for name in names]
    columns = common_columns([table.columns for table in tables], request)
    label_names = tables[0].label_names
    splits = []
    for name, table in zip(names, tables, strict=True):
        splits.append(split_of_file(name, request))
        if table.label_names != label_names:
            raise request.error(
                f"the class names in {request.hashed(name)} are missing, or differ from those "
                "in the first file",
                hint="Write all files with the method to_parquet of the package `datasets`",
            )
    joined = JoinedTables([table.cells for table in tables])

    def locator(row: int) -> str:
        return f"{names[joined.table_of(row)]}{MARK}{joined.row_in_table(row)}"

    def row_name(row: int) -> str:
        name = names[joined.table_of(row)]
        return f"row {joined.row_in_table(row)} of {request.hashed(name)}"

    rows = Rows(
        cells=joined.cells,
        locator=locator,
        name=row_name,
        file_split=lambda row: splits[joined.table_of(row)],
        columns=columns,
        unused_cells=joined.join([table.unused_cells for table in tables]),
        class_names=label_names,
    )
    excluded = count_hidden(folder_content.hidden, is_parquet_name)
    excluded["not a .parquet by its extension"] = len(folder_content.files) - len(names)
    base_listing = Listing(excluded=excluded, intensity=INTENSITY)
    return own_listing(rows, request, base_listing)


@dataclass(frozen=True)
class _ParquetTable:
    """The columns of a Parquet file, without its images.

    Attributes:
        columns: The roles of the columns.
        cells: Labels, groups, splits and traits, one entry per row.
        unused_cells: Name of a column without a role -> its cells. Only columns with one value
            per cell are in this dict.
        label_names: Class names in the schema's metadata; empty if there are none.
    """

    columns: Columns
    cells: Cells
    unused_cells: Cells
    label_names: tuple[str, ...]


def _read_table(name: str, request: RawRequest) -> _ParquetTable:
    """Read the columns of a file, without its images.

    Raises:
        DataError: The file is damaged, or a column of images or labels is missing or occurs twice.
    """
    import pyarrow as pa

    subject = f"{request.dataset.name}: {request.hashed(name)}"
    try:
        file = _open(request.base() / name)
        partitions = _partitions(name)
        header = [*file.schema_arrow.names, *partitions]
        columns = find_columns(header, COLUMNS_READ, request)
        _check_header(subject, header, columns)
        texts = _column_texts(file, columns, partitions)
    except (SkipItem, OSError, pa.ArrowException, MemoryError):
        raise DataError(
            f"{subject} cannot be read: {DAMAGED}", hint="Write or copy the file again"
        ) from None
    cells = columns.cells(texts, request, lambda row: f"row {row} ({FROM_ZERO})")
    unused_cells = {name: texts[name] for name in columns.unused if name in texts}
    label_names = _label_names(file.schema_arrow, columns.labels[0])
    return _ParquetTable(columns, cells, unused_cells, label_names)


def _partitions(name: str) -> dict[str, str]:
    """Return the values in the names of folders above a file, such as ``split=train``.

    Each value fills a column: it is the same in all rows of the file.
    """
    partitions = {}
    for folder in name.split("/")[:-1]:
        column, equals, value = folder.partition("=")
        if equals:
            partitions[column] = unquote(value).replace(BLANK_PARTITION, "")
    return partitions


def _check_header(subject: str, header: Sequence[str], columns: Columns) -> None:
    """Check that a file has one image column, and has each label column once.

    Args:
        subject: The dataset and the hash of the file, for messages.
        header: Names of all columns.
        columns: The columns that are read.

    Raises:
        DataError: A column is missing or repeated.
    """
    needed = {*columns.labels, columns.name_by_role.get("image", "")}
    if not columns.labels or not needed <= set(header):
        raise DataError(
            f"{subject} has the columns {', '.join(header[:10])}, but needs image and label",
            hint="Rename the columns to image and label, or set `label_columns: [NAME]` "
            "(--label-columns NAME)",
        )
    used = {*columns.labels, *columns.name_by_role.values()}
    repeated = sorted(name for name in used if header.count(name) > 1)
    if repeated:
        raise DataError(
            f"{subject} has several columns named {', '.join(repeated)}",
            hint="Rename all but one of them",
        )


def _column_texts(
    file: Any,
    columns: Columns,
    partitions: dict[str, str],
) -> dict[str, list[str]]:
    """Return the columns as text: name in the file -> cells.

    Columns without a role are included if each cell contains one number, text or date. Images
    are left out.
    """
    names = list(columns.labels)
    names += [name for role, name in columns.name_by_role.items() if role not in ("image", "label")]
    names += [name for name in _single_columns(file.schema_arrow) if name in columns.unused]
    texts: dict[str, list[str]] = {name: [] for name in names}
    stored = [name for name in texts if name not in partitions]
    for batch in file.iter_batches(batch_size=LABELS_AT_ONCE, columns=stored):
        for name, values in batch.to_pydict().items():
            texts[name] += map(cell_text, values)
    # If the file also has such a column, the value in the folder's name replaces its cells.
    for name in texts.keys() & partitions.keys():
        texts[name] = [partitions[name]] * file.metadata.num_rows
    return texts


def _single_columns(schema: Any) -> list[str]:
    """Return the names of columns of numbers, text or dates. Repeated names are left out."""
    import pyarrow as pa

    is_single = (
        pa.types.is_integer,
        pa.types.is_floating,  # pandas stores whole numbers as floats if some are missing
        pa.types.is_dictionary,  # pandas stores repeated text as a dictionary (categorical)
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_decimal,
        pa.types.is_date,
    )
    names = []
    for column in schema:
        is_repeated = len(schema.get_all_field_indices(column.name)) > 1
        if not is_repeated and any(is_kind(column.type) for is_kind in is_single):
            names.append(column.name)
    return names


def _label_names(schema: Any, column: str) -> tuple[str, ...]:
    """Return the class names that ``datasets`` stores for a ``ClassLabel``; empty if none."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, ValueError, TypeError):
        return ()
    if not isinstance(names, list):
        return ()
    return tuple(map(str, names))


def _open(path: Path) -> Any:
    """Open a Parquet file.

    Raises:
        SkipItem: The file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, memory_map=False)
    except (OSError, pa.ArrowException, ValueError):
        raise SkipItem(DAMAGED) from None


class ParquetReader:
    """A reader of the images in Parquet rows. It is fast if items are read in ascending order.

    A file is read from its start to its end, a few rows at a time. If an earlier row is
    needed, the file is opened again.
    """

    def __init__(self, request: RawRequest) -> None:
        self._request = request
        self._base = request.base()
        self._name = ""
        self._next_row = 0
        self._values: Iterator[Any] = iter(())

    def __call__(self, item: Item) -> list[Sample]:
        """Read the image of one row.

        Raises:
            SkipItem: The row has no image, or the file is damaged.
        """
        name, _, row = item.locator.rpartition(MARK)
        value = self._read_value(name, int(row))
        body = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(body, bytes) or not body:
            raise SkipItem("no image bytes in the row")
        return [decode_image(body)]

    def _read_value(self, name: str, row: int) -> Any:
        """Return the image column of one row."""
        import pyarrow as pa

        try:
            if self._name != name or self._next_row > row:
                self._open_at(name, row)
            value = next(itertools.islice(self._values, row - self._next_row, None))
        except (StopIteration, OSError, pa.ArrowException, MemoryError):
            self._name = ""  # the remaining batches may be damaged too
            raise SkipItem(DAMAGED) from None
        self._next_row = row + 1
        return value

    def _open_at(self, name: str, row: int) -> None:
        """Open a file at the row group that contains a row."""
        file = _open(self._base / name)
        columns = find_columns(file.schema_arrow.names, COLUMNS_READ, self._request)
        num_groups = file.metadata.num_row_groups
        sizes = [file.metadata.row_group(group).num_rows for group in range(num_groups)]
        ends = np.cumsum(sizes)
        first = int(np.searchsorted(ends, row, side="right"))
        batches = file.iter_batches(
            batch_size=ROWS_AT_ONCE,
            row_groups=range(first, num_groups),
            columns=[columns.name_by_role["image"]],
            use_threads=False,
        )
        self._values = (value for batch in batches for value in batch.column(0).to_pylist())
        self._next_row = int(ends[first - 1]) if first else 0
        self._name = name
