"""SVHN, format 2 (cropped digits): ``train_32x32.mat``. The file spells digit 0 as class 10."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError
from tasks.sources.base import Listing, RawRequest, Reader
from tasks.sources.download import raw_or_download
from tasks.sources.in_memory import ROWS_PER_TASK, cached_by_file, row_items, row_reader

FILE = "train_32x32.mat"


class Svhn:
    """The 73,257 training images, in file order."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per image."""
        labels = _load(_file(request))[1]
        return Listing(
            row_items(labels),
            request.dataset.label_names,
            block_size=ROWS_PER_TASK,
            intensity="each image by its own maximum",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of rows."""
        return row_reader(_load(_file(request))[0], own_maximum=True)


def _file(request: RawRequest) -> Path:
    root = raw_or_download(request)
    path = root if root.is_file() else root / FILE
    if not path.is_file():
        raise DataError(f"svhn needs {FILE}", "it is not there", "http://ufldl.stanford.edu/housenumbers/")
    return path


@cached_by_file
def _load(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=["X", "y"])
        images, labels = content["X"], content["y"].reshape(-1).astype(np.int64)
    except Exception as error:  # scipy's reader raises almost anything on damaged files
        raise DataError(f"svhn: {FILE} must be whole", type(error).__name__, "download it again") from None
    if images.shape[:3] != (32, 32, 3) or images.dtype != np.uint8 or images.shape[3:] != labels.shape:
        found = f"X {images.dtype} {images.shape}, y {labels.shape}"
        raise DataError("svhn: X must be uint8 (32, 32, 3, n) and y have n labels", found)
    if labels.min() < 0 or labels.max() > 10:
        raise DataError("svhn: labels must be in 1..10", f"{labels.min()}..{labels.max()}")
    return images.transpose(3, 0, 1, 2), labels % 10
