"""Intrinsic dimension from neighbour distances: MLE and TwoNN, and one call for any feature array.

T_j(x) is the distance from x to its j-th nearest other point. Every estimator works on a table of T and
returns a record; none returns a bare number, NaN or infinity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from search_spaces.errors import DataError, unknown_name
from tasks.measures.bootstrap import block_std_error, neighborhood_blocks
from tasks.measures.byte_rows import as_bytes, with_unit
from tasks.measures.dimension import (
    EQUAL_LOG_RATIO,
    EQUALLY_FAR,
    IntrinsicDimension,
    inverse_dimensions,
    undefined,
    usable,
)
from tasks.measures.distances import BlockSource, FloatArray, Precision, as_source
from tasks.measures.inputs import as_array
from tasks.measures.neighbors import BLOCK_ROWS, NeighborTable, nested_neighbors
from tasks.measures.scale_estimators import gride
from tasks.remote import Executor

MLE_CONVENTION = (
    "Levina-Bickel with the MacKay-Ghahramani mean of inverses, inner sum divided by k-2 as in the code of "
    "Konz & Mazurowski 2024; value_k_minus_1: divided by k-1 as printed there, which is unbiased where "
    "inverses are averaged; std_error by the delta method"
)


def mle(table: NeighborTable, *, num_neighbors: int = 20, seed: int = 0) -> IntrinsicDimension:
    """Maximum-likelihood dimension (Levina & Bickel 2004, aggregated as MacKay & Ghahramani 2005).

    ``d = 1 / mean_x( 1/(k - 2) · Σ_{j<k} ln(T_k / T_j) )``

    Where density is even the sum has the mean ``(k - 1)/d``, so that k - 1 is the unbiased divisor where
    inverses are averaged. The study's code divides by k - 2, and so does ``value``, which is compared with
    the study's laws; the other is 19/18 of it at k = 20.

    Args:
        table: Neighbours of the points, at least ``num_neighbors`` wide.
        num_neighbors: k, 20 as in Konz & Mazurowski.
        seed: Of the bootstrap.

    Returns:
        Record whose ``std_error`` is by the delta method, ``d² · sd(inverse) / √n``, which takes points as
        independent; ``std_error_bootstrap`` resamples blocks of neighbouring points instead.
        ``value_k_minus_1`` is the value with the other divisor. ``curve`` has both for every smaller k: of
        the two only the latter does not change with k for the divisor's sake alone.

    Raises:
        DataError: If ``num_neighbors`` leaves nothing to divide by.
    """
    if num_neighbors <= 2:
        raise DataError("num_neighbors must be above 2", str(num_neighbors))
    distances, good, problem = usable(table, num_neighbors)
    if problem:
        return undefined("mle", table, num_neighbors, MLE_CONVENTION, problem)
    logs = np.log(distances[good])
    inverses = inverse_dimensions(logs, num_neighbors, 2)
    mean = inverses.mean()
    if mean <= EQUAL_LOG_RATIO:
        return undefined("mle", table, num_neighbors, MLE_CONVENTION, EQUALLY_FAR)
    curve = [
        {
            "num_neighbors": k,
            "value": _inverse(inverse_dimensions(logs, k, 2).mean()),
            "value_k_minus_1": _inverse(inverse_dimensions(logs, k, 1).mean()),
        }
        for k in range(3, num_neighbors + 1)
    ]
    bootstrap = block_std_error(
        lambda weights: weights.sum() / (weights * inverses).sum(),
        neighborhood_blocks(table.indices[:, :num_neighbors], good),
        seed=seed,
    )
    return IntrinsicDimension(
        "mle",
        float(1 / mean),
        float(inverses.std(ddof=1) / mean**2 / np.sqrt(len(inverses))),
        len(inverses),
        num_neighbors,
        MLE_CONVENTION,
        num_dropped=int((~good).sum()),
        details={
            "std_error_bootstrap": bootstrap,
            "value_k_minus_1": curve[-1]["value_k_minus_1"],
            "curve": curve,
        },
    )


def _inverse(mean: float) -> float | None:
    return float(1 / mean) if mean > 0 else None


def twonn(table: NeighborTable, *, discard_fraction: float = 0.1, seed: int = 0) -> IntrinsicDimension:
    """Two-nearest-neighbour dimension (Facco et al. 2017): slope of ``-ln(1 - F(μ))`` on ``ln μ``.

    μ = T_2/T_1, F its empirical distribution ``i/n``; least squares through the origin.

    Args:
        table: Neighbours of the points, at least two wide.
        discard_fraction: Share of the largest μ left out, 0.1 as in Facco et al.; 0 drops the last point
            only (where F = 1), as the code of Konz & Mazurowski does.
        seed: Of the bootstrap.

    Returns:
        Record with ``d/√n`` as standard error (the one of the likelihood), and the bootstrap's.

    Raises:
        DataError: If ``discard_fraction`` is not in [0, 1).
    """
    if not 0 <= discard_fraction < 1:
        raise DataError("discard_fraction must be in [0, 1)", str(discard_fraction))
    convention = (
        f"Facco et al. 2017, fit through the origin, {discard_fraction:g} of the largest ratios discarded "
        "(0: only the last point); std_error d/sqrt(n)"
    )
    distances, good, problem = usable(table, 2)
    if problem:
        return undefined("twonn", table, 2, convention, problem)
    log_ratios = np.log(distances[good, 1] / distances[good, 0])
    order = np.argsort(log_ratios, kind="stable")
    value = _twonn_slope(log_ratios[order], np.ones(len(order)), discard_fraction)
    if value is None or value >= 1 / EQUAL_LOG_RATIO:
        return undefined("twonn", table, 2, convention, EQUALLY_FAR)
    error = block_std_error(
        lambda weights: _twonn_slope(log_ratios[order], weights[order], discard_fraction),
        neighborhood_blocks(table.indices[:, :2], good),
        seed=seed,
    )
    return IntrinsicDimension(
        "twonn",
        value,
        float(value / np.sqrt(len(order))),
        len(order),
        2,
        convention,
        num_dropped=int((~good).sum()),
        details={"std_error_bootstrap": error, "discard_fraction": discard_fraction},
    )


def _twonn_slope(log_ratios: FloatArray, weights: FloatArray, discard_fraction: float) -> float | None:
    """Slope for ascending ``log_ratios``; ``weights`` are multiplicities, all one for the sample itself."""
    share = np.cumsum(weights) / weights.sum()
    # The tolerance keeps i/n <= 1 - f on the side that exact arithmetic would put it.
    num_kept = int(np.searchsorted(share, 1 - discard_fraction + 1e-12, side="right"))
    num_kept = min(num_kept, int(np.searchsorted(share, 1 - 1e-12)))  # F = 1 has no logarithm
    x, w = log_ratios[:num_kept], weights[:num_kept]
    # Not by products of vectors: BLAS shares long ones out over threads, whose number would show here.
    norm = float((w * x * x).sum())
    return float((w * x * -np.log1p(-share[:num_kept])).sum() / norm) if norm > 0 else None


def estimator_table() -> dict[str, tuple[Callable[..., IntrinsicDimension], int]]:
    """Estimators by name: a function of ``(table, num_neighbors, seed)`` and the neighbours it needs.

    Zero neighbours means as many as the caller's ``num_neighbors``.
    """
    return {
        "mle": (lambda table, k, seed: mle(table, num_neighbors=k, seed=seed), 0),
        "twonn": (lambda table, k, seed: twonn(table, seed=seed), 2),
        "gride": (lambda table, k, seed: gride(table, num_neighbors=k), 0),
    }


def table_width(estimators: Iterable[str], num_neighbors: int) -> int:
    """Neighbours that a table must hold for these estimators.

    Raises:
        ConfigError: If an estimator is not known.
    """
    known = estimator_table()
    for name in estimators:
        if name not in known:
            raise unknown_name("estimator", name, known)
    return max([known[name][1] or num_neighbors for name in estimators], default=num_neighbors)


def estimate(
    table: NeighborTable,
    *,
    num_neighbors: int,
    estimators: Sequence[str],
    discard_fraction: float = 0.1,
    seed: int = 0,
) -> dict[str, IntrinsicDimension]:
    """Run several estimators on one table of neighbours."""
    known = estimator_table()
    known["twonn"] = (lambda t, k, s: twonn(t, discard_fraction=discard_fraction, seed=s), 2)
    return {name: known[name][0](table, num_neighbors, seed) for name in estimators}


def intrinsic_dimension(
    features: npt.ArrayLike | BlockSource,
    *,
    num_neighbors: int = 20,
    estimators: Sequence[str] = ("mle", "twonn"),
    discard_fraction: float = 0.1,
    executor: Executor | None = None,
    precision: Precision | None = None,
    seed: int = 0,
    block_rows: int = BLOCK_ROWS,
) -> dict[str, IntrinsicDimension]:
    """Intrinsic dimension of any array of points, for example of a network's last hidden layer (d_repr).

    Args:
        features: ``(num_points, ...)`` real numbers, in any order.
        num_neighbors: k of the MLE.
        estimators: Names from `estimator_table`.
        discard_fraction: Of TwoNN; 0 as in the code of Konz & Mazurowski.
        executor: Where block tasks run; in this process when None.
        precision: How products are formed.
        seed: Of bootstraps; no value depends on it.
        block_rows: Rows per block.

    Returns:
        One record per estimator. Exact duplicates count once; ``num_duplicates`` says how many.

    Raises:
        DataError: If the features are no numbers, or not finite.
        ConfigError: If an estimator is not known.

    Example:
        >>> points = np.random.default_rng(0).normal(size=(500, 3)) @ np.ones((3, 40))
        >>> 0.9 < intrinsic_dimension(points)["mle"].value < 1.1
        True
    """
    from tasks.measures.duplicates import profile_rows

    source = as_bytes(features if isinstance(features, BlockSource) else as_source(as_array(features)))
    profile = profile_rows(source, None, executor=executor)
    source = with_unit(source, profile.byte_unit)
    size = len(profile.keep)
    table = nested_neighbors(
        source,
        None,
        [size],
        max(1, min(table_width(estimators, num_neighbors), size - 1)),
        executor=executor,
        precision=profile.precision(precision or Precision()),
        keep=profile.keep,
        block_rows=block_rows,
    ).tables[0]
    records = estimate(
        table,
        num_neighbors=num_neighbors,
        estimators=estimators,
        discard_fraction=discard_fraction,
        seed=seed,
    )
    extra = {"num_duplicates": profile.num_duplicates}
    return {name: replace(record, details=record.details | extra) for name, record in records.items()}
