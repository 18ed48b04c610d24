"""NIfTI volumes: check the declared size first, bring every file to one orientation, skip what is not 3-D."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import SetupError
from tasks.sources.base import SkipItem

MAX_VOXELS = 1 << 27
"""128 million voxels: 512 MiB as float32. The header is believed only up to here."""


@dataclass(frozen=True)
class Volume:
    """``values``: ``(right, anterior, superior)`` float32, axes in nibabel's canonical order."""

    values: NDArray[np.float32]
    conversions: tuple[str, ...]
    flags: tuple[str, ...]


def read_nifti(path: Path) -> Volume:
    """Read a 3-D volume.

    Raises:
        SkipItem: for damage, other dimensions, a declared size beyond the limit, NaN, or zeros only.
        SetupError: when nibabel is not installed.
    """
    try:
        import nibabel
    except ImportError as error:
        raise SetupError(
            "NIfTI files need nibabel", "not installed", "pip install 'isweep[medical]'"
        ) from error
    logging.getLogger("nibabel").setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = nibabel.load(path)
            header, shape = image.header, tuple(image.shape)
        except Exception:  # nibabel raises whatever its readers do
            raise SkipItem("no NIfTI volume") from None
        if not isinstance(image, nibabel.Nifti1Image):
            raise SkipItem("no NIfTI volume")
        if len(shape) == 4 and shape[3] == 1:
            image, shape = nibabel.squeeze_image(image), shape[:3]
        if len(shape) != 3 or header.get_data_dtype().fields:
            raise SkipItem("not a 3-D volume of numbers")
        if int(np.prod(shape, dtype=object)) > MAX_VOXELS or min(shape) < 1:
            raise SkipItem("too many voxels")
        notes, flags = _notes(image)
        try:
            # A gzip stream is read only as far as the declared size, so a bomb behind it never unpacks.
            values = np.asarray(nibabel.as_closest_canonical(image).dataobj, dtype=np.float32)
        except Exception:
            raise SkipItem("damaged volume") from None
    if not np.isfinite(values).all():
        raise SkipItem("values not finite")
    if not values.any():
        notes = (*notes, "empty volume")
    return Volume(values, notes, flags)


def _notes(image: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    from nibabel import aff2axcodes

    notes, flags = [], []
    codes = "".join(aff2axcodes(image.affine))
    if codes != "RAS":
        notes.append(f"orientation {codes} to RAS")
    header = image.header
    if int(header["qform_code"]) == 0 and int(header["sform_code"]) == 0:
        flags.append("orientation guessed: both form codes are 0")
    sizes = [float(size) for size in header.get_zooms()[:3]]
    if max(sizes) > 1.01 * min(sizes):
        flags.append("voxels not cubic")
    return tuple(notes), tuple(flags)
