"""Your own images with a table of them: pictures, DICOM files or NIfTI volumes by path, or their bytes in
Parquet.

Layout: one table with columns path, label and, if you have them, group and split, in text with any separator,
JSON lines, xlsx or Parquet; or ``metadata.csv``, ``metadata.jsonl`` or ``metadata.parquet`` with
``file_name`` in a folder or in each of its ``train`` and ``test``, as the ``datasets`` documentation lays out
an ``imagefolder``; or one column of 0 and 1 for each class, as the ISIC challenges of 2018 and 2019 give
theirs. Format of volumes: NIfTI-1 and -2, of DICOM files: PS3.10. Parquet with the images in it:
:mod:`tasks.sources.parquet`.

``--raw`` is the table itself, or a folder with one in it; paths are relative to its folder, or all absolute.
A column ``slice`` names one axial slice of a volume, counted from 0 at the feet; a volume may then have
several rows. Without a ``group`` column a volume is a group, and so is the patient of a DICOM header.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from search_spaces.errors import DataError, SweepError
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample
from tasks.sources.dicom import INTENSITY, is_single_image_name, single_reader
from tasks.sources.nifti import VOLUME_INTENSITY, is_nifti_name, volume_reader
from tasks.sources.own import (
    MAX_NAMED,
    ONE_HOT,
    TRAITS,
    Columns,
    Rows,
    find_columns,
    one_hot,
    own_listing,
    split_of,
)
from tasks.sources.parquet import is_row, list_parquet, parquet_files, parquet_reader
from tasks.sources.raw import checked_name, resolve_name, walk
from tasks.sources.tables import MANIFESTS, header_names, read_lines, read_table


@dataclass(frozen=True)
class Listed:
    """One table, and what its paths are relative to and its split, when it lies in a folder called so."""

    path: Path
    folder: str = ""


class Table:
    """Images that a table lists, or that it holds."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per row, in the table's order.

        Raises:
            DataError: for files named twice or absent, paths that lead elsewhere, slices that are none, and
            all
                that :func:`tasks.sources.own.own_listing` refuses.
        """
        tables = _tables(request)
        if not tables:
            return list_parquet(parquet_files(request), request)
        read = [_read(table, request) for table in tables]
        columns = read[0][0]
        if any(other.of != columns.of for other, _ in read):
            rule = f"{request.dataset.name}: the tables of all splits must call their columns alike"
            raise DataError(rule, "other names", "rename them")
        cells = {name: [cell for _, found in read for cell in found[name]] for name in read[0][1]}
        places = [
            (table, number)
            for table, (_, found) in zip(tables, read, strict=True)
            for number in range(len(found["path"]))
        ]
        if not places:
            raise DataError(f"{request.dataset.name}: the table must have rows", "only a header")
        volumes = _are_volumes(cells["path"], request)
        slices = _slices(cells, request) if volumes else None
        flags = columns.flags
        if not volumes and "slice" in cells:
            flags = (*flags, "columns not used: slice")

        def name(row: int) -> str:
            table, number = places[row]
            return f"{table.folder} row {number + 2}".lstrip()

        rows = Rows(
            labels=cells["label"],
            locator=cells["path"].__getitem__,
            name=name,
            groups=cells.get("group"),
            alone=cells["path"].__getitem__ if volumes else lambda _: "",
            splits=cells.get("split"),
            side=lambda row: split_of(places[row][0].folder),
            traits={trait: cells[trait] for trait in TRAITS if trait in cells},
            details=lambda row: (slices[row],) if slices else (),
        )
        listing = own_listing(
            rows,
            request,
            flags=flags,
            counts=_other_folders(cells),
            intensity=VOLUME_INTENSITY if volumes else INTENSITY,
            block_size=4 if volumes else 128,
            one_each=not slices or None not in slices,
            excluded=_check_files(cells, rows, volumes, request),
        )
        _check_repeats(rows, slices, request)
        return listing

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of the named files, or of the table's own images."""
        pictures, volumes, rows = single_reader(request), volume_reader(request), parquet_reader(request)

        def read(item: Item) -> Iterable[Sample]:
            is_volume = is_nifti_name(item.locator)
            return (volumes if is_volume else rows if is_row(item.locator) else pictures)(item)

        return read


