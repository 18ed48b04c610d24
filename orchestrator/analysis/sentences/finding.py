"""The record of a finding, and the sentences that all kinds of findings use.

A finding is a question with its verdict and its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.analysis.answers import Alternative, Answer, Verdict, is_significant
from orchestrator.analysis.inference import LEVEL, Interval
from orchestrator.analysis.law_fits.detection import TTest
from orchestrator.analysis.number_formats import (
    ADJUSTED_P_DECIDES,
    adjusted_p_equals,
    in_hundred,
    listing,
    number,
    p_equals,
    percent,
)
from orchestrator.analysis.sentences.of_power import (
    at_level,
    detectable_slope,
    nothing_detectable,
)
from search_spaces.errors import plural

ASKED_AFTER_SEEING = (
    "Results on these images were known when this question or its settings were chosen, so the "
    "answer confirms nothing."
)
"""Sentence in an answer whose question, or whose settings of the sweep, were chosen after
results were known."""
NO_RELATION = "No relation was detected."
"""First sentence of an undecided answer whose interval includes the null value."""
LABEL_SHARPNESS_MEANS = (
    "K_F (label sharpness) is 1 / the smallest distance between images with different labels."
)
"""Sentence that explains K_F in the first answer on K_F. The closest pair of images decides
K_F."""
DELTA_MEANS = "δ is the mean distance to the nearest image with another label."
"""Sentence that explains δ in the first answer on δ. Unlike K_F, δ depends on all images."""
NOT_ABOVE_LEVEL = 1.5
"""Largest power, as a multiple of the significance level, that a sentence calls no higher than the
rate of false claims."""
SIDES: dict[Alternative, str] = {
    "two-sided": "two-sided",
    "rise": "one-sided for a rise",
}
"""Words for the side of the null value on which a result counts as an effect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A question with its verdict and the sentences that answer it.

    Attributes:
        question: The question in everyday words.
        verdict: The verdict on the question.
        sentences: The short answer: the estimate, its interval and the adjusted p.
        details: Sentences on the test, its power and the most influential dataset or class.
        notes: Remarks on the numbers of this answer.
        to_add: Advice on what to add to a sweep that cannot answer the question.
        claim: The statement that the data support: the expected statement or the opposite one.
            Empty if no effect was detected.
    """

    question: str
    verdict: Verdict
    sentences: tuple[str, ...]
    details: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    to_add: str = ""
    claim: str = ""

    def with_sentence(self, sentence: str) -> Finding:
        """Return a copy of the finding with one more sentence in its short answer."""
        return replace(self, sentences=(*self.sentences, sentence))

    @property
    def line(self) -> str:
        """The short answer.

        If the question cannot be tested, the text also states what to add to the sweep.
        """
        sentences = [*self.sentences]
        if self.to_add:
            sentences.append(f"To test it, {self.to_add}.")
        return " ".join(sentences)

    @property
    def answer(self) -> str:
        """The short answer, followed by the details."""
        return " ".join([*self.sentences, *self.details])


def multiplied(value: float, bounds: Interval | None, by: float) -> tuple[str, Interval | None]:
    """Return the factor between two losses as text, and its interval.

    Args:
        value: Slope of the log loss on a term.
        bounds: Interval of the slope.
        by: Difference of the term between the two datasets whose losses are compared.
    """
    factor = number(float(np.exp(value * by)))
    if factor == "1":
        factor = "1.00"  # "1 times as high" would read as a count.
    if bounds is None:
        return factor, None
    with np.errstate(over="ignore"):
        low, high = sorted(float(np.exp(bound * by)) for bound in bounds)
    return factor, (low, high)


def not_testable(
    question: str, reason: str, to_add: str = "", notes: Sequence[str] = ()
) -> Finding:
    """Return the finding on a question that the table cannot answer.

    Args:
        question: The question.
        reason: Reason why the question cannot be tested.
        to_add: Advice on what to add to the sweep.
        notes: Remarks on the numbers of this answer.
    """
    sentence = f"This cannot be tested: {reason}."
    return Finding(
        question=question,
        verdict="not testable",
        sentences=(sentence,),
        notes=tuple(notes),
        to_add=to_add,
    )


def short_answer(
    answer: Answer,
    size: str,
    bounds: str,
    *,
    name_of_value: str,
    replicate: str = "dataset",
    claim: str = "",
    if_undecided: str = NO_RELATION,
    of_interval: str = "",
    against: str = "",
    without_one: str = "",
) -> tuple[str, ...]:
    """Return the sentences of a tested answer: its size, its interval and the adjusted p.

    Args:
        answer: The answer.
        size: A sentence on the size of the effect, without a full stop.
        bounds: The interval of this size, as text.
        name_of_value: Name of the number, such as ``the slope``. It is used in the sentence on
            its value without one replicate.
        replicate: Name of the replicates of the interval: ``dataset`` or ``class``.
        claim: First sentence if the detected effect is the opposite of the expected effect.
        if_undecided: First sentence of an undecided answer whose interval includes the null
            value.
        of_interval: Words between ``95 % interval`` and its bounds.
        against: Words on the null value that follow the adjusted p.
        without_one: Clause on the results without the most influential replicate. If it is
            empty, the clause gives the value of this answer without this replicate.
    """
    opening = ""
    if answer.is_opposite:
        opening = claim
    elif not answer.is_decided and not _leaves_null_out(answer):
        opening = if_undecided
    if opening == NO_RELATION:
        size = f"Estimate: {size[0].lower()}{size[1:]}"
    evidence = f"95 % interval{of_interval} {bounds}"
    if answer.adjusted_p is not None:
        evidence += f"; adjusted {p_equals(answer.adjusted_p)}{against}"
    sentences = [opening, f"{size} ({evidence}).", why_undecided(answer), undecidable(answer)]
    if one_decides(answer) and without_one:
        sentences.append(f"This estimate rests on one {replicate}: {without_one}.")
    elif one_decides(answer):
        sentences.append(influence(answer, name_of_value, replicate))
    return tuple(filter(None, sentences))


def details_of_test(
    answer: Answer, name_of_value: str, replicate: str = "dataset"
) -> tuple[str, ...]:
    """Return the sentences on the p-value, the most influential replicate and the power.

    Args:
        answer: The answer.
        name_of_value: Name of the number of the answer.
        replicate: Name of the replicates of the interval: ``dataset`` or ``class``.
    """
    sentences = []
    if answer.p_value is not None:
        sentences.append(
            f"{_test_in_words(answer)} {p_equals(answer.p_value)} before correction for "
            f"{plural(answer.num_tests, 'test')}."
        )
    if not one_decides(answer):
        sentences.append(influence(answer, name_of_value, replicate))
    if not answer.is_decided and not undecidable(answer):
        sentences.append(power_sentence(answer))
    return tuple(filter(None, sentences))


def _test_in_words(answer: Answer) -> str:
    """Return the start of a sentence on p, with the null value and the sides of the test."""
    sides = SIDES[answer.question.alternative]
    return f"The test against {_null_value(answer)} ({sides}) gives"


def undecidable(answer: Answer) -> str:
    """Return a sentence that the table is too small to decide a question; empty if it is not."""
    if answer.verdict != "undecided":
        return ""
    return nothing_detectable(answer.test, answer.num_tests)


def _null_value(answer: Answer) -> str:
    """Return the null value as text."""
    if answer.question.is_share:
        return percent(answer.question.null)
    return number(answer.question.null)


def _leaves_null_out(answer: Answer) -> bool:
    """Return whether the interval excludes the null value."""
    return is_significant(0.0, answer.interval, answer.question.null)


def why_undecided(answer: Answer) -> str:
    """Return why an answer is undecided although its interval excludes the null value."""
    if answer.verdict != "undecided" or not _leaves_null_out(answer):
        return ""
    if answer.p_value is not None and answer.p_value > LEVEL:
        return (
            "The interval comes only from a t test, and the test by resampling does not confirm "
            "this result."
        )
    return f"The interval {ADJUSTED_P_DECIDES}"


def p_sentences(answer: Answer, where: str = "") -> list[str]:
    """Return sentences on p and the adjusted p, with the null value and the sides of the test.

    Args:
        answer: The answer.
        where: Words that follow the number of tests and state where these tests are, such as
            `` of this ledger``.
    """
    if answer.p_value is None or answer.adjusted_p is None:
        return []
    adjusted = adjusted_p_equals(answer.adjusted_p, answer.num_tests)
    sentences = [f"{_test_in_words(answer)} {p_equals(answer.p_value)}, {adjusted}{where}."]
    return [*sentences, *filter(None, [why_undecided(answer)])]


def power_sentence(answer: Answer) -> str:
    """Return a sentence on how many of 100 such studies would detect the effect.

    If the question defines no effect, the sentence instead states the slope that 80 of 100
    such studies detect. If the power is unknown, the text is empty.
    """
    impossible = nothing_detectable(answer.test, answer.num_tests)
    if impossible:
        return impossible
    if answer.power is None:
        return detectable_slope(answer.test, answer.num_tests)
    by_chance = ""
    if answer.power < 2 * answer.test_level:
        amount = "hardly" if answer.power > NOT_ABOVE_LEVEL * answer.test_level else "no"
        by_chance = f" That is {amount} more often than without any effect."
    share = in_hundred(answer.power)
    # The verdict also needs a small p by resampling, and resampling detects effects less often
    # than the t test.
    is_resampled = isinstance(answer.test, TTest) and answer.test.smallest_p > 0
    if is_resampled and share[0].isdigit():
        share = f"at most {share}"
    level = at_level(answer.num_tests)
    return f"{level} {share} such studies would detect {answer.question.power_of}.{by_chance}"


def one_decides(answer: Answer) -> bool:
    """Return whether a notable estimate depends on one dataset or class alone."""
    name = answer.most_influential
    return name is not None and answer.is_decided_by(name, answer.question.null)


def influence(answer: Answer, name_of_value: str, replicate: str = "dataset") -> str:
    """Return a sentence on the value without the most influential replicate.

    The text is empty if no replicate can be left out, or if the printed value stays the same.

    Args:
        answer: The answer.
        name_of_value: Name of the number of the answer.
        replicate: Name of what is left out: ``dataset`` or ``class``.
    """
    name = answer.most_influential
    if name is None or answer.value is None:
        return ""
    without = number(answer.left_out[name])
    if without == number(answer.value):
        return ""
    if one_decides(answer):
        return (
            f"This estimate rests on one {replicate}: without {name}, {name_of_value} is {without}."
        )
    return f"Without {name}, the most influential {replicate}, {name_of_value} is {without}."


def changes_of_sign(answer: Answer) -> tuple[str, ...]:
    """Return a sentence on datasets whose omission changes the sign of the estimate.

    The result is empty if there is no such dataset.
    """
    if answer.value is None:
        return ()
    opposite = []
    for dataset, value in sorted(answer.left_out.items()):
        if value * answer.value < 0:
            opposite.append(dataset)
    if not opposite:
        return ()
    if len(opposite) == 1:
        return (f"Without {opposite[0]}, the sign changes.",)
    return (f"If one of these datasets is left out, the sign changes: {listing(opposite)}.",)
