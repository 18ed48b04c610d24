"""Your own images with a table of them: pictures, DICOM files or NIfTI volumes by path, or Parquet
with them.

Layout: one table with columns path, label and, if you have them, group and split; or
``metadata.csv``, ``.jsonl`` or ``.parquet`` with ``file_name`` in a folder or in each of its
``train`` and ``test`` (an ``imagefolder`` of ``datasets``); or a column of 0 and 1 for each class,
as the ISIC challenges have. Paths are relative to the table's folder, or all absolute. A column
``slice`` names one axial slice of a volume, counted from 0 at the feet; a volume may then have
several rows. Without a ``group`` column a volume is a group, and so is the patient of a DICOM
header.

Parquet with the images in it (``datasets`` documentation, "Image dataset" and ``Features``) has a
column ``image`` of ``struct<bytes: binary, path: string>`` or plain ``binary``; class names stand
in the schema's metadata under ``huggingface``, the same in all files. It is one file or a folder of
them; a folder ``split=train`` is a column of files in it, as pandas and Spark write partitions.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np

from search_spaces.errors import DataError, SweepError
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem, Source, first_of
from tasks.sources.dicom import INTENSITY, is_single_image_name, single_reader
from tasks.sources.nifti import VOLUME_INTENSITY, is_nifti_name, volume_reader
from tasks.sources.own import (
    FROM_ZERO,
    MAX_NAMED,
    ONE_HOT,
    Cells,
    Columns,
    Rows,
    find_columns,
    hidden_count,
    joined,
    own_listing,
    plain_id,
    split_of,
    split_of_file,
)
from tasks.sources.pictures import decode_image
from tasks.sources.raw import MARK, plain_name, walk
from tasks.sources.tables import (
    MANIFESTS,
    SEVERAL,
    cell_text,
    counting,
    header_names,
    holds_images,
    read_lines,
    read_table,
)

ROWS_AT_ONCE = 32
LABELS_AT_ONCE = 1024
WANTED = ("image", "label", "group", "split")
DAMAGED = "damaged or unreadable Parquet file"
SLICE = re.compile(r"[0-9]{0,9}")


@dataclass(frozen=True)
class Listed:
    """One table of paths, and its split's folder, when it lies in one; once read, its numbers."""

    path: Path
    folder: str = ""
    numbers: Sequence[int] = ()
    other_sheets: int = 0

    def row(self, place: int) -> str:
        """Return what messages call a row."""
        return f"{self.folder} row {self.numbers[place + 1]}".lstrip()

    def counted_row(self, place: int) -> str:
        """Return what messages call a row, and how it is counted."""
        return f"{self.row(place)} ({counting(self.numbers)})"


def list_table(request: RawRequest) -> Listing:
    """Return one item per row, in the table's order; what it must not name is a DataError."""
    tables = _tables(request)
    if not tables:
        return _list_images(request)
    read = [_read(table, request) for table in tables]
    sheets = sum(table.other_sheets for *_, table in read)
    flags = _common([columns for columns, *_ in read], request).flags
    cells, place = joined([found for _, found, _ in read])
    if not cells["path"]:
        raise request.error("the table must have rows", "only a header")
    count = sum(map(is_nifti_name, cells["path"]))
    volumes = count > 0
    if 0 < count < len(cells["path"]):
        rule = "a table must list NIfTI volumes or pictures, not both"
        raise request.error(
            rule, f"{count} volumes of {len(cells['path'])} rows", "make two tables of them"
        )
    if not volumes and "slice" in cells:
        flags = (*flags, "columns not used: slice")

    def table(row: int) -> Listed:
        return read[place(row)[0]][2]

    rows = Rows(
        cells=cells,
        locator=cells["path"].__getitem__,
        name=lambda row: table(row).row(place(row)[1]),
        counting=lambda row: counting(table(row).numbers),
        alone=cells["path"].__getitem__ if volumes else lambda _: "",
        side=lambda row: split_of(table(row).folder),
        details=lambda row: (slices[row],) if volumes else (),
    )
    slices = _slices(rows, request) if volumes else [None] * len(cells["path"])
    listing = own_listing(
        rows,
        request,
        flags=flags,
        counts=_other_folders(cells) | {"sheet of the workbook that is not read": sheets},
        intensity=VOLUME_INTENSITY if volumes else INTENSITY,
        block_size=4 if volumes else 128,
        one_each=not volumes or None not in slices,
        excluded=_check_files(rows, volumes, request),
    )
    first: dict[tuple[str, int | None], int] = {}
    places = [
        first.setdefault(one, row)
        for row, one in enumerate(zip(cells["path"], slices, strict=True))
    ]
    if repeated := [row for row, place in enumerate(places) if place != row]:
        unlike = sum(cells["label"][places[row]] != cells["label"][row] for row in repeated)
        found = f"repeated in {rows.named(repeated)}; with different labels: {unlike}"
        raise request.error("every path must be in the table once", found, "take the repeats out")
    return listing


