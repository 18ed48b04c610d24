"""Write DICOM files, both regular and irregular ones."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

STORAGE = {
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "US": "1.2.840.10008.5.1.4.1.1.3.1",
}


def make_dicom(
    values: np.ndarray,
    *,
    modality: str = "MR",
    patient: str = "P1",
    series: str | None = None,
    bits: int = 16,
    photometric: str = "MONOCHROME2",
    spacing: tuple[float, float] | None = (1.0, 1.0),
    syntax: str = ExplicitVRLittleEndian,
    **tags: object,
) -> Dataset:
    """Return a DICOM data set with the given pixels.

    Args:
        values: Integers, ``(height, width)`` or ``(frames, height, width)``.
        modality: A key of :data:`STORAGE`.
        patient: The patient's id.
        series: UID of the series; one per patient if None.
        bits: Stored bits of a pixel.
        photometric: Photometric interpretation.
        spacing: Size of a pixel in mm, or None to leave it out.
        syntax: UID of the transfer syntax.
        **tags: Further elements by keyword.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = STORAGE[modality]
    meta.MediaStorageSOPInstanceUID = generate_uid(
        entropy_srcs=[patient, str(values.sum()), str(values.shape)]
    )
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.PatientID = patient
    data.PatientName = f"Name^{patient}"
    data.Modality = modality
    data.SeriesInstanceUID = series or generate_uid(entropy_srcs=[patient])
    data.Rows, data.Columns = values.shape[-2:]
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = photometric
    data.BitsAllocated = values.dtype.itemsize * 8
    data.BitsStored = bits
    data.HighBit = bits - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    if values.ndim == 3:
        data.NumberOfFrames = len(values)
    if spacing is not None:
        data.PixelSpacing = list(spacing)
    body = values.astype(values.dtype.newbyteorder("<")).tobytes()
    data.PixelData = body + b"\0" * (len(body) % 2)
    data["PixelData"].VR = "OW" if values.dtype.itemsize > 1 else "OB"
    for name, value in tags.items():
        setattr(data, name, value)
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    if syntax == RLELossless:
        data.compress(RLELossless)
    else:
        meta.TransferSyntaxUID = syntax
    return data


def save_dicom(path: Path, data: Dataset) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dicom_bytes(data))


def dicom_bytes(data: Dataset) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of these files are irregular on purpose
        data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
