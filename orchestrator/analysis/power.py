"""What a design could detect: its own analysis on tables drawn in its own shape with a known truth.

Only arrays are drawn and only the inference is run on them, by the functions of the fits. An experiment that
moves one property has worlds for replicates, and a power of its own.

Shape letters: n points, G datasets, W worlds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis import fit_records as r
from orchestrator.analysis import table as t
from orchestrator.analysis.fits import slope_estimates, with_exponent
from orchestrator.analysis.inference import LEVEL, Array, Sums, curve_sums, dataset_effects, mean_interval
from orchestrator.analysis.interventions import MOVED, Arm
from orchestrator.analysis.tables import Table
from orchestrator.planning.estimate import DEFAULT_CARD, amount
from orchestrator.planning.plan import SweepPlan
from orchestrator.planning.predict import CARDS, need_of
from orchestrator.results import table as c
from search_spaces.errors import ConfigError, unknown_name
from search_spaces.specs import ClassPair

NUM_TABLES = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What decides the losses: log L = −exponent · log N / d + sharpness · log K_F + label · medical +
    errors.

    The standard deviations are of the published residuals: most of what is unexplained belongs to datasets.

    Attributes:
        d_slope: coefficient of d itself, 0 in the law.
    """

    exponent: float = 1.0
    sharpness: float = 1.0
    label: float = 0.0
    d_slope: float = 0.0
    dataset_std: float = 0.8
    pair_std: float = 0.3
    model_std: float = 0.2
    subset_std: float = 0.2
    trial_std: float = 0.3
    d_error: float = 0.03
    sharpness_error: float = 0.1
    sharpness_gap: float = 0.9


#: What is asked of a design: the law itself, and each part of it alone. The same as slopes of log loss on log
#: K_F.
EFFECTS = {
    "law": Truth(),
    "sharpness": Truth(exponent=0.0),
    "exponent": Truth(sharpness=0.0),
    "d_data": Truth(exponent=0.0, sharpness=0.0, d_slope=0.1),
}
#: Questions whose answer is a claim if the effect is there.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "law": (r.SHARPNESS, r.EXPONENT), "sharpness": (r.SHARPNESS,), "exponent": (r.EXPONENT,),
    "d_data": (r.DIMENSION,),
}  # fmt: skip


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
    """Codes of every point (n,) and the linear map from points to dataset effects (G, n)."""

    def __init__(self, design: Design) -> None:
        rows = [
            (d, pair, m, s)
            for d, (_, _, pairs) in enumerate(design.datasets)
            for pair in range(pairs)
            for m in range(len(design.models))
            for s in range(len(design.train_sizes))
        ]
        self.dataset, self.pair, self.model, self.size = np.array(rows).T
        self.weights = 1.0 / np.array([num for _, _, num in design.datasets])[self.dataset]
        self.subset = np.unique(np.array([self.dataset, self.pair]), axis=1, return_inverse=True)[1].ravel()
        self.domains = [domain for _, domain, _ in design.datasets]
        self.medical = np.array([domain == c.MEDICAL for domain in self.domains])
        self.log_size = np.log(np.array(design.train_sizes, dtype=float))[self.size]
        self.cell = self.model * len(design.train_sizes) + self.size
        self.curve = self.subset * len(design.models) + self.model
        self.num_models, self.num_sizes = len(design.models), len(design.train_sizes)
        reduced = dataset_effects(np.eye(len(rows)), self.cell, self.dataset, self.weights)
        self.to_effects: Array = np.empty((0, len(rows))) if reduced is None else reduced[1]


@dataclass(frozen=True, slots=True)
class Sample:
    """One drawn table: d at the largest N (n,), log K_F (n,) and log loss (n,)."""

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
    medical = at.medical[at.dataset].astype(float)
    log_k = -9.2 + truth.sharpness_gap * medical + shared(0.45, at.dataset) + shared(0.2, at.subset)
    log_loss = (
        -truth.exponent * at.log_size / d
        + truth.sharpness * log_k
        + truth.label * medical
        + truth.d_slope * d
        + shared(truth.dataset_std, at.dataset)
        + shared(truth.pair_std, at.subset)
        + shared(0.1, at.model)
        + shared(truth.model_std, at.dataset * at.num_models + at.model)
        + shared(truth.subset_std, at.subset * at.num_sizes + at.size)
        + rng.normal(0, truth.trial_std, len(d))
    )
    # Estimates of d grow with the number of points they are made from.
    grown = 0.05 * (at.log_size.max() - np.log(1000.0)) + rng.normal(0, truth.d_error, num_subsets)
    return Sample(
        d_reference=d * np.exp(grown[at.subset]),
        log_sharpness=log_k + rng.normal(0, truth.sharpness_error, num_subsets)[at.subset],
        log_loss=log_loss,
    )


