"""Prostate-MRI-US-Biopsy (TCIA): frames of the *ultrasound* series that a target was found in (F10).

Layout: the collection's page at TCIA; the table of targets is found by its columns, whatever a download
called it (``Target Data_2019-12-05.xlsx``, ``Target-Data_2019-12-05-2.xlsx``). A series is the folder named
by its UID (classic names, or idc-index's ``US_<uid>``), by the UID's last five digits (descriptive names),
or the file whose header has the UID, wherever it lies; ``.zip`` archives are read in place.

Frames from one quarter to three quarters of the volume are taken, each by its own maximum. Several targets
may share a series; corrected, the series takes its highest score, so that no frame has two labels (F33).
Released, every target contributes its frames.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem
from tasks.sources.dicom import decode_dicom
from tasks.sources.dicom_headers import HeaderIndex, read_header
from tasks.sources.label_tables import read_table
from tasks.sources.labels import is_missing
from tasks.sources.official import FILE_MISSING, dicom_samples, find_table, list_download, not_there
from tasks.sources.raw import RawTree, read_locator

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
        return list_download(request, lambda tree: _listing(tree, request))

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


def _listing(tree: RawTree, request: RawRequest) -> Listing:
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
