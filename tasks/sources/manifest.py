"""Your own images or DICOM files with a table: columns path, label and, if you have them, group and split.

Layout: :mod:`tasks.sources.manifest` names the documents. ``--raw`` is the table itself, or a folder
with one in it; paths are relative to its folder, or all absolute. ``split`` is ``train``, ``test``, ``val``
(left out and counted) or blank. Labels are text: whole numbers sort as numbers, all else as text. The columns
may have the names that Kaggle's tables and Hugging Face's ``imagefolder`` give them; which one was taken is
recorded.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem
from tasks.sources.dicom import NO_PATIENT, decode_dicom, frames_to_pixels
from tasks.sources.labels import PLACEHOLDERS, check_spellings, is_missing, mapped_label, sort_labels
from tasks.sources.own import NAMES, VALIDATION_LEFT_OUT, check_group_sides, plain_id, split_of
from tasks.sources.pictures import decode_image, is_image_name
from tasks.sources.raw import checked_name, read_locator, resolve_name, walk
from tasks.sources.tables import (
    HEADER_NAME,
    MAX_SHOWN_LENGTH,
    SEVERAL,
    column_key,
    first_hashed,
    header_names,
    header_of,
    read_lines,
    read_table,
)

# The tables of your own images: where they lie, which of their columns is what, and their rows.
#
# Layout: one table; or ``metadata.csv``, ``metadata.jsonl`` or ``metadata.parquet`` with ``file_name`` in a
# folder or in each of its ``train`` and ``test``, as the ``datasets`` documentation lays out an
# ``imagefolder``; or one column of 0 and 1 for each class, as the ISIC challenges of 2018 and 2019 give
# theirs.

MANIFESTS = (
    *("manifest.csv", "manifest.tsv"),
    *("metadata.csv", "metadata.jsonl", "metadata.parquet"),
)
ALIASES = {
    "path": ("filename", "file_name", "filepath", "file_path", "image", "image_path", "img_path"),
    "label": ("class", "class_name", "label_name", "target", "y"),
    "group": ("patient_id", "patient", "patientid", "subject_id", "subject", "participant_id", "case_id"),
    "split": ("set", "subset", "partition", "fold_name"),
}
"""Usual names of the columns, asked only for a column that is not there under its own name."""

TRAITS = ("site", "scanner", "manufacturer", "model", "view", "device")
"""Columns that, if there are any, must not tell the label."""

ONE_HOT = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
MAX_NAMED = 10

Row = dict[str, str]


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        path: Where it is.
        folder: What its paths are relative to, as seen from the raw folder; empty at its top.
        split: The split that its folder is called after, as written, or empty.
    """

    path: Path
    folder: str = ""
    split: str = ""


@dataclass(frozen=True)
class Columns:
    """Which of a table's columns is what.

    Attributes:
        of: Our name -> theirs, of path, group and split, and of a single label.
        labels: The columns of labels: one, or one of 0 and 1 for each class.
        unused: Those that could be one of ours, but another is called so.
        others: Those that nobody reads.
    """

    of: dict[str, str]
    labels: tuple[str, ...]
    unused: tuple[str, ...]
    others: tuple[str, ...] = ()

    def flags(self) -> list[str]:
        """Return what to tell of them."""
        renamed = [
            f"column {theirs} read as {ours}"
            for ours, theirs in self.of.items()
            if column_key(ours) != column_key(theirs)
        ]
        more = ", ..." if len(self.others) > MAX_NAMED else ""
        others = [f"columns not used: {', '.join(self.others[:MAX_NAMED])}{more}"] if self.others else []
        return renamed + list(self.unused) + others


def find_tables(request: RawRequest) -> list[Table]:
    """Return the raw file itself, the one table in the raw folder, or those in its splits.

    Raises:
        DataError: when there is none, or several in one folder.
    """
    root = request.root()
    if root.is_file():
        return [Table(root)]
    found = [Table(path) for path in _named_tables(root)]
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and split_of(path.name) != ""):
        found += [Table(path, folder.name, folder.name) for path in _named_tables(folder)]
    folders = [table.folder for table in found]
    if not found or len(set(folders)) < len(found) or ("" in folders and len(found) > 1):
        listed = ", ".join(f"{table.folder}/{table.path.name}".lstrip("/") for table in found) or "none"
        rule = f"{request.dataset.name}: the folder must hold {MANIFESTS[0]}, or one table in each split"
        raise DataError(rule, listed, "give the right table itself, or move the others away")
    return found


def _named_tables(folder: Path) -> list[Path]:
    return [folder / name for name in MANIFESTS if (folder / name).is_file()]


