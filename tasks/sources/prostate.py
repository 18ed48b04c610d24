"""Prostate-MRI-US-Biopsy (TCIA): frames of the *ultrasound* series that a target was found in (F10).

Frames from one quarter to three quarters of the volume are taken, each by its own maximum. Several targets
may share a series; corrected, the series takes its highest score, so that no frame has two labels (F33).
Released, every target contributes its frames.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem
from tasks.sources.dicom import read_dicom
from tasks.sources.label_tables import read_table
from tasks.sources.official import FileIndex, dicom_samples, find_file

TABLE = ("Target Data_2019-12-05", "Target-Data_2019-12-05")
SERIES, SCORE, PATIENT = "seriesInstanceUID_US", "UCLA Score (Similar to PIRADS v2)", "Patient ID"
UID_DIGITS = 5
"""TCIA's descriptive folder names end in the last five digits of the UID."""


class Prostate:
    """Ultrasound series, ordered by score and then by table row, as the released loader walks them."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per series (released: per target).

        Raises:
            DataError: for a missing table or scores that are no whole numbers.
        """
        rows = read_table(find_file(request, TABLE, (".xlsx", ".csv")), request, (PATIENT, SERIES, SCORE))
        excluded = Counter[str]()
        targets: list[tuple[int, str, str]] = []
        for row in rows:
            if not row[SERIES] or not row[SCORE]:
                excluded["no series" if not row[SERIES] else "no score"] += 1
            else:
                targets.append((_score(row[SCORE]), row[SERIES], row[PATIENT]))
        if request.spec.data_mode == "corrected":
            targets, repeats = _highest(targets)
            excluded["another target of the series has a higher score"] = repeats
        severe = request.spec.task == "severe"
        files, skipped = _SeriesFiles(FileIndex(request)), []
        items = []
        for score, series, patient in sorted(targets, key=lambda target: target[0]):
            if severe and score < 2:
                excluded["score below 2"] += 1
                continue
            name = files.find(series, patient)
            if name is None:
                skipped.append((series, "file is missing"))
            else:
                items.append(Item(name, int(score > 2 if severe else score >= 2), patient, details=(series,)))
        return Listing(
            items,
            request.dataset.label_names,
            block_size=4,
            excluded={reason: count for reason, count in excluded.items() if count},
            skipped=skipped,
            intensity="each frame by its own maximum",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of series."""
        root = request.root()

        def read(item: Item) -> Iterator[Sample]:
            dicom = read_dicom(root / item.locator)
            if dicom.series and dicom.series != item.details[0]:
                raise SkipItem("another series in the file")
            frames = len(dicom.values)
            return dicom_samples(dicom, frames=slice(frames // 4, max(frames // 4 + 1, 3 * frames // 4)))

        return read


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
    """Where each series' file is: below a folder named by its UID, or by the end of it."""

    def __init__(self, index: FileIndex) -> None:
        self._by_folder: defaultdict[str, list[str]] = defaultdict(list)
        for name in index:
            parts = name.split("/")
            if len(parts) >= 3 and name.lower().endswith(".dcm"):
                self._by_folder[parts[-2]].append(name)
        self._by_end: defaultdict[str, list[str]] = defaultdict(list)
        for folder in self._by_folder:
            match = re.search(rf"-(\d{{{UID_DIGITS}}})$", folder)
            if match:
                self._by_end[match[1]].append(folder)

    def find(self, series: str, patient: str) -> str | None:
        if series in self._by_folder:
            return self._by_folder[series][0]
        names = [
            name
            for folder in self._by_end.get(series[-UID_DIGITS:], ())
            for name in self._by_folder[folder]
            if patient in name.split("/")
        ]
        return names[0] if len(names) == 1 else None
