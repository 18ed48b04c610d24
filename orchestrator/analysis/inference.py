"""Inference with few datasets, on plain arrays: t, permutation, jackknife, wild cluster bootstrap.

Points of one dataset are not independent: 66 points of 11 datasets carry the information of about
11. So the dataset is the unit. Points are averaged within datasets, or whole datasets are left out
(jackknife) or exchanged (permutation).

Shape letters: n points, G datasets, q terms, B rearrangements or draws, m responses.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from itertools import combinations, permutations, product
from math import comb, factorial, prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

Array = NDArray[np.float64]
Codes = NDArray[Any]
Interval = tuple[float, float]

LEVEL = 0.05
"""Level of every test; intervals are of 1 − LEVEL."""
MAX_EXACT = 200_000
"""All rearrangements are tried up to this number; beyond it, drawn ones stand for them."""
NUM_DRAWN = 9_999
"""Rearrangements or draws that stand for all, besides the one at hand."""
MIN_DATASETS = 3
"""Two datasets give one difference, and one difference has no scatter."""
MIN_CLASSES = 5
"""Fewer classes that replicates share are too few to leave one out."""
MIN_RCOND = 1e-10
"""Relative tolerance below which what varies of a regressor is rounding."""
MAX_CONDITION = 1e8
"""Largest condition number of a design whose slopes are taken to be identified."""
WEBB = np.array([-np.sqrt(1.5), -1.0, -np.sqrt(0.5), np.sqrt(0.5), 1.0, np.sqrt(1.5)])
"""Webb's six weights (2023): with few clusters two weights leave too few different draws."""
FEWEST_FOR_SIGNS = 8
"""Datasets from which on signs alone are drawn; below, Webb's weights."""
MOST_FOR_ALL_SIGNS = 12
"""Datasets up to which all sign patterns are tried."""
MAX_TESTS_OF_A_FAMILY = 5
"""Tests of the headline family: criticals of the largest correlation are given for 1 to so many."""
MIN_DATASETS_OF_A_CORRELATION = 4
"""Three points lie near a line too often."""


class Sums(NamedTuple):
    """Sums of each dataset for a slope within curves, which is Σxy / Σx².

    Attributes:
        names: Datasets, ``(G,)``.
        xx: Σx² of each, ``(G,)``.
        xy: Σxy of each, ``(G,)``.
    """

    names: list[str]
    xx: Array
    xy: Array


class Permutation(NamedTuple):
    """The result of a permutation test.

    Attributes:
        p_value: Share of the rearrangements that are as extreme as the one at hand.
        num_orders: Rearrangements that were tried.
        is_complete: Whether these are all.
    """

    p_value: float
    num_orders: int
    is_complete: bool


def t_quantile(share: float, degrees: float) -> float:
    """Return a quantile of t; ``scipy.stats`` calls the same, and takes a second to import."""
    return float(special.stdtrit(degrees, share))


def t_interval(value: float, std_error: float, degrees: float) -> Interval:
    """Return the 95 % interval by t."""
    half_width = t_quantile(1 - LEVEL / 2, degrees) * std_error
    return value - half_width, value + half_width


def t_p_values(values: Array | float, std_errors: Array | float, degrees: float) -> Array:
    """Return two-sided p-values of t = value / standard error.

    If nothing scatters (an error of exactly 0), p is 0, or 1 for a value of 0.
    """
    values = np.asarray(values)
    std_errors = np.asarray(std_errors)
    with np.errstate(divide="ignore", invalid="ignore"):
        p_values = 2 * special.stdtr(degrees, -np.abs(values / std_errors))
    without_scatter = np.where(values == 0, 1.0, 0.0)
    return np.asarray(np.where(std_errors > 0, p_values, without_scatter))


