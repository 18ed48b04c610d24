"""Questions, their answers and verdicts, for the report, ``fit``, ``claims`` and JSON.

A :class:`Question` defines a number, its null value and the expected side. An :class:`Answer`
adds the estimate, its interval, p-values and power, and derives the verdict. All outputs use
these objects, so that they cannot contradict each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self, TypeVar

from orchestrator.analysis.inference import LEVEL, Interval, holm
from orchestrator.analysis.law_fits.detection import LargestCorrelation, TTest, verdict_level

Verdict = Literal[
    "supported", "contradicted", "suggested", "undecided", "described", "not testable"
]
"""A verdict on a question. It is ``suggested`` if an effect was detected, but the question was
asked after somebody had seen the data. It is ``described`` if no test compares the number with
a null value."""
Family = Literal["", "headline questions", "class pairs", "ledger", "table"]
"""Name of a family of tests. The p-values of a family are adjusted together. The name is empty if
no p-value is adjusted."""
Alternative = Literal["two-sided", "rise", "untested"]
"""Side of the null value on which a result counts as an effect: both sides (``two-sided``),
above the null value (``rise``), or no side because there is no test (``untested``)."""
NOTABLE_P = 0.1
"""Limit of a p-value before correction. Only up to this limit, isweep prints that an estimate
depends on one dataset."""
DECISIVE_SHARE = 0.5
"""Share of an estimate. An estimate depends on one dataset, class or group if the estimate without
it is smaller than this share of the estimate with it."""
VERDICTS: tuple[Verdict, ...] = (
    "supported",
    "contradicted",
    "suggested",
    "undecided",
    "described",
    "not testable",
)
"""Verdicts on a question; ``docs/glossary.md`` defines each."""


def is_significant(adjusted_p: float | None, interval: Interval | None, null: float = 0.0) -> bool:
    """Return whether an estimate differs from its null value after correction.

    It differs if the adjusted p-value is at most 0.05 and the interval excludes the null value.
    Return False if the p-value or the interval is unknown.
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
        text: The question in plain words.
        claim: The statement that a verdict supports or contradicts.
        reverse: The opposite statement, for a contradicted claim.
        estimand: The number that decides the answer, in the words of the field.
        null: Value of the number if there is no effect.
        expected_sign: 1 if the claim expects a value above the null value, −1 if it expects a value
            below.
        power_of: Words on the effect whose power is computed.
        source: Number of the claim in the study.
        published: The study's result.
        is_share: True if the number is a share. Shares are printed in per cent.
        alternative: Side of the null value on which a result counts as an effect. It is
            ``untested`` if no null value decides the question.
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
        value: The estimate; None if there is none.
        interval: 95 % interval; None if there is none.
        p_value: p-value before correction, for the null value and the sides of the question.
        adjusted_p: p-value after Holm's correction for all tests of the family.
        num_tests: Number of tests of the family; 0 if the p-value is not corrected.
        family: Name of the family.
        left_out: The estimate without each dataset, class or group, by its name.
        reason: Reason why the number could not be estimated or tested; empty if there is none.
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
        """Return a copy with the adjusted p-value, or this record if ``adjusted_p`` is None."""
        if adjusted_p is None:
            return self
        return replace(self, adjusted_p=adjusted_p, num_tests=num_tests, family=family)

    @property
    def test_level(self) -> float:
        """The significance level for the power: Holm's strictest level in the family."""
        return verdict_level(self.num_tests)

    @property
    def most_influential(self) -> str | None:
        """The dataset, class or group whose omission changes the estimate most, or None."""
        return most_influential(self.value, self.left_out)

    def is_decided_by(self, name: str, null: float = 0.0) -> bool:
        """Return whether a notable estimate depends on one dataset, class or group alone.

        It depends on one of them if omitting this one moves the estimate to the other side of the
        null value, or more than halves its distance from the null value.
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
        num_replicates: Number of datasets or classes from which the interval is computed.
        effect: The effect ``question.power_of`` as a distance from the null value; None if the
            question has none.
        test: The test that determines the power; None if there is no test.
        note: A sentence on a limit of the estimate.
        is_late: True if the question was asked after somebody had seen the data, so that the
            answer confirms nothing.
    """

    question: Question
    num_replicates: int = 0
    effect: float | None = None
    test: TTest | LargestCorrelation | None = None
    note: str = ""
    is_late: bool = False

    @property
    def power(self) -> float | None:
        """Power: the share of studies like this one that detect the effect at ``test_level``."""
        if self.effect is None or self.test is None:
            return None
        return self.test.power(self.effect, self.num_tests)

    @property
    def verdict(self) -> Verdict:
        """The verdict of the table on the question."""
        if self.value is not None and self.question.alternative == "untested":
            return "described"
        if self.value is None or self.p_value is None or self.reason:
            return "not testable"
        if not is_significant(self.adjusted_p, self.interval, self.question.null):
            return "undecided"
        if self.is_late:
            return "suggested"
        return "supported" if self._is_on_expected_side else "contradicted"

    @property
    def _is_on_expected_side(self) -> bool:
        """True if the value is on the side of the null value that the claim expects."""
        distance = (self.value or 0.0) - self.question.null
        return distance * self.question.expected_sign > 0

    @property
    def is_opposite(self) -> bool:
        """True if an effect was detected, but the claim expects it on the other side."""
        return self.is_decided and not self._is_on_expected_side

    @property
    def statement(self) -> str:
        """The claim. If the detected effect is on the other side, the opposite statement."""
        return self.question.reverse if self.is_opposite else self.question.claim

    @property
    def is_decided(self) -> bool:
        """True if an effect was detected: the claim is supported, contradicted or suggested."""
        return self.verdict in ("supported", "contradicted", "suggested")


AnyTested = TypeVar("AnyTested", bound=Tested)
"""A class of tested numbers: answers or slopes."""


def most_influential(value: float | None, left_out: Mapping[str, float]) -> str | None:
    """Return the name whose omission changes an estimate most; in a tie, the first by name."""
    if value is None or not left_out:
        return None
    changes = {name: abs(left_out[name] - value) for name in sorted(left_out)}
    return max(changes, key=changes.__getitem__)


def holm_adjusted(tests: Sequence[AnyTested], family: Family) -> tuple[AnyTested, ...]:
    """Return a family of tests with Holm-adjusted p-values; only tests with a p-value count."""
    # A question without a p-value makes no claim, so it is not one of the tests of the family.
    p_values = [tested.p_value for tested in tests]
    num_tests = len(p_values) - p_values.count(None)
    adjusted = []
    for tested, adjusted_p in zip(tests, holm(p_values), strict=True):
        adjusted.append(tested.adjusted_among(adjusted_p, num_tests, family))
    return tuple(adjusted)
