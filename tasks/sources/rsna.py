"""RSNA 2019 intracranial haemorrhage, stage 2: one DICOM per slice and six label rows per slice.

The group is the patient id in the DICOM header. Corrected: Hounsfield units plus 1024 by the slice's own
maximum. With ``wrapped_pixel_cast`` the stored values are scaled and cast as the released extractor did
(F16): negative ones wrap around to arbitrary grey.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem
from tasks.sources.dicom import Dicom, read_dicom
from tasks.sources.label_tables import read_table
from tasks.sources.official import dicom_samples, find_folder, is_square, join
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
            DataError: for a missing table, odd rows, or a slice with two different labels.
        """
        folder = find_folder(request, ("", "rsna-intracranial-hemorrhage-detection"), TABLE)
        subtype, labels, odd, repeats = SUBTYPES[request.spec.task], dict[str, int](), 0, 0
        for row in read_table(request.root() / folder / TABLE, request, ("ID", "Label")):
            match = ROW.fullmatch(row["ID"])
            if match is None or row["Label"] not in ("0", "1"):
                odd += 1
            elif match[2] == subtype:
                label = int(row["Label"])
                repeats += match[1] in labels
                if labels.setdefault(match[1], label) != label:
                    odd += 1
        if odd:
            rule = f"{request.dataset.name}: rows must be ID_<hex>_<subtype> with one label 0 or 1"
            raise DataError(rule, f"{odd} other rows", "download the table again")
        items = [Item(join(folder, f"{IMAGES}/{name}.dcm"), label) for name, label in labels.items()]
        return Listing(
            items,
            request.dataset.label_names,
            excluded=dict(Counter({"repeated row": repeats})) if repeats else {},
            intensity="CT: Hounsfield units + 1024, clipped at 0, by own maximum",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of slices; those without square pixels are left out, as in the study."""
        root = request.root()
        wrapped = request.has_fault("wrapped_pixel_cast")

        def read(item: Item) -> Iterator[Sample]:
            dicom = read_dicom(root / item.locator)
            if len(dicom.values) != 1:
                raise SkipItem("several frames")
            if not is_square(dicom.spacing):
                raise SkipItem("pixels not square")
            if wrapped:
                return iter([_wrapped(dicom, request.spec.image_size)])
            return dicom_samples(dicom, group=dicom.patient)

        return read


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
    return Sample(pixels, group=dicom.patient, conversions=("negative values wrapped (F16)",))
