"""NIfTI volumes: check the declared size first, bring every file to one orientation, skip what is not 3-D.

Format: NIfTI-1.1 and NIfTI-2 (``nifti1.h``, ``nifti2.h``: header and extensions), as read by nibabel.
"""

from __future__ import annotations

import gzip
import io
import logging
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import SetupError
from tasks.sources.base import SkipItem

MAX_VOXELS = 1 << 26
"""64 million voxels, 256 slices of 512x512: 256 MiB as float32. The header is believed only up to here."""
MAX_RAW_BYTES = 256 << 20
MAX_EXTENSION = 4 << 20


@dataclass(frozen=True)
class Volume:
    """A volume in nibabel's canonical order of axes.

    Attributes:
        values: ``(right, anterior, superior)``, float32.
        affine: Where its voxels are, in mm.
        conversions: What was done to make it so.
        flags: What is doubtful.
    """

    values: NDArray[np.float32]
    affine: NDArray[np.float64]
    conversions: tuple[str, ...]
    flags: tuple[str, ...]


def decode_nifti(body: bytes, *, packed: bool, max_voxels: int = MAX_VOXELS) -> Volume:
    """Decode the bytes of a ``.nii`` or (``packed``) ``.nii.gz`` file with one 3-D volume.

    Raises:
        SkipItem: for damage, other dimensions, a declared size beyond the limit, no orientation, NaN, or only
            zeros.
        SetupError: when nibabel is not installed.
    """
    try:
        import nibabel
    except ImportError as error:
        raise SetupError(
            "NIfTI files need nibabel", "not installed", "pip install 'isweep[medical]'"
        ) from error
    logging.getLogger("nibabel").setLevel(logging.CRITICAL + 1)
    stream: Any = gzip.GzipFile(fileobj=io.BytesIO(body)) if packed else io.BytesIO(body)
    kind = _checked_kind(stream)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            stream.seek(0)
            image = getattr(nibabel, kind).from_stream(stream)
            header, shape = image.header, tuple(image.shape)
        except Exception:  # nibabel raises whatever its readers do
            raise SkipItem("no NIfTI volume") from None
        if len(shape) == 4 and shape[3] == 1:
            image, shape = nibabel.squeeze_image(image), shape[:3]
        if len(shape) != 3 or header.get_data_dtype().fields:
            raise SkipItem("not a 3-D volume of numbers")
        voxels = int(np.prod(shape, dtype=object))
        if voxels > max_voxels or voxels * header.get_data_dtype().itemsize > MAX_RAW_BYTES or min(shape) < 1:
            raise SkipItem("too many voxels")
        notes, flags = _notes(image)
        try:
            # A gzip stream is read only as far as the declared size, so a bomb behind it never unpacks.
            canonical = nibabel.as_closest_canonical(image)
            values = np.asarray(canonical.dataobj, dtype=np.float32)
        except Exception:
            raise SkipItem("damaged volume") from None
    if not np.isfinite(values).all():
        raise SkipItem("values not finite")
    if not values.any():
        notes = (*notes, "empty volume")
    return Volume(values, np.asarray(canonical.affine, dtype=np.float64), notes, flags)


def _checked_kind(stream: IO[bytes]) -> str:
    """Return nibabel's class for a header, after its extensions were found to be no larger than they may.

    nibabel reads an extension as long as it says it is; one may say two GiB.
    """
    try:
        head = stream.read(544)
        order = "<" if head[:4] in (b"\x5c\x01\0\0", b"\x1c\x02\0\0") else ">"
        (size,) = struct.unpack_from(order + "i", head)
        kind, place, code = {348: ("Nifti1Image", 108, "f"), 540: ("Nifti2Image", 168, "q")}[size]
        (start,) = struct.unpack_from(order + code, head, place)
        if not 0 <= start <= size + MAX_EXTENSION:
            raise SkipItem("NIfTI extensions too large")
        stream.seek(size)
        place, flag = size + 4, stream.read(4)
        while flag[:1] not in (b"\0", b"") and place + 16 <= start:
            (length,) = struct.unpack(order + "i", stream.read(4))
            if not 16 <= length <= start - place:
                raise SkipItem("damaged NIfTI extensions")
            place += length
            stream.seek(place)
    except (KeyError, struct.error, OSError, EOFError, zlib.error, ValueError):
        raise SkipItem("no NIfTI volume") from None
    return kind


def _notes(image: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    from nibabel import aff2axcodes

    notes, flags = [], []
    if not np.isfinite(image.affine).all():
        raise SkipItem("no orientation in the header")
    axes = aff2axcodes(image.affine)
    if None in axes:  # an axis of length 0
        raise SkipItem("no orientation in the header")
    codes = "".join(axes)
    if codes != "RAS":
        notes.append(f"orientation {codes} to RAS")
    header = image.header
    if int(header["qform_code"]) == 0 and int(header["sform_code"]) == 0:
        flags.append("orientation guessed: both form codes are 0")
    sizes = [float(size) for size in header.get_zooms()[:3]]
    if max(sizes) > 1.01 * min(sizes):
        flags.append("voxels not cubic")
    return tuple(notes), tuple(flags)
