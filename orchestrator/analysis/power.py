"""What a design could detect: its own analysis on arrays drawn in its own shape with a known truth;
of worlds, whose replicates they are, by the noncentral t. Shape letters: n points, G datasets, q
terms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

from orchestrator.analysis import fits as f
from orchestrator.analysis import inference as i
from orchestrator.analysis import table as t
from orchestrator.analysis.interventions import MOVED, Arm
from orchestrator.analysis.tables import Table
from orchestrator.planning.costs.gpu_models import GPU_MODELS
from orchestrator.planning.costs.needs import need_of
from orchestrator.planning.estimate import DEFAULT_GPU
from orchestrator.planning.estimate_text import amount
from orchestrator.planning.plan import SweepPlan
from orchestrator.results import columns as c
from search_spaces.errors import ConfigError, unknown_name
from search_spaces.specs import ClassPair

#: Spread of the slope between worlds of an experiment, as in the first one that was run, and of
#: single trainings in log loss, as in the published residuals.
WORLD_STD, TRIAL_STD = 0.8, 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What decides the losses: log L = −exponent · log N / d + sharpness · log K_F + d_slope · d +
    errors.

    The standard deviations are of the published residuals: most of what is unexplained belongs to
    datasets.
    """

    exponent: float = 1.0
    sharpness: float = 1.0
    d_slope: float = 0.0
    dataset_std: float = 0.8
    pair_std: float = 0.3
    model_std: float = 0.2
    subset_std: float = 0.2
    trial_std: float = TRIAL_STD
    d_error: float = 0.03
    sharpness_error: float = 0.1
    sharpness_gap: float = 0.9


#: The law itself, or a part of it alone: its truth, and the questions whose answer is a claim then.
EFFECTS = {
    "law": (Truth(), (f.SHARPNESS, f.EXPONENT)),
    "sharpness": (Truth(exponent=0.0), (f.SHARPNESS,)),
    "exponent": (Truth(sharpness=0.0), (f.EXPONENT,)),
    "d_data": (Truth(exponent=0.0, sharpness=0.0, d_slope=0.1), (f.DIMENSION,)),
}


class Design:
    """All (dataset, domain, number of class pairs) at all models and train sizes, as codes of
    points (n,).
    """

    def __init__(
        self,
        datasets: Sequence[tuple[str, str, int]],
        models: Sequence[str],
        train_sizes: Sequence[int],
    ) -> None:
        self.datasets, self.models, self.train_sizes = (
            tuple(datasets),
            tuple(models),
            tuple(train_sizes),
        )
        shapes = [(num, len(models), len(train_sizes)) for _, _, num in datasets]
        cells = [np.indices(shape).reshape(3, -1) for shape in shapes]
        pair, self.model, self.size = np.hstack(cells)
        self.dataset = np.repeat(np.arange(len(shapes)), [own.shape[1] for own in cells])
        numbers = np.array([num for num, _, _ in shapes])
        self.weights = 1.0 / numbers[self.dataset]
        self.subset = (np.cumsum(numbers) - numbers)[self.dataset] + pair
        self.domains = [domain for _, domain, _ in datasets]
        self.medical = np.array([domain == c.MEDICAL for domain in self.domains])[self.dataset]
        self.log_size = np.log(np.array(train_sizes, dtype=float))[self.size]
        self.curve = self.subset * len(models) + self.model


