"""OAI baseline knees: both knees of a radiograph, each cropped to 13.4 cm around the joint.

Layouts: the archive's ``results/<site>/<release>/<ID>/<date>/<barcode>/001`` (releases ``0.C.2``
and ``0.E.1`` hold half of the baseline each; the released code read ``0.E.1`` only), and its S3
form, one ``<barcode>.tar.gz`` per series (OAI "Image Release" notes as public readers quote them).
Tables: grades in ``kxr_sq_bu00`` as text, CSV or SAS, descriptions of series in each release's
``contents.csv``.

A radiograph is taken if it is the bilateral PA fixed-flexion view of the knees. Either the
``SeriesDescription`` of ``contents.csv`` or the file's own header must say so, and neither may
contradict it.

The study's detector of knees is not available. The image of a knee is ``crops/<ID>_<R|L>.png`` if
that exists. Otherwise its center is that of ``knee_centers.csv`` (row and column in pixels of the
file), or else that of :func:`find_centers`. The record counts each way.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import plural
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem, Source, first_of
from tasks.sources.dicom import Dicom, Header, decode_dicom, frame_samples, read_header
from tasks.sources.official import IncompleteDownloadError, find_named, find_table, read_picture
from tasks.sources.own.words import is_missing
from tasks.sources.raw import RawTree, read_locator
from tasks.sources.tables import column_key, column_keys, read_table

READING_PROJECT = "15"
"""The project whose Kellgren-Lawrence grades are used; others graded a part of the knees again."""
MIN_ARTHRITIS_GRADE = 2
SIDES = {"1": "R", "2": "L"}
SIDE_WORDS = {
    "r": "R",
    "right": "R",
    "1": "R",
    "l": "L",
    "left": "L",
    "2": "L",
}
GRADE_TABLE = "kxr_sq_bu00"
GRADE_COLUMNS = ("ID", "SIDE", "READPRJ", "V00XRKL")
CENTERS_TABLE = "knee_centers.csv"
CONTENTS_TABLE = re.compile(r"(?:.*/)?contents[^/]*\.csv", re.IGNORECASE)
CONTENTS_COLUMNS = ("ParticipantID", "SeriesDescription", "Barcode")
CROP_FILE = re.compile(r"(?:.*/)?crops/(\d+)_([RL])\.png")
RADIOGRAPH = re.compile(
    r"(?:^|/)(?P<id>\d{7})/(?P<date>\d{8})/(?P<barcode>\d{6,12})(?:\.tar\.gz|\.tgz|\.zip)?(?:/|!/|$)"
)
NO_RADIOGRAPH_ENDINGS = (".tar.gz", ".tgz", ".csv", ".txt")
VISIT = re.compile(r"(\d+)(?:\.[A-Z]\.\d+|m)")
"""Releases are called ``<visit>.<kind>.<n>``, where visit 0 is the baseline. The S3 form adds
``00m``, ``12m`` and so on.
"""
RELEASED_SERIES = "0.E.1"
FIXED_FLEXION = "fixed flexion knee"
OTHER_VIEW = "another view or body part"
MODALITIES = frozenset({"CR", "DX", "RG", "XR", "DR"})
PIXEL_MM = 0.2
CROP_PIXELS = 672
"""Side of a crop, 13.4 cm in pixels of 0.2 mm."""
MAX_SIDE_PIXELS = 8_000
"""Longest side after resampling: 1.6 m, longer than any film."""
MAX_LISTED_ROWS = 10


class Knee(NamedTuple):
    """A participant's id, and R or L."""

    patient: str
    side: str


class Center(NamedTuple):
    """A place in an image, in pixels from its upper left corner."""

    row: float
    column: float


class Radiograph(NamedTuple):
    """The locator of a radiograph and the header of its file."""

    locator: str
    header: Header


Descriptions = Mapping[tuple[str, str], str]
"""Series descriptions by (patient, barcode)."""


