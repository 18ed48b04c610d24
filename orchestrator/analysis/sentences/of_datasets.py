"""Sentences on what several datasets answer to the study's questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.analysis.answers import Answer, Verdict
from orchestrator.analysis.fits import ScalingFits, doubling_slope
from orchestrator.analysis.headline import (
    ATTACKS,
    BELOW_BOUND,
    DIMENSION,
    EXPONENT,
    LAW_SLOPE,
    SHARPNESS,
    needed_for_doubling,
    num_tests,
    strongest_attack,
)
from orchestrator.analysis.inference import LEVEL
from orchestrator.analysis.law_fits.estimates import STRONG, Estimate
from orchestrator.analysis.law_fits.records import HeightFit
from orchestrator.analysis.number_formats import in_hundred, interval, listing, number, percent
from orchestrator.analysis.results_tables.points import (
    INVERSE_D,
    IS_MEDICAL,
    LOG_SHARPNESS,
    WORDS,
    given,
)
from orchestrator.analysis.sentences.finding import (
    Finding,
    in_brackets,
    influence,
    multiplied,
    not_testable,
    why_not_significant,
)
from orchestrator.analysis.sentences.to_add import datasets_to_add
from orchestrator.results.columns import attack_columns
from search_spaces.errors import plural

MAX_WORST = 3
"""Datasets that are named where a bound is broken."""


def of_datasets(fits: ScalingFits) -> Iterator[Finding]:
    """Yield the answers to the study's questions."""
    yield _dimension(fits)
    yield _sharpness(fits)
    yield _train_size(fits)
    yield _attacks(fits)
    yield of_representations(fits)


@dataclass(frozen=True, slots=True)
class Property:
    """A property of datasets, and what is done to it in a sentence.

    Attributes:
        name: What it is called.
        column: Column of its term.
        step: What is done to it.
        change: By how much that moves the term.
        effect: Slope whose detection is told; None if there is none.
        effect_words: That effect, in words.
    """

    name: str
    column: str
    step: str
    change: float
    effect: float | None
    effect_words: str


def _of_height(
    fits: ScalingFits, answer: Answer, dataset_property: Property, notes: Sequence[str]
) -> Finding:
    """Answer a question about the height of losses."""
    fit = fits.headline()
    if answer.verdict == "not testable" or answer.value is None:
        to_add = datasets_to_add(fits, fit, "d_data, K_F and losses", answer.reason)
        return not_testable(answer.question.text, answer.reason, to_add, notes)
    column = dataset_property.column
    slope = f"slope on {WORDS[column]}"
    falling = ""
    if column == INVERSE_D:
        falling = ", which falls as d_data rises,"
    details = [
        f"Compared at equal model and N{given(fit.terms, column)}.",
        f"The {slope}{falling} is {number(answer.value)} ({interval(answer.interval)}).",
    ]
    claim = ""
    if answer.is_decided:
        claim = _claim(answer.value, dataset_property, fit)
        sentences = [claim, _factor(answer, dataset_property)]
    else:
        sentences = _undecided(answer, dataset_property, fit, num_tests(fits.answers))
        if answer.power is not None:
            details.append(
                f"These {fit.num_datasets} datasets would detect {dataset_property.effect_words} "
                f"in at most {in_hundred(answer.power)} such studies."
            )
    return Finding(
        question=answer.question.text,
        verdict=answer.verdict,
        sentences=tuple(sentences),
        details=tuple(details),
        notes=(*influence(answer, f"the {slope}", {}), *notes),
        claim=claim,
    )


def _claim(value: float, dataset_property: Property, fit: HeightFit) -> str:
    """Say what the loss does as a property rises."""
    verb = "rises" if value * dataset_property.change > 0 else "falls"
    return f"The loss {verb} with {dataset_property.name} {in_brackets(fit.num_datasets)}."


def _factor(answer: Answer, dataset_property: Property) -> str:
    """Say by what the loss is multiplied when something is done to a property."""
    value = 0.0 if answer.value is None else answer.value
    factor, bounds = multiplied(value, answer.interval, dataset_property.change)
    return f"{dataset_property.step} multiplies it by {factor} (95 % interval {interval(bounds)})."


def _undecided(answer: Answer, dataset_property: Property, fit: HeightFit, tests: int) -> list[str]:
    """Say that no effect was detected, which effects are possible, and what would detect one."""
    datasets = in_brackets(fit.num_datasets)
    opening = f"No effect of {dataset_property.name} on the loss was"
    needed = _what_would_detect(fit, dataset_property, tests)
    reason = why_not_significant(answer, tests)
    if reason:
        sentences = [
            f"{opening} established {datasets}: {reason}.",
            _factor(answer, dataset_property),
        ]
    else:
        _, bounds = multiplied(0.0, answer.interval, dataset_property.change)
        sentences = [
            f"{opening} detected {datasets}.",
            f"{dataset_property.step} may multiply it by {interval(bounds)}. These effects are "
            "compatible with the data.",
        ]
    if needed:
        sentences.append(needed)
    return sentences


