"""Questions, answers and verdicts for the report, ``isweep fit``, ``isweep claims`` and JSON.

A :class:`Question` defines a number, its null value and the side on which the number is
expected. An :class:`Answer` adds the estimate, its interval, p-values and power. The verdict
follows from these. All outputs use these objects, so two outputs cannot contradict each other.
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
asked after somebody had seen the data. A verdict is ``described`` if no test compares the
number with a null value."""
Family = Literal["", "headline questions", "class pairs", "ledger", "table"]
"""Name of a family of tests. The p-values of a family are adjusted together. The name is empty
if a p-value is not adjusted."""
Alternative = Literal["two-sided", "rise", "untested"]
"""Side of the null value on which a result counts as an effect: both sides (``two-sided``),
above the null value (``rise``), or no side because there is no test (``untested``)."""
NOTABLE_P = 0.1
"""Largest p-value before correction for which isweep prints that an estimate depends on one
dataset."""
DECISIVE_SHARE = 0.5
"""Limit that decides whether an estimate depends on one dataset, class or group. The estimate
depends on a dataset if, without this dataset, the distance from the null value is less than
this share of the distance with all datasets."""
VERDICTS: tuple[Verdict, ...] = (
    "supported",
    "contradicted",
    "suggested",
    "undecided",
    "described",
    "not testable",
)
"""All verdicts on a question. ``docs/glossary.md`` defines each of them."""


def is_significant(adjusted_p: float | None, interval: Interval | None, null: float = 0.0) -> bool:
    """Return whether an estimate differs significantly from its null value.

    The estimate differs if the adjusted p-value is at most 0.05 and the interval excludes the
    null value. Return False if the p-value or the interval is unknown.
    """
    if adjusted_p is None or interval is None or adjusted_p > LEVEL:
        return False
    low, high = interval
    return not low <= null <= high


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question about one number.

    Attributes:
        key: Name of the question in files and metrics.
        text: The question in plain words.
        claim: The statement that the answer supports or contradicts.
        reverse: The opposite statement. It is printed if the claim is contradicted.
        estimand: Name of the number that decides the answer, in the words of the field.
        null: Value of the number if there is no effect.
        expected_sign: 1 if the claim expects a value above the null value, −1 if the claim
            expects a value below the null value.
        power_of: Description of the effect for which the power is computed.
        source: Number that the study gives to the claim.
        published: The result that the study published.
        is_share: True if the number is a share. isweep prints shares in per cent.
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
    """A number with its interval and the result of a test against its null value.

    Attributes:
        value: The estimate; None if there is none.
        interval: 95 % interval; None if there is none.
        p_value: p-value before correction. The question defines the null value and the sides
            of the test.
        adjusted_p: p-value after Holm's correction for all tests of the family.
        num_tests: Number of tests of the family; 0 if the p-value is not corrected.
        family: Name of the family.
        left_out: The estimate without each dataset, class or group, by the name of what is
            left out.
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
        """Return a copy with the adjusted p-value.

        If ``adjusted_p`` is None, return this record.
        """
        if adjusted_p is None:
            return self
        return replace(self, adjusted_p=adjusted_p, num_tests=num_tests, family=family)

    @property
    def test_level(self) -> float:
        """Significance level for which the power is computed.

        It is Holm's strictest level of the family.
        """
        return verdict_level(self.num_tests)

    @property
    def most_influential(self) -> str | None:
        """The dataset, class or group whose omission changes the estimate most; None if unknown."""
        return most_influential(self.value, self.left_out)

    def is_decided_by(self, name: str, null: float = 0.0) -> bool:
        """Return whether a notable estimate depends on one dataset, class or group alone.

        An estimate is notable if its p-value is at most 0.1. It depends on ``name`` in two
        cases. Without ``name``, the estimate is on the other side of the null value, or its
        distance from the null value is less than half of the distance with ``name``.
        """
        if self.value is None or self.p_value is None or self.p_value > NOTABLE_P:
            return False
        distance = self.value - null
        without = self.left_out[name] - null
        return without * distance < 0 or abs(without) < DECISIVE_SHARE * abs(distance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Tested):
    """The answer to a question, computed from a results table.

    Attributes:
        question: The question.
        num_replicates: Number of datasets or classes from which the interval is computed.
        effect: The effect that ``question.power_of`` describes, as a distance from the null
            value. None if the question has no such effect.
        test: The test that determines the power; None if there is no test.
        note: A sentence on a limit of the estimate.
        is_late: True if the question was asked after somebody had seen the data. Such an
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
        """The verdict on the question."""
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
        """True if an effect was detected, but on the side that the claim does not expect."""
        return self.is_decided and not self._is_on_expected_side

    @property
    def statement(self) -> str:
        """The claim, or the opposite statement if the claim is contradicted."""
        return self.question.reverse if self.is_opposite else self.question.claim

    @property
    def is_decided(self) -> bool:
        """True if an effect was detected: the claim is supported, contradicted or suggested."""
        return self.verdict in ("supported", "contradicted", "suggested")


AnyTested = TypeVar("AnyTested", bound=Tested)
"""A subclass of :class:`Tested`: answers or slopes."""


def most_influential(value: float | None, left_out: Mapping[str, float]) -> str | None:
    """Return the name whose omission changes an estimate most.

    In a tie, the first name is returned.
    """
    if value is None or not left_out:
        return None
    changes = {name: abs(left_out[name] - value) for name in sorted(left_out)}
    return max(changes, key=changes.__getitem__)


def holm_adjusted(tests: Sequence[AnyTested], family: Family) -> tuple[AnyTested, ...]:
    """Return the tests of a family with Holm-adjusted p-values.

    Tests without a p-value do not count.
    """
    # A question without a p-value leads to no claim, so the family does not count it as a
    # test.
    p_values = [tested.p_value for tested in tests]
    num_tests = len(p_values) - p_values.count(None)
    adjusted = []
    for tested, adjusted_p in zip(tests, holm(p_values), strict=True):
        adjusted.append(tested.adjusted_among(adjusted_p, num_tests, family))
    return tuple(adjusted)
