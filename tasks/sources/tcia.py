"""Sources of two collections of TCIA: Duke breast MRI and the ultrasound of Prostate-MRI-US-Biopsy.

The collections' pages at TCIA describe the layouts. The tables are found by their columns.
Folders may have classic or descriptive names. The files may be in several manifest folders or
in ``.zip`` archives, and they may be renamed.

**Duke**: each slice has a row in the mapping table. The header of its file contains the SOP
instance UID of this row. Reading all headers is slow. So for each folder, only the headers of
the first and the last file are read. If they have the UIDs of their rows, the paths in the
table are used for this folder. Otherwise all headers are read.

- Only the fat-saturated pre-contrast series is used. The rows of this series have "pre" in the
  original path.
- A slice is positive if ``start <= slice < end`` for one of its patient's boxes. A slice is
  negative if it is at least 5 slices away from all boxes. Other slices are left out.
- The number of a slice is the number in the original file name, because the boxes use this
  number.

**Prostate** (F10): the name of a series' folder is the UID, is ``US_<uid>``, or ends with the
last five digits of the UID. If there is no such folder, the file is found by the UID in its
header. Frames from one quarter to three quarters of the volume are used. In corrected data,
the score of a series is the highest score of its targets, so that no frame has two labels
(F33).
"""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from tasks.sources.base import Item, Listing, RawRequest, Sample, SkipItem
from tasks.sources.dicom import Header, decode_dicom, frame_samples, read_header
from tasks.sources.official import FILE_MISSING, download, find_table, repeated_rows
from tasks.sources.own.words import is_missing
from tasks.sources.raw import RawTree
from tasks.sources.tables import read_table

logger = logging.getLogger(__name__)
LOG_EVERY = 10_000
"""Number of headers between two log lines. A collection may have 300,000 headers."""
COLLECTION = "Duke-Breast-Cancer-MRI/"
MAPPING_TABLE = "Breast-Cancer-MRI-filepath_filename-mapping"
ORIGINAL = "original_path_and_filename"
CLASSIC = "classic_path"
DESCRIPTIVE = "descriptive_path"
INSTANCE = "sop_instance_UID"
BOX_TABLE = "Annotation_Boxes"
BOX_COLUMNS = ("Patient ID", "Start Slice", "End Slice")
MARGIN = 5
"""Smallest distance in slices between a box and a negative slice."""
TABLE_EXTENSIONS = (".xlsx", ".csv", ".txt", ".tcia")
TARGET_TABLE = "Target Data"
SERIES = "seriesInstanceUID_US"
SCORE = "UCLA Score (Similar to PIRADS v2)"
PATIENT = "Patient ID"
TARGET_COLUMNS = (PATIENT, SERIES, SCORE)
SCORE_CELL = re.compile(r"([0-5])(?:\.0*)?")
SERIES_FOLDER = re.compile(r"(?:[A-Z]{2}_)?(?P<uid>[\d.]+)|.*-(?P<end>\d{5})")
"""Pattern of a series' folder: the UID, or TCIA's descriptive name, which ends with the last
five digits of the UID."""
OTHER_PATIENT = "another patient in the header than in the table"


class Box(NamedTuple):
    """The slices of an annotated tumor.

    Attributes:
        start: Number of the first slice.
        end: Number of the first slice after the tumor.
    """

    start: int
    end: int


class Slice(NamedTuple):
    """A labeled row of Duke's mapping table.

    Attributes:
        row: Cells of the row by column.
        patient: Id of the patient.
        label: 1 inside a box, 0 far from all boxes.
        instance: SOP instance UID; empty if the table has none.
    """

    row: Mapping[str, str]
    patient: str
    label: int
    instance: str


