"""Statistical tests and intervals for few datasets.

The methods are t tests, permutation tests, the jackknife and the wild cluster bootstrap.
Points of one dataset are not independent: 66 points of 11 datasets carry the information of
about 11 points. Datasets are therefore the replicates. Points are averaged within datasets, or
whole datasets are permuted or left out (jackknife).

Letters in the shapes of arrays: n points, G datasets, q regressors, B permutations or draws,
m responses.
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

Array = NDArray[np.float64]
Codes = NDArray[Any]
Interval = tuple[float, float]

LEVEL = 0.05
"""Significance level of every test. Intervals have the confidence level 1 − LEVEL."""
MAX_EXACT = 200_000
"""Largest number of permutations for which all permutations are tried. If there are more, a
random sample is used."""
NUM_DRAWN = 9_999
"""Size of a random sample of permutations or draws. The observed order is added to the
sample."""
MIN_DATASETS = 3
"""Smallest number of datasets from which an interval is computed. Two datasets have only one
difference, and no scatter can be estimated from one difference."""
MIN_CLASSES = 5
"""Smallest number of classes in the pairs for a jackknife over classes."""
MIN_RCOND = 1e-10
"""Limit for the variation of a regressor, relative to its size. A smaller variation is
rounding error."""
MAX_CONDITION = 1e8
"""Largest condition number of a design matrix for which slopes count as identified."""
WEBB = np.array([-np.sqrt(1.5), -1.0, -np.sqrt(0.5), np.sqrt(0.5), 1.0, np.sqrt(1.5)])
"""Webb's six weights for the wild cluster bootstrap (2023). With few clusters, the two weights
−1 and 1 would give too few different draws."""
MIN_DATASETS_FOR_SIGNS = 8
"""Smallest number of datasets for which the bootstrap weights are random signs. With fewer
datasets, Webb's weights are used."""
MAX_DATASETS_FOR_ALL_SIGNS = 12
"""Largest number of datasets for which all sign patterns are tried."""
MAX_TESTS_OF_A_FAMILY = 5
"""Number of tests in the family of headline questions. A correlation has one critical value
for each number of tests up to this number."""
MIN_DATASETS_OF_A_CORRELATION = 6
"""Smallest number of datasets for a correlation. With fewer datasets, Fisher's z is far from
normal, and there are few permutations."""


class Sums(NamedTuple):
    """Sums of each dataset, from which a slope within curves follows.

    The slope is Σxy / Σx², summed over all datasets. x and y are centered within curves.

    Attributes:
        names: Names of the datasets, ``(G,)``.
        xx: Σx² of each dataset, ``(G,)``.
        xy: Σxy of each dataset, ``(G,)``.
    """

    names: list[str]
    xx: Array
    xy: Array


class Permutation(NamedTuple):
    """The result of a permutation test.

    Attributes:
        p_value: Share of the permutations whose statistic is at least as extreme as the
            observed statistic.
        num_orders: Number of permutations that were tried.
        is_complete: True if all possible permutations were tried.
        smallest_p: Smallest p-value that these permutations can give.
    """

    p_value: float
    num_orders: int
    is_complete: bool
    smallest_p: float


def t_quantile(share: float, degrees: float) -> float:
    """Return a quantile of the t distribution.

    The function does not use ``scipy.stats``, because its import takes a second.
    """
    return float(special.stdtrit(degrees, share))


def t_interval(value: float, std_error: float, degrees: float) -> Interval:
    """Return the 95 % interval of an estimate by the t distribution."""
    half_width = t_quantile(1 - LEVEL / 2, degrees) * std_error
    return value - half_width, value + half_width


def t_p_values(values: Array | float, std_errors: Array | float, degrees: float) -> Array:
    """Return two-sided p-values of t = value / standard error.

    If a standard error is exactly 0, the p-value is 1 if the value is 0. For any other value,
    the p-value is then 0.
    """
    values = np.asarray(values)
    std_errors = np.asarray(std_errors)
    with np.errstate(divide="ignore", invalid="ignore"):
        p_values = 2 * special.stdtr(degrees, -np.abs(values / std_errors))
    without_scatter = np.where(values == 0, 1.0, 0.0)
    return np.asarray(np.where(std_errors > 0, p_values, without_scatter))


