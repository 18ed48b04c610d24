"""CIFAR-10, python version: ``cifar-10-batches-py/`` or the ``cifar-10-python.tar.gz`` it comes in.

Layout: the dataset's page, https://www.cs.toronto.edu/~kriz/cifar.html, "Dataset layout", and torchvision's
``CIFAR10``; the folder may have another name and lie deeper, in an archive too.

The official files are pickles. They are read by an unpickler that knows numpy arrays and nothing else, so a
doctored file can neither run code nor make objects.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError
from tasks.sources.base import Listing, RawRequest, Reader, SkipItem
from tasks.sources.download import with_raw
from tasks.sources.in_memory import ROWS_PER_TASK, cached_by_files, row_items, row_reader
from tasks.sources.loose_names import find_together
from tasks.sources.raw import read_locator

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
        labels = _arrays(request)[1]
        return Listing(
            row_items(labels),
            request.dataset.label_names,
            block_size=ROWS_PER_TASK,
            intensity="each image by its own maximum",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of rows."""
        return row_reader(_arrays(request)[0], own_maximum=True)


def _arrays(request: RawRequest) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    request = with_raw(request)
    batches = find_together(request, [(name,) for name in BATCHES], hint="cifar")
    if batches is None:
        rule = f"cifar10 needs {FOLDER}/data_batch_1 to _5, or {ARCHIVE}"
        raise DataError(rule, "neither is there", "https://www.cs.toronto.edu/~kriz/cifar.html")
    return _load(request.base(), batches)


@cached_by_files
def _load(base: Path, batches: tuple[str, ...]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images, labels = [], []
    for name in batches:
        try:
            body = read_locator(base, name, MAX_BATCH_BYTES)
            batch = _ArrayUnpickler(io.BytesIO(body), encoding="bytes").load()
            pixels = np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
            classes = np.asarray(batch[b"labels"], dtype=np.int64)
        except SkipItem as skip:
            raise DataError("cifar10: batches must be readable", skip.reason, "download them again") from None
        except Exception as error:  # a damaged pickle raises almost anything
            raise DataError("cifar10: batches must be whole CIFAR-10 files", type(error).__name__) from None
        if len(pixels) != len(classes) or not len(classes) or classes.min() < 0 or classes.max() > 9:
            raise DataError("cifar10: each image must have a label in 0..9", "another count or label")
        images.append(pixels.transpose(0, 2, 3, 1))
        labels.append(classes)
    return np.concatenate(images), np.concatenate(labels)