def list_dbc(tree: RawTree, request: RawRequest) -> Listing:
    """List the slices with a label, in the order of the mapping table.

    Raises:
        DataError: A table is missing, or has rows that cannot be used.
    """
    mapping = find_table(tree, request, MAPPING_TABLE, (ORIGINAL,))
    box_table = find_table(tree, request, BOX_TABLE, BOX_COLUMNS)
    boxes = _read_boxes(box_table, request)
    rows = read_table(mapping, request, (ORIGINAL,), (CLASSIC, DESCRIPTIVE, INSTANCE))
    if rows and not {CLASSIC, DESCRIPTIVE, INSTANCE} & set(rows[0]):
        raise request.error(
            f"the mapping table has none of the columns {CLASSIC}, {DESCRIPTIVE} and {INSTANCE}",
            hint="Download the table again",
        )
    slices, excluded, skipped = _label_rows(rows, boxes)
    flags = {}
    num_several = sum(len(patient_boxes) > 1 for patient_boxes in boxes.values())
    if num_several:
        flags["patient with several boxes: a slice in any is positive"] = num_several
    if slices and INSTANCE not in slices[0].row:
        flags["slices found by file names only: the table has no SOP instance UIDs"] = len(slices)
    items: dict[str, Item] = {}
    labels_of_files: list[tuple[str, int]] = []
    for mri_slice, name in zip(slices, _find_files(slices, tree, request), strict=True):
        if name is None:
            skipped.append((mri_slice.row[ORIGINAL], FILE_MISSING))
            continue
        labels_of_files.append((name, mri_slice.label))
        item = Item(
            locator=tree.locator(name),
            label=mri_slice.label,
            group=mri_slice.patient,
            details=(mri_slice.instance,),
        )
        items.setdefault(name, item)
    repeated = repeated_rows("the mapping table", labels_of_files, request)
    return Listing(
        list(items.values()),
        request.dataset.label_names,
        excluded=dict(excluded) | repeated,
        skipped=skipped,
        intensity="stored values by own maximum",
        flags=flags,
    )


def read_dbc(body: bytes, item: Item, _request: RawRequest) -> Iterator[Sample]:
    """Yield the slice in the file of an item.

    Raises:
        SkipItem: The header contradicts the table, or the pixels are not square.
    """
    dicom = decode_dicom(body, frames=1)
    if item.details[0] and dicom.instance != item.details[0]:
        raise SkipItem("another slice in the file than in the table")
    if dicom.known_patient() not in ("", item.group):
        raise SkipItem(OTHER_PATIENT)
    if not dicom.is_square():
        raise SkipItem("pixels not square")
    return frame_samples(dicom)


dbc = download(list_dbc, read_dbc)


def _read_boxes(table: str, request: RawRequest) -> dict[str, list[Box]]:
    """Return the boxes of each patient.

    If one box of a patient ends before it starts, the patient gets no boxes.

    Raises:
        DataError: A row of the box table cannot be used.
    """
    boxes: defaultdict[str, set[Box]] = defaultdict(set)
    for row in read_table(table, request, BOX_COLUMNS):
        patient, start, end = (row[column] for column in BOX_COLUMNS)
        if any(map(is_missing, (patient, start, end))):
            raise request.error(
                "the patient, start slice or end slice of an annotation box is blank",
                hint="Download the table of boxes again",
            )
        try:
            box = Box(int(start.removesuffix(".0")), int(end.removesuffix(".0")))
        except ValueError:
            raise request.error(
                "a slice of an annotation box is not a whole number",
                hint="Download the table of boxes again",
            ) from None
        boxes[patient].add(box)
    for patient_boxes in boxes.values():
        if any(box.start > box.end for box in patient_boxes):
            patient_boxes.clear()
    return {patient: sorted(patient_boxes) for patient, patient_boxes in boxes.items()}


def slice_label(number: int, boxes: Sequence[Box]) -> int | None:
    """Return the label of a slice, or None if the slice is left out.

    The label is 1 inside a box, and 0 at least :data:`MARGIN` slices away from all boxes.

    Args:
        number: Number of the slice.
        boxes: Boxes of the patient.
    """
    if any(box.start <= number < box.end for box in boxes):
        return 1
    if all(number + MARGIN <= box.start or number - MARGIN > box.end for box in boxes):
        return 0
    return None


