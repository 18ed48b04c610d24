"""All fits of one results table.

The law (Konz & Mazurowski 2024, Eq. 2) is an upper bound on the test loss L after training on
N images: log L ≲ −(1/d_data) log N + log K_F + a. The two parts of the law are fitted
separately:

- Exponent: the slope on log N / d. Every curve has its own intercept. Every dataset, or every
  class pair of a dataset, has one d.
- Height: the loss at equal N, on log K_F and 1/d. The term 1/d is separate because the law's
  proof has (V/N)^(1/d) with an unknown volume V.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from orchestrator.analysis.answers import Answer, Question
from orchestrator.analysis.class_pairs import fit_pairs, pair_answer, sharpness_with_delta
from orchestrator.analysis.experiments.interventions import fit_interventions
from orchestrator.analysis.experiments.records import Arm, Interventions
from orchestrator.analysis.grouped_tables.slopes import Slope
from orchestrator.analysis.headline import headline_answers
from orchestrator.analysis.inference import Interval
from orchestrator.analysis.law_fits.attacks import fit_attacks
from orchestrator.analysis.law_fits.exponents import OTHER_D, TWONN, fit_exponent, fit_exponents
from orchestrator.analysis.law_fits.falls import fit_fall
from orchestrator.analysis.law_fits.heights import fit_headline, fit_height
from orchestrator.analysis.law_fits.records import (
    AnyFit,
    AttackFit,
    ExponentFit,
    FallFit,
    HeightFit,
    RepresentationFit,
)
from orchestrator.analysis.law_fits.representations import fit_representation
from orchestrator.analysis.limits import (
    SweepFacts,
    limits_of,
    limits_of_origins,
    num_without_error,
    shared_collections,
)
from orchestrator.analysis.one_dataset import OneDataset, one_dataset
from orchestrator.analysis.results_tables.checks import Exclusion, normalise
from orchestrator.analysis.results_tables.dataset_summaries import DatasetSummary, summaries_of
from orchestrator.analysis.results_tables.points import (
    ALL,
    AT_CHANCE_LEVEL,
    IS_MEDICAL,
    POOLED,
    fitted_points,
)
from orchestrator.analysis.results_tables.sharpness_scale import (
    SAME_SHARPNESS,
    UNEQUAL_SCALES,
    Policy,
    SharpnessScale,
    sharpness_scale,
)
from orchestrator.results.columns import DATASET, DOMAINS, MODEL

NO_FACTS = SweepFacts()
"""The facts about a table that belongs to no sweep: no fact is known."""
EQUAL_UP_TO_ROUNDING = 1e-12
"""Largest relative difference at which two measures count as equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingFits:
    """All fits of one results table, with their answers and limits.

    Attributes:
        num_trials: Number of rows of the table.
        num_used: Number of rows with a usable loss.
        num_points: Number of points. A point is an average of rows over seeds.
        excluded: Counts of excluded rows and values, with the reasons.
        datasets: Summary of each dataset.
        models: Names of the networks.
        sharpness_scale: The scales of K_F, and whether K_F may be compared between datasets.
        fits: All fits. A fit that could not be made has a reason instead of estimates.
        answers: Answers to the headline questions.
        num_at_chance_level: Number of points at chance level.
        num_without_error: Number of points at which no test image is classified wrongly.
        caveats: Sentences on what cannot be concluded.
        class_pairs: Slopes over the class pairs of one dataset.
        interventions: Results of an experiment; None if there is none.
        one_dataset: Answers from a table of one dataset; None if there are several datasets.
        asked_after_seeing: Keys of questions that were asked after somebody had seen the data.
        sharpness_with_delta: Correlation of log K_F with log δ over class pairs; None if there
            are no class pairs.
        dependent_datasets: Groups of datasets that are not independent, because their images
            show the same things. Each group contains the names of its datasets.
    """

    schema_version: int = 6
    num_trials: int
    num_used: int
    num_points: int
    excluded: tuple[Exclusion, ...]
    datasets: tuple[DatasetSummary, ...]
    models: tuple[str, ...]
    sharpness_scale: SharpnessScale
    fits: tuple[AnyFit, ...]
    answers: tuple[Answer, ...]
    num_at_chance_level: int
    num_without_error: int = 0
    caveats: tuple[str, ...] = ()
    class_pairs: tuple[Slope, ...] = ()
    interventions: Interventions | None = None
    one_dataset: OneDataset | None = None
    asked_after_seeing: tuple[str, ...] = ()
    sharpness_with_delta: float | None = None
    dependent_datasets: tuple[tuple[str, ...], ...] = ()

    def headline(self, model: str = POOLED) -> HeightFit:
        """Return the fit of heights on 1/d, log K_F and the domain."""
        for fit in self.fits:
            if isinstance(fit, HeightFit) and (fit.kind, fit.model) == ("headline", model):
                return fit
        return HeightFit(kind="headline", model=model, reason=_no_trial(model))

    def height(self, *terms: str) -> HeightFit:
        """Return the regression of the heights of all models on these terms."""
        for fit in self.fits:
            if isinstance(fit, HeightFit) and fit.kind == "height" and fit.terms == terms:
                return fit
        return HeightFit(terms=terms, reason=_no_trial(POOLED))

    def exponent(self, model: str = POOLED, subset: str = ALL, variant: str = "") -> ExponentFit:
        """Return an exponent fit.

        ``variant`` selects a fit with another estimate of d or other points.
        """
        for fit in self.fits:
            if isinstance(fit, ExponentFit) and (fit.model, fit.subset, fit.variant) == (
                model,
                subset,
                variant,
            ):
                return fit
        return ExponentFit(model=model, subset=subset, variant=variant, reason=_no_trial(model))

    def fall(self) -> FallFit:
        """Return the fit with the slope of log loss on log N of each dataset."""
        for fit in self.fits:
            if isinstance(fit, FallFit):
                return fit
        return FallFit(reason=_no_trial(POOLED))

    def attack(self, response: str, model: str = POOLED) -> AttackFit:
        """Return the fit of the loss that one attack adds."""
        for fit in self.fits:
            if isinstance(fit, AttackFit) and (fit.model, fit.response) == (model, response):
                return fit
        return AttackFit(model=model, response=response, reason=_no_trial(model))

    def representation(self, model: str = POOLED) -> RepresentationFit:
        """Return the fit with the share of points at which d_repr is at most d_data."""
        for fit in self.fits:
            if isinstance(fit, RepresentationFit) and fit.model == model:
                return fit
        return RepresentationFit(model=model, reason=_no_trial(model))

    @property
    def attacks(self) -> list[AttackFit]:
        """The fits of single models, which answer the question on attacks."""
        return [fit for fit in self.fits if isinstance(fit, AttackFit) and fit.model != POOLED]

    @property
    def d_data_range(self) -> Interval:
        """The lowest and the highest d_data among the datasets that have a loss."""
        return d_data_range(self.datasets)

    def answer(self, question: Question) -> Answer:
        """Return the answer to a headline question."""
        for answer in self.answers:
            if answer.question == question:
                return answer
        raise KeyError(question.key)

    def pair_answer(self, slope: Slope) -> Answer:
        """Return the answer that follows from a slope over class pairs."""
        return pair_answer(slope, self.asked_after_seeing)

    def to_json(self) -> dict[str, Any]:
        """Return all fits and verdicts for ``json.dumps(allow_nan=False)``."""
        document = cast(dict[str, Any], TypeAdapter(ScalingFits).dump_python(self, mode="json"))
        for entry, answer in zip(document["answers"], self.answers, strict=True):
            entry["verdict"] = answer.verdict
            entry["power"] = answer.power
        if self.one_dataset is not None:
            # The bounds of the needed N may be infinite, but JSON has no infinite numbers.
            curves = [curve.to_json() for curve in self.one_dataset.target_curves]
            document["one_dataset"]["target_curves"] = curves
        for entry, slope in zip(document["class_pairs"], self.class_pairs, strict=True):
            entry["verdict"] = self.pair_answer(slope).verdict
        return document