def read_table_rows(request: RawRequest) -> Reader:
    """Return a reader of the named files, or of the table's own images."""
    pictures, volumes, rows = (
        single_reader(request),
        volume_reader(request),
        parquet_reader(request),
    )

    def read(item: Item) -> Iterable[Sample]:
        if is_nifti_name(item.locator):
            return volumes(item)
        file, mark, row = item.locator.rpartition(MARK)
        return (rows if mark and row.isdigit() and _is_parquet(file) else pictures)(item)

    return read


table = Source(list_table, read_table_rows)


def table_paths(request: RawRequest, folder: str = "") -> dict[int, str]:
    """Return the paths of a table (of a split's folder), by the number of its rows in messages."""
    try:
        paths = [one.path for one in _tables(request) if one.folder == folder]
        rows, numbers, _ = read_lines(paths[0], request)
        place = rows[0].index(find_columns(rows[0], ("path",), request).of["path"])
    except (SweepError, IndexError, KeyError):
        return {}
    found, above = zip(numbers[1:], rows[1:], strict=True), f"{folder}/" if folder else ""
    return {number: above + row[place] for number, row in found if place < len(row)}


def _tables(request: RawRequest) -> list[Listed]:
    """Return the tables of paths: the raw file, one in the raw folder, or one in each of its
    splits.
    """
    root = request.root()
    if root.is_file():
        return [] if parquet_files(request) else [Listed(root)]
    splits = sorted(path for path in root.iterdir() if path.is_dir() and split_of(path.name) != "")
    folders = [(root, ""), *((path, path.name) for path in splits)]
    found = [
        Listed(path, name)
        for folder, name in folders
        for file in MANIFESTS
        if (path := folder / file).is_file()
    ]
    if not found and parquet_files(request):
        return []
    named = [one.folder for one in found]
    if not found or len(set(named)) < len(found) or ("" in named and len(found) > 1):
        listed = ", ".join(f"{one.folder}/{one.path.name}".lstrip("/") for one in found) or "none"
        rule = f"the folder must hold {MANIFESTS[0]}, or one table in each split"
        raise request.error(rule, listed, "give the right table itself, or move the others away")
    return found


def _read(table: Listed, request: RawRequest) -> tuple[Columns, Cells, Listed]:
    """Return what a table's columns are, the cells of those that are read under our names, and
    itself.
    """
    lines = read_lines(table.path, request)
    table = replace(table, numbers=lines.numbers, other_sheets=lines.other_sheets)
    wanted = ("path", "label", "group", "split")
    columns = find_columns(lines.rows[0] if lines.rows else [], wanted, request, more=("slice",))
    if lines.rows and not columns.labels:
        raise _no_label(lines.rows, request)
    needed = (columns.of.get("path", "path"), *(columns.labels or ("label",)))
    optional = (*columns.of.values(), "slice")
    rows = read_table(table.path, request, needed, optional, raw=columns.labels, lines=lines)
    found = {name: [row[name] for row in rows] for name in (rows[0] if rows else needed)}
    cells = dict(columns.cells(found, request, table.counted_row))
    cells |= {"path": _paths(found[needed[0]], table, request)}
    return columns, cells | ({"slice": found["slice"]} if "slice" in found else {}), table


