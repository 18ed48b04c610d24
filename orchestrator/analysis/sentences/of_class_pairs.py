"""Sentences on what the class pairs of one dataset answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from orchestrator.analysis.answers import Verdict
from orchestrator.analysis.class_pairs import (
    AT_DELTA,
    PAIR_QUESTIONS,
    R_HAT,
    R_HAT_FREE,
    UNITS_ALONE,
    pair_answer,
)
from orchestrator.analysis.fits import ScalingFits
from orchestrator.analysis.grouped_tables.slopes import Slope
from orchestrator.analysis.inference import Interval
from orchestrator.analysis.number_formats import interval, number
from orchestrator.analysis.sentences.finding import (
    ASKED_AFTER_SEEING,
    Finding,
    influence,
    multiplied,
    not_testable,
    opening_of_undecided,
    p_sentences,
    power_sentence,
)
from orchestrator.results.columns import attack_columns

TOGETHER = 0.7
"""Size of a correlation from which on half of the variance of two columns is common."""
STEP = 1.1
"""Factor between two pairs in a sentence: within the range of any data from which a slope comes."""


def of_class_pairs(fits: ScalingFits) -> Iterator[Finding]:
    """Yield what class pairs answer: a finding per question, and one of all slopes at equal δ."""
    d_data = None
    for dataset in fits.datasets:
        if dataset.d_data and dataset.loss:
            d_data = dataset.d_data
    attack = attack_in_words(fits)
    slopes = {slope.on: slope for slope in fits.class_pairs}
    untested = []
    for slope in fits.class_pairs:
        in_pixels = None
        if slope.on == R_HAT_FREE:
            in_pixels = slopes.get(R_HAT)
        if PAIR_QUESTIONS[slope.on].question.text:
            finding = _of_pair_slope(slope, d_data, in_pixels, attack)
            is_late = PAIR_QUESTIONS[slope.on].question.key in fits.asked_after_seeing
            if is_late and finding.verdict != "not testable":
                finding = finding.with_sentence(ASKED_AFTER_SEEING)
            if finding.verdict == "not testable":
                untested.append(finding)
            else:
                yield finding
    at_delta = [slope for slope in fits.class_pairs if slope.on in AT_DELTA]
    if at_delta:
        yield _at_equal_delta(at_delta, fits.sharpness_with_delta)
    yield from untested


def attack_in_words(fits: ScalingFits) -> str:
    """Return the attack whose mean accuracy drop is explained, or how many there are."""
    columns = attack_columns(dict.fromkeys(fit.response for fit in fits.attacks))
    if len(columns) == 1:
        return columns[0].words
    return f"attacks (mean of {len(columns)})"


def _of_pair_slope(
    slope: Slope, d_data: float | None, in_pixels: Slope | None, attack: str
) -> Finding:
    """Answer one question to class pairs.

    Args:
        slope: The slope that answers.
        d_data: d_data of the dataset, which turns an exponent into a factor.
        in_pixels: The same slope in pixel units, which is shown beside it and claims nothing.
        attack: The attack to which accuracy is lost, in words.
    """
    pair_question = PAIR_QUESTIONS[slope.on]
    answer = pair_answer(slope)
    notes = []
    if in_pixels is not None and in_pixels.value is not None:
        in_pixel_units = f"{number(in_pixels.value)} (95 % interval {interval(in_pixels.interval)})"
        notes.append(f"In pixel units the {in_pixels.on} is {in_pixel_units}, but {UNITS_ALONE}.")
    if answer.value is None or answer.verdict == "not testable":
        return not_testable(pair_question.question.text, slope.reason, notes=notes)
    estimand = answer.question.estimand
    named = f"{estimand[:1].upper()}{estimand[1:]}"
    estimate = f"{named} is {number(slope.value)} (95 % interval {interval(slope.interval)})."
    classes = f"({slope.num_groups} classes)"
    factor = _factor_of_pairs(slope, d_data, attack)
    claim = ""
    if answer.is_decided:
        claim = f"{answer.statement} {classes}."
        sentences = [claim, factor, estimate]
    else:
        opening = opening_of_undecided(answer, "No relation was detected", classes)
        sentences = [opening, factor, estimate]
    sentences += [*p_sentences(answer), influence(answer, "it", "class")]
    if not answer.is_decided:
        sentences.append(power_sentence(answer))
    return Finding(
        question=pair_question.question.text,
        verdict=answer.verdict,
        sentences=tuple(filter(None, sentences)),
        notes=tuple(notes),
        claim=claim,
        size=" ".join([factor or estimate, *p_sentences(answer)]),
    )


def _factor_of_pairs(slope: Slope, d_data: float | None, attack: str) -> str:
    """Say what a slope means for a doubling of N, or for 10 % of K_F or δ; empty if nothing."""
    pair_question = PAIR_QUESTIONS[slope.on]
    if not pair_question.factor or slope.value is None or slope.interval is None:
        return ""
    if pair_question.response == "drop":
        return pair_question.factor.format(_accuracy_lost(slope.value, slope.interval, attack))
    change = float(np.log(STEP))
    if pair_question.response == "fall":
        if d_data is None:
            return ""
        change = -np.log(2) / d_data
    factor, bounds = multiplied(slope.value, slope.interval, change)
    return pair_question.factor.format(f"{factor} ({interval(bounds)})")


def _accuracy_lost(value: float, bounds: Interval, attack: str) -> str:
    """Return how much more or less accuracy is lost for a step of 10 %, in percentage points."""
    points = 100 * float(np.log(STEP)) * np.array([value, *bounds])
    comparative = "more"
    if value < 0:
        points = -points
        comparative = "less"
    size, *ends = (number(float(end), 2) for end in (points[0], *sorted(points[1:])))
    return (
        f"{size} percentage points {comparative} accuracy to {attack} (95 % interval "
        f"{' to '.join(ends)})"
    )


def _at_equal_delta(slopes: Sequence[Slope], sharpness_with_delta: float | None) -> Finding:
    """Say what still goes with K_F between pairs of equal mean distance δ.

    Args:
        slopes: Slopes on log K_F at equal δ.
        sharpness_with_delta: r of log K_F with log δ over pairs, if it is known.
    """
    question = "Between pairs equally far apart (equal δ), does K_F still matter?"
    estimated = [slope for slope in slopes if slope.value is not None]
    if not estimated:
        return not_testable(question, slopes[0].reason)
    sentences = []
    for slope in estimated:
        sentences.append(
            f"The slope of {AT_DELTA[slope.on]} on log K_F at equal 1/d and δ is "
            f"{number(slope.value)} (95 % interval {interval(slope.interval)})."
        )
        answer = pair_answer(slope)
        sentences += p_sentences(answer)
        if not answer.is_decided:
            sentences.append(power_sentence(answer))
    decided = [slope for slope in estimated if pair_answer(slope).is_decided]
    claims = []
    for slope in decided:
        direction = "rises" if (slope.value or 0.0) > 0 else "falls"
        claims.append(f"At equal δ, {AT_DELTA[slope.on]} {direction} with K_F.")
    if not decided:
        sentences.insert(0, "No relation was detected at equal δ.")
        if sharpness_with_delta is not None and abs(sharpness_with_delta) >= TOGETHER:
            sentences.append(
                "K_F and δ go together over these pairs (r = "
                f"{number(sharpness_with_delta)} of their logarithms), so they can hardly be told "
                "apart."
            )
    return Finding(
        question=question,
        verdict=_joint_verdict(decided),
        sentences=tuple(filter(None, [*claims, *sentences])),
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
