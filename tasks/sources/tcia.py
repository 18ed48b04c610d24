"""Two collections of TCIA: Duke breast MRI, and the ultrasound of Prostate-MRI-US-Biopsy.

Layout: each collection's page at TCIA, and its tables, which are found by their columns. Files may
lie under the classic or the descriptive directory names, in several manifest folders, renamed, or
in ``.zip``.

Duke: a slice is the file whose header has the SOP instance UID of the mapping table's row. A path
is believed when the files at both ends of its series have the UIDs of their rows; otherwise headers
decide. Rows whose original path contains "pre" are the fat-saturated pre-contrast series. A slice
is positive when ``start <= slice < end`` of one of its patient's boxes, negative when it is at
least 5 slices away from all, else left out. Slices are counted by the original file name, as the
boxes are.

Prostate (F10): a series is the folder named by its UID (or ``US_<uid>``), by the UID's last five
digits, or the file whose header has the UID. Frames from one quarter to three quarters of the
volume are taken. Corrected, a series takes the highest score of its targets, so that no frame has
two labels (F33).
"""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tasks.sources.base import Item, Listing, RawRequest, Sample, SkipItem
from tasks.sources.dicom import Header, decode_dicom, frame_samples, read_header
from tasks.sources.official import FILE_MISSING, download, find_table, not_there, repeated_rows
from tasks.sources.own import is_missing
from tasks.sources.raw import RawTree
from tasks.sources.tables import read_table

logger = logging.getLogger(__name__)
LOG_EVERY = 10_000
COLLECTION = "Duke-Breast-Cancer-MRI/"
ORIGINAL, CLASSIC, DESCRIPTIVE = "original_path_and_filename", "classic_path", "descriptive_path"
INSTANCE = "sop_instance_UID"
BOXES, MAPPING = "Annotation_Boxes", "Breast-Cancer-MRI-filepath_filename-mapping"
BOX_COLUMNS = ("Patient ID", "Start Slice", "End Slice")
MARGIN = 5
TARGETS = "Target Data"
SERIES, SCORE, PATIENT = "seriesInstanceUID_US", "UCLA Score (Similar to PIRADS v2)", "Patient ID"
SCORE_CELL = re.compile(r"([0-5])(?:\.0*)?")
TARGET_COLUMNS = (PATIENT, SERIES, SCORE)
SERIES_FOLDER = re.compile(r"(?:[A-Z]{2}_)?(?P<uid>[\d.]+)|.*-(?P<end>\d{5})")
"""Named by the UID, or as TCIA's descriptive names, which end in the UID's last five digits."""
OTHER_PATIENT = "another patient in the header than the table says"

Box = tuple[int, int]
Boxes = Mapping[str, Sequence[Box]]


class Slice(NamedTuple):
    """A row of Duke's mapping table that has a label; the instance's UID is empty when the table
    has none.
    """

    row: Mapping[str, str]
    patient: str
    label: int
    instance: str


def list_dbc(tree: RawTree, request: RawRequest) -> Listing:
    """Return one item per slice with a label, in the order of the mapping table."""
    mapping = find_table(tree, request, MAPPING, (ORIGINAL,))
    table = find_table(tree, request, BOXES, BOX_COLUMNS)
    if mapping is None or table is None:
        raise not_there(request, f"{MAPPING if mapping is None else BOXES}.xlsx or .csv", tree)
    drawn: defaultdict[str, set[Box]] = defaultdict(set)
    for row in read_table(table, request, BOX_COLUMNS):
        patient, *cells = (row[name] for name in BOX_COLUMNS)
        if any(map(is_missing, (patient, *cells))):
            raise request.error(
                "every annotation box must have a patient and two slices", "a blank cell"
            )
        try:
            start, end = (int(cell.removesuffix(".0")) for cell in cells)
        except ValueError:
            rule = "slices of the annotation boxes must be whole numbers"
            raise request.error(rule, "other cells") from None
        drawn[patient].add((start, end))
    # A patient with a box that ends before it starts has none.
    boxes = {
        patient: [] if any(start > end for start, end in own) else sorted(own)
        for patient, own in drawn.items()
    }
    several = sum(len(own) > 1 for own in boxes.values())
    flags = {"patient with several boxes: a slice in any is positive": several} if several else {}
    rows = read_table(mapping, request, (ORIGINAL,), (CLASSIC, DESCRIPTIVE, INSTANCE))
    if rows and not {CLASSIC, DESCRIPTIVE, INSTANCE} & set(rows[0]):
        raise request.error(
            f"the mapping table needs {CLASSIC}, {DESCRIPTIVE} or {INSTANCE}", "none"
        )
    slices, excluded, skipped = _labelled(rows, boxes)
    if rows and INSTANCE not in rows[0]:
        flags["slices found by file names only: the table has no SOP instance UIDs"] = len(slices)
    items: dict[str, Item] = {}
    labels: list[tuple[str, int | None]] = []
    for one, name in zip(slices, _slice_files(slices, tree, request), strict=True):
        if name is None:
            skipped.append((one.row[ORIGINAL], FILE_MISSING))
        else:
            labels.append((name, one.label))
            items.setdefault(
                name, Item(tree.locator(name), one.label, one.patient, details=(one.instance,))
            )
    return Listing(
        list(items.values()),
        request.dataset.label_names,
        excluded=dict(excluded) | repeated_rows("the mapping table", labels, request),
        skipped=skipped,
        intensity="stored values by own maximum",
        flags=flags,
    )


