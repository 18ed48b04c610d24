"""What a design could detect: its own analysis on tables drawn in its own shape, and what an addition gains
for its cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis import laws as k
from orchestrator.analysis.fit_records import ALL, POOLED, Arm, ExponentFit, Table
from orchestrator.analysis.inference import (
    Array,
    Slope,
    effect_operator,
    mean_interval,
    means_regression,
    permutation_test,
)
from orchestrator.analysis.interventions import MOVED
from orchestrator.analysis.laws import Sums, summarise
from orchestrator.planning.estimate import DEFAULT_CARD, amount, predicted_card_seconds
from orchestrator.planning.gpus import CARDS, Card
from orchestrator.planning.plan import SweepPlan
from orchestrator.results import table as c
from search_spaces.errors import ConfigError, unknown_name
from search_spaces.specs import ClassPair

# What an experiment that moves one property could detect: its own analysis on drawn worlds of its own
# shape.
#
# Shape letters: W worlds, a arms, m models, s train sizes.

#: Δ log loss / Δ log K_F of the effects that can be asked for; "exponent" and "d_data" leave it at 0.
SLOPES = {"law": 1.0, "sharpness": 1.0, "exponent": 0.0, "d_data": 0.0}
#: Spread of the slope between worlds, as in the first experiment that was run, and of single trainings in log
#: loss, as in the published residuals.
WORLD_STD, TRIAL_STD = 0.8, 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentPower:
    """How often an experiment tells a slope of log loss on log K_F from 0, and from the law's 1.

    ``half_width`` is the median half width of the slope's 95 % interval.
    """

    effect: str
    slope: float
    num_worlds: int
    num_tables: int
    from_none: float
    from_law: float
    half_width: float

    def line(self) -> str:
        """Return one line for a plan."""
        return (
            f"Power, if losses follow K_F with slope {self.slope:g}: {self.num_worlds} worlds in which only "
            f"K_F is moved tell it from 0 in {self.from_none:.0%}, from the law's 1 in {self.from_law:.0%} "
            f"of such experiments (interval about ±{self.half_width:.2f})."
        )

    def tables(self) -> list[Table]:
        """Return the power as a table."""
        error = 0.5 / self.num_tables**0.5
        note = (
            f"Share of {self.num_tables} drawn experiments; standard error at most {error:.1%}. Every arm "
            f"moves K_F by a factor 2, the least that counts; slopes of worlds spread by {WORLD_STD:g}, "
            f"single trainings by {TRIAL_STD:g} in log loss."
        )
        rows = (("from 0", f"{self.from_none:.0%}"), ("from the law's 1", f"{self.from_law:.0%}"))
        title = f"Power for a slope of {self.slope:g} of log loss on log K_F: {self.num_worlds} worlds"
        return [Table("power-experiment", title, note, ("told", "share"), rows, numeric_from=1)]


def experiment_power(
    arms: Sequence[Arm],
    *,
    num_models: int,
    num_sizes: int,
    effect: str = "law",
    num_tables: int = 200,
    seed: int = 0,
) -> ExperimentPower:
    """Simulate the analysis of an experiment: worlds as replicates, every arm against its world's base.

    Args:
        arms: all datasets of the experiment.
        num_models: networks trained on each.
        num_sizes: train sizes of each.
        effect: one of :data:`SLOPES`.
        num_tables: experiments drawn.
        seed: of the draws.

    Raises:
        ConfigError: if fewer than three worlds have an arm that moves K_F, since worlds are the replicates.
    """
    per_world: dict[str, int] = {}
    for arm in arms:
        if arm.moves == "sharpness":
            per_world[arm.world] = per_world.get(arm.world, 0) + 1
    if len(per_world) < 3:
        raise ConfigError(
            "An experiment needs at least 3 worlds in which K_F is moved",
            f"{len(per_world)}",
            "add worlds to the sweep",
        )
    rng = np.random.default_rng(seed)
    counts = np.array([per_world[name] for name in sorted(per_world)])
    widths, none, law = [], 0, 0
    for _ in range(num_tables):
        _, bounds = mean_interval(drawn_slopes(counts, num_models * num_sizes, SLOPES[effect], rng))
        low, high = bounds or (-np.inf, np.inf)
        none += not low <= 0 <= high
        law += not low <= 1 <= high
        widths.append((high - low) / 2)
    return ExperimentPower(
        effect=effect,
        slope=SLOPES[effect],
        num_worlds=len(counts),
        num_tables=num_tables,
        from_none=none / num_tables,
        from_law=law / num_tables,
        half_width=float(np.median(widths)),
    )


def drawn_slopes(num_arms: Array, num_cells: int, slope: float, rng: np.random.Generator) -> Array:
    """Draw what one experiment finds in every world (W,): the mean over its arms of Δ log loss / Δ log K_F.

    Args:
        num_arms: (W,) of each world.
        num_cells: pairs of a model and a train size.
        slope: mean over worlds.
        rng: of the draws.
    """
    found = []
    for num in num_arms:
        own = rng.normal(slope, WORLD_STD)
        base = rng.normal(0, TRIAL_STD, num_cells)
        changes = own * MOVED + rng.normal(0, TRIAL_STD, (num, num_cells)) - base
        found.append(float(changes.mean() / MOVED))
    return np.array(found)


# Tables of a sweep's own shape with a known truth, analysed as the sweep's own: what coverage and power
# come from.
#
# Only arrays are drawn and only the inference is run on them; the code of the inference is that of the
# fits.
#
# Shape letters: n points, G datasets.


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
    """Regress dataset effects of log loss on those of ``terms``, as :mod:`~orchestrator.analysis.laws`
    does.
    """
    reduced = effects(design, subset, sample.log_loss, *terms)
    return means_regression(reduced[:, 0], reduced[:, 1:])


def exponent_sums(design: Design, sample: Sample) -> Sums:
    """The sums of :func:`~orchestrator.analysis.laws.dataset_sums`, for a complete table."""
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


NUM_TABLES = 400
#: What is asked of a design: the law itself, and each part of it alone.
EFFECTS = {
    "law": Truth(),
    "sharpness": Truth(exponent=0.0),
    "exponent": Truth(sharpness=0.0),
    "d_data": Truth(exponent=0.0, sharpness=0.0, d_slope=0.1),
}
#: Questions whose answer is a claim if the effect is there; an addition is judged by the first that can be
#: tested.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "law": (k.SHARPNESS, k.EXPONENT), "sharpness": (k.SHARPNESS,), "exponent": (k.EXPONENT,),
    "d_data": (k.LOSS_ON_D_DATA[c.MEDICAL], k.LOSS_ON_D_DATA[c.NATURAL]),
}  # fmt: skip


def design_of(plan: SweepPlan) -> Design:
    """Return the shape of a sweep's plan: its datasets with their domains and class pairs, models and sizes.

    Every dataset is taken to have every model and size; a plan's holes make its real power a little smaller.
    A dataset without a domain counts as natural. Arms of an experiment are copies of their worlds' bases, so
    bases alone count.
    """
    copies = {arm.dataset for arm in plan.sweep.experiment if arm.moves != "base"}
    pairs: dict[str, set[ClassPair | None]] = {}
    for trial in plan.trials:
        subset = trial.network.subset
        if subset.prepared.dataset not in copies:
            pairs.setdefault(subset.prepared.dataset, set()).add(subset.class_pair)
    return Design(
        datasets=tuple(
            (name, plan.datasets[name].domain or c.NATURAL, len(found)) for name, found in pairs.items()
        ),
        models=tuple(dict.fromkeys(trial.network.model.name for trial in plan.trials)),
        train_sizes=tuple(sorted({trial.network.train_size for trial in plan.trials})),
    )


def card_hours(plan: SweepPlan, card: Card | None = None) -> Callable[[Design], float]:
    """Return what designs like a plan's cost in hours of one card, by what its trials are predicted to take.

    A size that the plan lacks costs in proportion to N, a model that it lacks the mean of its models.
    """
    card = card or CARDS[DEFAULT_CARD]
    seconds: dict[tuple[str, int], list[float]] = {}
    for trial in plan.trials:
        cell = (trial.network.model.name, trial.network.train_size)
        seconds.setdefault(cell, []).append(predicted_card_seconds(trial, card))
    means = {cell: float(np.mean(found)) for cell, found in seconds.items()}

    def of_cell(model: str, size: int) -> float:
        known = [(s, value) for (name, s), value in means.items() if name == model]
        if not known:
            return float(np.mean([of_cell(name, size) for name in {name for name, _ in means}]))
        return dict(known).get(size, max(known)[1] * size / max(known)[0])

    def of_design(design: Design) -> float:
        num_pairs = sum(pairs for _, _, pairs in design.datasets)
        cells = (of_cell(model, size) for model in design.models for size in design.train_sizes)
        return num_pairs * sum(cells) / 3600

    return of_design


@dataclass(frozen=True, slots=True)
class Gain:
    """What an addition to a design does to the power of one question, and per hour of a card.

    ``std_error`` is that of ``gain``, from the number of drawn tables.
    """

    addition: str
    question: str
    power: float
    gain: float
    std_error: float
    gpu_hours: float | None
    gain_per_gpu_hour: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """How often a design's headline questions are answered with a claim, if the effect is what it is said
    to be.

    ``alone`` counts p ≤ 0.05, ``adjusted`` claims that hold after Holm's adjustment; the standard error of
    each is at most ``0.5 / √num_tables``.
    """

    effect: str
    num_datasets: int
    num_trials: int
    num_tables: int
    alone: dict[str, float]
    adjusted: dict[str, float]
    gpu_hours: float | None = None
    additions: tuple[Gain, ...] = ()

    def line(self) -> str:
        """Return one line for a plan: how often each question about the effect gets its claim."""
        shares = "; ".join(
            f"{k.QUESTION_WORDS[name]}: "
            + (f"{self.adjusted[name]:.0%}" if name in self.adjusted else "cannot be tested")
            for name in QUESTIONS.get(self.effect, tuple(self.adjusted))
        )
        error = 0.5 / self.num_tables**0.5
        return (
            f"Power, if the effect is “{self.effect}”: so many of such sweeps with {self.num_datasets} "
            f"datasets would claim it (± {error:.0%}): {shares or 'no question can be tested'}."
        )

    @property
    def untested(self) -> list[str]:
        """Headline questions about losses that the design's datasets do not allow at all."""
        return [name for name in k.QUESTION_WORDS if name not in (*self.alone, k.ATTACKS)]

    def tables(self) -> list[Table]:
        """Return how often every question is answered, and what additions to the design gain."""
        rows = tuple(
            (k.QUESTION_WORDS[name], f"{self.alone[name]:.0%}", f"{self.adjusted[name]:.0%}")
            for name in self.alone
        )
        cost = "" if self.gpu_hours is None else f", {amount(self.gpu_hours)} GPU-hours"
        title = f"Power for “{self.effect}”: {self.num_datasets} datasets, {self.num_trials} trials{cost}"
        error = 0.5 / self.num_tables**0.5
        note = f"Share of {self.num_tables} drawn tables; standard error at most {error:.1%}."
        if self.untested:
            words = "; ".join(k.QUESTION_WORDS[name] for name in self.untested)
            note += f" With these datasets cannot be tested: {words}."
        return [
            Table("power", title, note, ("question", "alone", "after Holm"), rows, numeric_from=1),
            *([addition_table(self.additions)] if self.additions else []),
        ]