def mean_interval(values: Array) -> tuple[float, float | None, Interval | None]:
    """Return the mean, its standard error and its 95 % t interval.

    If there are fewer than three values, or if all values are equal, the standard error and
    the interval are None.
    """
    mean = float(values.mean())
    num_values = len(values)
    # Equal values can differ by rounding errors, so the standard deviation is compared with
    # the size of the values.
    is_constant = float(values.std()) <= 1e-12 * float(np.abs(values).max())
    if num_values < MIN_DATASETS or is_constant:
        return mean, None, None
    error = float(values.std(ddof=1) / np.sqrt(num_values))
    return mean, error, t_interval(mean, error, num_values - 1)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm-adjusted p-values (1979).

    An entry of None does not count as a test and stays None.
    """
    adjusted = list(p_values)
    tested = [(p, place) for place, p in enumerate(p_values) if p is not None]
    largest = 0.0
    for rank, (p, place) in enumerate(sorted(tested)):
        # The k-th smallest of m p-values is multiplied by m − k + 1. An adjusted p-value may
        # not be smaller than the adjusted p-value before it.
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        adjusted[place] = largest
    return adjusted


def centered(values: Array, codes: Codes, weights: Array | None = None) -> Array:
    """Subtract from each column of values, ``(n, k)``, its mean over the rows of the same code.

    Residuals below 1e-13 of a column's largest value are rounding errors and are set to 0.
    """
    names, code = np.unique(codes, return_inverse=True)
    num_rows = len(code)
    if weights is None:
        weights = np.ones(num_rows)
    one_per_row = (np.ones(num_rows), code, np.arange(num_rows + 1))
    # A sparse product sums all columns at once.
    sum_by_code = csr_array(one_per_row, shape=(num_rows, len(names))).T
    means = sum_by_code @ (weights[:, None] * values) / (sum_by_code @ weights)[:, None]
    residuals = values - means[code]
    is_rounding = np.abs(residuals) <= 1e-13 * np.abs(values).max(axis=0)
    return np.asarray(np.where(is_rounding, 0.0, residuals))


def dataset_effects(
    values: Array, cells: Codes, groups: Codes, weights: Array
) -> tuple[list[str], Array] | None:
    """Reduce points to one effect per dataset, by two-way fixed effects.

    A cell is a group of comparable points, for example of one model and train size. Each
    column is regressed on indicators of datasets and cells by weighted least squares. The
    coefficients of the datasets are their effects. An effect therefore compares datasets
    within cells.

    Args:
        values: Columns, ``(n, k)``.
        cells: Code of the cell of each point, ``(n,)``.
        groups: Dataset of each point, ``(n,)``.
        weights: Weight of each point, ``(n,)``.

    Returns:
        Sorted names of the datasets, and effects ``(G, k)`` that sum to zero. None if some
        datasets cannot be compared. Two datasets can be compared if they share a cell, or if
        other datasets connect them.
    """
    cell_names, cell = np.unique(cells, return_inverse=True)
    names, group = np.unique(groups, return_inverse=True)
    num_cells, num_groups = len(cell_names), len(names)
    pair = cell * num_groups + group
    weight_of = np.bincount(pair, weights, num_cells * num_groups).reshape(num_cells, num_groups)
    if not _is_connected(weight_of @ weight_of.T > 0):
        return None
    # The indicators of datasets are partialled out first (Frisch & Waugh 1933). Then only one
    # equation per cell must be solved.
    group_weights = weight_of.sum(axis=0)
    share = weight_of / group_weights
    laplacian = np.diag(weight_of.sum(axis=1)) - weight_of @ share.T
    # The Laplacian is singular: its eigenvalue for the constant vector is 0. A constant matrix
    # is added, which makes this eigenvalue positive. A pseudo-inverse is not used, because it
    # may divide by the rounding error (1e-16) of the zero eigenvalue. If there is only one
    # cell, the constant vector is the only direction.
    filling = laplacian.diagonal().mean() if num_cells > 1 else 1.0
    weighted = weights[:, None] * values
    by_cell = sums_by_code(weighted, cell, num_cells)
    by_group = sums_by_code(weighted, group, num_groups)
    of_cells = np.linalg.solve(laplacian + filling / num_cells, by_cell - share @ by_group)
    # After the effects of cells are subtracted, the mean of a dataset is its effect.
    effects = (by_group - weight_of.T @ of_cells) / group_weights[:, None]
    is_constant = np.ptp(effects, axis=0) <= 1e-12 * np.abs(values).max(axis=0)
    centered_effects = np.where(is_constant, 0.0, effects - effects.mean(axis=0))
    return [str(name) for name in names], centered_effects


def _is_connected(neighbors: NDArray[np.bool_]) -> bool:
    """Return whether an undirected graph, given by its adjacency matrix, has one component."""
    reached = neighbors[0].copy()
    reached[0] = True
    num_reached = 0
    while reached.sum() > num_reached:
        num_reached = int(reached.sum())
        reached |= neighbors[reached].any(axis=0)
    return num_reached == len(neighbors)


def sums_by_code(values: Array, codes: NDArray[np.int64], num_codes: int) -> Array:
    """Sum columns over the rows of each code. The result has the shape ``(num_codes, k)``.

    Args:
        values: Columns, ``(n, k)``.
        codes: Code of each row, from 0 to ``num_codes - 1``.
        num_codes: Number of codes. The sum of a code without rows is 0.
    """
    sums = [np.bincount(codes, column, num_codes) for column in values.T]
    return np.column_stack(sums)


def ols(y: Array, x: Array) -> tuple[Array, Array, int] | None:
    """Regress y (G,) on x (G, q) with an intercept, by ordinary least squares.

    Returns:
        Slopes ``(q,)``, their standard errors ``(q,)`` and the degrees of freedom. None if there
        are too few values, or if a column of x depends linearly on the others.
    """
    design = np.column_stack([np.ones(len(y)), x])
    degrees = len(y) - design.shape[1]
    # The columns are scaled to equal size, so the condition number does not depend on their
    # units.
    scale = np.sqrt((design**2).mean(axis=0))
    if degrees < 1 or (scale == 0).any():
        return None
    scaled = design / scale
    if np.linalg.cond(scaled) > MAX_CONDITION:
        return None
    # This is (X'X)⁻¹ of the unscaled columns, because the division reverses the scaling.
    inverse = np.linalg.inv(scaled.T @ scaled) / np.outer(scale, scale)
    coefficients = inverse @ design.T @ y
    residuals = y - design @ coefficients
    errors = np.sqrt(residuals @ residuals / degrees * np.diag(inverse))
    return coefficients[1:], errors[1:], degrees


def permutation_test(
    y: Array, x: Array, covariates: Array, blocks: Sequence[str]
) -> Permutation | None:
    """Test the slope on x in a regression of y on x and covariates, by permutation within blocks.

    The statistic is |t|. If no covariate varies within blocks, the test is exact. Otherwise
    the residuals of a regression of y on the covariates are permuted (Freedman & Lane 1983).
    This test is exact only asymptotically.

    Args:
        y: Response, ``(G,)``.
        x: Regressor, ``(G,)``.
        covariates: Further regressors, ``(G, q)``.
        blocks: Name of the block of each dataset.

    Returns:
        The result of the test. None if x or y is a linear combination of the covariates, or if
        fewer than two degrees of freedom are left.
    """
    # If the covariates are partialled out of y and x, the slope on x stays the same.
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
        # If the regressor is binary, many orders give the same statistic. It is enough to try
        # every choice of the datasets that have the lower value.
        subsets = np.array(list(combinations(range(len(y)), num_low)))
        sums = np.abs(y_residual[subsets].sum(axis=1))
        is_extreme = sums >= abs(y_residual[is_low].sum()) * (1 - 1e-9)
        # If half of the datasets have the lower value, exchanging the halves gives the same
        # |t|.
        num_extreme = 2 if 2 * num_low == len(y) else 1
        return Permutation(
            p_value=float(np.mean(is_extreme)),
            num_orders=len(sums),
            is_complete=True,
            smallest_p=num_extreme / len(sums),
        )
    orders, is_complete = rearrangements(tuple(blocks))
    # |t| grows with the share of the variation that x explains, so these shares are compared.
    # Permuted residuals may not be orthogonal to the covariates, so the covariates are
    # partialled out of them again.
    projections = np.square(y_residual[orders] @ np.column_stack([basis, x_residual]))
    lengths = y_residual @ y_residual - projections[:, :-1].sum(axis=1)
    x_length = float(x_residual @ x_residual)
    explained = projections[:, -1] / x_length / np.maximum(lengths, 1e-300)
    y_length = float(y_residual @ y_residual)
    observed = float((y_residual @ x_residual) ** 2 / x_length / y_length)
    # The observed order must count as extreme, even if its share is slightly too small because
    # of rounding errors.
    is_extreme = explained >= observed * (1 - 1e-9)
    return Permutation(float(np.mean(is_extreme)), len(orders), is_complete, 1 / len(orders))


def class_permutation_p(y: Array, x: Array, covariates: Array, classes: Codes) -> float | None:
    """Return the p-value of a slope over class pairs by permuting the classes of the regressor.

    If both regressor and response are sums of class effects, a jackknife over classes makes
    slightly too many false claims: 6 % instead of 5 % with ten classes. A permutation of
    classes preserves the dependence between pairs that share a class (quadratic assignment;
    Krackhardt 1988). If there are no covariates, the test is exact. If there are covariates,
    residuals of x are permuted (Dekker, Krackhardt & Snijders 2007).

    Args:
        y: Response of each pair, ``(U,)``.
        x: Regressor of each pair, ``(U,)``.
        covariates: Further regressors, ``(U, q)``.
        classes: Codes of the two classes of each pair, counted from 0, ``(U, 2)``.

    Returns:
        The two-sided p-value; None if x or y is a linear combination of the covariates.
    """
    held_equal, _ = np.linalg.qr(np.column_stack([np.ones(len(y)), covariates]))
    y_residual = y - held_equal @ (held_equal.T @ y)
    x_residual = x - held_equal @ (held_equal.T @ x)
    if x_residual @ x_residual <= 1e-20 * (x @ x) or not y_residual.any():
        return None
    num_classes = int(classes.max()) + 1
    # The residuals have the mean 0, so a missing pair gets the residual 0.
    by_classes = np.zeros((num_classes, num_classes))
    first, second = classes.T
    by_classes[first, second] = x_residual
    by_classes[second, first] = x_residual
    # Rows and columns get the same permutation, so two pairs with a common class still have
    # one.
    orders, _ = rearrangements(("",) * num_classes)
    permuted = by_classes[orders[:, first], orders[:, second]]
    # The statistic is the correlation of y and permuted x after the covariates are partialled
    # out. The residuals of y are orthogonal to the covariates, so the products can use
    # permuted x directly. The lengths of the residuals of permuted x follow from Pythagoras'
    # theorem.
    products = np.abs(permuted @ y_residual)
    explained = permuted @ held_equal
    squares = np.einsum("ij,ij->i", permuted, permuted)
    residual_squares = squares - np.einsum("ij,ij->i", explained, explained)
    # If the covariates explain permuted x completely, its residuals are only rounding errors.
    smallest = np.maximum(MIN_RCOND * squares, np.finfo(float).tiny)
    correlations = products / np.sqrt(np.maximum(residual_squares, smallest))
    return float(np.mean(correlations >= correlations[0] * (1 - 1e-9)))


def smallest_class_p(num_classes: int) -> float:
    """Return the smallest p-value that :func:`class_permutation_p` can give."""
    orders, _ = rearrangements(("",) * num_classes)
    return 1 / len(orders)


@lru_cache(maxsize=32)
def rearrangements(blocks: tuple[str, ...]) -> tuple[NDArray[np.int16], bool]:
    """Return permutations (B, G) of datasets within blocks, and whether these are all permutations.

    The observed order comes first. The permutations are 16-bit integers, which take up to 0.4
    MB of memory per dataset.
    """
    names = np.array(blocks)
    places = [np.flatnonzero(names == name) for name in np.unique(names)]
    is_complete = prod(factorial(len(block)) for block in places) <= MAX_EXACT
    if is_complete:
        by_block = [np.array(list(permutations(block))) for block in places]
        # Every order of one block is combined with every order of the other blocks.
        index = np.indices([len(rows) for rows in by_block]).reshape(len(by_block), -1)
        columns = [rows[chosen] for rows, chosen in zip(by_block, index, strict=True)]
        permuted = np.hstack(columns)
    else:
        # The seed is fixed, so the same table always gets the same p-value.
        rng = np.random.default_rng([0, len(blocks)])
        random_orders = []
        for block in places:
            copies = np.tile(block, (NUM_DRAWN, 1))
            random_orders.append(rng.permuted(copies, axis=1))
        permuted = np.vstack([np.concatenate(places), np.hstack(random_orders)])
    orders = np.empty(permuted.shape, dtype=np.int16)
    orders[:, np.concatenate(places)] = permuted
    return orders, is_complete


class MaxCorrelation(NamedTuple):
    """Correlations of several responses with one regressor, and the test of the largest one.

    Attributes:
        r: Correlation of each response, ``(m,)``; NaN for fewer than six datasets.
        adjusted_p: One-sided p-value of each tested response, adjusted for the number of
            tested responses, ``(m,)``; NaN for the other responses.
        num_rearrangements: Number of permutations, including the observed order.
        critical: Half width of simultaneous 95 % intervals of the tested correlations, in
            standard errors of Fisher's z. It is 1.96 for one response and larger for several
            responses.
        criticals: Critical values of the largest z, in standard errors of z. Entry k − 1 is
            for the level 0.05 / k. Entries whose level no permutation can reach are missing.
    """

    r: Array
    adjusted_p: Array
    num_rearrangements: int
    critical: float
    criticals: tuple[float, ...] = ()


def max_correlation_test(
    responses: Array, x: Array, blocks: Sequence[str], tested: Collection[int]
) -> MaxCorrelation:
    """Correlate responses with x within blocks, and test the largest correlation against 0.

    The one-sided p-values compare each correlation with the largest correlation of each
    permutation (Westfall & Young 1993). All responses get the same permutation of x, which
    preserves the dependence between responses.

    Args:
        responses: Responses, ``(G, m)``; NaN for missing values.
        x: Regressor, ``(G,)``.
        blocks: Name of the block of each dataset.
        tested: Indices of the responses that are tested.
    """
    orders, _ = rearrangements(tuple(blocks))
    correlations = np.full(responses.shape[1], np.nan)
    largest_r = np.full(len(orders), -1.0)
    largest_z = np.full(len(orders), -np.inf)
    num_tested = 0
    permuted_x: dict[bytes, Array] = {}  # by the mask of datasets with a response
    for k, response in enumerate(responses.T):
        is_known = np.isfinite(response)
        known_blocks = np.array(blocks)[is_known]
        if len(known_blocks) < MIN_DATASETS_OF_A_CORRELATION:
            continue
        columns = np.column_stack([response, x])[is_known]
        residuals = centered(columns, known_blocks)
        lengths = np.linalg.norm(residuals, axis=0)
        if (lengths <= 1e-12 * np.abs(columns).max(axis=0)).any():
            continue
        y_unit, x_unit = (residuals / lengths).T
        correlations[k] = y_unit @ x_unit
        if k not in tested:
            continue
        key = is_known.tobytes()
        if key not in permuted_x:
            residual_x = centered(x[orders][:, is_known].T, known_blocks)
            lengths_of_x = np.linalg.norm(residual_x, axis=0)
            permuted_x[key] = residual_x / np.maximum(lengths_of_x, 1e-300)
        permuted_r = y_unit @ permuted_x[key]
        # The same permutations are used for all responses, so the maximum over responses
        # accounts for the dependence between them.
        permuted_z = _standard_z(permuted_r, len(known_blocks), len(set(known_blocks)))
        largest_r = np.maximum(largest_r, permuted_r)
        largest_z = np.maximum(largest_z, permuted_z)
        num_tested += 1
    adjusted_p = np.full(len(correlations), np.nan)
    for k, r in enumerate(correlations):
        if k in tested and not np.isnan(r):
            adjusted_p[k] = np.mean(largest_r >= r - 1e-9)
    # An interval has two sides, so each side gets half of the level. The test has one side.
    critical = float(special.ndtri(1 - LEVEL / 2))
    if num_tested > 1:
        critical = max(critical, float(np.quantile(largest_z, 1 - LEVEL / 2)))
    criticals: tuple[float, ...] = ()
    if num_tested:
        levels = LEVEL / np.arange(1, MAX_TESTS_OF_A_FAMILY + 1)
        is_reachable = levels * len(orders) >= 1
        criticals = tuple(np.quantile(largest_z, 1 - levels[is_reachable]).tolist())
    return MaxCorrelation(correlations, adjusted_p, len(orders), critical, criticals)


def _standard_z(r: Array, num_datasets: int, num_blocks: int) -> Array:
    """Return Fisher's z of correlations within blocks, divided by its standard error."""
    # Centering in b blocks costs b − 1 degrees of freedom, so z has the variance 1 / (n − (b −
    # 1) − 3).
    degrees = max(num_datasets - num_blocks - 2, 0)
    z = np.arctanh(np.clip(r, -1 + 1e-15, 1 - 1e-15))
    return np.asarray(z * np.sqrt(degrees))