def read_dbc(body: bytes, item: Item, _request: RawRequest) -> Iterator[Sample]:
    """Return a slice, whose header must not contradict the table."""
    dicom = decode_dicom(body, frames=1)
    if item.details[0] and dicom.instance != item.details[0]:
        raise SkipItem("another slice in the file than the table says")
    if dicom.known_patient() not in ("", item.group):
        raise SkipItem(OTHER_PATIENT)
    if not dicom.is_square():
        raise SkipItem("pixels not square")
    return frame_samples(dicom)


dbc = download(list_dbc, read_dbc)


def slice_label(number: int, *boxes: Box) -> int | None:
    """Return 1 inside a box, 0 at least ``MARGIN`` slices away from all, None between."""
    if any(start <= number < end for start, end in boxes):
        return 1
    return (
        0
        if all(number + MARGIN <= start or number - MARGIN > end for start, end in boxes)
        else None
    )


def _labelled(
    rows: Sequence[Mapping[str, str]], boxes: Boxes
) -> tuple[list[Slice], Counter[str], list[tuple[str, str]]]:
    """Return the rows with a label, what was left out by reason, and what cannot be told."""
    slices: list[Slice] = []
    excluded = Counter[str]()
    skipped: list[tuple[str, str]] = []
    for row in rows:
        original = re.sub(r"[\\/]+", "/", row[ORIGINAL])
        patient, number = (
            re.search(r"Breast_MRI_\d+", original),
            re.search(r"(\d+)\.dcm$", original),
        )
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
            slices.append(Slice(row, patient[0], label, row.get(INSTANCE, "")))
    return slices, excluded, skipped


def _slice_files(slices: Sequence[Slice], tree: RawTree, request: RawRequest) -> list[str | None]:
    """Return each slice's file in the tree: by the table's paths, or by the headers' UIDs."""
    by_path: dict[str, str] = {}
    for name in tree:
        before, mark, below = name.partition(COLLECTION)
        by_path.setdefault((below if mark else before).casefold(), name)
    found = [next(filter(None, map(by_path.get, _paths(one.row))), None) for one in slices]
    by_folder: defaultdict[str, list[int]] = defaultdict(list)
    for place, file in enumerate(found):
        by_folder["" if file is None else file.rpartition("/")[0]].append(place)

    def agrees(place: int) -> bool:
        name, instance = found[place], slices[place].instance
        header = (
            read_header(request.base(), tree.locator(name))
            if name is not None and instance
            else None
        )
        return header is None or header.instance == instance

    doubtful: list[int] = []
    for folder, places in by_folder.items():
        if not folder or not all(map(agrees, {places[0], places[-1]})):
            doubtful += [place for place in places if slices[place].instance]
    if doubtful:
        # Below the folders of the patients, or where one has none all files.
        patients = {slices[place].patient for place in doubtful}
        names = [
            name for name in tree if not name.lower().endswith((".xlsx", ".csv", ".txt", ".tcia"))
        ]
        of_patients = [name for name in names if patients & set(name.split("/"))]
        seen = {part for name in of_patients for part in name.split("/")}
        index = _by_header("instance", of_patients if patients <= seen else names, tree, request)
        for place in doubtful:
            found[place] = next(iter(index.get(slices[place].instance, ())), None)
    return found