def table_paths(request: RawRequest, folder: str = "") -> dict[int, str]:
    """Return the paths of a table as written, by the number that messages give its rows.

    Args:
        request: Of the table, or of a folder with one.
        folder: Which of several: that of its split.
    """
    try:
        table = next(one for one in _tables(request) if one.folder == folder)
        lines = read_lines(table.path, request)
        column = find_columns(lines[0], ("path",), request).of["path"]
    except (SweepError, StopIteration, IndexError, KeyError):
        return {}
    place = lines[0].index(column)
    return {number: row[place] for number, row in enumerate(lines[1:], 2) if place < len(row)}


def _tables(request: RawRequest) -> list[Listed]:
    """Return the raw file itself, the one table in the raw folder, or those in its splits; none for Parquet
    files that hold the images.
    """
    root = request.root()
    if root.is_file():
        return [] if parquet_files(request) else [Listed(root)]
    found = [Listed(path) for path in _named_tables(root)]
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and split_of(path.name) != ""):
        found += [Listed(path, folder.name) for path in _named_tables(folder)]
    if not found and parquet_files(request):
        return []
    folders = [table.folder for table in found]
    if not found or len(set(folders)) < len(found) or ("" in folders and len(found) > 1):
        listed = ", ".join(f"{table.folder}/{table.path.name}".lstrip("/") for table in found) or "none"
        rule = f"{request.dataset.name}: the folder must hold {MANIFESTS[0]}, or one table in each split"
        raise DataError(rule, listed, "give the right table itself, or move the others away")
    return found


def _named_tables(folder: Path) -> list[Path]:
    return [folder / name for name in MANIFESTS if (folder / name).is_file()]


def _read(table: Listed, request: RawRequest) -> tuple[Columns, dict[str, list[str]]]:
    """Return what a table's columns are, and the cells of those that are read under our names."""
    lines = read_lines(table.path, request)
    header = lines[0] if lines else []
    wanted = ("path", "label", "group", "split")
    columns = find_columns(header, wanted, request, more=("slice",))
    if lines and not columns.labels:
        raise _no_label(lines, request)
    theirs = {ours: name for ours, name in columns.of.items() if ours != "label"} | {"slice": "slice"}
    needed = (theirs.setdefault("path", "path"), *(columns.labels or ("label",)))
    rows = read_table(table.path, request, needed, tuple(theirs.values()), raw=columns.labels, lines=lines)
    cells = {ours: [row[name] for row in rows] for ours, name in theirs.items() if rows and name in rows[0]}
    labels = {name: [row[name] for row in rows] for name in columns.labels}
    cells["label"] = one_hot(labels, request) if len(labels) > 1 else next(iter(labels.values()), [])
    cells["path"] = _paths(cells.get("path", []), table, request)
    return columns, cells


def _no_label(lines: Sequence[Sequence[str]], request: RawRequest) -> DataError:
    """Return the error for a table without a column of labels, which may have one for each class."""
    name = request.dataset.name
    binary = [
        header.strip()
        for header, *cells in zip(*lines, strict=False)
        if header.strip().casefold() not in ONE_HOT
        and cells
        and all(cell.strip().casefold() in ONE_HOT for cell in cells)
    ]
    if len(binary) > 1:
        shown = ", ".join(binary[:MAX_NAMED]) + (", ..." if len(binary) > MAX_NAMED else "")
        way_out = f"if they are the classes, name them: label_columns: [{shown}], or --label-columns"
        return DataError(f"{name}: the table must have one column label", f"0 and 1 in {shown}", way_out)
    found = f"no label{header_names(lines[0])}"
    way_out = "call it label, or name it: label_columns: [NAME], or --label-columns NAME"
    return DataError(f"{name}: the table must have a column of labels", found, way_out)


def _paths(cells: Sequence[str], table: Listed, request: RawRequest) -> list[str]:
    """Return paths as seen from the raw folder."""
    name, base = request.dataset.name, request.base().resolve()
    absolute = bool(cells) and all(PurePosixPath(cell).is_absolute() for cell in cells)
    found = []
    for number, cell in enumerate(cells):
        where = f"{table.folder} row {number + 2}".lstrip()
        if not absolute:
            prefix = f"{table.folder}/" if table.folder else ""
            found.append(prefix + checked_name(cell, request, where))
        elif ".." in cell.split("/") or "\0" in cell:
            raise DataError(f"{name}: names in a table must not lead back up", where, "write them without ..")
        else:
            found.append(Path(os.path.relpath(cell, base)).as_posix())
    return found