def find_columns(tables: Sequence[Table], more: Sequence[str], request: RawRequest) -> Columns:
    """Return which columns are path, label, group and split, the same in all tables; ``more`` are read, too.

    Raises:
        DataError: when several columns could be one of them, or none is the label.
    """
    found = [_columns(table.path, more, request) for table in tables]
    if any(columns.of != found[0].of for columns in found):
        rule = f"{request.dataset.name}: the tables of all splits must call their columns alike"
        raise DataError(rule, "other names", "rename them")
    return found[0]


def _columns(table: Path, more: Sequence[str], request: RawRequest) -> Columns:
    header, name, given = header_of(table, request), request.dataset.name, request.dataset.label_columns
    columns: dict[str, str] = {}
    unused: list[str] = []
    for ours, others in ALIASES.items():
        near = sorted({other for other in others if column_key(other) in header})
        if ours == "label" and given:
            columns |= {ours: given[0]} if len(given) == 1 else {}
        elif column_key(ours) in header:
            columns[ours] = ours
            unused += [f"column {other} not used, since there is {ours}" for other in near]
        elif len(near) > 1:
            rule = f"{name}: one column must be the {ours}"
            raise DataError(rule, ", ".join(near), f"call it {ours}")
        else:
            columns[ours] = near[0] if near else ours
    if header and not given and column_key(columns["label"]) not in header:
        raise _no_label(table, request)
    labels = given or (columns["label"],)
    known = {column_key(used) for used in (*columns.values(), *labels, *TRAITS, *more)}
    return Columns(columns, labels, tuple(unused), _others(header, known))


def _others(header: Sequence[str], known: Container[str]) -> tuple[str, ...]:
    """Return the columns that nobody reads, those that could be another name of a known one left out."""
    near = {column_key(other) for others in ALIASES.values() for other in others}
    return tuple(
        name[:MAX_SHOWN_LENGTH]
        for name in header
        if name not in known and name not in near and HEADER_NAME.fullmatch(name)
    )


def _no_label(table: Path, request: RawRequest) -> DataError:
    """Return the error for a table without a column of labels, which may have one for each class."""
    name, lines = request.dataset.name, read_lines(table, request)
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


def read_rows(
    tables: Sequence[Table], columns: Columns, more: Sequence[str], request: RawRequest
) -> list[Row]:
    """Return the rows of all tables under our names of columns, with paths below the raw folder.

    Args:
        tables: In order.
        columns: See :func:`find_columns`.
        more: Other columns to take where they are there.
        request: For its labels' map, and for messages.

    Raises:
        DataError: for paths that lead elsewhere, labels of several classes, or a split unlike the folder's.
    """
    return [row for table in tables for row in _rows(table, columns, more, request)]


def _rows(table: Table, columns: Columns, more: Sequence[str], request: RawRequest) -> list[Row]:
    of, labels = columns.of, columns.labels
    optional = (of["group"], of["split"], *TRAITS, *more)
    found = read_table(table.path, request, (of["path"], *labels), optional, raw=labels)
    names = {theirs: ours for ours, theirs in of.items()}
    rows = [{names.get(name, name): cell for name, cell in row.items()} for row in found]
    if len(labels) > 1:
        _take_one_hot(rows, labels, request)
    prefix = f"{table.folder}/" if table.folder else ""
    absolute = bool(rows) and all(PurePosixPath(row["path"]).is_absolute() for row in rows)
    for row in rows:
        if absolute:
            row["path"] = _relative(row["path"], request.base(), request)
        else:
            row["path"] = f"{prefix}{checked_name(row['path'], request)}"
        row["label"] = mapped_label(row["label"], request)
    _check_single(rows, request)
    _check_split(rows, table, request)
    return rows


def _take_one_hot(rows: Sequence[Row], labels: Sequence[str], request: RawRequest) -> None:
    """Turn columns of 0 and 1 into one label.

    Raises:
        DataError: for other cells, and for rows of no class or of several.
    """
    odd = none = several = 0
    for row in rows:
        cells = {label: ONE_HOT.get(row.pop(label).strip().casefold()) for label in labels}
        chosen = [label for label, cell in cells.items() if cell]
        odd += None in cells.values()
        none += not chosen
        several += len(chosen) > 1
        row["label"] = chosen[0] if chosen else ""
    if odd or none or several:
        raise DataError(
            f"{request.dataset.name}: in every row one of {len(labels)} label columns must be 1, others 0",
            f"{none} rows of no class, {several} of several, {odd} with other cells",
            "take those rows out; an image of several classes cannot be used",
        )


