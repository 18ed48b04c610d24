"""DICOM files: require the tags that matter, check declared sizes, decode by stated rules.

Formats: DICOM PS3.3 (image pixel module), PS3.5 (encoding), PS3.6 (tags) and PS3.10 (file format),
as read by pydicom; frame headers of JPEG and JPEG-LS (ITU-T T.81 B.2.2, T.87 C.2.2) and JPEG 2000
(T.800 A.5.1).

Tag values may name a patient, so no message, log line or exception of this module quotes one.
pydicom's own warnings and log lines may quote them: they are silenced here.
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
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import SetupError
from tasks.sources.base import Item, RawRequest, Reader, Sample, SkipItem
from tasks.sources.own.groups import plain_id
from tasks.sources.own.words import PLACEHOLDERS
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

PREAMBLE_BYTES = 128
"""Bytes before the signature of every file (PS3.10, 7.1)."""
SIGNATURE = b"DICM"
SIGNATURE_BYTES = PREAMBLE_BYTES + len(SIGNATURE)
"""First bytes of a file that show whether it is DICOM."""
HEADER_TAGS = (
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "Modality",
    "SeriesDescription",
    "Rows",
    "Columns",
)
MAX_HEADER_BYTES = 1 << 20
"""Headers end long before a MiB; what follows is pixels."""
MAX_PIXEL_BYTES = 256 << 20
"""Decoded bytes of one file: a multi-frame ultrasound of 300 frames has about 100 MiB."""
MAX_PACKED_FRAME_BYTES = 64 << 20
"""Decoded bytes of one compressed frame. RLE decoding takes ten times that, and a mammogram has
62 MiB.
"""
REQUIRED_TAGS = (
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PhotometricInterpretation",
    "SamplesPerPixel",
    "PixelData",
)
SAMPLES_PER_PIXEL = {
    **dict.fromkeys(("MONOCHROME1", "MONOCHROME2"), 1),
    **dict.fromkeys(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"), 3),
}
"""Photometric interpretations that are read, each with its number of values per pixel."""
TRAIT_TAGS = {
    "manufacturer": "Manufacturer",
    "scanner model": "ManufacturerModelName",
    "site": "InstitutionName",
    "modality": "Modality",
    "series description": "SeriesDescription",
}
"""Tags whose values must not predict the label: a network could learn them instead of the
disease. By the name that a prepared dataset's record gives them.
"""
DEFLATED_SYNTAX = b"1.2.840.10008.1.2.1.99"
DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
INTENSITY = (
    "8 bits as stored; more by own maximum; DICOM: stored values (CT: HU + 1024) by own maximum"
)
CT_OFFSET = 1024
"""Added to Hounsfield units: air becomes 0, and nothing inside the field of view is negative."""
SQUARE_TOLERANCE = 1e-6
"""Relative difference of row and column spacing up to which pixels count as square."""
NO_PATIENT = "no patient id in the header: the split cannot be by patient"

SOF_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
"""Start-of-frame markers of JPEG and JPEG-LS; their segments declare the frame's size."""
STANDALONE_MARKERS = frozenset({0x01, *range(0xD0, 0xDA)})
"""JPEG markers without a segment of data behind them."""
FILL_BYTE = 0xFF
START_OF_SCAN = 0xDA
JPEG_START = b"\xff\xd8\xff"
JPEG2000_START = b"\xff\x4f\xff\x51"
MAX_JP2_HEADER_BYTES = 4096
"""The JPEG 2000 codestream must begin within these first bytes of a JP2 file."""


@dataclass(frozen=True)
class Header:
    """The header tags of one file that sources need. Texts are unhashed, so they are never logged.

    Attributes:
        instance: SOP instance UID.
        series: Series instance UID.
        patient: Patient id.
        modality: Two letters such as ``CT`` or ``US``.
        description: Series description.
        sides: Rows and columns in pixels; 0 if the header lacks them.
    """

    instance: str
    series: str
    patient: str
    modality: str
    description: str
    sides: tuple[int, int]

    def known_patient(self) -> str:
        """Return the patient id, or "" if it is a placeholder that many patients share."""
        if self.patient.casefold() in PLACEHOLDERS:
            return ""
        return self.patient


