"""Inference with few datasets, on plain arrays: t, permutation, jackknife and wild cluster
bootstrap.

66 points of 11 datasets carry the information of about 11: they are reduced to one effect per
dataset, or whole ones are left out and exchanged. Shape letters: n points, G datasets, q terms, B
draws, m responses.
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
#: Of datasets: names (G), Σx² and Σxy (G,).
Sums = tuple[list[str], Array, Array]
Permutation = tuple[float, int, bool]

LEVEL = 0.05
#: All rearrangements are tried up to this number; beyond it, that many drawn ones stand for them.
MOST_EXACT, NUM_DRAWN = 200_000, 9_999
#: Two datasets give one difference, and one difference has no spread.
MIN_DATASETS = 3
#: Fewer classes that replicates share are too few to leave one out.
MIN_CLASSES = 5
#: Below this share of what the regressors are, what varies of them is rounding.
MIN_RCOND = 1e-10
#: Webb's six points (2023): with few clusters two points leave too few different draws.
_WEBB = np.array([-np.sqrt(1.5), -1.0, -np.sqrt(0.5), np.sqrt(0.5), 1.0, np.sqrt(1.5)])


def t_quantile(share: float, degrees: float) -> float:
    """Quantile of a t variable; ``scipy.stats`` calls the same, and takes a second to be
    imported.
    """
    return float(special.stdtrit(degrees, share))


def t_interval(value: float, std_error: float, degrees: float) -> Interval:
    """95 % interval by t."""
    half_width = t_quantile(1 - LEVEL / 2, degrees) * std_error
    return value - half_width, value + half_width


def t_p_values(values: Array | float, std_errors: Array | float, degrees: float) -> Array:
    """Two-sided p-values of t = value / standard error; 0 (or 1 for a value of 0) where nothing
    scatters.
    """
    values, std_errors = np.asarray(values), np.asarray(std_errors)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = 2 * special.stdtr(degrees, -np.abs(values / std_errors))
    return np.asarray(np.where(std_errors > 0, found, np.where(values == 0, 1.0, 0.0)))


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
    """Adjust p-values for their number by Holm's method (1979); what has none was not tested."""
    adjusted, largest = list(p_values), 0.0
    ranked = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    for rank, (p, place) in enumerate(ranked):
        largest = max(largest, min(1.0, p * (len(ranked) - rank)))
        adjusted[place] = largest
    return adjusted


def members(codes: Codes) -> tuple[list[str], csr_array]:
    """Return the sorted names of codes (n,), and the matrix (names, n) that adds up the points of
    each.
    """
    names, code = np.unique(codes, return_inverse=True)
    return [*map(str, names)], csr_array((np.ones(len(code)), (code, np.arange(len(code)))))


def centred(values: Array, codes: Codes, weights: Array | None = None) -> Array:
    """Columns (n, k) less their means of the same code; what is equal but for rounding becomes
    zero.
    """
    member, weights = members(codes)[1], np.ones(len(values)) if weights is None else weights
    means = member @ (weights[:, None] * values) / (member @ weights)[:, None]
    moved = values - member.T @ means
    return np.asarray(np.where(np.abs(moved) <= 1e-13 * np.abs(values).max(axis=0), 0.0, moved))


def dataset_effects(
    values: Array, cells: Codes, groups: Codes, weights: Array
) -> tuple[list[str], Array] | None:
    """Reduce points (n, k) to sorted names (G) and one effect per dataset of ``groups`` (n,), (G,
    k) that sum to zero, at equal cell (model and train size), by weighted least squares of each
    column on indicators of both; None where datasets share no cells, directly or through others.
    """
    (_, in_cell), (names, in_group) = members(cells), members(groups)
    together = (in_cell * weights @ in_group.T).toarray()
    if connected_components(csr_array(together @ together.T > 0), directed=False)[0] != 1:
        return None
    share = together / together.sum(axis=0)
    laplacian = np.diag(together.sum(axis=1)) - together @ share.T
    # Its one null vector is the constant, which is filled in: a pseudo-inverse may take that
    # eigenvalue's rounding (1e-16) for a number and divide by it. A single cell has nothing else.
    filled = laplacian + (laplacian.diagonal().mean() if len(together) > 1 else 1.0) / len(together)
    weighted = weights[:, None] * values
    by_group = in_group @ weighted
    of_cells = np.linalg.solve(filled, in_cell @ weighted - share @ by_group)
    effects = (by_group - together.T @ of_cells) / together.sum(axis=0)[:, None]
    even = np.ptp(effects, axis=0) <= 1e-12 * np.abs(values).max(axis=0)
    return names, np.where(even, 0.0, effects - effects.mean(axis=0))


def ols(y: Array, x: Array) -> tuple[Array, Array, int] | None:
    """Slopes (q,) of y (G,) on x (G, q), standard errors, degrees of freedom; None where not
    identified.
    """
    design = np.column_stack([np.ones(len(y)), x])
    degrees = len(y) - design.shape[1]
    scale = np.sqrt((design**2).mean(axis=0))
    if degrees < 1 or (scale == 0).any() or np.linalg.cond(design / scale) > 1e8:
        return None
    inverse = np.linalg.inv((design / scale).T @ (design / scale)) / np.outer(scale, scale)
    found = inverse @ design.T @ y
    rest = y - design @ found
    errors = np.sqrt(rest @ rest / degrees * np.diag(inverse))
    return found[1:], errors[1:], degrees