def list_oai(request: RawRequest) -> Listing:
    """Return one item per ready crop, then one per radiograph of a graded knee, both by name.

    Raises:
        DataError: The table of grades is missing, or a table has rows that cannot be used.
    """
    tree = _open_tree(request)
    table = find_table(tree, request, GRADE_TABLE, GRADE_COLUMNS)
    grades, excluded = read_grades(table, request)
    items = []
    for name in tree:
        match = CROP_FILE.fullmatch(name)
        if match is None:
            continue
        # A knee that has a ready crop is not cropped from its radiograph again.
        label = grades.pop(Knee(match[1], match[2]), None)
        if label is None:
            excluded["ready crop without a grade, or the second of a knee"] += 1
        else:
            locator = tree.locator(name)
            items.append(Item(locator, label, group=match[1], details=("crop",)))
    radiographs = _find_radiographs(tree, grades, excluded, request)
    centers = read_centers(tree, radiographs, request)
    for patient, radiograph in radiographs.items():
        details: list[str | int | float | None] = ["radiograph"]
        for side in ("R", "L"):
            knee = Knee(patient, side)
            details += [grades.get(knee), *centers.get(knee, (None, None))]
        items.append(Item(radiograph.locator, None, patient, details=tuple(details)))
    num_without = sum(knee.patient not in radiographs for knee in grades)
    excluded["graded knee without a radiograph"] = num_without
    return Listing(
        items,
        request.dataset.label_names,
        block_size=8,
        excluded=dict(excluded),
        intensity="stored values by own maximum, then each crop by its own maximum",
    )


def _open_tree(request: RawRequest) -> RawTree:
    """Open the download and those of its archives that may hold radiographs to take.

    Series that ``contents.csv`` calls something else stay closed. If unpacked radiographs and the
    grades are there, only archives of single series are opened: each is one more patient.
    """
    tree = RawTree(request)
    if not tree.archives or not request.root().is_dir():
        return tree
    descriptions = read_descriptions(tree, request)
    is_unpacked = any(map(RADIOGRAPH.search, tree))
    try:
        find_table(tree, request, GRADE_TABLE, GRADE_COLUMNS)
    except IncompleteDownloadError:
        is_unpacked = False

    def is_wanted(archive: str) -> bool:
        match = RADIOGRAPH.search(archive)
        if match is None:
            return not is_unpacked
        description = _description(descriptions, match)
        return not description or _is_fixed_flexion(description)

    return RawTree(request, is_wanted)


def read_grades(table: str, request: RawRequest) -> tuple[dict[Knee, int], Counter[str]]:
    """Read each knee's label, 1 for a Kellgren-Lawrence grade of 2 or more, else 0.

    Args:
        table: Locator of the table of grades.
        request: What is being prepared.

    Returns:
        The labels, and how many rows were left out, by reason.

    Raises:
        DataError: A row has no side, or a knee has two labels.
    """
    labels: dict[Knee, int] = {}
    excluded = Counter[str]()
    num_odd = 0
    for row in read_table(table, request, GRADE_COLUMNS):
        side = SIDES.get(row["SIDE"][:1])
        grade = re.match(r"[0-4](?=\D|$)", row["V00XRKL"])  # SAS exports "2: minimal"
        project = row["READPRJ"].removesuffix(".0").split(":")[0]
        if project != READING_PROJECT:
            excluded["another reading project"] += 1
        elif side is None:
            num_odd += 1
        elif grade is None:
            excluded["knee without a grade"] += 1
        else:
            label = int(int(grade[0]) >= MIN_ARTHRITIS_GRADE)
            knee = Knee(row["ID"].removesuffix(".0"), side)
            if labels.setdefault(knee, label) != label:
                num_odd += 1
    if num_odd:
        rows_text = plural(num_odd, "row")
        raise request.error(
            f"in {rows_text} of the grades the side is not 1 or 2, or the knee has two grades"
        )
    return labels, excluded


def read_descriptions(tree: RawTree, request: RawRequest) -> Descriptions:
    """Return the series descriptions of all ``contents*.csv`` in the tree."""
    required = set(map(column_key, CONTENTS_COLUMNS))
    descriptions: dict[tuple[str, str], str] = {}
    for name in filter(CONTENTS_TABLE.fullmatch, tree):
        locator = tree.locator(name)
        if not required <= column_keys(locator, request):
            continue
        for row in read_table(locator, request, CONTENTS_COLUMNS):
            patient = row["ParticipantID"].removesuffix(".0")
            barcode = row["Barcode"].removesuffix(".0").lstrip("0")
            descriptions[patient, barcode] = row["SeriesDescription"]
    return descriptions


def _description(descriptions: Descriptions, match: re.Match[str]) -> str:
    barcode = match["barcode"].lstrip("0")
    return descriptions.get((match["id"], barcode), "")


def _is_fixed_flexion(description: str) -> bool:
    return FIXED_FLEXION in " ".join(description.casefold().split())


