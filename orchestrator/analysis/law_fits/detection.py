"""Power of the tests behind the verdicts, at the significance level that a verdict needs.

A verdict needs an adjusted p of at most 0.05. In a family of m tests, Holm's correction
compares the smallest p-value with 0.05 / m. Powers, detectable effects and numbers of datasets
are computed for this level, which is the strictest level of the family. If a test has one
side, its power has the same side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from orchestrator.analysis.inference import LEVEL, t_quantile

MAX_NEEDED = 10_000
"""Largest number of datasets that a message recommends. No study collects more datasets."""
MAX_SHIFT = 1e9
"""Limit of the search for a detectable effect, in standard errors."""
TARGET_POWER = 0.8
"""Power for which detectable effects and numbers of datasets are computed. Of 100 studies, 80
detect such an effect."""
NUM_SPREADS = 64
"""Number of equally likely spreads of K_F or 1/d over which the power of a new study is
averaged. The spread of new datasets differs from the spread of the present datasets. With 64
spreads, the power is exact to 0.001."""
NORMAL_NODES, NORMAL_WEIGHTS = special.roots_hermitenorm(100)
"""Gauss–Hermite nodes and weights, with which functions are averaged over a standard normal
variable."""


def verdict_level(num_tests: int) -> float:
    """Return the strictest level of Holm's correction: 0.05 divided by the number of tests."""
    return LEVEL / max(1, num_tests)


@dataclass(frozen=True, slots=True, kw_only=True)
class TTest:
    """A two-sided t test of one estimate.

    Attributes:
        std_error: Standard error of the estimate.
        degrees: Degrees of freedom.
        smallest_p: Smallest p-value that the resampling behind the verdict can give. At a
            level below this p-value, no effect can be detected. The value is 0 if the verdict
            uses only the t test.
    """

    std_error: float
    degrees: float
    smallest_p: float = 0.0

    def can_detect(self, num_tests: int) -> bool:
        """Return whether resampling can give a p small enough for a family of ``num_tests``."""
        return self.smallest_p <= verdict_level(num_tests)

    def num_others_needed(self, num_tests: int) -> int:
        """Return the number of other tests of the family that must be significant before this test.

        Holm's correction compares the k-th smallest of m p-values with 0.05 / (m − k + 1).
        """
        if self.can_detect(num_tests):
            return 0
        # The test can be significant if 0.05 / (m − k + 1) is at least its smallest p. Then k
        # − 1 other tests must have smaller p-values.
        return num_tests - int(LEVEL / self.smallest_p)

    def power(self, effect: float, num_tests: int) -> float | None:
        """Return the share of studies that detect an effect in a family of ``num_tests`` tests.

        This is the power of the t test. A permutation test or a bootstrap detects at most as
        often, so the true share may be smaller.
        """
        if not self.can_detect(num_tests):
            return 0.0
        return t_power(effect, self.std_error, self.degrees, verdict_level(num_tests))

    def detectable(self, num_tests: int) -> float | None:
        """Return the smallest effect that 80 of 100 studies detect.

        Args:
            num_tests: Number of tests of the family.

        Returns:
            The effect in units of the estimate. None if the standard error is 0, or if no
            effect can be detected at the level.
        """
        if not self.std_error or not self.can_detect(num_tests):
            return None

        def is_detected(shift: float) -> bool:
            power = self.power(shift * self.std_error, num_tests)
            return power is not None and power >= TARGET_POWER

        # Double the effect until it is detected, then bisect.
        low, high = 0.0, 1.0
        while not is_detected(high):
            low, high = high, 2 * high
            if high > MAX_SHIFT:
                return None
        for _ in range(50):
            middle = (low + high) / 2
            if is_detected(middle):
                high = middle
            else:
                low = middle
        return high * self.std_error


@dataclass(frozen=True, slots=True, kw_only=True)
class LargestCorrelation:
    """A one-sided test of the largest of several correlations over datasets.

    Attributes:
        num_correlations: Number of correlations from which the largest one is tested.
        degrees: Number of datasets, minus the number of domains, minus 2. Fisher's z has the
            variance 1 / ``degrees``.
        interval_critical: Half width of the confidence interval, in standard errors of z.
        criticals: Critical values of the largest z, in standard errors of z. Entry k − 1 is
            for a family of k tests, that is for the level 0.05 / k. Entries whose level no
            permutation can reach are missing.
        smallest_p: Smallest p-value that the permutations can give.
    """

    num_correlations: int
    degrees: int
    interval_critical: float
    criticals: tuple[float, ...]
    smallest_p: float = 0.0

    def can_detect(self, num_tests: int) -> bool:
        """Return whether permutations can give a p small enough for a family of ``num_tests``."""
        return max(num_tests, 1) <= len(self.criticals)

    def num_others_needed(self, num_tests: int) -> int:
        """Return the number of other tests that must be significant before this test."""
        return max(num_tests, 1) - min(len(self.criticals), max(num_tests, 1))

    def power(self, effect: float, num_tests: int) -> float | None:
        """Return the share of studies that detect one such correlation.

        A correlation is detected if its p-value is small enough and its interval excludes 0.

        Args:
            effect: True correlation for one attack and one network.
            num_tests: Number of tests of the family.

        Returns:
            The share of studies. It is 0 if no permutation can reach the level, and None if
            there is no test.
        """
        if not self.criticals or self.degrees < 1:
            return None
        if not self.can_detect(num_tests):
            return 0.0
        # A verdict needs both: a small p in its family, and an interval that excludes 0.
        critical_of_family = self.criticals[max(num_tests, 1) - 1]
        critical = max(critical_of_family, self.interval_critical)
        # Fisher's z of a correlation is normal with the variance 1 / degrees.
        shift = np.arctanh(effect) * np.sqrt(self.degrees)
        return float(special.ndtr(shift - critical))


