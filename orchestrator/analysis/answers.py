"""The chain from a question to its verdict, which report, ``fit``, ``claims`` and JSON read.

A :class:`Question` names one number, its null value and what the law expects. An :class:`Answer`
adds the estimate, how sure it is, and the verdict. Whoever shows an answer takes its words from
here, so two pages cannot disagree about it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self, TypeVar

from orchestrator.analysis.inference import LEVEL, Interval, holm
from orchestrator.analysis.law_fits.detection import LargestCorrelation, TTest, verdict_level

Verdict = Literal["supported", "contradicted", "undecided", "not testable"]
Family = Literal["", "headline questions", "class pairs", "ledger", "table"]
"""A name of tests whose p-values are adjusted together; empty if they are not adjusted."""
Alternative = Literal["two-sided", "rise", "slower"]
"""On which side of the null value a result counts: on both, above it, or below it."""
NOTABLE_P = 0.1
"""p before correction up to which a result looks like one, so that what decides it is said."""
DECISIVE_SHARE = 0.5
"""Share of an estimate below which the value without one replicate shows that this one decides."""
VERDICTS: tuple[Verdict, ...] = ("supported", "contradicted", "undecided", "not testable")
"""Verdicts of a table on a question; ``docs/glossary.md`` defines each."""


def is_significant(adjusted_p: float | None, interval: Interval | None, null: float = 0.0) -> bool:
    """Return whether an estimate differs from its null value after correction.

    Both must hold: the adjusted p-value is at most 0.05, and the interval leaves the null out. An
    unknown p-value or interval decides nothing.
    """
    if adjusted_p is None or interval is None or adjusted_p > LEVEL:
        return False
    low, high = interval
    return not low <= null <= high


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question about one number.

    Attributes:
        key: Name in files and metrics.
        text: The question as a person asks it.
        claim: The statement that a verdict supports or contradicts.
        reverse: The statement that holds if the claim is contradicted.
        estimand: The number that decides, in the words of the field.
        null: Value of the number if nothing is there.
        expected_sign: Side of the null on which the claim holds, 1 or −1.
        power_of: The effect whose power is given.
        source: Number of the claim in the study.
        published: What the study reports.
        is_share: Whether the number is a share, shown in per cent.
        alternative: On which side of the null value a result counts in the test.
    """

    key: str
    text: str = ""
    claim: str = ""
    reverse: str = ""
    estimand: str = ""
    null: float = 0.0
    expected_sign: int = 1
    power_of: str = ""
    source: str = ""
    published: str = ""
    is_share: bool = False
    alternative: Alternative = "two-sided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """A number with its interval and the test of its null value.

    Attributes:
        value: The estimate; None without one.
        interval: 95 % interval; None without one.
        p_value: p of the null value, before correction; two-sided unless the question says other.
        adjusted_p: The same after Holm's correction for the tests of its family.
        num_tests: Tests of that family; 0 if p was not corrected.
        family: Name of that family.
        left_out: The estimate without each dataset, class or group.
        reason: Why there is no estimate, or no test of it.
    """

    value: float | None = None
    interval: Interval | None = None
    p_value: float | None = None
    adjusted_p: float | None = None
    num_tests: int = 0
    family: Family = ""
    left_out: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""

    def adjusted_among(self, adjusted_p: float | None, num_tests: int, family: Family) -> Self:
        """Return it with its p after correction; unchanged if it was not tested."""
        if adjusted_p is None:
            return self
        return replace(self, adjusted_p=adjusted_p, num_tests=num_tests, family=family)

    @property
    def test_level(self) -> float:
        """The level that its verdict needs: the strictest of its family by Holm."""
        return verdict_level(self.num_tests)

    @property
    def most_influential(self) -> str | None:
        """The dataset, class or group without which the estimate changes most; None without any."""
        return most_influential(self.value, self.left_out)

    def is_decided_by(self, name: str, null: float = 0.0) -> bool:
        """Return whether a notable estimate rests on one dataset, class or group alone.

        Without that one, the estimate changes its side of the null value, or more than halves.
        """
        if self.value is None or self.p_value is None or self.p_value > NOTABLE_P:
            return False
        distance = self.value - null
        without = self.left_out[name] - null
        return without * distance < 0 or abs(without) < DECISIVE_SHARE * abs(distance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Tested):
    """The answer of a table to a question.

    Attributes:
        question: The question.
        num_replicates: Datasets, or classes, that the interval is over.
        effect: The effect ``question.power_of`` as a distance from the null value.
        test: The test, by which power is reckoned; None if it has none.
        note: A sentence on what limits the estimate.
    """

    question: Question
    num_replicates: int = 0
    effect: float | None = None
    test: TTest | LargestCorrelation | None = None
    note: str = ""

    @property
    def power(self) -> float | None:
        """The share of such studies that would detect the effect, at the level of the verdict."""
        if self.effect is None or self.test is None:
            return None
        return self.test.power(self.effect, self.num_tests)

    @property
    def detectable(self) -> float | None:
        """The effect that 80 of 100 such studies would detect, at the level of the verdict."""
        if not isinstance(self.test, TTest):
            return None
        return self.test.detectable(self.num_tests)

    @property
    def verdict(self) -> Verdict:
        """The verdict of the table on the question."""
        if self.value is None or self.p_value is None or self.reason:
            return "not testable"
        if not is_significant(self.adjusted_p, self.interval, self.question.null):
            return "undecided"
        is_expected = (self.value - self.question.null) * self.question.expected_sign > 0
        return "supported" if is_expected else "contradicted"

    @property
    def statement(self) -> str:
        """The claim, or its reverse if it is contradicted."""
        return self.question.reverse if self.verdict == "contradicted" else self.question.claim

    @property
    def is_decided(self) -> bool:
        """True if the claim is supported or contradicted."""
        return self.verdict in ("supported", "contradicted")


AnyTested = TypeVar("AnyTested", bound=Tested)
"""An answer, or a slope."""


def most_influential(value: float | None, left_out: Mapping[str, float]) -> str | None:
    """Return the name without which an estimate changes most; of equal ones the first by name."""
    if value is None or not left_out:
        return None
    changes = {name: abs(left_out[name] - value) for name in sorted(left_out)}
    return max(changes, key=changes.__getitem__)


def holm_adjusted(tests: Sequence[AnyTested], family: Family) -> tuple[AnyTested, ...]:
    """Adjust the p-values of a family of tests for the number of those that have one."""
    p_values = [tested.p_value for tested in tests]
    num_tests = len(p_values) - p_values.count(None)
    adjusted = []
    for tested, adjusted_p in zip(tests, holm(p_values), strict=True):
        adjusted.append(tested.adjusted_among(adjusted_p, num_tests, family))
    return tuple(adjusted)
