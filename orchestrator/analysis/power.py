"""Power of a planned sweep by simulation: tables are drawn from a known truth and analyzed.

The simulated tables have the shape of the plan. They are analyzed like a real table (by
:func:`headline_answers`), with the same regressions, permutations and correction. Two things
are simpler than in a real table. First, no simulated loss is at chance level, so the two fits
of the exponent are the same. Second, if the plan has attacks, the question on attacks counts
in the correction as a test without an effect. The output of ``isweep power`` mentions both
simplifications.

Letters in the shapes of arrays: n points, G datasets, q regressors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

from orchestrator.analysis.answers import Answer, holm_adjusted
from orchestrator.analysis.experiments.records import MOVED, Arm
from orchestrator.analysis.headline import (
    ATTACKS,
    BELOW_BOUND,
    DIMENSION,
    EXPONENT,
    QUESTIONS,
    SHARPNESS,
    headline_answers,
)
from orchestrator.analysis.inference import (
    LEVEL,
    MIN_CLASSES,
    Array,
    curve_sums,
    dataset_effects,
    t_quantile,
)
from orchestrator.analysis.law_fits.detection import t_power
from orchestrator.analysis.law_fits.estimates import slope_estimates
from orchestrator.analysis.law_fits.exponents import with_exponent
from orchestrator.analysis.law_fits.records import AnyFit, ExponentFit, HeightFit
from orchestrator.analysis.number_formats import in_hundred, percent
from orchestrator.analysis.results_tables.points import INVERSE_D, IS_MEDICAL, LOG_SHARPNESS
from orchestrator.analysis.tables.layout import Table
from orchestrator.planning.costs.gpu_models import GPU_MODELS
from orchestrator.planning.costs.needs import need_of
from orchestrator.planning.estimate import DEFAULT_GPU
from orchestrator.planning.estimate_text import amount
from orchestrator.planning.plan import SweepPlan
from orchestrator.results.columns import MEDICAL, NATURAL
from search_spaces.errors import ConfigError, plural, unknown_name
from search_spaces.specs import ClassPair

WORLD_STD = 0.8
"""Standard deviation of the slope on log K_F between base datasets, as in our first
experiment."""
TRIAL_STD = 0.3
"""Standard deviation of log loss between trainings, as in the residuals of the published
results."""
MIN_DATASETS = 3
"""Smallest number of datasets of a design. With two datasets, the scatter between datasets
cannot be estimated."""
MIN_WORLDS = 3
"""Smallest number of base datasets of an experiment. With two base datasets, the scatter
between them cannot be estimated."""
GROWTH_REFERENCE = 1000.0
"""Train size at which simulated estimates of d are unbiased."""
EASIER = (
    "The simulation assumes that no loss is at chance level. Losses at chance level lower the "
    "power. The question on attacks counts as a test without an effect. isweep fit computes "
    "powers from the scatter of the finished sweep and for the t test alone, so its powers differ."
)
NO_CLAIM_BETWEEN_WORLDS = (
    "isweep fit makes no claim about differences between base datasets, because they share "
    "images. It compares each condition with its base dataset."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """The model from which the losses of a simulated table are drawn.

    log L = −exponent · log N / d + sharpness · log K_F + d_slope · d + errors. The standard
    deviations come from the residuals of the published results. In these residuals, the
    variance between datasets is largest.

    Attributes:
        exponent: Exponent b of the decrease N^(−b/d) of the loss.
        sharpness: Slope on log K_F.
        d_slope: Slope on d.
        dataset_std: Standard deviation of log loss between datasets.
        pair_std: Standard deviation of log loss between class pairs of a dataset.
        model_std: Standard deviation of log loss between models on one dataset.
        subset_std: Standard deviation of log loss between train sizes of one class pair.
        trial_std: Standard deviation of log loss between trainings.
        model_mean_std: Standard deviation between models of the mean log loss over all
            datasets.
        lowest_d: Smallest d of a dataset.
        highest_d: Largest d of a dataset.
        pair_d_std: Standard deviation of log d between class pairs of a dataset.
        d_error: Standard deviation of the error of log d.
        d_growth: Increase of the estimated log d per unit of log N.
        sharpness_mean: Mean of log K_F of natural datasets.
        sharpness_std: Standard deviation of log K_F between datasets.
        pair_sharpness_std: Standard deviation of log K_F between class pairs of a dataset.
        sharpness_error: Standard deviation of the error of log K_F.
        sharpness_gap: Mean log K_F of medical datasets minus mean log K_F of natural datasets.
    """

    exponent: float = 1.0
    sharpness: float = 1.0
    d_slope: float = 0.0
    dataset_std: float = 0.8
    pair_std: float = 0.3
    model_std: float = 0.2
    subset_std: float = 0.2
    trial_std: float = TRIAL_STD
    model_mean_std: float = 0.1
    lowest_d: float = 6.0
    highest_d: float = 20.0
    pair_d_std: float = 0.1
    d_error: float = 0.03
    d_growth: float = 0.05
    sharpness_mean: float = -9.2
    sharpness_std: float = 0.45
    pair_sharpness_std: float = 0.2
    sharpness_error: float = 0.1
    sharpness_gap: float = 0.9


@dataclass(frozen=True, slots=True)
class SimulatedEffect:
    """An effect whose power can be simulated: the law, or a part of the law.

    Attributes:
        truth: The model of the losses.
        questions: Keys of the questions whose claim is true under this model.
        condition: The model in words: a clause that begins with ``if``.
    """

    truth: Truth
    questions: tuple[str, ...]
    condition: str


EFFECTS = {
    "law": SimulatedEffect(Truth(), (SHARPNESS.key, EXPONENT.key), "if the law holds"),
    "sharpness": SimulatedEffect(
        Truth(exponent=0.0), (SHARPNESS.key,), "if only the law's slope on log K_F holds"
    ),
    "exponent": SimulatedEffect(
        Truth(sharpness=0.0), (EXPONENT.key,), "if only the law's fall with N holds"
    ),
    "d_data": SimulatedEffect(
        Truth(exponent=0.0, sharpness=0.0, d_slope=0.1),
        (DIMENSION.key,),
        "if the loss depends on d_data alone",
    ),
}
"""Effects whose power can be simulated, by name: the whole law, or one part of the law."""


class Design:
    """The shape of a sweep that contains all combinations of datasets, models and train sizes.

    A point is one combination with one class pair. The points are stored as arrays of codes,
    ``(n,)``.

    Attributes:
        datasets: Name, domain and number of class pairs of each dataset.
        models: Names of the networks.
        train_sizes: Train sizes.
        has_attacks: True if networks are attacked. The sweep then has one more question.
    """

    def __init__(
        self,
        datasets: Sequence[tuple[str, str, int]],
        models: Sequence[str],
        train_sizes: Sequence[int],
        *,
        has_attacks: bool = False,
    ) -> None:
        self.datasets = tuple(datasets)
        self.models = tuple(models)
        self.train_sizes = tuple(train_sizes)
        self.has_attacks = has_attacks
        num_pairs = np.array([num for _, _, num in datasets])
        codes = []
        for num in num_pairs:
            codes.append(np.indices((num, len(models), len(train_sizes))).reshape(3, -1))
        pair, self.model, self.size = np.hstack(codes)
        num_points = num_pairs * len(models) * len(train_sizes)
        self.dataset = np.repeat(np.arange(len(num_pairs)), num_points)
        self.weights = 1.0 / num_pairs[self.dataset]
        self.subset = (np.cumsum(num_pairs) - num_pairs)[self.dataset] + pair
        self.domains = [domain for _, domain, _ in datasets]
        self.medical = (np.array(self.domains) == MEDICAL)[self.dataset]
        self.log_size = np.log(np.array(train_sizes, dtype=float))[self.size]
        self.curve = self.subset * len(models) + self.model

    @property
    def num_subsets(self) -> int:
        """Number of class pairs of all datasets."""
        return int(self.subset.max()) + 1


@dataclass(frozen=True, slots=True)
class DrawnTable:
    """One simulated table. All columns are arrays with one value per point, ``(n,)``.

    Attributes:
        log_loss: Log losses.
        d: Estimates of d at the largest N.
        log_sharpness: Estimates of log K_F.
    """

    log_loss: Array
    d: Array
    log_sharpness: Array


def draw_table(design: Design, truth: Truth, rng: np.random.Generator) -> DrawnTable:
    """Draw one table with the shape of a design from a model of the losses."""
    num_models = len(design.models)
    num_sizes = len(design.train_sizes)

    def shared(std: float, codes: NDArray[np.intp]) -> Array:
        """Return normal errors that are equal for points with the same code."""
        return np.asarray(rng.normal(0, std, int(codes.max()) + 1)[codes])

    # With the same seed, another order of the draws would give other tables.
    d_of_datasets = rng.uniform(truth.lowest_d, truth.highest_d, len(design.domains))
    d = d_of_datasets[design.dataset] * np.exp(shared(truth.pair_d_std, design.subset))
    log_sharpness = (
        truth.sharpness_mean
        + truth.sharpness_gap * design.medical
        + shared(truth.sharpness_std, design.dataset)
        + shared(truth.pair_sharpness_std, design.subset)
    )
    log_loss = (
        -truth.exponent * design.log_size / d
        + truth.sharpness * log_sharpness
        + truth.d_slope * d
        + shared(truth.dataset_std, design.dataset)
        + shared(truth.pair_std, design.subset)
        + shared(truth.model_mean_std, design.model)
        + shared(truth.model_std, design.dataset * num_models + design.model)
        + shared(truth.subset_std, design.subset * num_sizes + design.size)
        + rng.normal(0, truth.trial_std, len(d))
    )
    # Estimates of d grow with N. The analysis uses only the estimate at the largest N.
    growth = truth.d_growth * (design.log_size.max() - np.log(GROWTH_REFERENCE))
    d_errors = growth + rng.normal(0, truth.d_error, design.num_subsets)
    sharpness_errors = rng.normal(0, truth.sharpness_error, design.num_subsets)
    return DrawnTable(
        log_loss=log_loss,
        d=d * np.exp(d_errors[design.subset]),
        log_sharpness=log_sharpness + sharpness_errors[design.subset],
    )


def drawn_fits(design: Design, truth: Truth, rng: np.random.Generator) -> list[AnyFit]:
    """Draw one table, and make the fits for all headline questions except the one on attacks.

    If the p-value of a t test is above 0.05, the permutation test is skipped. The larger one
    of the two p-values decides a question, so skipping the test changes no decision.
    """
    table = draw_table(design, truth, rng)
    num_sizes = len(design.train_sizes)
    terms = [INVERSE_D, LOG_SHARPNESS]
    columns: list[Array] = [table.log_loss, 1 / table.d, table.log_sharpness]
    if len(set(design.domains)) > 1:
        terms.append(IS_MEDICAL)
        columns.append(design.medical.astype(float))
    cells = design.model * num_sizes + design.size
    effects = dataset_effects(np.column_stack(columns), cells, design.dataset, design.weights)
    fits: list[AnyFit] = []
    if effects is not None and len(design.domains) >= len(terms) + 2:
        _, values = effects
        estimates = slope_estimates(
            values[:, 0],
            values[:, 1:],
            terms,
            design.domains,
            tested={INVERSE_D, LOG_SHARPNESS},
            skip_permutation_above=LEVEL,
        )
        if estimates is not None:
            fits.append(
                HeightFit(
                    kind="headline",
                    status="ok",
                    terms=tuple(terms),
                    num_datasets=len(design.domains),
                    estimates=estimates,
                )
            )
    if num_sizes > 1:
        fall = -design.log_size / table.d
        sums = curve_sums(table.log_loss, fall, design.curve, design.dataset, design.weights)
        fits.append(with_exponent(ExponentFit(num_datasets=len(design.domains)), sums))
    return fits


def drawn_answers(design: Design, truth: Truth, rng: np.random.Generator) -> tuple[Answer, ...]:
    """Draw one table and answer its questions. A question on attacks gets a p-value of 1."""
    answers = headline_answers(drawn_fits(design, truth, rng))
    if not design.has_attacks:
        return answers
    of_attacks = Answer(question=ATTACKS, value=0.0, p_value=1.0)
    other_answers = [answer for answer in answers if answer.question != ATTACKS]
    return holm_adjusted([*other_answers, of_attacks], "headline questions")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentPower:
    """Power of an experiment to distinguish the slope of log loss on log K_F from 0 and from 1.

    The law predicts a slope of 1.

    Attributes:
        slope: The true slope.
        num_worlds: Number of base datasets with a condition that changes K_F.
        from_none: Share of experiments whose interval excludes 0.
        from_law: Share of experiments whose interval excludes 1.
        half_width: Half of the width of the interval.
        num_classes: Number of classes of the jackknife behind the interval; 0 if the interval
            is a t interval over base datasets.
    """

    slope: float
    num_worlds: int
    from_none: float
    from_law: float
    half_width: float
    num_classes: int = 0

    @property
    def sentence(self) -> str:
        """Sentences on the power, for the interval that ``isweep fit`` computes."""
        method = "is a t interval over base datasets"
        if self.num_classes:
            method = (
                f"comes from a jackknife over the {self.num_classes} classes that base datasets "
                "share, because this interval is wider than the t interval over base datasets"
            )
        return (
            f"Power with {self.num_worlds} base datasets: suppose the true slope is "
            f"{self.slope:g} and every condition passes its checks. Then "
            f"{in_hundred(self.from_none)} such experiments find a slope different from 0, and "
            f"{in_hundred(self.from_law)} find one different from the law's 1. "
            f"The interval is about ±{self.half_width:.2f}. It {method}."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """Power of a design for the headline questions.

    Attributes:
        effect: Name of the simulated effect.
        num_datasets: Number of datasets of the design.
        num_trials: Number of trials of the plan. If there is no plan, the number of points of
            the design.
        num_tables: Number of simulated tables. The standard error of each share is at most
            ``0.5 / √num_tables``.
        alone: Share of the tables with p ≤ 0.05 before correction, by key of the question.
        adjusted: Share of the tables that decide a question after Holm's correction, by key of
            the question.
        has_attacks: True if the question on attacks counts in the correction.
        gpu_hours: Cost of the plan in GPU-hours; None if there is no plan.
        experiment: Power of the plan's experiment; None if the plan has no experiment.
    """

    effect: str
    num_datasets: int
    num_trials: int
    num_tables: int
    alone: dict[str, float]
    adjusted: dict[str, float]
    has_attacks: bool = False
    gpu_hours: float | None = None
    experiment: ExperimentPower | None = None

    def lines(self) -> list[str]:
        """Return sentences on the share of sweeps that decide each question about the effect."""
        if self.experiment:
            return [self.experiment.sentence, NO_CLAIM_BETWEEN_WORLDS]
        keys = list(self.adjusted)
        if self.effect in EFFECTS:
            keys = list(EFFECTS[self.effect].questions)
        parts = []
        for key in keys:
            question = f"the question on the {ESTIMANDS[key]}"
            if key in self.adjusted:
                share = in_hundred(self.adjusted[key])
                parts.append(f"{share} such sweeps decide {question}")
            else:
                parts.append(f"{question} cannot be tested")
        return [
            f"Power {self._condition}, with {self.num_datasets} datasets: "
            f"{'; '.join(parts) or 'no question can be tested'}. The standard error of these "
            f"shares is at most {100 * self._standard_error:.2g} percentage points."
        ]

    @property
    def _condition(self) -> str:
        """The simulated truth in words: a clause that begins with ``if``."""
        if self.effect in EFFECTS:
            return EFFECTS[self.effect].condition
        return f"if “{self.effect}” is true"

    @property
    def _standard_error(self) -> float:
        return float(0.5 / self.num_tables**0.5)

    def table(self) -> Table:
        """Return a table with the share of simulated tables that decide each question."""
        cost = ""
        if self.gpu_hours is not None:
            cost = f", {amount(self.gpu_hours)} hours of an {DEFAULT_GPU.upper()}"
        notes = [
            f"The numbers are shares of {self.num_tables} simulated tables. Their standard "
            f"error is at most {100 * self._standard_error:.2g} percentage points.",
            EASIER,
        ]
        untested = []
        for key, words in ESTIMANDS.items():
            if key not in self.alone and key != ATTACKS.key:
                untested.append(words)
        if untested:
            notes.append(f"These datasets do not allow a test of: {'; '.join(untested)}.")
        effect = EFFECTS.get(self.effect)
        if BELOW_BOUND.key in self.alone and effect is not None and effect.truth.exponent == 1:
            notes.append(
                f"In this simulation, b is 1, so the row “{BELOW_BOUND.estimand}” is the share of "
                "false claims."
            )
        if self.experiment:
            notes.append(NO_CLAIM_BETWEEN_WORLDS)
        rows = []
        for key, share in self.alone.items():
            rows.append((ESTIMANDS[key], percent(share), percent(self.adjusted[key])))
        return Table(
            key="power",
            title=(
                f"Power {self._condition}: {self.num_datasets} datasets, "
                f"{self.num_trials} trials{cost}"
            ),
            note=" ".join(notes),
            header=("question", "before", "after Holm"),
            rows=tuple(rows),
        )


ESTIMANDS = {question.key: question.estimand for question in QUESTIONS}
"""Name of the number that decides a question, by key of the question."""


def power(
    design: Design,
    *,
    effect: str = "law",
    truth: Truth | None = None,
    num_tables: int = 400,
    seed: int = 0,
) -> Power:
    """Estimate the power of a design by simulation.

    Args:
        design: The shape of the sweep.
        effect: A name in :data:`EFFECTS`.
        truth: Model of the losses. If None, the model of the effect is used.
        num_tables: Number of simulated tables.
        seed: Seed of the simulation.

    Raises:
        ConfigError: If the effect is unknown, if there are fewer than three datasets, or if
            ``num_tables`` is below 1.
    """
    if truth is None and effect not in EFFECTS:
        raise unknown_name("effect", effect, tuple(EFFECTS))
    if len(design.datasets) < MIN_DATASETS:
        raise ConfigError(
            f"The sweep has {plural(len(design.datasets), 'dataset')}, but a power "
            f"calculation needs at least {MIN_DATASETS}",
            hint="Add datasets to the sweep",
        )
    if num_tables < 1:
        raise ConfigError(
            f"num_tables is {num_tables}, so no table is simulated",
            hint="Set num_tables to 1 or more",
        )
    if truth is None:
        truth = EFFECTS[effect].truth
    rng = np.random.default_rng(seed)
    num_significant: Counter[str] = Counter()
    num_decided: Counter[str] = Counter()
    keys: dict[str, None] = {}
    for _ in range(num_tables):
        for answer in drawn_answers(design, truth, rng):
            if answer.p_value is None or answer.question == ATTACKS:
                continue
            key = answer.question.key
            keys[key] = None
            num_significant[key] += answer.p_value <= LEVEL
            num_decided[key] += answer.is_decided
    return Power(
        effect=effect,
        num_datasets=len(design.datasets),
        num_trials=len(design.dataset),
        num_tables=num_tables,
        alone={key: num_significant[key] / num_tables for key in keys},
        adjusted={key: num_decided[key] / num_tables for key in keys},
        has_attacks=design.has_attacks,
    )


def experiment_power(
    arms: Sequence[Arm], *, num_models: int, num_sizes: int, effect: str = "law"
) -> ExperimentPower:
    """Return the power of an experiment whose conditions double K_F.

    A condition is used only if it changes K_F at least by a factor of two. As in
    ``isweep fit``, two intervals are computed, and the wider one is used. One is a t interval
    over base datasets. The other one uses a jackknife over the classes that base datasets
    share.

    Args:
        arms: The conditions of the experiment.
        num_models: Number of networks.
        num_sizes: Number of train sizes.
        effect: A name in :data:`EFFECTS`.

    Raises:
        ConfigError: If fewer than three base datasets have a condition that changes K_F.
    """
    of_sharpness = [arm for arm in arms if arm.moves == "sharpness"]
    shows = {arm.world: arm.shows for arm in of_sharpness}
    num_arms = Counter(arm.world for arm in of_sharpness)
    num_worlds = len(num_arms)
    if num_worlds < MIN_WORLDS:
        raise ConfigError(
            f"The experiment changes K_F of {plural(num_worlds, 'base dataset')} (worlds), "
            f"but a power calculation needs at least {MIN_WORLDS}",
            hint="Add base datasets to worlds in the sweep file",
        )
    slope = EFFECTS[effect].truth.sharpness
    num_trainings = num_models * num_sizes
    # The measured effect of a condition has two errors: from the trainings of the condition,
    # and from the trainings of the base dataset. The conditions of one base dataset share the
    # second error.
    base_and_arms = np.mean(1 + 1 / np.array([*num_arms.values()]))
    trial_variance = TRIAL_STD**2 * base_and_arms / num_trainings
    # A slope is a change of log loss divided by the change of log K_F, which is MOVED.
    error = float(np.sqrt((WORLD_STD**2 + trial_variance / MOVED**2) / num_worlds))
    degrees = num_worlds - 1
    over_worlds = t_quantile(1 - LEVEL / 2, degrees) * error
    widening, num_classes = _jackknife_widening([*shows.values()])
    over_classes = t_quantile(1 - LEVEL / 2, max(1, num_classes - 1)) * error * widening
    if num_classes and over_classes > over_worlds:
        # The jackknife error varies little between experiments, so it is treated as constant.
        return ExperimentPower(
            slope=slope,
            num_worlds=num_worlds,
            from_none=_outside(slope, error, over_classes),
            from_law=_outside(slope - 1, error, over_classes),
            half_width=over_classes,
            num_classes=num_classes,
        )
    from_none = t_power(slope, error, degrees)
    from_law = t_power(slope - 1, error, degrees)
    if from_none is None or from_law is None:
        raise ValueError("the slope has no standard error, so its power is unknown")
    return ExperimentPower(
        slope=slope,
        num_worlds=num_worlds,
        from_none=from_none,
        from_law=from_law,
        half_width=over_worlds,
    )


def _jackknife_widening(shows: Sequence[Sequence[str]]) -> tuple[float, int]:
    """Return the factor by which a jackknife over classes widens the standard error of the mean.

    Base datasets are assumed to be independent. To leave out a class, the jackknife leaves out
    all base datasets that show this class. If n' of n base datasets remain, the difference
    between the mean with and without the class has a variance of 1/n' − 1/n. A base dataset
    with two classes is left out twice, once with each class.

    Args:
        shows: Classes of each base dataset.

    Returns:
        The factor and the number of classes. If too few classes can be left out, the factor is
        1 and the number is 0.
    """
    num_worlds = len(shows)
    names = {name for world_classes in shows for name in world_classes}
    num_left = []
    for name in sorted(names):
        num_without = sum(name not in world_classes for world_classes in shows)
        if num_without:
            num_left.append(num_without)
    num_classes = len(num_left)
    if num_classes < MIN_CLASSES:
        return 1.0, 0
    variances = float(np.sum(1 / np.array(num_left) - 1 / num_worlds))
    # A jackknife variance has the factor (C − 1) / C, as in :func:`jackknife_error`.
    variance = (num_classes - 1) / num_classes * variances
    return float(np.sqrt(variance * num_worlds)), num_classes


def _outside(mean: float, std_error: float, half_width: float) -> float:
    """Return the probability that a normal estimate is farther from 0 than the half width."""
    # Both tails count, because a slope on either side can be distinguished from 0.
    above = special.ndtr((mean - half_width) / std_error)
    below = special.ndtr((-mean - half_width) / std_error)
    return float(above + below)


def design_of(plan: SweepPlan) -> Design:
    """Return the shape of a plan, as if the plan contained all combinations.

    A dataset without a domain counts as natural. If the plan has an experiment, only its base
    datasets count.
    """
    copies = set()
    for arm in plan.sweep.list_experiment_datasets():
        if arm.target != "base":
            copies.add(arm.dataset_name)
    pairs: dict[str, set[ClassPair | None]] = {}
    for trial in plan.trials:
        subset = trial.network.subset
        if subset.dataset not in copies:
            pairs.setdefault(subset.dataset, set()).add(subset.class_pair)
    datasets = []
    for name, its_pairs in pairs.items():
        datasets.append((name, plan.datasets[name].domain or NATURAL, len(its_pairs)))
    return Design(
        datasets,
        list(dict.fromkeys(trial.network.model.name for trial in plan.trials)),
        sorted({trial.network.train_size for trial in plan.trials}),
        has_attacks=any(trial.attacks.methods for trial in plan.trials),
    )


def planned_power(
    plan: SweepPlan, *, effect: str = "law", num_tables: int = 200, seed: int = 0
) -> Power:
    """Estimate the power of a plan by simulation, and its cost in GPU-hours.

    Args:
        plan: The plan.
        effect: A name in :data:`EFFECTS`.
        num_tables: Number of simulated tables.
        seed: Seed of the simulation.
    """
    design = design_of(plan)
    gpu = GPU_MODELS[DEFAULT_GPU]
    gpu_seconds = sum(need_of(trial, gpu).gpu_seconds for trial in plan.trials)
    experiment = None
    arms = []
    for arm in plan.sweep.list_experiment_datasets():
        arms.append(
            Arm(
                arm.dataset_name,
                arm.base_name,
                arm.target,
                arm.condition_name,
                arm.images.digit_classes,
            )
        )
    if arms:
        experiment = experiment_power(
            arms,
            num_models=len(design.models),
            num_sizes=len(design.train_sizes),
            effect=effect,
        )
    return replace(
        power(design, effect=effect, num_tables=num_tables, seed=seed),
        num_trials=len(plan.trials),
        gpu_hours=gpu_seconds / 3600,
        experiment=experiment,
    )