def _what_would_detect(fit: HeightFit, dataset_property: Property, tests: int) -> str:
    """Say how many datasets would detect an effect; empty if there is none to detect."""
    if dataset_property.effect is None:
        return ""
    words = dataset_property.effect_words
    needed = needed_for_doubling(fit, dataset_property.column, dataset_property.effect, tests)
    if needed is None:
        return f"No practical number of such datasets would detect {words}."
    return f"To detect {words} in 8 of 10 such studies you need about {needed:,} datasets."


def _dimension(fits: ScalingFits) -> Finding:
    low, high = fits.d_data_range
    notes = []
    gap = fits.height(IS_MEDICAL)
    if gap.status == "ok":
        notes.append(_domain_gap(gap.estimates[0]))
    intrinsic_dimension = Property(
        name="d_data",
        column=INVERSE_D,
        step=f"Going from the lowest to the highest d_data here ({number(low)} to {number(high)})",
        change=1 / high - 1 / low,
        effect=doubling_slope(fits.datasets),
        effect_words="a doubling of the loss",
    )
    return _of_height(fits, fits.answer(DIMENSION), intrinsic_dimension, notes)


def _domain_gap(offset: Estimate) -> str:
    """Say how losses of medical datasets compare with those of natural ones."""
    factor, bounds = multiplied(offset.value, offset.interval, 1.0)
    return (
        f"Medical datasets have {factor} times the loss of natural ones (95 % interval "
        f"{interval(bounds)}). This is exploratory: the domains differ in more than d_data and K_F."
    )


def _sharpness(fits: ScalingFits) -> Finding:
    label_sharpness = Property(
        name="K_F",
        column=LOG_SHARPNESS,
        step="Doubling K_F",
        change=float(np.log(2)),
        effect=LAW_SLOPE,
        effect_words="the law's doubling",
    )
    notes = []
    if fits.sharpness_scale.note:
        notes.append(fits.sharpness_scale.note)
    return _of_height(fits, fits.answer(SHARPNESS), label_sharpness, notes)


def _train_size(fits: ScalingFits) -> Finding:
    """Answer whether the loss falls with N, and whether too slowly, by two tests."""
    question = EXPONENT.text
    notes = ["The law is an upper bound: only a fall slower than it allows contradicts it."]
    fit = fits.exponent()
    falls = fits.answer(EXPONENT)
    below = fits.answer(BELOW_BOUND)
    if fit.status != "ok" or falls.value is None:
        to_add = datasets_to_add(fits, fit, "two train sizes and losses clear of chance level")
        return not_testable(question, falls.reason, to_add, notes)
    d_values = [
        d.d_data for d in fits.datasets if d.dataset in fit.by_dataset and d.d_data is not None
    ]
    middle = float(np.median(d_values)) if d_values else 1.0
    factor, bounds = multiplied(falls.value, falls.interval, -np.log(2) / middle)
    allowed = number(float(2 ** (-1 / middle)))
    datasets = in_brackets(fit.num_datasets)
    verdict, claim = _verdict_on_fall(falls, below)
    times = (
        f"Doubling N multiplies the loss by {factor} (95 % interval {interval(bounds)}) at the "
        f"median d_data, {number(middle)}."
    )
    details = [
        f"The bound allows a factor of {allowed} or less.",
        f"The slope of log loss on −log N / d is {number(falls.value)} "
        f"({interval(falls.interval)}); the bound is 1.",
    ]
    if fit.num_at_chance:
        num_clear = fit.num_curves - fit.num_at_chance
        details.append(
            f"It is fitted to {num_clear} of {plural(fit.num_curves, 'curve')}: the others are "
            "near chance level."
        )
    if verdict == "undecided":
        why_not = why_not_significant(falls, num_tests(fits.answers))
        if why_not:
            sentences = [f"No fall with N was established {datasets}: {why_not}.", times]
        else:
            sentences = [
                f"No fall of the loss with N was detected, nor that it is too slow {datasets}.",
                f"At the median d_data, {number(middle)}, doubling N may multiply it by "
                f"{interval(bounds)}. These effects are compatible with the data.",
            ]
        if falls.power is not None:
            sentences.append(
                f"A fall as fast as the bound would be detected in at most "
                f"{in_hundred(falls.power)} such studies."
            )
    else:
        claim = f"{claim} {datasets}."
        sentences = [claim, times]
    weights = fit.estimates[0].weights
    return Finding(
        question=question,
        verdict=verdict,
        sentences=tuple(sentences),
        details=tuple(details),
        notes=(*influence(falls, "the slope", weights), *notes),
        claim=claim,
    )


