"""Variance of one least-squares coefficient when rows of one cluster depend on each other.

CR2, the bias-reduced linearisation of Bell & McCaffrey (2002), with Satterthwaite's degrees of
freedom (Imbens & Kolesár 2016; Pustejovsky & Tipton 2018), on plain arrays. The working model is
that of independent rows with equal variance: under it CR2 is unbiased, whatever weight a cluster
has. Intercepts that lie within clusters may be absorbed by centring: CR2 stays the same
(Pustejovsky & Tipton 2018, theorem 2). Shape letters: n rows, p columns, C clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from orchestrator.analysis.inference import Array, Codes

MIN_SHARE = 1e-12
"""Directions whose share of variation is below this are rounding."""


@dataclass(frozen=True, slots=True)
class Variance:
    """Variance of an estimate, and the degrees of freedom of a t test with it."""

    value: float
    degrees: float


@dataclass(frozen=True, slots=True)
class Coefficient:
    """One coefficient of a least-squares fit, with what its variance needs.

    Attributes:
        value: The coefficient.
        columns: Regressors, centred within what was absorbed, ``(n, p)``.
        inverse: Pseudo-inverse of ``columns' columns``, ``(p, p)``.
        direction: What varies of the coefficient's column beside the others, ``(n,)``.
        residuals: ``(n,)``.
    """

    value: float
    columns: Array
    inverse: Array
    direction: Array
    residuals: Array

    @property
    def variation(self) -> float:
        """Sum of squares of the direction."""
        return float(self.direction @ self.direction)


def least_squares(response: Array, columns: Array, place: int) -> Coefficient:
    """Fit a response, ``(n,)``, and return the coefficient of the column at ``place``."""
    inverse: Array = np.linalg.pinv(columns.T @ columns, rcond=MIN_SHARE, hermitian=True)
    coefficients = inverse @ (columns.T @ response)
    remaining = np.delete(columns, place, axis=1)
    column = columns[:, place]
    explained = np.linalg.lstsq(remaining, column, rcond=None)[0]
    direction = column - remaining @ explained
    residuals = response - columns @ coefficients
    return Coefficient(float(coefficients[place]), columns, inverse, direction, residuals)


def cr2_variance(fitted: Coefficient, clusters: Codes) -> Variance:
    """Return the CR2 variance of a coefficient and Satterthwaite's degrees of freedom.

    A cluster's residuals are shrunk by the fit. CR2 stretches them by ``(I − H)^(−1/2)``, where H
    is the cluster's block of the hat matrix. The variance is then a sum over clusters of squares
    of linear forms in the errors, and Satterthwaite matches its first two moments to a χ².
    """
    order = np.argsort(clusters, kind="stable")
    sizes = np.unique(clusters[order], return_counts=True)[1]
    weights = fitted.direction / fitted.variation
    num_columns = fitted.columns.shape[1]
    squares = np.zeros(len(sizes))
    own_products = np.zeros(len(sizes))
    cross_products = np.zeros((len(sizes), num_columns))
    for cluster, rows in enumerate(np.split(order, np.cumsum(sizes)[:-1])):
        columns = fitted.columns[rows]
        stretched = _stretch(columns, fitted.inverse, weights[rows])
        squares[cluster] = (stretched @ fitted.residuals[rows]) ** 2
        own_products[cluster] = stretched @ stretched
        cross_products[cluster] = columns.T @ stretched
    # Under the working model, forms of clusters g and h have covariance P[g, h] = own_products[g]
    # (if g = h) − cross_products[g]' inverse cross_products[h]. Only traces of P and P² are needed.
    leverage = np.einsum("gi,ij,gj->g", cross_products, fitted.inverse, cross_products)
    trace = float(own_products.sum() - leverage.sum())
    mixing = fitted.inverse @ (cross_products.T @ cross_products)
    trace_of_square = float(
        (own_products**2).sum() - 2 * (own_products * leverage).sum() + np.trace(mixing @ mixing)
    )
    degrees = trace**2 / trace_of_square if trace_of_square > 0 else 0.0
    return Variance(float(squares.sum()), degrees)


def _stretch(columns: Array, inverse: Array, weights: Array) -> Array:
    """Return ``(I − columns inverse columns')^(−1/2) weights``, in the span of the columns."""
    basis, lengths, axes = np.linalg.svd(columns, full_matrices=False)
    scaled = lengths[:, None] * axes
    kept = np.eye(len(lengths)) - scaled @ inverse @ scaled.T
    shares, directions = np.linalg.eigh(kept)
    # A direction that this cluster alone determines leaves no residual.
    is_left = shares > 1e-8
    factors = np.zeros(len(shares))
    factors[is_left] = shares[is_left] ** -0.5
    inside = directions @ (factors * (directions.T @ (basis.T @ weights)))
    return np.asarray(basis @ inside)


def excess_variance(fitted: Coefficient, crossing: Codes, units: Codes) -> Variance:
    """Return what rows with one crossing value add to the variance, at least 0.

    This is the third term of two-way clustering (Cameron, Gelbach & Miller 2011): the variance with
    clusters by crossing value, less the one with clusters by unit and crossing value, which the
    clusters by group hold already.
    """
    num_values = len(np.unique(crossing))
    by_value = cr2_variance(fitted, crossing)
    # Units' intercepts, which are absorbed, take out the mean over values.
    shared = by_value.value * num_values / max(1, num_values - 1)
    _, both = np.unique(np.column_stack([units, crossing]), axis=0, return_inverse=True)
    both = both.reshape(-1)
    scores = np.bincount(both, fitted.direction * fitted.residuals) / fitted.variation
    num_both = len(scores)
    held = float(scores @ scores) * num_both / max(1, num_both - 1)
    degrees = max(1.0, min(by_value.degrees, num_values - 1.0))
    return Variance(max(0.0, shared - held), degrees)


def total(parts: list[Variance]) -> Variance:
    """Add independent variances up, with Satterthwaite's degrees of freedom of their sum."""
    value = sum(part.value for part in parts)
    spread = sum(part.value**2 / part.degrees for part in parts if part.value > 0)
    if spread == 0:
        return parts[0]
    return Variance(value, value**2 / spread)