@dataclass(frozen=True)
class Dicom(Header):
    """A decoded file: its stored values and the header facts that sources need.

    Attributes:
        values: ``(num_frames, height, width)`` stored values, or ``(num_frames, height, width, 3)``
            RGB uint8.
        spacing: Row and column spacing in mm, or None.
        inverted: True for MONOCHROME1, where small values are white.
        rescale: Slope and intercept from stored values to Hounsfield units, or None.
        flags: Names of doubts about the file.
        traits: Pairs (name, value) that must not predict the label, such as the manufacturer.
        laterality: R, L or B; empty if absent.
        orientation: The direction in which rows run, beginning with L or R; empty if absent.
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
        """Return whether pixels are known to be square; the study leaves other images out."""
        if self.spacing is None:
            return False
        row_spacing, column_spacing = self.spacing
        return abs(row_spacing - column_spacing) < SQUARE_TOLERANCE * max(self.spacing)


def is_dicom_name(name: str) -> bool:
    """Return whether a file name ends as those of DICOM files do."""
    return name.lower().endswith(DICOM_ENDINGS)


def is_single_image_name(name: str) -> bool:
    """Return whether a file name ends as those of pictures or DICOM files do."""
    return is_image_name(name) or is_dicom_name(name)


def is_dicom(body: bytes) -> bool:
    """Return whether a file is DICOM, by its first :data:`SIGNATURE_BYTES` bytes or more."""
    return body[PREAMBLE_BYTES:SIGNATURE_BYTES] == SIGNATURE


def read_header(base: Path, locator: str) -> Header | None:
    """Read the header of a file or archive member.

    Args:
        base: The raw folder that locators are relative to.
        locator: Where the file is, as :mod:`tasks.sources.raw` writes it.

    Returns:
        The header, or None if this is not a readable DICOM file.
    """
    is_archive_member = len(split_locator(locator)) > 1
    try:
        if is_archive_member:  # cannot be read in part
            body = read_locator(base, locator)
        else:
            body = read_plain(base / locator, MAX_HEADER_BYTES, cut=True)
        if not is_dicom(body):
            return None
        import pydicom

        with _silent_pydicom():
            return _header(
                pydicom.dcmread(
                    io.BytesIO(body), stop_before_pixels=True, specific_tags=[*HEADER_TAGS]
                )
            )
    except Exception:  # pydicom raises almost anything on damaged files
        return None


@contextmanager
def _silent_pydicom() -> Iterator[None]:
    """Print no warnings of pydicom in this block: they quote values of tags."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _text(data: FileDataset, tag: str) -> str:
    """Return a tag as text; empty if it is missing."""
    return str(data.get(tag) or "").strip()


def _header(data: FileDataset) -> Header:
    """Return the tags of a header that sources need."""
    return Header(
        instance=_text(data, "SOPInstanceUID"),
        series=_text(data, "SeriesInstanceUID"),
        patient=_text(data, "PatientID"),
        modality=_text(data, "Modality"),
        description=_text(data, "SeriesDescription"),
        sides=(int(data.get("Rows") or 0), int(data.get("Columns") or 0)),
    )


