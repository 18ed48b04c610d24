"""The study's questions about several datasets, and their answers from the fits.

Four questions have five tests, because the exponent b is tested twice: against 0 (the loss
does not fall with N) and against the law's bound. The five p-values are adjusted together
(Holm).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from orchestrator.analysis.answers import Answer, Question, holm_adjusted
from orchestrator.analysis.law_fits.detection import (
    LargestCorrelation,
    TTest,
    datasets_needed,
    verdict_level,
)
from orchestrator.analysis.law_fits.estimates import STRONG, Estimate
from orchestrator.analysis.law_fits.exponents import ABOVE_CHANCE
from orchestrator.analysis.law_fits.records import AnyFit, AttackFit, ExponentFit, Fit, HeightFit
from orchestrator.analysis.number_formats import number
from orchestrator.analysis.results_tables.points import ALL, INVERSE_D, LOG_SHARPNESS, POOLED
from search_spaces.errors import plural

DIMENSION = Question(
    key="dimension",
    text="Do datasets of higher intrinsic dimension have higher losses?",
    claim="Loss rises with d_data",
    estimand="slope of log loss on 1/d, given K_F and the domain label",
    expected_sign=-1,
    power_of="a doubling of loss over the range of d_data",
    source="Fig. 2a",
    published="rises: 0.25 per unit of d_data (ResNet-34, medical), on the prostate set alone",
)
SHARPNESS = Question(
    key="sharpness_beyond_label",
    text="Do datasets with sharper labels have higher losses?",
    claim="Loss rises with K_F at equal d_data",
    estimand="slope of log loss on log K_F, given 1/d and the domain label",
    power_of="the law's slope of 1",
    source="Eq. 2",
    published="1 by the law; effects of K_F and domain not separated",
)
FASTER_THAN_BOUND = "Does the loss fall with N at least as fast as the law says, N^(−1/d)?"
"""The question with two tests: of the exponent against 0, and against the law's bound."""
EXPONENT = Question(
    key="exponent",
    text=FASTER_THAN_BOUND,
    claim="Loss falls with N",
    estimand="exponent b of N^(−b/d) within datasets, against no fall",
    power_of="a fall as fast as the bound",
)
BELOW_BOUND = Question(
    key="exponent_below_bound",
    text=FASTER_THAN_BOUND,
    claim="Loss falls with N at least as fast as the law's bound",
    estimand="exponent b of N^(−b/d) within datasets, against the bound 1",
    null=1.0,
)
ATTACKS = Question(
    key="attacks_on_sharpness",
    text="Do attacks raise the loss more in datasets with sharper labels?",
    claim="Attacks raise the loss more where labels are sharper",
    estimand="largest r of the loss gained with K_F, given the domain label",
    power_of=f"a correlation of {STRONG:g}",
    alternative="rise",
    source="Thm 3",
    published="0.84 (FGSM, eleven datasets)",
)
QUESTIONS = (DIMENSION, SHARPNESS, EXPONENT, BELOW_BOUND, ATTACKS)
LAW_SLOPE = 1.0
"""Value that the law predicts for the slope on log K_F and for the exponent b."""


def headline_answers(
    fits: Sequence[AnyFit],
    *,
    why_no_sharpness: str = "",
    doubling_slope: float | None = None,
    num_domains: int = 1,
) -> tuple[Answer, ...]:
    """Answer the headline questions, with five tests, from the fits of all models together.

    Args:
        fits: The fits.
        why_no_sharpness: Reason why K_F cannot be compared; empty if it can.
        doubling_slope: Slope on 1/d for which the power is computed. With this slope, the loss
            doubles over the range of d_data.
        num_domains: Number of domains of the datasets.
    """
    headline = _find(fits, HeightFit, "headline")
    exponent = _find(fits, ExponentFit, "")
    above_chance = _find(fits, ExponentFit, ABOVE_CHANCE)
    attacks = [fit for fit in fits if isinstance(fit, AttackFit) and fit.model != POOLED]
    answers = [
        _of_height(DIMENSION, headline, INVERSE_D, doubling_slope, ""),
        _of_height(SHARPNESS, headline, LOG_SHARPNESS, LAW_SLOPE, why_no_sharpness),
        _of_exponent(exponent),
        _of_bound(exponent, above_chance),
        _of_attacks(attacks, num_domains),
    ]
    return holm_adjusted(answers, "headline questions")


def _find(fits: Iterable[AnyFit], kind: type[Fit], variant: str) -> AnyFit | None:
    """Return the fit to all models and both domains of a kind or variant; None if there is none."""
    for fit in fits:
        if not isinstance(fit, kind) or (fit.model, fit.subset) != (POOLED, ALL):
            continue
        if variant in (fit.kind, fit.variant):
            return fit
    return None


def few_ways(estimate: Estimate) -> str:
    """Return a text that too few permutations of the datasets exist for a p-value of 0.05."""
    verb = "is" if estimate.num_resamples == 1 else "are"
    ways = plural(estimate.num_resamples, "way")
    return (
        f"there {verb} only {ways} to rearrange these datasets, so the smallest possible p is "
        f"{number(estimate.smallest_p, 2)}"
    )


