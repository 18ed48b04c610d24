"""Read axial slices of NIfTI volumes in a standard orientation.

The declared size of a volume is checked before its voxels are decoded. nibabel reads the
formats NIfTI-1.1 and NIfTI-2. ``nifti1.h`` and ``nifti2.h`` define their headers and
extensions.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from search_spaces.errors import SetupError
from tasks.array_types import Float32Array, Float64Array, FloatArray
from tasks.sources.base import Item, RawRequest, Reader, Sample, SkipItem
from tasks.sources.pictures import scale_by_image_maximum
from tasks.sources.raw import gunzip, read_locator

MAX_VOXELS = 1 << 26
"""Largest number of voxels of a volume: 256 slices of 512 x 512, or 256 MiB as float32."""
MAX_RAW_BYTES = 256 << 20
"""Largest size in bytes of the voxels as stored."""
MAX_UNPACKED_BYTES = MAX_RAW_BYTES + (8 << 20)
"""Largest number of bytes to unpack: the voxels, the header and extensions. A gzip bomb may
contain far more bytes, which are not read."""
NIBABEL_CLASSES = {
    b"\x5c\x01\0\0": "Nifti1Image",
    b"\0\0\x01\x5c": "Nifti1Image",
    b"\x1c\x02\0\0": "Nifti2Image",
    b"\0\0\x02\x1c": "Nifti2Image",
}
"""First four bytes of a file -> nibabel's class for its format. The first four bytes are the
size of the header, in either byte order."""
CLIP_PERCENTILES = (0.1, 99.9)
"""Percentiles of a volume. Values outside them are clipped, as in the study's code for BraTS."""
VOLUME_INTENSITY = (
    "clipped to 0.1 and 99.9 percentiles of the volume, then each slice by its own maximum"
)
MAX_VOXEL_ASPECT = 1.01
"""A voxel counts as a cube if its longest side is at most this number times its shortest side."""
SLICES_PER_VOLUME = 10
"""Number of slices that are read if a table chooses no slice."""


@dataclass(frozen=True)
class Volume:
    """A decoded volume. Its axes run to the patient's right, to the front and up.

    Attributes:
        values: ``(right, anterior, superior)`` voxels, scaled as the header states.
        affine: ``(4, 4)`` map from voxel indices to positions in mm.
        conversions: Changes to the stored volume, in words.
        flags: Possible problems of the file, in words.
    """

    values: Float32Array
    affine: Float64Array
    conversions: tuple[str, ...]
    flags: tuple[str, ...]


def is_nifti_name(name: str) -> bool:
    """Return whether a file name has the extension of a NIfTI volume."""
    return name.lower().endswith((".nii", ".nii.gz"))


def decode_nifti(body: bytes, *, max_voxels: int = MAX_VOXELS) -> Volume:
    """Decode a ``.nii`` or ``.nii.gz`` file with one 3-D volume.

    Args:
        body: The bytes of the file, gzipped or not.
        max_voxels: Largest number of voxels that the header may declare.

    Raises:
        SkipItem: The file is damaged, too large or not a 3-D volume, has no orientation, or
            has values that are not finite.
        SetupError: nibabel is not installed.
    """
    try:
        import nibabel
    except ImportError as error:
        raise SetupError(
            "nibabel, which reads NIfTI files, is not installed",
            hint="Run `pip install 'isweep[medical]'`",
        ) from error
    logging.getLogger("nibabel").setLevel(logging.CRITICAL + 1)
    stream = io.BytesIO(gunzip(body, MAX_UNPACKED_BYTES))
    class_name = NIBABEL_CLASSES.get(stream.read(4))
    if class_name is None:
        raise SkipItem("no NIfTI volume")
    stream.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = getattr(nibabel, class_name).from_stream(stream)
            shape = tuple(image.shape)
        except Exception:  # for damaged files, nibabel may raise any type of exception
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
    """Check the shape and type in a header, before voxels are decoded.

    Raises:
        SkipItem: The volume is not 3-D, not of real numbers, or too large.
    """
    if len(shape) != 3 or dtype.kind not in "uif":
        raise SkipItem("not a 3-D volume of real numbers")
    num_voxels = int(np.prod(shape, dtype=object))  # as a Python integer, which cannot overflow
    is_too_large = num_voxels > max_voxels or num_voxels * dtype.itemsize > MAX_RAW_BYTES
    if is_too_large or min(shape) < 1:
        raise SkipItem("too many voxels")


def _axis_codes(image: Any) -> str:
    """Return the direction of each axis, such as ``RAS`` for right, anterior, superior.

    Raises:
        SkipItem: The header states no orientation.
    """
    from nibabel import aff2axcodes

    if np.isfinite(image.affine).all():
        codes = aff2axcodes(image.affine)
        if None not in codes:  # None is the code of an axis of length 0
            return "".join(codes)
    raise SkipItem("no orientation in the header")


def _doubts(header: Any) -> tuple[str, ...]:
    """Return flags for a volume without a stated orientation, and for voxels that are not cubes."""
    flags = []
    if int(header["qform_code"]) == 0 and int(header["sform_code"]) == 0:
        flags.append("orientation guessed: both form codes are 0")
    voxel_sides = [float(side) for side in header.get_zooms()[:3]]
    if max(voxel_sides) > MAX_VOXEL_ASPECT * min(voxel_sides):
        flags.append("voxels not cubic")
    return tuple(flags)


def intensity_range(values: Float32Array) -> FloatArray:
    """Return the clipping range of a volume: its 0.1 and 99.9 percentiles.

    Raises:
        SkipItem: The two percentiles are equal, so almost all voxels have the same value.
    """
    limits: FloatArray = np.percentile(values, CLIP_PERCENTILES)
    if limits[1] <= limits[0]:
        raise SkipItem("constant volume")
    return limits


def volume_reader(request: RawRequest) -> Reader:
    """Return a reader of axial slices as uint8 images in [0, 255].

    An item's only detail is the index of its slice. If the index is None, ten slices are read,
    at equal distances in the middle half of the volume.
    """
    base = request.base()

    def read(item: Item) -> Iterator[Sample]:
        volume = decode_nifti(read_locator(base, item.locator))
        low, high = intensity_range(volume.values)
        (chosen_level,) = item.details
        depth = volume.values.shape[2]
        if not isinstance(chosen_level, int):
            middle = np.linspace(depth / 4, 3 * depth / 4, SLICES_PER_VOLUME, endpoint=False)
            levels = np.unique(middle.astype(int)).tolist()
        elif chosen_level < depth:
            levels = [chosen_level]
        else:
            raise SkipItem("slice beyond the volume")
        for level in levels:
            plane = np.clip(volume.values[:, :, level], low, high) - low
            # Rotate the slice so that the patient's front is up, as radiologists view slices.
            pixels, scaling = scale_by_image_maximum(plane.T[::-1, ::-1])
            yield Sample(pixels, conversions=(*volume.conversions, *scaling), flags=volume.flags)

    return read
