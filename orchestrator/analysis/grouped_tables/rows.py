"""Rows of a table as standardised arrays, and the least squares that all slopes start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from orchestrator.analysis.grouped_tables.design import Design
from orchestrator.analysis.grouped_tables.groups import Groups
from orchestrator.analysis.inference import Array, Codes

SMALLEST_NUMBER = 1e-100
"""Divisor for a column of zeros."""


@dataclass(frozen=True, slots=True)
class StandardRows:
    """Rows of a design, each column of mean 0 and standard deviation 1. q columns, n rows.

    Attributes:
        design: What is asked of the table.
        response: ``(n,)``.
        columns: Columns that explain it, ``(n, q)``.
        units_per_slope: The response's unit per unit of each column, ``(q,)``.
        kind: Code of each row's combination of ``within``, ``(n,)``.
        groups: Units and groups of the rows.
        crossing: Codes, ``(n,)``, of each column that recurs over groups and is not named.
    """

    design: Design
    response: Array
    columns: Array
    units_per_slope: Array
    kind: Codes
    groups: Groups
    crossing: Mapping[str, Codes] = field(default_factory=dict)

    @property
    def values(self) -> Array:
        """Response and columns side by side, ``(n, 1 + q)``."""
        return np.column_stack([self.response, self.columns])


def standardise(
    table: pd.DataFrame,
    design: Design,
    crossing: Sequence[str],
    pairs: bool,
) -> StandardRows:
    """Return the rows of a table in standard units, with their groups and kinds as codes."""
    kind = np.zeros(len(table), dtype=int)
    if design.within:
        kind = table.groupby(list(design.within)).ngroup().to_numpy()
    values = table[list(design.numeric)].to_numpy(dtype=float)
    # Divided first: squares of numbers near 1e200 would not be finite.
    largest = np.abs(values).max(axis=0)
    largest = np.maximum(largest, SMALLEST_NUMBER)
    shares = values / largest
    offsets = shares - shares.mean(axis=0)
    variances = (offsets**2).mean(axis=0)
    deviations = np.sqrt(variances)
    deviations[deviations == 0] = 1.0
    standard = offsets / deviations
    units = deviations * largest
    return StandardRows(
        design=design,
        response=standard[:, 0],
        columns=standard[:, 1:],
        units_per_slope=units[0] / units[1:],
        kind=kind,
        groups=Groups(table, design.groups, pairs),
        crossing={name: pd.factorize(table[name])[0] for name in crossing},
    )


def partial_slope(
    products: Array,
    place: int,
    smallest: float,
) -> tuple[float, Array]:
    """Return the slope of column 0 on column ``place`` at equal others.

    Args:
        products: Sums of products of all columns.
        place: Column that explains column 0, from 1.
        smallest: Sum of squares below which what varies of the column is rounding.

    Returns:
        The slope, NaN if the column hardly varies beside the others; and the weights of all
        columns in what varies of it.
    """
    regressors = range(1, len(products))
    remaining = [column for column in regressors if column != place]
    block = products[np.ix_(remaining, remaining)]
    weights = np.zeros(len(products))
    weights[place] = 1.0
    overlaps = products[remaining, place]
    explained = np.linalg.lstsq(block, overlaps, rcond=1e-12)[0]
    weights[remaining] = -explained
    varies = float(weights @ products[:, place])
    if varies <= smallest:
        return np.nan, weights
    goes_with = float(weights @ products[:, 0])
    return goes_with / varies, weights
