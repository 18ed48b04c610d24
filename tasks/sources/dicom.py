"""DICOM: demand the tags that matter, bound what is declared, decode by stated rules, and never
quote a tag.

Formats: DICOM PS3.3 (image pixel module), PS3.5 (encoding), PS3.6 (tags) and PS3.10 (file format),
as read by pydicom; frame headers of JPEG and JPEG-LS (ITU-T T.81 B.2.2, T.87 C.2.2) and JPEG 2000
(T.800 A.5.1).

pydicom's own warnings and log lines may quote tag values, which may name a patient: both are
silenced here.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import SetupError
from tasks.sources.base import Item, RawRequest, Reader, Sample, SkipItem
from tasks.sources.own import PLACEHOLDERS, plain_id
from tasks.sources.pictures import (
    MIN_SIDE,
    by_own_maximum,
    decode_image,
    is_image_name,
    negative_flags,
)
from tasks.sources.raw import read_locator, read_plain, split_locator

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

TEXTS = ("SOPInstanceUID", "SeriesInstanceUID", "PatientID", "Modality", "SeriesDescription")
PART_OF_FILE = 1 << 20
"""Headers end long before a MiB; what lies behind is pixels."""
MAX_PIXEL_BYTES = 256 << 20
"""A multi-frame ultrasound of 300 frames has about 100 MiB."""
MAX_PACKED_FRAME_BYTES = 64 << 20
"""Unpacked; RLE takes ten times that while it is decoded. A mammogram has 62 MiB."""
NEEDED = (
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PhotometricInterpretation", "SamplesPerPixel", "PixelData"),
)
GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
DEFLATED = b"1.2.840.10008.1.2.1.99"
DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
INTENSITY = (
    "8 bits as stored; more by own maximum; DICOM: stored values (CT: HU + 1024) by own maximum"
)
CT_OFFSET = 1024
"""Added to Hounsfield units, so that air is 0 and nothing inside the field of view is negative."""
NO_PATIENT = "no patient id in the header: the split cannot be by patient"


@dataclass(frozen=True)
class Header:
    """What a file says of itself; texts are raw, so never logged. ``sides`` are rows and
    columns.
    """

    instance: str
    series: str
    patient: str
    modality: str
    description: str
    sides: tuple[int, int]

    def known_patient(self) -> str:
        """Return the patient id, empty when it is absent or one that many patients share."""
        return "" if self.patient.casefold() in PLACEHOLDERS else self.patient


@dataclass(frozen=True)
class Dicom(Header):
    """A decoded file: stored values and the few header facts that sources need.

    Attributes:
        values: ``(num_frames, height, width)`` stored values, or ``(num_frames, height, width, 3)``
            RGB uint8.
        spacing: Row and column spacing in mm, or None.
        inverted: MONOCHROME1: small values are white.
        rescale: Slope and intercept, or None when absent.
        traits: Pairs (name, value) that must not tell the label: manufacturer, site, spacing ...
        laterality: R, L or B, empty when absent.
        orientation: Where rows lead to, L or R first, empty when absent.
    """

    values: NDArray[np.generic]
    spacing: tuple[float, float] | None
    inverted: bool
    rescale: tuple[float, float] | None
    flags: tuple[str, ...]
    traits: tuple[tuple[str, str], ...]
    laterality: str
    orientation: str

    def is_square(self) -> bool:
        """Tell whether pixels are square; the study leaves others out."""
        return self.spacing is not None and abs(self.spacing[0] - self.spacing[1]) < 1e-6 * max(
            self.spacing
        )


@contextmanager
def _silent() -> Iterator[None]:
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_header(base: Path, locator: str) -> Header | None:
    """Return the header of a file or archive member; None for what is no readable DICOM file."""
    packed = len(split_locator(locator)) > 1  # to be read whole in any case
    tags = [*TEXTS, "Rows", "Columns"]
    try:
        body = (
            read_locator(base, locator)
            if packed
            else read_plain(base / locator, PART_OF_FILE, cut=True)
        )
        if body[128:132] != b"DICM":
            return None
        import pydicom

        with _silent():
            return _header(
                pydicom.dcmread(io.BytesIO(body), stop_before_pixels=True, specific_tags=tags)
            )
    except Exception:  # pydicom raises almost anything on damaged files
        return None


def _header(data: FileDataset) -> Header:
    instance, series, patient, modality, text = (
        str(data.get(name) or "").strip() for name in TEXTS
    )
    sides = (int(data.get("Rows") or 0), int(data.get("Columns") or 0))
    return Header(instance, series, patient, modality, text, sides)


# A decoder allocates what the codestream asks for, whatever the file around it declared.

SOF_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
STANDALONE = frozenset({0xFF, 0x01, *range(0xD0, 0xDA)})
START_OF_SCAN = 0xDA
CODESTREAM = b"\xff\x4f\xff\x51"
SEARCHED = 4096
"""How far into a JP2 file the codestream must begin."""


def frame_shape(frame: bytes) -> tuple[int, int, int] | None:
    """Return rows, columns, components that a JPEG, JPEG-LS or JPEG 2000 frame declares; None for
    RLE.
    """
    start = frame.find(CODESTREAM, 0, SEARCHED)
    try:
        if frame[:3] != b"\xff\xd8\xff":
            if start < 0:
                return None
            right, bottom, left, top = struct.unpack_from(">IIII", frame, start + 8)
            return bottom - top, right - left, *struct.unpack_from(">H", frame, start + 40)
        place = 2
        while frame[place] == 0xFF and frame[place + 1] != START_OF_SCAN:
            marker = frame[place + 1]
            if marker in SOF_MARKERS:
                rows, columns, components = struct.unpack_from(">HHB", frame, place + 5)
                return rows, columns, components
            long = marker not in STANDALONE
            # A fill byte is followed by the marker itself.
            place += (
                2 + int.from_bytes(frame[place + 2 : place + 4], "big")
                if long
                else 1 + (marker != 0xFF)
            )
    except (struct.error, IndexError):
        pass
    raise ValueError("no frame header")


def decode_dicom(body: bytes, *, frames: int | None = None) -> Dicom:
    """Decode one DICOM file, of so many frames when that is said; a SkipItem names tags but no
    values.
    """
    try:
        import pydicom
    except ImportError as error:
        way_out = "pip install 'isweep[medical]'"
        raise SetupError("DICOM files need pydicom", "not installed", way_out) from error
    if body[128:132] != b"DICM":
        raise SkipItem("no DICOM preamble")
    if DEFLATED in body[:PART_OF_FILE]:
        # Inflated whole by pydicom before anything can be checked; none of these archives uses it.
        raise SkipItem("deflated transfer syntax")
    with _silent():
        try:
            data: FileDataset = pydicom.dcmread(io.BytesIO(body))
            missing = [name for name in NEEDED if name not in data]
            if "TransferSyntaxUID" not in data.file_meta:
                missing = ["TransferSyntaxUID"]
        except (
            Exception
        ):  # pydicom raises almost anything on damaged files, with values in the text
            raise SkipItem("damaged DICOM header") from None
        if missing:
            raise SkipItem(f"no {missing[0]}")
        _check_declared(data)
        dicom = _decoded(pydicom, data)
    if frames is not None and len(dicom.values) != frames:
        raise SkipItem("several frames")
    return dicom


def _check_declared(data: FileDataset) -> None:
    """Check what is declared, in compressed frames too, before any of it is believed."""
    try:
        rows, columns, samples = int(data.Rows), int(data.Columns), int(data.SamplesPerPixel)
        allocated, stored, high = int(data.BitsAllocated), int(data.BitsStored), int(data.HighBit)
        frames = int(data.get("NumberOfFrames") or 1)
        kind = str(data.PhotometricInterpretation)
        syntax = data.file_meta.TransferSyntaxUID
        size = len(data.PixelData)
    except Exception:
        raise SkipItem("damaged DICOM header") from None
    if min(rows, columns) < MIN_SIDE or frames < 1:
        raise SkipItem(f"a side below {MIN_SIDE} pixels")
    if kind not in GREY + COLOUR or samples != (1 if kind in GREY else 3):
        raise SkipItem("palette or other photometric interpretation")
    if allocated not in (8, 16, 32) or not 1 <= stored <= allocated or high != stored - 1:
        raise SkipItem("unusual pixel bits")
    declared = rows * columns * samples * frames * allocated // 8
    if declared > MAX_PIXEL_BYTES:
        raise SkipItem("too many pixels")
    if syntax.is_private:
        return
    if not syntax.is_transfer_syntax:
        raise SkipItem("unknown transfer syntax")
    if syntax.is_compressed:
        if declared // frames > MAX_PACKED_FRAME_BYTES:
            raise SkipItem("too many pixels")
        from pydicom.encaps import generate_frames

        try:
            shapes = {
                frame_shape(frame)
                for frame in generate_frames(data.PixelData, number_of_frames=frames)
            }
        except Exception:
            raise SkipItem("damaged pixel data") from None
        if shapes - {(rows, columns, samples), None}:
            raise SkipItem("a frame of another size than declared")
        return
    wanted = {
        declared,
        declared + declared % 2,
        declared * 2 // 3 if kind == "YBR_FULL_422" else declared,
    }
    if size not in wanted:
        raise SkipItem(f"{'less' if size < declared else 'more'} pixel data than declared")


def _decoded(pydicom: Any, data: FileDataset) -> Dicom:
    try:
        values = pydicom.pixels.pixel_array(data)
    except (NotImplementedError, KeyError):
        raise SkipItem("unknown transfer syntax") from None
    except Exception as error:
        if isinstance(error, RuntimeError) and "missing" in str(error):
            name = data.file_meta.TransferSyntaxUID.name
            raise SkipItem(f"no decoder for {name}: pip install 'isweep[medical]'") from None
        raise SkipItem("damaged pixel data") from None
    colour = int(data.SamplesPerPixel) == 3
    if values.ndim == (3 if colour else 2):
        values = values[None]
    if not colour:
        values = _stored_bits(
            values, int(data.BitsStored), signed=int(data.PixelRepresentation) == 1
        )
    try:
        rescale = data.get("RescaleSlope"), data.get("RescaleIntercept")
        told = [data.get(name) for name in ("PixelSpacing", "ImagerPixelSpacing")]
        spacing = next(
            ((float(one[0]), float(one[1])) for one in told if one is not None and len(one) == 2),
            None,
        )
        # what a network could learn instead of the disease, as far as the header tells it
        traits = {
            "manufacturer": data.get("Manufacturer"),
            "scanner model": data.get("ManufacturerModelName"),
            "site": data.get("InstitutionName"),
            "modality": data.get("Modality"),
            "series description": data.get("SeriesDescription"),
            "pixel spacing": spacing and f"{spacing[0]:.3g} {spacing[1]:.3g}",
            "rescale slope": None if None in rescale else f"{float(rescale[0]):.6g}",
        }
        kinds = data.get("ImageType") or ()
        towards = data.get("PatientOrientation")  # PS3.3 C.7.6.1.1.1
        flags = ["burnt-in annotation"] if data.get("BurnedInAnnotation") == "YES" else []
        if "LOCALIZER" in [
            str(kind).upper() for kind in ([kinds] if isinstance(kinds, str) else kinds)
        ]:
            flags.append("localiser")
        found = Dicom(
            **vars(_header(data)),
            values=values,
            spacing=spacing,
            inverted=str(data.PhotometricInterpretation) == "MONOCHROME1",
            rescale=None if None in rescale else (float(rescale[0]), float(rescale[1])),
            flags=tuple(flags),
            traits=tuple((name, str(value or "").strip()) for name, value in traits.items()),
            laterality=str(data.get("ImageLaterality") or data.get("Laterality") or ""),
            orientation=""
            if isinstance(towards, str) or len(towards or "") != 2
            else str(towards[0]),
        )
    except Exception:
        raise SkipItem("damaged DICOM header") from None
    if found.rescale is not None and found.rescale[0] == 0:
        raise SkipItem("rescale slope 0")
    return found


def _stored_bits(values: NDArray[np.generic], bits: int, *, signed: bool) -> NDArray[np.generic]:
    """Keep the stored bits only, in place: old files put overlays into the bits above them."""
    width = values.dtype.itemsize * 8
    if bits == width:
        return values
    kept: NDArray[np.integer] = values.view(f"i{width // 8}" if signed else f"u{width // 8}")
    if not kept.flags.writeable:
        kept = kept.copy()
    kept <<= width - bits
    kept >>= width - bits
    return kept


def frame_samples(dicom: Dicom, frames: slice = slice(None)) -> Iterator[Sample]:
    """Yield frames as uint8 pixels, with conversions and flags.

    Stored values by the frame's own maximum, the study's rule; of CT, Hounsfield units plus 1024
    are scaled, so that signed files and those with an intercept look alike. Display windows are
    never applied. MONOCHROME1 is inverted.
    """
    for frame in dicom.values[frames]:
        notes: list[str] = []
        flags = list(dicom.flags)
        values: NDArray[np.generic] = frame
        if dicom.modality != "CT":
            flags.extend(negative_flags(values))
        elif dicom.rescale is None:
            flags.append("CT without rescale slope and intercept")
        else:
            slope, intercept = dicom.rescale
            values = frame.astype(np.float32) * np.float32(slope) + np.float32(
                intercept + CT_OFFSET
            )
        if values.ndim == 3:
            notes.append("colour DICOM")
        pixels, note = by_own_maximum(values)
        if dicom.inverted:
            pixels = 255 - pixels
            notes.append("MONOCHROME1 inverted")
        yield Sample(pixels, conversions=(*notes, *note), flags=tuple(flags), traits=dicom.traits)


def is_dicom_name(name: str) -> bool:
    """Tell whether a name looks like a DICOM file's."""
    return name.lower().endswith(DICOM_ENDINGS)


def is_single_image_name(name: str) -> bool:
    """Tell whether a name looks like that of a picture or a DICOM file."""
    return is_image_name(name) or is_dicom_name(name)


def single_reader(request: RawRequest) -> Reader:
    """Return a reader of files with one image each; what is none, or holds several frames, is a
    SkipItem.

    A DICOM file without a group of its item gets the header's patient, whose id may be spelt in
    several ways, and a flag when there is none.
    """
    base = request.base()

    def read(item: Item) -> list[Sample]:
        body = read_locator(base, item.locator)
        if body[128:132] != b"DICM" and not is_dicom_name(item.locator):
            return [decode_image(body)]
        dicom = decode_dicom(body, frames=1)
        patient = plain_id(dicom.known_patient())
        group = "" if item.group else patient
        lacking = () if patient or item.group else (NO_PATIENT,)
        return [
            replace(sample, group=group, patient=patient, flags=(*sample.flags, *lacking))
            for sample in frame_samples(dicom)
        ]

    return read
