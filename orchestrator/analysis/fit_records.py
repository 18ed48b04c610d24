"""What a fit returns: frozen records that carry their uncertainty, their reasons and a JSON form.

A missing number is ``None``, never NaN, and a fit that could not be made says why in ``reason``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
from pydantic import TypeAdapter

from orchestrator.analysis.table import Exclusion, no_trial
from search_spaces.errors import DataError

# What the law's own fits return: levels over dataset means, the within-dataset exponent, rivals and claims.

Status = Literal["ok", "not_enough_data", "refused"]
Interval = tuple[float, float]

#: All models together, each with its own intercept.
POOLED = "pooled"
#: Both domains together.
ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeansCoefficient:
    """One coefficient over dataset means: t interval with G − p degrees of freedom, permutation beside it.

    ``exact`` says that all rearrangements were tried and that datasets are exchangeable under the null.
    """

    name: str
    value: float
    std_error: float
    interval: Interval
    p_value: float
    permutation_p: float | None = None
    num_permutations: int = 0
    exact: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much smaller one form's error is than another's on datasets neither has seen; negative is smaller.

    The mean over datasets of the difference in squared error, with its 95 % t interval over datasets.
    """

    against: str
    value: float
    interval: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelFit:
    """Dataset effects of log loss or log error, at equal model and train size, on properties of datasets.

    Attributes:
        response: ``test_loss`` or ``test_error``.
        terms: regressors, in the order of ``coefficients``.
        label_correlation: of log K_F with the domain label over datasets; near 1, no fit can part them.
        held_out_rmse: error in the log response on datasets left out of the fit.
        versus_label: against the bare domain label on the same datasets.
    """

    response: str
    terms: tuple[str, ...]
    model: str
    subset: str
    status: Status
    reason: str = ""
    num_datasets: int = 0
    num_points: int = 0
    coefficients: tuple[MeansCoefficient, ...] = ()
    label_correlation: float | None = None
    held_out_rmse: float | None = None
    versus_label: Difference | None = None

    def coefficient(self, name: str) -> MeansCoefficient:
        """Return the coefficient called ``name``.

        Raises:
            KeyError: if the fit has none of that name.
        """
        return {c.name: c for c in self.coefficients}[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExponentRival:
    """One form of the exponent of N, scored on the curves of datasets left out of its fit (heights left
    free).
    """

    form: str
    num_coefficients: int
    rmse: float
    versus_none: Difference | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExponentFit:
    """The exponent of N within datasets, times d: log loss on −log N / d with an intercept for every curve.

    1 is the law's bound, 0 no dependence on N. Changing the unit of N, of pixels or of the loss changes
    nothing here.

    Attributes:
        response: ``test_loss``, ``test_error``, or ``label_sharpness``, whose growth with N times d is 2
            where unlike labels lie mixed, and 0 where classes are separated.
        dimension: which d: ``d_data_mle`` or ``d_data_twonn`` at the largest train size of each dataset
        and class
            pair, or a variant of it.
        num_curves: curves with two train sizes and d_data.
        num_at_guessing: of these, those left out since guessing holds their losses down.
        interval: 95 %, jackknife over datasets (CR3), t with G − 1 degrees of freedom.
        wild_p: of the hypothesis 0, by the wild cluster bootstrap over datasets.
        left_out: the value without each dataset.
        by_dataset: each dataset's own value.
    """

    response: str
    dimension: str
    model: str
    subset: str
    status: Status
    reason: str = ""
    num_datasets: int = 0
    num_points: int = 0
    num_curves: int = 0
    num_at_guessing: int = 0
    size_span: float | None = None
    value: float | None = None
    std_error: float | None = None
    interval: Interval | None = None
    p_value: float | None = None
    wild_p: float | None = None
    wild_p_predicted: float | None = None
    left_out: dict[str, float] = field(default_factory=dict)
    by_dataset: dict[str, float] = field(default_factory=dict)
    rivals: tuple[ExponentRival, ...] = ()
    verdict: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackFamily:
    """All attacks × epsilons × models as one family of correlations with K_F, over dataset effects.

    ``adjusted`` are (attack, epsilon, model, r, adjusted p), by max-|r| permutation of K_F over datasets.
    """

    status: Status
    reason: str = ""
    num_datasets: int = 0
    num_permutations: int = 0
    exact: bool = False
    adjusted: tuple[tuple[str, float, str, float, float], ...] = ()
    num_established: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One headline question: its p-value, Holm's adjustment over all of them, and whether it is established.

    Everything else in the report is exploratory.
    """

    key: str
    p_value: float
    adjusted_p: float
    established: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ChanceCount:
    """Points whose loss is at or above ln 2, which guessing between two classes gives."""

    num_points: int
    num_at_chance: int
    by_dataset: dict[str, tuple[int, int]] = field(default_factory=dict)
    left_out: bool = False


# What predictions start from.

#: The term −log N / d of a prior.
EXPONENT = "exponent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What a sweep says of the losses of a dataset not yet seen: fixed effects and the variances between
    datasets.

    ``values`` and ``covariance`` are of (mean intercept, ``terms``...). Variances are of a dataset's own
    height, of its own slope in log N, and of single points, in squared log loss. ``stretch`` is what
    intervals are made longer by with a pilot of 0, 1, 2, ... trainings: how much further off datasets left
    out were.
    """

    terms: tuple[str, ...]
    values: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    height_variance: float
    slope_variance: float
    residual_variance: float
    degrees_of_freedom: int
    stretch: tuple[float, ...] = (1.0,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """A prior that knows d_data and K_F, and a plain one that knows nothing of the dataset (model and N
    alone).

    ``doubt`` is what a reader of every prediction from it should know.
    """

    model: str
    subset: str
    status: Status
    reason: str = ""
    doubt: str = ""
    num_datasets: int = 0
    centre: float = 0.0
    informed: Prior | None = None
    plain: Prior | None = None
    ranges: dict[str, Interval] = field(default_factory=dict)


# What experiments that move one property return: gates of arms, effects over worlds, the answer.

Moves = Literal["base", "sharpness", "dimension", "nothing"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One dataset of an intervention: which world it belongs to, what was moved in it, and by which dial."""

    dataset: str
    world: str
    moves: Moves
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What the measures say of one arm against its base (log ratios), and whether it counts."""

    arm: Arm
    sharpness_moved: float | None
    dimension_moved: float | None
    counts: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What one response does when one property moves: mean over worlds with its 95 % t interval.

    Attributes:
        estimand: ``Δ log loss / Δ log K_F``, ``Δ log loss`` of controls, or ``exponent · d``.
        arm: empty for all arms together.
        theory: the law's value.
        p_zero, p_theory: paired t tests over worlds.
        num_cells: pairs of equal model and N that entered.
        num_at_chance: pairs left out because their base learned nothing.
        num_without: pairs left out because one side lacks the response (an error of 0 has no logarithm).
    """

    estimand: str
    response: str
    arm: str
    theory: float
    num_worlds: int
    value: float | None
    interval: Interval | None
    p_zero: float | None
    p_theory: float | None
    by_world: dict[str, float]
    num_cells: int = 0
    num_at_chance: int = 0
    num_without: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Interventions:
    """Gates of all arms, effects of those that count, and the sentences that say what came out."""

    gates: tuple[Gate, ...]
    effects: tuple[Effect, ...]
    answer: str

    def effect(self, estimand: str, response: str, arm: str = "") -> Effect | None:
        """Return one effect, or None where it was never tried."""
        for effect in self.effects:
            if (effect.estimand, effect.response, effect.arm) == (estimand, response, arm):
                return effect
        return None


SCHEMA_VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficient:
    """One coefficient of a regression.

    Attributes:
        interval: 95 % jackknife-t interval over datasets; None with fewer than three.
        theory: what the theorem predicts, where it predicts anything.
        left_out: the value without each dataset; None where that fit would itself be refused.
    """

    name: str
    value: float
    std_error: float | None = None
    interval: Interval | None = None
    theory: float | None = None
    left_out: dict[str, float | None] = field(default_factory=dict)

    @property
    def influential(self) -> str | None:
        """The dataset whose absence moves the value most; None if none can be left out."""
        moves = {name: abs(v - self.value) for name, v in self.left_out.items() if v is not None}
        return max(sorted(moves), key=moves.__getitem__) if moves else None

    @property
    def sign_depends_on(self) -> tuple[str, ...]:
        """Datasets without any one of which the value has the other sign."""
        return tuple(sorted(n for n, v in self.left_out.items() if v is not None and v * self.value < 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class LawFit:
    """One regression of log test loss for one model (or pooled) over one set of datasets.

    Attributes:
        law: which regression; ``docs/fits.md`` lists them.
        r_squared: share of variance explained within models.
        aicc: small-sample Akaike criterion, comparable between laws on the same points only.
        held_out_rmse: error in log loss on datasets left out of the fit, each dataset counting once.
    """

    law: str
    model: str
    subset: str
    status: Status
    reason: str = ""
    coefficients: tuple[Coefficient, ...] = ()
    num_points: int = 0
    num_datasets: int = 0
    excluded: tuple[Exclusion, ...] = ()
    r_squared: float | None = None
    residual_std: float | None = None
    aicc: float | None = None
    held_out_rmse: float | None = None
    caveats: tuple[str, ...] = ()

    def coefficient(self, name: str) -> Coefficient:
        """Return the coefficient called ``name`` (``intercept`` or a regressor).

        Raises:
            KeyError: if the fit has none of that name.
        """
        return {c.name: c for c in self.coefficients}[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class FormScore:
    """One of several forms fitted to the same points, to be ranked by AICc and by held-out error."""

    form: str
    num_coefficients: int
    r_squared: float | None
    aicc: float | None
    held_out_rmse: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Forms of the law beside the baselines "constant" and "pure power", on the same points of one model."""

    model: str
    status: Status
    reason: str = ""
    num_points: int = 0
    num_datasets: int = 0
    scores: tuple[FormScore, ...] = ()
    sharpness_domain_correlation: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSizeFit:
    """Log loss on log N within one dataset, beside the predicted exponent −1/d_data.

    ``interval`` is by t over training subsets (class pair and size): models that share a subset share its
    peculiarities, so they are averaged first. Nested subsets share images, which it does not know.
    ``size_span`` is the largest train size over the smallest; AICc is given with and without the dependence
    on N.
    """

    model: str
    dataset: str
    status: Status
    reason: str = ""
    exponent: float | None = None
    interval: Interval | None = None
    predicted: float | None = None
    num_points: int = 0
    num_sizes: int = 0
    size_span: float | None = None
    aicc_power: float | None = None
    aicc_constant: float | None = None
    verdict: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Association:
    """How two quantities go together, over points and over dataset means.

    ``pearson_interval`` is a jackknife-t interval over datasets on Fisher's z; ``pearson_left_out`` is r
    without each dataset; ``pearson_by_domain`` is over dataset means. ``pearson_at_equal_size`` is over
    dataset effects at equal model and train size, with an interval by Fisher's z over datasets and a
    permutation p-value. ``slope`` has one intercept per model.
    """

    x: str
    y: str
    model: str
    status: Status
    reason: str = ""
    num_points: int = 0
    num_datasets: int = 0
    pearson: float | None = None
    pearson_interval: Interval | None = None
    pearson_left_out: dict[str, float | None] = field(default_factory=dict)
    pearson_at_equal_size: float | None = None
    interval_at_equal_size: Interval | None = None
    permutation_p: float | None = None
    pearson_dataset_means: float | None = None
    pearson_by_domain: dict[str, float | None] = field(default_factory=dict)
    spearman: float | None = None
    spearman_dataset_means: float | None = None
    slope: Coefficient | None = None
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackFit:
    """Loss gain under one attack at one epsilon (in 1/255) on K_F, and on d_data for contrast."""

    attack: str
    epsilon: float
    model: str
    on_sharpness: Association
    on_d_data: Association


@dataclass(frozen=True, slots=True, kw_only=True)
class RepresentationFit:
    """How often d_repr stays at or below d_data (Theorem 5, an approximate bound), by one estimator.

    ``num_below`` of ``num_points`` are at or below it; ``share_of_datasets`` is the mean of the datasets'
    own shares, with a t interval over datasets. ``violations`` counts, per dataset that has any, the
    points above the bound and all its points.
    """

    estimator: str
    model: str
    status: Status
    reason: str = ""
    num_points: int = 0
    num_datasets: int = 0
    num_below: int = 0
    share_below: float | None = None
    share_of_datasets: float | None = None
    share_interval: Interval | None = None
    share_by_domain: dict[str, float] = field(default_factory=dict)
    violations: dict[str, tuple[int, int]] = field(default_factory=dict)
    association: Association | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSummary:
    """What one dataset brought to the fits: its size in points and the ranges of its measures."""

    dataset: str
    domain: str
    num_trials: int
    num_points: int
    train_sizes: tuple[int, ...]
    d_data: float | None
    d_data_range: Interval | None
    label_sharpness: float | None
    label_sharpness_range: Interval | None
    image_size: int | None
    channels: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SharpnessScale:
    """Whether K_F may be compared over datasets: it scales with 1 / (pixel range · side · √channels).

    ``scales`` are the (pixel range, side, channels) met, with their datasets; ``policy`` is what was done.
    """

    comparable: bool
    policy: Literal["refuse", "rescale", "ignore"]
    note: str
    scales: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingFits:
    """All fits of one results table, with what was left out and what cannot be concluded."""

    schema_version: int = SCHEMA_VERSION
    seed: int
    num_trials: int
    num_used: int
    num_points: int
    excluded: tuple[Exclusion, ...]
    datasets: tuple[DatasetSummary, ...]
    models: tuple[str, ...]
    sharpness_scale: SharpnessScale
    laws: tuple[LawFit, ...]
    comparisons: tuple[Comparison, ...]
    train_size: tuple[TrainSizeFit, ...]
    attacks: tuple[AttackFit, ...]
    representations: tuple[RepresentationFit, ...]
    levels: tuple[LevelFit, ...] = ()
    exponents: tuple[ExponentFit, ...] = ()
    sensitivity: tuple[ExponentFit, ...] = ()
    attack_family: AttackFamily
    claims: tuple[Claim, ...] = ()
    at_chance: ChanceCount
    growth: tuple[Growth, ...] = ()
    caveats: tuple[str, ...] = ()
    interventions: Interventions | None = None

    def law(self, law: str, *, model: str = POOLED, subset: str = ALL) -> LawFit:
        """Return one regression; one that was never tried comes back as "not enough data"."""
        for fit in self.laws:
            if (fit.law, fit.model, fit.subset) == (law, model, subset):
                return fit
        return LawFit(
            law=law,
            model=model,
            subset=subset,
            status="not_enough_data",
            reason=no_trial(model, subset),
        )

    def level(
        self, *terms: str, model: str = POOLED, subset: str = ALL, response: str = "test_loss"
    ) -> LevelFit:
        """Return the regression of dataset effects on ``terms``; one never tried is "not enough data"."""
        for fit in self.levels:
            if (fit.terms, fit.model, fit.subset, fit.response) == (terms, model, subset, response):
                return fit
        return LevelFit(
            response=response,
            terms=terms,
            model=model,
            subset=subset,
            status="not_enough_data",
            reason=no_trial(model, subset),
        )

    def exponent(self, *, model: str = POOLED, subset: str = ALL, response: str = "test_loss") -> ExponentFit:
        """Return the pooled within-dataset exponent times d; one never tried is "not enough data"."""
        for fit in self.exponents:
            if (fit.model, fit.subset, fit.response) == (model, subset, response):
                return fit
        return ExponentFit(
            response=response,
            dimension="d_data_mle",
            model=model,
            subset=subset,
            status="not_enough_data",
            reason=no_trial(model, subset),
        )

    def growth_of(self, *, model: str = POOLED, subset: str = ALL) -> Growth:
        """Return the prior that predictions start from; one never tried is "not enough data"."""
        for fit in self.growth:
            if (fit.model, fit.subset) == (model, subset):
                return fit
        return Growth(model=model, subset=subset, status="not_enough_data", reason=no_trial(model, subset))

    def claim(self, key: str) -> Claim | None:
        """Return a headline claim, or None where it could not be tested."""
        return next((claim for claim in self.claims if claim.key == key), None)

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, numbers and text, ready for ``json.dumps(allow_nan=False)``."""
        dumped: dict[str, Any] = TypeAdapter(ScalingFits).dump_python(self, mode="json")
        return dumped

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ScalingFits:
        """Rebuild what :meth:`to_json` gave.

        Raises:
            DataError: if ``data`` is of another schema version or not a fit at all.
        """
        if data.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"Stored fits must have schema version {SCHEMA_VERSION}",
                repr(data.get("schema_version")),
                "fit again with `isweep fit`",
            )
        return TypeAdapter(cls).validate_python(data)


# Numbers as the report and its sentences show them, and the layout-free form of a table.


@dataclass(frozen=True, slots=True)
class Table:
    """Heading, what it shows, column names and cells; ``key`` is its anchor on the page; ``folded`` opens on
    a click.
    """

    key: str
    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric_from: int = 1
    folded: bool = False


def number(value: float | None) -> str:
    """Render a number to three figures with a true minus sign, or nothing when there is none."""
    if value is None or pd.isna(value):
        return ""
    small = value != 0 and abs(value) < 1e-4  # K_F of images lies above: one notation a column
    large = 1e3 <= abs(value) < 1e7
    text = f"{value:,.0f}" if large else f"{value:.2e}" if small else f"{value:.3g}"
    return "0" if text == "-0" else text.replace("-", "−")


def p_value(value: float | None) -> str:
    """Render a p-value to two figures; a small one as a bound."""
    if value is None:
        return ""
    return "< 0.001" if value < 1e-3 else f"{value:.2g}"


def p_said(value: float) -> str:
    """Say a p-value in a sentence: ``p = 0.013`` or ``p < 0.001``."""
    return f"p {p_value(value)}" if value < 1e-3 else f"p = {p_value(value)}"


def interval(bounds: Interval | None) -> str:
    """Render an interval, or a dash when there are too few datasets for one."""
    return "–" if bounds is None else f"{number(bounds[0])} to {number(bounds[1])}"


def with_range(value: float | None, bounds: Interval | None) -> str:
    """Render a mean with its range, where it has one."""
    if bounds is None or bounds[0] == bounds[1]:
        return number(value)
    return f"{number(value)} ({interval(bounds)})"


# Tables as plain text, for a terminal.


def to_text(table: Table) -> str:
    """Render a table as aligned plain text."""
    lines = [table.header, *table.rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(table.header))]
    body = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([table.title, *([table.note] if table.note else []), *body])
