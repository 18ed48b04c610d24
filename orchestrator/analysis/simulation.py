"""Tables of a sweep's own shape with a known truth, analysed as the sweep's own: what coverage and power
come from.

Only arrays are drawn and only the inference is run on them; the code of the inference is that of the fits.

Shape letters: n points, G datasets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis import claims as k
from orchestrator.analysis.clusters import (
    Slope,
    effect_operator,
    means_regression,
    permutation_test,
)
from orchestrator.analysis.exponents import Sums, summarise
from orchestrator.analysis.law_records import ALL, POOLED, ExponentFit
from orchestrator.analysis.regression import Array
from orchestrator.results import columns as c


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What decides the losses: log L = −exponent · log N / d + sharpness · log K_F + label · medical +
    errors.

    The standard deviations are of the published residuals: most of what is unexplained belongs to datasets.

    Attributes:
        inverse_d: coefficient of 1/d by itself (the volume in a covering argument).
        d_slope: coefficient of d itself, 0 in the law.
        exponent_std: of the exponent between datasets.
        sharpness_of_d: if true, log K_F is a function of d alone.
    """

    exponent: float = 1.0
    sharpness: float = 1.0
    label: float = 0.0
    inverse_d: float = 0.0
    d_slope: float = 0.0
    exponent_std: float = 0.0
    dataset_std: float = 0.8
    pair_std: float = 0.3
    model_std: float = 0.2
    subset_std: float = 0.2
    trial_std: float = 0.3
    d_error: float = 0.03
    sharpness_error: float = 0.1
    sharpness_gap: float = 0.9
    sharpness_of_d: bool = False


@dataclass(frozen=True)
class Design:
    """Which cells there are: (dataset, domain, number of class pairs), models and train sizes; seeds are
    averaged.
    """

    datasets: tuple[tuple[str, str, int], ...]
    models: tuple[str, ...]
    train_sizes: tuple[int, ...]

    @cached_property
    def layout(self) -> Layout:
        """The points of this design."""
        return Layout(self)


STUDY = Design(
    tuple((f"natural{j}", c.NATURAL, 5) for j in range(4))
    + tuple((f"medical{j}", c.MEDICAL, 1) for j in range(7)),
    tuple(f"model{j}" for j in range(6)),
    (500, 750, 1000, 1250, 1500, 1750),
)


class Layout:
    """Codes of every point (n,) and, for dataset effects, the linear map from points to datasets (G, n)."""

    def __init__(self, design: Design) -> None:
        rows = [
            (d, pair, m, s)
            for d, (_, _, pairs) in enumerate(design.datasets)
            for pair in range(pairs)
            for m in range(len(design.models))
            for s in range(len(design.train_sizes))
        ]
        self.dataset, self.pair, self.model, self.size = np.array(rows).T
        pairs = np.array([num for _, _, num in design.datasets])
        self.weights = 1.0 / pairs[self.dataset]
        self.subset = np.unique(np.array([self.dataset, self.pair]), axis=1, return_inverse=True)[1].ravel()
        self.medical = np.array([domain == c.MEDICAL for _, domain, _ in design.datasets])
        self.blocks = [domain for _, domain, _ in design.datasets]
        self.log_size = np.log(np.array(design.train_sizes, dtype=float))[self.size]
        self.cell = self.model * len(design.train_sizes) + self.size
        self.curve = self.subset * len(design.models) + self.model
        self.num_models, self.num_sizes = len(design.models), len(design.train_sizes)
        self.reduction = {
            name: self._reduction(keep)
            for name, keep in (
                (ALL, np.full(len(pairs), True)), (c.MEDICAL, self.medical), (c.NATURAL, ~self.medical),
            )
            if keep.any()
        }  # fmt: skip

    def _reduction(self, keep: NDArray[np.bool_]) -> Array:
        rows = keep[self.dataset]
        found = effect_operator(
            self.cell[rows].astype(str),
            np.char.zfill(self.dataset[rows].astype(str), 6),
            self.weights[rows],
        )
        if found is None:
            return np.empty((0, len(rows)))
        operator = np.zeros((int(keep.sum()), len(rows)))
        operator[:, rows] = found
        return operator


@dataclass(frozen=True, slots=True)
class Sample:
    """One drawn table: measured d (n,) and d at the largest N (n,), log K_F (n,) and log loss (n,)."""

    d_data: Array
    d_reference: Array
    log_sharpness: Array
    log_loss: Array