def _label_rows(
    rows: Iterable[Mapping[str, str]], boxes: Mapping[str, Sequence[Box]]
) -> tuple[list[Slice], Counter[str], list[tuple[str, str]]]:
    """Label the rows of the mapping table by the boxes of their patients.

    Returns:
        - The rows with a label.
        - Reason -> number of excluded rows: rows of other series, and slices near a box.
        - Pairs (path, reason) of rows that cannot be used.
    """
    slices: list[Slice] = []
    excluded = Counter[str]()
    skipped: list[tuple[str, str]] = []
    for row in rows:
        original = re.sub(r"[\\/]+", "/", row[ORIGINAL])
        patient_match = re.search(r"Breast_MRI_\d+", original)
        number = re.search(r"(\d+)\.dcm$", original)
        patient = patient_match[0] if patient_match else ""
        # "pre" is searched below the patient's folder, because a folder above may be called
        # "preprocessed".
        if patient and "pre" not in original.rpartition("/")[0].partition(patient)[2]:
            excluded["another series"] += 1
        elif number is None or patient not in boxes:
            skipped.append((original, "no box for this row"))
        elif not boxes[patient]:
            skipped.append((original, "a box of the patient starts after its end"))
        else:
            label = slice_label(int(number[1]), boxes[patient])
            if label is None:
                excluded[f"nearer than {MARGIN} slices to the box"] += 1
            else:
                slices.append(Slice(row, patient, label, row.get(INSTANCE, "")))
    return slices, excluded, skipped


def _find_files(slices: Sequence[Slice], tree: RawTree, request: RawRequest) -> list[str | None]:
    """Return the file of each slice, found by the paths in the table or by the UIDs in headers.

    A slice without a file gets None.
    """
    name_by_path: dict[str, str] = {}
    for name in tree:
        path_in_collection = name.partition(COLLECTION)[2]
        name_by_path.setdefault((path_in_collection or name).casefold(), name)
    files: list[str | None] = []
    for mri_slice in slices:
        paths = _possible_paths(mri_slice.row)
        files.append(next((name_by_path[path] for path in paths if path in name_by_path), None))
    uncertain = _uncertain_slices(slices, files, tree, request)
    if not uncertain:
        return files
    names = _files_of_patients({slices[index].patient for index in uncertain}, tree)
    names_by_instance = _names_by_uid(lambda header: header.instance, names, tree, request)
    for index in uncertain:
        same_instance = names_by_instance.get(slices[index].instance)
        files[index] = same_instance[0] if same_instance else None
    return files


def _possible_paths(row: Mapping[str, str]) -> Iterator[str]:
    """Yield the possible paths of a row's file, in lower case.

    Downloads differ in the number of zeros in front of a slice's number.
    """
    for column in (CLASSIC, DESCRIPTIVE):
        path = re.sub(r"[\\/]+", "/", row.get(column, "")).strip("/ ")
        if not path:
            continue
        folder, _, file = path.rpartition(COLLECTION)[2].rpartition("/")
        yield f"{folder}/{file}".casefold()
        match = re.fullmatch(r"(\d+-)(\d+)(\.dcm)", file)
        if match:
            digits = match[2].lstrip("0") or "0"
            for width in (1, 2, 3):
                yield f"{folder}/{match[1]}{digits.zfill(width)}{match[3]}".casefold()