def power(
    design: Design,
    *,
    effect: str = "law",
    truth: Truth | None = None,
    num_tables: int = NUM_TABLES,
    seed: int = 0,
    gpu_hours: float | None = None,
) -> Power:
    """Simulate a design's own analysis.

    Args:
        design: its datasets, models and train sizes.
        effect: one of :data:`EFFECTS`.
        truth: the effect in full, in place of a named one.
        num_tables: tables drawn.
        seed: of the draws.
        gpu_hours: cost of the design, only carried along.

    Raises:
        ConfigError: if the effect is unknown, or the design has fewer than three datasets or no table is
        asked.
    """
    if truth is None and effect not in EFFECTS:
        raise unknown_name("effect", effect, tuple(EFFECTS))
    if len(design.datasets) < 3 or num_tables < 1:
        raise ConfigError(
            "Power needs at least 3 datasets and one table",
            f"{len(design.datasets)} datasets, {num_tables} tables",
            "add datasets to the sweep",
        )
    rng = np.random.default_rng(seed)
    alone: Counter[str] = Counter()
    adjusted: Counter[str] = Counter()
    asked: dict[str, None] = {}
    for _ in range(num_tables):
        p_values = claim_p_values(design, draw(design, truth or EFFECTS[effect], rng))
        asked |= dict.fromkeys(p_values)
        alone.update(name for name, p in p_values.items() if p <= k.LEVEL)
        adjusted.update(claim.key for claim in k.adjust(p_values) if claim.established)
    return Power(
        effect=effect,
        num_datasets=len(design.datasets),
        num_trials=len(design.layout.dataset),
        num_tables=num_tables,
        alone={name: alone[name] / num_tables for name in asked},
        adjusted={name: adjusted[name] / num_tables for name in asked},
        gpu_hours=gpu_hours,
    )


