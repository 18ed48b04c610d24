"""A finding: a question with its verdict, and the parts of sentences that all findings share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from orchestrator.analysis.answers import Answer, Verdict, is_significant
from orchestrator.analysis.inference import LEVEL, Interval
from orchestrator.analysis.number_formats import number, percent
from search_spaces.errors import plural

FindingVerdict = Verdict | Literal["described"]
"""A verdict, or ``described``: numbers that are shown and not tested."""


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


def influence(answer: Answer, name_of_value: str, weights: dict[str, float]) -> tuple[str, ...]:
    """Name the most influential dataset, the value without it, and where the sign changes."""
    name = answer.most_influential
    if name is None or answer.value is None:
        return ()
    text = (
        f"The most influential dataset is {name}: without it, {name_of_value} is "
        f"{number(answer.left_out[name])} instead of {number(answer.value)}."
    )
    if name in weights:
        text += f" It carries {percent(weights[name])} of the weight."
    opposite = [
        dataset for dataset, value in sorted(answer.left_out.items()) if value * answer.value < 0
    ]
    if opposite:
        text += f" The sign changes without {' or without '.join(opposite)}."
    return (text,)


def why_not_significant(answer: Answer, tests: int) -> str:
    """Return why an interval that leaves out the null value decides nothing; else empty."""
    if answer.verdict != "undecided":
        return ""
    if not is_significant(0.0, answer.interval, answer.question.null):
        return ""
    if answer.p_value is not None and answer.p_value > LEVEL:
        return "the test by resampling does not confirm the interval"
    return f"chance gives such a result too often among {tests} tests"
