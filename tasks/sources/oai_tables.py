"""The OAI's tables: grades of knees, descriptions of series, and centres that a user gives.

Layout: the OAI's "kXR_SQ_BU" and "Imaging: contents.csv" tables as :mod:`tasks.sources.oai` names them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping

from search_spaces.errors import DataError
from tasks.sources.base import RawRequest
from tasks.sources.label_tables import column_key, header_of, read_table
from tasks.sources.labels import is_missing
from tasks.sources.official import find_named
from tasks.sources.raw import RawTree

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
