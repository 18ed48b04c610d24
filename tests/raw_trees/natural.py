"""Raw trees of the natural datasets."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np

from tasks.sources.natural import IMAGENET_CLASSES
from tests.raw_trees.pictures import color_image, gray_image, jpeg_cmyk, save_image


def write_mnist(folder: Path, seed: int, num_images: int = 400) -> None:
    """Write gzipped IDX files. Images of odd classes have a bright spot."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, num_images)
    images = np.stack([gray_image(rng, (28, 28), label % 2 == 1) for label in labels])
    _idx(folder / "train-images-idx3-ubyte.gz", images)
    _idx(folder / "train-labels-idx1-ubyte.gz", labels.astype(np.uint8))


def _idx(path: Path, values: np.ndarray) -> None:
    header = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes()
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header + values.tobytes())


def write_cifar10(folder: Path, seed: int, per_batch: int = 80) -> None:
    """Write the archive as it is downloaded: pickled batches and another file in one folder."""
    rng = np.random.default_rng(seed)
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
        for number in range(1, 6):
            labels = rng.integers(0, 10, per_batch)
            pixels = np.stack([color_image(rng, (32, 32), label % 2 == 1) for label in labels])
            batch = {
                b"batch_label": f"training batch {number} of 5".encode(),
                b"labels": labels.tolist(),
                b"data": pixels.transpose(0, 3, 1, 2).reshape(per_batch, -1),
                b"filenames": [b"x.png"] * per_batch,
            }
            _add(
                archive, f"cifar-10-batches-py/data_batch_{number}", pickle.dumps(batch, protocol=3)
            )
        _add(archive, "cifar-10-batches-py/readme.html", b"<html></html>")


def _add(archive: tarfile.TarFile, name: str, body: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(body)
    archive.addfile(member, io.BytesIO(body))


def write_svhn(folder: Path, seed: int, num_images: int = 300) -> None:
    """Write a MATLAB file with the label 10 for digit 0, low contrast and unequal classes."""
    from scipy.io import savemat

    rng = np.random.default_rng(seed)
    labels = rng.choice(np.arange(1, 11), num_images, p=np.r_[0.28, np.full(9, 0.08)])
    images = np.stack(
        [color_image(rng, (32, 32), label % 2 == 1) // 2 + 20 for label in labels], axis=-1
    )
    savemat(folder / "train_32x32.mat", {"X": images, "y": labels.reshape(-1, 1).astype(np.uint8)})


def write_imagenet(folder: Path, seed: int, per_class: int = 12) -> None:
    """Write the Kaggle layout with mixed sizes and a class that no sweep requests.

    One image is gray, one is a CMYK JPEG, and one is a PNG file named JPEG.
    """
    rng = np.random.default_rng(seed)
    train = folder / "ILSVRC" / "Data" / "CLS-LOC" / "train"
    for index, key in enumerate((*IMAGENET_CLASSES, "n01484850")):
        for number in range(per_class):
            path = train / key / f"{key}_{number}.JPEG"
            pixels = color_image(rng, (60 + 5 * number, 80), index % 2 == 1)
            save_image(path, pixels, "JPEG")
    first = train / "n01440764"
    (first / "n01440764_900.JPEG").write_bytes(jpeg_cmyk(color_image(rng, (64, 64), False)))
    save_image(first / "n01440764_901.JPEG", color_image(rng, (64, 64), False), "PNG")
    save_image(first / "n01440764_902.JPEG", gray_image(rng, (64, 64), False), "JPEG")
