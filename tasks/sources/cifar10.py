"""CIFAR-10, python version: ``cifar-10-batches-py/`` or the ``cifar-10-python.tar.gz`` it comes in.

The official files are pickles. They are read by an unpickler that knows numpy arrays and nothing else, so a
doctored file can neither run code nor make objects.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError
from tasks.sources.base import Listing, RawRequest, Reader
from tasks.sources.download import raw_or_download
from tasks.sources.in_memory import ROWS_PER_TASK, cached_by_file, row_items, row_reader

FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
MAX_BATCH_BYTES = 256 << 20

ALLOWED = frozenset(
    (module, name)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy")
    for name in ("_reconstruct", "ndarray", "dtype")
)


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError("only numpy arrays are allowed")
        return super().find_class(module, name)


class Cifar10:
    """The 50,000 training images, in the order of the five batches."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per image."""
        labels = _load(raw_or_download(request))[1]
        return Listing(
            row_items(labels),
            request.dataset.label_names,
            block_size=ROWS_PER_TASK,
            intensity="each image by its own maximum",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of rows."""
        return row_reader(_load(raw_or_download(request))[0], own_maximum=True)


@cached_by_file
def _load(root: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images, labels = [], []
    for body in _batches(root):
        try:
            batch = _ArrayUnpickler(io.BytesIO(body), encoding="bytes").load()
            pixels = np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
            classes = np.asarray(batch[b"labels"], dtype=np.int64)
        except Exception as error:  # a damaged pickle raises almost anything
            raise DataError("cifar10: batches must be whole CIFAR-10 files", type(error).__name__) from None
        if len(pixels) != len(classes) or classes.min() < 0 or classes.max() > 9:
            raise DataError("cifar10: each image must have a label in 0..9", "another count or label")
        images.append(pixels.transpose(0, 2, 3, 1))
        labels.append(classes)
    return np.concatenate(images), np.concatenate(labels)


def _batches(root: Path) -> list[bytes]:
    for folder in (root / FOLDER, root):
        files = [folder / name for name in BATCHES]
        if all(file.is_file() for file in files):
            return [_bounded(file.read_bytes()) for file in files]
    archive = root if root.is_file() else root / ARCHIVE
    if archive.is_file():
        return _from_archive(archive)
    rule = f"cifar10 needs {FOLDER}/data_batch_1 to _5, or {ARCHIVE}"
    raise DataError(rule, "neither is there", "https://www.cs.toronto.edu/~kriz/cifar.html")


def _from_archive(path: Path) -> list[bytes]:
    """Read the batches out of the archive without unpacking it to the disk."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if name in BATCHES and member.isfile() and member.size <= MAX_BATCH_BYTES:
                    stream = archive.extractfile(member)
                    if stream is not None:  # it is None for what is no plain file only
                        found[name] = stream.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"cifar10: {ARCHIVE} must be whole", type(error).__name__, "download it again"
        ) from None
    missing = [name for name in BATCHES if name not in found]
    if missing:
        raise DataError(f"cifar10: {ARCHIVE} must hold data_batch_1 to _5", f"no {', '.join(missing)}")
    return [found[name] for name in BATCHES]


def _bounded(body: bytes) -> bytes:
    if len(body) > MAX_BATCH_BYTES:
        raise DataError("cifar10: a batch must be below 256 MiB", f"{len(body):,} bytes")
    return body
