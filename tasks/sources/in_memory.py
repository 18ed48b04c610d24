"""What sources share whose images all come out of one array: list rows, read rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.sources.base import Item, Reader, Sample
from tasks.sources.image_files import by_own_maximum

ROWS_PER_TASK = 100_000
"""Loading the array is the expensive part, so one task reads all rows it may hold in memory."""


def row_items(labels: NDArray[np.integer]) -> Sequence[Item]:
    """Return one item per row, in stored order; every row is its own group."""
    return [Item(str(row), int(label)) for row, label in enumerate(labels)]


def row_reader(images: NDArray[np.generic], *, own_maximum: bool = False) -> Reader:
    """Return a reader of rows of ``images`` ``(num_images, height, width[, 3])``.

    ``own_maximum`` scales each image by its own maximum, the study's rule for the datasets it used.
    """

    def read(item: Item) -> tuple[Sample]:
        row = np.asarray(images[int(item.locator)])
        if not own_maximum:
            return (Sample(row),)
        pixels, note = by_own_maximum(row)
        return (Sample(pixels, conversions=(note,) if note else ()),)

    return read
