"""What fits return: one record of a number, one of a fit, and all of a table's, with reasons and a JSON form.

A missing number is ``None``, never NaN, and a fit that could not be made says why in ``reason``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from orchestrator.analysis import table as t
from orchestrator.analysis.guessing import AT_GUESSING, GuessingCount
from orchestrator.analysis.inference import LEVEL, Interval, holm
from orchestrator.analysis.interventions import Interventions
from orchestrator.results import table as c
from search_spaces.errors import DataError

SCHEMA_VERSION = 3

Status = Literal["ok", "not_enough_data", "refused"]
#: What is regressed on what, and over what. ``headline``: dataset effects of log loss on 1/d, log K_F and the
#: label, as far as they can be told apart; ``height``: on other terms; ``exponent``: log loss on −log N / d
#: within curves; ``published``: points pooled over N, as the paper has it; ``attack``: the loss gained, with
#: K_F; ``representation``: how often d_repr stays at or below d_data.
Kind = Literal["headline", "height", "exponent", "published", "attack", "representation"]

DIMENSION, SHARPNESS, ATTACKS = "dimension", "sharpness_beyond_label", "attacks_on_sharpness"
EXPONENT, BELOW_BOUND = "exponent", "exponent_below_bound"
#: Headline question -> how it is called.
QUESTIONS = {
    DIMENSION: "loss on 1/d, given K_F and the domain label",
    SHARPNESS: "loss on K_F, given 1/d and the domain label",
    EXPONENT: "exponent of N within datasets (against none)",
    BELOW_BOUND: "exponent of N within datasets, slower than the bound 1/d",
    ATTACKS: "loss gained by attacks rises with K_F, given the domain label (over all attacks and models)",
}
#: With fewer datasets than this in a domain, a trend over its datasets is a remark, not a finding. The
#: study's own medical slope, with seven datasets, rests on one of them.
MIN_CONVINCING_DATASETS = 5
#: A test whose smallest possible p-value is above the level can establish nothing.
FEWEST_RESAMPLES = round(1 / LEVEL)
#: The choice of points that the claim of a slower fall must hold for too.
PAST_GUESSING = "N past guessing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One number of a fit, with what is known of its uncertainty; datasets are the replicates throughout.

    Attributes:
        name: a column of the points (:data:`orchestrator.analysis.table.WORDS`), ``exponent``, ``r`` or
            ``share``.
        interval: 95 %.
        p_value: two-sided, by t.
        resampled_p: by permutation of datasets or the wild cluster bootstrap; of ``r``, one-sided and
            adjusted for the number of attacks, epsilons and models.
        num_resamples: rearrangements or draws that it rests on.
        exact: all rearrangements were tried and datasets are exchangeable under the null.
        left_out: the value without each dataset, where that can be fitted.
        weights: the share of each dataset in the value, where they differ by design.
    """

    name: str
    value: float
    std_error: float | None = None
    interval: Interval | None = None
    p_value: float | None = None
    resampled_p: float | None = None
    num_resamples: int = 0
    exact: bool = False
    left_out: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    @property
    def p(self) -> float | None:
        """The larger of both p-values: a claim needs both."""
        known = [p for p in (self.p_value, self.resampled_p) if p is not None]
        return max(known) if known else None

    @property
    def is_tested(self) -> bool:
        """Whether datasets can be exchanged in enough ways for a p-value at the level."""
        return self.p is not None and (self.num_resamples == 0 or self.num_resamples >= FEWEST_RESAMPLES)

    @property
    def influential(self) -> str | None:
        """The dataset whose absence moves the value most; None if none can be left out."""
        moves = {name: abs(value - self.value) for name, value in self.left_out.items()}
        return max(sorted(moves), key=moves.__getitem__) if moves else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One fit of one model (or all, pooled) over one domain (or both).

    Attributes:
        terms: regressors, in the order of ``estimates``.
        variant: which choice of d, estimator or attack, where there are several.
        num_needed: datasets that it needs, where it has too few.
        num_curves, num_at_guessing: of an exponent: curves with two train sizes and d, and those of them left
            out since guessing holds their losses down.
        num_held: of a representation: points at which d_repr ≤ d_data.
        bound_p: of an exponent: p-value of "not slower than the bound", which only a slower fall can refute.
        by_dataset: an exponent's own values; of a representation, the share of points above the bound.
        label_correlation: of log K_F with the domain label over datasets: near 1, no fit can part them.
    """

    kind: Kind
    model: str = t.POOLED
    subset: str = t.ALL
    response: str = c.TEST_LOSS
    terms: tuple[str, ...] = ()
    variant: str = ""
    status: Status = "not_enough_data"
    reason: str = ""
    num_datasets: int = 0
    num_needed: int = 0
    num_points: int = 0
    num_curves: int = 0
    num_at_guessing: int = 0
    num_held: int = 0
    estimates: tuple[Estimate, ...] = ()
    bound_p: float | None = None
    by_dataset: dict[str, float] = field(default_factory=dict)
    label_correlation: float | None = None
    r_squared: float | None = None

    def estimate(self, name: str) -> Estimate | None:
        """Return the estimate called ``name``, None where the fit has none of it."""
        return next((found for found in self.estimates if found.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One headline question that could be tested: its p-value, Holm's adjustment, and whether it is
    established.
    """

    key: str
    p_value: float
    adjusted_p: float

    @property
    def established(self) -> bool:
        """Whether the adjusted p-value is small enough for a claim."""
        return self.adjusted_p <= LEVEL


