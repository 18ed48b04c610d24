"""OAI baseline knees: both knees of a radiograph, cropped 13.4 cm around the joint.

Layouts: the archive's ``results/<site>/<release>/<ID>/<date>/<barcode>/001`` (releases ``0.C.2`` and
``0.E.1`` hold half of the baseline each; the released code read ``0.E.1`` only), and its S3 form, one
``<barcode>.tar.gz`` per series (OAI "Image Release" notes as public readers quote them). Grades:
``kxr_sq_bu00`` as text, CSV or SAS.

A radiograph is taken when it is the bilateral PA fixed-flexion view of the knees: by the
``SeriesDescription`` of the release's ``contents.csv``, and by its own header, which must not contradict
it. What neither describes is left out.

The study's detector is not available, so a knee comes, in this order of preference, from
``crops/<ID>_<R|L>.png`` (ready crops), from ``knee_centers.csv`` (id, side, row, column in pixels of the
file), or from :func:`tasks.sources.oai.find_centers`, a rule by image content. The record counts how many
each way gave.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem
from tasks.sources.dicom import Dicom, DicomHeader, decode_dicom, frames_to_pixels, read_header
from tasks.sources.labels import is_missing
from tasks.sources.natural import own_maximum_sample
from tasks.sources.official import find_named, find_table, not_there
from tasks.sources.pictures import decode_image
from tasks.sources.raw import RawTree, read_locator
from tasks.sources.tables import column_key, header_of, read_table

# The OAI's tables: grades of knees, descriptions of series, and centres that a user gives.
#
# Layout: the OAI's "kXR_SQ_BU" and "Imaging: contents.csv" tables as :mod:`tasks.sources.oai` names them.

READING_PROJECT = "15"
SIDES = {"1": "R", "2": "L"}
SIDE_WORDS = {"r": "R", "right": "R", "1": "R", "l": "L", "left": "L", "2": "L"}
GRADES, GRADE_COLUMNS = "kxr_sq_bu00", ("ID", "SIDE", "READPRJ", "V00XRKL")
CENTERS, CONTENTS = "knee_centers.csv", ("ParticipantID", "SeriesDescription", "Barcode")
MAX_TOLD_ROWS = 10

Knee = tuple[str, str]
"""Participant id and side."""


def read_grades(table: str, request: RawRequest) -> tuple[dict[Knee, int], Counter[str]]:
    """Return (patient, side) -> label from Kellgren-Lawrence grades of reading project 15."""
    grades: dict[Knee, int] = {}
    excluded, odd = Counter[str](), 0
    for row in read_table(table, request, GRADE_COLUMNS):
        side, grade = SIDES.get(row["SIDE"][:1]), re.match(r"[0-4](?=\D|$)", row["V00XRKL"])
        if row["READPRJ"].removesuffix(".0").split(":")[0] != READING_PROJECT:
            excluded["another reading project"] += 1
        elif side is None:
            odd += 1
        elif grade is None:
            excluded["knee without a grade"] += 1
        else:
            label = int(int(grade[0]) >= 2)
            odd += grades.setdefault((row["ID"].removesuffix(".0"), side), label) != label
    if odd:
        raise DataError("oai: each knee must have side 1 or 2 and one grade", f"{odd} other rows")
    return grades, excluded


def read_descriptions(tree: RawTree, request: RawRequest) -> dict[tuple[str, str], str]:
    """Return (patient, barcode) -> series description of all ``contents*.csv`` in the tree."""
    found: dict[tuple[str, str], str] = {}
    needed = {column_key(name) for name in CONTENTS}
    for name in tree:
        file = name.rpartition("/")[2].casefold()
        if file.startswith("contents") and file.endswith(".csv"):
            locator = tree.locator(name)
            if needed <= set(header_of(locator, request)):
                for row in read_table(locator, request, CONTENTS):
                    key = (
                        row["ParticipantID"].removesuffix(".0"),
                        row["Barcode"].removesuffix(".0").lstrip("0"),
                    )
                    found[key] = row["SeriesDescription"]
    return found


def read_centers(
    tree: RawTree, sides_of: Mapping[str, tuple[int, int]], request: RawRequest
) -> dict[Knee, tuple[float, float]]:
    """Return (patient, side) -> (row, column) of ``knee_centers.csv``.

    Raises:
        DataError: naming the rows whose side is unknown, whose place is no number or not in the image, or
            that give a knee twice.
    """
    names = find_named(tree, CENTERS)
    if not names:
        return {}
    centers: dict[Knee, tuple[float, float]] = {}
    wrong: list[int] = []
    for number, row in enumerate(
        read_table(tree.locator(names[0]), request, ("id", "side", "row", "column")), 2
    ):
        side, patient = SIDE_WORDS.get(row["side"].casefold()), row["id"].removesuffix(".0")
        try:
            place = (float(row["row"]), float(row["column"]))
        except ValueError:
            place = (math.nan, math.nan)
        sides = sides_of.get(patient)
        inside = all(
            0 <= value < (limit if sides else math.inf)
            for value, limit in zip(place, sides or (0, 0), strict=True)
        )
        if side is None or is_missing(patient) or not inside or (patient, side) in centers:
            wrong.append(number)
        else:
            centers[patient, side] = place
    if wrong:
        more = ", ..." if len(wrong) > MAX_TOLD_ROWS else ""
        raise DataError(
            f"oai: {CENTERS} must give side R or L, and a row and column inside the image, once per knee",
            f"{len(wrong)} other rows: {', '.join(map(str, wrong[:MAX_TOLD_ROWS]))}{more}",
            "rows are counted with the header as row 1; pixels are those of the DICOM file",
        )
    return centers


# Knees in a bilateral radiograph: resample to 0.2 mm, find the joints, crop 13.4 cm around them.

PIXEL_MM, CROP_PIXELS = 0.2, 672
MAX_SIDE = 8_000


def resampled(pixels: NDArray[np.uint8], zoom: tuple[float, float]) -> NDArray[np.uint8]:
    """Return an image with its sides ``zoom`` times as long, bicubic as in the study.

    Raises:
        SkipItem: when a side would be longer than any film (1.6 m).
    """
    from PIL import Image

    height, width = (max(1, round(size * factor)) for size, factor in zip(pixels.shape, zoom, strict=True))
    if max(height, width) > MAX_SIDE:
        raise SkipItem("pixel spacing out of range")
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def find_centers(pixels: NDArray[np.uint8]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return (row, column) of the left and the right knee of a bilateral radiograph, by image content.

    In each half: the column is the middle of the leg, the centre of mass of the columns' brightness above its
    median; the row is where brightness changes most from row to row near that column, in the middle half of
    the height: the joint's bony edges. A rule of thumb, made on drawn legs; check crops before relying on it.
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


def crop_around(pixels: NDArray[np.uint8], center: tuple[float, float]) -> NDArray[np.uint8]:
    """Cut ``CROP_PIXELS`` squared around the centre, moved inside the image where it would leave it."""
    sizes = [min(CROP_PIXELS, size) for size in pixels.shape]
    starts = [
        int(np.clip(round(place) - size // 2, 0, full - size))
        for place, size, full in zip(center, sizes, pixels.shape, strict=True)
    ]
    return pixels[starts[0] : starts[0] + sizes[0], starts[1] : starts[1] + sizes[1]]


RADIOGRAPH = re.compile(
    r"(?:^|/)(?P<id>\d{7})/(?P<date>\d{8})/(?P<barcode>\d{6,12})(?:\.tar\.gz|\.tgz|\.zip)?(?:/|!/|$)"
)
VISIT = re.compile(r"(\d+)(?:\.[A-Z]\.\d+|m)")
RELEASED_SERIES = "0.E.1"
WANTED = "fixed flexion knee"
MODALITIES = frozenset({"CR", "DX", "RG", "XR", "DR"})


class Oai:
    """Ready crops, then radiographs in the order of their names."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per radiograph or ready crop; knees without a grade are left out.

        Raises:
            DataError: for a missing table, odd grades or centres, or no radiographs.
        """
        tree = _tree(request)
        table = find_table(tree, request, GRADES, GRADE_COLUMNS)
        if table is None:
            raise not_there(request, f"{GRADES}.txt, .csv or .sas7bdat", tree)
        grades, excluded = read_grades(table, request)
        items = []
        for name in tree:
            match = re.fullmatch(r"(?:.*/)?crops/(\d+)_([RL])\.png", name)
            if match and (match[1], match[2]) not in grades:
                excluded["ready crop without a grade, or the second of a knee"] += 1
            elif match:
                label = grades[match[1], match[2]]
                items.append(Item(tree.locator(name), label, match[1], details=("crop",)))
                grades.pop((match[1], match[2]))
        radiographs = _radiographs(tree, grades, excluded, request)
        centers = read_centers(tree, {name: one.header.sides for name, one in radiographs.items()}, request)
        for found in radiographs.values():
            details: list[str | int | float | None] = ["radiograph"]
            for side in ("R", "L"):
                knee = (found.patient, side)
                details += [grades.get(knee), *centers.get(knee, (None, None))]
            items.append(Item(found.locator, None, found.patient, details=tuple(details)))
        shown = {item.group for item in items if item.details[0] == "radiograph"}
        excluded["graded knee without a radiograph"] = sum(patient not in shown for patient, _ in grades)
        if not items:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in excluded.items() if count)
            found_text = f"none ({reasons})" if reasons else "none"
            raise DataError(
                "oai needs radiographs or crops", found_text, f"expected: {request.dataset.raw_layout}"
            )
        return Listing(
            items,
            request.dataset.label_names,
            block_size=8,
            excluded={reason: count for reason, count in excluded.items() if count},
            intensity="stored values by own maximum, then each crop by its own maximum",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of radiographs (two knees) and ready crops."""
        base = request.base()

        def read(item: Item) -> Iterator[Sample]:
            body = read_locator(base, item.locator)
            if item.details[0] == "crop":
                sample = own_maximum_sample(decode_image(body))
                yield Sample(sample.pixels, conversions=(*sample.conversions, "knee: ready crop"))
            else:
                yield from _knees(decode_dicom(body), item)

        return read