def mean_interval(values: Array) -> tuple[float, float | None, Interval | None]:
    """Return mean, standard error and 95 % t interval.

    Error and interval are None below three values, or if all are equal: then nothing is known of
    the scatter.
    """
    mean = float(values.mean())
    num_values = len(values)
    is_constant = float(values.std()) <= 1e-12 * float(np.abs(values).max())
    if num_values < MIN_DATASETS or is_constant:
        return mean, None, None
    error = float(values.std(ddof=1) / np.sqrt(num_values))
    return mean, error, t_interval(mean, error, num_values - 1)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p-values for their number by Holm's method (1979); None was not tested."""
    adjusted = list(p_values)
    tested = [(p, place) for place, p in enumerate(p_values) if p is not None]
    largest = 0.0
    for rank, (p, place) in enumerate(sorted(tested)):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        adjusted[place] = largest
    return adjusted


def members(codes: Codes) -> tuple[list[str], csr_array]:
    """Return the sorted names of codes (n,), and the matrix (names, n) that sums over each."""
    names, code = np.unique(codes, return_inverse=True)
    ones = np.ones(len(code))
    return [str(name) for name in names], csr_array((ones, (code, np.arange(len(code)))))


def centred(values: Array, codes: Codes, weights: Array | None = None) -> Array:
    """Return columns (n, k) less their means of the same code.

    Residuals below 1e-13 of a column's largest value are rounding, and become 0.
    """
    _, member = members(codes)
    if weights is None:
        weights = np.ones(len(values))
    means = member @ (weights[:, None] * values) / (member @ weights)[:, None]
    residuals = values - member.T @ means
    is_rounding = np.abs(residuals) <= 1e-13 * np.abs(values).max(axis=0)
    return np.asarray(np.where(is_rounding, 0.0, residuals))


def dataset_effects(
    values: Array, cells: Codes, groups: Codes, weights: Array
) -> tuple[list[str], Array] | None:
    """Reduce points to one effect per dataset, at equal cell: two-way fixed effects.

    Each column is regressed on indicators of datasets and cells by weighted least squares.

    Args:
        values: Columns, ``(n, k)``.
        cells: Code of what must be equal, as model and train size, ``(n,)``.
        groups: Dataset, ``(n,)``.
        weights: Weights, ``(n,)``.

    Returns:
        Sorted names, and effects ``(G, k)`` that sum to zero; None if the datasets share no cells,
        directly or through others.
    """
    _, in_cell = members(cells)
    names, in_group = members(groups)
    weight_of = (in_cell * weights @ in_group.T).toarray()
    shares_a_cell = csr_array(weight_of @ weight_of.T > 0)
    num_components, _ = connected_components(shares_a_cell, directed=False)
    if num_components != 1:
        return None
    group_weights = weight_of.sum(axis=0)
    share = weight_of / group_weights
    laplacian = np.diag(weight_of.sum(axis=1)) - weight_of @ share.T
    # The Laplacian is singular in the constant direction, which is filled in: a pseudo-inverse may
    # take that eigenvalue's rounding (1e-16) for a number and divide by it. A single cell has no
    # other direction.
    num_cells = len(weight_of)
    filling = laplacian.diagonal().mean() if num_cells > 1 else 1.0
    weighted = weights[:, None] * values
    by_group = in_group @ weighted
    of_cells = np.linalg.solve(
        laplacian + filling / num_cells, in_cell @ weighted - share @ by_group
    )
    effects = (by_group - weight_of.T @ of_cells) / group_weights[:, None]
    is_constant = np.ptp(effects, axis=0) <= 1e-12 * np.abs(values).max(axis=0)
    return names, np.where(is_constant, 0.0, effects - effects.mean(axis=0))


def ols(y: Array, x: Array) -> tuple[Array, Array, int] | None:
    """Regress y (G,) on x (G, q) with an intercept, by ordinary least squares.

    Returns:
        Slopes ``(q,)``, their standard errors and the degrees of freedom; None if the slopes are
        not identified.
    """
    design = np.column_stack([np.ones(len(y)), x])
    degrees = len(y) - design.shape[1]
    scale = np.sqrt((design**2).mean(axis=0))
    if degrees < 1 or (scale == 0).any():
        return None
    scaled = design / scale
    if np.linalg.cond(scaled) > MAX_CONDITION:
        return None
    inverse = np.linalg.inv(scaled.T @ scaled) / np.outer(scale, scale)
    coefficients = inverse @ design.T @ y
    residuals = y - design @ coefficients
    errors = np.sqrt(residuals @ residuals / degrees * np.diag(inverse))
    return coefficients[1:], errors[1:], degrees


