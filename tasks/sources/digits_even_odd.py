"""MNIST digits of mnist5k, even against odd, with dials: blending of unlike images, flips, pixel scale."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tasks.sources.base import Listing, RawRequest, Reader
from tasks.sources.dials import dial, flipped, scaled
from tasks.sources.in_memory import ROWS_PER_TASK, row_items, row_reader
from tasks.sources.mnist5k import load_digits


class DigitsEvenOdd:
    """Label 1 = odd."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return the 5,000 rows."""
        labels = flipped(load_digits()[1] % 2, request)
        return Listing(
            row_items(labels),
            request.dataset.label_names,
            dtype="uint8" if dial(request, "pixel_scale") == 1 else "float32",
            block_size=ROWS_PER_TASK,
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of rows."""
        return row_reader(scaled(blended(dial(request, "blend")), request))


@lru_cache(maxsize=2)
def blended(share: float) -> NDArray[np.uint8]:
    """Move every image by ``share`` towards its nearest one of the other label: ``(5000, 28, 28)`` uint8."""
    images, digits = load_digits()
    if share == 0:
        return images
    rows, labels = images.reshape(len(images), -1).astype(np.float32), digits % 2
    even, odd = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    # |a - b|² up to what is the same for a whole row or column; sums of bytes' products, so ties do not move.
    squares = np.einsum("ij,ij->i", rows, rows)
    apart = squares[even, None] + squares[None, odd] - 2 * rows[even] @ rows[odd].T
    target = np.empty_like(rows)
    target[even], target[odd] = rows[odd[apart.argmin(1)]], rows[even[apart.argmin(0)]]
    mixed: NDArray[np.uint8] = np.rint(rows + share * (target - rows)).astype(np.uint8)
    return mixed.reshape(images.shape)
