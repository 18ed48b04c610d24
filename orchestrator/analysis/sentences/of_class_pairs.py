"""Sentences on the answers to questions about the class pairs of one dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from orchestrator.analysis.answers import Answer, Verdict
from orchestrator.analysis.class_pairs import (
    AT_DELTA,
    DROP_ON_DELTA,
    EXPONENT_BEYOND,
    LOSS,
    PAIR_QUESTIONS,
    R_HAT,
    R_HAT_FREE,
    UNITS_ALONE,
)
from orchestrator.analysis.fits import ScalingFits
from orchestrator.analysis.grouped_tables.slopes import Slope
from orchestrator.analysis.inference import Interval
from orchestrator.analysis.limits import of_points_without_error
from orchestrator.analysis.number_formats import interval, number, p_value
from orchestrator.analysis.sentences.finding import (
    ASKED_AFTER_SEEING,
    DELTA_MEANS,
    LABEL_SHARPNESS_MEANS,
    NO_RELATION,
    Finding,
    details_of_test,
    multiplied,
    not_testable,
    short_answer,
    undecidable,
)
from orchestrator.results.columns import attack_columns

TOGETHER = 0.7
"""Smallest absolute correlation of columns that share half of their variance."""
SAME_EFFECT = "K_F and δ are correlated here, so one cause can explain these answers."
"""Sentence that follows a claim on δ if log K_F and log δ are correlated."""
STEP = 1.1
"""Factor by which a sentence lets the K_F or δ of two pairs differ. If a slope can be
estimated, K_F and δ vary by at least this factor."""


def all_are_late(fits: ScalingFits) -> bool:
    """Return whether every tested question about class pairs was chosen after results were known.

    If so, one sentence below all answers states this, instead of a sentence in each answer.
    """
    tested = [slope for slope in fits.class_pairs if slope.adjusted_p is not None]
    return bool(tested) and all(fits.pair_answer(slope).is_late for slope in tested)


def of_class_pairs(fits: ScalingFits) -> Iterator[Finding]:
    """Yield a finding for each question about class pairs, and one for all slopes at equal δ."""
    d_data = None
    for dataset in fits.datasets:
        if dataset.d_data and dataset.loss:
            d_data = dataset.d_data
    attack = attack_in_words(fits)
    slopes = {slope.on: slope for slope in fits.class_pairs}
    untested: list[Finding] = []
    for slope in fits.class_pairs:
        in_pixels = None
        if slope.on == R_HAT_FREE:
            in_pixels = slopes.get(R_HAT)
        answer = fits.pair_answer(slope)
        if answer.question.text:
            finding = _of_pair_slope(slope, answer, d_data, in_pixels, attack)
            if slope.on == LOSS:
                finding = finding.with_sentence(LABEL_SHARPNESS_MEANS)
                if 2 * fits.num_without_error > fits.num_points:
                    without = of_points_without_error(fits.num_without_error, fits.num_points)
                    finding = finding.with_sentence(without)
            if slope.on == DROP_ON_DELTA:
                finding = finding.with_sentence(DELTA_MEANS)
                if finding.claim and _are_together(fits):
                    finding = finding.with_sentence(SAME_EFFECT)
            if answer.is_late and finding.verdict != "not testable" and not all_are_late(fits):
                finding = finding.with_sentence(ASKED_AFTER_SEEING)
            if finding.verdict == "not testable":
                if slope.on == EXPONENT_BEYOND and untested:
                    continue  # The reason why there is no exponent is already an answer.
                untested.append(finding)
            else:
                yield finding
    at_delta = [slope for slope in fits.class_pairs if slope.on in AT_DELTA]
    if at_delta:
        yield _at_equal_delta(fits, at_delta)
    yield from untested


def _are_together(fits: ScalingFits) -> bool:
    """Return whether log K_F and log δ share about half of their variance over pairs, or more."""
    correlation = fits.sharpness_with_delta
    return correlation is not None and abs(correlation) >= TOGETHER


def attack_in_words(fits: ScalingFits) -> str:
    """Return the attack in words, or the number of attacks if there are several.

    The names come from the columns of losses under attack. If a table has no such columns, the
    text is only "attacks".
    """
    columns = attack_columns(dict.fromkeys(fit.response for fit in fits.attacks))
    if not columns:
        return "attacks"
    if len(columns) == 1:
        return columns[0].words
    return f"attacks (mean of {len(columns)})"


def _of_pair_slope(
    slope: Slope, answer: Answer, d_data: float | None, in_pixels: Slope | None, attack: str
) -> Finding:
    """Return the finding on one question about class pairs.

    Args:
        slope: The slope that answers the question.
        answer: The answer that follows from this slope.
        d_data: d_data of the dataset, from which the effect of doubling N is computed.
        in_pixels: The same slope in pixel units. It is printed without a test.
        attack: Words for the attack that lowers accuracy.
    """
    pair_question = PAIR_QUESTIONS[slope.on]
    notes = []
    if in_pixels is not None and in_pixels.value is not None:
        notes.append(
            f"In pixel units the {in_pixels.on} is {number(in_pixels.value)} (95 % interval "
            f"{interval(in_pixels.interval)}), but {UNITS_ALONE}."
        )
    if answer.value is None or answer.verdict == "not testable":
        return not_testable(pair_question.question.text, slope.reason, notes=notes)
    estimate = f"the {answer.question.estimand} is {number(slope.value)}"
    over_pairs = f"Over pairs of {slope.num_groups} classes, {estimate}"
    step = _step_between_pairs(slope, d_data, attack)
    size, bounds = over_pairs, interval(slope.interval)
    details = []
    if step is not None:
        size, bounds = step
        details.append(f"{over_pairs} (95 % interval {interval(slope.interval)}).")
    claim = f"{answer.statement}." if answer.is_decided else ""
    return Finding(
        question=pair_question.question.text,
        verdict=answer.verdict,
        sentences=short_answer(
            answer, size, bounds, name_of_value="the slope", replicate="class", claim=claim
        ),
        details=(*details, *details_of_test(answer, "the slope", "class")),
        notes=tuple(notes),
        claim=claim,
    )


def _step_between_pairs(slope: Slope, d_data: float | None, attack: str) -> tuple[str, str] | None:
    """Return the effect of doubling N, or of 10 % more K_F or δ, and its interval, both as text.

    Returns None if the question defines no such effect, or if the slope has no value or no
    interval.
    """
    pair_question = PAIR_QUESTIONS[slope.on]
    if not pair_question.factor or slope.value is None or slope.interval is None:
        return None
    if pair_question.response == "drop":
        size, bounds_text = _accuracy_lost(slope.value, slope.interval, attack)
        return pair_question.factor.format(size), bounds_text
    # The columns are natural logarithms, so a step of 10 % is a change of ln 1.1.
    change = float(np.log(STEP))
    if pair_question.response == "fall":
        if d_data is None:
            return None
        change = -np.log(2) / d_data
    factor, bounds = multiplied(slope.value, slope.interval, change)
    return pair_question.factor.format(factor), interval(bounds, null=1.0)


def _accuracy_lost(value: float, bounds: Interval, attack: str) -> tuple[str, str]:
    """Return the percentage points of accuracy lost for 10 % more K_F or δ, with the interval."""
    points = 100 * float(np.log(STEP)) * np.array([value, *bounds])
    comparative = "more"
    if value < 0:
        points = -points
        comparative = "less"
    size, *ends = (number(float(end), 2) for end in (points[0], *sorted(points[1:])))
    return f"{size} percentage points {comparative} accuracy to {attack}", " to ".join(ends)


def _at_equal_delta(fits: ScalingFits, slopes: Sequence[Slope]) -> Finding:
    """Return the finding on whether K_F matters between pairs with equal δ.

    Args:
        fits: All fits.
        slopes: Slopes on log K_F at equal δ.
    """
    question = "Between pairs equally far apart (equal δ), does K_F still matter?"
    estimated = [slope for slope in slopes if slope.value is not None]
    if not estimated:
        return not_testable(question, slopes[0].reason)
    answers = {slope.on: fits.pair_answer(slope) for slope in estimated}
    sharpness_with_delta = fits.sharpness_with_delta
    claims = []
    slopes_in_words: list[str] = []
    details = ["The slopes are compared at equal 1/d and δ."]
    for name, answer in answers.items():
        response = AT_DELTA[name]
        if answer.is_decided:
            direction = "rises" if (answer.value or 0.0) > 0 else "falls"
            claims.append(f"At equal δ, {response} {direction} with K_F.")
        # All these slopes have the regressor log K_F, so only the first sentence names it.
        regressor = "" if slopes_in_words else " on log K_F"
        slopes_in_words.append(
            f"The slope of {response}{regressor} is {number(answer.value)} (95 % interval "
            f"{interval(answer.interval)})."
        )
        of_test = [undecidable(answer), *details_of_test(answer, "the slope", "class")]
        of_response = " ".join(filter(None, of_test))
        if of_response:
            details.append(f"For {response}, {of_response[:1].lower()}{of_response[1:]}")
    sentences = slopes_in_words
    if not claims:
        sentences = [NO_RELATION, *slopes_in_words]
        if _are_together(fits):
            sentences.append(
                f"The correlation of log K_F with log δ is {number(sharpness_with_delta)}. "
                "Their effects can hardly be separated."
            )
    adjusted_ps = [one.adjusted_p for one in answers.values() if one.adjusted_p is not None]
    if adjusted_ps:
        smallest = min(adjusted_ps)
        sentences.append(f"The smallest adjusted p of these slopes is {p_value(smallest)}.")
    if any(answer.is_late for answer in answers.values()) and not all_are_late(fits):
        sentences.append(ASKED_AFTER_SEEING)
    return Finding(
        question=question,
        verdict=_joint_verdict([*answers.values()]),
        sentences=(*claims, *sentences),
        details=tuple(details),
        claim=" ".join(claims),
    )


def _joint_verdict(answers: Sequence[Answer]) -> Verdict:
    """Return one verdict on several slopes.

    If any of the questions was asked after somebody had seen the data, a detected effect is
    only suggested. Otherwise, the joint verdict is contradicted if any slope contradicts its
    claim.
    """
    verdicts = {answer.verdict for answer in answers}
    if any(answer.is_late for answer in answers) and any(one.is_decided for one in answers):
        return "suggested"
    if "contradicted" in verdicts:
        return "contradicted"
    if "supported" in verdicts:
        return "supported"
    return "undecided"
