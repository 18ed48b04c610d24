"""Least squares for points that come in groups: all points of one dataset share its d_data and its K_F.

66 points of 11 datasets carry the information of about 11, so every uncertainty here moves whole datasets: it
is read from what happens when each dataset is left out (a jackknife, the CR3 estimator of Bell & McCaffrey
2002). All refits are done at once, as one weighted least-squares problem per row of a weight matrix;
intercepts are eliminated before anything is solved, so that their number costs nothing.

Shape letters: n points, q regressors, B refits, G groups, C intercepts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from orchestrator.analysis.distributions import t_quantile

Array = NDArray[np.float64]

#: Two datasets give one difference, and one difference has no spread.
MIN_GROUPS_FOR_INTERVAL = 3

#: Below this reciprocal condition number (of the scaled normal matrix) a refit is called not identified.
_MIN_RCOND = 1e-10


@dataclass(frozen=True, slots=True)
class Problem:
    """One regression: response (n,), regressors (n, q), and for each point its intercept, dataset and weight.

    ``intercepts`` (n,) names the points that share one: a model, or a model at one train size. ``offset``
    (n,) is a part of the prediction with fixed slope 1.
    """

    response: Array
    regressors: Array
    intercepts: NDArray[np.str_]
    groups: NDArray[np.str_]
    weights: Array
    offset: Array | None = None

    @property
    def target(self) -> Array:
        """What the regression has to explain (n,)."""
        return self.response if self.offset is None else self.response - self.offset


@dataclass(frozen=True, slots=True)
class Solution:
    """Point estimate and its refits. Coefficients are (mean intercept, regressors...): length 1 + q."""

    coefficients: Array
    left_out: dict[str, Array]
    residuals: Array
    r_squared: float
    aicc: float | None
    held_out_rmse: float | None
    num_groups: int

    @property
    def covariance(self) -> Array | None:
        """Jackknife covariance over datasets, (1 + q, 1 + q).

        None with fewer than three datasets, or where one of them alone identifies a coefficient: without its
        refit the spread of the others would understate the uncertainty.
        """
        kept = np.array(list(self.left_out.values()))
        if len(kept) < MIN_GROUPS_FOR_INTERVAL or not np.isfinite(kept).all():
            return None
        moves = kept - self.coefficients
        return np.asarray((len(kept) - 1) / len(kept) * moves.T @ moves)

    def intervals(self, level: float = 0.95) -> Array | None:
        """Jackknife-t intervals (1 + q, 2) at ``level``; None where there is no covariance.

        Degrees of freedom are the datasets less one; ``benchmarks/fit_coverage.py`` shows how often they
        hold.
        """
        covariance = self.covariance
        if covariance is None:
            return None
        reach = t_quantile(0.5 + level / 2, self.num_groups - 1) * np.sqrt(np.diag(covariance))
        return np.column_stack([self.coefficients - reach, self.coefficients + reach])


@dataclass(frozen=True, slots=True)
class Refits:
    """Slopes (B, q; NaN where not identified), intercepts (B, C; NaN where a refit has no point) and their
    mean (B,).
    """

    slopes: Array
    intercepts: Array
    mean_intercept: Array

    @property
    def coefficients(self) -> Array:
        """Mean intercept, then slopes: (B, 1 + q)."""
        return np.column_stack([self.mean_intercept, self.slopes])


def refit(regressors: Array, target: Array, codes: NDArray[np.intp], weights: Array) -> Refits:
    """Solve weighted least squares with one intercept per code, for every row of ``weights`` at once.

    Args:
        regressors: (n, q); q may be 0.
        target: (n,).
        codes: (n,), which of C intercepts each point has.
        weights: (B, n), not negative.
    """
    scale = np.sqrt((regressors**2).mean(axis=0))
    x = regressors / np.where(scale > 0, scale, 1.0)
    num, q = x.shape
    member = sparse.csr_array((np.ones(num), (np.arange(num), codes)))
    mass = weights @ member
    known = np.where(mass > 0, mass, np.nan)
    y_mean = ((weights * target) @ member) / known
    x_mean = np.stack([((weights * x[:, k]) @ member) / known for k in range(q)], axis=2) if q else None
    slopes = np.empty((len(weights), q))
    for b, row in enumerate(weights):
        used = row > 0
        centred = x[used] - x_mean[b, codes[used]] if x_mean is not None else x[used]
        slopes[b] = _solve(centred, target[used] - y_mean[b, codes[used]], row[used], x[used])
    intercepts = y_mean - (np.einsum("bck,bk->bc", x_mean, slopes) if x_mean is not None else 0.0)
    mean = np.nansum(mass * intercepts, axis=1) / mass.sum(axis=1)
    mean[np.isnan(slopes).any(axis=1) | (mass.sum(axis=1) == 0)] = np.nan
    return Refits(slopes / np.where(scale > 0, scale, 1.0), intercepts, mean)


def _solve(centred: Array, target: Array, weights: Array, raw: Array) -> Array:
    """Slopes of one refit; NaN where what varies within intercepts is nothing beside what the regressors
    are.
    """
    normal = (centred * weights[:, None]).T @ centred
    size = float(np.trace((raw * weights[:, None]).T @ raw))
    if len(normal) and np.linalg.eigvalsh(normal)[0] <= _MIN_RCOND * size:
        return np.full(centred.shape[1], np.nan)
    return np.asarray(np.linalg.solve(normal, centred.T @ (weights * target)))


def leave_one_out_weights(groups: NDArray[np.str_], weights: Array) -> tuple[list[str], Array]:
    """Return the group names and weights (G, n), row g without group g."""
    names = np.unique(groups)
    return [str(name) for name in names], np.where(groups[None, :] == names[:, None], 0.0, weights[None, :])


def solve(problem: Problem) -> Solution | None:
    """Fit one regression with all its refits; None when the data do not identify the coefficients."""
    weights = problem.weights / problem.weights.mean()
    _, codes = np.unique(problem.intercepts, return_inverse=True)
    whole = refit(problem.regressors, problem.target, codes, weights[None, :])
    if not np.isfinite(whole.coefficients).all():
        return None
    names, without = leave_one_out_weights(problem.groups, weights)
    left = refit(problem.regressors, problem.target, codes, without if len(names) > 1 else without * np.nan)
    residuals = _errors(problem, whole, 0, codes, np.arange(len(codes)))
    return Solution(
        coefficients=whole.coefficients[0],
        left_out=dict(zip(names, left.coefficients, strict=True)),
        residuals=residuals,
        r_squared=_r_squared(problem, residuals, weights),
        aicc=aicc(
            float(weights @ residuals**2),
            len(residuals),
            int(codes.max()) + 2 + problem.regressors.shape[1],
        ),
        held_out_rmse=_held_out_rmse(problem, left, names, weights, codes),
        num_groups=len(names),
    )


def _errors(
    problem: Problem, refits: Refits, b: int, codes: NDArray[np.intp], rows: NDArray[np.intp]
) -> Array:
    fitted = refits.intercepts[b, codes[rows]] + problem.regressors[rows] @ refits.slopes[b]
    return np.asarray(problem.target[rows] - fitted)


def _r_squared(problem: Problem, residuals: Array, weights: Array) -> float:
    """Share of the variance of the response within intercepts that is explained (ordinary R² for one of
    them).
    """
    total = 0.0
    for name in np.unique(problem.intercepts):
        rows = problem.intercepts == name
        centre = np.average(problem.response[rows], weights=weights[rows])
        total += float(weights[rows] @ (problem.response[rows] - centre) ** 2)
    # Rounded because a fit of nothing but intercepts explains 0, not -2e-16.
    return round(1.0 - float(weights @ residuals**2) / total, 12) if total > 0 else 0.0


def aicc(squares: float, num_points: int, num_parameters: int) -> float | None:
    """Akaike's criterion with the small-sample correction (Hurvich & Tsai 1989), Gaussian errors; None if
    undefined.

    It takes points as independent, so within one table it ranks forms; its differences are no odds.

    Args:
        squares: sum of squared residuals.
        num_points: how many residuals.
        num_parameters: coefficients, intercepts, and one for the variance.
    """
    n, k = num_points, num_parameters
    if n - k - 1 <= 0 or squares <= 0:
        return None
    return n * float(np.log(squares / n)) + 2 * k + 2 * k * (k + 1) / (n - k - 1)


def _held_out_rmse(
    problem: Problem, left: Refits, names: list[str], weights: Array, codes: NDArray[np.intp]
) -> float | None:
    """Root mean squared error on datasets left out of the fit, each counting once; None if G < 2.

    Points whose intercept no other dataset has cannot be predicted and are passed over; None if a dataset
    has no other.
    """
    means = []
    for b, name in enumerate(names):
        rows = np.flatnonzero(problem.groups == name)
        errors = _errors(problem, left, b, codes, rows)
        known = np.isfinite(errors)
        if not known.any():
            return None
        means.append(np.average(errors[known] ** 2, weights=weights[rows][known]))
    return float(np.sqrt(np.mean(means)))