def drawn_fits(at: Design, truth: Truth, rng: np.random.Generator) -> list[f.Fit]:
    """Draw one table and fit the headline questions but that on attacks. p-values above the level
    may be too small: where the t test finds nothing no permutation is tried.
    """
    num_subsets, num_models, num_sizes = (
        int(at.subset.max()) + 1,
        len(at.models),
        len(at.train_sizes),
    )

    def shared(std: float, codes: NDArray[np.intp]) -> i.Array:
        return np.asarray(rng.normal(0, std, int(codes.max()) + 1)[codes])

    d = rng.uniform(6, 20, len(at.domains))[at.dataset] * np.exp(shared(0.1, at.subset))
    log_k = (
        -9.2 + truth.sharpness_gap * at.medical + shared(0.45, at.dataset) + shared(0.2, at.subset)
    )
    log_loss = (
        -truth.exponent * at.log_size / d
        + truth.sharpness * log_k
        + truth.d_slope * d
        + shared(truth.dataset_std, at.dataset)
        + shared(truth.pair_std, at.subset)
        + shared(0.1, at.model)
        + shared(truth.model_std, at.dataset * num_models + at.model)
        + shared(truth.subset_std, at.subset * num_sizes + at.size)
        + rng.normal(0, truth.trial_std, len(d))
    )
    # Estimates of d grow with the number of points they are made from.
    grown = 0.05 * (at.log_size.max() - np.log(1000.0)) + rng.normal(0, truth.d_error, num_subsets)
    d = d * np.exp(grown[at.subset])
    log_k = log_k + rng.normal(0, truth.sharpness_error, num_subsets)[at.subset]

    found, terms, columns = list[f.Fit](), [t.INVERSE_D, t.LOG_SHARPNESS], [log_loss, 1 / d, log_k]
    tested = {*terms}
    if len(set(at.domains)) > 1:
        columns, terms = [*columns, at.medical], [*terms, t.IS_MEDICAL]
    cells = at.model * num_sizes + at.size
    reduced = i.dataset_effects(np.column_stack(columns), cells, at.dataset, at.weights)
    if reduced is not None and len(at.domains) >= len(terms) + 2:
        y, x = reduced[1][:, 0], reduced[1][:, 1:]
        estimates = f.slope_estimates(y, x, terms, at.domains, tested=tested, hopeless=i.LEVEL)
        found.append(f.Fit(kind="headline", status="ok", estimates=estimates or ()))
    if num_sizes > 1:
        sums = i.curve_sums(log_loss, -at.log_size / d, at.curve, at.dataset, at.weights)
        found.append(f.with_exponent(f.Fit(kind="exponent"), sums))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """How often a design's headline questions get a claim: ``alone`` with p ≤ 0.05, ``adjusted``
    after Holm (standard error at most ``0.5 / √num_tables``); of a plan also its cost, and its
    experiment's power.
    """

    effect: str
    num_datasets: int
    num_trials: int
    num_tables: int
    alone: dict[str, float]
    adjusted: dict[str, float]
    gpu_hours: float | None = None
    experiment: dict[str, float] | None = None

    def lines(self) -> list[str]:
        """Return lines for a plan: how often each question about the effect gets its claim."""
        if self.experiment:
            return [_experiment_sentence(self.experiment), NO_CLAIM_BETWEEN_WORLDS]
        error = 0.5 / self.num_tables**0.5
        asked = EFFECTS[self.effect][1] if self.effect in EFFECTS else self.adjusted
        claimed = {name: f"{share:.0%}" for name, share in self.adjusted.items()}
        shares = "; ".join(f"{f.QUESTIONS[k]}: {claimed.get(k, 'cannot be tested')}" for k in asked)
        return [
            f"Power, if the effect is “{self.effect}”: so many of such sweeps with "
            f"{self.num_datasets} "
            f"datasets would claim it (± {error:.0%}): {shares or 'no question can be tested'}."
        ]

    def table(self) -> Table:
        """Return how often every question is answered."""
        cost = "" if self.gpu_hours is None else f", {amount(self.gpu_hours)} GPU-hours"
        title = (
            f"Power for “{self.effect}”: {self.num_datasets} datasets, {self.num_trials} "
            f"trials{cost}"
        )
        error = 0.5 / self.num_tables**0.5
        note = f"Share of {self.num_tables} drawn tables; standard error at most {error:.1%}."
        if untested := [
            words for key, words in f.QUESTIONS.items() if key not in (*self.alone, f.ATTACKS)
        ]:
            note += f" With these datasets cannot be tested: {'; '.join(untested)}."
        if self.experiment:
            note += f" {NO_CLAIM_BETWEEN_WORLDS}"
        rows = [
            (f.QUESTIONS[k], f"{self.alone[k]:.0%}", f"{self.adjusted[k]:.0%}") for k in self.alone
        ]
        return Table("power", title, note, ("question", "alone", "after Holm"), tuple(rows))