def _uncertain_slices(
    slices: Sequence[Slice], files: Sequence[str | None], tree: RawTree, request: RawRequest
) -> list[int]:
    """Return the indices of slices that have no file, or whose file may be another slice.

    The files of a folder are correct if the headers of its first and last file have the UIDs
    in the table. A slice without a UID in the table is never returned, because no header can
    identify it.
    """
    indices_by_folder: defaultdict[str, list[int]] = defaultdict(list)
    for index, file in enumerate(files):
        folder = "" if file is None else file.rpartition("/")[0]
        indices_by_folder[folder].append(index)

    def agrees(index: int) -> bool:
        file = files[index]
        instance = slices[index].instance
        if file is None or not instance:
            return True
        header = read_header(request.base(), tree.locator(file))
        return header is None or header.instance == instance

    uncertain: list[int] = []
    for folder, indices in indices_by_folder.items():
        if not folder or not all(map(agrees, {indices[0], indices[-1]})):
            uncertain += [index for index in indices if slices[index].instance]
    return uncertain


def _files_of_patients(patients: set[str], tree: RawTree) -> list[str]:
    """Return the files in the folders of patients, or all files if a patient has no folder."""
    names = [name for name in tree if not name.lower().endswith(TABLE_EXTENSIONS)]
    below_patients: list[str] = []
    missing = set(patients)
    for name in names:
        named_patients = patients.intersection(name.split("/"))
        if named_patients:
            below_patients.append(name)
            missing -= named_patients
    return names if missing else below_patients


def _names_by_uid(
    uid_of: Callable[[Header], str],
    names: Iterable[str],
    tree: RawTree,
    request: RawRequest,
) -> dict[str, list[str]]:
    """Read the headers of files, and return UID -> names of the files with this UID.

    Args:
        uid_of: Function that returns the UID of the SOP instance or of the series.
        names: Names of the files.
        tree: All files of the download.
        request: Contains the raw folder, and the name of the dataset for log lines.
    """
    names_by_uid: defaultdict[str, list[str]] = defaultdict(list)
    for number, name in enumerate(names, 1):
        header = read_header(request.base(), tree.locator(name))
        if header is not None:
            names_by_uid[uid_of(header)].append(name)
        if number % LOG_EVERY == 0:
            logger.info("%s: %d headers read", request.dataset.name, number)
    return names_by_uid


class Target(NamedTuple):
    """A biopsy target.

    Attributes:
        score: UCLA score, 0 to 5.
        series: UID of the ultrasound series.
        patient: Id of the patient.
    """

    score: int
    series: str
    patient: str


def list_prostate(tree: RawTree, request: RawRequest) -> Listing:
    """List one item per series, or one item per biopsy target in data as released.

    Items are in the order of the released code: by score, then as in the table.

    Raises:
        DataError: The table is missing, or has a score that is not a number from 0 to 5.
    """
    table = find_table(tree, request, TARGET_TABLE, TARGET_COLUMNS)
    targets, excluded = _read_targets(table, request)
    if request.spec.data_mode == "corrected":
        highest = _highest_of_each_series(targets)
        num_lower = len(targets) - len(highest)
        excluded["another target of the series has a higher score"] = num_lower
        targets = highest
    is_severe = request.spec.task == "severe"
    min_positive = 3 if is_severe else 2
    files = _SeriesFiles(request, tree)
    items: list[Item] = []
    skipped: list[tuple[str, str]] = []
    for target in sorted(targets, key=lambda target: target.score):
        if is_severe and target.score < 2:
            excluded["score below 2"] += 1
            continue
        name = files.find(target.series, target.patient)
        if name is None:
            skipped.append((target.series, FILE_MISSING))
            continue
        item = Item(
            locator=tree.locator(name),
            label=int(target.score >= min_positive),
            group=target.patient,
            details=(target.series,),
        )
        items.append(item)
    return Listing(
        items,
        request.dataset.label_names,
        block_size=4,
        excluded=dict(excluded),
        skipped=skipped,
        intensity="each frame by its own maximum",
    )


