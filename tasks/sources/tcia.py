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
from dataclasses import dataclass

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem
from tasks.sources.dicom import HeaderIndex, decode_dicom, read_header
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
from tasks.sources.tables import read_table

# Where the slices of the Duke collection lie: by the mapping table's paths, or by the headers' UIDs.

COLLECTION = "Duke-Breast-Cancer-MRI/"
ORIGINAL, CLASSIC, DESCRIPTIVE = "original_path_and_filename", "classic_path", "descriptive_path"
INSTANCE = "sop_instance_UID"


@dataclass(frozen=True)
class Slice:
    """A row of the mapping table that has a label."""

    row: Mapping[str, str]
    patient: str
    label: int

    @property
    def instance(self) -> str:
        """SOP instance UID, empty when the table has none."""
        return self.row.get(INSTANCE, "")


def find_files(slices: Sequence[Slice], tree: RawTree, request: RawRequest) -> list[str | None]:
    """Return each slice's file in the tree."""
    paths = _Paths(tree)
    found = [paths.find(one.row) for one in slices]
    by_folder: defaultdict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(found):
        by_folder["" if name is None else name.rpartition("/")[0]].append(place)
    doubtful: list[int] = []
    for folder, places in by_folder.items():
        if not folder or not _ends_agree(places, slices, found, tree, request):
            doubtful += [place for place in places if slices[place].instance]
    if doubtful:
        index = HeaderIndex(request, tree, _candidates([slices[place] for place in doubtful], tree))
        for place in doubtful:
            found[place] = index.instance(slices[place].instance)
    return found


def _ends_agree(
    places: Sequence[int],
    slices: Sequence[Slice],
    found: Sequence[str | None],
    tree: RawTree,
    request: RawRequest,
) -> bool:
    """Tell whether the first and last file of a folder are the slices that the table says."""
    for place in {places[0], places[-1]}:
        name, instance = found[place], slices[place].instance
        if name is not None and instance:
            header = read_header(request.base(), tree.locator(name))
            if header is not None and header.instance != instance:
                return False
    return True


def _candidates(slices: Sequence[Slice], tree: RawTree) -> list[str]:
    """Return the files to open in search of slices: below their patients' folders, or all of them."""
    wanted = {one.patient for one in slices}
    names = [name for name in tree if not name.lower().endswith((".xlsx", ".csv", ".txt", ".tcia"))]
    below = [name for name in names if wanted & set(name.split("/"))]
    seen = {part for name in below for part in name.split("/")}
    return below if wanted <= seen else names


class _Paths:
    """Files by what the mapping table calls them, whichever slips its spelling has."""

    def __init__(self, tree: RawTree) -> None:
        self._by_path: dict[str, str] = {}
        for name in tree:
            before, mark, below = name.partition(COLLECTION)
            self._by_path.setdefault((below if mark else before).casefold(), name)

    def find(self, row: Mapping[str, str]) -> str | None:
        for column in (CLASSIC, DESCRIPTIVE):
            path = re.sub(r"[\\/]+", "/", row.get(column, "")).strip("/ ")
            folder, _, file = path.rpartition(COLLECTION)[2].rpartition("/")
            number = re.fullmatch(r"(\d+-)(\d+)(\.dcm)", file)
            names = [file]
            if number:
                digits = number[2].lstrip("0") or "0"
                names += [f"{number[1]}{digits.zfill(width)}{number[3]}" for width in (1, 2, 3)]
            for name in names if path else ():
                found = self._by_path.get(f"{folder}/{name}".casefold())
                if found is not None:
                    return found
        return None


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


# Prostate-MRI-US-Biopsy (TCIA): frames of the *ultrasound* series that a target was found in (F10).
#
# Layout: the collection's page at TCIA; the table of targets is found by its columns, whatever a download
# called it (``Target Data_2019-12-05.xlsx``, ``Target-Data_2019-12-05-2.xlsx``). A series is the folder
# named by its UID (classic names, or idc-index's ``US_<uid>``), by the UID's last five digits (descriptive
# names), or the file whose header has the UID, wherever it lies; ``.zip`` archives are read in place.
#
# Frames from one quarter to three quarters of the volume are taken, each by its own maximum. Several
# targets may share a series; corrected, the series takes its highest score, so that no frame has two labels
# (F33). Released, every target contributes its frames.

TABLE = "Target Data"
SERIES, SCORE, PATIENT = "seriesInstanceUID_US", "UCLA Score (Similar to PIRADS v2)", "Patient ID"
COLUMNS = (PATIENT, SERIES, SCORE)
UID_DIGITS = 5
"""TCIA's descriptive folder names end in the last five digits of the UID."""


