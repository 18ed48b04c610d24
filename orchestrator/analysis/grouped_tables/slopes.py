"""A slope with its interval and p-value, as an estimate that text and JSON are made from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.analysis.answers import Tested, Verdict, is_significant
from orchestrator.analysis.grouped_tables.cluster_robust import Variance
from orchestrator.analysis.grouped_tables.design import Level
from orchestrator.analysis.inference import LEVEL, t_interval, t_p_values, t_quantile
from orchestrator.analysis.law_fits.detection import TTest


@dataclass(frozen=True, slots=True)
class Slope(Tested):
    """A slope of the response on a column, within groups or between them, at equal others.

    Attributes:
        level: Within groups, or between them with one effect per group.
        on: The column.
        num_groups: Groups that carry information.
        degrees: Degrees of freedom of its t test; None without one.
    """

    level: Level
    on: str
    num_groups: int = 0
    degrees: float | None = None

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
        degrees = variance.degrees
        return replace(self, interval=bounds, p_value=float(p_value), degrees=degrees)

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
    def test(self) -> TTest | None:
        """The t test with the standard error that its interval shows; None without one."""
        if self.interval is None or self.degrees is None:
            return None
        low, high = self.interval
        half_width = (high - low) / 2
        std_error = half_width / t_quantile(1 - LEVEL / 2, self.degrees)
        return TTest(std_error=std_error, degrees=self.degrees)

    @property
    def detectable(self) -> float | None:
        """The slope that 80 of 100 such studies would detect, at the level of the verdict."""
        if self.test is None:
            return None
        return self.test.detectable(self.num_tests)