def decode_dicom(body: bytes, *, frames: int | None = None) -> Dicom:
    """Decode one DICOM file.

    Args:
        body: The bytes of the file.
        frames: The number of frames that it must have; None accepts any.

    Raises:
        SkipItem: The file cannot be used. The reason names tags, never their values.
        SetupError: pydicom is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise SetupError(
            "DICOM files need pydicom, which is not installed",
            hint="Run `pip install 'isweep[medical]'`",
        ) from error
    if not is_dicom(body):
        raise SkipItem("no DICOM preamble")
    if DEFLATED_SYNTAX in body[:MAX_HEADER_BYTES]:
        # pydicom inflates the whole file before anything can be checked. No archive here uses it.
        raise SkipItem("deflated transfer syntax")
    with _silent_pydicom():
        try:
            data: FileDataset = pydicom.dcmread(io.BytesIO(body))
            missing_tags = [tag for tag in REQUIRED_TAGS if tag not in data]
            if "TransferSyntaxUID" not in data.file_meta:
                missing_tags = ["TransferSyntaxUID"]
        except Exception:  # almost anything on damaged files, with tag values in the text
            raise SkipItem("damaged DICOM header") from None
        if missing_tags:
            raise SkipItem(f"no {missing_tags[0]}")
        _check_declared_pixels(data)
        values = _stored_values(data)
        dicom = _with_header_facts(data, values)
    if dicom.rescale is not None and dicom.rescale[0] == 0:
        raise SkipItem("rescale slope 0")
    if frames is not None and len(dicom.values) != frames:
        raise SkipItem("several frames")
    return dicom


def _check_declared_pixels(data: FileDataset) -> None:
    """Check the tags by which a decoder reserves memory, before the pixels are decoded.

    Raises:
        SkipItem: The pixels are of a kind, size or number that is not read.
    """
    try:
        rows = int(data.Rows)
        columns = int(data.Columns)
        samples = int(data.SamplesPerPixel)
        allocated_bits = int(data.BitsAllocated)
        stored_bits = int(data.BitsStored)
        high_bit = int(data.HighBit)
        num_frames = int(data.get("NumberOfFrames") or 1)
        photometric = str(data.PhotometricInterpretation)
        syntax = data.file_meta.TransferSyntaxUID
        stored_bytes = len(data.PixelData)
    except Exception:
        raise SkipItem("damaged DICOM header") from None
    if num_frames < 1:
        raise SkipItem("damaged DICOM header")
    if min(rows, columns) < MIN_SIDE:
        raise SkipItem(f"a side below {MIN_SIDE} pixels")
    if samples != SAMPLES_PER_PIXEL.get(photometric):
        raise SkipItem("palette or other photometric interpretation")
    is_usual = stored_bits == high_bit + 1 and 1 <= stored_bits <= allocated_bits
    if allocated_bits not in (8, 16, 32) or not is_usual:
        raise SkipItem("unusual pixel bits")
    frame_bytes = rows * columns * samples * allocated_bits // 8
    num_bytes = frame_bytes * num_frames
    if num_bytes > MAX_PIXEL_BYTES:
        raise SkipItem("too many pixels")
    if syntax.is_private:  # pydicom refuses it later
        return
    if not syntax.is_transfer_syntax:
        raise SkipItem("unknown transfer syntax")
    if syntax.is_compressed:
        if frame_bytes > MAX_PACKED_FRAME_BYTES:
            raise SkipItem("too many pixels")
        _check_compressed_frames(data, num_frames, (rows, columns, samples))
        return
    allowed_bytes = {num_bytes, num_bytes + num_bytes % 2}  # padded to an even length
    if photometric == "YBR_FULL_422":  # two pixels share their color values
        allowed_bytes.add(num_bytes * 2 // 3)
    if stored_bytes not in allowed_bytes:
        amount = "less" if stored_bytes < num_bytes else "more"
        raise SkipItem(f"{amount} pixel data than declared")


def _check_compressed_frames(
    data: FileDataset, num_frames: int, expected: tuple[int, int, int]
) -> None:
    """Compare (rows, columns, samples) of each frame's own header with the file's.

    A decoder allocates memory for the size in the codestream, whatever the DICOM header declares.
    """
    from pydicom.encaps import generate_frames

    try:
        frames = generate_frames(data.PixelData, number_of_frames=num_frames)
        shapes = {frame_shape(frame) for frame in frames}
    except Exception:
        raise SkipItem("damaged pixel data") from None
    if shapes - {expected, None}:
        raise SkipItem("a frame of another size than declared")


def frame_shape(frame: bytes) -> tuple[int, int, int] | None:
    """Return (rows, columns, components) as a compressed frame's own header declares them.

    Args:
        frame: A JPEG, JPEG-LS, JPEG 2000 or RLE frame.

    Returns:
        The shape, or None for a frame without a header (RLE).

    Raises:
        ValueError: The frame begins like a JPEG or JPEG 2000 one, and its header is damaged.
    """
    try:
        if frame.startswith(JPEG_START):
            return _jpeg_shape(frame)
        codestream = frame.find(JPEG2000_START, 0, MAX_JP2_HEADER_BYTES)
        if codestream < 0:
            return None
        # T.800 A.5.1: the image area in reference grid units, then the number of components.
        right, bottom, left, top = struct.unpack_from(">IIII", frame, codestream + 8)
        (components,) = struct.unpack_from(">H", frame, codestream + 40)
    except (struct.error, IndexError):
        raise ValueError("no frame header") from None
    return bottom - top, right - left, components


def _jpeg_shape(frame: bytes) -> tuple[int, int, int]:
    """Walk a JPEG's segments up to the one that declares the frame's size."""
    position = 2
    while frame[position] == 0xFF and frame[position + 1] != START_OF_SCAN:
        marker = frame[position + 1]
        if marker in SOF_MARKERS:
            rows, columns, components = struct.unpack_from(">HHB", frame, position + 5)
            return rows, columns, components
        if marker == FILL_BYTE:  # the marker itself follows
            position += 1
        elif marker in STANDALONE_MARKERS:
            position += 2
        else:
            position += 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    raise ValueError("no frame header")


def _stored_values(data: FileDataset) -> NDArray[np.generic]:
    """Decode the pixels, ``(num_frames, height, width)`` or with 3 RGB channels last."""
    import pydicom

    try:
        values: NDArray[np.generic] = pydicom.pixels.pixel_array(data)
    except (NotImplementedError, KeyError):
        raise SkipItem("unknown transfer syntax") from None
    except Exception as error:
        # pydicom has no class of its own for a missing decoder, only these words.
        if isinstance(error, RuntimeError) and "missing" in str(error):
            name = data.file_meta.TransferSyntaxUID.name
            raise SkipItem(f"no decoder for {name}: pip install 'isweep[medical]'") from None
        raise SkipItem("damaged pixel data") from None
    is_color = int(data.SamplesPerPixel) == 3
    num_frame_axes = 3 if is_color else 2
    if values.ndim == num_frame_axes:
        values = values[None]
    if is_color:
        return values
    is_signed = int(data.PixelRepresentation) == 1
    return _without_overlays(values, int(data.BitsStored), signed=is_signed)


def _without_overlays(
    values: NDArray[np.generic], stored_bits: int, *, signed: bool
) -> NDArray[np.generic]:
    """Keep the stored bits only, in place: old files put overlays into the bits above them."""
    width = values.dtype.itemsize * 8
    if stored_bits == width:
        return values
    kind = "i" if signed else "u"
    integers: NDArray[np.integer] = values.view(f"{kind}{width // 8}")
    if not integers.flags.writeable:
        integers = integers.copy()
    # Shifting up drops the higher bits; shifting back extends the sign.
    integers <<= width - stored_bits
    integers >>= width - stored_bits
    return integers


def _with_header_facts(data: FileDataset, values: NDArray[np.generic]) -> Dicom:
    """Return the decoded file: its values, and the tags that sources need."""
    try:
        spacing = _spacing(data)
        rescale = _rescale(data)
        return Dicom(
            **vars(_header(data)),
            values=values,
            spacing=spacing,
            inverted=str(data.PhotometricInterpretation) == "MONOCHROME1",
            rescale=rescale,
            flags=_header_flags(data),
            traits=_traits(data, spacing, rescale),
            laterality=str(data.get("ImageLaterality") or data.get("Laterality") or ""),
            orientation=_orientation(data),
        )
    except Exception:
        raise SkipItem("damaged DICOM header") from None


def _spacing(data: FileDataset) -> tuple[float, float] | None:
    """Return row and column spacing in mm, or None if the header lacks them."""
    for tag in ("PixelSpacing", "ImagerPixelSpacing"):
        sizes = data.get(tag)
        if sizes is not None and len(sizes) == 2:
            return float(sizes[0]), float(sizes[1])
    return None


def _rescale(data: FileDataset) -> tuple[float, float] | None:
    """Return slope and intercept to Hounsfield units, or None if the header lacks them."""
    slope = data.get("RescaleSlope")
    intercept = data.get("RescaleIntercept")
    if slope is None or intercept is None:
        return None
    return float(slope), float(intercept)


def _traits(
    data: FileDataset,
    spacing: tuple[float, float] | None,
    rescale: tuple[float, float] | None,
) -> tuple[tuple[str, str], ...]:
    """Return the tags from which the label must not be predictable."""
    traits = {name: _text(data, tag) for name, tag in TRAIT_TAGS.items()}
    traits["pixel spacing"] = f"{spacing[0]:.3g} {spacing[1]:.3g}" if spacing else ""
    traits["rescale slope"] = f"{rescale[0]:.6g}" if rescale else ""
    return tuple(traits.items())


def _header_flags(data: FileDataset) -> tuple[str, ...]:
    """Return doubts about an image that tags of its header raise."""
    flags = []
    if data.get("BurnedInAnnotation") == "YES":
        flags.append("burnt-in annotation")
    image_types = data.get("ImageType") or ()
    if isinstance(image_types, str):
        image_types = [image_types]
    if "LOCALIZER" in [str(image_type).upper() for image_type in image_types]:
        flags.append("localiser")
    return tuple(flags)


def _orientation(data: FileDataset) -> str:
    """Return the direction in which rows run (PS3.3 C.7.6.1.1.1), or "" if it is not given."""
    directions = data.get("PatientOrientation") or ""
    if isinstance(directions, str) or len(directions) != 2:
        return ""
    return str(directions[0])


def frame_samples(dicom: Dicom, frames: slice = slice(None)) -> Iterator[Sample]:
    """Yield frames as uint8 pixels in [0, 255].

    Each frame's stored values are scaled by its own maximum, which is the study's rule. For CT the
    scaled values are Hounsfield units plus 1024, so that signed files and files with an intercept
    look alike. Display windows are never applied. MONOCHROME1 is inverted.

    Args:
        dicom: A decoded file.
        frames: Which of its frames to yield.

    Raises:
        SkipItem: A frame is constant, or has no value above 0.
    """
    values: NDArray[np.generic]
    for values in dicom.values[frames]:
        flags = list(dicom.flags)
        if dicom.modality != "CT":
            flags.extend(negative_flags(values))
        elif dicom.rescale is None:
            flags.append("CT without rescale slope and intercept")
        else:
            slope, intercept = dicom.rescale
            offset = np.float32(intercept + CT_OFFSET)
            values = values.astype(np.float32) * np.float32(slope) + offset
        conversions = []
        if values.ndim == 3:
            conversions.append("colour DICOM")
        pixels, scaling = by_own_maximum(values)
        if dicom.inverted:
            pixels = 255 - pixels
            conversions.append("MONOCHROME1 inverted")
        yield Sample(
            pixels,
            conversions=(*conversions, *scaling),
            flags=tuple(flags),
            traits=dicom.traits,
        )


def single_reader(request: RawRequest) -> Reader:
    """Return a reader of pictures and of DICOM files with one frame each.

    If an item has no group, the patient in the DICOM header becomes the group. Without such a
    patient the sample is flagged. Patient ids are compared in a plain form, because headers write
    one patient's id in several ways.

    The reader raises SkipItem for a file that is no image, or that holds several frames.
    """
    base = request.base()

    def read(item: Item) -> list[Sample]:
        body = read_locator(base, item.locator)
        if not is_dicom(body) and not is_dicom_name(item.locator):
            return [decode_image(body)]
        dicom = decode_dicom(body, frames=1)
        patient = plain_id(dicom.known_patient())
        group = "" if item.group else patient
        extra_flags = () if patient or item.group else (NO_PATIENT,)
        return [
            replace(sample, group=group, patient=patient, flags=(*sample.flags, *extra_flags))
            for sample in frame_samples(dicom)
        ]

    return read
