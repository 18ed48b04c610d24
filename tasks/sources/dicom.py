"""DICOM: demand the tags that matter, bound what is declared, decode by stated rules, and never quote a tag.

Format: DICOM PS3.3 (image pixel module), PS3.5 (encoding) and PS3.10 (file format), as read by pydicom.

pydicom's own warnings and log lines may quote tag values, which may name a patient, so both are silenced
here; what went wrong is told by the skip's reason.
"""

from __future__ import annotations

import io
import json
import logging
import struct
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import SetupError
from tasks.atomic import write_atomic
from tasks.sources.base import Item, RawRequest, Reader, Sample, SkipItem, keyed_hash
from tasks.sources.labels import PLACEHOLDERS, plain_id
from tasks.sources.pictures import MIN_SIDE, by_own_maximum, decode_image, is_image_name, negative_flags
from tasks.sources.raw import RawTree, read_head, read_locator, split_locator

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset


# DICOM headers without pixels: who, which series, which slice; and files found by these instead of by name.
#
# Format: DICOM PS3.6 (tags) and PS3.10 (file format), as read by pydicom.
#
# The index of a tree is kept beside the prepared datasets, keyed hashes only, so that a large tree of
# renamed files is opened once.

logger = logging.getLogger(__name__)
TAGS = (
    *("SOPInstanceUID", "SeriesInstanceUID", "PatientID", "Modality", "SeriesDescription"),
    *("Rows", "Columns"),
)
PART_OF_FILE = 1 << 20
"""Headers end long before; what lies behind is pixels."""
LOG_EVERY = 10_000


@dataclass(frozen=True)
class DicomHeader:
    """What a file says of itself; texts are raw, so never logged."""

    instance: str
    series: str
    patient: str
    modality: str
    description: str
    sides: tuple[int, int]


def read_header(base: Path, locator: str) -> DicomHeader | None:
    """Return the header of a file or archive member; None for what is no readable DICOM file."""
    try:
        body = read_head(base, locator, PART_OF_FILE)
    except SkipItem:
        return None
    if body[128:132] != b"DICM":
        return None
    import pydicom

    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            data = pydicom.dcmread(io.BytesIO(body), stop_before_pixels=True, specific_tags=list(TAGS))
            texts = [str(data.get(name) or "").strip() for name in TAGS[:5]]
            sides = int(data.get("Rows") or 0), int(data.get("Columns") or 0)
            instance, series, patient, modality, description = texts
            return DicomHeader(instance, series, patient, modality, description, sides)
        except Exception:  # pydicom raises almost anything on damaged files
            return None


class HeaderIndex:
    """Files by SOP instance and series instance UID, read from their headers.

    Args:
        request: Whose key hashes, and where the index is kept.
        tree: The raw tree.
        names: Files of it to open.
    """

    def __init__(self, request: RawRequest, tree: RawTree, names: Iterable[str]) -> None:
        self._request = request
        self._by_instance: dict[int, str] = {}
        self._by_series: defaultdict[int, list[str]] = defaultdict(list)
        known, base = self._load(), request.base()
        opened = 0
        for name in names:
            locator = tree.locator(name)
            stamp = str(keyed_hash(request.key, f"{locator}\0{_stamp(base, locator)}"))
            if stamp not in known:
                header = read_header(base, locator)
                known[stamp] = (
                    [keyed_hash(request.key, uid) for uid in (header.instance, header.series)]
                    if header
                    else []
                )
                opened += 1
                if opened % LOG_EVERY == 0:
                    logger.info("%s: %d headers read", request.dataset.name, opened)
            if known[stamp]:
                instance, series = known[stamp]
                self._by_instance.setdefault(instance, name)
                self._by_series[series].append(name)
        if opened:
            self._save(known)

    def instance(self, uid: str) -> str | None:
        """Return the name of the file with that SOP instance UID."""
        return self._by_instance.get(keyed_hash(self._request.key, uid))

    def series(self, uid: str) -> list[str]:
        """Return the names of all files of a series."""
        return self._by_series.get(keyed_hash(self._request.key, uid), [])

    def _path(self) -> Path | None:
        folder = self._request.cache
        tree = keyed_hash(self._request.key, str(self._request.root().resolve()))
        return None if folder is None else folder / f".headers-{tree:016x}.json"

    def _load(self) -> dict[str, list[int]]:
        path = self._path()
        try:
            found = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
        except (OSError, ValueError):
            return {}
        whole = isinstance(found, dict) and all(isinstance(value, list) for value in found.values())
        return found if whole else {}

    def _save(self, known: dict[str, list[int]]) -> None:
        path = self._path()
        if path is None:
            return
        with suppress(OSError):  # a cache that cannot be written costs time only
            write_atomic(path, json.dumps(known).encode())