def power(
    design: Design,
    *,
    effect: str = "law",
    truth: Truth | None = None,
    num_tables: int = 400,
    seed: int = 0,
) -> Power:
    """Simulate a design's own analysis of an effect, or of a ``truth``; ConfigError if it cannot
    be.
    """
    if truth is None and effect not in EFFECTS:
        raise unknown_name("effect", effect, tuple(EFFECTS))
    if len(design.datasets) < 3:
        rule = "Power needs at least 3 datasets, since datasets are what is compared"
        raise ConfigError(
            rule, t.plural(len(design.datasets), "dataset"), "add datasets to the sweep"
        )
    if num_tables < 1:
        raise ConfigError("Power needs a table", f"{num_tables}", "draw at least one")
    rng, truth = np.random.default_rng(seed), truth or EFFECTS[effect][0]
    drawn = [
        claim for _ in range(num_tables) for claim in f.claims_of(drawn_fits(design, truth, rng))
    ]
    alone = Counter(claim.key for claim in drawn if claim.p_value <= i.LEVEL)
    held = Counter(claim.key for claim in drawn if claim.established)
    asked = dict.fromkeys(claim.key for claim in drawn)
    return Power(
        effect=effect,
        num_datasets=len(design.datasets),
        num_trials=len(design.dataset),
        num_tables=num_tables,
        alone={name: alone[name] / num_tables for name in asked},
        adjusted={name: held[name] / num_tables for name in asked},
    )


NO_CLAIM_BETWEEN_WORLDS = (
    "isweep fit makes no claim of what holds between worlds: they share images. Each condition is "
    "compared with its own base."
)


def _experiment_sentence(found: Mapping[str, float]) -> str:
    """Say how often an experiment tells its slope from 0 and from the law's, by the interval that
    ``isweep fit`` gives it.
    """
    worlds = f"{found['num_worlds']} worlds in which only K_F is moved"
    how = "by t over worlds"
    if "num_classes" in found:
        how = (
            f"by the jackknife over the {found['num_classes']} classes that worlds share, which is "
            "wider than t over worlds"
        )
    return (
        f"Power, if losses follow K_F with slope {found['slope']:g}: {worlds} tell it from 0 in "
        f"{found['from_none']:.0%}, from the law's 1 in {found['from_law']:.0%} of such "
        f"experiments (interval about ±{found['half_width']:.2f}, {how}; if every condition passes "
        "its gate)."
    )


