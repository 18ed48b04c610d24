"""Sentences on the power of a test: which effects a table of this size can detect."""

from __future__ import annotations

from orchestrator.analysis.law_fits.detection import LargestCorrelation, TTest, verdict_level
from orchestrator.analysis.number_formats import number, per_cent_of
from search_spaces.errors import plural


def at_level(num_tests: int) -> str:
    """Return words on the significance level that a verdict needs in a family of tests."""
    return f"At a significance level of {per_cent_of(verdict_level(num_tests))},"


def nothing_detectable(test: TTest | LargestCorrelation | None, num_tests: int) -> str:
    """Return sentences that no effect can be detected; empty if resampling can give a small p."""
    if test is None or test.can_detect(num_tests):
        return ""
    why = f"resampling cannot give a p below {number(test.smallest_p, 2)}."
    num_others = test.num_others_needed(num_tests)
    if num_others >= max(num_tests, 1):
        return f"This table is too small to detect any effect: {why}"
    others = plural(num_others, "other test")
    level = per_cent_of(verdict_level(num_tests))
    return (
        f"On its own, this result cannot be significant: Holm's strictest level is {level}, but "
        f"{why} First, {others} of the family would have to be significant."
    )


def detectable_slope(test: TTest | LargestCorrelation | None, num_tests: int) -> str:
    """Return a sentence on the slope that 80 of 100 t tests detect; empty if it is unknown.

    If the verdict also needs a small p by resampling, fewer studies detect this slope. The
    sentence then contains "at most 80".
    """
    if not isinstance(test, TTest):
        return ""
    slope = test.detectable(num_tests)
    if slope is None:
        return nothing_detectable(test, num_tests)
    at_most = "at most " if test.smallest_p > 0 else ""
    return (
        f"{at_level(num_tests)} {at_most}80 of 100 such studies would detect a slope of "
        f"{number(slope)}."
    )
