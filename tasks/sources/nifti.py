"""NIfTI volumes: check the declared size, bring every file to one orientation, read slices.

Format: NIfTI-1.1 and NIfTI-2 (``nifti1.h``, ``nifti2.h``: header and extensions), as read by
nibabel.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import SetupError
from tasks.sources.base import Item, RawRequest, Reader, Sample, SkipItem
from tasks.sources.pictures import by_own_maximum
from tasks.sources.raw import gunzipped, read_locator

MAX_VOXELS = 1 << 26
"""Voxels that a header may declare: 256 slices of 512 x 512, which are 256 MiB as float32."""
MAX_RAW_BYTES = 256 << 20
"""Bytes of the voxels as stored."""
MAX_UNPACKED_BYTES = MAX_RAW_BYTES + (8 << 20)
"""Bytes to unpack: a volume with its header and extensions. The rest of a gzip bomb is not read."""
NIBABEL_CLASSES = {
    b"\x5c\x01\0\0": "Nifti1Image",
    b"\0\0\x01\x5c": "Nifti1Image",
    b"\x1c\x02\0\0": "Nifti2Image",
    b"\0\0\x02\x1c": "Nifti2Image",
}
"""A file's first four bytes, its header's size in either byte order, and nibabel's class for it."""
CLIP_PERCENTILES = (0.1, 99.9)
"""Values outside these percentiles of a volume are clipped, as in the study's BraTS extractor."""
VOLUME_INTENSITY = (
    "clipped to 0.1 and 99.9 percentiles of the volume, then each slice by its own maximum"
)
MAX_VOXEL_ASPECT = 1.01
"""Longest divided by shortest side of a voxel up to which it counts as a cube."""
SLICES_PER_VOLUME = 10


@dataclass(frozen=True)
class Volume:
    """A decoded volume, its first axis to the right, its second to the front, its third up.

    Attributes:
        values: ``(right, anterior, superior)`` voxels as stored, scaled as the header says.
        affine: ``(4, 4)`` from voxel indices to positions in mm.
        conversions: Names of what was changed.
        flags: Names of doubts about the file.
    """

    values: NDArray[np.float32]
    affine: NDArray[np.float64]
    conversions: tuple[str, ...]
    flags: tuple[str, ...]


def is_nifti_name(name: str) -> bool:
    """Return whether a file name ends as those of NIfTI volumes do."""
    return name.lower().endswith((".nii", ".nii.gz"))


def decode_nifti(body: bytes, *, max_voxels: int = MAX_VOXELS) -> Volume:
    """Decode a ``.nii`` or ``.nii.gz`` file with one finite 3-D volume of known orientation.

    Args:
        body: The bytes of the file, gzipped or not.
        max_voxels: The number of voxels that its header may declare.

    Raises:
        SkipItem: The file is damaged, too large, or holds something else.
        SetupError: nibabel is not installed.
    """
    try:
        import nibabel
    except ImportError as error:
        raise SetupError(
            "NIfTI files need nibabel, which is not installed",
            hint="Run `pip install 'isweep[medical]'`",
        ) from error
    logging.getLogger("nibabel").setLevel(logging.CRITICAL + 1)
    stream = io.BytesIO(gunzipped(body, MAX_UNPACKED_BYTES))
    class_name = NIBABEL_CLASSES.get(stream.read(4))
    if class_name is None:
        raise SkipItem("no NIfTI volume")
    stream.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = getattr(nibabel, class_name).from_stream(stream)
            shape = tuple(image.shape)
        except Exception:  # nibabel raises whatever its readers do
            raise SkipItem("no NIfTI volume") from None
        if len(shape) == 4 and shape[3] == 1:
            image = nibabel.squeeze_image(image)
            shape = shape[:3]
        _check_declared_voxels(shape, image.header.get_data_dtype(), max_voxels)
        axes = _axis_codes(image)
        flags = _doubts(image.header)
        try:
            canonical = nibabel.as_closest_canonical(image)
            values = np.asarray(canonical.dataobj, dtype=np.float32)
        except Exception:
            raise SkipItem("damaged volume") from None
    if not np.isfinite(values).all():
        raise SkipItem("values not finite")
    conversions = []
    if axes != "RAS":
        conversions.append(f"orientation {axes} to RAS")
    if not values.any():
        conversions.append("empty volume")
    affine = np.asarray(canonical.affine, dtype=np.float64)
    return Volume(values, affine, tuple(conversions), flags)


def _check_declared_voxels(
    shape: Sequence[int], dtype: np.dtype[np.generic], max_voxels: int
) -> None:
    """Check the shape and type in a header, before voxels are decoded."""
    if len(shape) != 3 or dtype.kind not in "uif":
        raise SkipItem("not a 3-D volume of real numbers")
    num_voxels = int(np.prod(shape, dtype=object))  # exact, whatever the header claims
    is_too_large = num_voxels > max_voxels or num_voxels * dtype.itemsize > MAX_RAW_BYTES
    if is_too_large or min(shape) < 1:
        raise SkipItem("too many voxels")


def _axis_codes(image: Any) -> str:
    """Return where each axis leads, such as ``RAS`` for right, anterior, superior."""
    from nibabel import aff2axcodes

    if np.isfinite(image.affine).all():
        codes = aff2axcodes(image.affine)
        if None not in codes:  # None stands for an axis of length 0
            return "".join(codes)
    raise SkipItem("no orientation in the header")


def _doubts(header: Any) -> tuple[str, ...]:
    flags = []
    if int(header["qform_code"]) == 0 and int(header["sform_code"]) == 0:
        flags.append("orientation guessed: both form codes are 0")
    voxel_sides = [float(side) for side in header.get_zooms()[:3]]
    if max(voxel_sides) > MAX_VOXEL_ASPECT * min(voxel_sides):
        flags.append("voxels not cubic")
    return tuple(flags)


def intensity_range(values: NDArray[np.float32]) -> NDArray[np.floating]:
    """Return the two values that a volume is clipped to: its 0.1 and 99.9 percentiles.

    Raises:
        SkipItem: The two are equal, so the volume shows nothing.
    """
    limits: NDArray[np.floating] = np.percentile(values, CLIP_PERCENTILES)
    if limits[1] <= limits[0]:
        raise SkipItem("constant volume")
    return limits


def volume_reader(request: RawRequest) -> Reader:
    """Return a reader of axial slices as uint8 images in [0, 255].

    An item's first detail is the index of its slice. If that is None, ten slices are read, evenly
    spread over the middle half of the volume.
    """
    base = request.base()

    def read(item: Item) -> Iterator[Sample]:
        volume = decode_nifti(read_locator(base, item.locator))
        low, high = intensity_range(volume.values)
        (level,) = item.details
        depth = volume.values.shape[2]
        if not isinstance(level, int):
            middle = np.linspace(depth / 4, 3 * depth / 4, SLICES_PER_VOLUME, endpoint=False)
            levels = np.unique(middle.astype(int)).tolist()
        elif level < depth:
            levels = [level]
        else:
            raise SkipItem("slice beyond the volume")
        for level in levels:
            plane = np.clip(volume.values[:, :, level], low, high) - low
            # (right, anterior) turned so that the front is up, as radiologists look at it.
            pixels, scaling = by_own_maximum(plane.T[::-1, ::-1])
            yield Sample(pixels, conversions=(*volume.conversions, *scaling), flags=volume.flags)

    return read
