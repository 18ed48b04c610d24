"""OAI baseline knees: both knees of a radiograph, cropped 13.4 cm around the joint.

The study's detector is not available, so a knee comes, in this order of preference, from
``crops/<ID>_<R|L>.png`` (ready crops), from ``knee_centers.csv`` (id, side, row, column in pixels of the
file), or from :func:`find_centers`, a rule by image content. The record counts how many knees each way gave.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem
from tasks.sources.dicom import Dicom, frames_to_pixels, read_dicom
from tasks.sources.files import walk
from tasks.sources.image_files import read_image
from tasks.sources.imagenet import own_maximum_sample
from tasks.sources.label_tables import read_table
from tasks.sources.official import find_file

READING_PROJECT = "15"
SERIES = "0.E.1"
SIDES = {"1": "R", "2": "L"}
PIXEL_MM, CROP_PIXELS = 0.2, 672
CENTERS = "knee_centers.csv"


class Oai:
    """Radiographs in the order of their names, then ready crops."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per radiograph or ready crop; knees without a grade are left out.

        Raises:
            DataError: for a missing table, odd grades, or no radiographs.
        """
        root = request.root()
        grades, excluded = _grades(request)
        centers = _centers(root, request)
        items: list[Item] = []
        seen: set[tuple[str, str]] = set()
        taken: set[str] = set()
        names = list(walk(root, request))
        for name in names:
            match = re.fullmatch(r"(?:.*/)?crops/(\d+)_([RL])\.png", name)
            if match and (match[1], match[2]) in grades:
                seen.add((match[1], match[2]))
                items.append(Item(name, grades[match[1], match[2]], match[1], details=("crop",)))
        for name in names:
            parts = name.split("/")
            if SERIES not in parts or parts.index(SERIES) + 4 >= len(parts) or "." in parts[-1]:
                continue
            patient = parts[parts.index(SERIES) + 1]
            if patient in taken:
                excluded["another radiograph of the same knees"] += 1
                continue
            details: list[str | int | float | None] = ["radiograph"]
            for side in ("R", "L"):
                label = None if (patient, side) in seen else grades.get((patient, side))
                details += [label, *centers.get((patient, side), (None, None))]
            if details[1] is None and details[4] is None:
                excluded["radiograph without a graded knee"] += 1
            else:
                taken.add(patient)
                items.append(Item(name, None, patient, details=tuple(details)))
        if not items:
            raise DataError(
                "oai needs radiographs or crops", "none", f"expected: {request.dataset.raw_layout}"
            )
        return Listing(
            items,
            request.dataset.label_names,
            block_size=16,
            excluded={reason: count for reason, count in excluded.items() if count},
            intensity="stored values by own maximum, then each crop by its own maximum",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of radiographs (two knees) and ready crops."""
        root = request.root()

        def read(item: Item) -> Iterator[Sample]:
            if item.details[0] == "crop":
                sample = own_maximum_sample(read_image(root / item.locator))
                yield Sample(sample.pixels, conversions=(*sample.conversions, "knee: ready crop"))
            else:
                yield from _knees(read_dicom(root / item.locator), item)

        return read


def _grades(request: RawRequest) -> tuple[dict[tuple[str, str], int], Counter[str]]:
    """Return (patient, side) -> label from Kellgren-Lawrence grades of reading project 15."""
    table = find_file(request, ("kxr_sq_bu00",), (".txt", ".csv"))
    grades: dict[tuple[str, str], int] = {}
    excluded, odd = Counter[str](), 0
    for row in read_table(table, request, ("ID", "SIDE", "READPRJ", "V00XRKL")):
        side, grade = SIDES.get(row["SIDE"][:1]), re.match(r"[0-4](?=\D|$)", row["V00XRKL"])
        if row["READPRJ"].removesuffix(".0").split(":")[0] != READING_PROJECT:
            excluded["another reading project"] += 1
        elif side is None:
            odd += 1
        elif grade is None:
            excluded["knee without a grade"] += 1
        else:
            label = int(int(grade[0]) >= 2)
            odd += grades.setdefault((row["ID"], side), label) != label
    if odd:
        raise DataError("oai: each knee must have side 1 or 2 and one grade", f"{odd} other rows")
    return grades, excluded


