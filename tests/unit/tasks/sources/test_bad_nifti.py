"""Bad NIfTI volumes (B58 to B66)."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tasks.sources.base import SkipItem
from tasks.sources.nifti import MAX_VOXELS, Volume, decode_nifti

VALUES = np.random.default_rng(0).integers(1, 1000, (6, 7, 8)).astype(np.int16)


def read_nifti(path: Path, max_voxels: int = MAX_VOXELS) -> Volume:
    return decode_nifti(path.read_bytes(), max_voxels=max_voxels)


def save(path: Path, values: np.ndarray = VALUES, affine: np.ndarray | None = None, **header) -> Path:
    image = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def rewrite(path: Path, change) -> Path:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        body = bytearray(file.read())
    change(body)
    with opened(path, "wb") as file:
        file.write(body)
    return path


def test_orientations_are_brought_to_one_and_recorded(tmp_path):
    straight = read_nifti(save(tmp_path / "a.nii.gz"))
    flipped = read_nifti(save(tmp_path / "b.nii", VALUES[::-1], np.diag((-1, 1, 1, 1))))
    np.testing.assert_array_equal(straight.values, flipped.values)
    assert flipped.conversions == ("orientation LAS to RAS",)


def test_guessed_orientation_and_odd_voxels_are_flagged(tmp_path):
    image = nibabel.Nifti1Image(VALUES, None)
    image.header.set_zooms((1, 1, 3))
    nibabel.save(image, tmp_path / "a.nii")
    assert set(read_nifti(tmp_path / "a.nii").flags) == {
        "orientation guessed: both form codes are 0",
        "voxels not cubic",
    }


def declare(*shape: int):
    def change(body: bytearray) -> None:
        body[40:56] = np.array([len(shape), *shape, *[1] * (7 - len(shape))], "<i2").tobytes()[:16]

    return change


def set_affine(value: float):
    def change(body: bytearray) -> None:
        body[280:328] = np.full(12, value, "<f4").tobytes()

    return change


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("B60 truncated", lambda p: p.write_bytes(save(p).read_bytes()[:150]), "no NIfTI|damaged"),
        ("B60 empty", lambda p: p.write_bytes(b""), "no NIfTI volume"),
        ("B60 text", lambda p: p.write_bytes(b"hello" * 200), "no NIfTI volume"),
        ("B61 lying header", lambda p: rewrite(save(p), declare(30_000, 30_000, 4, 3)), "not a 3-D"),
        ("B61 lying 3-D header", lambda p: rewrite(save(p), declare(30_000, 30_000, 4)), "too many voxels"),
        ("B63 4-D", lambda p: save(p, np.stack([VALUES] * 2, -1)), "not a 3-D volume"),
        ("B63 2-D", lambda p: save(p, VALUES[0]), "not a 3-D volume"),
        ("axis of no length", lambda p: rewrite(save(p), set_affine(0.0)), "no orientation in the header"),
        ("NaN affine", lambda p: rewrite(save(p), set_affine(np.nan)), "no orientation in the header"),
        ("B64 NaN", lambda p: save(p, np.full((4, 4, 4), np.nan, np.float32)), "values not finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_skipped(tmp_path, name, make, reason, ending):
    path = tmp_path / f"x{ending}"
    make(path)
    with pytest.raises(SkipItem, match=reason):
        read_nifti(path)


def test_a_gzip_bomb_is_read_only_as_far_as_declared(tmp_path):
    path = save(tmp_path / "x.nii.gz")
    with gzip.open(path, "rb") as file:
        good = file.read()
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(good)
        for _ in range(200):
            file.write(bytes(1_000_000))
    np.testing.assert_array_equal(read_nifti(path).values, VALUES)


def test_first_bytes_tell_what_is_packed(tmp_path):
    """A browser may unpack a file and leave its ending."""
    for name, body in (("x.nii.gz", save(tmp_path / "x.nii")), ("y.nii", save(tmp_path / "y.nii.gz"))):
        (tmp_path / name).write_bytes(body.read_bytes())
        np.testing.assert_array_equal(read_nifti(tmp_path / name).values, VALUES)


def test_one_volume_in_four_dimensions_is_taken(tmp_path):
    assert read_nifti(save(tmp_path / "x.nii", VALUES[..., None])).values.shape == VALUES.shape
