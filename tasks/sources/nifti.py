"""NIfTI volumes: check the declared size first, bring every file to one orientation, skip what is
not 3-D.

Format: NIfTI-1.1 and NIfTI-2 (``nifti1.h``, ``nifti2.h``: header and extensions), as read by
nibabel.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import SetupError
from tasks.sources.base import Item, RawRequest, Reader, Sample, SkipItem
from tasks.sources.pictures import by_own_maximum
from tasks.sources.raw import gunzipped, read_locator

MAX_VOXELS = 1 << 26
"""64 million voxels, 256 slices of 512x512: 256 MiB as float32. The header is believed only up to
here."""
MAX_RAW_BYTES = 256 << 20
MAX_UNPACKED = MAX_RAW_BYTES + (8 << 20)
"""A volume with its header and extensions; a bomb behind one is cut off."""
KINDS = {
    **dict.fromkeys((b"\x5c\x01\0\0", b"\0\0\x01\x5c"), "Nifti1Image"),
    **dict.fromkeys((b"\x1c\x02\0\0", b"\0\0\x02\x1c"), "Nifti2Image"),
}
"""Size of a header, in either byte order -> nibabel's class."""
VOLUME_INTENSITY = (
    "clipped to 0.1 and 99.9 percentiles of the volume, then each slice by its own maximum"
)
SLICES_PER_VOLUME = 10


@dataclass(frozen=True)
class Volume:
    """A volume ``(right, anterior, superior)``, its voxels' places in mm, what was done, what is
    doubtful.
    """

    values: NDArray[np.float32]
    affine: NDArray[np.float64]
    conversions: tuple[str, ...]
    flags: tuple[str, ...]


def decode_nifti(body: bytes, *, max_voxels: int = MAX_VOXELS) -> Volume:
    """Decode a ``.nii`` or ``.nii.gz`` file with one finite 3-D volume of known orientation."""
    try:
        import nibabel
    except ImportError as error:
        way_out = "pip install 'isweep[medical]'"
        raise SetupError("NIfTI files need nibabel", "not installed", way_out) from error
    logging.getLogger("nibabel").setLevel(logging.CRITICAL + 1)
    stream = io.BytesIO(gunzipped(body, MAX_UNPACKED))
    kind = KINDS.get(stream.read(4))
    if kind is None:
        raise SkipItem("no NIfTI volume")
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
        if len(shape) != 3 or header.get_data_dtype().kind not in "uif":
            raise SkipItem("not a 3-D volume of real numbers")
        voxels = int(np.prod(shape, dtype=object))
        if (
            voxels > max_voxels
            or voxels * header.get_data_dtype().itemsize > MAX_RAW_BYTES
            or min(shape) < 1
        ):
            raise SkipItem("too many voxels")
        notes, flags = _notes(image)
        try:
            canonical = nibabel.as_closest_canonical(image)
            values = np.asarray(canonical.dataobj, dtype=np.float32)
        except Exception:
            raise SkipItem("damaged volume") from None
    if not np.isfinite(values).all():
        raise SkipItem("values not finite")
    if not values.any():
        notes = (*notes, "empty volume")
    return Volume(values, np.asarray(canonical.affine, dtype=np.float64), notes, flags)


def intensity_range(values: NDArray[np.float32]) -> NDArray[np.floating]:
    """Return the 0.1 and 99.9 percentiles, where the study clips BraTS; a constant volume is a
    SkipItem.
    """
    found: NDArray[np.floating] = np.percentile(values, (0.1, 99.9))
    if found[1] <= found[0]:
        raise SkipItem("constant volume")
    return found


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


def is_nifti_name(name: str) -> bool:
    """Tell whether a name looks like a NIfTI volume's."""
    return name.lower().endswith((".nii", ".nii.gz"))


def volume_reader(request: RawRequest) -> Reader:
    """Return a reader of volumes: the axial slice that an item names first, or ten of the middle
    half.
    """
    base = request.base()

    def read(item: Item) -> Iterator[Sample]:
        volume = decode_nifti(read_locator(base, item.locator))
        (low, high), (wanted,) = intensity_range(volume.values), item.details
        depth = volume.values.shape[2]
        if isinstance(wanted, int) and wanted >= depth:
            raise SkipItem("slice beyond the volume")
        middle = np.linspace(depth / 4, 3 * depth / 4, SLICES_PER_VOLUME, endpoint=False)
        for level in [wanted] if isinstance(wanted, int) else np.unique(middle.astype(int)):
            plane = np.clip(volume.values[:, :, level], low, high) - low
            # (right, anterior) turned so that the front is up, as radiologists look at it.
            pixels, note = by_own_maximum(plane.T[::-1, ::-1])
            yield Sample(pixels, conversions=(*volume.conversions, *note), flags=volume.flags)

    return read