def _common(read: Sequence[Columns], request: RawRequest) -> Columns:
    """Return the columns of all tables, which must call them alike."""
    columns = read[0]
    if other := sum(found.of != columns.of for found in read):
        rule = "all tables of a set must call their columns alike"
        raise request.error(rule, f"other names in {other} of {len(read)}", "rename them")
    return columns


def _no_label(rows: list[list[str]], request: RawRequest) -> DataError:
    """Return the error for a table without a column of labels, which may have one for each
    class.
    """
    binary = [
        header.strip()
        for header, *cells in zip(*rows, strict=False)
        if header.strip().casefold() not in ONE_HOT
        and cells
        and all(cell.strip().casefold() in ONE_HOT for cell in cells)
    ]
    if len(binary) > 1:
        shown = first_of(binary, MAX_NAMED)
        way_out = (
            f"if they are the classes, name them: label_columns: [{shown}], or --label-columns"
        )
        return request.error("the table must have one column label", f"0 and 1 in {shown}", way_out)
    found = f"no label{header_names(rows[0])}"
    way_out = "call it label, or name it: label_columns: [NAME], or --label-columns NAME"
    return request.error("the table must have a column of labels", found, way_out)


def _paths(cells: Sequence[str], table: Listed, request: RawRequest) -> list[str]:
    """Return paths as seen from the raw folder."""
    base, found = request.base().resolve(), []
    absolute = bool(cells) and all(PurePosixPath(cell).is_absolute() for cell in cells)
    if SEVERAL in cells:
        rule, found_there = "a row must name one file, as text", "several values, or bytes, in "
        way_out = "images themselves are read from a column of bytes or of struct<bytes, path>"
        raise request.error(rule, found_there + table.counted_row(cells.index(SEVERAL)), way_out)
    for place, cell in enumerate(cells):
        inside = plain_name(cell)
        if absolute:
            if ".." in cell.split("/") or "\0" in cell:
                rule = "names in a table must not lead back up"
                raise request.error(rule, table.counted_row(place), "write them without ..")
            found.append(Path(os.path.relpath(cell, base)).as_posix())
        elif inside is None:
            rule = "names in a table must stay inside the raw folder"
            raise request.error(
                rule, table.counted_row(place), "use names relative to the table's folder"
            )
        else:
            found.append(f"{table.folder}/{inside}" if table.folder else inside)
    return found


def _slices(rows: Rows, request: RawRequest) -> list[int | None]:
    """Return the slice of every row, None where the rule's are taken."""
    paths = rows.cells["path"]
    cells = rows.cells.get("slice", [""] * len(paths))
    if odd := [row for row, cell in enumerate(cells) if not SLICE.fullmatch(cell)]:
        raise request.error(
            "slice must be a whole number from 0", f"another cell in {rows.named(odd)}"
        )
    groups: defaultdict[str, set[str]] = defaultdict(set)
    forms: defaultdict[str, set[bool]] = defaultdict(set)
    for row, path in enumerate(paths):
        groups[path].add(rows.group(row))
        forms[path].add(cells[row] == "")
    if several := sum(len(ids) > 1 for ids in groups.values()):
        rule = "all slices of a volume must be in one group"
        raise request.error(rule, f"{several} volumes in several", "a volume is of one patient")
    if mixed := sum(len(kinds) > 1 for kinds in forms.values()):
        rule = "a volume's rows must all name a slice, or none"
        raise request.error(rule, f"{mixed} volumes with both", "else slices may be taken twice")
    return [int(cell) if cell else None for cell in cells]