def jackknife_error(value: float, left_out: Array) -> float:
    """Return the jackknife standard error (CR3; Bell & McCaffrey 2002) of an estimate.

    Args:
        value: The estimate.
        left_out: The estimate without each dataset, ``(G,)``.
    """
    # The sum uses differences from the estimate, not from the mean of the refits. This makes
    # the standard error larger, so a test with few datasets does not make too many false
    # claims.
    num = len(left_out)
    return float(np.sqrt((num - 1) / num * ((left_out - value) ** 2).sum()))


def curve_sums(y: Array, x: Array, curves: Codes, groups: Codes, weights: Array) -> Sums:
    """Return the sums of each dataset for a slope of y on x within curves.

    Args:
        y: Response, ``(n,)``.
        x: Regressor, ``(n,)``.
        curves: Curve of each point, ``(n,)``. y and x are centered within curves.
        groups: Dataset of each point.
        weights: Weight of each point, ``(n,)``.
    """
    names, group = np.unique(groups, return_inverse=True)
    x_residual, y_residual = centered(np.column_stack([x, y]), curves, weights).T
    # The slope is Σxy / Σx², so two sums per dataset replace its points.
    products = weights[:, None] * np.column_stack([x_residual**2, x_residual * y_residual])
    xx, xy = sums_by_code(products, group, len(names)).T
    return Sums([str(name) for name in names], xx, xy)


