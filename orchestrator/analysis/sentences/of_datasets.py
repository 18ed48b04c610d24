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
    strongest_attack,
)
from orchestrator.analysis.inference import LEVEL
from orchestrator.analysis.law_fits.estimates import Estimate
from orchestrator.analysis.law_fits.records import AttackFit, HeightFit
from orchestrator.analysis.number_formats import interval, listing, number, p_equals, percent
from orchestrator.analysis.results_tables.points import (
    INVERSE_D,
    IS_MEDICAL,
    LOG_SHARPNESS,
    WORDS,
    given,
)
from orchestrator.analysis.sentences.finding import (
    Finding,
    changes_of_sign,
    in_brackets,
    influence,
    multiplied,
    not_testable,
    opening_of_undecided,
    p_sentences,
    power_sentence,
)
from orchestrator.analysis.sentences.to_add import datasets_to_add
from orchestrator.results.columns import attack_columns
from search_spaces.errors import plural

FALL_QUESTION = "Did the loss fall with N?"
MAX_WORST = 3
"""Datasets that are named where a bound is broken."""


def of_datasets(fits: ScalingFits) -> Iterator[Finding]:
    """Yield the answers to the study's questions."""
    yield _dimension(fits)
    yield _sharpness(fits)
    fall = _fall(fits)
    if fall is not None:
        yield fall
    yield _exponent(fits)
    yield _attacks(fits)
    yield of_representations(fits)


@dataclass(frozen=True, slots=True)
class Property:
    """A property of datasets, and how losses compare over a step of it.

    Attributes:
        name: What it is called.
        column: Column of its term.
        step: Sentence on two kinds of datasets, with ``{}`` for the factor between their losses.
        change: By how much the term differs between them.
        effect: Slope whose detection is told; None if there is none.
    """

    name: str
    column: str
    step: str
    change: float
    effect: float | None


def _of_height(
    fits: ScalingFits, answer: Answer, dataset_property: Property, notes: Sequence[str]
) -> Finding:
    """Answer a question about the height of losses."""
    fit = fits.headline()
    if answer.verdict == "not testable" or answer.value is None:
        to_add = datasets_to_add(fits, fit, "d_data, K_F and losses", answer.reason)
        return not_testable(answer.question.text, answer.reason, to_add, notes)
    column = dataset_property.column
    slope = f"the slope on {WORDS[column]}"
    sign = ""
    if column == INVERSE_D:
        sign = " A negative slope means that the loss rises with d_data."
    details = [
        f"Compared at equal model and N{given(fit.terms, column)}.",
        f"The slope on {WORDS[column]} is {number(answer.value)} "
        f"({interval(answer.interval)}).{sign}",
    ]
    factor = _factor(answer, dataset_property)
    claim = ""
    if answer.is_decided:
        claim = _claim(answer.value, dataset_property, fit)
        sentences = [claim, factor]
    else:
        nothing = f"No relation of the loss with {dataset_property.name} was detected"
        replicates = in_brackets(fit.num_datasets)
        sentences = [opening_of_undecided(answer, nothing, replicates), factor]
    sentences += [*p_sentences(answer), influence(answer, slope)]
    if not answer.is_decided:
        sentences.append(power_sentence(answer))
        sentences.append(_datasets_needed(fit, dataset_property, answer.num_tests))
    return Finding(
        question=answer.question.text,
        verdict=answer.verdict,
        sentences=tuple(filter(None, sentences)),
        details=tuple(details),
        notes=(*changes_of_sign(answer, {}), *notes),
        claim=claim,
        size=" ".join([factor, *p_sentences(answer)]),
    )


def _claim(value: float, dataset_property: Property, fit: HeightFit) -> str:
    """Say what the loss does as a property rises."""
    verb = "rises" if value * dataset_property.change > 0 else "falls"
    return f"The loss {verb} with {dataset_property.name} {in_brackets(fit.num_datasets)}."