def answer_of(
    question: Question,
    estimate: Estimate | None,
    num_datasets: int,
    *,
    effect: float | None = None,
    degrees: float = 0,
    reason: str = "",
) -> Answer:
    """Return the answer from an estimate, or an answer with the reason why there is no estimate.

    Args:
        question: The question.
        estimate: The estimate; None if it could not be made.
        num_datasets: Number of datasets of the estimate.
        effect: Distance from the null value for which the power is computed, in units of the
            estimate. If None, no power is computed.
        degrees: Degrees of freedom of the t test.
        reason: Reason why there is no estimate.
    """
    if estimate is None:
        return Answer(question=question, reason=reason or "not measured")
    if estimate.p is None:
        return Answer(question=question, reason="the estimate has no p-value")
    if not estimate.is_tested:
        return Answer(question=question, reason=few_ways(estimate))
    test = None
    if estimate.std_error:
        test = TTest(
            std_error=estimate.std_error,
            degrees=degrees,
            smallest_p=estimate.smallest_p,
        )
    return Answer(
        question=question,
        value=estimate.value,
        interval=estimate.interval,
        p_value=estimate.p,
        num_replicates=num_datasets,
        effect=effect,
        test=test,
        left_out=estimate.left_out,
    )


def _of_height(
    question: Question,
    fit: AnyFit | None,
    name: str,
    effect: float | None,
    why_not_measured: str,
) -> Answer:
    """Answer a question about heights. A height is a dataset's log loss at equal N."""
    if not isinstance(fit, HeightFit):
        return Answer(question=question, reason="no usable trial")
    return answer_of(
        question,
        fit.estimate(name),
        fit.num_datasets,
        effect=effect,
        degrees=fit.num_datasets - len(fit.terms) - 1,
        reason=fit.reason or why_not_measured,
    )


def _of_exponent(fit: AnyFit | None) -> Answer:
    """Answer the question whether the loss falls with N."""
    if not isinstance(fit, ExponentFit):
        return Answer(question=EXPONENT, reason="no usable trial")
    return answer_of(
        EXPONENT,
        fit.estimate("exponent"),
        fit.num_datasets,
        effect=LAW_SLOPE,
        degrees=fit.num_datasets - 1,
        reason=fit.reason,
    )


def _of_bound(fit: AnyFit | None, above_chance: AnyFit | None) -> Answer:
    """Answer the question whether the loss falls faster or more slowly than the law's bound."""
    if not isinstance(fit, ExponentFit):
        return Answer(question=BELOW_BOUND, reason="no usable trial")
    answer = answer_of(BELOW_BOUND, fit.estimate("exponent"), fit.num_datasets, reason=fit.reason)
    if answer.reason:
        return answer
    if not isinstance(above_chance, ExponentFit):
        above_chance = fit
    return replace(answer, p_value=bound_p_value(fit, above_chance))


def bound_p_value(fit: ExponentFit, above_chance: ExponentFit) -> float:
    """Return the two-sided p-value of a test of an exponent against the law's bound, 1.

    Losses near chance level make curves flatter and the exponent smaller. If the exponent is
    below 1, it must therefore also be below 1 in the fit above chance level. The larger
    p-value of the two fits is then used. If the fit above chance level could not be made, or
    if its exponent is 1 or more, the p-value is 1.

    Args:
        fit: The fit to all train sizes, with an estimate.
        above_chance: The fit to train sizes above chance level.
    """
    (exponent,) = fit.estimates
    if fit.bound_p is None:
        return 1.0
    if exponent.value >= LAW_SLOPE:
        return fit.bound_p
    confirmed = above_chance.estimate("exponent")
    if confirmed is None or above_chance.bound_p is None or confirmed.value >= LAW_SLOPE:
        return 1.0
    return max(fit.bound_p, above_chance.bound_p)


def strongest_attack(fits: Iterable[AttackFit]) -> AttackFit | None:
    """Return the attack fit with the largest correlation.

    If there is no correlation, return the fit with the most datasets.
    """

    def strength(fit: AttackFit) -> tuple[bool, float, int]:
        value = fit.estimates[0].value if fit.estimates else 0.0
        return fit.status == "ok", value, fit.num_datasets

    return max(fits, key=strength, default=None)


def _of_attacks(fits: Sequence[AttackFit], num_domains: int) -> Answer:
    """Answer whether attacks raise the loss more if K_F is higher, from the largest correlation."""
    best = strongest_attack(fits)
    if best is None:
        return Answer(question=ATTACKS, reason="no attack was run")
    if best.status != "ok":
        return Answer(question=ATTACKS, reason=best.reason)
    answer = answer_of(ATTACKS, best.estimates[0], best.num_datasets)
    if answer.reason:
        return answer
    test = LargestCorrelation(
        num_correlations=sum(fit.status == "ok" for fit in fits),
        # The indicators of domains cost num_domains − 1 degrees of freedom. Fisher's z costs
        # 3.
        degrees=best.num_datasets - num_domains - 2,
        interval_critical=best.interval_critical,
        criticals=best.criticals,
        smallest_p=best.estimates[0].smallest_p,
    )
    return replace(answer, effect=STRONG, test=test)


def num_tests(answers: Iterable[Answer]) -> int:
    """Return the number of answers that have a p-value."""
    return sum(answer.p_value is not None for answer in answers)


def needed_for_doubling(fit: HeightFit, name: str, effect: float, tests: int) -> int | None:
    """Return the smallest number of datasets with which 80 of 100 studies detect an effect.

    The significance level is Holm's strictest level. Returns None if no practical number is
    large enough.
    """
    estimate = fit.estimate(name)
    if estimate is None or not np.isfinite(effect):
        return None
    num_fitted = len(fit.terms) + 1
    return datasets_needed(
        effect, estimate.std_error, fit.num_datasets, num_fitted, level=verdict_level(tests)
    )


def with_p_values(answers: Iterable[Answer]) -> Iterator[Answer]:
    """Yield the answers that have a p-value."""
    for answer in answers:
        if answer.p_value is not None:
            yield answer
