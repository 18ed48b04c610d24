"""Source of the baseline knees of the Osteoarthritis Initiative (OAI), cropped to 13.4 cm.

The download has one of two layouts (OAI "Image Release" notes):

- ``results/<site>/<release>/<ID>/<date>/<barcode>/001``. The releases ``0.C.2`` and ``0.E.1``
  contain half of the baseline each. The released code read only ``0.E.1``.
- The S3 form, with one ``<barcode>.tar.gz`` per series.

The table ``kxr_sq_bu00``, as text, CSV or SAS, contains the grades. The ``contents.csv`` of
each release describes its series.

A radiograph is used if it is the bilateral PA fixed-flexion view of the knees. The
``SeriesDescription`` of ``contents.csv`` or of the file's header must state this view, and
neither may state another view.

The study's detector of knees is not available. Instead, the image of a knee comes from the
first of these three that exists. The record of the dataset counts the images from each of the
three:

1. The file ``crops/<ID>_<R|L>.png``, called a ready crop.
2. A crop around the center in ``knee_centers.csv``: row and column in pixels of the file.
3. A crop around the center that :func:`find_centers` estimates.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import numpy as np

from search_spaces.errors import plural
from tasks.array_types import Float32Array, Uint8Array
from tasks.sources.base import (
    Item,
    Listing,
    RawRequest,
    Reader,
    Sample,
    SkipItem,
    Source,
    first_of,
)
from tasks.sources.dicom import Dicom, Header, decode_dicom, frame_samples, read_header
from tasks.sources.official import (
    IncompleteDownloadError,
    find_named,
    find_table,
    read_picture,
)
from tasks.sources.own.words import is_missing
from tasks.sources.raw import RawTree, read_locator
from tasks.sources.tables import column_key, column_keys, read_table

READING_PROJECT = "15"
"""Reading project whose Kellgren-Lawrence grades are used. Other projects graded some of the
same knees again."""
MIN_ARTHRITIS_GRADE = 2
"""Smallest Kellgren-Lawrence grade of label 1."""
SIDES = {"1": "R", "2": "L"}
SIDE_WORDS = {**SIDES, "r": "R", "right": "R", "l": "L", "left": "L"}
GRADE_TABLE = "kxr_sq_bu00"
GRADE_COLUMNS = ("ID", "SIDE", "READPRJ", "V00XRKL")
CENTERS_TABLE = "knee_centers.csv"
CONTENTS_TABLE = re.compile(r"(?:.*/)?contents[^/]*\.csv", re.IGNORECASE)
CONTENTS_COLUMNS = ("ParticipantID", "SeriesDescription", "Barcode")
CROP_FILE = re.compile(r"(?:.*/)?crops/(?P<patient>\d+)_(?P<side>[RL])\.png")
RADIOGRAPH = re.compile(
    r"(?:^|/)(?P<id>\d{7})/(?P<date>\d{8})/(?P<barcode>\d{6,12})(?:\.tar\.gz|\.tgz|\.zip)?(?:/|!/|$)"
)
NO_RADIOGRAPH_EXTENSIONS = (".tar.gz", ".tgz", ".csv", ".txt")
VISIT = re.compile(r"(\d+)(?:\.[A-Z]\.\d+|m)")
"""Name of a release: ``<visit>.<kind>.<n>``, or ``00m``, ``12m`` and so on in the S3 form.
Visit 0 is the baseline."""
RELEASED_SERIES = "0.E.1"
"""The release that the released code read."""
FIXED_FLEXION = "fixed flexion knee"
OTHER_VIEW = "another view or body part"
MODALITIES = frozenset({"CR", "DX", "RG", "XR", "DR"})
PIXEL_MM = 0.2
"""Side in mm of a pixel after resampling."""
CROP_PIXELS = 672
"""Side of a crop in pixels of 0.2 mm: 13.4 cm."""
MAX_SIDE_PIXELS = 8_000
"""Largest side in pixels of a radiograph after resampling. It is 1.6 m, longer than any
film."""
MAX_LISTED_ROWS = 10
"""Largest number of rows that a message lists."""


class Knee(NamedTuple):
    """A knee of a participant.

    Attributes:
        patient: Id of the participant.
        side: R or L.
    """

    patient: str
    side: str


class Center(NamedTuple):
    """A position in an image, in pixels from its upper left corner."""

    row: float
    column: float


class KneeDetails(NamedTuple):
    """The details that an item of a radiograph has for each knee.

    Attributes:
        label: Label; None for a knee without a grade.
        row: Row of the knee's center in ``knee_centers.csv``, in pixels of the file; None if
            the table has no center of this knee.
        column: Column of this center; None if the table has no center of this knee.
    """

    label: int | None
    row: float | None
    column: float | None


class Radiograph(NamedTuple):
    """A radiograph of both knees.

    Attributes:
        locator: Locator of the file.
        header: DICOM header of the file.
    """

    locator: str
    header: Header


Descriptions = Mapping[tuple[str, str], str]
"""(Patient, barcode) -> series description."""


def list_oai(request: RawRequest) -> Listing:
    """List the ready crops of graded knees, then their radiographs, both in the order of names.

    Raises:
        DataError: The table of grades is missing, or a table has rows that cannot be used.
    """
    tree = _open_tree(request)
    table = find_table(tree, request, GRADE_TABLE, GRADE_COLUMNS)
    label_by_knee, excluded = read_grades(table, request)
    items = []
    cropped_knees: set[Knee] = set()
    for name in tree:
        match = CROP_FILE.fullmatch(name)
        if match is None:
            continue
        knee = Knee(match["patient"], match["side"])
        if knee not in label_by_knee or knee in cropped_knees:
            excluded["ready crop without a grade, or the second of a knee"] += 1
            continue
        cropped_knees.add(knee)
        label = label_by_knee[knee]
        items.append(Item(tree.locator(name), label, knee.patient, details=("crop",)))
    # A knee with a ready crop must not be cropped from its radiograph too.
    other_labels = {k: label for k, label in label_by_knee.items() if k not in cropped_knees}
    radiographs, excluded_radiographs = _find_radiographs(tree, other_labels, request)
    excluded.update(excluded_radiographs)
    centers = read_centers(tree, radiographs, request)
    for patient, radiograph in radiographs.items():
        right = _knee_details(Knee(patient, "R"), other_labels, centers)
        left = _knee_details(Knee(patient, "L"), other_labels, centers)
        details = ("radiograph", *right, *left)
        items.append(Item(radiograph.locator, None, patient, details=details))
    num_without_radiograph = sum(knee.patient not in radiographs for knee in other_labels)
    excluded["graded knee without a radiograph"] = num_without_radiograph
    return Listing(
        items,
        request.dataset.label_names,
        block_size=8,
        excluded=dict(excluded),
        intensity="stored values by own maximum, then each crop by its own maximum",
    )


def _knee_details(
    knee: Knee, labels: Mapping[Knee, int], centers: Mapping[Knee, Center]
) -> KneeDetails:
    """Return the details of a knee in a radiograph."""
    if knee in centers:
        return KneeDetails(labels.get(knee), centers[knee].row, centers[knee].column)
    return KneeDetails(labels.get(knee), None, None)


def _open_tree(request: RawRequest) -> RawTree:
    """Open the download and the archives in it that may contain needed radiographs.

    The archive of a series is not opened if ``contents.csv`` describes another view. If there
    are unpacked radiographs and grades, only archives of single series are opened, because
    each of them may contain a further patient.
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
    """Return the label of each knee: 1 for a Kellgren-Lawrence grade of 2 or more, else 0.

    Args:
        table: Locator of the table of grades.
        request: The dataset and its download.

    Returns:
        The labels, and reason -> number of rows that are left out.

    Raises:
        DataError: A row has no side, or a knee has two labels.
    """
    labels: dict[Knee, int] = {}
    excluded = Counter[str]()
    num_invalid = 0
    for row in read_table(table, request, GRADE_COLUMNS):
        side = SIDES.get(row["SIDE"][:1])
        grade = re.match(r"[0-4](?=\D|$)", row["V00XRKL"])  # SAS writes "2: minimal"
        project = row["READPRJ"].removesuffix(".0").split(":")[0]
        if project != READING_PROJECT:
            excluded["another reading project"] += 1
        elif side is None:
            num_invalid += 1
        elif grade is None:
            excluded["knee without a grade"] += 1
        else:
            label = int(int(grade[0]) >= MIN_ARTHRITIS_GRADE)
            knee = Knee(row["ID"].removesuffix(".0"), side)
            if labels.setdefault(knee, label) != label:
                num_invalid += 1
    if num_invalid:
        rows_text = plural(num_invalid, "row")
        raise request.error(
            f"in {rows_text} of the table {GRADE_TABLE}, the side is not 1 or 2, or an earlier "
            "row gives the same knee a different label",
            hint="Download the table again",
        )
    return labels, excluded