def _factor(answer: Answer, dataset_property: Property) -> str:
    """Say how the losses of two kinds of datasets compare, with the interval of that."""
    value = 0.0 if answer.value is None else answer.value
    factor, bounds = multiplied(value, answer.interval, dataset_property.change)
    text = dataset_property.step.format(factor)
    return f"{text} (95 % interval {interval(bounds)})."


def _datasets_needed(fit: HeightFit, dataset_property: Property, tests: int) -> str:
    """Say how many datasets would detect the effect; empty if there is none to detect."""
    if dataset_property.effect is None:
        return ""
    needed = needed_for_doubling(fit, dataset_property.column, dataset_property.effect, tests)
    if needed is None:
        return "No practical number of such datasets would make it 80 of 100."
    return f"About {needed:,} such datasets would make it 80 of 100."


def _dimension(fits: ScalingFits) -> Finding:
    low, high = fits.d_data_range
    notes = []
    gap = fits.height(IS_MEDICAL)
    if gap.status == "ok":
        notes.append(_domain_gap(gap.estimates[0]))
    intrinsic_dimension = Property(
        name="d_data",
        column=INVERSE_D,
        step=(
            f"From the lowest to the highest d_data here ({number(low)} to {number(high)}) the "
            "loss is {} times as high"
        ),
        change=1 / high - 1 / low,
        effect=doubling_slope(fits.datasets),
    )
    return _of_height(fits, fits.answer(DIMENSION), intrinsic_dimension, notes)


def _domain_gap(offset: Estimate) -> str:
    """Say how losses of medical datasets compare with those of natural ones."""
    factor, bounds = multiplied(offset.value, offset.interval, 1.0)
    return (
        f"The loss of medical datasets is {factor} times that of natural ones (95 % interval "
        f"{interval(bounds)}). This is exploratory: the domains differ in more than d_data and K_F."
    )


def datasets_needed_for_sharpness(fits: ScalingFits) -> int | None:
    """Return how many datasets would detect the law's slope on log K_F; None if none would."""
    answer = fits.answer(SHARPNESS)
    if answer.verdict != "undecided":
        return None
    return needed_for_doubling(fits.headline(), LOG_SHARPNESS, LAW_SLOPE, answer.num_tests)


def _sharpness(fits: ScalingFits) -> Finding:
    values = [d.label_sharpness for d in fits.datasets if d.label_sharpness]
    kinds = "twice the"
    factor = 2.0
    if values and max(values) < factor * min(values):
        kinds = "10 % higher"
        factor = 1.1
    label_sharpness = Property(
        name="K_F",
        column=LOG_SHARPNESS,
        step=f"Datasets with {kinds} K_F have {{}} times the loss",
        change=float(np.log(factor)),
        effect=LAW_SLOPE,
    )
    notes = []
    if fits.sharpness_scale.note:
        notes.append(fits.sharpness_scale.note)
    return _of_height(fits, fits.answer(SHARPNESS), label_sharpness, notes)


def _fall(fits: ScalingFits) -> Finding | None:
    """Describe in how many datasets the loss fell with N; None without two train sizes."""
    fit = fits.fall()
    if fit.status != "ok":
        return None
    (slope,) = fit.estimates
    smallest, largest = fit.train_sizes
    share = f"{fit.num_falling} of {plural(fit.num_datasets, 'dataset')}"
    if fit.num_falling == fit.num_datasets > 1:
        share = f"all {fit.num_datasets} datasets"
    sentences = [f"The loss fell from N = {smallest:,} to {largest:,} in {share}."]
    if fit.sign_p is not None and fit.num_datasets > 1:
        sentences.append(f"Exact sign test, two-sided: {p_equals(fit.sign_p)}, not adjusted.")
    factor, bounds = multiplied(slope.value, slope.interval, float(np.log(2)))
    doubling = f"Doubling N went with {factor} times the loss"
    if bounds is not None:
        doubling += f" (95 % interval {interval(bounds)})"
    sentences.append(f"{doubling}, where every dataset counts once.")
    counted = f"{fit.num_falling_curves} of {plural(fit.num_curves, 'curve')}"
    details = (
        f"Of single networks, the loss fell in {counted}.",
        f"The mean slope of log loss on log N is {number(slope.value)} "
        f"({interval(slope.interval)}).",
    )
    return Finding(
        question=FALL_QUESTION,
        verdict="described",
        sentences=tuple(sentences),
        details=details,
    )


