"""List a user's images from a table of paths: pictures, DICOM files or NIfTI volumes.

The table has the columns ``path`` and ``label``. It may also have the columns ``group`` and
``split``. Either all paths are relative to the table's folder, or all paths are absolute.
isweep also reads two other layouts:

- The layout ``imagefolder`` of Hugging Face's ``datasets``: a file ``metadata.csv``,
  ``metadata.jsonl`` or ``metadata.parquet`` with a column ``file_name``. The file is in the
  raw folder, or each of the folders ``train`` and ``test`` contains such a file.
- The layout of the ISIC challenges: instead of the column ``label``, the table has one column of
  0 and 1 for each class.

A column ``slice`` contains the number of an axial slice of a volume, counted from 0 at the
feet. The image of the row is this slice, so a volume may have several rows. If there is no
column ``group``, each volume is a group, and DICOM files with the same patient id in their
headers are a group.

The kind ``table`` also reads Parquet files that contain the images themselves, see
:mod:`tasks.sources.parquet_images`.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from search_spaces.errors import DataError, SweepError, did_you_mean, plural
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, Source, first_of
from tasks.sources.dicom import INTENSITY, is_single_image_name, single_reader
from tasks.sources.nifti import VOLUME_INTENSITY, is_nifti_name, volume_reader
from tasks.sources.own.columns import (
    ONE_HOT,
    Cells,
    Columns,
    JoinedTables,
    common_columns,
    find_columns,
)
from tasks.sources.own.groups import plain_id
from tasks.sources.own.listing import count_hidden, own_listing
from tasks.sources.own.rows import Rows
from tasks.sources.own.splits import is_split_word, parse_split
from tasks.sources.parquet_images import (
    ParquetReader,
    holds_images,
    is_parquet_name,
    list_parquet,
)
from tasks.sources.raw import MARK, check_inside, plain_name, search_folder
from tasks.sources.tables import (
    COLUMNS,
    KNOWN_KEYS,
    MANIFESTS,
    MAX_NAMED,
    NOT_ONE_VALUE,
    TableRows,
    cells_of_columns,
    column_key,
    describe_header,
    describe_numbering,
    is_header,
    read_columns,
    read_table_rows,
)

COLUMNS_READ = ("path", "label", "group", "split")
SIMILAR_TO_PATH = ("path", "filename", "file_path", "image_path", "img_path")
"""Usual names of a path column. If a table has no such column, the error suggests the column
with the most similar name. The name ``image`` is missing here, because the usual column name
``stage`` is similar to it."""
SLICE = re.compile(r"[0-9]{0,9}")
VOLUMES_AT_ONCE = 4
"""Number of volumes that one reading task reads. The volume of a CT has about 100 MiB."""


@dataclass(frozen=True)
class TableFile:
    """A file with a table of paths.

    Attributes:
        path: The file.
        folder: Name of the folder that contains the file, if this folder is named like a split
            (``train``). Otherwise an empty text.
    """

    path: Path
    folder: str = ""


@dataclass(frozen=True)
class RowNames:
    """The names of a table's rows in messages.

    Attributes:
        folder: Folder of the table's split, see :class:`TableFile`.
        numbers: Number of each row below the header, as messages print it.
        numbering: Text that explains the row numbers, such as ``the header is row 1``.
    """

    folder: str
    numbers: Sequence[int]
    numbering: str

    def name(self, row: int) -> str:
        """Return the name of a row, such as ``train row 12``."""
        return f"{self.folder} row {self.numbers[row]}".lstrip()

    def full_name(self, row: int) -> str:
        """Return the name of a row and the numbering, such as ``row 2 (the header is row 1)``."""
        return f"{self.name(row)} ({self.numbering})"


@dataclass(frozen=True)
class PathTable:
    """The content of a table of paths.

    Attributes:
        row_names: The names of the table's rows in messages.
        num_other_sheets: Number of sheets of the workbook that have a filled cell but are not
            read.
        columns: Names and roles of the columns that are read.
        cells: Role of a column that is read -> the cells of this column. Paths are relative to
            the raw folder.
        unused_cells: Name of a column that is not read -> the cells of this column.
    """

    row_names: RowNames
    num_other_sheets: int
    columns: Columns
    cells: Cells
    unused_cells: Cells


def list_table(request: RawRequest) -> Listing:
    """List the images of a table, one item per row, in the table's order.

    Raises:
        DataError: The table cannot be read, a path is not a file or leads out of the raw
            folder, or labels, groups or splits break a rule of :mod:`tasks.sources.own`.
    """
    files = _table_files(request)
    if not files:
        return list_parquet(request)
    tables = [_read_table(file, request) for file in files]
    columns = common_columns([table.columns for table in tables], request)
    joined = JoinedTables([table.cells for table in tables])
    paths = joined.cells["path"]
    if not paths:
        raise request.error("the table has a header, but no rows", hint="Add a row for each image")
    has_volumes = _has_volumes(paths, request)
    rows = _rows_of_tables(tables, joined, columns, has_volumes)
    flags = {}
    slices: list[int | None] = [None] * len(paths)
    base_listing = Listing(intensity=INTENSITY)
    if has_volumes:
        slices = _slices(rows, request)
        rows = replace(rows, details=lambda row: (slices[row],))
        base_listing = Listing(
            intensity=VOLUME_INTENSITY,
            block_size=VOLUMES_AT_ONCE,
            one_image_per_item=None not in slices,
        )
    elif "slice" in joined.cells:
        flags["columns not used: slice"] = len(paths)
    flags |= _mislabeled_folders(joined.cells)
    num_other_sheets = sum(table.num_other_sheets for table in tables)
    flags["sheet of the workbook that is not read"] = num_other_sheets
    excluded = _check_files(rows, has_volumes, request)
    base_listing = replace(base_listing, flags=flags, excluded=excluded)
    listing = own_listing(rows, request, base_listing)
    _check_no_repeats(rows, slices, request)
    return listing


def _rows_of_tables(
    tables: Sequence[PathTable], joined: JoinedTables, columns: Columns, has_volumes: bool
) -> Rows:
    """Return the rows of all tables. For volumes, the caller sets the field ``details``."""

    def names_in_table(row: int) -> RowNames:
        return tables[joined.table_of(row)].row_names

    paths = joined.cells["path"]
    return Rows(
        cells=joined.cells,
        locator=paths.__getitem__,
        name=lambda row: names_in_table(row).name(joined.row_in_table(row)),
        numbering=lambda row: names_in_table(row).numbering,
        default_group=lambda row: paths[row] if has_volumes else "",
        image_path=paths.__getitem__,
        file_split=lambda row: parse_split(names_in_table(row).folder),
        columns=columns,
        unused_cells=joined.join([table.unused_cells for table in tables]),
    )


def _has_volumes(paths: Sequence[str], request: RawRequest) -> bool:
    """Return whether a table lists NIfTI volumes.

    Raises:
        DataError: The table lists both volumes and pictures.
    """
    num_volumes = sum(map(is_nifti_name, paths))
    if 0 < num_volumes < len(paths):
        raise request.error(
            f"{num_volumes} of the table's {len(paths)} rows are NIfTI volumes, and the "
            "other rows are pictures",
            hint="Make two tables, one with the volumes and one with the pictures",
        )
    return num_volumes > 0


def _check_no_repeats(rows: Rows, slices: Sequence[int | None], request: RawRequest) -> None:
    """Check that no image has two rows, because isweep would use this image twice.

    Raises:
        DataError: An image has two rows.
    """
    labels = rows.cells["label"]
    earliest_rows: dict[tuple[str, int | None], int] = {}
    repeated_rows = []
    num_with_other_label = 0
    for row, image in enumerate(zip(rows.cells["path"], slices, strict=True)):
        earliest_row = earliest_rows.setdefault(image, row)
        if earliest_row != row:
            repeated_rows.append(row)
            num_with_other_label += int(labels[earliest_row] != labels[row])
    if repeated_rows:
        raise request.error(
            f"the table repeats the path of an earlier row for {rows.describe(repeated_rows)}. In "
            f"{num_with_other_label} of these rows, the label is different",
            hint="Remove the repeated rows",
        )


def table_reader(request: RawRequest) -> Reader:
    """Return a reader of the files in a table of paths, or of the images in Parquet rows."""
    read_single = single_reader(request)
    read_volume = volume_reader(request)
    read_parquet = ParquetReader(request)

    def read(item: Item) -> Iterable[Sample]:
        if is_nifti_name(item.locator):
            return read_volume(item)
        file, mark, row = item.locator.rpartition(MARK)
        if mark and row.isdigit() and is_parquet_name(file):
            return read_parquet(item)
        return read_single(item)

    return read


table_source = Source(list_table, table_reader)


def table_paths(request: RawRequest, folder: str = "") -> dict[int, str]:
    """Return the paths in a table by row number, to find the file of a row that a message names.

    Args:
        request: The request. Its raw path is the table, or the folder that contains the table.
        folder: Name of the table's folder if each split has a separate folder with a table;
            empty if there is only one table.

    Returns:
        Number of a row -> its path below the raw folder. Empty if the table cannot be read.
    """
    try:
        file = next(file for file in _table_files(request) if file.folder == folder)
        content = read_table_rows(file.path, request)
        path_column = find_columns(content.rows[0], ("path",), request).name_by_role["path"]
        column_index = content.rows[0].index(path_column)
    except (SweepError, StopIteration, IndexError, KeyError):
        return {}
    prefix = f"{folder}/" if folder else ""
    paths = {}
    for number, row in zip(content.numbers[1:], content.rows[1:], strict=True):
        if column_index < len(row):
            paths[number] = prefix + row[column_index]
    return paths


def _table_files(request: RawRequest) -> list[TableFile]:
    """Return the files with tables of paths.

    The result is the raw file, the table in the raw folder, or the table in the folder of each
    split. If there is no such table, the result is empty, because Parquet files may contain
    the images themselves.

    Raises:
        DataError: There are several tables, and it is unclear which of them to read.
    """
    root = request.root()
    if root.is_file():
        if is_parquet_name(root.name) and holds_images(root):
            return []
        return [TableFile(root)]
    splits = [path for path in root.iterdir() if path.is_dir() and is_split_word(path.name)]
    files = []
    for folder in [root, *sorted(splits)]:
        for name in MANIFESTS:
            if (folder / name).is_file():
                files.append(TableFile(folder / name, "" if folder == root else folder.name))
    folders = [file.folder for file in files]
    is_repeated = len(set(folders)) < len(files)
    is_also_above_splits = "" in folders and len(files) > 1
    if is_repeated or is_also_above_splits:
        names = [file.path.relative_to(root).as_posix() for file in files]
        raise request.error(
            f"there are several tables: {', '.join(names)}",
            hint="Use the path of one table, or move the other tables elsewhere",
        )
    return files


def _read_table(file: TableFile, request: RawRequest) -> PathTable:
    """Read the needed columns of a table."""
    content = read_table_rows(file.path, request)
    header = content.rows[0] if content.rows else []
    columns = find_columns(header, COLUMNS_READ, request, also_read=("slice",))
    if content.rows and not columns.labels:
        raise _no_label_error(content, request)
    if content.rows and "path" not in columns.name_by_role:
        raise _no_path_error(content, request)
    path_column = columns.name_by_role.get("path", "path")
    # An empty table has no columns. The error message then contains the usual names.
    label_columns = columns.labels or ("label",)
    needed = (path_column, *label_columns)
    optional = (*columns.name_by_role.values(), "slice")
    data = read_columns(file.path, content, request, needed, optional)
    for name, column in data.items():
        if name not in columns.labels:  # spaces may be part of a label
            data[name] = list(map(str.strip, column))
    numbering = describe_numbering(content.numbers)
    row_names = RowNames(file.folder, content.numbers[1:], numbering)
    cells = dict(columns.cells(data, request, row_names.full_name))
    cells["path"] = _paths_from_base(data[path_column], row_names, request)
    if "slice" in data:
        cells["slice"] = data["slice"]
    return PathTable(
        row_names=row_names,
        num_other_sheets=len(content.other_sheets),
        columns=columns,
        cells=cells,
        unused_cells=cells_of_columns(content, columns.unused),
    )


def _no_label_error(content: TableRows, request: RawRequest) -> DataError:
    """Return the error for a table without a label column.

    If several columns contain only 0 and 1, they may be one-hot labels. The message lists
    them.
    """
    binary = []
    for header, *cells in zip(*content.rows, strict=False):
        name = header.strip()
        values = {cell.strip().casefold() for cell in cells}
        if values and values <= ONE_HOT.keys() and name.casefold() not in ONE_HOT:
            binary.append(name)
    if len(binary) > 1:
        classes = first_of(binary, MAX_NAMED)
        return request.error(
            f"the table has no column 'label', but columns of 0 and 1: {classes}",
            hint=f"If these columns are the classes, set `label_columns: [{classes}]`",
        )
    error = content.error_without(
        ("label", *COLUMNS["label"]),
        f"has no column 'label'{describe_header(content.rows[0])}",
        hint="Rename the column of labels to label, or set `label_columns: [NAME]` "
        "(--label-columns NAME)",
    )
    return request.error(f"the table {error.problem}", hint=error.hint)


def _no_path_error(content: TableRows, request: RawRequest) -> DataError:
    """Return the error for a table without a path column."""
    header = content.rows[0]
    similar = ""
    if is_header(header):
        names = [name for name in header if column_key(name) not in KNOWN_KEYS]
        questions = (did_you_mean(name, names) for name in SIMILAR_TO_PATH)
        similar = next(filter(None, questions), "")
    error = content.error_without(
        ("path", *COLUMNS["path"]),
        f"has no column 'path'{describe_header(header)}",
        hint=f"Add this column. {similar}If it has another name, rename it to 'path'. isweep "
        f"looked for the column names {', '.join(('path', *COLUMNS['path']))}",
    )
    return request.error(f"the table {error.problem}", hint=error.hint)


def _paths_from_base(cells: Sequence[str], row_names: RowNames, request: RawRequest) -> list[str]:
    """Return the paths of a table's rows, relative to the raw folder.

    Args:
        cells: Paths in the table: all absolute, or all relative to the table's folder.
        row_names: The names of the rows, and the table's folder.
        request: The request, which contains the raw folder.

    Raises:
        DataError: A cell contains a list or bytes, or a path leads out of the raw folder.
    """
    if NOT_ONE_VALUE in cells:
        row_name = row_names.full_name(cells.index(NOT_ONE_VALUE))
        raise request.error(
            f"the path in {row_name} is a list or bytes, not one text",
            hint="Write one file name in each row, or store the images themselves as bytes "
            "in a Parquet column",
        )
    base = request.base().resolve()
    folder = row_names.folder
    are_absolute = bool(cells) and all(PurePosixPath(cell).is_absolute() for cell in cells)
    paths = []
    for row, cell in enumerate(cells):
        if are_absolute:
            if ".." in cell.split("/") or "\0" in cell:
                raise request.error(
                    f"the path in {row_names.full_name(row)} contains .. or a zero byte",
                    hint="Write the path without `..` and without zero bytes",
                )
            paths.append(Path(os.path.relpath(cell, base)).as_posix())
            continue
        name = plain_name(cell)
        if name is None:
            raise _outside_error(cell, row_names.full_name(row), request)
        paths.append(f"{folder}/{name}" if folder else name)
    return paths


def _outside_error(path: str, row_name: str, request: RawRequest) -> DataError:
    """Return the error for a path that leads out of the raw folder."""
    if "\\" in path and plain_name(path.replace("\\", "/").lstrip("/")):
        return request.error(
            f"the path in {row_name} contains backslashes and is an absolute path",
            hint=r"Write / instead of \, and use paths relative to the folder of the table",
        )
    return request.error(
        f"the path in {row_name} leads out of the folder of the table",
        hint="Use paths relative to the folder of the table",
    )


def _slices(rows: Rows, request: RawRequest) -> list[int | None]:
    """Return the slice number of every row.

    None means that the reader of volumes chooses the slices.

    Raises:
        DataError: A slice is not a number, the rows of a volume have different groups, or only
            some rows of a volume have a slice.
    """
    cells = rows.cells.get("slice", [""] * len(rows.cells["path"]))
    invalid_rows = [row for row, cell in enumerate(cells) if not SLICE.fullmatch(cell)]
    if invalid_rows:
        raise request.error(
            "the column 'slice' does not contain a whole number of 0 or more for "
            f"{rows.describe(invalid_rows)}",
            hint="Write the number of the axial slice, counted from 0 at the feet",
        )
    _check_volumes(rows, cells, request)
    return [int(cell) if cell else None for cell in cells]


def _check_volumes(rows: Rows, slice_cells: Sequence[str], request: RawRequest) -> None:
    """Check that the rows of a volume have the same group, and that all or none have a slice.

    Raises:
        DataError: The rows of a volume have different groups, or only some have a slice.
    """
    groups_of_volume: defaultdict[str, set[str]] = defaultdict(set)
    has_slice: defaultdict[str, set[bool]] = defaultdict(set)
    for row, path in enumerate(rows.cells["path"]):
        groups_of_volume[path].add(rows.group(row))
        has_slice[path].add(slice_cells[row] != "")
    num_in_several_groups = sum(len(groups) > 1 for groups in groups_of_volume.values())
    if num_in_several_groups:
        volumes = plural(num_in_several_groups, "volume")
        raise request.error(
            f"the slices of {volumes} are in several groups",
            hint="Write the same group in all rows of a volume, because a volume shows one patient",
        )
    num_mixed = sum(len(values) > 1 for values in has_slice.values())
    if num_mixed:
        volumes = plural(num_mixed, "volume")
        raise request.error(
            f"for {volumes}, some rows have a slice and others have none. isweep might therefore "
            "use a slice twice",
            hint="Write a slice in every row of a volume, or in no row",
        )


def _check_files(rows: Rows, has_volumes: bool, request: RawRequest) -> dict[str, int]:
    """Check that every path in the table is a file.

    Returns:
        Reason -> number of images in the raw folder that are not in the table.

    Raises:
        DataError: A path is not a file, or is a link out of the raw folder.
    """
    paths = rows.cells["path"]
    listed = set(paths)
    # The raw folder may contain other files that the table does not list, such as the links of
    # a virtual environment. The search is therefore not strict, and leaves out hidden files.
    # If the table lists such a path, the code below checks this path.
    content = search_folder(request.base(), request, strict=False)
    files = set(content.files)
    base = request.base().resolve()
    _check_links(listed, set(content.special), base, request)
    missing = {name for name in listed - files if not _is_plain_file(base / name)}
    if missing:
        missing_rows = rows.describe(row for row, path in enumerate(paths) if path in missing)
        raise request.error(
            f"the file in the column 'path' does not exist for {missing_rows}",
            hint=_missing_files_hint(missing, files),
        )
    is_readable = is_nifti_name if has_volumes else is_single_image_name
    num_unlisted = sum(map(is_readable, files - listed))
    hidden_counts = count_hidden(set(content.hidden) - listed, is_readable)
    return {"image without a row in the table": num_unlisted, **hidden_counts}


def _missing_files_hint(missing: set[str], files: set[str]) -> str:
    """Return a hint for paths in the table that are not files.

    Args:
        missing: Paths in the table that are not files.
        files: Names of all files in the raw folder.
    """
    hint = "Write paths relative to the folder of the table"
    if not any(PurePosixPath(name).suffix for name in missing):
        hint += ", with their extension such as .jpg"
    num_similar = len(set(map(plain_id, missing)).intersection(map(plain_id, files)))
    if num_similar:
        hint += (
            f". For {num_similar} of these paths, a file exists whose name has another "
            "letter case or Unicode form (macOS changes the Unicode form of names)"
        )
    return hint


def _check_links(listed: set[str], special: set[str], base: Path, request: RawRequest) -> None:
    """Check that the paths in the table use no link out of the raw folder and no special file.

    Args:
        listed: The paths in the table.
        special: The names of links and special files in the raw folder.
        base: The raw folder as an absolute path without links.
        request: The request. Its method ``error`` makes the errors.

    Raises:
        DataError: A path is such a link or special file, or one of its folders is a link.
    """
    if not special:
        return
    used: set[str] = set()
    for name in listed:
        path = PurePosixPath(name)
        used.update(map(str, (path, *path.parents)))
    for name in sorted(used & special):
        check_inside(base, base / name, request.hashed(name), request)


def _is_plain_file(path: Path) -> bool:
    """Return whether a path is a file and not a link."""
    try:
        return path.is_file() and not path.is_symlink()
    except OSError:  # the name is too long
        return False


def _mislabeled_folders(cells: Cells) -> dict[str, int]:
    """Count rows whose image lies in a folder with the name of another class.

    A folder may have the name of a class by chance. If at most half of all images lie in a
    folder with the name of their class, no row is counted.

    Returns:
        A dict with one flag and the number of rows. The dict is empty if no row is counted.
    """
    labels = cells["label"]
    classes = set(labels)
    num_in_own_folder = 0
    num_in_other_folder = 0
    for label, path in zip(labels, cells["path"], strict=True):
        folder_classes = classes.intersection(path.split("/")[:-1])
        if folder_classes == {label}:
            num_in_own_folder += 1
        elif folder_classes and label not in folder_classes:
            num_in_other_folder += 1
    if num_in_other_folder and 2 * num_in_own_folder > len(labels):
        return {"row whose folder has the name of another class": num_in_other_folder}
    return {}