def headline_claims(found: Sequence[Fit]) -> tuple[Claim, ...]:
    """Adjust the p-values of the headline questions that could be tested (all models together)."""
    return adjusted(p_values_of(found))


def p_values_of(found: Sequence[Fit]) -> dict[str, float]:
    """Return the p-value of every headline question that could be tested.

    It is the larger of a t test and a permutation (or wild bootstrap) test, so that a claim needs both. A
    test whose smallest possible p-value is above the level is none.
    """
    p_values: dict[str, float] = {}
    pooled = [fit for fit in found if fit.model == t.POOLED and fit.status == "ok"]
    for fit in pooled:
        if fit.kind == "headline" and fit.response == c.TEST_LOSS:
            for key, name in ((DIMENSION, t.INVERSE_D), (SHARPNESS, t.LOG_SHARPNESS)):
                estimate = fit.estimate(name)
                if estimate is not None and estimate.p is not None and estimate.is_tested:
                    p_values[key] = estimate.p
        about = (fit.kind, fit.response, fit.subset, fit.variant)
        if about == ("exponent", c.TEST_LOSS, t.ALL, "") and fit.bound_p is not None:
            p_values |= {EXPONENT: fit.estimates[0].p or 0.0, BELOW_BOUND: fit.bound_p}
    if BELOW_BOUND in p_values:
        # Curves start flat at guessing: what is slower only there is not slower than the bound.
        past = next((fit for fit in pooled if fit.variant == PAST_GUESSING), None)
        guarded = any(fit.variant == PAST_GUESSING for fit in found)
        if guarded:
            p_values[BELOW_BOUND] = max(p_values[BELOW_BOUND], 1.0 if past is None else past.bound_p or 1.0)
    attacks = [e for fit in found if fit.kind == "attack" for e in fit.estimates if e.resampled_p is not None]
    if attacks and attacks[0].is_tested:
        p_values[ATTACKS] = min(e.resampled_p for e in attacks if e.resampled_p is not None)
    return {key: p_values[key] for key in QUESTIONS if key in p_values}


