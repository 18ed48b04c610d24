"""A slope with its interval and p-value, as an estimate that text and JSON are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from orchestrator.analysis.answers import Verdict, is_significant
from orchestrator.analysis.grouped_tables.cluster_robust import Variance
from orchestrator.analysis.grouped_tables.design import Level
from orchestrator.analysis.inference import Interval, holm, t_interval, t_p_values

DETECTABLE_PER_LENGTH = 0.5 * (1 + 0.84 / 1.96)
"""Slope that 80 % of studies detect, per length of its 95 % interval, by the normal law."""


@dataclass(frozen=True, slots=True)
class Slope:
    """A slope of the response on a column, within groups or between them, at equal others.

    Attributes:
        level: Within groups, or between them with one effect per group.
        on: The column.
        value: Slope in units of the response per unit of the column; None without one.
        interval: 95 % interval; None without one.
        p_value: Two-sided p of a slope of 0.
        adjusted_p: The same after Holm's adjustment over all slopes of the fit.
        num_groups: Groups that carry information.
        left_out: Slope without each group.
        reason: Why there is no value, no interval or no claim.
    """

    level: Level
    on: str
    value: float | None = None
    interval: Interval | None = None
    p_value: float | None = None
    adjusted_p: float | None = None
    num_groups: int = 0
    left_out: dict[str, float] = field(default_factory=dict)
    reason: str = ""

    def times(self, factor: float) -> Slope:
        """Return the slope in other units."""
        if self.value is None:
            return self
        bounds = None
        if self.interval is not None:
            low, high = self.interval
            bounds = (low * factor, high * factor)
        refits = {group: refit * factor for group, refit in self.left_out.items()}
        return replace(self, value=self.value * factor, interval=bounds, left_out=refits)

    def without_interval(self, reason: str) -> Slope:
        """Return the slope as a number from which nothing is concluded."""
        return replace(self, interval=None, p_value=None, left_out={}, reason=reason)

    def with_variance(self, variance: Variance) -> Slope:
        """Return the slope with the interval and p-value of a t test."""
        if self.value is None:
            return self
        error = variance.value**0.5
        bounds = t_interval(self.value, error, variance.degrees)
        p_value = t_p_values(self.value, error, variance.degrees)
        return replace(self, interval=bounds, p_value=float(p_value))

    @property
    def is_significant(self) -> bool:
        """True if a relation is claimed: adjusted p ≤ 0.05, and 0 outside the interval."""
        return is_significant(self.adjusted_p, self.interval)

    @property
    def verdict(self) -> Verdict:
        """The verdict on a relation: supported, undecided or not testable."""
        if self.value is None or self.adjusted_p is None:
            return "not testable"
        return "supported" if self.is_significant else "undecided"

    @property
    def most_influential(self) -> tuple[str, float] | None:
        """The group without which the slope changes most, and that slope; None without groups."""
        if self.value is None or not self.left_out:
            return None
        value = self.value

        def change(group: str) -> float:
            return abs(self.left_out[group] - value)

        group = max(self.left_out, key=change)
        return group, self.left_out[group]

    @property
    def detectable(self) -> float | None:
        """Slope that about 80 of 100 such studies would detect; None without an interval."""
        if self.interval is None:
            return None
        low, high = self.interval
        return DETECTABLE_PER_LENGTH * (high - low)


def adjusted(slopes: Sequence[Slope]) -> tuple[Slope, ...]:
    """Adjust the p-values of slopes for their number."""
    adjusted_ps = holm([slope.p_value for slope in slopes])
    answers = []
    for slope, adjusted_p in zip(slopes, adjusted_ps, strict=True):
        answers.append(replace(slope, adjusted_p=adjusted_p))
    return tuple(answers)