def read_centers(
    tree: RawTree, radiographs: Mapping[str, Radiograph], request: RawRequest
) -> dict[Knee, Center]:
    """Return the centers of knees in ``knee_centers.csv``, if there is such a table.

    Raises:
        DataError: A row has no side, lies outside its radiograph, or repeats a knee.
    """
    centers: dict[Knee, Center] = {}
    wrong_rows: list[str] = []
    for name in find_named(tree, CENTERS_TABLE)[:1]:
        rows = read_table(tree.locator(name), request, ("id", "side", "row", "column"))
        for number, row in enumerate(rows, 2):
            patient = row["id"].removesuffix(".0")
            knee = Knee(patient, SIDE_WORDS.get(row["side"].casefold(), ""))
            center = _center(row, radiographs.get(patient))
            if center is None or is_missing(patient) or not knee.side or knee in centers:
                wrong_rows.append(str(number))
            else:
                centers[knee] = center
    if wrong_rows:
        rows_text = plural(len(wrong_rows), "row")
        raise request.error(
            f"in {rows_text} of {CENTERS_TABLE} the side is "
            "not R or L, the center lies outside the image, or the knee is a "
            f"repeat: {first_of(wrong_rows, MAX_LISTED_ROWS)}",
            hint="Correct these rows. The header is row 1, and pixels are those of the DICOM file",
        )
    return centers


def _center(row: Mapping[str, str], radiograph: Radiograph | None) -> Center | None:
    """Return the center that a row gives, or None if it is no place in the radiograph."""
    limits: tuple[float, float] = (math.inf, math.inf)
    if radiograph is not None:
        limits = radiograph.header.sides
    try:
        center = Center(float(row["row"]), float(row["column"]))
    except ValueError:
        return None
    if 0 <= center.row < limits[0] and 0 <= center.column < limits[1]:
        return center
    return None


def _find_radiographs(
    tree: RawTree, grades: Mapping[Knee, int], excluded: Counter[str], request: RawRequest
) -> dict[str, Radiograph]:
    """Return each patient's first fixed-flexion radiograph; count the others in ``excluded``."""
    descriptions = read_descriptions(tree, request)
    graded_patients = {knee.patient for knee in grades}
    is_as_released = request.spec.data_mode == "as_released"
    base = request.base()
    radiographs: dict[str, Radiograph] = {}
    for name in tree:
        locator = tree.locator(name)
        match = RADIOGRAPH.search(locator)
        if match is None or locator.endswith(NO_RADIOGRAPH_ENDINGS):
            continue
        parts = locator.split("/")
        if any(map(_is_later_visit, parts)):  # the baseline's grades are not of these knees
            excluded["radiograph of a later visit"] += 1
            continue
        if is_as_released and RELEASED_SERIES not in parts:
            continue
        patient = match["id"]
        description = _description(descriptions, match)
        if description and not _is_fixed_flexion(description):
            excluded[OTHER_VIEW] += 1
            continue
        header = read_header(base, locator)
        if header is None:
            excluded["not a DICOM file"] += 1
            continue
        fault = _fault(header, description, patient)
        if fault:
            excluded[fault] += 1
        elif patient not in graded_patients:
            excluded["radiograph without a graded knee"] += 1
        elif patient in radiographs:
            excluded["another radiograph of the same knees"] += 1
        else:
            radiographs[patient] = Radiograph(locator, header)
    return radiographs


def _is_later_visit(folder: str) -> bool:
    visit = VISIT.fullmatch(folder)
    return visit is not None and visit[1].strip("0") != ""


def _fault(header: Header, description: str, patient: str) -> str:
    """Return why a radiograph cannot be taken, or "" if it can.

    ``description`` is that of ``contents.csv``: either empty or the right view.
    """
    if not description and not header.description:
        return "view not described anywhere"
    is_other_view = bool(header.description) and not _is_fixed_flexion(header.description)
    if is_other_view or header.modality not in MODALITIES:
        return OTHER_VIEW
    if header.patient not in ("", patient):
        return "another patient in the header than in the folder"
    return ""


def read_oai(request: RawRequest) -> Reader:
    """Return a reader of radiographs, which hold two knees, and of ready crops."""
    base = request.base()

    def read(item: Item) -> Iterator[Sample]:
        body = read_locator(base, item.locator)
        if item.details[0] == "crop":
            (sample,) = read_picture(body, item, request)
            yield Sample(sample.pixels, conversions=(*sample.conversions, "knee: ready crop"))
        else:
            yield from _knee_samples(decode_dicom(body), item)

    return read


oai = Source(list_oai, read_oai)


