"""What sources share whose images all come out of one array: list rows, read rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tasks.sources.base import Item, Reader, Sample
from tasks.sources.image_files import by_own_maximum
from tasks.sources.raw import split_locator

ROWS_PER_TASK = 8_000
"""Every task loads the whole array, once per worker process, so blocks are large; several, so workers
share."""

Loaded = TypeVar("Loaded")


def cached_by_files(
    load: Callable[[Path, tuple[str, ...]], Loaded],
) -> Callable[[Path, Sequence[str]], Loaded]:
    """Keep the last results of ``load(base, locators)`` until a file that these lead into changes."""

    @lru_cache(maxsize=2)
    def cached(base: Path, locators: tuple[str, ...], stamps: tuple[tuple[int, int], ...]) -> Loaded:
        return load(base, locators)

    @wraps(load)
    def wrapper(base: Path, locators: Sequence[str]) -> Loaded:
        stats = [(base / split_locator(locator)[0]).stat() for locator in locators]
        return cached(base, tuple(locators), tuple((stat.st_mtime_ns, stat.st_size) for stat in stats))

    return wrapper


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
