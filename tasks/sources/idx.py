"""MNIST-format files (``train-images-idx3-ubyte``, gzipped or not): MNIST and Fashion-MNIST.

Layout: Yann LeCun's page ("THE IDX FILE FORMAT"); the names as they are there and in torchvision
(``train-images-idx3-ubyte``), with a dot as common mirrors have them (``train-images.idx3-ubyte``), and
Kaggle's copy with each file in a folder of its own name; in whatever folder, in an archive too. Both sets
have the same names: their folders, and the first labels of the official files, tell them apart.

Only the train files are read, as in the study; its test images are drawn from them too.
"""

from __future__ import annotations

import gzip
import io
import zlib
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError
from tasks.sources.base import Listing, RawRequest, Reader, SkipItem
from tasks.sources.download import with_raw
from tasks.sources.in_memory import ROWS_PER_TASK, cached_by_files, row_items, row_reader
from tasks.sources.loose_names import find_together
from tasks.sources.raw import read_locator

SYSTEM_FOLDERS = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}
"""Where a distribution's package puts the files (Debian: ``dataset-fashion-mnist``)."""

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
SPELLINGS = [
    tuple(stem + ending for stem in (name, name.replace("-idx", ".idx")) for ending in ("", ".gz"))
    for name in (IMAGES, LABELS)
]
NEITHER = ("kmnist", "kuzushiji", "emnist", "qmnist")
HINTS = {"mnist": ("mnist", ("fashion", *NEITHER)), "fashion_mnist": ("fashion", NEITHER)}
"""Dataset -> a word of its folders, and words of others' with files of the same names."""
FIRST_LABELS = {"mnist": (5, 0, 4, 1, 9, 2, 1, 3, 1, 4), "fashion_mnist": (9, 0, 0, 3, 0, 2, 7, 2, 5, 5)}
OFFICIAL_COUNT = 60_000
MAX_BYTES = 1 << 30


class IdxFiles:
    """Images and labels in two IDX files below the raw folder."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per image."""
        base, images, labels = _files(request)
        values = _labels(base, (labels,))
        num_images = idx_shape(_body(base, images), images, dimensions=3)[0]
        if len(values) != num_images:
            raise DataError(
                f"{request.dataset.name}: image and label files must have equally many rows",
                f"{num_images} images, {len(values)} labels",
                "download both files again",
            )
        if len(values) and values.max() >= len(request.dataset.label_names):
            raise DataError(f"{request.dataset.name}: labels must be below 10", f"{values.max()}")
        _check_which(values, request.dataset.name)
        return Listing(
            row_items(values),
            request.dataset.label_names,
            block_size=ROWS_PER_TASK,
            intensity="each image by its own maximum",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of rows."""
        base, images, _ = _files(request)
        return row_reader(_images(base, (images,)), own_maximum=True)


def _check_which(labels: NDArray[np.uint8], wanted: str) -> None:
    """Check that the official files of one set are not read as the other, which has the same names."""
    first = tuple(labels[:10].tolist())
    others = [name for name, known in FIRST_LABELS.items() if name != wanted and known == first]
    if others and len(labels) == OFFICIAL_COUNT:
        raise DataError(f"{wanted}: the files must be those of {wanted}", f"{others[0]}", "give its folder")


def _files(request: RawRequest) -> tuple[Path, str, str]:
    """Return the folder that the names of images and labels start from, and these."""
    name, system = request.dataset.name, SYSTEM_FOLDERS.get(request.dataset.name)
    hint, others = HINTS.get(name, ("mnist", ()))
    if request.raw is None and system is not None and system.is_dir():
        request = replace(request, raw=system)
    request = with_raw(request)
    found = find_together(request, SPELLINGS, hint=hint, others=others)
    if found is None:
        way_out = (
            f"expected: {request.dataset.raw_layout}; torchvision can download it on a machine with network"
        )
        raise DataError(f"{name} needs {IMAGES}[.gz] and {LABELS}[.gz]", "none there", way_out)
    return request.base(), found[0], found[1]


def _body(base: Path, name: str) -> bytes:
    try:
        return read_locator(base, name)
    except SkipItem as skip:
        shown = name.rpartition("/")[2]
        raise DataError(f"{shown} must be readable", skip.reason, "download it again") from None


@cached_by_files
def _images(base: Path, names: tuple[str, ...]) -> NDArray[np.uint8]:
    return read_idx(_body(base, names[0]), names[0], dimensions=3)


@cached_by_files
def _labels(base: Path, names: tuple[str, ...]) -> NDArray[np.uint8]:
    return read_idx(_body(base, names[0]), names[0], dimensions=1)


def idx_shape(body: bytes, name: str, *, dimensions: int) -> tuple[int, ...]:
    """Return the shape that the header of an IDX file of bytes declares.

    Raises:
        DataError: when it is no IDX file of bytes with that many dimensions, or declares more than a GiB.
    """
    shown = name.rpartition("/")[2]
    header = _read(_open(body), 4 + 4 * dimensions, shown)
    if header[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(
            f"{shown} must be an IDX file of bytes with {dimensions} dimensions", "another header"
        )
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4", offset=4))
    if int(np.prod(shape, dtype=object)) > MAX_BYTES:
        raise DataError(f"{shown} must declare less than {MAX_BYTES:,} bytes", f"shape {shape}")
    return shape


def read_idx(body: bytes, name: str, *, dimensions: int) -> NDArray[np.uint8]:
    """Return the array in an IDX file of bytes, gzipped or not.

    Raises:
        DataError: when the file is truncated, damaged or longer than its header says.
    """
    shape = idx_shape(body, name, dimensions=dimensions)
    file, shown = _open(body), name.rpartition("/")[2]
    _read(file, 4 + 4 * dimensions, shown)
    values = _read(file, int(np.prod(shape)), shown)
    if _read(file, 1, shown, exact=False):
        raise DataError(f"{shown} must end where its header says", "more bytes", "download it again")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _open(body: bytes) -> IO[bytes]:
    """Open what is gzipped by its first bytes: a browser may unpack a file and leave its ending."""
    stream = io.BytesIO(body)
    return gzip.GzipFile(fileobj=stream) if body[:2] == b"\x1f\x8b" else stream  # type: ignore[return-value]


def _read(file: IO[bytes], size: int, name: str, *, exact: bool = True) -> bytes:
    try:
        body = file.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name} must be whole", type(error).__name__, "download it again") from None
    if exact and len(body) != size:
        raise DataError(f"{name} must be whole", "it ends early", "download it again")
    return body