def read_descriptions(tree: RawTree, request: RawRequest) -> Descriptions:
    """Return the series descriptions in all ``contents*.csv`` of the tree."""
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
    """Return the description of a series; empty if there is none.

    Args:
        descriptions: All descriptions.
        match: The match of :data:`RADIOGRAPH` with the path of the series.
    """
    barcode = match["barcode"].lstrip("0")
    return descriptions.get((match["id"], barcode), "")


def _is_fixed_flexion(description: str) -> bool:
    """Return whether a series description states the fixed-flexion view."""
    return FIXED_FLEXION in " ".join(description.casefold().split())


def read_centers(
    tree: RawTree, radiographs: Mapping[str, Radiograph], request: RawRequest
) -> dict[Knee, Center]:
    """Return the centers of knees in ``knee_centers.csv``; empty if there is no such table.

    Raises:
        DataError: A row has no side, a center lies outside its radiograph, or a knee has two
            rows.
    """
    centers: dict[Knee, Center] = {}
    wrong_rows: list[str] = []
    tables = find_named(tree, CENTERS_TABLE)
    if not tables:
        return centers
    rows = read_table(tree.locator(tables[0]), request, ("id", "side", "row", "column"))
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
        listed = first_of(wrong_rows, MAX_LISTED_ROWS)
        raise request.error(
            f"in {rows_text} of {CENTERS_TABLE} ({listed}), the side is not R or L, the "
            "center lies outside the image, or the knee has an earlier row",
            hint="Correct these rows. The header is row 1. The unit is pixels of the DICOM file",
        )
    return centers