@dataclass(frozen=True)
class _Radiograph:
    locator: str
    patient: str
    header: DicomHeader


def _tree(request: RawRequest) -> RawTree:
    """Return the tree, archives included; series that ``contents.csv`` calls something else stay shut.

    Of the archives beside unpacked radiographs only those of single series are opened: a series that is still
    packed is a patient more.
    """
    tree = RawTree(request)
    if not tree.archives or not request.root().is_dir():
        return tree
    described = read_descriptions(tree, request)
    table = find_table(tree, request, GRADES, GRADE_COLUMNS)
    whole = table is not None and any(RADIOGRAPH.search(name) for name in tree)

    def wanted(name: str) -> bool:
        match = RADIOGRAPH.search(name)
        if match is None:
            return not whole
        said = described.get((match["id"], match["barcode"].lstrip("0")), "")
        return not said or _is_wanted(said)

    return RawTree(request, archives=True, wanted=wanted)


def _radiographs(
    tree: RawTree, grades: Mapping[Knee, int], excluded: Counter[str], request: RawRequest
) -> dict[str, _Radiograph]:
    """Return each patient's first bilateral fixed-flexion radiograph; counts what was left out, and why."""
    described, base = read_descriptions(tree, request), request.base()
    found: dict[str, _Radiograph] = {}
    for name in tree:
        locator = tree.locator(name)
        match = RADIOGRAPH.search(locator)
        if match is None or locator.endswith((".tar.gz", ".tgz", ".csv", ".txt")):
            continue
        if _is_later_visit(locator):
            excluded["radiograph of a later visit"] += 1
            continue
        if request.spec.data_mode == "as_released" and RELEASED_SERIES not in locator.split("/"):
            continue
        patient, said = match["id"], described.get((match["id"], match["barcode"].lstrip("0")), "")
        if said and not _is_wanted(said):
            excluded["another view or body part"] += 1
            continue
        header = read_header(base, locator)
        if header is None:
            excluded["not a DICOM file"] += 1
        elif not _is_radiograph(header, said):
            described_somehow = bool(said or header.description)
            excluded["another view or body part" if described_somehow else "view not described anywhere"] += 1
        elif header.patient not in ("", patient):
            excluded["another patient in the header than in the folder"] += 1
        elif not any((patient, side) in grades for side in "RL"):
            excluded["radiograph without a graded knee"] += 1
        elif patient in found:
            excluded["another radiograph of the same knees"] += 1
        else:
            found[patient] = _Radiograph(locator, patient, header)
    return found


