"""MNIST-format files (``train-images-idx3-ubyte``, gzipped or not): MNIST and Fashion-MNIST.

Layout: Yann LeCun's page ("THE IDX FILE FORMAT"); the names as they are there and in torchvision
(``train-images-idx3-ubyte``), with a dot as common mirrors have them (``train-images.idx3-ubyte``), and
Kaggle's copy with each file in a folder of its own name.

Only the train files are read, as in the study; its test images are drawn from them too.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError
from tasks.sources.base import Listing, RawRequest, Reader
from tasks.sources.download import raw_or_download
from tasks.sources.in_memory import ROWS_PER_TASK, cached_by_file, row_items, row_reader

SYSTEM_FOLDERS = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}
"""Where a distribution's package puts the files (Debian: ``dataset-fashion-mnist``)."""

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
MAX_BYTES = 1 << 30


class IdxFiles:
    """Images and labels in two IDX files below the raw folder, at any depth torchvision uses."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per image."""
        images, labels = _files(request)
        values = read_idx(labels)
        num_images = idx_shape(images, dimensions=3)[0]
        if len(values) != num_images:
            raise DataError(
                f"{request.dataset.name}: image and label files must have equally many rows",
                f"{num_images} images, {len(values)} labels",
                "download both files again",
            )
        if len(values) and values.max() >= len(request.dataset.label_names):
            raise DataError(f"{request.dataset.name}: labels must be below 10", f"{values.max()}")
        return Listing(
            row_items(values),
            request.dataset.label_names,
            block_size=ROWS_PER_TASK,
            intensity="each image by its own maximum",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of rows."""
        return row_reader(read_idx(_files(request)[0]), own_maximum=True)


def _files(request: RawRequest) -> tuple[Path, Path]:
    system = SYSTEM_FOLDERS.get(request.dataset.name)
    at_hand = request.raw is None and system is not None and _find(system) is not None
    found = _find(system if at_hand and system else raw_or_download(request))
    if found is None:
        way_out = (
            f"expected: {request.dataset.raw_layout}; torchvision can download it on a machine with network"
        )
        raise DataError(
            f"{request.dataset.name} needs {IMAGES}[.gz] and {LABELS}[.gz]", "none there", way_out
        )
    return found


def _find(root: Path) -> tuple[Path, Path] | None:
    folders = [root, *(root / name / "raw" for name in ("MNIST", "FashionMNIST")), root / "raw"]
    for folder in folders:
        images, labels = (_spelt(folder, name) for name in (IMAGES, LABELS))
        if images is not None and labels is not None:
            return images, labels
    return None


def _spelt(folder: Path, name: str) -> Path | None:
    """Return the file of a name in one of its spellings."""
    for stem in (name, name.replace("-idx", ".idx")):
        for ending in ("", ".gz"):
            for path in (folder / (stem + ending), folder / stem / (stem + ending)):
                if path.is_file():
                    return path
    return None


def idx_shape(path: Path, *, dimensions: int) -> tuple[int, ...]:
    """Return the shape that the header of an IDX file of bytes declares.

    Raises:
        DataError: when it is no IDX file of bytes with that many dimensions, or declares more than a GiB.
    """
    with _open(path) as file:
        header = _read(file, 4 + 4 * dimensions, path)
    if header[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(
            f"{path.name} must be an IDX file of bytes with {dimensions} dimensions", "another header"
        )
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4", offset=4))
    if int(np.prod(shape, dtype=object)) > MAX_BYTES:
        raise DataError(f"{path.name} must declare less than {MAX_BYTES:,} bytes", f"shape {shape}")
    return shape


@cached_by_file
def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array in an IDX file of bytes; its name says how many dimensions it has.

    Raises:
        DataError: when the file is truncated, damaged or longer than its header says.
    """
    dimensions = 3 if "idx3" in path.name else 1
    shape = idx_shape(path, dimensions=dimensions)
    size = int(np.prod(shape))
    with _open(path) as file:
        _read(file, 4 + 4 * dimensions, path)
        body = _read(file, size, path)
        if _read(file, 1, path, exact=False):
            raise DataError(f"{path.name} must end where its header says", "more bytes", "download it again")
    return np.frombuffer(body, np.uint8).reshape(shape)


def _open(path: Path) -> gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _read(file: gzip.GzipFile, size: int, path: Path, *, exact: bool = True) -> bytes:
    try:
        body = file.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path.name} must be whole", type(error).__name__, "download it again") from None
    if exact and len(body) != size:
        raise DataError(f"{path.name} must be whole", "it ends early", "download it again")
    return body