def adjusted(p_values: dict[str, float]) -> tuple[Claim, ...]:
    """Return one claim per p-value, adjusted for their number."""
    found = holm(p_values)
    return tuple(Claim(key=key, p_value=float(p), adjusted_p=found[key]) for key, p in p_values.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSummary:
    """What one dataset brought to the fits: sizes, measures, and its loss at its largest train size.

    ``loss`` is the geometric mean over models and class pairs of the test loss at the largest train size, and
    ``loss_gain`` the mean there of what the attack of largest epsilon up to 8/255 adds to it (FGSM, where it
    was run).
    """

    dataset: str
    domain: str
    num_trials: int
    train_sizes: tuple[int, ...]
    d_data: float | None
    d_data_range: Interval | None
    label_sharpness: float | None
    label_sharpness_range: Interval | None
    image_size: int | None
    channels: int | None
    loss: float | None = None
    loss_gain: float | None = None
    attack: str = ""


def summaries_of(full: pd.DataFrame, points: pd.DataFrame) -> tuple[DatasetSummary, ...]:
    """Return what each dataset brought, from all trials and the fitted points."""
    attack = max(
        (a for a in c.attack_columns(points.columns) if a.epsilon <= 8 and points[a.name].notna().any()),
        key=lambda a: (a.attack == "fgsm", a.epsilon), default=None,
    )  # fmt: skip
    trials = full[
        [c.DATASET, c.DOMAIN, c.TRAIN_SIZE, c.D_DATA_MLE, c.LABEL_SHARPNESS, c.IMAGE_SIZE, c.CHANNELS]
    ]
    last = points[c.TRAIN_SIZE] == points.groupby(c.DATASET)[c.TRAIN_SIZE].transform("max")
    at_last = points[last].groupby(c.DATASET)
    losses = np.exp(at_last[t.LOG_LOSS].mean())
    gains = losses * np.nan if attack is None else at_last[attack.name].mean()
    found = []
    for name, rows in trials.groupby(c.DATASET):
        d_data, sharpness = (rows[column].dropna() for column in (c.D_DATA_MLE, c.LABEL_SHARPNESS))
        side, channels = (rows[column].dropna().unique() for column in (c.IMAGE_SIZE, c.CHANNELS))
        found.append(
            DatasetSummary(
                dataset=str(name),
                domain=str(rows[c.DOMAIN].iloc[0]),
                num_trials=len(rows),
                train_sizes=tuple(sorted(int(n) for n in rows[c.TRAIN_SIZE].dropna().unique())),
                d_data=_number(d_data.mean()),
                d_data_range=(float(d_data.min()), float(d_data.max())) if len(d_data) else None,
                label_sharpness=_number(sharpness.mean()),
                label_sharpness_range=(float(sharpness.min()), float(sharpness.max()))
                if len(sharpness)
                else None,
                image_size=int(side[0]) if len(side) == 1 else None,
                channels=int(channels[0]) if len(channels) == 1 else None,
                loss=_number(losses.get(name, np.nan)),
                loss_gain=_number(gains.get(name, np.nan)),
                attack="" if attack is None else f"{attack.attack.upper()} {attack.epsilon:g}/255",
            )
        )
    return tuple(found)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def few_datasets(points: pd.DataFrame) -> list[str]:
    """Return one sentence per domain that has too few datasets to conclude from."""
    counts = points.groupby(c.DOMAIN)[c.DATASET].nunique()
    return [
        few_of_domain(str(name), int(num)) for name, num in counts.items() if num < MIN_CONVINCING_DATASETS
    ]


def few_of_domain(domain: str, number: int) -> str:
    """Say that so many datasets of a domain are too few to conclude from."""
    return (
        f"{t.plural(number, f'{domain} dataset')}: a trend over {domain} datasets cannot be told from the "
        f"peculiarities of {'that one' if number == 1 else 'these'}; at least {MIN_CONVINCING_DATASETS} are "
        "needed."
    )


def limits_of(full: pd.DataFrame, points: pd.DataFrame, guessed: GuessingCount) -> tuple[str, ...]:
    """Return what cannot be concluded from a table, in sentences."""
    found = []
    if guessed.num_at_guessing:
        where = [f"{name} {num} of {of}" for name, (num, of) in guessed.by_dataset.items()]
        named = "" if len(where) > 4 else f": {t.listing(where)}"
        kept = "left out" if guessed.left_out else "kept"
        found.append(
            f"{guessed.num_at_guessing} of {t.plural(guessed.num_points, 'point')} lie at guessing between "
            f"two classes (a loss from {AT_GUESSING:g} ln 2 on; {kept}){named}."
        )
    found += few_datasets(points)
    absent = [domain for domain in c.DOMAINS if domain not in set(points[c.DOMAIN])]
    found += [
        f"No {domain} dataset: nothing can be said about differences between domains." for domain in absent
    ]
    if diverged := int((full[c.STATUS] != c.DONE).sum()):
        found.append(
            f"{t.plural(diverged, 'trial')} diverged and had no loss to fit; the fits describe the others."
        )
    modes = sorted(full[c.DATA_MODE].unique())
    if len(modes) > 1:
        found.append(f"Trials of several data modes ({t.listing(modes)}) are fitted together.")
    conflicts = sorted(full.loc[full[c.NUM_CONFLICTS] > 0, c.DATASET].unique())
    if conflicts:
        found.append(
            f"Identical images with different labels in {t.listing(conflicts)}: there K_F has no finite "
            "value."
        )
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingFits:
    """All fits of one results table, with what was left out and what cannot be concluded.

    ``explored`` says whether the fits that no answer rests on were made too.
    """

    schema_version: int = SCHEMA_VERSION
    seed: int
    num_trials: int
    num_used: int
    num_points: int
    excluded: tuple[t.Exclusion, ...]
    datasets: tuple[DatasetSummary, ...]
    models: tuple[str, ...]
    sharpness_scale: t.SharpnessScale
    fits: tuple[Fit, ...]
    claims: tuple[Claim, ...]
    at_guessing: GuessingCount
    explored: bool
    caveats: tuple[str, ...] = ()
    interventions: Interventions | None = None

    def find(
        self, kind: Kind, *terms: str, model: str = t.POOLED, subset: str = t.ALL,
        response: str = c.TEST_LOSS, variant: str = "",
    ) -> Fit:  # fmt: skip
        """Return a fit; one never tried comes back as "not enough data". A headline needs no terms."""
        for fit in self.fits:
            same = (fit.kind, fit.model, fit.subset, fit.response, fit.variant)
            if same == (kind, model, subset, response, variant) and terms in (fit.terms, ()):
                return fit
        whose = "" if model == t.POOLED else f" of {model}"
        where = "" if subset == t.ALL else f" on a {subset} dataset"
        reason = f"no usable trial{whose}{where}" if self.explored or not self.models else "not asked for"
        return Fit(
            kind=kind,
            model=model,
            subset=subset,
            response=response,
            terms=terms,
            variant=variant,
            reason=reason,
        )

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
                repr(data.get("schema_version")), "fit again with `isweep fit`",
            )  # fmt: skip
        return TypeAdapter(cls).validate_python(data)