def _stamp(base: Path, locator: str) -> str:
    try:
        status = (base / split_locator(locator)[0]).stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


# What a compressed frame says of itself before anything is decoded.
#
# A decoder allocates what the codestream asks for, whatever the file around it declared. JPEG and JPEG-LS:
# frame header (SOF marker), ITU-T T.81 B.2.2 and T.87 C.2.2; JPEG 2000: SIZ marker, ITU-T T.800 A.5.1.

SOF_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
STANDALONE = frozenset({0x01, *range(0xD0, 0xDA)})
START_OF_SCAN = 0xDA
CODESTREAM = b"\xff\x4f\xff\x51"
SEARCHED = 4096
"""How far into a JP2 file the codestream must begin."""


@dataclass(frozen=True)
class FrameHeader:
    """Size and components of one frame."""

    rows: int
    columns: int
    components: int


def read_frame_header(frame: bytes) -> FrameHeader | None:
    """Return what a JPEG, JPEG-LS or JPEG 2000 frame declares; None for other data (RLE).

    Raises:
        ValueError: when it begins as one of them and has no whole header.
    """
    if frame[:3] == b"\xff\xd8\xff":
        return _jpeg(frame)
    place = frame.find(CODESTREAM, 0, SEARCHED)
    return _jpeg2000(frame, place) if place >= 0 else None