def _is_later_visit(locator: str) -> bool:
    """Tell whether a folder is that of a follow-up, whose knees the baseline's grades are not of.

    Releases are called ``<visit>.<kind>.<n>``, 0 the baseline; the S3 form adds ``00m``, ``12m`` ...
    """
    return any(found[1].strip("0") for part in locator.split("/") if (found := VISIT.fullmatch(part)))


def _is_wanted(description: str) -> bool:
    return WANTED in " ".join(description.casefold().split())


def _is_radiograph(header: DicomHeader, said: str) -> bool:
    """Tell whether a file is the view that grades belong to; its own header may not contradict the table."""
    told = [text for text in (said, header.description) if text]
    return header.modality in MODALITIES and bool(told) and all(map(_is_wanted, told))


def _knees(dicom: Dicom, item: Item) -> Iterator[Sample]:
    if len(dicom.values) != 1 or dicom.values.ndim != 3:
        raise SkipItem("not one grey frame")
    if dicom.spacing is None:
        raise SkipItem("no pixel spacing")
    if dicom.laterality in ("R", "L"):
        raise SkipItem("one knee only, by its header")
    if dicom.orientation.startswith("R"):
        raise SkipItem("left and right turned over, by its header")
    (pixels, notes, flags) = next(frames_to_pixels(dicom))
    zoom = (dicom.spacing[0] / PIXEL_MM, dicom.spacing[1] / PIXEL_MM)
    fine = resampled(pixels, zoom)
    found = find_centers(fine)
    # Seen from the front, the patient's right knee is on the left of the image.
    for place, center_found in enumerate(found):
        label, row, column = item.details[1 + 3 * place : 4 + 3 * place]
        if label is None:
            continue
        if isinstance(row, float) and isinstance(column, float):
            center, how = (row * zoom[0], column * zoom[1]), "knee: given centre"
        else:
            center, how = center_found, "knee: cropped by content"
        yield Sample(
            crop_around(fine, center),
            label=int(label),
            conversions=(*notes, how),
            flags=flags,
            traits=dicom.traits,
        )
