"""What a fit returns: frozen records that carry their uncertainty, their reasons and a JSON form.

A missing number is ``None``, never NaN, and a fit that could not be made says why in ``reason``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

from orchestrator.analysis.growth_records import Growth
from orchestrator.analysis.intervention_records import Interventions
from orchestrator.analysis.law_records import (
    ALL,
    POOLED,
    AttackFamily,
    ChanceCount,
    Claim,
    ExponentFit,
    Interval,
    LevelFit,
    Status,
)
from orchestrator.analysis.points import Exclusion
from orchestrator.analysis.words import no_trial
from search_spaces.errors import DataError

__all__ = ["ALL", "POOLED", "Interval", "ScalingFits", "Status"]

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
