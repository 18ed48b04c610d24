"""Standard errors by resampling blocks of neighbouring points.

Neighbourhoods overlap, so the contributions of nearby points to an estimate are not independent, and a
bootstrap over single points would promise too much. Blocks are disjoint neighbourhoods; whole blocks are
drawn with replacement.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

NUM_RESAMPLES = 200
BLOCK_POINTS = 10


def neighborhood_blocks(
    indices: npt.NDArray[Any], good: npt.NDArray[np.bool_] | None = None, block_points: int = BLOCK_POINTS
) -> npt.NDArray[np.int64]:
    """Divide points into disjoint blocks of neighbours, greedily in the order of the points.

    Args:
        indices: ``(num_points, num_neighbors)`` neighbours of each point, -1 where there is none.
        good: ``(num_points,)`` points that take part; all when None.
        block_points: Most points per block.

    Returns:
        ``(num_good,)`` block number of each point that takes part.
    """
    num_points = len(indices)
    block = np.full(num_points, -1, np.int64)
    number = 0
    for point in range(num_points):
        if block[point] >= 0:
            continue
        neighbors = indices[point]
        free = neighbors[(neighbors >= 0) & (block[neighbors] < 0)]
        block[free[: block_points - 1]] = number
        block[point] = number
        number += 1
    chosen = block if good is None else block[good]
    return np.unique(chosen, return_inverse=True)[1].astype(np.int64)


def block_std_error(
    statistic: Callable[[npt.NDArray[np.float64]], float | None],
    blocks: npt.NDArray[np.int64],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> float | None:
    """Standard deviation of a statistic over resamples of blocks.

    Args:
        statistic: Function of ``(num_points,)`` multiplicities; None when undefined for them.
        blocks: ``(num_points,)`` block of each point.
        seed: Of the draws.
        num_resamples: Draws, 200 as Efron & Tibshirani (1993) advise for standard errors.

    Returns:
        The standard error, or None when fewer than two resamples define the statistic.
    """
    num_blocks = int(blocks.max(initial=-1)) + 1
    if num_blocks < 2:
        return None
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(num_resamples):
        drawn = np.bincount(rng.integers(0, num_blocks, num_blocks), minlength=num_blocks)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = statistic(drawn[blocks].astype(np.float64))
        if value is not None and np.isfinite(value):
            values.append(value)
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