def _check_single(rows: Sequence[Row], request: RawRequest) -> None:
    several = sum(row["label"] == SEVERAL for row in rows)
    if several:
        rule = f"{request.dataset.name}: a row must have one label, as text or number"
        raise DataError(rule, f"{several} with several labels, or bytes", "write one class per image")


def _check_split(rows: Sequence[Row], table: Table, request: RawRequest) -> None:
    """Give rows the split of their table's folder."""
    if not table.split:
        return
    own = [cell for row in rows if not is_missing(cell := row.get("split", ""))]
    unlike = sum(split_of(cell) != split_of(table.split) for cell in own)
    if unlike:
        rule = f"{request.dataset.name}: the column split must say what the folder says"
        raise DataError(
            rule, f"{unlike} rows in {table.split} with another", "drop the column or move the files"
        )
    for row in rows:
        row["split"] = table.split


def _relative(path: str, folder: Path, request: RawRequest) -> str:
    """Return an absolute path as seen from the raw folder; never one with ``..`` in it."""
    if ".." in path.split("/") or "\0" in path:
        rule = f"{request.dataset.name}: names in a table must not lead back up"
        raise DataError(rule, request.hashed(path), "write them without ..")
    return Path(os.path.relpath(path, folder.resolve())).as_posix()


# Files that hold one image each, pictures and DICOM alike: the file decides, not its ending.

DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
INTENSITY = "8 bits as stored; more by own maximum; DICOM: stored values (CT: HU + 1024) by own maximum"


def is_dicom_name(name: str) -> bool:
    """Tell whether a name looks like a DICOM file's."""
    return name.lower().endswith(DICOM_ENDINGS)


def is_single_image_name(name: str) -> bool:
    """Tell whether a name looks like that of a picture or a DICOM file."""
    return is_image_name(name) or is_dicom_name(name)


def read_single(base: Path, item: Item) -> list[Sample]:
    """Read the one image in an item's file.

    A DICOM file without a group of its item gets the header's patient, whose id may be spelt in several ways,
    and a flag when there is none.

    Raises:
        SkipItem: for what is no image, damaged, too large, or holds several frames.
    """
    body = read_locator(base, item.locator)
    if body[128:132] != b"DICM" and not is_dicom_name(item.locator):
        return [decode_image(body)]
    dicom = decode_dicom(body)
    if len(dicom.values) != 1:
        raise SkipItem("several frames")
    known = dicom.known_patient()
    lacking = () if known or item.group else (NO_PATIENT,)
    patient = plain_id(known)
    return [
        Sample(
            pixels,
            group="" if item.group else patient,
            conversions=notes,
            flags=(*flags, *lacking),
            traits=dicom.traits,
            patient=patient,
        )
        for pixels, notes, flags in frames_to_pixels(dicom)
    ]


def single_reader(request: RawRequest) -> Reader:
    """Return a reader of files with one image each."""
    base = request.base()

    def read(item: Item) -> list[Sample]:
        traits = tuple(
            (str(name), str(value)) for name, value in zip(item.details[::2], item.details[1::2], strict=True)
        )
        return [replace(sample, traits=(*sample.traits, *traits)) for sample in read_single(base, item)]

    return read


