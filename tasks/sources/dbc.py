"""Duke breast MRI (TCIA): slices named by the mapping table, labelled by the annotation boxes.

Layout: the collection's page at TCIA and its two tables, ``Annotation_Boxes`` and
``Breast-Cancer-MRI-filepath_filename-mapping``, which are found by their columns. Files may lie under the
classic or the descriptive directory names, in several manifest folders, renamed, as idc-index writes them,
or in ``.zip``: a slice is the file whose header has the SOP instance UID of the table's row. A path is
believed when the files at both ends of its series have the UIDs of their rows; otherwise headers decide,
whatever way files are numbered.

Rows whose original path contains "pre" are the fat-saturated pre-contrast series. A slice is positive when
``start <= slice < end`` of one of its patient's boxes, negative when it is at least 5 slices away from all,
else left out. Slices are counted by the original file name, as the boxes are.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem
from tasks.sources.dbc_files import CLASSIC, DESCRIPTIVE, INSTANCE, ORIGINAL, Slice, find_files
from tasks.sources.dicom import decode_dicom
from tasks.sources.label_tables import read_table
from tasks.sources.labels import is_missing
from tasks.sources.official import (
    FILE_MISSING,
    dicom_samples,
    find_table,
    is_square,
    list_download,
    not_there,
    repeated_rows,
)
from tasks.sources.raw import RawTree, read_locator

MARGIN = 5
BOXES, MAPPING = "Annotation_Boxes", "Breast-Cancer-MRI-filepath_filename-mapping"
BOX_COLUMNS = ("Patient ID", "Start Slice", "End Slice")

Box = tuple[int, int]


class DukeBreast:
    """Slices in the order of the mapping table."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per slice with a label.

        Raises:
            DataError: for missing tables or columns, or boxes that are no numbers.
        """
        return list_download(request, lambda tree: _listing(tree, request))

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of slices, which compares the header's instance and patient with the table's."""
        base = request.base()

        def read(item: Item) -> Iterator[Sample]:
            dicom = decode_dicom(read_locator(base, item.locator))
            if item.details[0] and dicom.instance != item.details[0]:
                raise SkipItem("another slice in the file than the table says")
            if dicom.known_patient() not in ("", item.group):
                raise SkipItem("another patient in the header than the table says")
            if len(dicom.values) != 1:
                raise SkipItem("several frames")
            if not is_square(dicom.spacing):
                raise SkipItem("pixels not square")
            return dicom_samples(dicom)

        return read


def _listing(tree: RawTree, request: RawRequest) -> Listing:
    mapping = find_table(tree, request, MAPPING, (ORIGINAL,))
    table = find_table(tree, request, BOXES, BOX_COLUMNS)
    if mapping is None or table is None:
        raise not_there(request, f"{MAPPING if mapping is None else BOXES}.xlsx or .csv", tree)
    boxes, flags = _boxes(table, request)
    rows = read_table(mapping, request, (ORIGINAL,), (CLASSIC, DESCRIPTIVE, INSTANCE))
    if rows and not {CLASSIC, DESCRIPTIVE, INSTANCE} & set(rows[0]):
        raise DataError(f"dbc: the mapping table needs {CLASSIC}, {DESCRIPTIVE} or {INSTANCE}", "none")
    slices, excluded, skipped = _labelled(rows, boxes)
    if rows and INSTANCE not in rows[0]:
        flags["slices found by file names only: the table has no SOP instance UIDs"] = len(slices)
    found = find_files(slices, tree, request)
    items: dict[str, Item] = {}
    labels: list[tuple[str, int | None]] = []
    for one, name in zip(slices, found, strict=True):
        if name is None:
            skipped.append((one.row[ORIGINAL], FILE_MISSING))
        else:
            labels.append((name, one.label))
            items.setdefault(name, Item(tree.locator(name), one.label, one.patient, details=(one.instance,)))
    return Listing(
        list(items.values()),
        request.dataset.label_names,
        excluded=dict(excluded) | repeated_rows("the mapping table", labels, request),
        skipped=skipped,
        intensity="stored values by own maximum",
        flags=flags,
    )


def slice_label(number: int, *boxes: Box) -> int | None:
    """Return 1 inside a box, 0 at least ``MARGIN`` slices away from all, None between."""
    if any(start <= number < end for start, end in boxes):
        return 1
    return 0 if all(number + MARGIN <= start or number - MARGIN > end for start, end in boxes) else None


def _boxes(table: str, request: RawRequest) -> tuple[dict[str, list[Box]], dict[str, int]]:
    """Return each patient's boxes, and flags; a patient with a box that ends before it starts has none."""
    boxes: defaultdict[str, set[Box]] = defaultdict(set)
    reversed_ones = set()
    for row in read_table(table, request, BOX_COLUMNS):
        cells = row["Start Slice"], row["End Slice"]
        if is_missing(row["Patient ID"]) or any(map(is_missing, cells)):
            raise DataError("dbc: every annotation box must have a patient and two slices", "a blank cell")
        try:
            start, end = (int(cell.removesuffix(".0")) for cell in cells)
        except ValueError:
            raise DataError(
                "dbc: slices of the annotation boxes must be whole numbers", "other cells"
            ) from None
        if start > end:
            reversed_ones.add(row["Patient ID"])
        boxes[row["Patient ID"]].add((start, end))
    for patient in reversed_ones:
        boxes[patient] = set()
    several = sum(len(found) > 1 for found in boxes.values())
    flags = {"patient with several boxes: a slice in any is positive": several} if several else {}
    return {patient: sorted(found) for patient, found in boxes.items()}, flags


def _labelled(
    rows: Sequence[Mapping[str, str]], boxes: Mapping[str, Sequence[Box]]
) -> tuple[list[Slice], Counter[str], list[tuple[str, str]]]:
    slices: list[Slice] = []
    excluded = Counter[str]()
    skipped: list[tuple[str, str]] = []
    for row in rows:
        original = re.sub(r"[\\/]+", "/", row[ORIGINAL])
        patient, number = re.search(r"Breast_MRI_\d+", original), re.search(r"(\d+)\.dcm$", original)
        # Below the patient's folder: a folder above may be called "preprocessed".
        below = original.rpartition("/")[0].partition(patient[0])[2] if patient else ""
        if patient is not None and "pre" not in below:
            excluded["another series"] += 1
        elif patient is None or number is None or patient[0] not in boxes:
            skipped.append((original, "no box for this row"))
        elif not boxes[patient[0]]:
            skipped.append((original, "a box of the patient starts after its end"))
        elif (label := slice_label(int(number[1]), *boxes[patient[0]])) is None:
            excluded[f"nearer than {MARGIN} slices to the box"] += 1
        else:
            slices.append(Slice(row, patient[0], label))
    return slices, excluded, skipped