def draw(design: Design, truth: Truth, rng: np.random.Generator) -> Sample:
    """Draw one table: properties of datasets and pairs, their errors of measurement, and losses."""
    at = design.layout
    num, num_subsets = len(at.medical), int(at.subset.max()) + 1

    def shared(std: float, codes: NDArray[np.intp]) -> Array:
        return np.asarray(rng.normal(0, std, int(codes.max()) + 1)[codes])

    d = (rng.uniform(6, 20, num)[at.dataset] * np.exp(shared(0.1, at.subset))).astype(float)
    if truth.sharpness_of_d:
        log_k = -9.0 + 2.5 * np.log(d / 10)
    else:
        log_k = (
            -9.2
            + truth.sharpness_gap * at.medical[at.dataset]
            + shared(0.45, at.dataset)
            + shared(0.2, at.subset)
        )
    exponent = truth.exponent + rng.normal(0, truth.exponent_std, num)[at.dataset]
    log_loss = (
        -exponent * at.log_size / d
        + truth.sharpness * log_k
        + truth.label * at.medical[at.dataset]
        + truth.inverse_d / d
        + truth.d_slope * d
        + shared(truth.dataset_std, at.dataset)
        + shared(truth.pair_std, at.subset)
        + shared(0.1, at.model)
        + shared(truth.model_std, at.dataset * at.num_models + at.model)
        + shared(truth.subset_std, at.subset * at.num_sizes + at.size)
        + rng.normal(0, truth.trial_std, len(d))
    )
    errors = rng.normal(0, truth.d_error, (num_subsets, at.num_sizes))
    grown = d * np.exp(0.05 * (at.log_size - np.log(1000.0)))
    last = at.log_size.max()
    return Sample(
        d_data=grown * np.exp(errors[at.subset, at.size]),
        d_reference=d * np.exp(0.05 * (last - np.log(1000.0)) + errors[at.subset, at.num_sizes - 1]),
        log_sharpness=log_k + rng.normal(0, truth.sharpness_error, num_subsets)[at.subset],
        log_loss=log_loss,
    )


def effects(design: Design, subset: str, *values: Array) -> Array:
    """Dataset effects (G, k) of several quantities (n,), over both domains or one."""
    return np.asarray(design.layout.reduction[subset] @ np.column_stack(values))


def level_slopes(
    design: Design, sample: Sample, terms: Sequence[Array], subset: str = ALL
) -> tuple[Slope, ...] | None:
    """Regress dataset effects of log loss on those of ``terms``, as :mod:`~orchestrator.analysis.levels`
    does.
    """
    reduced = effects(design, subset, sample.log_loss, *terms)
    return means_regression(reduced[:, 0], reduced[:, 1:])


def exponent_sums(design: Design, sample: Sample) -> Sums:
    """The sums of :func:`~orchestrator.analysis.exponents.dataset_sums`, for a complete table."""
    at = design.layout

    def centred(values: Array) -> Array:
        means: Array = np.bincount(at.curve, values) / np.bincount(at.curve)
        return np.asarray(values - means[at.curve])

    x, power, y = centred(-at.log_size / sample.d_reference), centred(-at.log_size), centred(sample.log_loss)

    def summed(products: Array) -> Array:
        return np.asarray(np.bincount(at.dataset, at.weights * products))

    return Sums(
        names=[str(j) for j in range(len(at.medical))],
        xx=summed(x * x), xy=summed(x * y), yy=summed(y * y),
        power_xx=summed(power * power), power_xy=summed(power * y),
        num=summed(np.ones(len(x))),
    )  # fmt: skip


def exponent_fit(design: Design, sample: Sample) -> ExponentFit:
    """The pooled within-dataset exponent of a drawn table."""
    blank = ExponentFit(
        response="test_loss", dimension=c.D_DATA_MLE, model=POOLED, subset=ALL, status="not_enough_data",
        num_datasets=len(design.datasets), num_points=len(sample.log_loss),
    )  # fmt: skip
    return summarise(blank, exponent_sums(design, sample))


def claim_p_values(design: Design, sample: Sample, *, seed: int = 0, question: str = "") -> dict[str, float]:
    """p-values of the headline questions of a drawn table, before Holm's adjustment (attacks are not
    drawn); of ``question`` alone where one is named. Those above :data:`claims.LEVEL` may be too small.
    """
    at = design.layout
    found: dict[str, float] = {}
    for domain, key in k.LOSS_ON_D_DATA.items():
        if question not in ("", key):
            continue
        if domain in at.reduction and len(at.reduction[domain]) >= 3:
            p = _both(
                effects(design, domain, sample.log_loss, sample.d_data),
                [""] * len(at.reduction[domain]),
                seed,
            )
            found |= {} if p is None else {key: p}
    if question in ("", k.SHARPNESS) and at.medical.any() and not at.medical.all():
        label = at.medical[at.dataset].astype(float)
        reduced = effects(design, ALL, sample.log_loss, sample.log_sharpness, 1 / sample.d_reference, label)
        p = _both(reduced, at.blocks, seed)
        found |= {} if p is None else {k.SHARPNESS: p}
    if question in ("", k.EXPONENT, k.BELOW_BOUND):
        found |= k.exponent_p_values(exponent_fit(design, sample))
    return found


def _both(reduced: Array, blocks: list[str], seed: int) -> float | None:
    """The larger of t and permutation p-value of the first term; above the level the first that is, since
    nothing is claimed either way.
    """
    slopes = means_regression(reduced[:, 0], reduced[:, 1:])
    if slopes is None:
        return None
    if slopes[0].p_value > k.LEVEL:
        return slopes[0].p_value
    test = permutation_test(reduced[:, 0], reduced[:, 1], reduced[:, 2:], blocks, seed=seed)
    return max(slopes[0].p_value, 0.0 if test is None else test.p_value)
