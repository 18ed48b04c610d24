"""OAI baseline knees: both knees of a radiograph, cropped 13.4 cm around the joint.

Layouts: the archive's ``results/<site>/<release>/<ID>/<date>/<barcode>/001`` (releases ``0.C.2``
and ``0.E.1`` hold half of the baseline each; the released code read ``0.E.1`` only), and its S3
form, one ``<barcode>.tar.gz`` per series (OAI "Image Release" notes as public readers quote them).
Tables: grades in ``kxr_sq_bu00`` as text, CSV or SAS, descriptions of series in each release's
``contents.csv``.

A radiograph is taken when it is the bilateral PA fixed-flexion view of the knees: by the
``SeriesDescription`` of ``contents.csv``, and by its own header, which must not contradict it.

The study's detector is not available: a knee comes from ``crops/<ID>_<R|L>.png``, else
``knee_centers.csv`` (row and column in pixels of the file), else :func:`find_centers`, and the
record counts each way.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem, Source, first_of
from tasks.sources.dicom import Dicom, Header, decode_dicom, frame_samples, read_header
from tasks.sources.official import find_named, find_table, not_there, read_picture
from tasks.sources.own import is_missing
from tasks.sources.raw import RawTree, read_locator
from tasks.sources.tables import column_key, header_of, read_table

READING_PROJECT = "15"
SIDES = {"1": "R", "2": "L"}
SIDE_WORDS = {"r": "R", "right": "R", "1": "R", "l": "L", "left": "L", "2": "L"}
GRADES, GRADE_COLUMNS = "kxr_sq_bu00", ("ID", "SIDE", "READPRJ", "V00XRKL")
CENTERS, CONTENTS = "knee_centers.csv", ("ParticipantID", "SeriesDescription", "Barcode")
CROP = re.compile(r"(?:.*/)?crops/(\d+)_([RL])\.png")
RADIOGRAPH = re.compile(
    r"(?:^|/)(?P<id>\d{7})/(?P<date>\d{8})/(?P<barcode>\d{6,12})(?:\.tar\.gz|\.tgz|\.zip)?(?:/|!/|$)"
)
VISIT = re.compile(r"(\d+)(?:\.[A-Z]\.\d+|m)")
"""Releases are called ``<visit>.<kind>.<n>``, 0 the baseline; the S3 form adds ``00m``, ``12m``
..."""
RELEASED_SERIES = "0.E.1"
WANTED = "fixed flexion knee"
OTHER_VIEW = "another view or body part"
MODALITIES = frozenset({"CR", "DX", "RG", "XR", "DR"})
PIXEL_MM, CROP_PIXELS = 0.2, 672
MAX_SIDE = 8_000
"""Longer than any film: 1.6 m."""
MAX_TOLD_ROWS = 10

Knee = tuple[str, str]
"""Participant id and side."""
Descriptions = Mapping[tuple[str, str], str]
"""(patient, barcode) -> series description."""


def list_oai(request: RawRequest) -> Listing:
    """Return one item per ready crop, then one per radiograph with a grade, in the order of their
    names.
    """
    tree = RawTree(request)
    if tree.archives and request.root().is_dir():
        # Series that contents.csv calls something else stay shut. Of the archives beside unpacked
        # radiographs only those of single series are opened: a series that is still packed is a
        # patient more.
        described, table = (
            read_descriptions(tree, request),
            find_table(tree, request, GRADES, GRADE_COLUMNS),
        )
        is_whole = table is not None and any(map(RADIOGRAPH.search, tree))

        def wanted(name: str) -> bool:
            match = RADIOGRAPH.search(name)
            if match is None:
                return not is_whole
            said = described.get((match["id"], match["barcode"].lstrip("0")), "")
            return not said or _is_wanted(said)

        tree = RawTree(request, archives=True, wanted=wanted)
    table = find_table(tree, request, GRADES, GRADE_COLUMNS)
    if table is None:
        raise not_there(request, f"{GRADES}.txt, .csv or .sas7bdat", tree)
    grades, excluded = read_grades(table, request)
    items = []
    for name in tree:
        match = CROP.fullmatch(name)
        knee = match and (match[1], match[2])
        if knee and knee in grades:
            items.append(Item(tree.locator(name), grades.pop(knee), knee[0], details=("crop",)))
        elif knee:
            excluded["ready crop without a grade, or the second of a knee"] += 1
    radiographs = _radiographs(tree, grades, excluded, request)
    centers = read_centers(
        tree, {patient: header.sides for patient, (_, header) in radiographs.items()}, request
    )
    for patient, (locator, _) in radiographs.items():
        details: list[str | int | float | None] = ["radiograph"]
        for side in ("R", "L"):
            details += [grades.get((patient, side)), *centers.get((patient, side), (None, None))]
        items.append(Item(locator, None, patient, details=tuple(details)))
    excluded["graded knee without a radiograph"] = sum(
        patient not in radiographs for patient, _ in grades
    )
    return Listing(
        items,
        request.dataset.label_names,
        block_size=8,
        excluded=dict(excluded),
        intensity="stored values by own maximum, then each crop by its own maximum",
    )


def read_oai(request: RawRequest) -> Reader:
    """Return a reader of radiographs (two knees) and ready crops."""
    base = request.base()

    def read(item: Item) -> Iterator[Sample]:
        body = read_locator(base, item.locator)
        if item.details[0] == "crop":
            (sample,) = read_picture(body, item, request)
            yield Sample(sample.pixels, conversions=(*sample.conversions, "knee: ready crop"))
        else:
            yield from _knees(decode_dicom(body), item)

    return read


oai = Source(list_oai, read_oai)


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
        raise request.error("each knee must have side 1 or 2 and one grade", f"{odd} other rows")
    return grades, excluded


def read_descriptions(tree: RawTree, request: RawRequest) -> Descriptions:
    """Return the descriptions of all ``contents*.csv`` in the tree."""
    found: dict[tuple[str, str], str] = {}
    for name in tree:
        if not re.fullmatch(r"contents.*\.csv", name.rpartition("/")[2].casefold()):
            continue
        locator = tree.locator(name)
        if set(map(column_key, CONTENTS)) <= set(header_of(locator, request)):
            for row in read_table(locator, request, CONTENTS):
                patient, barcode = (
                    row[column].removesuffix(".0") for column in ("ParticipantID", "Barcode")
                )
                found[patient, barcode.lstrip("0")] = row["SeriesDescription"]
    return found


def read_centers(
    tree: RawTree, sides_of: Mapping[str, tuple[int, int]], request: RawRequest
) -> dict[Knee, tuple[float, float]]:
    """Return (patient, side) -> (row, column) of ``knee_centers.csv``; a DataError names wrong
    rows.
    """
    centers: dict[Knee, tuple[float, float]] = {}
    wrong: list[int] = []
    for name in find_named(tree, CENTERS)[:1]:
        rows = read_table(tree.locator(name), request, ("id", "side", "row", "column"))
        for number, row in enumerate(rows, 2):
            side, patient = SIDE_WORDS.get(row["side"].casefold()), row["id"].removesuffix(".0")
            try:
                place = (float(row["row"]), float(row["column"]))
            except ValueError:
                place = (math.nan, math.nan)
            limits = sides_of.get(patient, (math.inf, math.inf))
            inside = all(0 <= value < limit for value, limit in zip(place, limits, strict=True))
            if side is None or is_missing(patient) or not inside or (patient, side) in centers:
                wrong.append(number)
            else:
                centers[patient, side] = place
    if wrong:
        raise request.error(
            (
                f"{CENTERS} must give side R or L, and a row and column inside the image, once per "
                "knee"
            ),
            f"{len(wrong)} other rows: {first_of(map(str, wrong), MAX_TOLD_ROWS)}",
            "the header is row 1, and no row blank; pixels are those of the DICOM file",
        )
    return centers


def _is_wanted(description: str) -> bool:
    return WANTED in " ".join(description.casefold().split())


def _radiographs(
    tree: RawTree, grades: Mapping[Knee, int], excluded: Counter[str], request: RawRequest
) -> dict[str, tuple[str, Header]]:
    """Return locator and header of each patient's first fixed-flexion radiograph; count the
    others.
    """
    described, base = read_descriptions(tree, request), request.base()
    released = request.spec.data_mode == "as_released"
    found: dict[str, tuple[str, Header]] = {}
    for name in tree:
        locator = tree.locator(name)
        match = RADIOGRAPH.search(locator)
        if match is None or locator.endswith((".tar.gz", ".tgz", ".csv", ".txt")):
            continue
        parts = locator.split("/")
        if any(visit[1].strip("0") for part in parts if (visit := VISIT.fullmatch(part))):
            excluded["radiograph of a later visit"] += (
                1  # the baseline's grades are not of these knees
            )
            continue
        if released and RELEASED_SERIES not in parts:
            continue
        patient, said = match["id"], described.get((match["id"], match["barcode"].lstrip("0")), "")
        header = None if said and not _is_wanted(said) else read_header(base, locator)
        told = [text for text in (said, header.description if header else "") if text]
        if said and not _is_wanted(said):
            excluded[OTHER_VIEW] += 1
        elif header is None:
            excluded["not a DICOM file"] += 1
        elif not told:
            excluded["view not described anywhere"] += 1
        elif header.modality not in MODALITIES or not all(map(_is_wanted, told)):
            excluded[OTHER_VIEW] += 1
        elif header.patient not in ("", patient):
            excluded["another patient in the header than in the folder"] += 1
        elif not any((patient, side) in grades for side in "RL"):
            excluded["radiograph without a graded knee"] += 1
        elif patient in found:
            excluded["another radiograph of the same knees"] += 1
        else:
            found[patient] = (locator, header)
    return found


def _knees(dicom: Dicom, item: Item) -> Iterator[Sample]:
    """Yield each graded knee of a radiograph, resampled to 0.2 mm."""
    from PIL import Image

    if len(dicom.values) != 1 or dicom.values.ndim != 3:
        raise SkipItem("not one grey frame")
    if dicom.spacing is None:
        raise SkipItem("no pixel spacing")
    if dicom.laterality in ("R", "L"):
        raise SkipItem("one knee only, by its header")
    if dicom.orientation.startswith("R"):
        raise SkipItem("left and right turned over, by its header")
    (sample,) = frame_samples(dicom)
    zoom = (dicom.spacing[0] / PIXEL_MM, dicom.spacing[1] / PIXEL_MM)
    height, width = (max(1, round(n * by)) for n, by in zip(sample.pixels.shape, zoom, strict=True))
    if max(height, width) > MAX_SIDE:
        raise SkipItem("pixel spacing out of range")
    bicubic = Image.Resampling.BICUBIC  # as in the study
    fine = np.asarray(Image.fromarray(sample.pixels).resize((width, height), bicubic))
    _, *told = item.details
    # Seen from the front, the patient's right knee is on the left of the image.
    for found, (label, row, column) in zip(find_centers(fine), (told[:3], told[3:]), strict=True):
        if label is None:
            continue
        center, how = found, "knee: cropped by content"
        if isinstance(row, float) and isinstance(column, float):
            center, how = (row * zoom[0], column * zoom[1]), "knee: given centre"
        # Moved inside the image where the square would leave it.
        ends = [(min(CROP_PIXELS, full), full) for full in fine.shape]
        top, left = (
            int(np.clip(round(place) - size // 2, 0, full - size))
            for place, (size, full) in zip(center, ends, strict=True)
        )
        yield Sample(
            fine[top : top + CROP_PIXELS, left : left + CROP_PIXELS],
            label=int(label),
            conversions=(*sample.conversions, how),
            flags=sample.flags,
            traits=sample.traits,
        )


def find_centers(pixels: NDArray[np.uint8]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return (row, column) of the left and the right knee of a bilateral radiograph, by image
    content.

    In each half: the column is the middle of the leg, the centre of mass of the columns' brightness
    above its median; the row is where brightness changes most from row to row near that column, in
    the middle half of the height: the joint's bony edges. A rule of thumb, made on drawn legs;
    check crops before relying on it.
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
        change = gaussian_filter1d(
            np.abs(np.diff(band, axis=0)).mean(axis=1), max(1.0, height / 60)
        )
        quarter = height // 4
        row = quarter + int(np.argmax(change[quarter : height - quarter]))
        centers.append((float(row), start + column))
    return centers[0], centers[1]