def _knee_samples(dicom: Dicom, item: Item) -> Iterator[Sample]:
    """Yield each graded knee of a radiograph, in pixels of 0.2 mm.

    The item's details are "radiograph", then label, row and column of the right knee, then of the
    left knee. The label is None for a knee without a grade, the others for one without a center.
    """
    from PIL import Image

    spacing = _checked_spacing(dicom)
    (sample,) = frame_samples(dicom)
    row_zoom = spacing[0] / PIXEL_MM
    column_zoom = spacing[1] / PIXEL_MM
    height = max(1, round(sample.pixels.shape[0] * row_zoom))
    width = max(1, round(sample.pixels.shape[1] * column_zoom))
    if max(height, width) > MAX_SIDE_PIXELS:
        raise SkipItem("pixel spacing out of range")
    image = Image.fromarray(sample.pixels)
    bicubic = Image.Resampling.BICUBIC  # as in the study
    fine = np.asarray(image.resize((width, height), bicubic))
    _, *facts = item.details
    # Seen from the front, the patient's right knee is on the left of the image.
    right_and_left = facts[:3], facts[3:]
    for center, knee in zip(find_centers(fine), right_and_left, strict=True):
        label, row, column = knee
        if label is None:
            continue
        method = "knee: cropped by content"
        if isinstance(row, float) and isinstance(column, float):
            center = Center(row * row_zoom, column * column_zoom)
            method = "knee: given centre"
        yield Sample(
            _crop(fine, center),
            label=int(label),
            conversions=(*sample.conversions, method),
            flags=sample.flags,
            traits=sample.traits,
        )


def _checked_spacing(dicom: Dicom) -> tuple[float, float]:
    """Return row and column spacing in mm of a radiograph that shows both knees from the front.

    Raises:
        SkipItem: It is no such radiograph, or has no spacing.
    """
    if len(dicom.values) != 1 or dicom.values.ndim != 3:
        raise SkipItem("not one grey frame")
    if dicom.spacing is None:
        raise SkipItem("no pixel spacing")
    if dicom.laterality in ("R", "L"):
        raise SkipItem("one knee only, by its header")
    if dicom.orientation.startswith("R"):
        raise SkipItem("left and right turned over, by its header")
    return dicom.spacing


def _crop(pixels: NDArray[np.uint8], center: Center) -> NDArray[np.uint8]:
    """Cut a square around a center; it is moved inside where it would leave the image."""
    window = []
    for position, side in zip(center, pixels.shape, strict=True):
        size = min(CROP_PIXELS, side)
        start = int(np.clip(round(position) - size // 2, 0, side - size))
        window.append(slice(start, start + CROP_PIXELS))
    return pixels[tuple(window)]


def find_centers(pixels: NDArray[np.uint8]) -> tuple[Center, Center]:
    """Estimate the centers of both knees of a radiograph from its content.

    In each half of the image, the column is the middle of the leg: the center of mass of the
    columns' brightness above its median. The row is where brightness changes most from row to row
    near that column, in the middle half of the height: the bony edges of the joint. This is a rule
    of thumb, made on drawn legs. Check the crops before relying on it.

    Args:
        pixels: ``(height, width)`` in [0, 255], both knees side by side.

    Returns:
        The center in the left half and in the right half of the image.
    """
    middle = pixels.shape[1] // 2
    values = pixels.astype(np.float32)
    left = _leg_center(values[:, :middle], pixels.shape[1])
    right = _leg_center(values[:, middle:], pixels.shape[1])
    return left, Center(right.row, middle + right.column)


def _leg_center(half: NDArray[np.float32], full_width: int) -> Center:
    """Return the center of the knee in half of a radiograph.

    The column is the center of brightness. The row is that of the strongest vertical change, in the
    middle half of the image.
    """
    from scipy.ndimage import gaussian_filter1d

    height = len(half)
    profile = half.mean(axis=0)
    weight = np.clip(profile - np.median(profile), 0, None) + 1e-6  # a flat profile has a middle
    moment = (weight * np.arange(len(weight))).sum()
    column = float(moment / weight.sum())
    middle = int(column)
    reach = max(2, full_width // 12)
    band = half[:, max(0, middle - reach) : middle + reach]
    change = np.abs(np.diff(band, axis=0)).mean(axis=1)
    change = gaussian_filter1d(change, max(1.0, height / 60))
    quarter = height // 4
    row = quarter + int(np.argmax(change[quarter : height - quarter]))
    return Center(float(row), column)
