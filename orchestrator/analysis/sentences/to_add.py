"""Advice on what to add to a sweep, so that it can answer a question."""

from __future__ import annotations

from collections import Counter
from math import factorial, prod

from orchestrator.analysis.fits import ScalingFits
from orchestrator.analysis.inference import LEVEL
from orchestrator.analysis.law_fits.records import AttackFit, ExponentFit, Fit
from orchestrator.analysis.results_tables.sharpness_scale import UNEQUAL_SCALES
from search_spaces.errors import plural


def datasets_to_add(fits: ScalingFits, fit: Fit, numbers: str, reason: str = "") -> str:
    """Return advice on what to add so that a fit can be made and tested; empty if nothing helps.

    Args:
        fits: All fits.
        fit: The fit that could not be made or could not be tested.
        numbers: Numbers that every added dataset must have, for example ``losses and d_data``.
        reason: Reason why the fit could not be tested; empty if it could not be made.
    """
    if UNEQUAL_SCALES in (fit.reason, reason):
        return "measure K_F at one image size and number of channels"
    if fit.status == "refused":
        return "train until losses fall below chance level"
    if not isinstance(fit, AttackFit) and all(one.d_data is None for one in fits.datasets):
        return "measure d_data with the estimator `mle`"
    num_missing = max(0, fit.num_needed - fit.num_datasets)
    noun = "dataset"
    domains = Counter(dataset.domain for dataset in fits.datasets if dataset.loss is not None)
    if domains and not isinstance(fit, ExponentFit):
        # Four datasets of one domain have 24 permutations. Two datasets of one domain and
        # three of the other one have 12.
        (domain, num_of_domain), *other_domains = domains.most_common()
        ways_of_others = prod(factorial(num) for _, num in other_domains)
        while ways_of_others * factorial(num_of_domain + num_missing) < 1 / LEVEL:
            num_missing += 1
        noun = f"{domain} dataset"
    if not num_missing:
        return ""
    return f"add {plural(num_missing, noun)} with {numbers}"
