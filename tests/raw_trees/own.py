"""Raw trees of the kinds of your own data: ten pictures of two classes, each in its kind's format."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tests.raw_trees.dicoms import make_dicom, save_dicom
from tests.raw_trees.pictures import grey, save_image

NAMES = ("benign", "malignant")


def _pictures(seed: int, count: int = 10) -> Iterator[tuple[int, int, np.ndarray]]:
    rng = np.random.default_rng(seed)
    for number in range(count):
        label = number % 2
        yield number, label, grey(rng, (20, 18), bool(label))


def _write_table(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_folder(folder: Path, seed: int) -> Path:
    for number, label, pixels in _pictures(seed):
        save_image(folder / NAMES[label] / f"{number}.png", pixels)
    return folder


def write_csv(folder: Path, seed: int) -> Path:
    rows = []
    for number, label, pixels in _pictures(seed):
        save_image(folder / f"{number}.png", pixels)
        rows.append({"path": f"{number}.png", "label": NAMES[label], "group": f"P{number // 2}"})
    _write_table(folder / "manifest.csv", rows)
    return folder / "manifest.csv"


def write_dicom_csv(folder: Path, seed: int) -> Path:
    rows = []
    for number, label, pixels in _pictures(seed):
        save_dicom(folder / f"{number}.dcm", make_dicom(pixels.astype(np.uint16), patient=f"P{number // 2}"))
        rows.append({"path": f"{number}.dcm", "label": NAMES[label]})
    _write_table(folder / "manifest.csv", rows)
    return folder / "manifest.csv"


def write_nifti_csv(folder: Path, seed: int) -> Path:
    import nibabel

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, label, pixels in _pictures(seed):
        volume = np.stack([pixels, pixels[::-1], pixels.T.copy().reshape(pixels.shape)], axis=2)
        nibabel.save(nibabel.Nifti1Image(volume.astype(np.int16), np.eye(4)), folder / f"{number}.nii.gz")
        rows.append({"path": f"{number}.nii.gz", "label": NAMES[label], "group": f"P{number // 2}"})
    _write_table(folder / "manifest.csv", rows)
    return folder / "manifest.csv"


def _arrays(seed: int) -> tuple[np.ndarray, np.ndarray]:
    pictures = list(_pictures(seed))
    return np.stack([pixels for *_, pixels in pictures]), np.array([label for _, label, _ in pictures])


def write_npz(folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = _arrays(seed)
    np.savez(folder / "own.npz", images=images, labels=labels)
    return folder / "own.npz"


def write_hdf5(folder: Path, seed: int) -> Path:
    import h5py

    folder.mkdir(parents=True, exist_ok=True)
    images, labels = _arrays(seed)
    with h5py.File(folder / "own.h5", "w") as file:
        file["images"], file["labels"] = images, labels
    return folder / "own.h5"


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def write_parquet(folder: Path, seed: int) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"image": {"bytes": _png(pixels), "path": f"{number}.png"}, "label": label}
        for number, label, pixels in _pictures(seed)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "own.parquet")
    return folder / "own.parquet"


def write_webdataset(folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "own.tar", "w") as archive:
        for number, label, pixels in _pictures(seed):
            for ending, body in (("png", _png(pixels)), ("cls", json.dumps(label).encode())):
                member = tarfile.TarInfo(f"{number:04d}.{ending}")
                member.size = len(body)
                archive.addfile(member, io.BytesIO(body))
    return folder / "own.tar"


OWN_WRITERS: dict[str, Callable[[Path, int], Path]] = {
    "csv": write_csv,
    "dicom_csv": write_dicom_csv,
    "folder": write_folder,
    "hdf5": write_hdf5,
    "nifti_csv": write_nifti_csv,
    "npz": write_npz,
    "parquet": write_parquet,
    "webdataset": write_webdataset,
}
"""Kind -> writes a folder's worth of it and returns the path a user would name."""