class Prostate:
    """Ultrasound series, ordered by score and then by table row, as the released loader walks them."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per series (released: per target).

        Raises:
            DataError: for a missing table or scores that are no whole numbers.
        """
        return list_download(request, lambda tree: _prostate_listing(tree, request))

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of series, which compares the header's series and patient with the table's."""
        base = request.base()

        def read(item: Item) -> Iterator[Sample]:
            dicom = decode_dicom(read_locator(base, item.locator))
            if dicom.series and dicom.series != item.details[0]:
                raise SkipItem("another series in the file")
            if dicom.modality not in ("", "US"):
                raise SkipItem("not ultrasound")
            if dicom.known_patient() not in ("", item.group):
                raise SkipItem("another patient in the header than the table says")
            frames = len(dicom.values)
            return dicom_samples(dicom, frames=slice(frames // 4, max(frames // 4 + 1, 3 * frames // 4)))

        return read


def _prostate_listing(tree: RawTree, request: RawRequest) -> Listing:
    table = find_table(tree, request, TABLE, COLUMNS)
    if table is None:
        raise not_there(request, f"a table with the columns {', '.join(COLUMNS)}", tree)
    excluded = Counter[str]()
    targets: list[tuple[int, str, str]] = []
    for row in read_table(table, request, COLUMNS):
        if is_missing(row[SERIES]) or is_missing(row[SCORE]):
            excluded["no series" if is_missing(row[SERIES]) else "no score"] += 1
        else:
            targets.append((_score(row[SCORE]), row[SERIES], row[PATIENT]))
    if request.spec.data_mode == "corrected":
        targets, repeats = _highest(targets)
        excluded["another target of the series has a higher score"] = repeats
    severe = request.spec.task == "severe"
    files, skipped = _SeriesFiles(request, tree), []
    items = []
    for score, series, patient in sorted(targets, key=lambda target: target[0]):
        if severe and score < 2:
            excluded["score below 2"] += 1
            continue
        name = files.find(series, patient)
        if name is None:
            skipped.append((series, FILE_MISSING))
        else:
            label = int(score > 2 if severe else score >= 2)
            items.append(Item(tree.locator(name), label, patient, details=(series,)))
    return Listing(
        items,
        request.dataset.label_names,
        block_size=4,
        excluded={reason: count for reason, count in excluded.items() if count},
        skipped=skipped,
        intensity="each frame by its own maximum",
    )


def _score(cell: str) -> int:
    try:
        score = float(cell)
    except ValueError:
        score = -1
    if score not in range(6):
        raise DataError("prostate: UCLA scores must be whole numbers from 0 to 5, or blank", "another cell")
    return int(score)


def _highest(targets: list[tuple[int, str, str]]) -> tuple[list[tuple[int, str, str]], int]:
    best: dict[str, tuple[int, str, str]] = {}
    for target in targets:
        if target[1] not in best or target[0] > best[target[1]][0]:
            best[target[1]] = target
    return list(best.values()), len(targets) - len(best)


class _SeriesFiles:
    """Where each series' file is."""

    def __init__(self, request: RawRequest, tree: RawTree) -> None:
        self._request, self._tree = request, tree
        self._index: HeaderIndex | None = None
        self._by_uid: defaultdict[str, list[str]] = defaultdict(list)
        self._by_end: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for name in tree:
            parts = name.split("/")
            if len(parts) < 2 or not name.lower().endswith(".dcm"):
                continue
            uid = re.fullmatch(r"(?:[A-Z]{2}_)?([\d.]+)", parts[-2])
            end = re.search(rf"-(\d{{{UID_DIGITS}}})$", parts[-2])
            if uid:
                self._by_uid[uid[1]].append(name)
            for part in parts[:-2] if end else ():
                self._by_end[part, end[1] if end else ""].append(name)

    def find(self, series: str, patient: str) -> str | None:
        """Return the one file of a series, by folder name or else by header."""
        named = self._by_uid.get(series) or [
            name
            for name in self._by_end.get((patient, series[-UID_DIGITS:]), ())
            if self._is_in(name, series)
        ]
        found = self._one(named)
        if found is None:
            if self._index is None:
                names = [name for name in self._tree if name.lower().endswith(".dcm")]
                self._index = HeaderIndex(self._request, self._tree, names)
            found = self._one(self._index.series(series))
        return found

    def _is_in(self, name: str, series: str) -> bool:
        """Tell whether a file found by the last digits is of the series, as far as its header says."""
        header = read_header(self._request.base(), self._tree.locator(name))
        return header is None or header.series in ("", series)

    def _one(self, names: Sequence[str]) -> str | None:
        """Return the one file, or the first of copies, as two downloads that overlap leave them."""
        if len(names) < 2:
            return names[0] if names else None
        base = self._request.base()
        headers = [read_header(base, self._tree.locator(name)) for name in names]
        instances = {header.instance if header else "" for header in headers}
        return names[0] if len(instances) == 1 and "" not in instances else None