def _verdict_on_fall(falls: Answer, below: Answer) -> tuple[Verdict, str]:
    """Return the verdict of two tests, and its statement without the number of datasets."""
    low, high = falls.interval or (-np.inf, np.inf)
    if below.verdict == "contradicted":
        if falls.verdict == "contradicted":
            return "contradicted", "The loss rises with N, which contradicts the law's bound"
        if falls.verdict == "supported":
            statement = "The loss falls more slowly with N than the law's bound allows"
        else:
            statement = "If at all, the loss falls more slowly with N than the law's bound allows"
        return "contradicted", statement
    if falls.verdict == "contradicted":
        return "contradicted", "The loss rises with N"
    if falls.verdict == "supported":
        if 0 < low <= high < 1:
            statement = "The loss falls with N; whether too slowly for the law's bound is undecided"
            return "supported", statement
        return "supported", "The loss falls with N, and nothing contradicts the law's bound"
    return "undecided", ""


def _attacks(fits: ScalingFits) -> Finding:
    """Answer whether attacks gain more where labels are sharper."""
    answer = fits.answer(ATTACKS)
    best = strongest_attack(fits.attacks)
    question = ATTACKS.text
    if best is None:
        return not_testable(question, answer.reason, "put attacks into the sweep file")
    if answer.verdict == "not testable" or answer.value is None:
        to_add = datasets_to_add(fits, best, "K_F and attacks at equal N", answer.reason)
        return not_testable(question, answer.reason, to_add)
    correlations = [fit for fit in fits.attacks if fit.status == "ok"]
    domains = {dataset.domain for dataset in fits.datasets}
    attack = attack_columns([best.response])[0].words
    model = best.model if " " in best.model else f"model {best.model}"
    subject = (
        "The correlation"
        if len(correlations) == 1
        else f"The largest of {len(correlations)} correlations"
    )
    largest = (
        f"{subject} is r = {number(answer.value)} (95 % interval {interval(answer.interval)}), for "
        f"{attack} on {model}."
    )
    datasets = in_brackets(best.num_datasets)
    details = [f"Compared at equal model and N{', within domains' if len(domains) > 1 else ''}."]
    if best.variant:
        details.append(f"Only datasets with K_F of {best.variant} are compared.")
    claim = ""
    if answer.is_decided:
        claim = f"Attacks raise the loss more where labels are sharper {datasets}."
        sentences = [claim, largest]
        num_significant = 0
        for fit in correlations:
            p = fit.estimates[0].resampled_p
            num_significant += p is not None and p <= LEVEL
        details.append(
            f"The rise is significant in {num_significant} of {len(correlations)} combinations of "
            "attack, epsilon and model, adjusted for their number."
        )
    else:
        why_not = why_not_significant(answer, num_tests(fits.answers))
        opening = "No relation of K_F with what attacks add to the loss was"
        if why_not and answer.value > 0:
            sentences = [f"{opening} established {datasets}: {why_not}.", largest]
        else:
            sentences = [f"{opening} detected {datasets}.", largest]
        if answer.value <= 0:
            sentences.append("The estimate is a fall, against what the law expects.")
        if answer.power is not None:
            sentences.append(
                f"A correlation of {STRONG:g} would be detected in at most "
                f"{in_hundred(answer.power)} such studies."
            )
    return Finding(
        question=question,
        verdict=answer.verdict,
        sentences=tuple(sentences),
        details=tuple(details),
        notes=influence(answer, "r", {}),
        claim=claim,
    )


def of_representations(fits: ScalingFits) -> Finding:
    """Describe how often d_repr is at most d_data."""
    question = "Does a network compress its data below their intrinsic dimension?"
    fit = fits.representation()
    if fit.status != "ok":
        return not_testable(question, fit.reason, "measure both on one set of training images")
    (share,) = fit.estimates
    counted = f"At {fit.num_held} of {plural(fit.num_points, 'point')} d_repr is at most d_data."
    details = []
    if fit.num_datasets > 1:
        text = f"With each dataset counting once, that is {percent(share.value)}"
        if share.interval is not None and share.interval != (0.0, 1.0):
            low, high = share.interval
            text += f" (95 % interval {percent(low)} to {percent(high)})"
        details.append(f"{text}.")
    num_lacking = fits.num_points - fit.num_points
    if num_lacking:
        details.append(f"{num_lacking} more lack one of the two.")
    details.append("The approximate bound d_repr ≲ d_data expects nearly all; this is exploratory.")
    notes = []
    worst = sorted(fit.by_dataset.items(), key=lambda entry: (-entry[1], entry[0]))[:MAX_WORST]
    if worst:
        named = listing([f"{name} ({percent(part)})" for name, part in worst])
        notes.append(f"d_repr is most often above d_data in {named}.")
    notes.append(
        "Both are estimates on a few hundred points; estimators differ by tens of per cent."
    )
    return Finding(
        question=question,
        verdict="described",
        sentences=(counted,),
        details=tuple(details),
        notes=tuple(notes),
    )
