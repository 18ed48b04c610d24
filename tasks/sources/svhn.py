"""SVHN, format 2 (cropped digits): ``train_32x32.mat``. The file spells digit 0 as class 10.

Layout: the dataset's page, http://ufldl.stanford.edu/housenumbers/ (MATLAB 5), and the same variables saved
anew as MATLAB 7.3, which is HDF5 with all sides in reverse order.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError, SweepError
from tasks.sources.arrays import open_hdf5
from tasks.sources.base import Listing, RawRequest, Reader, SkipItem
from tasks.sources.download import with_raw
from tasks.sources.in_memory import ROWS_PER_TASK, cached_by_files, row_items, row_reader
from tasks.sources.loose_names import find_together
from tasks.sources.raw import read_locator

FILE = "train_32x32.mat"
MAX_BYTES = 1 << 30


class Svhn:
    """The 73,257 training images, in file order."""

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
    found = find_together(request, [(FILE,)], hint="svhn")
    if found is None:
        raise DataError(f"svhn needs {FILE}", "it is not there", "http://ufldl.stanford.edu/housenumbers/")
    return _load(request.base(), found)


@cached_by_files
def _load(base: Path, names: tuple[str, ...]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from scipy.io import loadmat, whosmat

    try:
        body = read_locator(base, names[0])
        if b"\x89HDF\r\n\x1a\n" in body[:520]:  # MATLAB 7.3: HDF5 behind 512 bytes of text
            images, labels = _load_hdf5(body)
        else:
            declared = sum(math.prod(shape) for _, shape, _ in whosmat(io.BytesIO(body)))
            if declared > MAX_BYTES:
                raise DataError(f"svhn: {FILE} must be below 1 GiB", f"{declared:,} values")
            content = loadmat(io.BytesIO(body), variable_names=["X", "y"])
            images, labels = content["X"], content["y"].reshape(-1).astype(np.int64)
    except SweepError:
        raise
    except SkipItem as skip:
        raise DataError(f"svhn: {FILE} must be readable", skip.reason, "download it again") from None
    except Exception as error:  # scipy's reader raises almost anything on damaged files
        raise DataError(f"svhn: {FILE} must be whole", type(error).__name__, "download it again") from None
    if images.shape[:3] != (32, 32, 3) or images.dtype != np.uint8 or images.shape[3:] != labels.shape:
        found = f"X {images.dtype} {images.shape}, y {labels.shape}"
        raise DataError("svhn: X must be uint8 (32, 32, 3, n) and y have n labels", found)
    if not len(labels) or labels.min() < 0 or labels.max() > 10:
        raise DataError(
            "svhn: labels must be in 1..10", f"{labels.min()}..{labels.max()}" if len(labels) else "none"
        )
    return images.transpose(3, 0, 1, 2), labels % 10


def _load_hdf5(body: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    with open_hdf5(io.BytesIO(body), "svhn") as file:
        missing = [name for name in ("X", "y") if name not in file]
        if missing:
            found = f"a MATLAB 7.3 file without {' and '.join(missing)}"
            if "digitStruct" in file:
                found += ": the boxes of format 1, full numbers"
            raise DataError(
                f"svhn needs {FILE} of format 2, cropped digits", found, "download train_32x32.mat"
            )
        if file["X"].size > MAX_BYTES:
            raise DataError(f"svhn: {FILE} must be below 1 GiB", f"{file['X'].size:,} bytes")
        images = np.asarray(file["X"]).transpose()
        return images, np.asarray(file["y"]).reshape(-1).astype(np.int64)