def _exponent(fits: ScalingFits) -> Finding:
    """Answer whether one exponent describes the fall with N, and whether it is below the bound."""
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
    exponent = f"b is {number(falls.value)} (95 % interval {interval(falls.interval)})."
    times = (
        f"Doubling N multiplies the loss by {factor} (95 % interval {interval(bounds)}) at the "
        f"median d_data, {number(middle)}. The bound allows a factor of {allowed} or less."
    )
    sentences = [f"Undecided {datasets}."]
    if claim:
        claim = f"{claim} {datasets}."
        sentences = [claim]
    sentences += [exponent, *p_sentences(falls), *p_sentences(below), times]
    sentences.append(_weighting(fit.estimates[0]))
    sentences.append(influence(falls, "b"))
    if verdict == "undecided":
        sentences.append(power_sentence(falls))
    details = ["b is the slope of log loss on −log N / d within datasets."]
    if fit.num_at_chance:
        num_clear = fit.num_curves - fit.num_at_chance
        details.append(
            f"It is fitted to {num_clear} of {plural(fit.num_curves, 'curve')}: the others are "
            "near chance level."
        )
    return Finding(
        question=question,
        verdict=verdict,
        sentences=tuple(filter(None, sentences)),
        details=tuple(details),
        notes=(*changes_of_sign(falls, {}), *notes),
        claim=claim,
        size=" ".join([exponent, *p_sentences(falls)]),
    )


def _weighting(exponent: Estimate) -> str:
    """Say how datasets weigh in the exponent, and which one weighs most."""
    text = "Datasets weigh by 1/d², times the spread of log N"
    if not exponent.weights:
        return f"{text}."
    heaviest = max(sorted(exponent.weights), key=exponent.weights.__getitem__)
    return f"{text}: {heaviest} has {percent(exponent.weights[heaviest])} of the weight."


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
    largest = _largest_correlation(answer, best, len(correlations))
    datasets = in_brackets(best.num_datasets)
    domains = {dataset.domain for dataset in fits.datasets}
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
        nothing = "No relation of K_F with what attacks add to the loss was detected"
        opening = f"{nothing} {datasets}."
        if answer.value > 0:
            opening = opening_of_undecided(answer, nothing, datasets)
        sentences = [opening, largest]
        if answer.value <= 0:
            sentences.append("The estimate is a fall, against what the law expects.")
    sentences += [*p_sentences(answer), influence(answer, "r")]
    if not answer.is_decided:
        sentences.append(power_sentence(answer))
    return Finding(
        question=question,
        verdict=answer.verdict,
        sentences=tuple(filter(None, sentences)),
        details=tuple(details),
        notes=changes_of_sign(answer, {}),
        claim=claim,
        size=" ".join([largest, *p_sentences(answer)]),
    )


def _largest_correlation(answer: Answer, best: AttackFit, num_correlations: int) -> str:
    """Return the correlation that answers, with its interval and what it is of."""
    attack = attack_columns([best.response])[0].words
    model = best.model if " " in best.model else f"model {best.model}"
    tested = f"for {attack} on {model}"
    r = number(answer.value)
    bounds = interval(answer.interval)
    if num_correlations == 1:
        return f"The correlation is r = {r} (95 % interval {bounds}), {tested}."
    return (
        f"The largest of {num_correlations} correlations is r = {r}, {tested}. Its 95 % interval, "
        f"for all {num_correlations} at once, is {bounds}."
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