def _are_volumes(paths: Sequence[str], request: RawRequest) -> bool:
    """Tell whether the table lists NIfTI volumes."""
    volumes = sum(map(is_nifti_name, paths))
    if 0 < volumes < len(paths):
        rule = f"{request.dataset.name}: a table must list NIfTI volumes or pictures, not both"
        raise DataError(rule, f"{volumes} volumes of {len(paths)} rows", "make two tables of them")
    return volumes > 0


def _slices(cells: dict[str, list[str]], request: RawRequest) -> list[int | None]:
    """Return the slice of every row, None where the rule's are taken."""
    name, found = request.dataset.name, []
    for number, cell in enumerate(cells.get("slice", [""] * len(cells["path"]))):
        if cell and not (cell.isascii() and cell.isdigit() and len(cell) < 10):
            raise DataError(
                f"{name}: slice must be a whole number from 0", f"another cell in row {number + 2}"
            )
        found.append(int(cell) if cell else None)
    groups: defaultdict[str, set[str]] = defaultdict(set)
    forms: defaultdict[str, set[bool]] = defaultdict(set)
    for number, path in enumerate(cells["path"]):
        groups[path].add(cells["group"][number] if "group" in cells else "")
        forms[path].add(found[number] is None)
    if several := sum(len(ids) > 1 for ids in groups.values()):
        rule = f"{name}: all slices of a volume must be in one group"
        raise DataError(rule, f"{several} volumes in several", "a volume is of one patient")
    if mixed := sum(len(kinds) > 1 for kinds in forms.values()):
        rule = f"{name}: a volume's rows must all name a slice, or none"
        raise DataError(rule, f"{mixed} volumes with both", "else slices may be taken twice")
    return found


def _check_repeats(rows: Rows, slices: Sequence[int | None] | None, request: RawRequest) -> None:
    first: dict[tuple[str, int | None], int] = {}
    repeated, unlike = [], 0
    for row in range(len(rows.labels)):
        one = first.setdefault((rows.locator(row), slices[row] if slices else None), row)
        if one != row:
            repeated.append(row)
            unlike += rows.labels[one] != rows.labels[row]
    if repeated:
        found = f"repeated in {rows.named(repeated)}; with different labels: {unlike}"
        rule = f"{request.dataset.name}: every path must be in the table once"
        raise DataError(rule, found, "take the repeats out")


def _check_files(
    cells: dict[str, list[str]], rows: Rows, volumes: bool, request: RawRequest
) -> dict[str, int]:
    """Check that every named file is there, and count images that no row names."""
    # One walk also refuses links out and FIFOs; only names it did not meet (hidden ones) are looked up.
    folder, paths = request.base(), cells["path"]
    found, known = set(walk(folder, request)), set(paths)
    absent = {name for name in known.difference(found) if not _is_file(folder, name, request)}
    if absent:
        rule = f"{request.dataset.name}: every path of the table must be a file"
        bare = not any(PurePosixPath(name).suffix for name in absent)
        way_out = "paths are relative to the table" + (", with their ending such as .jpg" if bare else "")
        missing = rows.named(row for row, path in enumerate(paths) if path in absent)
        raise DataError(rule, f"missing: {missing}", way_out)
    reads = is_nifti_name if volumes else is_single_image_name
    extra = sum(name not in known and reads(name) for name in found)
    return {"image without a row in the table": extra} if extra else {}


def _is_file(folder: Path, name: str, request: RawRequest) -> bool:
    if name.startswith("../"):  # from an absolute path; links and what is no plain file stay refused
        path = folder.resolve() / name
        return path.is_file() and not path.is_symlink()
    try:
        return resolve_name(folder, name, request).is_file()
    except OSError:  # a name longer than any file's
        return False


def _other_folders(cells: dict[str, list[str]]) -> dict[str, int]:
    """Count rows whose folder is called as another class, where the folders of most are called as theirs."""
    classes = set(cells["label"])
    named = [
        (label, classes.intersection(path.split("/")[:-1]))
        for label, path in zip(cells["label"], cells["path"], strict=True)
    ]
    alike = sum(found == {label} for label, found in named)
    unlike = sum(bool(found) and label not in found for label, found in named)
    return (
        {"row whose folder is called as another class": unlike} if unlike and 2 * alike > len(named) else {}
    )
