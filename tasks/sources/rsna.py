"""RSNA 2019 intracranial haemorrhage, stage 2: one DICOM per slice and six label rows per slice.

Layout: the Kaggle competition's data page, unpacked or as the ``.zip`` that Kaggle makes of it. ``any``
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
from tasks.sources.archives import read_locator
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem
from tasks.sources.dicom import NO_PATIENT, Dicom, decode_dicom
from tasks.sources.label_tables import first_hashed, read_table
from tasks.sources.official import dicom_samples, find_named, find_tree, is_square, join, not_there
from tasks.sources.pixels import to_prepared

TABLE, IMAGES = "stage_2_train.csv", "stage_2_train"
SUBTYPES = {"default": "any", "subarachnoid": "subarachnoid"}
ROW = re.compile(r"(ID_[0-9a-fA-F]+)_([a-z]+)")


class Rsna:
    """Slices in the order of the table."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per slice.

        The official table repeats a few rows; equal repeats are taken once.

        Raises:
            DataError: for a missing table, odd rows, a slice with two different labels, or one whose ``any``
                is not the largest of its subtypes.
        """
        tree = find_tree(request, lambda tree: bool(find_named(tree, TABLE)))
        tables = find_named(tree, TABLE)
        if not tables:
            raise not_there(request, TABLE, tree)
        folder = tables[0].rpartition("/")[0]
        labels, repeats = _labels(tree.locator(tables[0]), request)
        items, missing = [], []
        for name, label in labels.items():
            path = join(folder, f"{IMAGES}/{name}.dcm")
            locator = tree.get(path)
            if locator is None:
                missing.append((path, "file is missing"))
            else:
                items.append(Item(locator, label))
        return Listing(
            items,
            request.dataset.label_names,
            excluded={"repeated row": repeats} if repeats else {},
            skipped=missing,
            intensity="CT: Hounsfield units + 1024, clipped at 0, by own maximum",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of slices; those without square pixels are left out, as in the study."""
        base = request.base()
        wrapped = request.has_fault("wrapped_pixel_cast")

        def read(item: Item) -> Iterator[Sample]:
            dicom = decode_dicom(read_locator(base, item.locator))
            if len(dicom.values) != 1:
                raise SkipItem("several frames")
            if not is_square(dicom.spacing):
                raise SkipItem("pixels not square")
            if wrapped:
                return iter([_wrapped(dicom, request.spec.image_size)])
            patient = dicom.known_patient()
            return dicom_samples(dicom, group=patient, flags=() if patient else (NO_PATIENT,))

        return read


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