def _centers(root: Path, request: RawRequest) -> dict[tuple[str, str], tuple[float, float]]:
    if not (root / CENTERS).is_file():
        return {}
    centers = {}
    for row in read_table(root / CENTERS, request, ("id", "side", "row", "column")):
        try:
            centers[row["id"], row["side"].upper()[:1]] = (float(row["row"]), float(row["column"]))
        except ValueError:
            raise DataError(f"oai: rows and columns of {CENTERS} must be numbers", "other cells") from None
    return centers


def _knees(dicom: Dicom, item: Item) -> Iterator[Sample]:
    if len(dicom.values) != 1 or dicom.values.ndim != 3:
        raise SkipItem("not one grey frame")
    if dicom.spacing is None:
        raise SkipItem("no pixel spacing")
    (pixels, notes, flags) = next(frames_to_pixels(dicom))
    zoom = (dicom.spacing[0] / PIXEL_MM, dicom.spacing[1] / PIXEL_MM)
    resampled = _resample(pixels, zoom)
    found = find_centers(resampled)
    # Seen from the front, the patient's right knee is on the left of the image.
    for place, center_found in enumerate(found):
        label, row, column = item.details[1 + 3 * place : 4 + 3 * place]
        if label is None:
            continue
        if isinstance(row, float) and isinstance(column, float):
            center, how = (row * zoom[0], column * zoom[1]), "knee: given centre"
        else:
            center, how = center_found, "knee: cropped by content"
        crop = _crop(resampled, center)
        yield Sample(crop, label=int(label), conversions=(*notes, how), flags=flags)


def _resample(pixels: NDArray[np.uint8], zoom: tuple[float, float]) -> NDArray[np.uint8]:
    from PIL import Image

    height, width = (max(1, round(size * factor)) for size, factor in zip(pixels.shape, zoom, strict=True))
    if max(height, width) > 20_000:
        raise SkipItem("pixel spacing out of range")
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def find_centers(pixels: NDArray[np.uint8]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return (row, column) of the left and the right knee of a bilateral radiograph, by image content.

    In each half: the column is the middle of the leg, the centre of mass of the columns' brightness above its
    median; the row is where brightness changes most from row to row near that column, in the middle half of
    the
    height: the joint's bony edges. A rule of thumb, made on drawn legs; check crops before relying on it.
    """
    from scipy.ndimage import gaussian_filter1d

    values = pixels.astype(np.float32)
    height, width = values.shape
    centers = []
    for start, stop in ((0, width // 2), (width // 2, width)):
        half = values[:, start:stop]
        profile = half.mean(axis=0)
        weight = np.clip(profile - np.median(profile), 0, None) + 1e-6
        column = float((weight * np.arange(len(weight))).sum() / weight.sum())
        reach = max(2, width // 12)
        band = half[:, max(0, int(column) - reach) : int(column) + reach]
        change = gaussian_filter1d(np.abs(np.diff(band, axis=0)).mean(axis=1), max(1.0, height / 60))
        quarter = height // 4
        row = quarter + int(np.argmax(change[quarter : height - quarter]))
        centers.append((float(row), start + column))
    return centers[0], centers[1]


def _crop(pixels: NDArray[np.uint8], center: tuple[float, float]) -> NDArray[np.uint8]:
    """Cut ``CROP_PIXELS`` squared around the centre, moved inside the image where it would leave it."""
    sizes = [min(CROP_PIXELS, size) for size in pixels.shape]
    starts = [
        int(np.clip(round(place) - size // 2, 0, full - size))
        for place, size, full in zip(center, sizes, pixels.shape, strict=True)
    ]
    return pixels[starts[0] : starts[0] + sizes[0], starts[1] : starts[1] + sizes[1]]