def addition_table(gains: Sequence[Gain]) -> Table:
    """Return additions to a design, the one that gains most for its cost first."""
    error = max((gain.std_error for gain in gains), default=0.0)
    rows = tuple(
        (
            gain.addition,
            f"{gain.power:.0%}",
            f"{gain.gain:+.0%}",
            "" if gain.gpu_hours is None else amount(gain.gpu_hours),
            "" if gain.gain_per_gpu_hour is None else f"{100 * gain.gain_per_gpu_hour:+.3g}",
        )
        for gain in gains
    )
    return Table(
        "power-additions",
        f"What one addition does to the power: {k.QUESTION_WORDS[gains[0].question]}",
        f"Unadjusted. Standard error of a gain at most {error:.1%}: gains below twice that say nothing.",
        ("addition", "power", "gain", "GPU-hours", "points per GPU-hour"),
        rows,
        numeric_from=1,
    )


def best_additions(
    design: Design,
    question: str,
    *,
    effect: str = "law",
    cost: Callable[[Design], float] | None = None,
    num_tables: int = NUM_TABLES,
    seed: int = 0,
) -> tuple[Gain, ...]:
    """Rank additions (a dataset of each domain, a larger train size, a model) by power gained per
    GPU-hour.
    """
    base = _alone(design, question, effect, num_tables, seed)
    gains = []
    for name, larger in _additions(design):
        found = _alone(larger, question, effect, num_tables, seed)
        extra = None if cost is None else cost(larger) - cost(design)
        error = float(np.sqrt((_variance(base, num_tables) + _variance(found, num_tables)) / num_tables))
        rate = (found - base) / extra if extra else None
        gains.append(Gain(name, question, found, found - base, error, extra, rate))
    return tuple(
        sorted(gains, key=lambda g: -(g.gain if g.gain_per_gpu_hour is None else g.gain_per_gpu_hour))
    )


