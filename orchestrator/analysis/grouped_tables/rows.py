"""Standardized rows of a table, and the partial slope that all fits compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from orchestrator.analysis.grouped_tables.design import Design
from orchestrator.analysis.grouped_tables.groups import Groups
from orchestrator.analysis.inference import Array, Codes

SMALLEST_NUMBER = 1e-100
"""Smallest number by which a column is divided. A column of zeros is divided by this
number."""


@dataclass(frozen=True, slots=True)
class StandardRows:
    """The n rows of a fit, with q regressors of mean 0 and standard deviation 1.

    Attributes:
        design: Columns of the fit.
        response: Response with mean 0 and standard deviation 1, ``(n,)``.
        columns: Regressors, ``(n, q)``.
        units_per_slope: Factor that converts each standardized slope to the units of the
            table, ``(q,)``.
        kind: Code of each row's combination of the ``within`` columns, ``(n,)``.
        groups: Units and groups of the rows.
        crossing: Codes of the values of each crossing column, ``(n,)``, by name of the column.
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


def standardize(
    table: pd.DataFrame,
    design: Design,
    crossing: Sequence[str],
    pairs: bool,
) -> StandardRows:
    """Standardize the numeric columns of a table, and encode its groups and kinds as integers."""
    kind = np.zeros(len(table), dtype=int)
    if design.within:
        kind = table.groupby(list(design.within)).ngroup().to_numpy()
    values = table[list(design.numeric)].to_numpy(dtype=float)
    # Divide by the largest number first: squares of numbers near 1e200 would not be finite.
    largest = np.abs(values).max(axis=0)
    largest = np.maximum(largest, SMALLEST_NUMBER)
    shares = values / largest
    offsets = shares - shares.mean(axis=0)
    variances = (offsets**2).mean(axis=0)
    deviations = np.sqrt(variances)
    deviations[deviations == 0] = 1.0
    standard = offsets / deviations
    # A slope in standard units times these factors is a slope in the table's units.
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
    """Return the slope of column 0 on column ``place``, with all other columns held constant.

    Args:
        products: Symmetric matrix. Entry (i, j) is the sum over rows of column i times column
        j.
        place: Index of the regressor. The first regressor has the index 1.
        smallest: Limit for the sum of squares of the regressor. Below this limit, the
            variation of the regressor is rounding error.

    Returns:
        The slope, and the weight of each column in the linear combination that is the
        regressor's residual. The slope is NaN if the regressor is nearly a linear combination
        of the other columns.
    """
    regressors = range(1, len(products))
    remaining = [column for column in regressors if column != place]
    block = products[np.ix_(remaining, remaining)]
    weights = np.zeros(len(products))
    weights[place] = 1.0
    overlaps = products[remaining, place]
    explained = np.linalg.lstsq(block, overlaps, rcond=1e-12)[0]
    # Subtract the regression of the regressor on the other columns (Frisch & Waugh 1933).
    weights[remaining] = -explained
    variation = float(weights @ products[:, place])
    if variation <= smallest:
        return np.nan, weights
    covariation = float(weights @ products[:, 0])
    return covariation / variation, weights
