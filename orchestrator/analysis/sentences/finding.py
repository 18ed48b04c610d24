"""A finding: a question with its verdict, and the parts of sentences that all findings share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from orchestrator.analysis.answers import Alternative, Answer, Verdict, is_significant
from orchestrator.analysis.inference import LEVEL, Interval
from orchestrator.analysis.law_fits.detection import TTest
from orchestrator.analysis.number_formats import (
    adjusted_p_equals,
    in_hundred,
    listing,
    number,
    p_equals,
    per_cent_of,
    percent,
)
from search_spaces.errors import plural

FindingVerdict = Verdict | Literal["described"]
"""A verdict, or ``described``: numbers that are shown and not tested."""
ASKED_AFTER_SEEING = (
    "This question was put after these images had been looked at. The answer shows the relation, "
    "and does not confirm it."
)
"""Sentence on an answer whose question came after the data."""
SIDES: dict[Alternative, str] = {
    "two-sided": "two-sided",
    "rise": "one-sided for a rise",
    "slower": "one-sided for a slower fall",
}
"""On which side of the null value a result counts, in words."""


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
        size: How large the effect is and what decides, for the first screen.
    """

    question: str
    verdict: FindingVerdict
    sentences: tuple[str, ...]
    details: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    to_add: str = ""
    claim: str = ""
    size: str = ""

    def with_sentence(self, sentence: str) -> Finding:
        """Return it with one more sentence, on the first screen too."""
        size = f"{self.size} {sentence}" if self.claim else self.size
        return replace(self, sentences=(*self.sentences, sentence), size=size)

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


def in_brackets(num_datasets: int) -> str:
    """Return the number of datasets in brackets."""
    return f"({plural(num_datasets, 'dataset')})"


def multiplied(value: float, bounds: Interval | None, by: float) -> tuple[str, Interval | None]:
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


def not_testable(
    question: str, reason: str, to_add: str = "", notes: Sequence[str] = ()
) -> Finding:
    """Return the finding on a question that the table cannot answer.

    Args:
        question: The question.
        reason: Why it cannot be tested.
        to_add: What to add to the sweep to test it.
        notes: What a reader has to know beside the answer.
    """
    sentence = f"This cannot be tested: {reason}."
    return Finding(
        question=question,
        verdict="not testable",
        sentences=(sentence,),
        notes=tuple(notes),
        to_add=to_add,
    )


def opening_of_undecided(answer: Answer, nothing: str, replicates: str) -> str:
    """Return the first sentence of an answer that decides nothing.

    Args:
        answer: The answer.
        nothing: The sentence for an interval that holds the null value, without its end.
        replicates: How many datasets or classes there are, in brackets.
    """
    if is_significant(0.0, answer.interval, answer.question.null):
        return f"Undecided {replicates}."
    return f"{nothing} {replicates}."


def p_sentences(answer: Answer) -> list[str]:
    """Return p and adjusted p with the null value and the sides, and what an interval lacks."""
    if answer.p_value is None or answer.adjusted_p is None:
        return []
    null = number(answer.question.null)
    if answer.question.is_share:
        null = percent(answer.question.null)
    adjusted = adjusted_p_equals(answer.adjusted_p, answer.num_tests)
    sides = SIDES[answer.question.alternative]
    sentences = [f"Against {null}, {sides}: {p_equals(answer.p_value)}, {adjusted}."]
    is_left_out = is_significant(0.0, answer.interval, answer.question.null)
    if answer.verdict == "undecided" and is_left_out:
        if answer.p_value > LEVEL:
            sentences.append("The interval is by t alone; resampling does not confirm it.")
        else:
            sentences.append("The interval is not adjusted; the adjusted p decides.")
    return sentences


def power_sentence(answer: Answer) -> str:
    """Return in how many studies the effect would be detected; empty if nothing is known of it.

    Where no effect is named, the one that 80 of 100 studies would detect is given.
    """
    level = f"At the verdict's level of {per_cent_of(answer.test_level)},"
    if answer.power is not None:
        by_chance = ""
        if answer.power < 2 * answer.test_level:
            by_chance = " That is hardly more than chance."
        share = in_hundred(answer.power)
        # The verdict also needs a small p by resampling, which detects less than the t test.
        is_resampled = isinstance(answer.test, TTest) and answer.test.smallest_p > 0
        if is_resampled and share[0].isdigit():
            share = f"at most {share}"
        return f"{level} {share} such studies would detect {answer.question.power_of}.{by_chance}"
    if answer.detectable is not None:
        slope = number(answer.detectable)
        return f"{level} 80 of 100 such studies would detect a slope of {slope}."
    return ""


def influence(answer: Answer, name_of_value: str, replicate: str = "dataset") -> str:
    """Return the value without the replicate that matters most; empty if none can be left out.

    Args:
        answer: The answer.
        name_of_value: What the number is called.
        replicate: What is left out: a dataset or a class.
    """
    name = answer.most_influential
    if name is None or answer.value is None:
        return ""
    without = number(answer.left_out[name])
    if without == number(answer.value):
        return ""
    if answer.is_decided_by(name, answer.question.null):
        return f"One {replicate} decides this: without {name}, {name_of_value} is {without}."
    return f"Without {name}, the most influential {replicate}, {name_of_value} is {without}."


def changes_of_sign(answer: Answer, weights: dict[str, float]) -> tuple[str, ...]:
    """Name the datasets without which the sign changes, and the weight of the most influential."""
    name = answer.most_influential
    if name is None or answer.value is None:
        return ()
    texts = []
    if name in weights:
        texts.append(f"{name} carries {percent(weights[name])} of the weight.")
    opposite = [
        dataset for dataset, value in sorted(answer.left_out.items()) if value * answer.value < 0
    ]
    if len(opposite) == 1:
        texts.append(f"Leaving out {opposite[0]} turns the sign round.")
    elif opposite:
        texts.append(f"Leaving out any one of {listing(opposite)} turns the sign round.")
    return tuple(texts)
