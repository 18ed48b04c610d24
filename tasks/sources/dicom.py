"""Read DICOM files: check the tags and the declared sizes, then decode the pixels.

pydicom reads the files. The DICOM standard defines the format: PS3.3 (image pixel module),
PS3.5 (encoding), PS3.6 (tags) and PS3.10 (file format). The headers of compressed frames
follow ITU-T standards: T.81 B.2.2 (JPEG), T.87 C.2.2 (JPEG-LS) and T.800 A.5.1 (JPEG 2000).

The value of a tag may contain a patient's name. No message, log line or exception of this
module contains the value of a tag. This module turns off the warnings and log lines of
pydicom, because they may contain such values.
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

from search_spaces.errors import SetupError
from tasks.array_types import AnyArray, IntArray
from tasks.sources.base import Item, RawRequest, Reader, Sample, SkipItem
from tasks.sources.own.groups import plain_id
from tasks.sources.own.words import PLACEHOLDERS
from tasks.sources.pictures import (
    MIN_SIDE,
    decode_image,
    is_image_name,
    negative_flags,
    scale_by_image_maximum,
)
from tasks.sources.raw import read_locator, read_plain, split_locator

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

PREAMBLE_BYTES = 128
"""Number of bytes before the signature of every DICOM file (PS3.10, 7.1)."""
SIGNATURE = b"DICM"
SIGNATURE_BYTES = PREAMBLE_BYTES + len(SIGNATURE)
"""A DICOM file is recognized by this number of bytes at its start."""
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
"""If isweep needs only the header of a file, it reads this number of bytes at the start.
Headers are far shorter than 1 MiB."""
MAX_PIXEL_BYTES = 256 << 20
"""Largest size of a decoded file in bytes. An ultrasound video of 300 frames has about 100
MiB."""
MAX_PACKED_FRAME_BYTES = 64 << 20
"""Largest decoded size in bytes of a compressed frame. A mammogram has 62 MiB. An RLE decoder
needs ten times as much memory as the frame."""
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
"""Supported photometric interpretation -> number of values per pixel."""
TRAIT_TAGS = {
    "manufacturer": "Manufacturer",
    "scanner model": "ManufacturerModelName",
    "site": "InstitutionName",
    "modality": "Modality",
    "series description": "SeriesDescription",
}
"""Name of a trait in a dataset's record -> DICOM tag with its value. If a trait predicts the
label, a network may learn the trait instead of the disease."""
DEFLATED_SYNTAX = b"1.2.840.10008.1.2.1.99"
DICOM_EXTENSIONS = (".dcm", ".dicom", ".ima")
INTENSITY = (
    "8 bits as stored; more by own maximum; DICOM: stored values (CT: HU + 1024) by own maximum"
)
"""Rule for image files in stored records. `isweep measure` prints the part that applies."""
CT_OFFSET = 1024
"""Number that is added to Hounsfield units, so that air is 0 and tissue is positive."""
SQUARE_TOLERANCE = 1e-6
"""Pixels count as square if row spacing and column spacing differ by less than this share."""
NO_PATIENT = "no patient id in the header: the split cannot be by patient"

SOF_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
"""Start-of-frame markers of JPEG and JPEG-LS. The segment after such a marker declares the
size of the frame."""
STANDALONE_MARKERS = frozenset({0x01, *range(0xD0, 0xDA)})
"""JPEG markers without a segment of data after them."""
FILL_BYTE = 0xFF
START_OF_SCAN = 0xDA
JPEG_START = b"\xff\xd8\xff"
JPEG2000_START = b"\xff\x4f\xff\x51"
MAX_JP2_HEADER_BYTES = 4096
"""The JPEG 2000 codestream must begin within this number of bytes of a JP2 file."""


@dataclass(frozen=True)
class Header:
    """The values of the DICOM tags that sources need, from one file.

    The values are not hashed, so log lines and messages must not contain them.

    Attributes:
        instance: SOP instance UID.
        series: Series instance UID.
        patient: Patient id.
        modality: Kind of scanner as two letters, such as ``CT`` or ``US`` (ultrasound).
        description: Series description.
        sides: Number of pixel rows and number of pixel columns. A number is 0 if the header
            lacks it.
    """

    instance: str
    series: str
    patient: str
    modality: str
    description: str
    sides: tuple[int, int]

    def known_patient(self) -> str:
        """Return the patient id, or "" if the id is a placeholder such as ``anonymous``."""
        if self.patient.casefold() in PLACEHOLDERS:
            return ""
        return self.patient


@dataclass(frozen=True)
class Dicom(Header):
    """A decoded DICOM file: its stored values and the tags that sources need.

    Attributes:
        values: ``(num_frames, height, width)`` stored values, or
            ``(num_frames, height, width, 3)`` RGB uint8.
        spacing: Row spacing and column spacing in mm; None if the header has none.
        inverted: True for MONOCHROME1, where small values are white.
        rescale: Slope and intercept that turn stored values into Hounsfield units; None if the
            header has none.
        flags: Possible problems of the file, in words.
        traits: Pairs (name, value), such as ``("manufacturer", "X")``, see :class:`Sample`.
        laterality: Side of the body in the image: R (right), L (left) or B (both); empty if
            the header names no side.
        orientation: Side of the patient at the end of each image row, such as L (left). Empty
            if the header names no side.
    """

    values: AnyArray
    spacing: tuple[float, float] | None
    inverted: bool
    rescale: tuple[float, float] | None
    flags: tuple[str, ...]
    traits: tuple[tuple[str, str], ...]
    laterality: str
    orientation: str

    def is_square(self) -> bool:
        """Return whether the header declares square pixels. The study uses only square pixels."""
        if self.spacing is None:
            return False
        row_spacing, column_spacing = self.spacing
        return abs(row_spacing - column_spacing) < SQUARE_TOLERANCE * max(self.spacing)


def is_dicom_name(name: str) -> bool:
    """Return whether a file name has the extension of a DICOM file."""
    return name.lower().endswith(DICOM_EXTENSIONS)


def is_single_image_name(name: str) -> bool:
    """Return whether a file name has the extension of a picture or of a DICOM file."""
    return is_image_name(name) or is_dicom_name(name)


def is_dicom(body: bytes) -> bool:
    """Return whether a file is DICOM.

    Args:
        body: The bytes of the file, or at least its first :data:`SIGNATURE_BYTES` bytes.
    """
    return body[PREAMBLE_BYTES:SIGNATURE_BYTES] == SIGNATURE


def read_header(base: Path, locator: str) -> Header | None:
    """Read the DICOM header of a file or archive member.

    Args:
        base: The raw folder that locators are relative to.
        locator: Locator of the file, see :mod:`tasks.sources.raw`.

    Returns:
        The header, or None if the file is not DICOM or is damaged.
    """
    is_archive_member = len(split_locator(locator)) > 1
    try:
        if is_archive_member:
            body = read_locator(base, locator)  # a member cannot be read in part
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
    except Exception:  # for a damaged file, pydicom may raise any type of exception
        return None


@contextmanager
def _silent_pydicom() -> Iterator[None]:
    """Turn off pydicom's warnings and log lines in a ``with`` block.

    These warnings and lines may contain values of tags.
    """
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
    """Return the value of a tag as text; empty if the header lacks the tag."""
    return str(data.get(tag) or "").strip()


def _header(data: FileDataset) -> Header:
    """Return the values of the tags that sources need."""
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
        frames: The required number of frames; None accepts any number.

    Raises:
        SkipItem: The file cannot be used. The reason may contain names of tags, never their
            values.
        SetupError: pydicom is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise SetupError(
            "pydicom, which reads DICOM files, is not installed",
            hint="Run `pip install 'isweep[medical]'`",
        ) from error
    if not is_dicom(body):
        raise SkipItem("no DICOM preamble")
    if DEFLATED_SYNTAX in body[:MAX_HEADER_BYTES]:
        # pydicom would inflate the whole file before its declared size could be checked. No
        # public dataset that we read uses this transfer syntax.
        raise SkipItem("deflated transfer syntax")
    with _silent_pydicom():
        try:
            data: FileDataset = pydicom.dcmread(io.BytesIO(body))
            missing_tags = [tag for tag in REQUIRED_TAGS if tag not in data]
            if "TransferSyntaxUID" not in data.file_meta:
                missing_tags = ["TransferSyntaxUID"]
        except Exception:  # of any type; its text may contain tag values, so it is not shown
            raise SkipItem("damaged DICOM header") from None
        if "PixelData" in missing_tags:
            raise SkipItem("DICOM without pixel data")
        if missing_tags:
            raise SkipItem(f"no {missing_tags[0]}")
        _check_declared_pixels(data)
        values = _stored_values(data)
        dicom = _decoded_file(data, values)
    if dicom.rescale is not None and dicom.rescale[0] == 0:
        raise SkipItem("rescale slope 0")
    if frames is not None and len(dicom.values) != frames:
        raise SkipItem("several frames")
    return dicom


def _check_declared_pixels(data: FileDataset) -> None:
    """Check the tags that determine how much memory a decoder reserves.

    Raises:
        SkipItem: The type of the image is not supported, the image has too many pixels, or its
            number of bytes is not the declared number.
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
    if syntax.is_private:  # _stored_values rejects private syntaxes
        return
    if not syntax.is_transfer_syntax:
        raise SkipItem("unknown transfer syntax")
    if syntax.is_compressed:
        if frame_bytes > MAX_PACKED_FRAME_BYTES:
            raise SkipItem("too many pixels")
        _check_compressed_frames(data, num_frames, (rows, columns, samples))
        return
    allowed_bytes = {num_bytes, num_bytes + num_bytes % 2}  # data may be padded to an even length
    if photometric == "YBR_FULL_422":  # two neighboring pixels share their color values
        allowed_bytes.add(num_bytes * 2 // 3)
    if stored_bytes not in allowed_bytes:
        amount = "less" if stored_bytes < num_bytes else "more"
        raise SkipItem(f"{amount} pixel data than declared")


def _check_compressed_frames(
    data: FileDataset, num_frames: int, expected: tuple[int, int, int]
) -> None:
    """Check that each compressed frame declares the same size as the DICOM header.

    A decoder reserves memory for the size that the frame declares, even if the DICOM header
    declares another size.

    Args:
        data: The file.
        num_frames: Number of frames in the DICOM header.
        expected: Rows, columns and samples per pixel in the DICOM header.

    Raises:
        SkipItem: The frames are damaged, or a frame declares another size than the DICOM
        header.
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
    """Return the size that a compressed frame declares.

    Args:
        frame: A JPEG, JPEG-LS, JPEG 2000 or RLE frame.

    Returns:
        Rows, columns and components per pixel. None for RLE, which has no frame header.

    Raises:
        ValueError: The header of a JPEG, JPEG-LS or JPEG 2000 frame is damaged.
    """
    try:
        if frame.startswith(JPEG_START):
            return _jpeg_shape(frame)
        codestream = frame.find(JPEG2000_START, 0, MAX_JP2_HEADER_BYTES)
        if codestream < 0:
            return None
        # T.800 A.5.1: the borders of the image area, then the number of components.
        right, bottom, left, top = struct.unpack_from(">IIII", frame, codestream + 8)
        (components,) = struct.unpack_from(">H", frame, codestream + 40)
    except (struct.error, IndexError):
        raise ValueError("no frame header") from None
    return bottom - top, right - left, components


def _jpeg_shape(frame: bytes) -> tuple[int, int, int]:
    """Return the size that the start-of-frame segment of a JPEG declares.

    Raises:
        ValueError: The JPEG has no such segment.
        IndexError: The JPEG ends early.
    """
    position = 2
    while frame[position] == 0xFF and frame[position + 1] != START_OF_SCAN:
        marker = frame[position + 1]
        if marker in SOF_MARKERS:
            rows, columns, components = struct.unpack_from(">HHB", frame, position + 5)
            return rows, columns, components
        if marker == FILL_BYTE:  # the marker comes after the fill byte
            position += 1
        elif marker in STANDALONE_MARKERS:
            position += 2
        else:
            position += 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    raise ValueError("no frame header")


def _stored_values(data: FileDataset) -> AnyArray:
    """Decode the pixels of a file.

    Returns:
        ``(num_frames, height, width)``, or ``(num_frames, height, width, 3)`` for RGB.

    Raises:
        SkipItem: No decoder is installed for the transfer syntax, or the pixels are damaged.
    """
    from pydicom.pixels import get_decoder, pixel_array

    syntax = data.file_meta.TransferSyntaxUID
    try:
        is_decodable = get_decoder(syntax).is_available
    except NotImplementedError:
        raise SkipItem("unknown transfer syntax") from None
    if not is_decodable:
        raise SkipItem(f"no decoder for {syntax.name}: pip install 'isweep[medical]'")
    try:
        values: AnyArray = pixel_array(data)
    except Exception:  # for damaged pixels, decoders may raise any type of exception
        raise SkipItem("damaged pixel data") from None
    is_color = int(data.SamplesPerPixel) == 3
    num_frame_axes = 3 if is_color else 2
    if values.ndim == num_frame_axes:
        values = values[None]
    if is_color:
        return values
    is_signed = int(data.PixelRepresentation) == 1
    return _without_overlays(values, int(data.BitsStored), signed=is_signed)


def _without_overlays(values: AnyArray, stored_bits: int, *, signed: bool) -> AnyArray:
    """Remove overlays, which old DICOM files store in the bits above the gray value.

    Args:
        values: Decoded gray values. If the array is writable, it is changed in place.
        stored_bits: Number of low bits that contain the gray value.
        signed: True if gray values are signed.
    """
    width = values.dtype.itemsize * 8
    if stored_bits == width:
        return values
    kind = "i" if signed else "u"
    integers: IntArray = values.view(f"{kind}{width // 8}")
    if not integers.flags.writeable:
        integers = integers.copy()
    # The left shift drops the higher bits. The right shift extends the sign.
    integers <<= width - stored_bits
    integers >>= width - stored_bits
    return integers


def _decoded_file(data: FileDataset, values: AnyArray) -> Dicom:
    """Return the decoded file with the tags that sources need.

    Raises:
        SkipItem: A tag has a damaged value.
    """
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
    """Return row spacing and column spacing in mm, or None if the header lacks them."""
    for tag in ("PixelSpacing", "ImagerPixelSpacing"):
        sizes = data.get(tag)
        if sizes is not None and len(sizes) == 2:
            return float(sizes[0]), float(sizes[1])
    return None


def _rescale(data: FileDataset) -> tuple[float, float] | None:
    """Return the slope and intercept of the conversion to Hounsfield units.

    If the header lacks one of the two, return None.
    """
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
    """Return the traits of a file: pairs (name, value) as in :class:`Sample`."""
    traits = {name: _text(data, tag) for name, tag in TRAIT_TAGS.items()}
    traits["pixel spacing"] = f"{spacing[0]:.3g} {spacing[1]:.3g}" if spacing else ""
    traits["rescale slope"] = f"{rescale[0]:.6g}" if rescale else ""
    return tuple(traits.items())


def _header_flags(data: FileDataset) -> tuple[str, ...]:
    """Return flags for burnt-in text in the image, and for a localizer image."""
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
    """Return the side of the patient at the end of each image row (PS3.3 C.7.6.1.1.1).

    If the header names no side, return an empty text.
    """
    directions = data.get("PatientOrientation") or ""
    if isinstance(directions, str) or len(directions) != 2:
        return ""
    return str(directions[0])


def frame_samples(dicom: Dicom, frames: slice = slice(None)) -> Iterator[Sample]:
    """Yield frames as uint8 pixels in [0, 255].

    As in the study, the stored values of each frame are scaled by the maximum of this frame.
    Before this, the values of a CT are converted to Hounsfield units plus 1024, so that 0
    means the same in all CT files. Display windows are never applied. Images of the type
    MONOCHROME1 are inverted, so that large values are white.

    Args:
        dicom: A decoded file.
        frames: The frames to yield.

    Raises:
        SkipItem: A frame is constant, or has no value above 0.
    """
    values: AnyArray
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
        pixels, scaling = scale_by_image_maximum(values)
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
    """Return a reader of pictures and of DICOM files with one frame.

    If an item has no group, its group is the patient id in the DICOM header. If the header has
    no patient id either, the sample gets a flag. :func:`tasks.sources.own.groups.plain_id`
    normalizes patient ids, because headers may contain the same id in different spellings.

    If a file is not an image or has several frames, the reader raises :class:`SkipItem`.
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