def _center(row: Mapping[str, str], radiograph: Radiograph | None) -> Center | None:
    """Return the center in a row, or None if it lies outside the radiograph."""
    try:
        center = Center(float(row["row"]), float(row["column"]))
    except ValueError:
        return None
    # Without a usable radiograph, the center is not checked, because it is not used.
    num_rows, num_columns = radiograph.header.sides if radiograph else (math.inf, math.inf)
    is_inside = 0 <= center.row < num_rows and 0 <= center.column < num_columns
    return center if is_inside else None


def _find_radiographs(
    tree: RawTree, graded_knees: Iterable[Knee], request: RawRequest
) -> tuple[dict[str, Radiograph], Counter[str]]:
    """Find the first fixed-flexion radiograph of each patient with a graded knee.

    Returns:
        Patient -> radiograph, and reason -> number of radiographs that are left out.
    """
    descriptions = read_descriptions(tree, request)
    graded_patients = {knee.patient for knee in graded_knees}
    is_as_released = request.spec.data_mode == "as_released"
    base = request.base()
    radiographs: dict[str, Radiograph] = {}
    excluded = Counter[str]()
    for name in tree:
        locator = tree.locator(name)
        match = RADIOGRAPH.search(locator)
        if match is None or locator.endswith(NO_RADIOGRAPH_EXTENSIONS):
            continue
        path_parts = locator.split("/")
        if any(map(_is_later_visit, path_parts)):  # there are only grades of the baseline
            excluded["radiograph of a later visit"] += 1
            continue
        if is_as_released and RELEASED_SERIES not in path_parts:
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
        reason = _unusable_reason(header, description, patient)
        if reason:
            excluded[reason] += 1
        elif patient not in graded_patients:
            excluded["radiograph without a graded knee"] += 1
        elif patient in radiographs:
            excluded["another radiograph of the same knees"] += 1
        else:
            radiographs[patient] = Radiograph(locator, header)
    return radiographs, excluded


