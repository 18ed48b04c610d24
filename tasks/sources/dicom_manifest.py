"""Your own DICOM files with a table, laid out like the one for images (:mod:`tasks.sources.manifest`).

Format of the files: DICOM PS3.10 (:mod:`tasks.sources.dicom`).

Without a ``group`` column the header's patient id is the group. Only single-frame files are taken.
"""

from __future__ import annotations

from tasks.sources.manifest import Manifest
from tasks.sources.one_image import is_dicom_name


class DicomManifest(Manifest):
    """DICOM files named in a table."""

    def reads(self, name: str) -> bool:
        """Tell whether a name looks like a DICOM file's."""
        return is_dicom_name(name)
