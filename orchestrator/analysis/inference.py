"""Least squares for points that come in groups: all points of one dataset share its d_data and its K_F.

66 points of 11 datasets carry the information of about 11, so every uncertainty here moves whole datasets: it
is read from what happens when each dataset is left out (a jackknife, the CR3 estimator of Bell & McCaffrey
2002). All refits are done at once, as one weighted least-squares problem per row of a weight matrix;
intercepts are eliminated before anything is solved, so that their number costs nothing.

Shape letters: n points, q regressors, B refits, G groups, C intercepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, permutations, product
from math import comb, factorial, prod
from typing import overload

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, special
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

# Quantiles and tails of Student's t and of the normal distribution.
#
# ``scipy.stats`` gives the same numbers by the same functions, and takes more than a second to be imported:
# every command that plans, fits or reports would wait for it.

Array = NDArray[np.float64]


def normal_quantile(share: float) -> float:
    """Return below which value a standard normal variable lies with probability ``share``."""
    return float(special.ndtri(share))


def t_quantile(share: float, degrees: float) -> float:
    """Return below which value a t variable of so many degrees of freedom lies with probability ``share``."""
    return float(special.stdtrit(degrees, share))


@overload
def t_tail(value: float, degrees: float) -> float: ...
@overload
def t_tail(value: Array, degrees: float) -> Array: ...
def t_tail(value: float | Array, degrees: float) -> float | Array:
    """Return with which probability a t variable of so many degrees of freedom lies above each value."""
    found = special.stdtr(degrees, -np.asarray(value))
    return float(found) if np.ndim(value) == 0 else np.asarray(found)


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


# Inference over dataset means: what few datasets can show, by t, by permutation and by the wild cluster
# bootstrap.
#
# All points of a dataset share its d_data, its K_F and whatever else is peculiar to it, so a question about
# datasets has as many observations as there are datasets. Points are therefore reduced to one effect per
# dataset at equal model and train size, and every test below moves whole datasets.
#
# Shape letters: n points, G datasets, q regressors, B permutations or draws, m responses.

Interval = tuple[float, float]

#: All rearrangements are tried up to this number; beyond it, that many drawn ones stand for them.
MOST_EXACT = 200_000
NUM_DRAWN = 9_999
#: A sum of squares below this share of the total is rounding, not variation.
NEGLIGIBLE = 1e-20
#: Webb's six-point distribution (Webb 2023): with few clusters two points leave too few different draws.
_WEBB = np.array([-np.sqrt(1.5), -1.0, -np.sqrt(0.5), np.sqrt(0.5), 1.0, np.sqrt(1.5)])


@dataclass(frozen=True, slots=True)
class Slope:
    """One coefficient of a regression over dataset means."""

    value: float
    std_error: float
    interval: Interval
    p_value: float


def dataset_effects(
    values: Array, cells: NDArray[np.str_], groups: NDArray[np.str_], weights: Array
) -> tuple[list[str], Array] | None:
    """Reduce points to one effect per dataset, at equal cell (model and train size).

    Weighted least squares of each column on cell and dataset indicators; where every dataset has every
    cell these are the dataset means, less the grand mean.

    Args:
        values: (n, k).
        cells: (n,), what has to be equal for two points to be compared.
        groups: (n,), dataset names.
        weights: (n,), positive.

    Returns:
        Sorted names (G) and effects (G, k) that sum to zero; None where datasets share no cells, directly
        or through others, so that they cannot be compared at equal cell at all.
    """
    found = _comparable(cells, groups, weights)
    if found is None:
        return None
    names, cell, group, share, filled = found
    by_group = np.zeros((len(names), values.shape[1]))
    by_cell = np.zeros((share.shape[0], values.shape[1]))
    np.add.at(by_group, group, weights[:, None] * values)
    np.add.at(by_cell, cell, weights[:, None] * values)
    effects = np.linalg.solve(filled, by_group - share.T @ by_cell)
    return names, effects - effects.mean(axis=0)


def effect_operator(cells: NDArray[np.str_], groups: NDArray[np.str_], weights: Array) -> Array | None:
    """Return the linear map (G, n) from values of points to what :func:`dataset_effects` makes of them."""
    found = _comparable(cells, groups, weights)
    if found is None:
        return None
    names, cell, group, share, filled = found
    place = np.arange(len(weights))
    by_group, by_cell = np.zeros((len(names), len(weights))), np.zeros((share.shape[0], len(weights)))
    by_group[group, place] = weights
    by_cell[cell, place] = weights
    operator = np.linalg.solve(filled, by_group - share.T @ by_cell)
    return np.asarray(operator - operator.mean(axis=0))


def _comparable(
    cells: NDArray[np.str_], groups: NDArray[np.str_], weights: Array
) -> tuple[list[str], NDArray[np.intp], NDArray[np.intp], Array, Array] | None:
    """Dataset names (G), codes of cells and datasets (n,), shares of datasets in cells (C, G) and the normal
    equations (G, G); None where datasets cannot be compared at equal cell.
    """
    cell_names, cell = np.unique(cells, return_inverse=True)
    names, group = np.unique(groups, return_inverse=True)
    together = np.zeros((len(cell_names), len(names)))
    np.add.at(together, (cell, group), weights)
    joined = csr_array(together.T @ together > 0)
    if connected_components(joined, directed=False)[0] != 1:
        return None
    share = together / together.sum(axis=1, keepdims=True)
    laplacian = np.diag(together.sum(axis=0)) - together.T @ share
    # Its one null vector is the constant, which is filled in: a pseudo-inverse may take that eigenvalue's
    # rounding (1e-16) for a number and divide by it. A single dataset has nothing else.
    filled = laplacian + (laplacian.diagonal().mean() if len(names) > 1 else 1.0) / len(names)
    return [str(name) for name in names], cell, group, share, filled


def means_regression(response: Array, regressors: Array, level: float = 0.95) -> tuple[Slope, ...] | None:
    """Ordinary least squares over datasets with an intercept; intervals by t with G − q − 1 degrees of
    freedom.

    Args:
        response: (G,).
        regressors: (G, q).
        level: of the intervals.

    Returns:
        One slope per regressor; None where G − q − 1 < 1 or the regressors do not identify the slopes.
    """
    design = np.column_stack([np.ones(len(response)), regressors])
    spare = len(response) - design.shape[1]
    scale = np.sqrt((design**2).mean(axis=0))
    if spare < 1 or (scale == 0).any() or np.linalg.cond(design / scale) > 1e8:
        return None
    inverse = np.linalg.inv((design / scale).T @ (design / scale)) / np.outer(scale, scale)
    values = inverse @ design.T @ response
    squares = float(((response - design @ values) ** 2).sum())
    errors = np.sqrt(squares / spare * np.diag(inverse))
    reach = t_quantile(0.5 + level / 2, spare) * errors
    with np.errstate(divide="ignore", invalid="ignore"):
        p_values = 2 * t_tail(np.abs(values / errors), spare)
    p_values = np.where(errors > 0, p_values, np.where(values == 0, 1.0, 0.0))
    return tuple(
        Slope(float(values[k]), float(errors[k]), (float(values[k] - reach[k]), float(values[k] + reach[k])),
              float(p_values[k]))
        for k in range(1, design.shape[1])
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Permutation:
    """A two-sided permutation p-value, how many rearrangements it rests on, and whether those are all."""

    p_value: float
    num: int
    exact: bool


def permutation_test(
    response: Array, regressor: Array, others: Array, blocks: Sequence[str], *, seed: int = 0
) -> Permutation | None:
    """Permute the response over datasets, within blocks, against one regressor at given others.

    The statistic is |t| of the regressor. With no others, or with others that are constant within the
    blocks, datasets of a block are exchangeable under the null and the test is exact; otherwise residuals
    of the others' fit are permuted (Freedman & Lane 1983), which is exact only approximately.

    Args:
        response: (G,).
        regressor: (G,).
        others: (G, q), without the intercept; q may be 0.
        blocks: (G,), only datasets of one block change places.
        seed: of the drawn permutations, where there are too many to try all.
    """
    reduced = np.column_stack([np.ones(len(response)), others])
    basis, _ = np.linalg.qr(reduced)
    left = response - basis @ (basis.T @ response)
    x = regressor - basis @ (basis.T @ regressor)
    if x @ x <= NEGLIGIBLE * max(float(regressor @ regressor), 1e-300) or left @ left == 0:
        return None
    if len(response) - reduced.shape[1] < 2:
        return None
    order, exact = _orders(tuple(blocks), _two_values(regressor) if others.shape[1] == 0 else None, seed)
    # Projected again: a permuted residual need not stay orthogonal to the others. Its length stays.
    along = np.square(left[order] @ np.column_stack([basis, x]))
    squares = left @ left - along[:, :-1].sum(axis=1)
    share = along[:, -1] / float(x @ x) / np.maximum(squares, 1e-300)
    found = float((left @ x) ** 2 / float(x @ x) / float(left @ left))
    p_value = float(np.mean(share >= found * (1 - 1e-9)))
    return Permutation(p_value, len(order), exact)


def _two_values(regressor: Array) -> tuple[bool, ...] | None:
    low, high = float(regressor.min()), float(regressor.max())
    near = np.isclose(regressor, low, rtol=0, atol=1e-9 * (high - low))
    two = near | np.isclose(regressor, high, rtol=0, atol=1e-9 * (high - low))
    return tuple(near.tolist()) if two.all() else None


@lru_cache(maxsize=32)
def _orders(
    blocks: tuple[str, ...], marked: tuple[bool, ...] | None, seed: int
) -> tuple[NDArray[np.intp], bool]:
    """Rearrangements (B, G) of datasets within blocks, the present one among them, and whether they are all.

    ``marked`` says that only which datasets are marked matters, so that C(G, k) choices are all there is.
    """
    names = np.array(blocks)
    size = len(blocks)
    places = [np.flatnonzero(names == name) for name in np.unique(names)]
    if marked is not None and len(places) == 1 and comb(size, sum(marked)) <= MOST_EXACT:
        ones, others = np.flatnonzero(marked), np.flatnonzero(~np.array(marked))
        chosen = np.array(list(combinations(range(size), len(ones))))
        order = np.empty((len(chosen), size), dtype=np.intp)
        order[:, ones] = chosen
        mask = np.ones((len(chosen), size), dtype=bool)
        np.put_along_axis(mask, chosen, False, axis=1)
        order[:, others] = np.nonzero(mask)[1].reshape(len(chosen), len(others))
        return order, True
    if prod(factorial(len(block)) for block in places) <= MOST_EXACT:
        each = [np.array(list(permutations(block))) for block in places]
        index = np.array(list(product(*(range(len(rows)) for rows in each))))
        order = np.empty((len(index), size), dtype=np.intp)
        for k, block in enumerate(places):
            order[:, block] = each[k][index[:, k]]
        return order, True
    rng = np.random.default_rng([seed, size])
    order = np.tile(np.arange(size), (NUM_DRAWN + 1, 1))
    for block in places:
        order[1:, block] = rng.permuted(np.tile(block, (NUM_DRAWN, 1)), axis=1)
    return order, False


def max_correlation_test(
    responses: Array, regressor: Array, blocks: Sequence[str], *, seed: int = 0
) -> tuple[Array, Permutation] | None:
    """Adjust many correlations with one regressor for their number: max |r| over the family, by permutation.

    Westfall & Young (1993): the regressor changes places between datasets, the same way for all responses,
    so that their dependence is kept.

    Args:
        responses: (G, m); NaN where a dataset lacks one.
        regressor: (G,).
        blocks: (G,), only datasets of one block change places.
        seed: of the drawn permutations.

    Returns:
        Adjusted p-value of every response (m,), and the test of the largest; None where nothing varies.
    """
    order, exact = _orders(tuple(blocks), None, seed)
    strongest = np.zeros(len(order))
    found = np.full(responses.shape[1], np.nan)
    for k in range(responses.shape[1]):
        has = np.isfinite(responses[:, k])
        if has.sum() < 3:
            continue
        y = responses[has, k] - responses[has, k].mean()
        x = regressor[order][:, has]
        x = x - x.mean(axis=1, keepdims=True)
        spread = np.sqrt((x**2).sum(axis=1) * float(y @ y))
        with np.errstate(divide="ignore", invalid="ignore"):
            r = np.where(spread > 0, np.abs(x @ y) / spread, 0.0)
        now = regressor[has] - regressor[has].mean()
        size = np.sqrt(float(now @ now) * float(y @ y))
        if size > 0:
            found[k] = abs(float(now @ y)) / size
            strongest = np.maximum(strongest, r)
    if not np.isfinite(found).any():
        return None
    adjusted = np.array(
        [np.nan if np.isnan(r) else float(np.mean(strongest >= r * (1 - 1e-9))) for r in found]
    )
    return adjusted, Permutation(float(np.nanmin(adjusted)), len(order), exact)


def wild_cluster_p(scores: Array, weights: Array, *, seed: int = 0) -> float | None:
    """Restricted wild cluster bootstrap-t p-value of one slope with intercepts within clusters.

    Cameron, Gelbach & Miller (2008). With one regressor whose intercepts lie within datasets, the whole
    bootstrap needs only two numbers of each dataset.

    Args:
        scores: (G,), Σ x (y − x β₀) of each dataset, x and y centred within curves; β₀ the null value.
        weights: (G,), Σ x² of each dataset.
        seed: of the draws, where there are too many sign patterns to try all.

    Returns:
        The share of draws with a larger |t|; None with fewer than three datasets.
    """
    if len(scores) < 3 or weights.sum() <= 0:
        return None
    draws = _signs(len(scores), seed)
    total = draws @ scores
    left = draws * scores - total[:, None] * (weights / weights.sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(total) / np.sqrt((left**2).sum(axis=1))
    own = scores - scores.sum() * weights / weights.sum()
    spread = float(np.sqrt((own**2).sum()))
    if spread <= 0:
        return 0.0 if abs(float(scores.sum())) > 0 else None
    return float(np.mean(np.nan_to_num(t, nan=np.inf) >= abs(float(scores.sum())) / spread * (1 - 1e-9)))


@lru_cache(maxsize=16)
def _signs(size: int, seed: int) -> Array:
    """All sign patterns where there are at most 2¹², else drawn ones; Webb's six points below eight
    datasets.
    """
    if 8 <= size <= 12:
        return np.array(list(product((-1.0, 1.0), repeat=size)))
    rng = np.random.default_rng([seed, size, 6])
    if size < 8:
        return np.vstack([np.ones(size), rng.choice(_WEBB, (NUM_DRAWN, size))])
    return np.vstack([np.ones(size), rng.choice((-1.0, 1.0), (NUM_DRAWN, size))])


def mean_interval(values: Array, level: float = 0.95) -> tuple[float, Interval | None]:
    """Mean over datasets with its t interval; no interval below three datasets or where nothing varies."""
    mean = float(values.mean())
    if len(values) < 3 or float(values.std()) <= 1e-12 * float(np.abs(values).max()):
        return mean, None
    reach = float(t_quantile(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, (mean - reach, mean + reach)