def wild_cluster_p(sums: Sums, null: float = 0.0) -> float:
    """Return the p-value of a slope within curves by the restricted wild cluster bootstrap-t.

    The method of Cameron, Gelbach & Miller (2008) needs at least three datasets.

    Args:
        sums: Σx² and Σxy of each dataset.
        null: Slope under the null hypothesis.
    """
    # The errors are computed under the null hypothesis that the slope is β. A draw multiplies
    # the score Σx(y − βx) of each dataset by a weight, so points are not fitted again.
    _, xx, xy = sums
    scores = xy - null * xx
    shares = xx / xx.sum()
    draws = wild_draws(len(scores))
    totals = draws @ scores
    # The slope of a draw is total / Σx². The residual scores around this slope give its
    # spread.
    residuals = draws * scores - totals[:, None] * shares
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.abs(totals) / np.sqrt((residuals**2).sum(axis=1))
    t_values = np.nan_to_num(ratios, nan=np.inf)
    observed_residuals = scores - scores.sum() * shares
    observed_total = abs(float(scores.sum()))
    spread = float(np.sqrt((observed_residuals**2).sum()))
    if spread <= 0:
        # Without scatter, p is 1 for a total of 0, and 0 for any other total, as in a t test.
        return float(observed_total <= 0)
    return float(np.mean(t_values >= observed_total / spread * (1 - 1e-9)))


@lru_cache(maxsize=16)
def wild_draws(size: int) -> Array:
    """Return draws (B, G) of bootstrap weights for ``size`` datasets.

    For 8 to 12 datasets, the draws are all patterns of signs. For more than 12 datasets,
    random signs are drawn. For fewer than 8 datasets, Webb's weights are drawn.
    """
    if MIN_DATASETS_FOR_SIGNS <= size <= MAX_DATASETS_FOR_ALL_SIGNS:
        return np.array(list(product((-1.0, 1.0), repeat=size)))
    # The seed is fixed, so the same table always gets the same p-value.
    rng = np.random.default_rng([0, size, 6])
    weights = WEBB if size < MIN_DATASETS_FOR_SIGNS else np.array([-1.0, 1.0])
    return np.vstack([np.ones(size), rng.choice(weights, (NUM_DRAWN, size))])


def smallest_wild_p(size: int) -> float:
    """Return the smallest p-value that :func:`wild_cluster_p` can give for ``size`` datasets.

    A draw with equal weights for all datasets gives the observed |t|, so it always counts as
    extreme.
    """
    has_equal_weights = np.ptp(wild_draws(size), axis=1) == 0
    return float(has_equal_weights.mean())