def experiment_power(
    arms: Sequence[Arm], *, num_models: int, num_sizes: int, effect: str = "law"
) -> dict[str, float]:
    """Return how often an experiment tells the slope of log loss on log K_F from 0 (``from_none``)
    and from the law's 1 (``from_law``), and its interval's ``half_width``, if every arm moves K_F
    by the least factor.

    As in ``isweep fit`` the interval is the wider one of t over worlds and of a jackknife over the
    classes that worlds share. ``num_classes`` is there if that is the jackknife.
    """
    shows = {arm.world: arm.shows for arm in arms if arm.moves == "sharpness"}
    per_world = Counter(arm.world for arm in arms if arm.moves == "sharpness")
    num = len(per_world)
    if num < 3:
        rule = "An experiment needs at least 3 worlds in which K_F is moved"
        raise ConfigError(rule, f"{num}", "add worlds to the sweep")
    slope, trainings = EFFECTS[effect][0].sharpness, num_models * num_sizes
    of_trials = TRIAL_STD**2 * np.mean([1 + 1 / arms for arms in per_world.values()]) / trainings
    error = float(np.sqrt((WORLD_STD**2 + of_trials / MOVED**2) / num))
    half_width = i.t_quantile(0.975, num - 1) * error
    found = {"slope": slope, "num_worlds": num}
    widening, num_classes = _jackknife_widening([*shows.values()])
    over_classes = i.t_quantile(0.975, max(1, num_classes - 1)) * error * widening
    if num_classes and over_classes > half_width:
        # The jackknife's error varies little beside the mean's own scatter between experiments.
        return found | {
            "num_classes": num_classes,
            "from_none": _outside(slope, error, over_classes),
            "from_law": _outside(slope - 1, error, over_classes),
            "half_width": over_classes,
        }
    return found | {
        "from_none": f.t_power(slope, error, num - 1) or 0.0,
        "from_law": f.t_power(slope - 1, error, num - 1) or 0.0,
        "half_width": half_width,
    }


def _jackknife_widening(shows: Sequence[Sequence[str]]) -> tuple[float, int]:
    """Return the expected standard error of a jackknife over classes, in units of that of the mean
    over worlds, and the number of classes; no classes if too few can be left out.

    Worlds are independent, so the mean without one class, of n' of the n worlds, differs from the
    mean by a variance of 1/n' − 1/n. A world leaves with each of its classes: with two classes a
    world the jackknife counts it twice.
    """
    num = len(shows)
    names = sorted({name for shown in shows for name in shown})
    remaining = [sum(name not in shown for shown in shows) for name in names]
    remaining = [size for size in remaining if size]
    num_classes = len(remaining)
    if num_classes < i.MIN_CLASSES:
        return 1.0, 0
    variance = (num_classes - 1) / num_classes * sum(1 / size - 1 / num for size in remaining)
    return float(np.sqrt(variance * num)), num_classes


def _outside(mean: float, std_error: float, half_width: float) -> float:
    """Return how often a normal estimate lies further from 0 than the half width."""
    upper, lower = (mean - half_width) / std_error, (-mean - half_width) / std_error
    return float(special.ndtr(upper) + special.ndtr(lower))


def design_of(plan: SweepPlan) -> Design:
    """Return a plan's shape, as if full: no domain is natural, and of an experiment bases alone
    count.
    """
    copies = {arm.prepared_name for arm in plan.sweep.experiment if arm.moves != "base"}
    pairs: dict[str, set[ClassPair | None]] = {}
    for trial in plan.trials:
        subset = trial.network.subset
        if subset.dataset not in copies:
            pairs.setdefault(subset.dataset, set()).add(subset.class_pair)
    return Design(
        [
            (name, plan.datasets[name].domain or c.NATURAL, len(found))
            for name, found in pairs.items()
        ],
        [*dict.fromkeys(trial.network.model.name for trial in plan.trials)],
        sorted({trial.network.train_size for trial in plan.trials}),
    )


def planned_power(
    plan: SweepPlan, *, effect: str = "law", num_tables: int = 200, seed: int = 0
) -> Power:
    """Simulate the analysis of a plan: what it could detect, at how many GPU-hours; see
    :func:`power`.
    """
    design, gpu = design_of(plan), GPU_MODELS[DEFAULT_GPU]
    found = power(design, effect=effect, num_tables=num_tables, seed=seed)
    arms = [
        Arm(
            arm.prepared_name,
            arm.base_name,
            arm.moves,
            arm.condition_name,
            arm.images.digit_classes,
        )
        for arm in plan.sweep.experiment
    ]
    shape = {"num_models": len(design.models), "num_sizes": len(design.train_sizes)}
    return replace(
        found,
        gpu_hours=sum(need_of(trial, gpu).gpu_seconds for trial in plan.trials) / 3600,
        experiment=experiment_power(arms, effect=effect, **shape) if arms else None,
    )