def t_power(
    effect: float, std_error: float | None, degrees: float, level: float = LEVEL
) -> float | None:
    """Return the power of a two-sided t test.

    Args:
        effect: True distance of the estimate from its null value.
        std_error: Standard error of the estimate.
        degrees: Degrees of freedom.
        level: Significance level of the test.

    Returns:
        The share of studies that detect the effect. None if the standard error is 0 or
        unknown, or if there are no degrees of freedom.
    """
    if not std_error or degrees <= 0:
        return None
    # If the effect is real, t has a noncentral t distribution. The test does not detect values
    # of t between −bound and bound.
    shift = abs(effect) / std_error
    bound = t_quantile(1 - level / 2, degrees)
    missed = special.nctdtr(degrees, shift, bound) - special.nctdtr(degrees, shift, -bound)
    if np.isnan(missed):
        # scipy returns NaN for large shifts. The power is then averaged over the normal error
        # of the estimate. For each error, the test detects the effect if the χ² value behind
        # the standard error is small enough.
        largest_chi2 = degrees * ((shift + NORMAL_NODES) / bound) ** 2
        missed = np.average(special.chdtrc(degrees, largest_chi2), weights=NORMAL_WEIGHTS)
    return float(np.clip(1 - missed, 0.0, 1.0))


def datasets_needed(
    effect: float,
    std_error: float | None,
    num_datasets: int,
    num_fitted: int,
    *,
    level: float = LEVEL,
) -> int | None:
    """Return the smallest number of datasets with which 80 of 100 new studies detect an effect.

    A new study has new datasets, so the spread of its regressor is also random. The properties
    of new datasets are assumed to be normal, with the covariance of the present datasets. The
    function computes the power of the t test. At the returned numbers of datasets, a test by
    resampling has nearly the same power.

    Args:
        effect: The effect, in units of the estimate.
        std_error: Standard error of the estimate with the present datasets.
        num_datasets: Number of datasets of the present study.
        num_fitted: Number of fitted coefficients, including the intercept.
        level: Significance level of the test: the strictest level of Holm's correction.

    Returns:
        The number of datasets. It is at least the present number. None if the standard error
        is 0 or unknown, or if the number would exceed :data:`MAX_NEEDED`.
    """
    degrees_today = num_datasets - num_fitted
    if not std_error or degrees_today < 1:
        return None

    def detects(num: int) -> bool:
        power = _power_of_new_study(effect, std_error, degrees_today, num - num_fitted, level=level)
        return power >= TARGET_POWER

    if not detects(MAX_NEEDED):
        return None
    # The power rises with the number of datasets, so bisection finds the smallest number.
    low, high = num_datasets, MAX_NEEDED
    while low < high:
        middle = (low + high) // 2
        if detects(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _power_of_new_study(
    effect: float, std_error: float, degrees_today: int, degrees: int, *, level: float
) -> float:
    """Return the power of the t test of a slope in a study of new datasets.

    Σx² is the sum of squares of the regressor after the other regressors are partialled out.
    For a normal regressor, Σx² is σ² times a χ² variable (Gatsonis & Sampson 1989). This
    variable has one degree of freedom more than the residuals. The present Σx² estimates σ².
    The standard error of the new slope is the present standard error times √(present Σx² / new
    Σx²).

    Args:
        effect: The effect, in units of the estimate.
        std_error: Standard error of the estimate with the present datasets.
        degrees_today: Degrees of freedom of the residuals of the present datasets.
        degrees: Degrees of freedom of the residuals of the new study.
        level: Significance level of the test.
    """
    # The χ² distribution is divided into equally likely parts, and each part is replaced by
    # its median.
    shares = (np.arange(NUM_SPREADS) + 0.5) / NUM_SPREADS
    spreads = special.chdtri(degrees + 1, shares)
    # The present Σx² has the mean σ² · (degrees_today + 1).
    errors = std_error * np.sqrt((degrees_today + 1) / spreads)
    powers = [t_power(effect, error, degrees, level) for error in errors.tolist()]
    return float(np.mean([power for power in powers if power is not None]))
