"""The record that every estimator of intrinsic dimension returns, and what the estimators share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.measures.distances import FloatArray
from tasks.measures.neighbors import NeighborTable

# Distances are good to 1e-5, so smaller mean log ratios of distances are rounding.
EQUAL_LOG_RATIO = 1e-5
EQUALLY_FAR = "neighbours are equally far to within rounding, no finite dimension explains that"


@dataclass(frozen=True)
class IntrinsicDimension:
    """An estimate with what is needed to judge it.

    Attributes:
        estimator: ``"mle"``, ``"twonn"`` or ``"gride"``.
        value: The estimate, or None when it is undefined; ``reason`` then says why.
        std_error: Its standard error, by the way that ``convention`` names.
        num_points: Points that the value averages over, after duplicates and ties were left out.
        num_neighbors: Neighbours used per point.
        convention: The formula, in words.
        num_dropped: Points left out because their neighbour distances are zero.
        reason: Why ``value`` is None.
        details: More of the same estimator, such as its curve over scales.
    """

    estimator: str
    value: float | None
    std_error: float | None
    num_points: int
    num_neighbors: int
    convention: str
    num_dropped: int = 0
    reason: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; ``details`` stand beside the other keys, ``reason`` only where there is one."""
        record = {key: value for key, value in vars(self).items() if key not in ("details", "reason")}
        return record | ({"reason": self.reason} if self.reason else {}) | self.details


def undefined(
    estimator: str, table: NeighborTable, num_neighbors: int, convention: str, reason: str
) -> IntrinsicDimension:
    """Return the record of an estimate that these points do not allow."""
    return IntrinsicDimension(
        estimator, None, None, table.num_points, num_neighbors, convention, reason=reason
    )


def usable(table: NeighborTable, num_neighbors: int) -> tuple[FloatArray, npt.NDArray[np.bool_], str | None]:
    """Distances to the nearest ``num_neighbors``, rows that have them all above zero, and what is wrong."""
    distances = table.distances[:, :num_neighbors]
    if table.num_points < num_neighbors + 1 or distances.shape[1] < num_neighbors:
        rule = f"needs at least {num_neighbors + 1} distinct points for {num_neighbors} neighbours"
        return distances, np.zeros(len(distances), bool), f"{rule}, has {table.num_points}"
    good = (distances[:, 0] > 0) & np.isfinite(distances[:, -1])
    return distances, good, None if good.sum() > 1 else "all neighbour distances are zero"


def inverse_dimensions(logs: FloatArray, num_neighbors: int, subtract: int) -> FloatArray:
    """``1/(k - subtract) · Σ_{j<k} ln(T_k / T_j)`` per point, from ``(num_points, >= k)`` log distances."""
    k = num_neighbors
    total: FloatArray = (k - 1) * logs[:, k - 1] - logs[:, : k - 1].sum(axis=1)
    return total / (k - subtract)
