"""Variance of one least-squares coefficient if rows of the same cluster are dependent.

The method is CR2, the bias-reduced linearization of Bell & McCaffrey (2002), with
Satterthwaite's degrees of freedom (Imbens & Kolesár 2016; Pustejovsky & Tipton 2018). The
working model assumes independent rows with equal variance. Under this model CR2 is unbiased
for any weights of the clusters. If each cluster has an intercept, the rows can be centered
within clusters instead. This does not change CR2 (Pustejovsky & Tipton 2018, theorem 2).

Letters in the shapes of arrays: n rows, p columns, C clusters, B draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.analysis.inference import Array, Codes, wild_draws

MIN_SINGULAR = 1e-12
"""Limit for the eigenvalues of a matrix of products, as a share of its largest eigenvalue.
Smaller eigenvalues are rounding errors and count as 0."""
MIN_SHARE_LEFT = 1e-8
"""Limit for the share of a direction that remains in a cluster's residuals after the fit.
Below this limit, the cluster alone determines the fit in this direction, so its residuals in
this direction are zero."""
ROUNDING = 1e-9
"""Relative difference below which two t values count as equal."""


@dataclass(frozen=True, slots=True)
class Variance:
    """The variance of an estimate, and the degrees of freedom of a t test with this variance."""

    value: float
    degrees: float


@dataclass(frozen=True, slots=True)
class Coefficient:
    """One coefficient of a least-squares fit, with the arrays for its variance.

    Attributes:
        value: The coefficient.
        columns: Regressors, centered within units if units have intercepts, ``(n, p)``.
        inverse: Pseudo-inverse of ``columns' columns``, ``(p, p)``.
        direction: Residuals of a regression of the coefficient's column on the other columns,
            ``(n,)``.
        residuals: Residuals of the response, ``(n,)``.
    """

    value: float
    columns: Array
    inverse: Array
    direction: Array
    residuals: Array

    @property
    def variation(self) -> float:
        """Sum of the squared entries of ``direction``."""
        return float(self.direction @ self.direction)


def least_squares(response: Array, columns: Array, place: int) -> Coefficient:
    """Fit a response, ``(n,)``, and return the coefficient of the column at ``place``."""
    products = columns.T @ columns
    inverse = np.linalg.pinv(products, rcond=MIN_SINGULAR, hermitian=True).astype(float)
    coefficients = inverse @ (columns.T @ response)
    column = columns[:, place]
    remaining = np.delete(columns, place, axis=1)
    explained = np.linalg.lstsq(remaining, column, rcond=None)[0]
    return Coefficient(
        value=float(coefficients[place]),
        columns=columns,
        inverse=inverse,
        direction=column - remaining @ explained,
        residuals=response - columns @ coefficients,
    )


def cr2_variance(fitted: Coefficient, clusters: Codes) -> Variance:
    """Return the CR2 variance of a coefficient and Satterthwaite's degrees of freedom.

    A fit makes the residuals of a cluster smaller than its errors are. CR2 multiplies them by
    ``(I − H)^(−1/2)``, where H is the cluster's block of the hat matrix. The estimated
    variance is then a sum of squares: one square for each cluster, of a linear combination of
    the errors. Satterthwaite's method chooses the χ² distribution with the same mean and
    variance as this sum.

    Under the working model, the linear combinations of clusters g and h have the covariance
    ``P[g, h] = lengths[g] (if g = h) − overlaps[g]' inverse overlaps[h]``. Only the traces of
    P and P² are needed.
    """
    # The coefficient is weights' response (Frisch & Waugh 1933).
    weights = fitted.direction / fitted.variation
    variance = 0.0
    lengths, overlaps = [], []
    for rows in _rows_by_cluster(clusters):
        columns = fitted.columns[rows]
        stretched = _stretch(columns, fitted.inverse, weights[rows])
        form = float(stretched @ fitted.residuals[rows])
        variance += form**2
        lengths.append(float(stretched @ stretched))
        overlaps.append(columns.T @ stretched)
    degrees = _satterthwaite(
        np.array(lengths),
        np.array(overlaps),
        fitted.inverse,
    )
    return Variance(variance, degrees)


def _rows_by_cluster(clusters: Codes) -> list[Codes]:
    """Return the row numbers of each cluster."""
    order = np.argsort(clusters, kind="stable")
    _, starts = np.unique(clusters[order], return_index=True)
    return np.split(order, starts[1:])


def _stretch(columns: Array, inverse: Array, weights: Array) -> Array:
    """Return ``(I − columns inverse columns')^(−1/2) weights``, projected on the columns' span."""
    # The cluster's block of the hat matrix has as many rows as the cluster. In the basis of
    # the cluster's columns, it has only as many rows as there are columns. Directions in which
    # the fit leaves no residual get the factor 0 (a generalized inverse; Pustejovsky & Tipton
    # 2018).
    basis, singular_values, axes = np.linalg.svd(columns, full_matrices=False)
    scaled = singular_values[:, None] * axes
    hat_block = scaled @ inverse @ scaled.T
    block_left = np.eye(len(hat_block)) - hat_block
    shares_left, directions = np.linalg.eigh(block_left)
    factors = np.zeros(len(shares_left))
    is_left = shares_left > MIN_SHARE_LEFT
    factors[is_left] = shares_left[is_left] ** -0.5
    rotated = directions.T @ (basis.T @ weights)
    rotated *= factors
    stretched: Array = basis @ (directions @ rotated)
    return stretched


def _satterthwaite(lengths: Array, overlaps: Array, inverse: Array) -> float:
    """Return ``trace(P)² / trace(P²)``. :func:`cr2_variance` defines the covariance P."""
    shrinkage = ((overlaps @ inverse) * overlaps).sum(axis=1)
    trace = float(lengths.sum() - shrinkage.sum())
    # trace(P²) is expanded, so that the C × C matrix P is never built.
    mixing = inverse @ overlaps.T @ overlaps
    trace_of_square = float((lengths**2).sum())
    trace_of_square -= 2 * float(lengths @ shrinkage)
    trace_of_square += float(np.trace(mixing @ mixing))
    if trace_of_square <= 0:
        return 0.0
    return trace**2 / trace_of_square


def excess_variance(fitted: Coefficient, crossing: Codes, units: Codes) -> Variance:
    """Return the variance, at least 0, that a crossing column adds to the variance by units.

    Rows with the same value in the crossing column may be dependent. In two-way clustering
    (Cameron, Gelbach & Miller 2011), the added variance is a difference. The first term uses
    rows with the same crossing value as clusters. The second term uses rows with the same unit
    and crossing value as clusters. The variance by units already contains the second term.
    """
    by_value = cr2_variance(fitted, crossing)
    num_values = len(np.unique(crossing))
    degrees = min(by_value.degrees, num_values - 1.0)
    # The rows are centered within units, which also removed the mean over crossing values.
    variance = by_value.value * _small_sample(num_values)

    pairs = np.column_stack([units, crossing])
    _, combination = np.unique(pairs, axis=0, return_inverse=True)
    products = fitted.direction * fitted.residuals
    scores = np.bincount(combination.reshape(-1), products)
    counted_already = float(scores @ scores) / fitted.variation**2
    counted_already *= _small_sample(len(scores))
    excess = max(0.0, variance - counted_already)
    return Variance(excess, max(1.0, degrees))


def _small_sample(num_clusters: int) -> float:
    """Return the usual correction of a variance for a small number C of clusters: C / (C − 1)."""
    return num_clusters / max(1, num_clusters - 1)


def total_variance(parts: Sequence[Variance]) -> Variance:
    """Return the sum of independent variances, with Satterthwaite's degrees of freedom."""
    variance = 0.0
    spread = 0.0
    for part in parts:
        if part.value > 0:
            variance += part.value
            spread += part.value**2 / part.degrees
    if spread == 0:
        return parts[0]
    # Satterthwaite (1946): (Σv)² / Σ(v² / degrees).
    return Variance(variance, variance**2 / spread)


@dataclass(frozen=True, slots=True)
class BootstrapTest:
    """The p-value of a bootstrap, and the smallest p-value that its draws can give."""

    p_value: float
    smallest_p: float


def wild_bootstrap(fitted: Coefficient, clusters: Codes) -> BootstrapTest:
    """Test a coefficient against 0 by the restricted wild cluster bootstrap-t.

    The residuals come from a fit without the coefficient's column. A draw multiplies the
    residuals of each cluster by a random weight: by a sign, or by one of Webb's six weights.
    Then the coefficient is fitted again (Cameron, Gelbach & Miller 2008). A refit uses only
    sums over clusters, so a draw does not read the rows.

    Args:
        fitted: The coefficient.
        clusters: Code of each row's cluster, counted from 0, ``(n,)``.
    """
    direction = fitted.direction
    # Under the null hypothesis, the coefficient is 0. The part of the response that the
    # coefficient explained is therefore added to the residuals.
    restricted = fitted.residuals + fitted.value * direction
    scores = _sums(clusters, direction * restricted)
    column_sums = _sums(clusters, fitted.columns * restricted[:, None])
    overlaps = _sums(clusters, fitted.columns * direction[:, None])
    observed_scores = _sums(clusters, direction * fitted.residuals)
    observed_spread = float(np.linalg.norm(observed_scores))
    observed = abs(float(scores.sum()))
    draws = wild_draws(len(scores))
    # A draw that gives equal weights to all contributing clusters has the observed |t|.
    contributing = np.abs(scores) > ROUNDING * np.abs(scores).max()
    smallest_p = float(np.mean(np.ptp(draws[:, contributing], axis=1) == 0))
    if observed_spread <= 0:
        return BootstrapTest(float(observed <= 0), smallest_p)

    coefficients = draws @ column_sums @ fitted.inverse
    drawn_scores = draws * scores - coefficients @ overlaps.T
    drawn_spreads = np.linalg.norm(drawn_scores, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn_t = np.abs(draws @ scores) / drawn_spreads
    drawn_t = np.nan_to_num(drawn_t, nan=np.inf)
    observed_t = observed / observed_spread
    p_value = float(np.mean(drawn_t >= observed_t * (1 - ROUNDING)))
    return BootstrapTest(p_value, smallest_p)


def _sums(clusters: Codes, values: Array) -> Array:
    """Return the sums of values, ``(n, …)``, over each cluster, ``(C, …)``."""
    num_clusters = int(clusters.max()) + 1
    sums = np.zeros((num_clusters, *values.shape[1:]))
    np.add.at(sums, clusters, values)
    return sums