class Manifest:
    """Image files named in a table."""

    optional: tuple[str, ...] = ()
    intensity = INTENSITY
    block_size = 128

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per row, in the table's order.

        Raises:
            DataError: for missing or single labels, a class spelt in two ways, files named twice or absent,
                bad splits, or ids that cannot tell patients apart; at once and with counts.
        """
        tables = find_tables(request)
        columns = find_columns(tables, self.optional, request)
        rows = read_rows(tables, columns, self.optional, request)
        _check_rows(rows, [self.identity(row) for row in rows], request)
        kept = [row for row in rows if split_of(row.get("split", "")) is not None]
        label_names = sort_labels(row["label"] for row in kept)
        if len(label_names) < 2:
            raise DataError(f"{request.dataset.name}: the label column needs two classes", "one only")
        index = {name: label for label, name in enumerate(label_names)}
        items = [self.item(row, index[row["label"]], request) for row in kept]
        check_group_sides(((item.group, item.split) for item in items), request)
        excluded = {VALIDATION_LEFT_OUT: len(rows) - len(kept)} if len(kept) < len(rows) else {}
        return Listing(
            items,
            label_names,
            excluded=excluded | self._check_files(request.base(), [row["path"] for row in rows], request),
            intensity=self.intensity,
            block_size=self.block_size,
            flags=dict.fromkeys(columns.flags(), len(rows)) | _other_folders(rows),
        )

    def _check_files(self, folder: Path, named: Sequence[str], request: RawRequest) -> dict[str, int]:
        """Check that every named file is there, and count images that no row names."""
        # One walk also refuses links out and FIFOs; only names it did not meet (hidden ones) are looked up.
        found, known = list(walk(folder, request)), set(named)
        missing = [name for name in sorted(known.difference(found)) if not _is_file(folder, name, request)]
        if missing:
            rule = f"{request.dataset.name}: every path of the manifest must be a file"
            bare = not any(PurePosixPath(name).suffix for name in missing)
            way_out = "paths are relative to the table" + (", with their ending such as .jpg" if bare else "")
            raise DataError(rule, f"missing: {first_hashed(request, missing)}", way_out)
        extra = sum(name not in known and self.reads(name) for name in found)
        return {"image without a row in the manifest": extra} if extra else {}

    def identity(self, row: Row) -> str:
        """Return what no two rows may share."""
        return row["path"]

    def item(self, row: Row, label: int, request: RawRequest) -> Item:
        """Return the item of one row."""
        split = split_of(row.get("split", "")) or ""
        return Item(row["path"], label, row.get("group", ""), split, _details(row))

    def reads(self, name: str) -> bool:
        """Tell whether a file's name looks like one of those this source is for."""
        return is_single_image_name(name)

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of the named files."""
        return single_reader(request)


def _is_file(folder: Path, name: str, request: RawRequest) -> bool:
    if name.startswith("../"):  # from an absolute path; links and what is no plain file stay refused
        path = folder.resolve() / name
        return path.is_file() and not path.is_symlink()
    try:
        return resolve_name(folder, name, request).is_file()
    except OSError:  # a name longer than any file's
        return False


def _other_folders(rows: Sequence[Row]) -> dict[str, int]:
    """Count rows whose folder is called as another class, where the folders of most are called as theirs."""
    classes = {row["label"] for row in rows}
    named = [(row, classes.intersection(row["path"].split("/")[:-1])) for row in rows]
    alike = sum(found == {row["label"]} for row, found in named)
    unlike = sum(bool(found) and row["label"] not in found for row, found in named)
    return {"row whose folder is called as another class": unlike} if unlike and 2 * alike > len(rows) else {}


def _details(row: Row) -> tuple[str, ...]:
    """Return traits as name, value, name, value ..."""
    return tuple(text for name in TRAITS if name in row for text in (name, row[name]))


def _check_rows(rows: list[Row], identities: Sequence[str], request: RawRequest) -> None:
    name = request.dataset.name
    if not rows:
        raise DataError(f"{name}: the manifest must have rows", "only a header")
    blank = [row["path"] for row in rows if is_missing(row["label"])]
    if blank:
        raise DataError(
            f"{name}: every row needs a label",
            f"blank: {first_hashed(request, blank)}",
            "give them a class or take the rows out; blank, NaN, NA and None are no classes",
        )
    check_spellings({row["label"] for row in rows}, request)
    labels_of: defaultdict[str, set[str]] = defaultdict(set)
    for row, identity in zip(rows, identities, strict=True):
        labels_of[identity].add(row["label"])
    if len(labels_of) < len(rows):
        both = [path for path, labels in labels_of.items() if len(labels) > 1]
        found = f"{len(rows) - len(labels_of)} repeated; with different labels: {first_hashed(request, both)}"
        raise DataError(f"{name}: every path must be in the manifest once", found)
    bad = sum(bool(cell) and split_of(cell) == "" for cell in (row.get("split", "") for row in rows))
    if bad:
        known = ", ".join(NAMES)
        raise DataError(f"{name}: split must be one of {known} or blank", f"{bad} other cells")
    if "group" in rows[0]:
        _check_groups(rows, request)


def _check_groups(rows: list[Row], request: RawRequest) -> None:
    name, groups = request.dataset.name, Counter(row["group"] for row in rows)
    absent = sum(count for group, count in groups.items() if is_missing(group))
    if absent:
        raise DataError(f"{name}: every row needs a group when there is such a column", f"{absent} blank")
    top, count = groups.most_common(1)[0]
    if len(groups) < 2 or (top.casefold() in PLACEHOLDERS and 2 * count > len(rows)):
        found = f"one id for {count} of {len(rows)} rows"
        raise DataError(
            f"{name}: group ids must tell patients apart, or no patient-level split exists", found
        )


# Your own DICOM files with a table, laid out like the one for images (:mod:`tasks.sources.manifest`).
#
# Format of the files: DICOM PS3.10 (:mod:`tasks.sources.dicom`).
#
# Without a ``group`` column the header's patient id is the group. Only single-frame files are taken.


class DicomManifest(Manifest):
    """DICOM files named in a table."""

    def reads(self, name: str) -> bool:
        """Tell whether a name looks like a DICOM file's."""
        return is_dicom_name(name)
