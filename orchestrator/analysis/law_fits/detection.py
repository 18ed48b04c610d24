"""How often a test detects an effect, at the level that a verdict needs.

A verdict needs an adjusted p of 0.05. Of a family of m tests, Holm's correction holds the smallest
p-value against 0.05 / m. Powers, detectable effects and numbers of datasets are all for this level,
the strictest of the family, and count both sides or one as the test itself does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from orchestrator.analysis.inference import LEVEL, t_quantile

MAX_NEEDED = 10_000
"""Most datasets that a design is told to have; beyond that the effect is as good as none."""
CERTAIN_SHIFT = 30.0
"""Effects of more standard errors are always detected; scipy's noncentral t overflows there."""
POWER_WANTED = 0.8
"""Share of studies that should detect an effect, by which effects and datasets are given."""


def verdict_level(num_tests: int) -> float:
    """Return the level of the strictest test of a family: 0.05 over the number of its tests."""
    return LEVEL / max(1, num_tests)


@dataclass(frozen=True, slots=True, kw_only=True)
class TTest:
    """A two-sided t test of one number.

    Attributes:
        std_error: Standard error of the number.
        degrees: Degrees of freedom.
    """

    std_error: float
    degrees: float

    def power(self, effect: float, num_tests: int) -> float | None:
        """Return the share of studies that detect an effect, as one of so many tests."""
        return t_power(effect, self.std_error, self.degrees, verdict_level(num_tests))

    def detectable(self, num_tests: int) -> float | None:
        """Return the effect that 80 of 100 studies detect, as one of so many tests."""
        if not self.std_error:
            return None
        low, high = 0.0, CERTAIN_SHIFT
        for _ in range(50):
            middle = (low + high) / 2
            power = self.power(middle * self.std_error, num_tests)
            if power is not None and power >= POWER_WANTED:
                high = middle
            else:
                low = middle
        return high * self.std_error


@dataclass(frozen=True, slots=True, kw_only=True)
class LargestCorrelation:
    """A one-sided test of the largest of several correlations over datasets.

    Attributes:
        num_correlations: Correlations of which the largest is tested.
        degrees: Datasets less those that domains and Fisher's z take.
        interval_critical: Standard errors of z by which the interval reaches to each side.
        criticals: Standard errors of z that the largest one exceeds by chance in 0.05 / k of all
            permutations, for k = 1, 2, … tests of the family.
    """

    num_correlations: int
    degrees: int
    interval_critical: float
    criticals: tuple[float, ...]

    def power(self, effect: float, num_tests: int) -> float | None:
        """Return the share of studies in which one such correlation is detected.

        Both the p-value and the interval must leave 0 out.

        Args:
            effect: The true correlation of one attack and network.
            num_tests: Tests of the family.
        """
        if not self.criticals or self.degrees < 1:
            return None
        critical = self.criticals[min(max(num_tests, 1), len(self.criticals)) - 1]
        needed = max(critical, self.interval_critical)
        shift = np.arctanh(effect) * np.sqrt(self.degrees)
        return float(special.ndtr(shift - needed))


def t_power(
    effect: float, std_error: float | None, degrees: float, level: float = LEVEL
) -> float | None:
    """Return how often a two-sided t test detects an effect; None without a standard error."""
    if not std_error:
        return None
    shift = abs(effect) / std_error
    if shift > CERTAIN_SHIFT:
        return 1.0
    bound = t_quantile(1 - level / 2, degrees)
    inside = special.nctdtr(degrees, shift, bound) - special.nctdtr(degrees, shift, -bound)
    return float(np.clip(1 - np.nan_to_num(inside), 0.0, 1.0))  # far out scipy's value is NaN


def datasets_needed(
    effect: float,
    std_error: float | None,
    num_datasets: int,
    num_fitted: int,
    *,
    level: float = LEVEL,
) -> int | None:
    """Return how many datasets like these detect an effect in 8 of 10 studies.

    The standard error is taken to fall with the square root of the degrees of freedom.

    Args:
        effect: The effect, in units of the estimate.
        std_error: Standard error of the estimate today.
        num_datasets: Datasets today.
        num_fitted: Coefficients that are fitted, with the intercept.
        level: Level of the test: the strictest one that the correction asks for.

    Returns:
        The number, at least today's; None without a standard error, or beyond
        :data:`MAX_NEEDED`.
    """
    degrees_today = num_datasets - num_fitted
    if not std_error or degrees_today < 1:
        return None

    def detects(num: int) -> bool:
        degrees = num - num_fitted
        error = std_error * np.sqrt(degrees_today / degrees)
        power = t_power(effect, error, degrees, level)
        return power is not None and power >= POWER_WANTED

    if not detects(MAX_NEEDED):
        return None
    low, high = num_datasets, MAX_NEEDED
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if detects(middle) else (middle + 1, high)
    return low
