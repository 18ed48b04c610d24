"""Your own images or DICOM files with a table: columns path, label and, if you have them, group and split.

Layout: :mod:`tasks.sources.manifest_tables` names the documents. ``--raw`` is the table itself, or a folder
with one in it; paths are relative to its folder, or all absolute. ``split`` is ``train``, ``test``, ``val``
(left out and counted) or blank. Labels are text: whole numbers sort as numbers, all else as text. The columns
may have the names that Kaggle's tables and Hugging Face's ``imagefolder`` give them; which one was taken is
recorded.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Reader
from tasks.sources.files import resolve_name, walk
from tasks.sources.groups import check_group_sides
from tasks.sources.label_tables import first_hashed
from tasks.sources.labels import PLACEHOLDERS, check_spellings, is_missing, sort_labels
from tasks.sources.manifest_tables import TRAITS, Row, find_columns, find_tables, read_rows
from tasks.sources.one_image import INTENSITY, is_single_image_name, single_reader
from tasks.sources.splits import NAMES, VALIDATION_LEFT_OUT, split_of


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
