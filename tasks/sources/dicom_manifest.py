"""Your own DICOM files with a CSV manifest, laid out like the one for images (:mod:`tasks.sources.manifest`).

Without a ``group`` column the header's patient id is the group. Only single-frame files are taken.
"""

from __future__ import annotations

from dataclasses import replace

from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem
from tasks.sources.dicom import frames_to_pixels, read_dicom
from tasks.sources.manifest import PLACEHOLDERS, Manifest, manifest_path


class DicomManifest(Manifest):
    """DICOM files named in a CSV."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per row, see :class:`tasks.sources.manifest.Manifest`."""
        return replace(super().list_items(request), intensity="stored values (CT: HU + 1024) by own maximum")

    def reads(self, name: str) -> bool:
        """Tell whether a name looks like a DICOM file's."""
        return name.lower().endswith((".dcm", ".dicom", ".ima"))

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of the named files."""
        folder = manifest_path(request).parent

        def read(item: Item) -> list[Sample]:
            dicom = read_dicom(folder / item.locator)
            if len(dicom.values) != 1:
                raise SkipItem("several frames")
            known = dicom.patient.casefold() not in PLACEHOLDERS | {""}
            lacking = () if known or item.group else ("no patient id in the header",)
            group = dicom.patient if known and not item.group else ""
            return [
                Sample(pixels, group=group, conversions=notes, flags=(*flags, *lacking))
                for pixels, notes, flags in frames_to_pixels(dicom)
            ]

        return read