def _check_files(rows: Rows, volumes: bool, request: RawRequest) -> dict[str, int]:
    """Check that every named file is there, and count images that no row names."""
    # One walk also refuses links out and FIFOs; only names it did not meet (hidden ones) are looked
    # up.
    folder, paths, hidden = request.base(), rows.cells["path"], list[str]()
    found, known = set(walk(folder, request, hidden=hidden)), set(paths)

    def is_file(path: Path) -> bool:
        with suppress(OSError):  # a name longer than any file's
            return path.is_file() and not path.is_symlink()
        return False

    absent = {name for name in known.difference(found) if not is_file(folder.resolve() / name)}
    if absent:
        rule = "every path of the table must be a file"
        bare = not any(PurePosixPath(name).suffix for name in absent)
        way_out = "paths are relative to the table" + (
            ", with their ending such as .jpg" if bare else ""
        )
        missing = rows.named(row for row, path in enumerate(paths) if path in absent)
        if near := len({*map(plain_id, absent)} & {*map(plain_id, found)}):
            way_out += (
                f"; {near} there in other letter case or Unicode form (Macs have one of their own)"
            )
        raise request.error(rule, f"missing: {missing}", way_out)
    reads = is_nifti_name if volumes else is_single_image_name
    extra = sum(name not in known and reads(name) for name in found)
    return {"image without a row in the table": extra} | hidden_count({*hidden} - known, reads)


def _other_folders(cells: Cells) -> dict[str, int]:
    """Count rows whose folder is called as another class, where the folders of most are called as
    theirs.
    """
    classes = set(cells["label"])
    named = [
        (label, classes.intersection(path.split("/")[:-1]))
        for label, path in zip(cells["label"], cells["path"], strict=True)
    ]
    alike = sum(found == {label} for label, found in named)
    unlike = sum(bool(found) and label not in found for label, found in named)
    is_told = unlike and 2 * alike > len(named)
    return {"row whose folder is called as another class": unlike} if is_told else {}


# Parquet files with the images in them.


def parquet_files(request: RawRequest) -> list[str]:
    """Return the Parquet files that hold images, of one config: configs are one set in several
    forms.
    """
    root = request.root()
    if root.is_file():
        return [root.name] if _is_parquet(root.name) and holds_images(root) else []
    names = [name for name in walk(root, request) if _is_parquet(name)]
    folders = {PurePosixPath(name).parent for name in names if split_of_file(name, request) != ""}
    configs = {folder.parent if split_of(folder.name) != "" else folder for folder in folders}
    if len(configs) > 1:
        rule = "the folder must hold one config of a set with splits"
        way_out = "give the folder of one of them, or put the files of all into one"
        raise request.error(rule, ", ".join(sorted(map(str, configs))[:5]), way_out)
    return names


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(".parquet")


def _list_images(request: RawRequest) -> Listing:
    """Return one item per row, in the order of file names and rows; damaged files are a
    DataError.
    """
    root, hidden, files = request.root(), list[str](), parquet_files(request)
    names_there = list(walk(root, request, hidden=hidden)) if root.is_dir() else files
    read = [_read_parquet(file, request) for file in files]
    columns, names = _common([columns for columns, *_ in read], request), read[0][2]
    for file, (_, _, others) in zip(files, read, strict=True):
        if others != names:
            rule = "all files must give the labels the same names, in their schema's"
            found_there = f"{request.hashed(file)} has others or none"
            raise request.error(
                f"{rule} metadata", found_there, "write all with datasets' to_parquet"
            )
    sides = [split_of_file(file, request) for file in files]
    cells, place = joined([found for _, found, _ in read])
    rows = Rows(
        cells=cells,
        locator=lambda row: f"{files[place(row)[0]]}{MARK}{place(row)[1]}",
        name=lambda row: f"row {place(row)[1]} of {request.hashed(files[place(row)[0]])}",
        side=lambda row: sides[place(row)[0]],
    )
    excluded = hidden_count(hidden, _is_parquet)
    excluded["not a .parquet by its ending"] = len(names_there) - len(files)
    return own_listing(
        rows, request, names=names, flags=columns.flags, excluded=excluded, intensity=INTENSITY
    )