def permutation_test(
    y: Array, x: Array, covariates: Array, blocks: Sequence[str]
) -> Permutation | None:
    """Test the slope on x in a regression of y on x and covariates, by permutation within blocks.

    The statistic is |t|. The test is exact if no covariate varies within blocks. Else residuals of
    the fit on the covariates are permuted (Freedman & Lane 1983), which is exact only
    asymptotically.

    Args:
        y: Response, ``(G,)``.
        x: Regressor, ``(G,)``.
        covariates: What is held equal, ``(G, q)``.
        blocks: Block of each dataset.

    Returns:
        None if x or y do not vary beside the covariates.
    """
    reduced = np.column_stack([np.ones(len(y)), covariates])
    basis, _ = np.linalg.qr(reduced)
    y_residual = y - basis @ (basis.T @ y)
    x_residual = x - basis @ (basis.T @ x)
    x_varies = x_residual @ x_residual > 1e-20 * max(float(x @ x), 1e-300)
    if not x_varies or y_residual @ y_residual == 0 or len(y) - reduced.shape[1] < 2:
        return None
    is_low = np.isclose(x, x.min(), rtol=0, atol=1e-9 * np.ptp(x))
    is_high = np.isclose(x, x.max(), rtol=0, atol=1e-9 * np.ptp(x))
    num_low = int(is_low.sum())
    is_binary = covariates.shape[1] == 0 and (is_low | is_high).all() and len(set(blocks)) == 1
    if is_binary and comb(len(y), num_low) <= MAX_EXACT:
        # For a binary regressor it is enough to try which datasets have the lower value.
        subsets = np.array(list(combinations(range(len(y)), num_low)))
        sums = np.abs(y_residual[subsets].sum(axis=1))
        is_extreme = sums >= abs(y_residual[is_low].sum()) * (1 - 1e-9)
        return Permutation(float(np.mean(is_extreme)), len(sums), is_complete=True)
    orders, is_complete = rearrangements(tuple(blocks))
    # Projected again: a permuted residual need not stay orthogonal to the others. Its length stays.
    projections = np.square(y_residual[orders] @ np.column_stack([basis, x_residual]))
    lengths = y_residual @ y_residual - projections[:, :-1].sum(axis=1)
    x_length = float(x_residual @ x_residual)
    explained = projections[:, -1] / x_length / np.maximum(lengths, 1e-300)
    observed = float((y_residual @ x_residual) ** 2 / x_length / float(y_residual @ y_residual))
    is_extreme = explained >= observed * (1 - 1e-9)
    return Permutation(float(np.mean(is_extreme)), len(orders), is_complete)


def class_permutation_p(y: Array, x: Array, covariates: Array, classes: Codes) -> float | None:
    """Return the p-value of a slope over class pairs by permuting the classes of the regressor.

    A jackknife over classes is slightly liberal if one regressor and the response are both sums of
    class effects: 6 % false claims with ten classes. A permutation of classes keeps what pairs that
    share a class have in common (quadratic assignment; Krackhardt 1988). It is exact without
    covariates; with them residuals of x are permuted (Dekker, Krackhardt & Snijders 2007).

    Args:
        y: Response of every pair, ``(U,)``.
        x: Regressor, ``(U,)``.
        covariates: What is held equal, ``(U, q)``.
        classes: Codes from 0 of the two classes of every pair, ``(U, 2)``.

    Returns:
        Two-sided p-value; None if x or y do not vary beside the covariates.
    """
    held_equal, _ = np.linalg.qr(np.column_stack([np.ones(len(y)), covariates]))
    y_residual = y - held_equal @ (held_equal.T @ y)
    x_residual = x - held_equal @ (held_equal.T @ x)
    if x_residual @ x_residual <= 1e-20 * (x @ x) or not y_residual.any():
        return None
    num_classes = int(classes.max()) + 1
    by_classes = np.zeros((num_classes, num_classes))  # a pair that is missing counts as average
    first, second = classes.T
    by_classes[first, second] = x_residual
    by_classes[second, first] = x_residual
    orders, _ = rearrangements(("",) * num_classes)
    permuted = by_classes[orders[:, first], orders[:, second]]
    permuted -= (permuted @ held_equal) @ held_equal.T
    lengths = np.sqrt((permuted**2).sum(axis=1))
    correlations = np.abs(permuted @ y_residual) / np.maximum(lengths, 1e-300)
    return float(np.mean(correlations >= correlations[0] * (1 - 1e-9)))


