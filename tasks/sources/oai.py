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
file), or from :func:`tasks.sources.knees.find_centers`, a rule by image content. The record counts how many
each way gave.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem
from tasks.sources.dicom import Dicom, decode_dicom, frames_to_pixels
from tasks.sources.dicom_headers import DicomHeader, read_header
from tasks.sources.image_files import decode_image
from tasks.sources.imagenet import own_maximum_sample
from tasks.sources.knees import PIXEL_MM, crop_around, find_centers, resampled
from tasks.sources.oai_tables import (
    GRADE_COLUMNS,
    GRADES,
    Knee,
    read_centers,
    read_descriptions,
    read_grades,
)
from tasks.sources.official import find_table, not_there
from tasks.sources.raw import RawTree, read_locator

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
