"""The headline questions of a report as one family: what is claimed holds for all of them at once.

Every number in a report has an interval that misses the truth one time in twenty, so among dozens some
exclude zero by chance. These few questions are asked beforehand; Holm's adjustment over them keeps the
chance of any false claim at 5 %, and everything else is exploratory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.analysis import points as t
from orchestrator.analysis.distributions import t_tail
from orchestrator.analysis.law_records import AttackFamily, Claim, ExponentFit, LevelFit
from orchestrator.results import columns as c

LEVEL = 0.05
LOSS_ON_D_DATA = {domain: f"loss_on_d_data_{domain}" for domain in c.DOMAINS}
SHARPNESS, ATTACKS = "sharpness_beyond_label", "attacks_on_sharpness"
EXPONENT, BELOW_BOUND = "exponent", "exponent_below_bound"
QUESTION_WORDS = {
    LOSS_ON_D_DATA[c.NATURAL]: "loss on d_data among natural datasets, at equal N",
    LOSS_ON_D_DATA[c.MEDICAL]: "loss on d_data among medical datasets, at equal N",
    SHARPNESS: "loss on K_F, given 1/d and the domain label",
    EXPONENT: "exponent of N within datasets (against none)",
    BELOW_BOUND: "exponent of N within datasets, slower than the bound 1/d",
    ATTACKS: "loss gained by attacks on K_F (all attacks, epsilons and models)",
}
"""Question -> how it is called."""


def headline_claims(
    levels: Sequence[LevelFit],
    exponent: ExponentFit,
    attacks: AttackFamily,
    past_guessing: ExponentFit | None = None,
) -> tuple[Claim, ...]:
    """Adjust the p-values of the headline questions that could be tested (all models together).

    A question's own p-value is the larger of its t test and its permutation (or wild bootstrap) test, so
    that a claim needs both.

    Args:
        levels: the level regressions of log loss; those of one model are passed over by the caller.
        exponent: the pooled within-dataset exponent.
        attacks: the family of attacks.
        past_guessing: the exponent without N at which nothing was learned yet; None takes all as learned.
    """
    found: dict[str, float] = {}
    for fit in levels:
        if fit.status != "ok":
            continue
        if fit.terms == (c.D_DATA_MLE,) and fit.subset in LOSS_ON_D_DATA:
            found[LOSS_ON_D_DATA[fit.subset]] = _both(fit, c.D_DATA_MLE)
        if set(fit.terms) == {t.INVERSE_D, t.LOG_SHARPNESS, t.IS_MEDICAL}:
            found[SHARPNESS] = _both(fit, t.LOG_SHARPNESS)
    found |= exponent_p_values(exponent)
    if BELOW_BOUND in found and past_guessing is not None:
        # Curves start flat at guessing: what is slower only there is not slower than the bound.
        found[BELOW_BOUND] = max(found[BELOW_BOUND], exponent_p_values(past_guessing).get(BELOW_BOUND, 1.0))
    if attacks.status == "ok" and attacks.adjusted:
        found[ATTACKS] = min(p for *_, p in attacks.adjusted)
    return adjust(found)


def exponent_p_values(fit: ExponentFit) -> dict[str, float]:
    """Return the p-values of "no fall with N" and of "not slower than the bound", which only a slower fall
    can refute.
    """
    if fit.value is None or fit.std_error is None or fit.p_value is None:
        return {}
    from_bound = 2 * t_tail((1 - fit.value) / fit.std_error, fit.num_datasets - 1)
    return {
        EXPONENT: max(fit.p_value, fit.wild_p or 0.0),
        BELOW_BOUND: max(float(from_bound), fit.wild_p_predicted or 0.0) if fit.value < 1 else 1.0,
    }


def adjust(p_values: dict[str, float]) -> tuple[Claim, ...]:
    """Return one claim per p-value, adjusted by Holm's method."""
    if not p_values:
        return ()
    adjusted = _holm(p_values)
    return tuple(
        Claim(key=key, p_value=float(p), adjusted_p=adjusted[key], established=adjusted[key] <= LEVEL)
        for key, p in p_values.items()
    )


def _holm(p_values: Mapping[str, float]) -> dict[str, float]:
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, key in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        largest = max(largest, min(1.0, float(p_values[key]) * (len(p_values) - rank)))
        adjusted[key] = largest
    return adjusted


def _both(fit: LevelFit, name: str) -> float:
    coefficient = fit.coefficient(name)
    return max(coefficient.p_value, coefficient.permutation_p or 0.0)