@lru_cache(maxsize=32)
def rearrangements(blocks: tuple[str, ...]) -> tuple[NDArray[np.int16], bool]:
    """Return orders (B, G) of datasets within blocks, and whether they are all.

    The present order comes first. As 16-bit integers the largest table takes some 4 MB a dataset.
    """
    names = np.array(blocks)
    places = [np.flatnonzero(names == name) for name in np.unique(names)]
    is_complete = prod(factorial(len(block)) for block in places) <= MAX_EXACT
    if is_complete:
        by_block = [np.array(list(permutations(block))) for block in places]
        index = np.indices([len(rows) for rows in by_block]).reshape(len(by_block), -1)
        columns = [rows[chosen] for rows, chosen in zip(by_block, index, strict=True)]
        permuted = np.hstack(columns)
    else:
        rng = np.random.default_rng([0, len(blocks)])
        random_orders = [rng.permuted(np.tile(block, (NUM_DRAWN, 1)), axis=1) for block in places]
        permuted = np.vstack([np.concatenate(places), np.hstack(random_orders)])
    orders = np.empty(permuted.shape, dtype=np.int16)
    orders[:, np.concatenate(places)] = permuted
    return orders, is_complete


class MaxCorrelation(NamedTuple):
    """Correlations of several responses with one column, and what their number costs.

    Attributes:
        r: Correlation of each response, ``(m,)``; NaN below four datasets.
        adjusted_p: One-sided p of those tested, adjusted for their number; NaN for the others.
        num_rearrangements: Permutations that p is made of.
        critical: Half width of simultaneous 95 % intervals of those tested, in standard errors of
            Fisher's z: 1.96 for one response, more for the largest of several.
        criticals: Standard errors that the largest exceeds in a share of 0.05 / k of the
            permutations, for k = 1, 2, …; empty if none is tested.
    """

    r: Array
    adjusted_p: Array
    num_rearrangements: int
    critical: float
    criticals: tuple[float, ...] = ()


def max_correlation_test(
    responses: Array, x: Array, blocks: Sequence[str], tested: Collection[int]
) -> MaxCorrelation:
    """Correlate responses with x within blocks, and adjust those tested for their number.

    Max-statistic p-values (Westfall & Young 1993), one-sided: only a rise with x counts. The same
    permutation of x is used for all responses, so that their dependence is kept.

    Args:
        responses: Responses, ``(G, m)``; NaN where there is none.
        x: Regressor, ``(G,)``.
        blocks: Block of each dataset.
        tested: Columns that are tested.
    """
    orders, _ = rearrangements(tuple(blocks))
    correlations = np.full(responses.shape[1], np.nan)
    largest_r = np.full(len(orders), -1.0)
    largest_z = np.full(len(orders), -np.inf)
    num_tested = 0
    permuted_x: dict[bytes, Array] = {}  # by which datasets have a response
    for k, response in enumerate(responses.T):
        is_known = np.isfinite(response)
        known_blocks = np.array(blocks)[is_known]
        if len(known_blocks) < MIN_DATASETS_OF_A_CORRELATION:
            continue
        columns = np.column_stack([response, x])[is_known]
        residuals = centred(columns, known_blocks)
        lengths = np.linalg.norm(residuals, axis=0)
        if (lengths <= 1e-12 * np.abs(columns).max(axis=0)).any():
            continue
        y_unit, x_unit = (residuals / lengths).T
        correlations[k] = y_unit @ x_unit
        if k not in tested:
            continue
        key = is_known.tobytes()
        if key not in permuted_x:
            residual_x = centred(x[orders][:, is_known].T, known_blocks)
            lengths_of_x = np.linalg.norm(residual_x, axis=0)
            permuted_x[key] = residual_x / np.maximum(lengths_of_x, 1e-300)
        permuted_r = y_unit @ permuted_x[key]
        num_blocks = len(set(known_blocks))
        largest_r = np.maximum(largest_r, permuted_r)
        largest_z = np.maximum(largest_z, _standard_z(permuted_r, len(known_blocks), num_blocks))
        num_tested += 1
    adjusted_p = np.full(len(correlations), np.nan)
    for k, r in enumerate(correlations):
        if k in tested and not np.isnan(r):
            adjusted_p[k] = np.mean(largest_r >= r - 1e-9)
    critical = float(special.ndtri(1 - LEVEL / 2))
    if num_tested > 1:
        critical = max(critical, float(np.quantile(largest_z, 1 - LEVEL / 2)))
    criticals: tuple[float, ...] = ()
    if num_tested:
        shares = 1 - LEVEL / np.arange(1, MAX_TESTS_OF_A_FAMILY + 1)
        criticals = tuple(np.quantile(largest_z, shares).tolist())
    return MaxCorrelation(correlations, adjusted_p, len(orders), critical, criticals)


