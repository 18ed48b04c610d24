"""The record of a slope that was estimated from a user's table."""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.analysis.answers import Tested, Verdict, is_significant
from orchestrator.analysis.grouped_tables.cluster_robust import Variance
from orchestrator.analysis.grouped_tables.design import Level
from orchestrator.analysis.inference import LEVEL, t_interval, t_p_values, t_quantile
from orchestrator.analysis.law_fits.detection import TTest


@dataclass(frozen=True, slots=True)
class Slope(Tested):
    """A slope of the response on a column, with the other columns held constant.

    Attributes:
        level: ``within`` for a slope within groups, or ``between`` for a slope between groups.
        on: The column.
        num_groups: Number of groups that contribute to the slope.
        degrees: Degrees of freedom of the t test; None if there is no t test.
        smallest_p: Smallest p-value that the permutations or bootstrap draws can give; 0 if
            only a t test gives the p-value.
    """

    level: Level
    on: str
    num_groups: int = 0
    degrees: float | None = None
    smallest_p: float = 0.0

    def times(self, factor: float) -> Slope:
        """Return the record with its slope, interval and refits multiplied by a factor."""
        if self.value is None:
            return self
        bounds = None
        if self.interval is not None:
            low, high = self.interval
            bounds = (low * factor, high * factor)
        refits = {group: refit * factor for group, refit in self.left_out.items()}
        return replace(self, value=self.value * factor, interval=bounds, left_out=refits)

    def without_interval(self, reason: str) -> Slope:
        """Return a copy that has a reason instead of an interval and a p-value."""
        return replace(self, interval=None, p_value=None, left_out={}, reason=reason)

    def with_variance(self, variance: Variance) -> Slope:
        """Return a copy with the interval and p-value of a t test with this variance."""
        if self.value is None:
            return self
        error = variance.value**0.5
        bounds = t_interval(self.value, error, variance.degrees)
        p_value = t_p_values(self.value, error, variance.degrees)
        degrees = variance.degrees
        return replace(self, interval=bounds, p_value=float(p_value), degrees=degrees)

    @property
    def is_significant(self) -> bool:
        """True if the adjusted p is at most 0.05 and the interval excludes 0."""
        return is_significant(self.adjusted_p, self.interval)

    @property
    def verdict(self) -> Verdict:
        """The verdict on a relation: supported, undecided or not testable."""
        if self.value is None or self.adjusted_p is None:
            return "not testable"
        return "supported" if self.is_significant else "undecided"

    @property
    def test(self) -> TTest | None:
        """The t test behind the interval; None if there is no t test."""
        if self.interval is None or self.degrees is None:
            return None
        low, high = self.interval
        half_width = (high - low) / 2
        std_error = half_width / t_quantile(1 - LEVEL / 2, self.degrees)
        return TTest(std_error=std_error, degrees=self.degrees, smallest_p=self.smallest_p)
