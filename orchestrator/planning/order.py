"""In which order trials are offered: the longest first, as far as the arrays they share fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

Cell = TypeVar("Cell")


def longest_first_within(
    cells: Sequence[Cell],
    *,
    seconds: Callable[[Cell], float],
    array: Callable[[Cell], str],
    array_bytes: Callable[[Cell], int],
    budget: float,
) -> list[Cell]:
    """Return ``cells``, the longest first; where their arrays do not fit together, one shelf after another.

    A shelf is as many arrays as fit into half the budget, so that the next one can be filled while the last
    trials of the one before still run: nothing waits for a shelf to be done.

    Args:
        cells: to order; ties keep their order.
        seconds: how long a cell is expected to take, on any scale.
        array: name of the array that a cell needs.
        array_bytes: how large that array is.
        budget: bytes that arrays may take at once.
    """
    sizes = {array(cell): array_bytes(cell) for cell in cells}
    by_length = sorted(cells, key=lambda cell: -seconds(cell))
    if sum(sizes.values()) <= budget:
        return by_length
    shelf_of = _shelves((array(cell) for cell in by_length), sizes, budget / 2)
    return sorted(by_length, key=lambda cell: shelf_of[array(cell)])


def _shelves(names: Iterable[str], sizes: dict[str, int], room: float) -> dict[str, int]:
    """Return the shelf of each array, filled in the order in which the longest cells need them."""
    shelf_of: dict[str, int] = {}
    shelf, used = 0, 0.0
    for name in names:
        if name in shelf_of:
            continue
        if used and used + sizes[name] > room:
            shelf, used = shelf + 1, 0.0
        shelf_of[name] = shelf
        used += sizes[name]
    return shelf_of
