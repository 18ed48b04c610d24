"""The findings in plain words, written from the answers and never by hand.

A sentence claims something only where the answer's verdict is *supported* or *contradicted*. Else
it says that no effect was detected, which effects are compatible with the data, and what would
detect one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Literal

import numpy as np

from orchestrator.analysis.answers import VERDICTS, Answer, Verdict, is_significant
from orchestrator.analysis.class_pairs import (
    AT_DELTA,
    PAIR_QUESTIONS,
    R_HAT,
    R_HAT_FREE,
    UNITS_ALONE,
    pair_answer,
)
from orchestrator.analysis.experiments.records import Interventions
from orchestrator.analysis.experiments.sentences import followed
from orchestrator.analysis.fits import ScalingFits, doubling_slope
from orchestrator.analysis.grouped_tables.slopes import Slope
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
    with_p_values,
)
from orchestrator.analysis.inference import LEVEL, Interval
from orchestrator.analysis.law_fits.estimates import STRONG, Estimate
from orchestrator.analysis.law_fits.records import HeightFit
from orchestrator.analysis.number_formats import in_hundred, interval, listing, number, percent
from orchestrator.analysis.one_dataset import OneDataset
from orchestrator.analysis.results_tables.points import (
    INVERSE_D,
    IS_MEDICAL,
    LOG_SHARPNESS,
    WORDS,
)
from orchestrator.analysis.to_add import datasets_to_add
from orchestrator.results.columns import attack_columns
from search_spaces.errors import plural

FindingVerdict = Verdict | Literal["described"]
"""A verdict, or ``described``: numbers that are shown and not tested."""
MAX_SUMMARY_LINES = 40
"""Lines that a terminal shows of a sweep; remarks beyond them are counted."""
MAX_WORST = 3
"""Datasets that are named where a bound is broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A question with its verdict and the sentences that answer it.

    Attributes:
        question: The question as a person asks it.
        verdict: What the table says to it.
        sentences: The answer in short: what was found, how sure it is, what would tell more.
        details: Further sentences, on the page alone.
        notes: What a reader has to know beside the answer.
        to_add: What to add to a sweep that cannot answer.
        claim: The statement that is supported, or what contradicts it, for the first screen.
    """

    question: str
    verdict: FindingVerdict
    sentences: tuple[str, ...]
    details: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    to_add: str = ""
    claim: str = ""

    @property
    def line(self) -> str:
        """The answer in short, with what to add if it cannot be tested."""
        sentences = [*self.sentences]
        if self.to_add:
            sentences.append(f"To test it, {self.to_add}.")
        return " ".join(sentences)

    @property
    def answer(self) -> str:
        """The answer in full."""
        return " ".join([*self.sentences, *self.details])


def findings(fits: ScalingFits) -> tuple[Finding, ...]:
    """Return what a table answers.

    Several datasets answer the study's questions; one dataset answers its own, and its class pairs
    others; an experiment says what followed. What class pairs answer stands in place of what cannot
    be tested.
    """
    if fits.one_dataset is not None:
        return tuple(_of_one_dataset(fits, fits.one_dataset))
    if fits.interventions is not None:
        all_findings = [_experiment(fits.interventions)]
    else:
        all_findings = [_dimension(fits), _sharpness(fits), _train_size(fits), _attacks(fits)]
        all_findings.append(_representation(fits))
    of_pairs = [*_of_pairs(fits)]
    if of_pairs:
        all_findings = [finding for finding in all_findings if finding.verdict != "not testable"]
    return (*of_pairs, *all_findings)


def what_was_found(fits: ScalingFits) -> tuple[str, str, str]:
    """Return the first screen: what was done, what was found, and what that means, a sentence
    each.
    """
    done = (
        f"{plural(len(fits.models), 'network')} learned {plural(len(fits.datasets), 'dataset')} in "
        f"{plural(fits.num_used, 'training')}."
    )
    all_findings = findings(fits)
    by_verdict: dict[str, list[Finding]] = {verdict: [] for verdict in (*VERDICTS, "described")}
    for finding in all_findings:
        by_verdict[finding.verdict].append(finding)
    decided = by_verdict["supported"] + by_verdict["contradicted"]
    undecided = by_verdict["undecided"]
    if decided:
        return done, f"Found: {decided[0].claim}", _of_the_rest(decided[1:], undecided)
    if undecided:
        counted = plural(len(undecided), "question")
        verb = "is" if len(undecided) == 1 else "are"
        return (
            done,
            f"No effect was detected: {counted} that could be tested {verb} undecided.",
            "This does not show that there is none; each answer says which effects are compatible "
            "with these data.",
        )
    described = by_verdict["described"]
    if described:
        return done, described[0].sentences[0], "Nothing here is tested; it describes these data."
    return (
        done,
        "No question could be tested.",
        "Each answer says what to add to the sweep to test it.",
    )


def _of_the_rest(decided: Sequence[Finding], undecided: Sequence[Finding]) -> str:
    """Say what else was found, and how many questions stay undecided."""
    if decided:
        return f"Also: {decided[0].claim}"
    if undecided:
        return f"{plural(len(undecided), 'other question')} stayed undecided: no effect detected."
    return "No other question could be tested."


def family(fits: ScalingFits) -> str:
    """Say over how many tests the verdicts are adjusted, and that the rest is exploratory."""
    if fits.interventions:
        return (
            "Its worlds share images: no claim is made of what holds between them; see "
            "docs/fits.md."
        )
    if fits.class_pairs:
        tests = sum(slope.adjusted_p is not None for slope in fits.class_pairs)
        return (
            f"Intervals over class pairs are by a jackknife over classes, p-values by Holm over "
            f"{plural(tests, 'slope')}. R̂ is the distance to another decision, δ the mean distance "
            "to the nearest unlike image; see docs/fits.md."
        )
    tests = num_tests(fits.answers)
    if not tests:
        return "No headline question could be tested; everything here is exploratory."
    return (
        f"The verdicts rest on {plural(tests, 'test')}, adjusted together (Holm): the chance of "
        f"any false claim is at most {percent(LEVEL)}. Everything else here is exploratory."
    )


def adjusted_p_values(fits: ScalingFits) -> tuple[Answer, ...]:
    """Return the answers with their adjusted p-values: the one table that shows these."""
    if fits.interventions:
        return ()
    if fits.class_pairs:
        return tuple(with_p_values(map(pair_answer, fits.class_pairs)))
    return tuple(with_p_values(fits.answers))


def summary(
    fits: ScalingFits, *, width: int = 80, most_lines: int = MAX_SUMMARY_LINES
) -> list[str]:
    """Return what a terminal shows.

    Args:
        fits: The fits.
        width: Characters of a line.
        most_lines: Lines; remarks beyond them are counted, an answer is never cut.
    """
    exclusions = [f"Left out: {exclusion}." for exclusion in fits.excluded]
    lines = wrap(" ".join(what_was_found(fits)), width)
    for finding in findings(fits):
        lines += wrap(f"{finding.verdict.upper()}: {finding.question}", width)
        lines += wrap(finding.line, width, initial_indent="  ", subsequent_indent="  ")
    answers = adjusted_p_values(fits)
    text = family(fits)
    if answers and not fits.class_pairs:
        named = "; ".join(f"{SHORT_NAMES[a.question.key]} {_p(a)}" for a in answers)
        text = f"Adjusted p: {named}. {text}"
    lines += wrap(text, width)
    remarks = [*fits.caveats, *exclusions]
    for k, remark in enumerate(remarks):
        wrapped = wrap(f"- {remark}", width, subsequent_indent="  ")
        is_last = k + 1 == len(remarks)
        if len(lines) + len(wrapped) > most_lines - (not is_last):
            return [*lines, f"- {plural(len(remarks) - k, 'remark')} more, in the report."]
        lines += wrapped
    return lines


SHORT_NAMES = {
    DIMENSION.key: "d_data",
    SHARPNESS.key: "K_F",
    EXPONENT.key: "fall with N",
    BELOW_BOUND.key: "slower than the bound",
    ATTACKS.key: "attacks",
}
"""Question -> its name in the line of p-values."""


def _p(answer: Answer) -> str:
    """Return the adjusted p-value to two figures."""
    adjusted_p = answer.adjusted_p
    if adjusted_p is None:
        return "–"
    return "< 0.001" if adjusted_p < 1e-3 else f"{adjusted_p:.2g}"


# Parts of sentences


def _datasets(count: int) -> str:
    return f"({plural(count, 'dataset')})"


def _multiplied(value: float, bounds: Interval | None, by: float) -> tuple[str, Interval | None]:
    """Return by what a loss is multiplied, and the interval of that.

    Args:
        value: Slope of the log loss.
        bounds: Its interval.
        by: By how much the term moves.
    """
    factor = number(float(np.exp(value * by)))
    if bounds is None:
        return factor, None
    with np.errstate(over="ignore"):
        low, high = sorted(float(np.exp(bound * by)) for bound in bounds)
    return factor, (low, high)


def _not_testable(
    question: str, reason: str, to_add: str = "", notes: Sequence[str] = ()
) -> Finding:
    sentence = f"This cannot be tested: {reason}."
    return Finding(
        question=question,
        verdict="not testable",
        sentences=(sentence,),
        notes=tuple(notes),
        to_add=to_add,
    )


def _influence(answer: Answer, name_of_value: str, weights: dict[str, float]) -> tuple[str, ...]:
    """Name the most influential dataset, the value without it, and where the sign changes."""
    name = answer.most_influential
    if name is None or answer.value is None:
        return ()
    weight = weights.get(name)
    carries = "" if weight is None else f" It carries {percent(weight)} of the weight."
    text = (
        f"The most influential dataset is {name}: without it, {name_of_value} is "
        f"{number(answer.left_out[name])} instead of {number(answer.value)}.{carries}"
    )
    opposite = [
        dataset for dataset, value in sorted(answer.left_out.items()) if value * answer.value < 0
    ]
    if opposite:
        text += f" The sign changes without {' or without '.join(opposite)}."
    return (text,)


def _why_not_significant(answer: Answer, tests: int) -> str:
    """Return why an interval that leaves out the null value decides nothing; else empty."""
    if answer.verdict != "undecided":
        return ""
    if not is_significant(0.0, answer.interval, answer.question.null):
        return ""
    if answer.p_value is not None and answer.p_value > LEVEL:
        return "the test by resampling does not confirm the interval"
    return f"with {tests} tests at once, chance alone gives such a result too often"


# Questions about several datasets


def _of_height(
    fits: ScalingFits,
    answer: Answer,
    name: str,
    *,
    of: str,
    step: str,
    by: float,
    effect: float | None,
    effect_words: str,
    notes: Sequence[str],
) -> Finding:
    """Answer a question about the height of losses.

    Args:
        fits: The fits.
        answer: The answer.
        name: Column of the term.
        of: The property, in words.
        step: What is done to the property.
        by: By how much that moves the term.
        effect: Slope whose detection is told.
        effect_words: That effect, in words.
        notes: Further remarks.
    """
    question = answer.question.text
    fit = fits.headline()
    if answer.verdict == "not testable" or answer.value is None:
        to_add = datasets_to_add(fits, fit, "d_data, K_F and losses", answer.reason)
        return _not_testable(question, answer.reason, to_add, notes)
    tests = num_tests(fits.answers)
    factor, bounds = _multiplied(answer.value, answer.interval, by)
    datasets = _datasets(fit.num_datasets)
    term = WORDS[name]
    slope = f"slope on {term}"
    falling = ", which falls as d_data rises," if name == INVERSE_D else ""
    held_equal = listing(
        [WORDS[term_name].removeprefix("log ") for term_name in fit.terms if term_name != name]
    )
    details = [
        f"Compared at equal model and N{f', given {held_equal}' if held_equal else ''}.",
        f"The {slope}{falling} is {number(answer.value)} ({interval(answer.interval)}).",
    ]
    claim = ""
    if answer.is_decided:
        rises = answer.value * by > 0
        claim = f"The loss {'rises' if rises else 'falls'} with {of} {datasets}."
        sentences = [
            claim,
            f"{step} multiplies it by {factor} (95 % interval {interval(bounds)}).",
        ]
    else:
        why_not = _why_not_significant(answer, tests)
        if why_not:
            sentences = [
                f"No effect of {of} on the loss was established {datasets}: {why_not}.",
                f"{step} multiplies it by {factor} (95 % interval {interval(bounds)}).",
            ]
        else:
            sentences = [
                f"No effect of {of} on the loss was detected {datasets}.",
                f"{step} may multiply it by {interval(bounds)}: these effects are compatible with "
                "the data.",
            ]
            details.insert(0, f"The estimate is a factor of {factor}.")
        sentences.append(_what_would_detect(fit, name, effect, effect_words, tests))
        if answer.power is not None:
            details.append(
                f"These {fit.num_datasets} datasets would detect {effect_words} in at most "
                f"{in_hundred(answer.power)} such studies."
            )
    return Finding(
        question=question,
        verdict=answer.verdict,
        sentences=tuple(filter(None, sentences)),
        details=tuple(details),
        notes=(*_influence(answer, f"the {slope}", {}), *notes),
        claim=claim,
    )


def _what_would_detect(
    fit: HeightFit, name: str, effect: float | None, effect_words: str, tests: int
) -> str:
    """Say how many datasets would detect an effect."""
    if effect is None:
        return ""
    needed = needed_for_doubling(fit, name, effect, tests)
    if needed is None:
        return f"No practical number of such datasets would detect {effect_words}."
    return f"To detect {effect_words} in 8 of 10 such studies you need about {needed:,} datasets."


def _dimension(fits: ScalingFits) -> Finding:
    low, high = fits.d_data_range
    notes = []
    gap = fits.height(IS_MEDICAL)
    if gap.status == "ok":
        notes.append(_domain_gap(gap.estimates[0]))
    return _of_height(
        fits,
        fits.answer(DIMENSION),
        INVERSE_D,
        of="d_data",
        step=f"Going from the lowest to the highest d_data here ({number(low)} to {number(high)})",
        by=1 / high - 1 / low,
        effect=doubling_slope(fits.datasets),
        effect_words="a doubling of the loss",
        notes=notes,
    )


def _domain_gap(offset: Estimate) -> str:
    """Say how losses of medical datasets compare with those of natural ones."""
    factor, bounds = _multiplied(offset.value, offset.interval, 1.0)
    return (
        f"Medical datasets have {factor} times the loss of natural ones (95 % interval "
        f"{interval(bounds)}). This is exploratory: the domains differ in more than d_data and K_F."
    )


def _sharpness(fits: ScalingFits) -> Finding:
    notes = [fits.sharpness_scale.note] if fits.sharpness_scale.note else []
    return _of_height(
        fits,
        fits.answer(SHARPNESS),
        LOG_SHARPNESS,
        of="K_F",
        step="Doubling K_F",
        by=float(np.log(2)),
        effect=LAW_SLOPE,
        effect_words="the law's doubling",
        notes=notes,
    )


def _train_size(fits: ScalingFits) -> Finding:
    """Answer whether the loss falls with N, and whether too slowly, by two tests."""
    question = EXPONENT.text
    notes = ["The law is an upper bound: only a fall slower than it allows contradicts it."]
    fit = fits.exponent()
    falls = fits.answer(EXPONENT)
    below = fits.answer(BELOW_BOUND)
    if fit.status != "ok" or falls.value is None:
        to_add = datasets_to_add(fits, fit, "two train sizes and losses clear of chance level")
        return _not_testable(question, falls.reason, to_add, notes)
    d_values = [
        d.d_data for d in fits.datasets if d.dataset in fit.by_dataset and d.d_data is not None
    ]
    middle = float(np.median(d_values)) if d_values else 1.0
    factor, bounds = _multiplied(falls.value, falls.interval, -np.log(2) / middle)
    allowed = number(float(2 ** (-1 / middle)))
    datasets = _datasets(fit.num_datasets)
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
        why_not = _why_not_significant(falls, num_tests(fits.answers))
        if why_not:
            sentences = [f"No fall with N was established {datasets}: {why_not}.", times]
        else:
            sentences = [
                f"No fall of the loss with N was detected, nor that it is too slow {datasets}.",
                f"At the median d_data, {number(middle)}, doubling N may multiply it by "
                f"{interval(bounds)}: these effects are compatible with the data.",
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
        notes=(*_influence(falls, "the slope", weights), *notes),
        claim=claim if verdict != "undecided" else "",
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
        return _not_testable(question, answer.reason, "put attacks into the sweep file")
    if answer.verdict == "not testable" or answer.value is None:
        to_add = datasets_to_add(fits, best, "K_F and attacks at equal N", answer.reason)
        return _not_testable(question, answer.reason, to_add)
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
    datasets = _datasets(best.num_datasets)
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
        why_not = _why_not_significant(answer, num_tests(fits.answers))
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
        notes=_influence(answer, "r", {}),
        claim=claim,
    )


def _representation(fits: ScalingFits) -> Finding:
    """Describe how often d_repr is at most d_data."""
    question = "Does a network compress its data below their intrinsic dimension?"
    fit = fits.representation()
    if fit.status != "ok":
        return _not_testable(question, fit.reason, "measure both on one set of training images")
    (share,) = fit.estimates
    held = f"At {fit.num_held} of {plural(fit.num_points, 'point')} d_repr is at most d_data."
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
        sentences=(held,),
        details=tuple(details),
        notes=tuple(notes),
    )


# One dataset


def _of_one_dataset(fits: ScalingFits, single: OneDataset) -> Iterator[Finding]:
    """Yield what one dataset answers, and in one line what would need more of them."""
    if single.best:
        line = single.best_line
        yield Finding(
            question=f"Which network is best on {single.dataset}?",
            verdict="described",
            sentences=(f"{line[:1].upper()}{line[1:].rstrip('.')}.",),
            notes=tuple(filter(None, [single.test_set_line, single.why_no_curves])),
        )
    for curve in single.curves:
        measured, *expected = (line.strip() for line in curve.lines())
        yield Finding(
            question=f"What would more images bring {curve.name}?",
            verdict="described",
            sentences=(" ".join(expected),),
            details=(measured,),
        )
    (dataset,) = fits.datasets
    if dataset.loss_gain is not None:
        gain = (
            f"The strongest attack up to 8/255 ({dataset.attack}) raises the loss by "
            f"{number(dataset.loss_gain)} nat at the largest N."
        )
        yield Finding(
            question="How easily are the networks fooled?", verdict="described", sentences=(gain,)
        )
    representation = _representation(fits)
    if representation.verdict == "described":
        yield representation
    yield _not_testable(
        "What do d_data and K_F decide?",
        "the study's questions compare datasets, and here is one",
        "add datasets: isweep power says how many they need",
    )


# Class pairs


def _of_pairs(fits: ScalingFits) -> Iterator[Finding]:
    """Yield what class pairs answer: a finding per question, and one of all slopes at equal δ."""
    d_data = next((d.d_data for d in fits.datasets if d.d_data and d.loss), None)
    slopes = {slope.on: slope for slope in fits.class_pairs}
    for slope in fits.class_pairs:
        if PAIR_QUESTIONS[slope.on].question.text:
            in_pixels = slopes.get(R_HAT) if slope.on == R_HAT_FREE else None
            yield _of_pair_slope(slope, d_data, in_pixels)
    at_delta = [slope for slope in fits.class_pairs if slope.on in AT_DELTA]
    if at_delta:
        yield _at_equal_delta(at_delta)


def _of_pair_slope(slope: Slope, d_data: float | None, in_pixels: Slope | None) -> Finding:
    """Answer one question to class pairs.

    Args:
        slope: The slope that answers.
        d_data: d_data of the dataset, which turns an exponent into a factor.
        in_pixels: The same slope in pixel units, which is shown beside it and claims nothing.
    """
    pair_question = PAIR_QUESTIONS[slope.on]
    answer = pair_answer(slope)
    notes = []
    if in_pixels is not None and in_pixels.value is not None:
        in_pixel_units = f"{number(in_pixels.value)} (95 % interval {interval(in_pixels.interval)})"
        notes.append(f"In pixel units the {in_pixels.on} is {in_pixel_units}, but {UNITS_ALONE}.")
    if answer.value is None or answer.verdict == "not testable":
        return _not_testable(pair_question.question.text, slope.reason, notes=notes)
    estimand = answer.question.estimand
    named = f"{estimand[:1].upper()}{estimand[1:]}"
    sentences = [
        f"{named} is {number(slope.value)} (95 % interval {interval(slope.interval)}; "
        f"{slope.num_groups} classes)."
    ]
    claim = ""
    if answer.is_decided:
        claim = pair_question.question.claim
        if answer.verdict == "contradicted":
            claim = f"The reverse holds of: {claim}"
        factor = _factor_of_pairs(slope, d_data)
        if factor:
            sentences.append(factor)
    else:
        sentences = [f"No effect was detected over {slope.num_groups} classes.", *sentences]
        if slope.detectable is not None:
            sentences.append(
                f"About 80 of 100 such studies would detect {number(slope.detectable)}."
            )
    if slope.most_influential is not None and slope.value is not None:
        group, without = slope.most_influential
        if number(without) != number(slope.value):
            sentences.append(f"Without class {group} it is {number(without)}.")
    return Finding(
        question=pair_question.question.text,
        verdict=answer.verdict,
        sentences=tuple(sentences),
        notes=tuple(notes),
        claim=claim,
    )


def _factor_of_pairs(slope: Slope, d_data: float | None) -> str:
    """Say what a slope over class pairs means for a factor of two; empty where it means none."""
    pair_question = PAIR_QUESTIONS[slope.on]
    if not pair_question.factor or slope.value is None or slope.interval is None:
        return ""
    meaning: Callable[[float], float] = np.exp2
    if pair_question.response == "fall":
        if d_data is None:
            return ""
        meaning = _factor_of_fall(d_data)
    elif pair_question.response == "drop":
        meaning = _added_per_doubling
    low, high = sorted(float(meaning(bound)) for bound in slope.interval)
    value = float(meaning(slope.value))
    return pair_question.factor.format(f"{number(value)} ({interval((low, high))})")


def _factor_of_fall(d_data: float) -> Callable[[float], float]:
    """Return what an exponent times d makes of the loss when N doubles."""

    def factor(exponent: float) -> float:
        return float(2 ** (-exponent / d_data))

    return factor


def _added_per_doubling(slope: float) -> float:
    """Return what a slope on a logarithm adds when its argument doubles."""
    return float(slope * np.log(2))


def _at_equal_delta(slopes: Sequence[Slope]) -> Finding:
    """Say what still goes with K_F between pairs of equal mean distance δ."""
    question = "What still goes with K_F at equal mean distance between classes?"
    estimated = [slope for slope in slopes if slope.value is not None]
    if not estimated:
        return _not_testable(question, slopes[0].reason)
    parts = [
        f"{AT_DELTA[slope.on]} {number(slope.value)} ({interval(slope.interval)})"
        for slope in estimated
    ]
    sentences = [f"Slopes on log K_F at equal 1/d and δ: {'; '.join(parts)}."]
    decided = [slope for slope in estimated if pair_answer(slope).is_decided]
    claims = []
    for slope in decided:
        direction = "rises" if (slope.value or 0.0) > 0 else "falls"
        claims.append(f"At equal δ, {AT_DELTA[slope.on]} {direction} with K_F.")
    if not decided:
        sentences.insert(0, "No effect was detected at equal mean distance.")
        sentences.append("Effects within these intervals are compatible with the data.")
    return Finding(
        question=question,
        verdict=_joint_verdict(decided),
        sentences=(*claims, *sentences),
        claim=" ".join(claims),
    )


def _joint_verdict(decided: Sequence[Slope]) -> Verdict:
    """Return one verdict of several slopes: contradicted if any of them is."""
    verdicts = {pair_answer(slope).verdict for slope in decided}
    if "contradicted" in verdicts:
        return "contradicted"
    if "supported" in verdicts:
        return "supported"
    return "undecided"


# Experiments


def _experiment(interventions: Interventions) -> Finding:
    """Describe what followed when one property was moved."""
    effects = interventions.effects
    notes = [
        "Worlds are the replicates: intervals hold for these kinds of images and networks. Where "
        "worlds share classes, the wider of two intervals is given.",
        "Arms with exchanged labels also raise the loss that no network can go below.",
    ]
    overall = [effect for effect in effects if not effect.arm]
    num_at_chance = sum(effect.num_at_chance for effect in overall if effect.response == "loss")
    if num_at_chance:
        notes.append(
            f"Left out: {plural(num_at_chance, 'pair')} whose base has the chance loss or more."
        )
    num_without = sum(effect.num_without for effect in overall if effect.response == "error")
    if num_without:
        notes.append(f"{num_without} pairs have an error of 0 on one side, without a logarithm.")
    moved = "in training and test images"
    if any(effect.tested_on for effect in effects):
        moved = "in training images alone"
    return Finding(
        question=f"When one property is moved, {moved}, what follows?",
        verdict="described",
        sentences=(followed(effects),),
        details=(interventions.answer,),
        notes=tuple(notes),
    )