def _jpeg(frame: bytes) -> FrameHeader:
    place = 2
    while place + 10 <= len(frame) and frame[place] == 0xFF:
        marker = frame[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
        elif marker in STANDALONE:
            place += 2
        elif marker in SOF_MARKERS:
            rows, columns, components = struct.unpack_from(">HHB", frame, place + 5)
            return FrameHeader(rows, columns, components)
        elif marker == START_OF_SCAN:
            break
        else:
            place += 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
    raise ValueError("no frame header")


def _jpeg2000(frame: bytes, place: int) -> FrameHeader:
    try:
        right, bottom, left, top = struct.unpack_from(">IIII", frame, place + 8)
        (components,) = struct.unpack_from(">H", frame, place + 40)
    except struct.error:
        raise ValueError("no frame header") from None
    return FrameHeader(bottom - top, right - left, components)


MAX_PIXEL_BYTES = 256 << 20
"""A multi-frame ultrasound of 300 frames has about 100 MiB."""
MAX_PACKED_FRAME_BYTES = 64 << 20
"""Unpacked; RLE takes ten times that while it is decoded. A mammogram has 62 MiB."""
NEEDED = (
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
GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
DEFLATED = "1.2.840.10008.1.2.1.99"
DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
INTENSITY = "8 bits as stored; more by own maximum; DICOM: stored values (CT: HU + 1024) by own maximum"
CT_OFFSET = 1024
"""Added to Hounsfield units, so that air is 0 and nothing inside the field of view is negative."""


@dataclass(frozen=True)
class Dicom:
    """A decoded file: stored values and the few header facts that sources need.

    Attributes:
        values: ``(num_frames, height, width)`` stored values, or ``(num_frames, height, width, 3)`` RGB
            uint8.
        patient: Patient id, raw.
        series: Series instance UID.
        instance: SOP instance UID.
        modality: Two letters.
        spacing: Row and column spacing in mm, or None.
        inverted: MONOCHROME1: small values are white.
        rescale: Slope and intercept, or None when absent.
        flags: What is doubtful.
        laterality: R, L or B, empty when absent.
        orientation: Where rows lead to, L or R first, empty when absent.
        traits: Pairs (name, value) that must not tell the label: manufacturer, site, spacing ...
    """

    values: NDArray[np.generic]
    patient: str
    series: str
    instance: str
    modality: str
    spacing: tuple[float, float] | None
    inverted: bool
    rescale: tuple[float, float] | None
    flags: tuple[str, ...]
    traits: tuple[tuple[str, str], ...] = ()
    laterality: str = ""
    orientation: str = ""

    def known_patient(self) -> str:
        """Return the patient id, empty when it is absent or one that many patients share."""
        return "" if self.patient.casefold() in PLACEHOLDERS else self.patient


NO_PATIENT = "no patient id in the header: the split cannot be by patient"


def decode_dicom(body: bytes) -> Dicom:
    """Decode the bytes of one DICOM file.

    Raises:
        SkipItem: with a reason that names tags and syntaxes but no values.
        SetupError: when pydicom is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        way_out = "pip install 'isweep[medical]'"
        raise SetupError("DICOM files need pydicom", "not installed", way_out) from error
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = _parse(pydicom, body)
        _check_header(header)
        return _decoded(pydicom, header)


def _parse(pydicom: Any, body: bytes) -> FileDataset:
    if body[128:132] != b"DICM":
        raise SkipItem("no DICOM preamble")
    syntax = _transfer_syntax(body)
    if not syntax:
        raise SkipItem("no TransferSyntaxUID")
    if syntax == DEFLATED:
        # Inflated whole by pydicom before anything can be checked; none of these archives uses it.
        raise SkipItem("deflated transfer syntax")
    try:
        header: FileDataset = pydicom.dcmread(io.BytesIO(body))
        missing = [name for name in NEEDED if name not in header]
    except Exception:  # pydicom raises almost anything on damaged files, with values in the text
        raise SkipItem("damaged DICOM header") from None
    if missing:
        raise SkipItem(f"no {missing[0]}")
    return header


def _transfer_syntax(body: bytes) -> str:
    """Read TransferSyntaxUID from the file meta group, always explicit little endian, and nothing else."""
    place = 132
    while body[place : place + 2] == b"\x02\x00" and place + 12 <= len(body):
        is_long = body[place + 4 : place + 6] in (b"OB", b"UN", b"OW", b"SQ", b"UT")
        start, size = (place + 12, 4) if is_long else (place + 8, 2)
        length = int.from_bytes(body[start - size : start], "little")
        if body[place + 2 : place + 4] == b"\x10\x00":
            return body[start : start + length].rstrip(b"\0 ").decode("ascii", "replace")
        place = start + length
    return ""


def _check_header(header: FileDataset) -> None:
    """Check what is declared before any of it is believed."""
    try:
        rows, columns, samples = int(header.Rows), int(header.Columns), int(header.SamplesPerPixel)
        allocated, stored, high = int(header.BitsAllocated), int(header.BitsStored), int(header.HighBit)
        frames = int(header.get("NumberOfFrames") or 1)
        kind = str(header.PhotometricInterpretation)
        syntax = header.file_meta.TransferSyntaxUID
        size = len(header.PixelData)
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
    if not syntax.is_private and not syntax.is_transfer_syntax:
        raise SkipItem("unknown transfer syntax")
    if not syntax.is_private and not syntax.is_compressed:
        wanted = {declared + declared % 2}
        if kind == "YBR_FULL_422":
            wanted.add(declared * 2 // 3)
        if size not in wanted and size != declared:
            raise SkipItem(
                "less pixel data than declared" if size < declared else "more pixel data than declared"
            )
    if not syntax.is_private and syntax.is_compressed:
        if declared // frames > MAX_PACKED_FRAME_BYTES:
            raise SkipItem("too many pixels")
        _check_frames(header, FrameHeader(rows, columns, samples), frames)


def _check_frames(header: FileDataset, declared: FrameHeader, frames: int) -> None:
    """Refuse compressed frames whose own header asks the decoder for another image than was declared."""
    from pydicom.encaps import generate_frames

    try:
        for frame in generate_frames(header.PixelData, number_of_frames=frames):
            found = read_frame_header(frame)
            if found is not None and found != declared:
                raise SkipItem("a frame of another size than declared")
    except SkipItem:
        raise
    except Exception:
        raise SkipItem("damaged pixel data") from None


def _decoded(pydicom: Any, header: FileDataset) -> Dicom:
    try:
        values = pydicom.pixels.pixel_array(header)
    except (NotImplementedError, KeyError):
        raise SkipItem("unknown transfer syntax") from None
    except RuntimeError as error:
        raise SkipItem(_decoder_reason(header, error)) from None
    except Exception:
        raise SkipItem("damaged pixel data") from None
    colour = int(header.SamplesPerPixel) == 3
    if values.ndim == (3 if colour else 2):
        values = values[None]
    if not colour:
        values = _stored_bits(values, int(header.BitsStored), signed=int(header.PixelRepresentation) == 1)
    try:
        return Dicom(
            values=values,
            patient=str(header.get("PatientID") or "").strip(),
            series=str(header.get("SeriesInstanceUID") or ""),
            instance=str(header.get("SOPInstanceUID") or ""),
            modality=str(header.get("Modality") or ""),
            spacing=_spacing(header),
            inverted=str(header.PhotometricInterpretation) == "MONOCHROME1",
            rescale=_rescale(header),
            flags=_flags(header),
            traits=_traits(header),
            laterality=str(header.get("ImageLaterality") or header.get("Laterality") or ""),
            orientation=_orientation(header),
        )
    except SkipItem:
        raise
    except Exception:
        raise SkipItem("damaged DICOM header") from None


def _decoder_reason(header: FileDataset, error: RuntimeError) -> str:
    name = header.file_meta.TransferSyntaxUID.name
    if "plugins are missing dependencies" in str(error) or "missing" in str(error):
        return f"no decoder for {name}: pip install 'isweep[medical]'"
    return "damaged pixel data"


def _flags(header: FileDataset) -> tuple[str, ...]:
    flags = ["burnt-in annotation"] if header.get("BurnedInAnnotation") == "YES" else []
    kind = header.get("ImageType") or ()
    if "LOCALIZER" in [str(value).upper() for value in ([kind] if isinstance(kind, str) else kind)]:
        flags.append("localiser")
    return tuple(flags)


def _traits(header: FileDataset) -> tuple[tuple[str, str], ...]:
    """Return what a network could learn instead of the disease, as far as the header tells it."""
    spacing, rescale = _spacing(header), _rescale(header)
    found = {
        "manufacturer": header.get("Manufacturer"),
        "scanner model": header.get("ManufacturerModelName"),
        "site": header.get("InstitutionName"),
        "modality": header.get("Modality"),
        "series description": header.get("SeriesDescription"),
        "pixel spacing": spacing and f"{spacing[0]:.3g} {spacing[1]:.3g}",
        "rescale slope": rescale and f"{rescale[0]:.6g}",
    }
    return tuple((name, str(value or "").strip()) for name, value in found.items())


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


def _spacing(header: FileDataset) -> tuple[float, float] | None:
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        value = header.get(name)
        if value is not None and len(value) == 2:
            return float(value[0]), float(value[1])
    return None


def _orientation(header: FileDataset) -> str:
    """Return the direction of rows: PatientOrientation, PS3.3 C.7.6.1.1.1."""
    value = header.get("PatientOrientation")
    return str(value[0]) if value is not None and not isinstance(value, str) and len(value) == 2 else ""


def _rescale(header: FileDataset) -> tuple[float, float] | None:
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    if slope is None or intercept is None:
        return None
    if float(slope) == 0:
        raise SkipItem("rescale slope 0")
    return float(slope), float(intercept)


def frames_to_pixels(dicom: Dicom) -> Iterator[tuple[NDArray[np.uint8], tuple[str, ...], tuple[str, ...]]]:
    """Yield each frame as uint8 pixels, with conversions and flags.

    Stored values by the frame's own maximum, the study's rule; of CT, Hounsfield units plus 1024 are scaled,
    so that signed files and those with an intercept look alike. Display windows are never applied.
    MONOCHROME1 is inverted.
    """
    for frame in dicom.values:
        notes: list[str] = []
        flags = list(dicom.flags)
        values: NDArray[np.generic] = frame
        if dicom.modality == "CT":
            if dicom.rescale is None:
                flags.append("CT without rescale slope and intercept")
            else:
                slope, intercept = dicom.rescale
                values = frame.astype(np.float32) * np.float32(slope) + np.float32(intercept + CT_OFFSET)
        else:
            flags.extend(negative_flags(values))
        if values.ndim == 3:
            notes.append("colour DICOM")
        pixels, note = by_own_maximum(values)
        if dicom.inverted:
            pixels = 255 - pixels
            notes.append("MONOCHROME1 inverted")
        yield pixels, (*notes, *([note] if note else [])), tuple(flags)


def is_dicom_name(name: str) -> bool:
    """Tell whether a name looks like a DICOM file's."""
    return name.lower().endswith(DICOM_ENDINGS)


def is_single_image_name(name: str) -> bool:
    """Tell whether a name looks like that of a picture or a DICOM file."""
    return is_image_name(name) or is_dicom_name(name)


def read_single(base: Path, item: Item) -> list[Sample]:
    """Read the one image in an item's file.

    A DICOM file without a group of its item gets the header's patient, whose id may be spelt in several ways,
    and a flag when there is none.

    Raises:
        SkipItem: for what is no image, damaged, too large, or holds several frames.
    """
    body = read_locator(base, item.locator)
    if body[128:132] != b"DICM" and not is_dicom_name(item.locator):
        return [decode_image(body)]
    dicom = decode_dicom(body)
    if len(dicom.values) != 1:
        raise SkipItem("several frames")
    known = dicom.known_patient()
    lacking = () if known or item.group else (NO_PATIENT,)
    patient = plain_id(known)
    return [
        Sample(
            pixels,
            group="" if item.group else patient,
            conversions=notes,
            flags=(*flags, *lacking),
            traits=dicom.traits,
            patient=patient,
        )
        for pixels, notes, flags in frames_to_pixels(dicom)
    ]


def single_reader(request: RawRequest) -> Reader:
    """Return a reader of files with one image each."""
    base = request.base()

    return lambda item: [sample.with_traits(item.details) for sample in read_single(base, item)]
