"""The record of one estimate of a fit, with its interval and p-values."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import special

from orchestrator.analysis.answers import most_influential
from orchestrator.analysis.inference import (
    LEVEL,
    MIN_DATASETS_OF_A_CORRELATION,
    Array,
    Interval,
    ols,
    permutation_test,
    t_interval,
    t_p_values,
)
from orchestrator.analysis.results_tables.points import IS_MEDICAL

STRONG = 0.8
"""True correlation for which the power is computed. The study reports a correlation of 0.84
for FGSM over eleven datasets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One estimate of a fit, with its 95 % interval and p-values. The replicates are datasets.

    Attributes:
        name: Name of the estimate. It is the name of a regressor's column, or another name
            such as ``exponent``, ``r`` or ``share``.
        value: The estimate.
        std_error: Standard error of the estimate; None if it is unknown.
        interval: 95 % confidence interval.
        p_value: Two-sided p-value of a t test.
        resampled_p: p-value of a permutation of datasets or of the wild cluster bootstrap. The
            p-value of ``r`` is one-sided and adjusted for the number of attacks, epsilons and
            models.
        num_resamples: Number of permutations or bootstrap draws behind ``resampled_p``.
        smallest_p: Smallest value that ``resampled_p`` can have; 0 if nothing was resampled.
        exact: True if the permutation test is exact. This requires that all permutations were
            tried, and that datasets are exchangeable under the null hypothesis.
        left_out: The estimate without each dataset, by name of the dataset.
        weights: Weight of each dataset in the estimate; the weights sum to 1.
    """

    name: str
    value: float
    std_error: float | None = None
    interval: Interval | None = None
    p_value: float | None = None
    resampled_p: float | None = None
    num_resamples: int = 0
    smallest_p: float = 0.0
    exact: bool = False
    left_out: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    @property
    def p(self) -> float | None:
        """The larger one of the two p-values, because a verdict needs both to be small.

        None if there is no p-value.
        """
        p_values = [p for p in (self.p_value, self.resampled_p) if p is not None]
        return max(p_values, default=None)

    @property
    def is_tested(self) -> bool:
        """True if there is a p-value, and if resampling can give a p-value of at most 0.05."""
        return self.p is not None and self.smallest_p <= LEVEL

    @property
    def influential(self) -> str | None:
        """The most influential dataset; None if ``left_out`` is empty."""
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
    """Regress dataset effects on properties of the datasets, with t and permutation tests.

    Args:
        y: Response of each dataset, ``(G,)``.
        x: Regressors, ``(G, q)``.
        terms: Names of the regressors.
        blocks: Domain of each dataset. If the domain is a regressor, only datasets of the same
            domain are permuted.
        tested: Names of the regressors that are also tested by permutation.
        skip_permutation_above: Limit for the p-value of the t test. If this p-value is larger
            than the limit, no permutation test is made.

    Returns:
        One estimate for each regressor; None if the slopes are not identified.
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
    """Add the p-value of a permutation test, within domains if the domain is a regressor."""
    # K_F and log loss both differ between domains. If the domain is a covariate, datasets are
    # exchangeable only within their domain.
    covariates = set(terms) - {estimate.name}
    places = blocks if IS_MEDICAL in covariates else [""] * len(y)
    test = permutation_test(y, x[:, column], np.delete(x, column, axis=1), places)
    if test is None:
        return estimate
    # The domain is constant within domains, so the test stays exact. Any other covariate makes
    # the test approximate.
    is_exact = test.is_complete and covariates <= {IS_MEDICAL}
    return replace(
        estimate,
        resampled_p=test.p_value,
        num_resamples=test.num_orders,
        smallest_p=test.smallest_p,
        exact=is_exact,
    )


def correlation_interval(
    r: float, num_datasets: int, num_given: int, *, critical: float | None = None
) -> Interval | None:
    """Return the 95 % interval of a correlation or partial correlation, by Fisher's z.

    Args:
        r: The correlation.
        num_datasets: Number of datasets.
        num_given: Number of variables that a partial correlation is conditioned on.
        critical: Half width of the interval, in standard errors of z. If None, 1.96 is used.

    Returns:
        The interval. None if there are fewer than ``num_given`` + 4 datasets. Also None if
        there are fewer than six datasets, because Fisher's z is then not accurate.
    """
    # Fisher's z of a partial correlation has the variance 1 / (n − given variables − 3).
    degrees = num_datasets - num_given - 3
    if degrees < 1 or num_datasets < MIN_DATASETS_OF_A_CORRELATION:
        return None
    if critical is None:
        critical = float(special.ndtri(1 - LEVEL / 2))
    half_width = critical / np.sqrt(degrees)
    z = float(np.arctanh(np.clip(r, -1 + 1e-15, 1 - 1e-15)))
    return float(np.tanh(z - half_width)), float(np.tanh(z + half_width))