def _standard_z(r: Array, num_datasets: int, num_blocks: int) -> Array:
    """Return Fisher's z of correlations within blocks, in units of its standard error."""
    degrees = max(num_datasets - num_blocks - 2, 0)
    z = np.arctanh(np.clip(r, -1 + 1e-15, 1 - 1e-15))
    return np.asarray(z * np.sqrt(degrees))


def jackknife_error(value: float, left_out: Array) -> float:
    """Return the standard error (CR3; Bell & McCaffrey 2002) of a value from its refits.

    Args:
        value: The value.
        left_out: The value without each dataset, ``(G,)``.
    """
    num = len(left_out)
    return float(np.sqrt((num - 1) / num * ((left_out - value) ** 2).sum()))


def curve_sums(y: Array, x: Array, curves: Codes, groups: Codes, weights: Array) -> Sums:
    """Reduce points to what a slope within curves needs of each dataset.

    Args:
        y: Response, ``(n,)``.
        x: Regressor, ``(n,)``.
        curves: Curve of each point; both are centred within it.
        groups: Dataset of each point.
        weights: Weights, ``(n,)``.
    """
    names, member = members(groups)
    x_residual, y_residual = centred(np.column_stack([x, y]), curves, weights).T
    xx = member @ (weights * x_residual * x_residual)
    xy = member @ (weights * x_residual * y_residual)
    return Sums(names, xx, xy)


def wild_cluster_p(sums: Sums, null: float = 0.0) -> float:
    """Return the restricted wild cluster bootstrap-t p-value of a slope within curves.

    Cameron, Gelbach & Miller (2008). It needs at least three datasets.

    Args:
        sums: Σx² and Σxy of each dataset.
        null: Slope under the null hypothesis.
    """
    _, xx, xy = sums
    scores = xy - null * xx
    shares = xx / xx.sum()
    draws = wild_draws(len(scores))
    totals = draws @ scores
    residuals = draws * scores - totals[:, None] * shares
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.abs(totals) / np.sqrt((residuals**2).sum(axis=1))
    t_values = np.nan_to_num(ratios, nan=np.inf)
    observed_residuals = scores - scores.sum() * shares
    observed_total = abs(float(scores.sum()))
    spread = float(np.sqrt((observed_residuals**2).sum()))
    if spread <= 0:  # nothing scatters: as for t, p is 0, or 1 for a total of 0
        return float(observed_total <= 0)
    return float(np.mean(t_values >= observed_total / spread * (1 - 1e-9)))


@lru_cache(maxsize=16)
def wild_draws(size: int) -> Array:
    """Return draws (B, G) of weights for so many datasets.

    All sign patterns for 8 to 12 datasets, drawn ones beyond, and Webb's weights below eight.
    """
    if FEWEST_FOR_SIGNS <= size <= MOST_FOR_ALL_SIGNS:
        return np.array(list(product((-1.0, 1.0), repeat=size)))
    rng = np.random.default_rng([0, size, 6])
    weights = WEBB if size < FEWEST_FOR_SIGNS else np.array([-1.0, 1.0])
    return np.vstack([np.ones(size), rng.choice(weights, (NUM_DRAWN, size))])