def _read_parquet(name: str, request: RawRequest) -> tuple[Columns, Cells, tuple[str, ...]]:
    """Return a file's columns, the cells of all that are read but the images, and its class
    names.
    """
    import pyarrow as pa

    where = f"{request.dataset.name}: {request.hashed(name)}"
    try:
        file = _open(request.base() / name)
        # pandas and Spark write what is one for a whole file as a folder around it.
        around = dict(part.split("=", 1) for part in name.split("/")[:-1] if "=" in part)
        header = [*file.schema_arrow.names, *around]
        columns = find_columns(header, WANTED, request)
        if not {*columns.labels, columns.of.get("image", "")} <= set(header) or not columns.labels:
            shown = ", ".join(header[:10])
            way_out = "or name the column of labels: label_columns: [NAME], or --label-columns NAME"
            raise DataError(
                f"{where} must have columns image and label", f"it has {shown}", way_out
            )
        if repeated := [
            name for name in {*columns.labels, *columns.of.values()} if header.count(name) > 1
        ]:
            raise DataError(
                f"{where} must have each column once", f"{', '.join(sorted(repeated))} repeated"
            )
        read = [theirs for ours, theirs in columns.of.items() if ours not in ("image", "label")]
        found: dict[str, list[str]] = {column: [] for column in (*columns.labels, *read)}
        stored = [column for column in found if column not in around]
        for batch in file.iter_batches(batch_size=LABELS_AT_ONCE, columns=stored):
            for column, cells in batch.to_pydict().items():
                found[column] += map(cell_text, cells)
        for column in found.keys() & around.keys():
            value = unquote(around[column]).replace("__HIVE_DEFAULT_PARTITION__", "")
            found[column] = [value] * file.metadata.num_rows
    except (SkipItem, OSError, pa.ArrowException, MemoryError):
        raise DataError(f"{where} must be whole", DAMAGED) from None
    cells = columns.cells(found, request, lambda row: f"row {row} ({FROM_ZERO})")
    names: object = ()
    with suppress(KeyError, ValueError, TypeError):  # as datasets writes those of a ClassLabel
        features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
        names = features[columns.labels[0]]["names"]
    return columns, cells, tuple(map(str, names)) if isinstance(names, list) else ()


def _open(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, memory_map=False)
    except (OSError, pa.ArrowException, ValueError):
        raise SkipItem(DAMAGED) from None


def num_rows(path: Path) -> int:
    """Return how many rows a file has; none when it is damaged."""
    try:
        return int(_open(path).metadata.num_rows)
    except SkipItem:
        return 0


def parquet_reader(request: RawRequest) -> Reader:
    """Return a reader of rows, cheap in rising order: a file is read forward, a few rows at a
    time.
    """
    base = request.base()
    opened: tuple[str, int, Iterator[Any]] = ("", 0, iter(()))

    def read(item: Item) -> list[Sample]:
        nonlocal opened
        name, _, row = item.locator.rpartition(MARK)
        file, place, values = opened
        try:
            if file != name or place > int(row):
                # The row group that holds the row, and all from there on.
                parquet = _open(base / name)
                column = find_columns(parquet.schema_arrow.names, WANTED, request).of["image"]
                groups = range(parquet.metadata.num_row_groups)
                ends = np.cumsum([parquet.metadata.row_group(group).num_rows for group in groups])
                first = int(np.searchsorted(ends, int(row), side="right"))
                how = {"row_groups": groups[first:], "columns": [column], "use_threads": False}
                batches = parquet.iter_batches(batch_size=ROWS_AT_ONCE, **how)
                place = int(ends[first - 1]) if first else 0
                values = (value for batch in batches for value in batch.column(0).to_pylist())
            value = next(itertools.islice(values, int(row) - place, None))
        except (StopIteration, OSError, pa.ArrowException, MemoryError):
            opened = ("", 0, iter(()))
            raise SkipItem(DAMAGED) from None
        opened = (name, int(row) + 1, values)
        body = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(body, bytes) or not body:
            raise SkipItem("no image bytes in the row")
        return [decode_image(body)]

    import pyarrow as pa

    return read
