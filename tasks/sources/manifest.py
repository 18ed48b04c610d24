"""Your own images or DICOM files with a CSV manifest: columns path, label and, if you have them, group and
split.

``--raw`` is the CSV itself, or a folder with one ``manifest.csv`` in it; paths are relative to its folder.
``split`` is ``train``, ``test`` or blank. Labels are text: whole numbers sort as numbers, all else as text.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import cast

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, Split
from tasks.sources.files import checked_name, resolve_name, walk
from tasks.sources.image_files import is_image_name, read_image
from tasks.sources.label_tables import first_hashed, read_table

MANIFEST = "manifest.csv"


class Manifest:
    """Image files named in a CSV."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per row, in the table's order.

        Raises:
            DataError: for blank or single labels, names given twice, files that do not exist, bad splits, or
                ids
                that cannot tell patients apart; at once and with counts.
        """
        table = manifest_path(request)
        rows = read_table(table, request, ("path", "label"), ("group", "split"))
        _check_rows(rows, request)
        label_names = sort_labels({row["label"] for row in rows})
        if len(label_names) < 2:
            raise DataError(f"{request.dataset.name}: the label column needs two classes", "one only")
        index = {name: label for label, name in enumerate(label_names)}
        items = [
            Item(
                checked_name(row["path"], request),
                index[row["label"]],
                row.get("group", ""),
                cast(Split, row.get("split", "").lower()),
            )
            for row in rows
        ]
        # One walk also refuses links out and FIFOs; only names it did not meet (hidden ones) are looked up.
        found = list(walk(table.parent, request))
        unmet = {item.locator for item in items}.difference(found)
        missing = [name for name in sorted(unmet) if not resolve_name(table.parent, name, request).is_file()]
        if missing:
            rule = f"{request.dataset.name}: every path of the manifest must be a file"
            raise DataError(
                rule, f"missing: {first_hashed(request, missing)}", "paths are relative to the CSV"
            )
        named = {item.locator for item in items}
        extra = sum(name not in named and self.reads(name) for name in found)
        return Listing(
            items,
            label_names,
            excluded={"image without a row in the manifest": extra} if extra else {},
            intensity="8 bits as stored; more by own maximum",
        )

    def reads(self, name: str) -> bool:
        """Tell whether a file's name looks like one of those this source is for."""
        return is_image_name(name)

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of the named files."""
        folder = manifest_path(request).parent

        def read(item: Item) -> tuple[Sample]:
            return (read_image(folder / item.locator),)

        return read


def manifest_path(request: RawRequest) -> Path:
    """Return the CSV: the raw file itself, or the one in the raw folder."""
    root = request.root()
    table = root / MANIFEST if root.is_dir() else root
    if not table.is_file():
        raise DataError(f"{request.dataset.name}: the folder must hold {MANIFEST}", "none")
    return table


def _check_rows(rows: list[dict[str, str]], request: RawRequest) -> None:
    name = request.dataset.name
    if not rows:
        raise DataError(f"{name}: the manifest must have rows", "only a header")
    blank = [row["path"] for row in rows if not row["label"]]
    if blank:
        raise DataError(f"{name}: every row needs a label", f"blank: {first_hashed(request, blank)}")
    labels_of: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        labels_of[row["path"]].add(row["label"])
    if len(labels_of) < len(rows):
        both = [path for path, labels in labels_of.items() if len(labels) > 1]
        found = f"{len(rows) - len(labels_of)} repeated; with different labels: {first_hashed(request, both)}"
        raise DataError(f"{name}: every path must be in the manifest once", found)
    bad = sum(row.get("split", "").lower() not in ("", "train", "test") for row in rows)
    if bad:
        raise DataError(f"{name}: split must be train, test or blank", f"{bad} other cells")
    if "group" in rows[0]:
        _check_groups(rows, request)


def _check_groups(rows: list[dict[str, str]], request: RawRequest) -> None:
    name, groups = request.dataset.name, Counter(row["group"] for row in rows)
    if "" in groups:
        raise DataError(f"{name}: every row needs a group when there is such a column", f"{groups['']} blank")
    top, count = groups.most_common(1)[0]
    if len(groups) < 2 or (top.casefold() in PLACEHOLDERS and 2 * count > len(rows)):
        found = f"one id for {count} of {len(rows)} rows"
        raise DataError(
            f"{name}: group ids must tell patients apart, or no patient-level split exists", found
        )
    sides = defaultdict(set)
    for row in rows:
        sides[row["group"]].add(row.get("split", "").lower())
    both = [group for group, splits in sides.items() if {"train", "test"} <= splits]
    if both:
        found = first_hashed(request, both)
        raise DataError(f"{name}: no group may be in train and test", found, "split by patient, not by image")


PLACEHOLDERS = frozenset({"anon", "anonymous", "unknown", "none", "na", "n/a", "nan", "0", "-", "x"})


def sort_labels(names: set[str]) -> tuple[str, ...]:
    """Sort as numbers when all are whole numbers, else as text."""
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))