def _variance(share: float, num: int) -> float:
    """Of one draw, by Laplace's rule: that none of so many was counted does not say that none ever is."""
    likely = (share * num + 1) / (num + 2)
    return likely * (1 - likely)


def _alone(design: Design, question: str, effect: str, num_tables: int, seed: int) -> float:
    """How often one question has p ≤ 0.05."""
    rng = np.random.default_rng(seed)
    found = 0
    for _ in range(num_tables):
        p_values = claim_p_values(design, draw(design, EFFECTS[effect], rng), question=question)
        found += p_values.get(question, 1.0) <= k.LEVEL
    return found / num_tables


def _additions(design: Design) -> Sequence[tuple[str, Design]]:
    domains = sorted({domain for _, domain, _ in design.datasets})
    more = [
        (
            f"one {domain} dataset",
            replace(design, datasets=(*design.datasets, (f"one more {domain}", domain, 1))),
        )
        for domain in domains
    ]
    size = 4 * max(design.train_sizes)
    return [
        *more,
        (f"train size {size:,}", replace(design, train_sizes=(*design.train_sizes, size))),
        ("one model", replace(design, models=(*design.models, "one more model"))),
    ]


# What a planned sweep could detect and at what cost: its headline questions, and its experiment if any.


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPower:
    """Power of a plan for the headline questions, and of its experiment, None where it has none."""

    headline: Power
    experiment: ExperimentPower | None

    def lines(self) -> list[str]:
        """Return a line for each."""
        return [*([self.experiment.line()] if self.experiment else []), self.headline.line()]

    def tables(self) -> list[Table]:
        """Return the tables of each."""
        return [*(self.experiment.tables() if self.experiment else []), *self.headline.tables()]

    def to_json(self) -> dict[str, Any]:
        """Return what ``isweep power --json`` prints."""
        moved = None if self.experiment is None else asdict(self.experiment)
        return {**asdict(self.headline), "experiment": moved}


def planned_power(
    plan: SweepPlan, *, effect: str = "law", num_tables: int = 200, seed: int = 0, additions: bool = False
) -> PlannedPower:
    """Simulate the analysis of a plan.

    Args:
        plan: the sweep.
        effect: see :data:`orchestrator.analysis.power.EFFECTS`.
        num_tables: tables drawn.
        seed: of the draws.
        additions: whether to rank what could be added to the design.

    Raises:
        ConfigError: if the effect is unknown, or there are fewer than three datasets, or fewer than three
            worlds of an experiment.
    """
    design, cost = design_of(plan), card_hours(plan)
    found = power(design, effect=effect, num_tables=num_tables, seed=seed, gpu_hours=cost(design))
    asked = [question for question in QUESTIONS[effect] if question in found.alone]
    if additions and asked:
        gains = best_additions(design, asked[0], effect=effect, cost=cost, num_tables=num_tables, seed=seed)
        found = replace(found, additions=gains)
    made = plan.sweep.experiment
    if not made:
        return PlannedPower(headline=found, experiment=None)
    arms = tuple(Arm(arm.dataset, arm.world, arm.moves, arm.name) for arm in made)
    moved = experiment_power(
        arms, num_models=len(design.models), num_sizes=len(design.train_sizes), effect=effect,
        num_tables=num_tables, seed=seed,
    )  # fmt: skip
    return PlannedPower(headline=found, experiment=moved)