def _read_targets(table: str, request: RawRequest) -> tuple[list[Target], Counter[str]]:
    """Return the targets with a series and a score, and reason -> number of other rows.

    Raises:
        DataError: A score is not a whole number from 0 to 5.
    """
    targets: list[Target] = []
    excluded = Counter[str]()
    for row in read_table(table, request, TARGET_COLUMNS):
        if is_missing(row[SERIES]):
            excluded["no series"] += 1
            continue
        if is_missing(row[SCORE]):
            excluded["no score"] += 1
            continue
        score = SCORE_CELL.fullmatch(row[SCORE])
        if score is None:
            raise request.error(
                "a UCLA score is neither blank nor a whole number from 0 to 5",
                hint="Download the table of targets again",
            )
        targets.append(Target(int(score[1]), row[SERIES], row[PATIENT]))
    return targets, excluded


def _highest_of_each_series(targets: Iterable[Target]) -> list[Target]:
    """Return the target with the highest score of each series."""
    highest: dict[str, Target] = {}
    for target in targets:
        if target.score > highest.setdefault(target.series, target).score:
            highest[target.series] = target
    return list(highest.values())


def read_prostate(body: bytes, item: Item, _request: RawRequest) -> Iterator[Sample]:
    """Yield the middle half of a series' frames, but at least one frame.

    Raises:
        SkipItem: The file's header contradicts the table.
    """
    dicom = decode_dicom(body)
    if dicom.series and dicom.series != item.details[0]:
        raise SkipItem("another series in the file")
    if dicom.modality not in ("", "US"):
        raise SkipItem("not ultrasound")
    if dicom.known_patient() not in ("", item.group):
        raise SkipItem(OTHER_PATIENT)
    num_frames = len(dicom.values)
    start = num_frames // 4
    stop = max(start + 1, 3 * num_frames // 4)
    return frame_samples(dicom, slice(start, stop))


prostate = download(list_prostate, read_prostate)


class _SeriesFiles:
    """The files of all series. They are found by folder names, or else by file headers."""

    def __init__(self, request: RawRequest, tree: RawTree) -> None:
        self._request = request
        self._tree = tree
        self._names = [name for name in tree if name.lower().endswith(".dcm")]
        self._by_folder_uid: defaultdict[str, list[str]] = defaultdict(list)
        # The UIDs of two patients' series may end with the same five digits.
        self._by_patient_and_digits: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for name in self._names:
            folders = name.split("/")[:-1]
            match = SERIES_FOLDER.fullmatch(folders[-1]) if folders else None
            if match is None:
                continue
            if match["uid"]:
                self._by_folder_uid[match["uid"]].append(name)
                continue
            for patient in folders[:-1]:
                self._by_patient_and_digits[patient, match["end"]].append(name)

    def find(self, series: str, patient: str) -> str | None:
        """Return the name of a series' file; None if no file, or several different files, match."""
        names = self._by_folder_uid.get(series, [])
        if not names:
            names = self._by_patient_and_digits.get((patient, series[-5:]), [])
            names = [name for name in names if self._may_have_series(name, series)]
        name = self._single_name(names)
        if name is not None:
            return name
        return self._single_name(self._by_header_uid.get(series, ()))

    @cached_property
    def _by_header_uid(self) -> dict[str, list[str]]:
        """UID of a series -> names of the files whose headers contain it. All headers are read."""
        return _names_by_uid(lambda header: header.series, self._names, self._tree, self._request)

    def _header(self, name: str) -> Header | None:
        """Return the header of a file; None if it cannot be read."""
        return read_header(self._request.base(), self._tree.locator(name))

    def _may_have_series(self, name: str, series: str) -> bool:
        """Return whether a file may belong to a series: its header states no other series."""
        header = self._header(name)
        return header is None or header.series in ("", series)

    def _single_name(self, names: Sequence[str]) -> str | None:
        """Return the only name, or the first name if all files are copies of one file.

        A raw folder has copies if two downloads in it overlap.
        """
        if len(names) < 2:
            return names[0] if names else None
        headers = [self._header(name) for name in names]
        instances = {header.instance if header else "" for header in headers}
        if len(instances) == 1 and "" not in instances:
            return names[0]
        return None