def permutation_test(
    y: Array, x: Array, others: Array, blocks: Sequence[str]
) -> Permutation | None:
    """Permute the response y (G,) within blocks against x (G,) at given others (G, q); by |t|.

    Exact where no others vary within blocks; otherwise residuals of their fit are permuted
    (Freedman & Lane 1983), which is exact in the limit alone. None where x or y does not vary
    beside them.
    """
    reduced = np.column_stack([np.ones(len(y)), others])
    basis, _ = np.linalg.qr(reduced)
    residual, own = y - basis @ (basis.T @ y), x - basis @ (basis.T @ x)
    varies = own @ own > 1e-20 * max(float(x @ x), 1e-300) and residual @ residual != 0
    if not varies or len(y) - reduced.shape[1] < 2:
        return None
    num_near = int((near := np.isclose(x, x.min(), rtol=0, atol=1e-9 * np.ptp(x))).sum())
    two_valued = (near | np.isclose(x, x.max(), rtol=0, atol=1e-9 * np.ptp(x))).all()
    # Of a regressor of two values only matters which datasets have the lower one.
    if (
        others.shape[1] == 0
        and two_valued
        and len(set(blocks)) == 1
        and comb(len(y), num_near) <= MOST_EXACT
    ):
        sums = np.abs(residual[np.array(list(combinations(range(len(y)), num_near)))].sum(axis=1))
        return float(np.mean(sums >= abs(residual[near].sum()) * (1 - 1e-9))), len(sums), True
    order, exact = rearrangements(tuple(blocks))
    # Projected again: a permuted residual need not stay orthogonal to the others. Its length stays.
    along = np.square(residual[order] @ np.column_stack([basis, own]))
    squares = residual @ residual - along[:, :-1].sum(axis=1)
    share = along[:, -1] / float(own @ own) / np.maximum(squares, 1e-300)
    found = float((residual @ own) ** 2 / float(own @ own) / float(residual @ residual))
    return float(np.mean(share >= found * (1 - 1e-9))), len(order), exact


def class_permutation_p(y: Array, x: Array, others: Array, classes: Codes) -> float | None:
    """Return the p-value of a slope over class pairs by permuting the classes of the regressor.

    A jackknife over classes is slightly liberal if one regressor and the response are both sums of
    class effects: 6 % false claims with ten classes. A permutation of classes keeps what pairs that
    share a class have in common (quadratic assignment; Krackhardt 1988). It is exact without
    ``others``; with them residuals of x are permuted (Dekker, Krackhardt & Snijders 2007).

    Args:
        y: Response of every pair, ``(U,)``.
        x: Regressor, ``(U,)``.
        others: What is held equal, ``(U, q)``.
        classes: Codes from 0 of the two classes of every pair, ``(U, 2)``.

    Returns:
        Two-sided p-value; None if x or y do not vary beside the others.
    """
    held_equal, _ = np.linalg.qr(np.column_stack([np.ones(len(y)), others]))
    rest_of_y = y - held_equal @ (held_equal.T @ y)
    rest_of_x = x - held_equal @ (held_equal.T @ x)
    if rest_of_x @ rest_of_x <= 1e-20 * (x @ x) or not rest_of_y.any():
        return None
    num_classes = int(classes.max()) + 1
    by_classes = np.zeros((num_classes, num_classes))  # a pair that is missing counts as average
    first, second = classes.T
    by_classes[first, second] = by_classes[second, first] = rest_of_x
    order, _ = rearrangements(("",) * num_classes)
    moved = by_classes[order[:, first], order[:, second]]
    moved -= (moved @ held_equal) @ held_equal.T
    lengths = np.sqrt((moved**2).sum(axis=1))
    correlations = np.abs(moved @ rest_of_y) / np.maximum(lengths, 1e-300)
    return float(np.mean(correlations >= correlations[0] * (1 - 1e-9)))


@lru_cache(maxsize=32)
def rearrangements(blocks: tuple[str, ...]) -> tuple[NDArray[np.intp], bool]:
    """Orders (B, G) of datasets within blocks, the present one first, and whether they are all."""
    names = np.array(blocks)
    places = [np.flatnonzero(names == name) for name in np.unique(names)]
    if exact := prod(factorial(len(block)) for block in places) <= MOST_EXACT:
        each = [np.array(list(permutations(block))) for block in places]
        index = np.indices([len(rows) for rows in each]).reshape(len(each), -1)
        moved = np.hstack([rows[taken] for rows, taken in zip(each, index, strict=True)])
    else:
        rng = np.random.default_rng([0, len(blocks)])
        drawn = [rng.permuted(np.tile(block, (NUM_DRAWN, 1)), axis=1) for block in places]
        moved = np.vstack([np.concatenate(places), np.hstack(drawn)])
    order = np.empty_like(moved)
    order[:, np.concatenate(places)] = moved
    return order, exact


