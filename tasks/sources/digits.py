"""1,797 real handwritten digits at 8×8, shipped inside scikit-learn.

Layout: ``sklearn.datasets.load_digits``, a copy of the test set of UCI's "Optical Recognition of Handwritten
Digits".
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from tasks.sources.base import Listing, RawRequest, Reader
from tasks.sources.in_memory import ROWS_PER_TASK, row_items, row_reader


@cache
def _load() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Stored as integers 0..16; the factor brings 16 to 255.
    return np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target.astype(np.int64)


class Digits:
    """Digits 0 to 9, 8×8."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return the 1,797 rows."""
        return Listing(
            row_items(_load()[1]),
            request.dataset.label_names,
            block_size=ROWS_PER_TASK,
            intensity="stored 0..16, times 255/16",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of rows."""
        return row_reader(_load()[0])