def _by_header(
    field: str, names: Iterable[str], tree: RawTree, request: RawRequest
) -> dict[str, list[str]]:
    """Return the names of the files by a field of their headers, all of which are opened."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for number, name in enumerate(names, 1):
        if header := read_header(request.base(), tree.locator(name)):
            found[getattr(header, field)].append(name)
        if number % LOG_EVERY == 0:
            logger.info("%s: %d headers read", request.dataset.name, number)
    return dict(found)


def _paths(row: Mapping[str, str]) -> Iterator[str]:
    """Yield what a row of the mapping table may call its file, whichever slips its spelling has."""
    for column in (CLASSIC, DESCRIPTIVE):
        path = re.sub(r"[\\/]+", "/", row.get(column, "")).strip("/ ")
        folder, _, file = path.rpartition(COLLECTION)[2].rpartition("/")
        if path:
            yield f"{folder}/{file}".casefold()
            if number := re.fullmatch(r"(\d+-)(\d+)(\.dcm)", file):
                digits = number[2].lstrip("0") or "0"
                for width in (1, 2, 3):
                    yield f"{folder}/{number[1]}{digits.zfill(width)}{number[3]}".casefold()


def list_prostate(tree: RawTree, request: RawRequest) -> Listing:
    """Return one item per series (released: per target), by score, then table row, as the released
    code.
    """
    table = find_table(tree, request, TARGETS, TARGET_COLUMNS)
    if table is None:
        raise not_there(request, f"a table with the columns {', '.join(TARGET_COLUMNS)}", tree)
    excluded = Counter[str]()
    targets: list[tuple[int, str, str]] = []
    for row in read_table(table, request, TARGET_COLUMNS):
        if is_missing(row[SERIES]) or is_missing(row[SCORE]):
            excluded["no series" if is_missing(row[SERIES]) else "no score"] += 1
        elif not (cell := SCORE_CELL.fullmatch(row[SCORE])):
            raise request.error(
                "UCLA scores must be whole numbers from 0 to 5, or blank", "another cell"
            )
        else:
            targets.append((int(cell[1]), row[SERIES], row[PATIENT]))
    if request.spec.data_mode == "corrected":
        best: dict[str, tuple[int, str, str]] = {}
        for target in targets:
            if target[0] > best.get(target[1], (-1,))[0]:
                best[target[1]] = target
        excluded["another target of the series has a higher score"] = len(targets) - len(best)
        targets = list(best.values())
    severe = request.spec.task == "severe"
    files, items, skipped = _SeriesFiles(request, tree), [], []
    for score, series, patient in sorted(targets, key=lambda target: target[0]):
        if severe and score < 2:
            excluded["score below 2"] += 1
        elif (name := files.find(series, patient)) is None:
            skipped.append((series, FILE_MISSING))
        else:
            label = int(score > 2 if severe else score >= 2)
            items.append(Item(tree.locator(name), label, patient, details=(series,)))
    return Listing(
        items,
        request.dataset.label_names,
        block_size=4,
        excluded=dict(excluded),
        skipped=skipped,
        intensity="each frame by its own maximum",
    )


def read_prostate(body: bytes, item: Item, _request: RawRequest) -> Iterator[Sample]:
    """Return the middle half of a series' frames, whose header must not contradict the table."""
    dicom = decode_dicom(body)
    if dicom.series and dicom.series != item.details[0]:
        raise SkipItem("another series in the file")
    if dicom.modality not in ("", "US"):
        raise SkipItem("not ultrasound")
    if dicom.known_patient() not in ("", item.group):
        raise SkipItem(OTHER_PATIENT)
    frames = len(dicom.values)
    return frame_samples(dicom, slice(frames // 4, max(frames // 4 + 1, 3 * frames // 4)))


prostate = download(list_prostate, read_prostate)


class _SeriesFiles:
    """Where each series' file is, by its folder's name or else by header."""

    def __init__(self, request: RawRequest, tree: RawTree) -> None:
        self._request, self._tree = request, tree
        self._names = [name for name in tree if name.lower().endswith(".dcm")]
        self._by_uid: dict[str, list[str]] | None = None
        self._named: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for name in self._names:
            *above, folder, _ = ("", *name.split("/"))
            if found := SERIES_FOLDER.fullmatch(folder):
                # The last digits of a UID tell a patient's series apart, not all of them.
                for part in above if found["end"] else ("",):
                    self._named[part, found["uid"] or found["end"]].append(name)

    def find(self, series: str, patient: str) -> str | None:
        """Return the one file of a series."""
        named = self._named.get(("", series)) or [
            name
            for name in self._named.get((patient, series[-5:]), ())
            if (header := self._header(name)) is None or header.series in ("", series)
        ]
        found = self._one(named)
        if found is None:
            if self._by_uid is None:
                self._by_uid = _by_header("series", self._names, self._tree, self._request)
            found = self._one(self._by_uid.get(series, ()))
        return found

    def _header(self, name: str) -> Header | None:
        return read_header(self._request.base(), self._tree.locator(name))

    def _one(self, names: Sequence[str]) -> str | None:
        """Return the one file, or the first of copies, as two downloads that overlap leave them."""
        if len(names) < 2:
            return names[0] if names else None
        instances = {header.instance if (header := self._header(name)) else "" for name in names}
        return names[0] if len(instances) == 1 and "" not in instances else None