def _no_trial(model: str) -> str:
    """Return a text that a model has no usable trial."""
    if model == POOLED:
        return "no usable trial"
    return f"no usable trial of {model}"


def d_data_range(datasets: Sequence[DatasetSummary]) -> Interval:
    """Return the lowest and the highest d_data of datasets with a loss.

    If there is no such dataset, return 1 and 1.
    """
    values = [d.d_data for d in datasets if d.d_data is not None and d.loss is not None]
    return min(values, default=1.0), max(values, default=1.0)


def doubling_slope(datasets: Sequence[DatasetSummary]) -> float | None:
    """Return the slope of log loss on 1/d with which the loss doubles over the range of d_data.

    Returns None if d_data is the same for all datasets.
    """
    low, high = d_data_range(datasets)
    span = 1 / low - 1 / high
    if span <= EQUAL_UP_TO_ROUNDING:
        return None
    return float(np.log(2)) / span


def why_no_sharpness(datasets: Sequence[DatasetSummary], scale: SharpnessScale) -> str:
    """Return the reason why K_F cannot be compared over these datasets; empty if it can."""
    values = [d.label_sharpness for d in datasets if d.label_sharpness is not None]
    if not values:
        return "K_F was not measured"
    if not scale.comparable:
        return UNEQUAL_SCALES
    if len(values) > 1 and np.ptp(values) <= EQUAL_UP_TO_ROUNDING * max(values):
        return SAME_SHARPNESS
    return ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked table and its points.

    Attributes:
        full: All trials, except those on the changed datasets of an experiment.
        points: Trials averaged over seeds.
        scale: The scales of K_F, and whether K_F may be compared between datasets.
        excluded: Counts of excluded rows and values, with the reasons.
        num_trials: Number of rows of the table.
        num_used: Number of rows with a usable loss.
    """

    full: pd.DataFrame
    points: pd.DataFrame
    scale: SharpnessScale
    excluded: tuple[Exclusion, ...]
    num_trials: int
    num_used: int


def prepare(
    table: pd.DataFrame, *, sharpness_policy: Policy = "refuse", arms: Sequence[Arm] = ()
) -> Prepared:
    """Check a table, and average its trials to the points that fits and figures use.

    Args:
        table: A results table with one row per trial.
        sharpness_policy: See :func:`fit_scaling_laws`.
        arms: Datasets of an experiment. Changed copies are excluded, and base datasets are
            used.
    """
    full, unusable = normalise(table)
    # A changed copy shares images with its base, so it is not an independent dataset.
    is_copy = full[DATASET].isin([arm.dataset for arm in arms if arm.moves != "base"])
    copies = []
    if is_copy.any():
        reason = "trials of conditions, which are compared with their base datasets"
        copies.append(Exclusion(reason, int(is_copy.sum())))
    full = full[~is_copy].reset_index(drop=True)
    points, without_loss = fitted_points(full)
    return Prepared(
        full=full,
        points=points,
        scale=sharpness_scale(full, sharpness_policy),
        excluded=(*unusable, *copies, *without_loss),
        num_trials=len(table),
        num_used=len(full) - sum(exclusion.count for exclusion in without_loss),
    )


def fit_scaling_laws(
    table: pd.DataFrame,
    *,
    sharpness_policy: Policy = "refuse",
    arms: Sequence[Arm] = (),
    explore: bool = False,
    predictions: pd.DataFrame | None = None,
    facts: SweepFacts = NO_FACTS,
) -> ScalingFits:
    """Fit the study's law to a results table, and answer its questions.

    Args:
        table: One row per trial, in the columns of ``docs/results-columns.md``.
        sharpness_policy: The choice if K_F was measured on several scales. A scale is an image
            side, a number of channels and a pixel range. With ``refuse``, no fit compares K_F
            between datasets. With ``ignore``, these fits are made in spite of the different
            scales.
        arms: Datasets of an experiment. Changed copies are compared with their base datasets.
            All other fits use only the base datasets.
        explore: True to add further fits: of single models, of single domains, and with d from
            other numbers of neighbors. No answer uses these fits.
        predictions: Stored predictions for each test image, with which the networks of one
            dataset are compared. None if there are none.
        facts: Facts about the sweep that limit its answers.

    Raises:
        DataError: If a required column is missing, or if rows contradict each other.
    """
    prepared = prepare(table, sharpness_policy=sharpness_policy, arms=arms)
    single = one_dataset(prepared.full, predictions)
    fits = with_facts(fits_of(prepared, explore=explore), facts)
    fits = replace(fits, one_dataset=single)
    if arms:
        fits = replace(fits, interventions=fit_interventions(table, arms))
    return fits


def with_facts(fits: ScalingFits, facts: SweepFacts) -> ScalingFits:
    """Return a copy of the fits with facts about their sweep that limit the answers."""
    asked = facts.asked_after_seeing
    answers = [replace(one, is_late=one.question.key in asked) for one in fits.answers]
    return replace(
        fits,
        answers=tuple(answers),
        caveats=(*limits_of_origins(facts.origins, fits.datasets), *fits.caveats),
        asked_after_seeing=asked,
        dependent_datasets=tuple(shared_collections(facts.origins, fits.datasets).values()),
    )


def fits_of(prepared: Prepared, *, explore: bool = False) -> ScalingFits:
    """Return all fits. See :func:`fit_scaling_laws` for the fits that ``explore`` adds."""
    points = prepared.points
    scale = prepared.scale
    models = tuple(sorted(points[MODEL].unique()))
    fits: list[AnyFit] = []
    # The answers use only the fits of all models together and the fits of attacks on single
    # models.
    if models:
        fits.append(fit_headline(points, scale))
        fits.append(fit_height(points, scale, (IS_MEDICAL,)))
        fits.append(fit_fall(points))
        fits += fit_exponents(points, prepared.full)
        fits += _exponents_by(points, [TWONN])
        fits += fit_attacks(points, scale, models)
        fits.append(fit_representation(points))
    if len(models) > 1:
        fits += [fit_representation(points, model=model) for model in models]
    if models and explore:
        fits += _exploratory(points, scale, models)
    datasets = summaries_of(prepared.full, points)
    answers = headline_answers(
        fits,
        why_no_sharpness=why_no_sharpness(datasets, scale),
        doubling_slope=doubling_slope(datasets),
        num_domains=len({dataset.domain for dataset in datasets}),
    )
    class_pairs = fit_pairs(points)
    return ScalingFits(
        num_trials=prepared.num_trials,
        num_used=prepared.num_used,
        num_points=len(points),
        excluded=prepared.excluded,
        datasets=datasets,
        models=models,
        sharpness_scale=scale,
        fits=tuple(fits),
        answers=answers,
        num_at_chance_level=int(points[AT_CHANCE_LEVEL].sum()),
        num_without_error=num_without_error(points),
        caveats=limits_of(prepared.full, points),
        class_pairs=class_pairs,
        sharpness_with_delta=sharpness_with_delta(points) if class_pairs else None,
    )


def _exploratory(
    points: pd.DataFrame, scale: SharpnessScale, models: Sequence[str]
) -> list[AnyFit]:
    """Fit single models, single domains, and d from other numbers of neighbors."""
    fits: list[AnyFit] = []
    for model in models:
        fits.append(fit_headline(points, scale, model=model))
        fits.append(fit_exponent(points, model=model))
    for domain in DOMAINS:
        fits.append(fit_exponent(points, subset=domain))
    fits += _exponents_by(points, [name for name in OTHER_D if name != TWONN])
    return fits


def _exponents_by(points: pd.DataFrame, estimators: Iterable[str]) -> Iterator[ExponentFit]:
    """Yield an exponent fit for each of the given estimates of d that was measured."""
    for name in estimators:
        column = OTHER_D[name]
        if points[column].notna().any():
            yield fit_exponent(points, dimension=column, variant=name)