def _is_later_visit(folder: str) -> bool:
    """Return whether a folder is a release of a visit after the baseline."""
    visit = VISIT.fullmatch(folder)
    return visit is not None and visit[1].strip("0") != ""


def _unusable_reason(header: Header, description: str, patient: str) -> str:
    """Return the reason why a radiograph cannot be used, or "" if it can be used.

    Args:
        header: The file's header.
        description: Description of the series in ``contents.csv``, which states the required
            view or is empty.
        patient: Patient id in the path of the file.
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
    """Return a reader for radiographs with two knees and for crops with one knee."""
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
    """Yield each graded knee of a radiograph, in pixels of 0.2 mm."""
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
    bicubic = Image.Resampling.BICUBIC  # the study used it too
    fine = np.asarray(image.resize((width, height), bicubic))
    details = cast("tuple[Any, ...]", item.details)
    # The patient's right knee is on the left side of the image.
    knees = (KneeDetails(*details[1:4]), KneeDetails(*details[4:]))
    for center, knee in zip(find_centers(fine), knees, strict=True):
        if knee.label is None:
            continue
        method = "knee: cropped by content"
        if knee.row is not None and knee.column is not None:
            center = Center(knee.row * row_zoom, knee.column * column_zoom)
            method = "knee: given centre"
        yield Sample(
            _crop(fine, center),
            label=knee.label,
            conversions=(*sample.conversions, method),
            flags=sample.flags,
            traits=sample.traits,
        )


def _checked_spacing(dicom: Dicom) -> tuple[float, float]:
    """Return the row and column spacing in mm of a radiograph of both knees.

    Raises:
        SkipItem: The radiograph has several frames, is in color, shows only one knee, has no
            spacing, or has its left and right exchanged.
    """
    if len(dicom.values) != 1 or dicom.values.ndim != 3:
        raise SkipItem("not one gray frame")
    if dicom.spacing is None:
        raise SkipItem("no pixel spacing")
    if dicom.laterality in ("R", "L"):
        raise SkipItem("only one knee, by the header")
    if dicom.orientation.startswith("R"):
        raise SkipItem("left and right exchanged, by the header")
    return dicom.spacing


def _crop(pixels: Uint8Array, center: Center) -> Uint8Array:
    """Return a square crop around a center.

    If the crop would leave the image, it is shifted.
    """
    window = []
    for position, side in zip(center, pixels.shape, strict=True):
        size = min(CROP_PIXELS, side)
        start = int(np.clip(round(position) - size // 2, 0, side - size))
        window.append(slice(start, start + CROP_PIXELS))
    return pixels[tuple(window)]


def find_centers(pixels: Uint8Array) -> tuple[Center, Center]:
    """Estimate the centers of both knees of a radiograph from its content.

    The column and the row of a center are estimated in each half of the image:

    - The column is the middle of the leg: the center of mass of the columns' brightness above
      the median.
    - The row is at the bony edges of the joint. There, the brightness near the column changes
      most from row to row. Only rows in the middle half of the height are considered.

    The heuristic was developed on drawings of legs. Check the crops before you use them.

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


def _leg_center(half: Float32Array, full_width: int) -> Center:
    """Return the center of the knee in one half of a radiograph, see :func:`find_centers`.

    Args:
        half: ``(height, width / 2)`` pixels of the half.
        full_width: Width of the radiograph in pixels.
    """
    from scipy.ndimage import gaussian_filter1d

    height = len(half)
    profile = half.mean(axis=0)
    weight = np.clip(profile - np.median(profile), 0, None) + 1e-6  # the sum must not be 0
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
