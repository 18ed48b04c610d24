"""Duke breast MRI (TCIA): slices named by the mapping table, labelled by the annotation boxes.

Rows whose original path contains "pre" are the fat-saturated pre-contrast series. A slice is positive when
``start <= slice < end`` of its patient's box, negative when it is at least 5 slices away, else left out.
Both of TCIA's directory namings are tried; the mapping spells some ``1-0NN`` where the file is ``1-NN`` (and
the reverse).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem
from tasks.sources.dicom import read_dicom
from tasks.sources.label_tables import read_table
from tasks.sources.official import FileIndex, dicom_samples, find_file, is_square

MARGIN = 5
BOXES = ("Annotation_Boxes",)
MAPPING = ("Breast-Cancer-MRI-filepath_filename-mapping",)
ORIGINAL, CLASSIC, DESCRIPTIVE = "original_path_and_filename", "classic_path", "descriptive_path"


class DukeBreast:
    """Slices in the order of the mapping table."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per slice with a label.

        Raises:
            DataError: for missing tables or columns, or boxes that are no numbers.
        """
        boxes = _boxes(request)
        mapping = find_file(request, MAPPING, (".xlsx", ".csv"))
        rows = read_table(mapping, request, (ORIGINAL,), (CLASSIC, DESCRIPTIVE))
        if rows and not {CLASSIC, DESCRIPTIVE} & set(rows[0]):
            raise DataError(f"dbc: the mapping table needs {CLASSIC} or {DESCRIPTIVE}", "neither")
        index, excluded = FileIndex(request), Counter[str]()
        anchor = _anchor(index)
        items: list[Item] = []
        skipped: list[tuple[str, str]] = []
        for row in rows:
            original = row[ORIGINAL]
            patient, number = re.search(r"Breast_MRI_\d+", original), re.search(r"(\d+)\.dcm$", original)
            if "pre" not in original.rsplit("/", 1)[0]:
                excluded["another series"] += 1
            elif patient is None or number is None or patient[0] not in boxes:
                skipped.append((original, "no box for this row"))
            elif (label := slice_label(int(number[1]), *boxes[patient[0]])) is None:
                excluded[f"nearer than {MARGIN} slices to the box"] += 1
            elif (name := _find(row, index, anchor)) is None:
                skipped.append((original, "file is missing"))
            else:
                items.append(Item(name, label, patient[0]))
        return Listing(
            items,
            request.dataset.label_names,
            excluded=dict(excluded),
            skipped=skipped,
            intensity="stored values by own maximum",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of slices."""
        root = request.root()

        def read(item: Item) -> Iterator[Sample]:
            dicom = read_dicom(root / item.locator)
            if len(dicom.values) != 1:
                raise SkipItem("several frames")
            if not is_square(dicom.spacing):
                raise SkipItem("pixels not square")
            return dicom_samples(dicom)

        return read


def slice_label(number: int, start: int, end: int) -> int | None:
    """Return 1 inside the box, 0 at least ``MARGIN`` slices away, None between."""
    if start <= number < end:
        return 1
    return 0 if number + MARGIN <= start or number - MARGIN > end else None


def _boxes(request: RawRequest) -> dict[str, tuple[int, int]]:
    table = find_file(request, BOXES, (".xlsx", ".csv"))
    boxes = {}
    for row in read_table(table, request, ("Patient ID", "Start Slice", "End Slice")):
        try:
            boxes[row["Patient ID"]] = (int(row["Start Slice"]), int(row["End Slice"]))
        except ValueError:
            raise DataError(
                "dbc: slices of the annotation boxes must be whole numbers", "other cells"
            ) from None
    return boxes


def _anchor(index: FileIndex) -> str:
    """Return what stands before ``Duke-Breast-Cancer-MRI/`` in this download (``manifest-<number>/``,
    usually).
    """
    for name in index:
        before, found, _ = name.partition("Duke-Breast-Cancer-MRI/")
        if found:
            return before
    return ""


def _find(row: dict[str, str], index: FileIndex, anchor: str) -> str | None:
    for column in (CLASSIC, DESCRIPTIVE):
        path = row.get(column, "").replace("\\", "/").strip("/")
        below = path[path.find("Duke-Breast-Cancer-MRI/") :] if "Duke-Breast-Cancer-MRI/" in path else path
        folder, _, file = below.rpartition("/")
        number = re.fullmatch(r"(\d+-)(\d+)(\.dcm)", file)
        names = [file]
        if number:
            digits = number[2].lstrip("0") or "0"
            names += [f"{number[1]}{digits.zfill(width)}{number[3]}" for width in (1, 2, 3)]
        for name in names if path else ():
            found = index.get(f"{anchor}{folder}/{name}") or index.get(f"{folder}/{name}")
            if found is not None:
                return found
    return None
