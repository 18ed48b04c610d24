"""Sentences on what the class pairs of one dataset answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

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
from orchestrator.analysis.number_formats import interval, number
from orchestrator.analysis.sentences.finding import (
    Finding,
    not_testable,
)


def of_class_pairs(fits: ScalingFits) -> Iterator[Finding]:
    """Yield what class pairs answer: a finding per question, and one of all slopes at equal δ."""
    d_data = None
    for dataset in fits.datasets:
        if dataset.d_data and dataset.loss:
            d_data = dataset.d_data
    slopes = {slope.on: slope for slope in fits.class_pairs}
    for slope in fits.class_pairs:
        in_pixels = None
        if slope.on == R_HAT_FREE:
            in_pixels = slopes.get(R_HAT)
        if PAIR_QUESTIONS[slope.on].question.text:
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
        return not_testable(pair_question.question.text, slope.reason, notes=notes)
    estimand = answer.question.estimand
    named = f"{estimand[:1].upper()}{estimand[1:]}"
    estimate = f"{named} is {number(slope.value)} (95 % interval {interval(slope.interval)})."
    classes = f"({slope.num_groups} classes)"
    claim = ""
    if answer.is_decided:
        claim = f"{answer.statement} {classes}."
        factor = _factor_of_pairs(slope, d_data)
        sentences = [text for text in (claim, factor, estimate) if text]
    else:
        sentences = [f"No effect was detected {classes}.", estimate]
        if slope.detectable is not None:
            sentences.append(
                f"About 80 of 100 such studies would detect {number(slope.detectable)}."
            )
    group = slope.most_influential
    if group is not None:
        without = slope.left_out[group]
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
        return not_testable(question, slopes[0].reason)
    parts = []
    for slope in estimated:
        parts.append(f"{AT_DELTA[slope.on]} {number(slope.value)} ({interval(slope.interval)})")
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