def exponent_sums(design: Design, sample: Sample) -> Sums:
    """The sums of a drawn table from which its exponent is fitted."""
    at = design.layout
    return curve_sums(sample.log_loss, -at.log_size / sample.d_reference, at.curve, at.dataset, at.weights)


def headline_terms(design: Design) -> tuple[str, ...]:
    """Return the terms of the fit that the questions about heights are asked of."""
    return (t.INVERSE_D, t.LOG_SHARPNESS, *([t.IS_MEDICAL] if len(set(design.layout.domains)) > 1 else []))


def heights(design: Design, sample: Sample) -> tuple[Array, Array]:
    """Dataset effects of log loss (G,) and of the headline terms (G, q)."""
    at = design.layout
    values = np.column_stack(
        [sample.log_loss, 1 / sample.d_reference, sample.log_sharpness, at.medical[at.dataset]]
    )
    effects = at.to_effects @ values[:, : 1 + len(headline_terms(design))]
    return effects[:, 0], effects[:, 1:]


def claim_p_values(design: Design, sample: Sample, *, seed: int = 0) -> dict[str, float]:
    """p-values of the headline questions of a drawn table, before Holm's adjustment (attacks are not drawn).

    Those above :data:`LEVEL` may be too small: where the t test finds nothing no permutation is tried.
    """
    found = []
    terms, domains = headline_terms(design), design.layout.domains
    if len(design.layout.to_effects) >= len(terms) + 2:
        y, x = heights(design, sample)
        tested = (t.INVERSE_D, t.LOG_SHARPNESS)
        estimates = slope_estimates(y, x, terms, domains, tested=tested, seed=seed, hopeless=LEVEL)
        found.append(r.Fit(kind="headline", status="ok", estimates=estimates or ()))
    if len(design.datasets) >= 3 and len(design.train_sizes) > 1:
        found.append(with_exponent(r.Fit(kind="exponent"), exponent_sums(design, sample)))
    return r.p_values_of(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """How often a design's headline questions are answered with a claim, if the effect is what it is said to
    be.

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

    def line(self) -> str:
        """Return one line for a plan: how often each question about the effect gets its claim."""
        shares = "; ".join(
            f"{r.QUESTIONS[name]}: "
            + (f"{self.adjusted[name]:.0%}" if name in self.adjusted else "cannot be tested")
            for name in QUESTIONS.get(self.effect, tuple(self.adjusted))
        )
        error = 0.5 / self.num_tables**0.5
        return (
            f"Power, if the effect is “{self.effect}”: so many of such sweeps with {self.num_datasets} "
            f"datasets would claim it (± {error:.0%}): {shares or 'no question can be tested'}."
        )

    def table(self) -> Table:
        """Return how often every question is answered."""
        rows = tuple(
            (r.QUESTIONS[name], f"{self.alone[name]:.0%}", f"{self.adjusted[name]:.0%}")
            for name in self.alone
        )
        cost = "" if self.gpu_hours is None else f", {amount(self.gpu_hours)} GPU-hours"
        title = f"Power for “{self.effect}”: {self.num_datasets} datasets, {self.num_trials} trials{cost}"
        error = 0.5 / self.num_tables**0.5
        note = f"Share of {self.num_tables} drawn tables; standard error at most {error:.1%}."
        untested = [words for key, words in r.QUESTIONS.items() if key not in (*self.alone, r.ATTACKS)]
        if untested:
            note += f" With these datasets cannot be tested: {'; '.join(untested)}."
        return Table("power", title, note, ("question", "alone", "after Holm"), rows)


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
        few = len(design.datasets) < 3
        raise ConfigError(
            "Power needs at least 3 datasets, since datasets are what is compared"
            if few
            else "Power needs a table",
            t.plural(len(design.datasets), "dataset") if few else f"{num_tables}",
            "add datasets to the sweep" if few else "draw at least one",
        )
    rng = np.random.default_rng(seed)
    alone: Counter[str] = Counter()
    held: Counter[str] = Counter()
    asked: dict[str, None] = {}
    for _ in range(num_tables):
        p_values = claim_p_values(design, draw(design, truth or EFFECTS[effect], rng))
        asked |= dict.fromkeys(p_values)
        alone.update(name for name, p in p_values.items() if p <= LEVEL)
        held.update(claim.key for claim in r.adjusted(p_values) if claim.established)
    return Power(
        effect=effect,
        num_datasets=len(design.datasets),
        num_trials=len(design.layout.dataset),
        num_tables=num_tables,
        alone={name: alone[name] / num_tables for name in asked},
        adjusted={name: held[name] / num_tables for name in asked},
        gpu_hours=gpu_hours,
    )


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

    def table(self) -> Table:
        """Return the power as a table."""
        error = 0.5 / self.num_tables**0.5
        note = (
            f"Share of {self.num_tables} drawn experiments; standard error at most {error:.1%}. Every arm "
            f"moves K_F by a factor 2, the least that counts; slopes of worlds spread by {WORLD_STD:g}, "
            f"single trainings by {TRIAL_STD:g} in log loss."
        )
        rows = (("from 0", f"{self.from_none:.0%}"), ("from the law's 1", f"{self.from_law:.0%}"))
        title = f"Power for a slope of {self.slope:g} of log loss on log K_F: {self.num_worlds} worlds"
        return Table("power-experiment", title, note, ("told", "share"), rows)


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
        effect: one of :data:`EFFECTS`, as far as K_F has a part in it.
        num_tables: experiments drawn.
        seed: of the draws.

    Raises:
        ConfigError: if fewer than three worlds have an arm that moves K_F, since worlds are the replicates.
    """
    per_world = Counter(arm.world for arm in arms if arm.moves == "sharpness")
    if len(per_world) < 3:
        rule = "An experiment needs at least 3 worlds in which K_F is moved"
        raise ConfigError(rule, f"{len(per_world)}", "add worlds to the sweep")
    slope, rng = EFFECTS[effect].sharpness, np.random.default_rng(seed)
    counts = np.array([per_world[name] for name in sorted(per_world)])
    widths, none, law = [], 0, 0
    for _ in range(num_tables):
        _, bounds = mean_interval(drawn_slopes(counts, num_models * num_sizes, slope, rng))
        low, high = bounds or (-np.inf, np.inf)
        none += not low <= 0 <= high
        law += not low <= 1 <= high
        widths.append((high - low) / 2)
    return ExperimentPower(
        effect=effect, slope=slope, num_worlds=len(counts), num_tables=num_tables,
        from_none=none / num_tables, from_law=law / num_tables, half_width=float(np.median(widths)),
    )  # fmt: skip


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
        own, base = rng.normal(slope, WORLD_STD), rng.normal(0, TRIAL_STD, num_cells)
        changes = own * MOVED + rng.normal(0, TRIAL_STD, (num, num_cells)) - base
        found.append(float(changes.mean() / MOVED))
    return np.array(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPower:
    """Power of a plan for the headline questions, and of its experiment, None where it has none."""

    headline: Power
    experiment: ExperimentPower | None

    def lines(self) -> list[str]:
        """Return a line for each."""
        return [*([self.experiment.line()] if self.experiment else []), self.headline.line()]

    def tables(self) -> list[Table]:
        """Return the table of each."""
        return [*([self.experiment.table()] if self.experiment else []), self.headline.table()]

    def to_json(self) -> dict[str, Any]:
        """Return what ``isweep power --json`` prints."""
        moved = None if self.experiment is None else asdict(self.experiment)
        return {**asdict(self.headline), "experiment": moved}


def planned_power(
    plan: SweepPlan, *, effect: str = "law", num_tables: int = 200, seed: int = 0
) -> PlannedPower:
    """Simulate the analysis of a plan: what it could detect, at how many GPU-hours.

    Args:
        plan: the sweep.
        effect: one of :data:`EFFECTS`.
        num_tables: tables drawn.
        seed: of the draws.

    Raises:
        ConfigError: if the effect is unknown, or there are fewer than three datasets, or fewer than three
            worlds of an experiment.
    """
    design, card = design_of(plan), CARDS[DEFAULT_CARD]
    hours = sum(need_of(trial, card).card_seconds for trial in plan.trials) / 3600
    found = power(design, effect=effect, num_tables=num_tables, seed=seed, gpu_hours=hours)
    arms = tuple(Arm(arm.dataset, arm.world, arm.moves, arm.name) for arm in plan.sweep.experiment)
    moved = experiment_power(
        arms, num_models=len(design.models), num_sizes=len(design.train_sizes), effect=effect,
        num_tables=num_tables, seed=seed,
    ) if arms else None  # fmt: skip
    return PlannedPower(headline=found, experiment=moved)
