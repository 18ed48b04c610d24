"""One number of a fit with its interval and p-values."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import special

from orchestrator.analysis.answers import most_influential
from orchestrator.analysis.inference import (
    LEVEL,
    Array,
    Interval,
    ols,
    permutation_test,
    t_interval,
    t_p_values,
)
from orchestrator.analysis.results_tables.points import IS_MEDICAL

STRONG = 0.8
"""A correlation that is called strong; the published one, of FGSM over eleven datasets, is 0.84."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One number of a fit with its 95 % interval; datasets are the replicates throughout.

    Attributes:
        name: A column of the points, ``exponent``, ``r`` or ``share``.
        value: The estimate.
        std_error: Its standard error; None where none is known.
        interval: 95 % interval.
        p_value: Two-sided p-value by t.
        resampled_p: p-value by permutation of datasets or by the wild cluster bootstrap. Of ``r``
            it is one-sided and adjusted for the number of attacks, epsilons and models.
        num_resamples: Rearrangements or draws that ``resampled_p`` is made of.
        exact: Whether all rearrangements were tried and datasets are exchangeable under the null.
        left_out: The value without each dataset.
        weights: Share of each dataset in the value.
    """

    name: str
    value: float
    std_error: float | None = None
    interval: Interval | None = None
    p_value: float | None = None
    resampled_p: float | None = None
    num_resamples: int = 0
    exact: bool = False
    left_out: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    @property
    def p(self) -> float | None:
        """The larger of both p-values: a claim needs both. None if neither is known."""
        p_values_known = [p for p in (self.p_value, self.resampled_p) if p is not None]
        return max(p_values_known, default=None)

    @property
    def is_tested(self) -> bool:
        """True if datasets can be rearranged in enough ways for a p-value at the level."""
        if self.p is None:
            return False
        return self.num_resamples == 0 or self.num_resamples >= 1 / LEVEL

    @property
    def influential(self) -> str | None:
        """The dataset whose absence moves the value most; None if none can be left out."""
        return most_influential(self.value, self.left_out)


def slope_estimates(
    y: Array,
    x: Array,
    terms: Sequence[str],
    blocks: Sequence[str],
    *,
    tested: Collection[str],
    skip_permutation_above: float = 1.0,
) -> tuple[Estimate, ...] | None:
    """Regress dataset effects on terms, by t and by permutation.

    Args:
        y: Response of each dataset, ``(G,)``.
        x: Terms, ``(G, q)``.
        terms: Their names.
        blocks: Domain of each dataset: at equal domain only datasets of one can be exchanged.
        tested: Terms that are tested by permutation too.
        skip_permutation_above: p-value by t above which no permutation is tried.

    Returns:
        One estimate a term; None if the slopes are not identified.
    """
    slopes = ols(y, x)
    if slopes is None:
        return None
    values, errors, degrees = slopes
    p_values = t_p_values(values, errors, degrees).tolist()
    estimates = []
    for k, name in enumerate(terms):
        value = float(values[k])
        error = float(errors[k])
        estimate = Estimate(
            name=name,
            value=value,
            std_error=error,
            interval=t_interval(value, error, degrees),
            p_value=p_values[k],
        )
        if name in tested and p_values[k] <= skip_permutation_above:
            estimate = _with_permutation(estimate, y, x, k, terms, blocks)
        estimates.append(estimate)
    return tuple(estimates)


def _with_permutation(
    estimate: Estimate,
    y: Array,
    x: Array,
    column: int,
    terms: Sequence[str],
    blocks: Sequence[str],
) -> Estimate:
    """Add the p-value of a permutation of datasets, within domains if the domain is a term."""
    covariates = set(terms) - {estimate.name}
    places = blocks if IS_MEDICAL in covariates else [""] * len(y)
    test = permutation_test(y, x[:, column], np.delete(x, column, axis=1), places)
    if test is None:
        return estimate
    p, num_orders, is_complete = test
    is_exact = is_complete and covariates <= {IS_MEDICAL}
    return replace(estimate, resampled_p=p, num_resamples=num_orders, exact=is_exact)


def correlation_interval(
    r: float, num_datasets: int, num_given: int, *, critical: float | None = None
) -> Interval | None:
    """Return the 95 % interval of a (partial) correlation by Fisher's z.

    Args:
        r: The correlation.
        num_datasets: Datasets that it is over.
        num_given: Variables that are held equal.
        critical: Half width in standard errors of z, if it is not that of one correlation.

    Returns:
        The interval; None if no degree of freedom is left.
    """
    degrees = num_datasets - num_given - 3
    if degrees < 1:
        return None
    if critical is None:
        critical = float(special.ndtri(1 - LEVEL / 2))
    half_width = critical / np.sqrt(degrees)
    z = float(np.arctanh(np.clip(r, -1 + 1e-15, 1 - 1e-15)))
    return float(np.tanh(z - half_width)), float(np.tanh(z + half_width))