class MaxCorrelation(NamedTuple):
    """Correlations of several responses with one column, and what their number costs.

    Attributes:
        r: Correlation of each response, ``(m,)``; NaN below four datasets.
        adjusted_p: One-sided p of those tested, adjusted for their number; NaN for the others.
        num_rearrangements: Permutations that p is made of.
        critical: Half width of simultaneous 95 % intervals of those tested, in standard errors of
            Fisher's z: 1.96 for one response, more for the largest of several.
    """

    r: Array
    adjusted_p: Array
    num_rearrangements: int
    critical: float


def max_correlation_test(
    responses: Array, x: Array, blocks: Sequence[str], tested: Collection[int]
) -> MaxCorrelation:
    """Correlate responses (G, m; NaN where there is none) with x (G,) within blocks, and adjust
    those ``tested`` for their number: the largest r, by permutation within blocks (Westfall & Young
    1993). x changes places the same way for all, so that their dependence is kept; only a rise with
    it counts.
    """
    order, _ = rearrangements(tuple(blocks))
    found, strongest = np.full(responses.shape[1], np.nan), np.full(len(order), -1.0)
    largest_z = np.full(len(order), -np.inf)
    num_tested = 0
    moved: dict[
        bytes, Array
    ] = {}  # x of the datasets that have a response, rearranged, of unit length
    for k, response in enumerate(responses.T):
        has = np.isfinite(response)
        mine, pair = np.array(blocks)[has], np.column_stack([response, x])[has]
        lengths = np.linalg.norm(centred(pair, mine), axis=0) if len(mine) >= 4 else np.zeros(2)
        if (lengths <= 1e-12 * np.abs(pair).max(axis=0, initial=0)).any():
            continue
        own, other = (centred(pair, mine) / lengths).T
        found[k] = own @ other
        if k not in tested:
            continue
        if (key := has.tobytes()) not in moved:
            turned = centred(x[order][:, has].T, mine)
            moved[key] = turned / np.maximum(np.linalg.norm(turned, axis=0), 1e-300)
        permuted = own @ moved[key]
        strongest = np.maximum(strongest, permuted)
        largest_z = np.maximum(largest_z, _standard_z(permuted, len(mine), len(set(mine))))
        num_tested += 1
    p = [
        np.mean(strongest >= r - 1e-9) if k in tested and r == r else np.nan
        for k, r in enumerate(found)
    ]
    critical = float(special.ndtri(1 - LEVEL / 2))
    if num_tested > 1:
        critical = max(critical, float(np.quantile(largest_z, 1 - LEVEL / 2)))
    return MaxCorrelation(found, np.array(p), len(order), critical)


def _standard_z(r: Array, num_datasets: int, num_blocks: int) -> Array:
    """Return Fisher's z of correlations within blocks, in units of its standard error."""
    spare = max(num_datasets - num_blocks - 2, 0)
    return np.asarray(np.arctanh(np.clip(r, -1 + 1e-15, 1 - 1e-15)) * np.sqrt(spare))


def jackknife_error(value: float, left_out: Array) -> float:
    """Standard error (CR3; Bell & McCaffrey 2002) of a value from its refits without each dataset
    (G,).
    """
    return float(np.sqrt((len(left_out) - 1) / len(left_out) * ((left_out - value) ** 2).sum()))


def curve_sums(y: Array, x: Array, curves: Codes, groups: Codes, weights: Array) -> Sums:
    """Reduce points (n,), centred within every curve, to what a slope Σxy / Σx² needs of each
    dataset.
    """
    names, member = members(groups)
    x, y = centred(np.column_stack([x, y]), curves, weights).T
    return names, member @ (weights * x * x), member @ (weights * x * y)


def wild_cluster_p(sums: Sums, null: float = 0.0) -> float:
    """Restricted wild cluster bootstrap-t p-value of a slope within curves against ``null``
    (Cameron, Gelbach & Miller 2008), from Σx² and Σx(y − x · null) of each dataset, of which there
    are three.
    """
    _, weights, xy = sums
    scores = xy - null * weights
    draws = wild_draws(len(scores))
    total = draws @ scores
    residual = draws * scores - total[:, None] * (weights / weights.sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.nan_to_num(np.abs(total) / np.sqrt((residual**2).sum(axis=1)), nan=np.inf)
    own = scores - scores.sum() * weights / weights.sum()
    found, spread = abs(float(scores.sum())), float(np.sqrt((own**2).sum()))
    if spread <= 0:
        return float(found <= 0)
    return float(np.mean(t >= found / spread * (1 - 1e-9)))


@lru_cache(maxsize=16)
def wild_draws(size: int) -> Array:
    """All sign patterns (B, G) of 8 to 12 datasets, drawn ones beyond, and Webb's points below
    eight.
    """
    if 8 <= size <= 12:
        return np.array(list(product((-1.0, 1.0), repeat=size)))
    rng = np.random.default_rng([0, size, 6])
    points = _WEBB if size < 8 else np.array([-1.0, 1.0])
    return np.vstack([np.ones(size), rng.choice(points, (NUM_DRAWN, size))])
