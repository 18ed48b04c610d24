"""NIfTI volumes that are refused (B58 to B66), and what is changed in good ones."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tasks.sources.base import SkipItem
from tasks.sources.nifti import MAX_VOXELS, Volume, decode_nifti
from tests.raw_trees.pictures import save_nifti

VALUES = np.random.default_rng(0).integers(1, 1000, (6, 7, 8)).astype(np.int16)


def read_nifti(path: Path, max_voxels: int = MAX_VOXELS) -> Volume:
    return decode_nifti(path.read_bytes(), max_voxels=max_voxels)


def test_orientations_are_brought_to_one_and_recorded(tmp_path):
    straight = read_nifti(save_nifti(tmp_path / "a.nii.gz", VALUES))
    flipped = read_nifti(save_nifti(tmp_path / "b.nii", VALUES[::-1], np.diag((-1, 1, 1, 1))))
    np.testing.assert_array_equal(straight.values, flipped.values)
    assert flipped.conversions == ("orientation LAS to RAS",)


def test_guessed_orientation_and_odd_voxels_are_flagged(tmp_path):
    image = nibabel.Nifti1Image(VALUES, None)
    image.header.set_zooms((1, 1, 3))
    nibabel.save(image, tmp_path / "a.nii")
    flags = read_nifti(tmp_path / "a.nii").flags
    assert set(flags) == {"orientation guessed: both form codes are 0", "voxels not cubic"}


Change = Callable[[bytes], bytes]


def declared(*shape: int) -> Change:
    sizes = np.array([len(shape), *shape, *[1] * (7 - len(shape))], "<i2").tobytes()
    return lambda body: body[:40] + sizes + body[56:]


def affine_of(value: float) -> Change:
    return lambda body: body[:280] + np.full(12, value, "<f4").tobytes() + body[328:]


SKIPPED: dict[str, tuple[np.ndarray, Change, str]] = {
    "B60 truncated": (VALUES, lambda body: body[:150], "no NIfTI|damaged"),
    "B60 empty": (VALUES, lambda body: b"", "no NIfTI volume"),
    "B60 text": (VALUES, lambda body: b"hello" * 200, "no NIfTI volume"),
    "B61 lying header": (VALUES, declared(30_000, 30_000, 4, 3), "not a 3-D"),
    "B61 lying 3-D header": (VALUES, declared(30_000, 30_000, 4), "too many voxels"),
    "B63 4-D": (np.stack([VALUES] * 2, -1), bytes, "not a 3-D volume"),
    "complex": (VALUES.astype(np.complex64), bytes, "volume of real numbers"),
    "B63 2-D": (VALUES[0], bytes, "not a 3-D volume"),
    "axis of no length": (VALUES, affine_of(0.0), "no orientation in the header"),
    "NaN affine": (VALUES, affine_of(np.nan), "no orientation in the header"),
    "B64 NaN": (np.full((4, 4, 4), np.nan, np.float32), bytes, "values not finite"),
}


@pytest.mark.parametrize("name", SKIPPED)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_volume_that_cannot_be_used_is_skipped_with_its_reason(tmp_path, name, ending):
    values, change, reason = SKIPPED[name]
    body = change(save_nifti(tmp_path / "x.nii", values).read_bytes())
    path = tmp_path / f"y{ending}"
    path.write_bytes(gzip.compress(body) if ending == ".nii.gz" else body)
    with pytest.raises(SkipItem, match=reason):
        read_nifti(path)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_cut_gzip_file_is_skipped(tmp_path, share):
    path = save_nifti(tmp_path / "x.nii.gz", VALUES)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(SkipItem, match=r"no NIfTI|damaged"):
        read_nifti(path)


def test_a_file_is_unpacked_by_its_first_bytes_whatever_its_ending(tmp_path):
    """A browser may unpack a file and leave its ending."""
    for name, saved_as in (("x.nii.gz", "x.nii"), ("y.nii", "y.nii.gz")):
        body = save_nifti(tmp_path / saved_as, VALUES).read_bytes()
        (tmp_path / name).write_bytes(body)
        np.testing.assert_array_equal(read_nifti(tmp_path / name).values, VALUES)


def test_a_single_volume_in_four_dimensions_is_read(tmp_path):
    path = save_nifti(tmp_path / "x.nii", VALUES[..., None])
    np.testing.assert_array_equal(read_nifti(path).values, VALUES)
