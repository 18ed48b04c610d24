"""RSNA 2019 intracranial haemorrhage, stage 2: one DICOM per slice and six label rows per slice.

Layout: the Kaggle competition's data page, unpacked or as the ``.zip`` that Kaggle makes of it. A slice is
the file of its id, wherever the train split lies; its header repeats the id as SOP instance UID. ``any``
must be the largest of the five subtypes. The group is the patient id in the DICOM header. Corrected:
Hounsfield units plus 1024 by the slice's own maximum. With ``wrapped_pixel_cast`` the stored values are
scaled and cast as the released extractor did (F16): negative ones wrap around to arbitrary grey.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem
from tasks.sources.dicom import NO_PATIENT, Dicom, decode_dicom
from tasks.sources.official import (
    FILE_MISSING,
    dicom_samples,
    find_table,
    is_square,
    list_download,
    not_there,
)
from tasks.sources.pictures import to_prepared
from tasks.sources.raw import RawTree, read_locator
from tasks.sources.tables import first_hashed, read_table

TABLE = "stage_2_train"
SUBTYPES = {"default": "any", "subarachnoid": "subarachnoid"}
IMAGE = re.compile(r"(?:^|/)(ID_[0-9a-f]+)\.dcm$", re.IGNORECASE)
ROW = re.compile(r"(ID_[0-9a-fA-F]+)_([a-z]+)")
TEST_FOLDER = re.compile(r"(?:^|[/_ -])test", re.IGNORECASE)


class Rsna:
    """Slices in the order of the table."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per slice.

        The official table repeats a few rows; equal repeats are taken once.

        Raises:
            DataError: for a missing table, odd rows, a slice with two different labels, or one whose ``any``
                is not the largest of its subtypes.
        """
        return list_download(request, lambda tree: _listing(tree, request))

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of slices; those without square pixels are left out, as in the study."""
        base = request.base()
        wrapped = request.has_fault("wrapped_pixel_cast")

        def read(item: Item) -> Iterator[Sample]:
            dicom = decode_dicom(read_locator(base, item.locator))
            told = dicom.instance.casefold()
            if told.startswith("id_") and told != str(item.details[0]).casefold():
                raise SkipItem("another slice in the header than in the file's name")
            if len(dicom.values) != 1:
                raise SkipItem("several frames")
            if not is_square(dicom.spacing):
                raise SkipItem("pixels not square")
            if wrapped:
                return iter([_wrapped(dicom, request.spec.image_size)])
            patient = dicom.known_patient()
            return dicom_samples(dicom, group=patient, flags=() if patient else (NO_PATIENT,))

        return read


def _listing(tree: RawTree, request: RawRequest) -> Listing:
    table = find_table(tree, request, TABLE, ("ID", "Label"), only_named=True)
    if table is None:
        raise not_there(request, f"{TABLE}.csv", tree)
    labels, repeats = _labels(table, request)
    files = _images(tree)
    items, missing = [], []
    for name, label in labels.items():
        file = files.pop(name.casefold(), None)
        if file is None:
            missing.append((f"{TABLE}/{name}.dcm", FILE_MISSING))
        else:
            items.append(Item(tree.locator(file), label, details=(name,)))
    excluded = {"repeated row": repeats, "slice without a row in the table": len(files)}
    return Listing(
        items,
        request.dataset.label_names,
        excluded={reason: count for reason, count in excluded.items() if count},
        skipped=missing,
        intensity="CT: Hounsfield units + 1024, clipped at 0, by own maximum",
    )


def _images(tree: RawTree) -> dict[str, str]:
    """Return slice id in lower case -> name; what lies in a folder of the test split is none of them."""
    found: dict[str, str] = {}
    for name in tree:
        match = IMAGE.search(name)
        if match and not TEST_FOLDER.search(name[: match.start()]):
            found.setdefault(match[1].casefold(), name)
    return found


def _labels(table: str, request: RawRequest) -> tuple[dict[str, int], int]:
    """Return each slice's label in the table's order, and how many rows repeat another."""
    subtype, odd, repeats = SUBTYPES[request.spec.task], 0, Counter[str]()
    found: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for row in read_table(table, request, ("ID", "Label")):
        match = ROW.fullmatch(row["ID"])
        if match is None or row["Label"] not in ("0", "1"):
            odd += 1
            continue
        label, kinds = int(row["Label"]), found[match[1]]
        repeats[match[2]] += match[2] in kinds
        odd += kinds.setdefault(match[2], label) != label
    if odd:
        rule = f"{request.dataset.name}: rows must be ID_<hex>_<subtype> with one label 0 or 1"
        raise DataError(rule, f"{odd} other rows", "download the table again")
    unlike = [
        name
        for name, kinds in found.items()
        if "any" in kinds
        and len(kinds) > 1
        and kinds["any"] != max(label for kind, label in kinds.items() if kind != "any")
    ]
    if unlike:
        rule = f"{request.dataset.name}: any must be the largest of a slice's subtypes"
        raise DataError(rule, f"unlike: {first_hashed(request, unlike)}", "download the table again")
    return {name: kinds[subtype] for name, kinds in found.items() if subtype in kinds}, repeats[subtype]


def _wrapped(dicom: Dicom, image_size: int) -> Sample:
    """Scale stored values by their maximum, resize, then let the cast to 8 bits wrap negative ones (F16)."""
    values = dicom.values[0].astype(np.float32)
    top = float(values.max())
    if top <= 0:
        raise SkipItem("constant image")
    scaled = to_prepared(values * (255 / top), image_size=image_size, channels=1, dtype="float32")[0]
    pixels = scaled.astype(np.int64).astype(np.uint8)
    if dicom.inverted:
        pixels = 255 - pixels
    patient = dicom.known_patient()
    flags = () if patient else (NO_PATIENT,)
    return Sample(pixels, group=patient, conversions=("negative values wrapped (F16)",), flags=flags)
