"""The findings in plain words, each with what it does not show; written from the fits, never by hand.

A sentence claims something only where a headline claim is established (its interval excludes zero, and its
p-value holds after Holm's adjustment over all headline questions); otherwise it says that nothing is, with
the interval.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from orchestrator.analysis import laws as k
from orchestrator.analysis import table as t
from orchestrator.analysis.fit_records import (
    POOLED,
    Coefficient,
    ExponentFit,
    Interval,
    LevelFit,
    MeansCoefficient,
    ScalingFits,
    interval,
    number,
    p_said,
    p_value,
)
from orchestrator.analysis.laws import AT_EQUAL_SIZE, HEADLINE
from orchestrator.analysis.table import MIN_CONVINCING_DATASETS, few_domain_datasets, listing, plural
from orchestrator.results import table as c

AT_EQUAL = "at equal model and train size"


@dataclass(frozen=True, slots=True)
class Finding:
    """A question, what this sweep says to it, and the caveats that belong to the answer."""

    question: str
    answer: str
    caveats: tuple[str, ...] = ()


def findings(fits: ScalingFits) -> tuple[Finding, ...]:
    """Return the answers of a sweep to the study's questions."""
    return _dimension(fits), _sharpness(fits), _representation(fits), _train_size(fits)


def family(fits: ScalingFits) -> str:
    """Say over how many questions the claims are adjusted, and that the rest is exploratory."""
    if not fits.claims:
        return "No headline question could be tested; everything below is exploratory."
    held = sum(claim.established for claim in fits.claims)
    return (
        f"{held} of {plural(len(fits.claims), 'headline question')} answered with a claim; the chance of "
        "any false one "
        f"is held to {k.LEVEL:.0%} over all of them (Holm). Everything else in this report is exploratory."
    )


def _dimension(fits: ScalingFits) -> Finding:
    question = "Is a dataset of higher intrinsic dimension harder to learn?"
    answers, caveats = [], []
    for domain in c.DOMAINS:
        fit = fits.level(c.D_DATA_MLE, subset=domain)
        if fit.status != "ok":
            answers.append(f"Among {domain} datasets no slope can be fitted ({fit.reason}).")
            continue
        where = f"Among {plural(fit.num_datasets, f'{domain} dataset')}, {AT_EQUAL}, log test loss"
        slope = fit.coefficient(c.D_DATA_MLE)
        claimed = _established(fits, k.LOSS_ON_D_DATA[domain], slope.interval)
        answers.append(f"{where} {_change(slope, 'per unit of d_data', claimed)}.")
        caveats += few_domain_datasets(domain, fit.num_datasets)
        caveats += _left_out(fits, domain)
    gap = fits.level(t.IS_MEDICAL)
    if gap.status == "ok":
        answers.append(_gap(gap))
    elif gap.status == "refused":
        answers.append(f"Natural and medical losses are not compared ({gap.reason}).")
    return Finding(question, " ".join(answers), tuple(caveats))


def _gap(fit: LevelFit) -> str:
    """The offset between the domains is exploratory: it has no place among the headline questions."""
    gap = fit.coefficient(t.IS_MEDICAL)
    kind = "exact permutation" if gap.exact else "permutation"
    test = f"{kind} {p_said(gap.permutation_p)}" if gap.permutation_p is not None else "no permutation test"
    return (
        f"From natural to medical, {AT_EQUAL}, log test loss changes by {interval(gap.interval)} "
        f"(95 % interval over {fit.num_datasets} datasets; {test}; exploratory)."
    )


def _left_out(fits: ScalingFits, domain: str) -> list[str]:
    """Which datasets the sign of the slope hangs on; only refits that would themselves be shown count."""
    fit = fits.law(AT_EQUAL_SIZE.name, subset=domain)
    if fit.status != "ok":
        return []
    return _slope_caveats(fit.coefficients[1], f"the {domain} slope")


def _sharpness(fits: ScalingFits) -> Finding:
    question = "Do datasets with sharper labels give higher losses and weaker robustness?"
    answers, caveats = [], []
    fit = fits.level(*HEADLINE)
    if fit.status == "ok":
        slope = fit.coefficient(t.LOG_SHARPNESS)
        claimed = _established(fits, k.SHARPNESS, slope.interval)
        answers.append(
            f"{AT_EQUAL.capitalize()}, given 1/d and the domain label, log test loss "
            f"{_change(slope, 'per unit of log K_F', claimed)}; the law's form would give 1."
        )
        caveats += _label(fit)
    else:
        answers.append(f"The loss cannot be related to K_F beyond the domain label: {fit.reason}.")
    answers.append(_versus_label(fits))
    answers.append(_attacks(fits))
    return Finding(question, " ".join(filter(None, answers)), tuple(caveats))


def _label(fit: LevelFit) -> list[str]:
    if fit.label_correlation is None:
        return []
    return [
        f"Over {plural(fit.num_datasets, 'dataset')} log K_F and the domain label correlate at "
        f"{number(fit.label_correlation)} (a property of these datasets, not an estimate): the more they "
        "go together, "
        "the less any fit can part them."
    ]


def _versus_label(fits: ScalingFits) -> str:
    """Whether K_F (with 1/d) predicts datasets left out of the fit better than the label: a difference,
    with interval.
    """
    found = fits.level(t.INVERSE_D, t.LOG_SHARPNESS).versus_label
    if found is None or found.interval is None:
        return ""
    low, high = found.interval
    better = (
        "better than"
        if high < 0
        else "worse than"
        if low > 0
        else "neither better nor worse, as far as told, than"
    )
    return (
        f"On datasets left out of the fit, K_F with 1/d predicts {better} the bare label (difference of "
        "squared errors "
        f"in log loss: 95 % interval {interval(found.interval)}; exploratory)."
    )


def _attacks(fits: ScalingFits) -> str:
    found = fits.attack_family
    if found.status != "ok":
        return f"What attacks gain cannot be related to K_F: {found.reason.rstrip('.')}."
    total = len(found.adjusted)
    about = f"{plural(total, 'combination')} of attack, epsilon and model"
    means = f"over {found.num_datasets} datasets, {AT_EQUAL}"
    claim = fits.claim(k.ATTACKS)
    if claim is None or not claim.established:
        p = p_value(min(p for *_, p in found.adjusted))
        return (
            f"For none of {about} is a correlation of the loss gained with K_F established (smallest p "
            "adjusted for "
            f"their number: {p}; {means})."
        )
    named = [row for row in found.adjusted if row[4] <= k.LEVEL]
    best = max(named, key=lambda row: abs(row[3]))
    bounds = next(
        f.on_sharpness.interval_at_equal_size
        for f in fits.attacks
        if (f.attack, f.epsilon, f.model) == best[:3]
    )
    strongest = ""
    if bounds is not None and not _holds_zero(bounds):
        strongest = (
            f"; the strongest for {best[0].upper()} at {best[1]:g}/255 on {best[2]}, r = {number(best[3])}, "
            f"95 % interval {interval(bounds)}"
        )
    return (
        f"The loss gained by an attack correlates with K_F in {len(named)} of {about}, adjusted for their "
        "number "
        f"({means}){strongest}."
    )


def _representation(fits: ScalingFits) -> Finding:
    question = "Does a network compress its data below their intrinsic dimension?"
    found = next((f for f in fits.representations if f.model == POOLED and f.estimator == "mle"), None)
    if found is None or found.share_below is None or found.share_of_datasets is None:
        reason = found.reason if found else "no usable trial"
        return Finding(question, f"This cannot be said: {reason}.")
    bounds = found.share_interval
    span = "" if bounds is None else f", 95 % interval {bounds[0]:.0%} to {bounds[1]:.0%}"
    answer = (
        f"d_repr is at or below d_data at {found.num_below} of {plural(found.num_points, 'point')} (each "
        "dataset "
        f"counting once: {found.share_of_datasets:.0%}{span}); the approximate bound d_repr ≲ d_data "
        "expects nearly all."
    )
    caveats = []
    if found.violations:
        worst = sorted(found.violations.items(), key=lambda item: (-item[1][0], item[0]))[:3]
        caveats.append(
            "The exceptions are mostly in " + listing([f"{n} ({a} of {b})" for n, (a, b) in worst]) + "."
        )
    caveats.append("Both are estimates on a few hundred points; estimators differ by tens of per cent.")
    if found.num_datasets < MIN_CONVINCING_DATASETS:
        caveats.append(f"{plural(found.num_datasets, 'dataset')} only.")
    return Finding(question, answer, tuple(caveats))


def _train_size(fits: ScalingFits) -> Finding:
    question = "Does the loss fall with N as the law allows?"
    answers = []
    for response, words in (("test_loss", "log test loss"), ("test_error", "log test error (0/1)")):
        fit = fits.exponent(response=response)
        if fit.status == "ok":
            answers.append(_exponent(fits, fit, words))
        elif response == "test_loss":
            answers.append(f"The exponent of N cannot be told: {fit.reason}.")
    caveats = ["The law is an upper bound: only a fall slower than predicted contradicts it."]
    chance = fits.at_chance
    if chance.num_at_chance:
        kept = "left out" if chance.left_out else "kept"
        caveats.append(
            f"{chance.num_at_chance} of {plural(chance.num_points, 'point')} have a loss at or above "
            "guessing between "
            f"two classes (ln 2); they are {kept}."
        )
    return Finding(question, " ".join(answers), tuple(caveats))


def _exponent(fits: ScalingFits, fit: ExponentFit, words: str) -> str:
    clear = ""
    if fit.num_at_guessing:
        kept = fit.num_curves - fit.num_at_guessing
        clear = f" ({kept} of {plural(fit.num_curves, 'curve')}: the others lie near guessing)"
    where = f"Within {plural(fit.num_datasets, 'dataset')}{clear}, {words} on −log N / d has slope"
    if fit.interval is None:
        return f"{where} {number(fit.value)}, without any scatter to judge it by."
    headline = fit.response == "test_loss"
    aside = "" if headline else "; exploratory"
    found = f"{where} {interval(fit.interval)} (95 % interval; the bound is 1{aside})"
    below = fits.claim(k.BELOW_BOUND)
    if headline and below is not None and below.established and fit.interval[1] < 1:
        return f"{found}: {fit.verdict}."
    if headline and _established(fits, k.EXPONENT, fit.interval):
        falls = "falls" if fit.interval[0] > 0 else "rises"
        return f"{found}: it {falls} with N, and nothing contradicts the bound."
    return f"{found}: no fall with N and no contradiction of the bound is established."


def _established(fits: ScalingFits, key: str, bounds: Interval | None) -> bool:
    claim = fits.claim(key)
    return claim is not None and claim.established and bounds is not None and not _holds_zero(bounds)


def _holds_zero(bounds: Interval) -> bool:
    return bounds[0] <= 0 <= bounds[1]


def _change(slope: MeansCoefficient, unit: str, claimed: bool) -> str:
    """Say what the response does where that is established, and only the interval where it is not."""
    test = ""
    if slope.permutation_p is not None:
        test = f"; {'exact ' if slope.exact else ''}permutation {p_said(slope.permutation_p)}"
    bounds = f"95 % interval {interval(slope.interval)}"
    if not claimed:
        return f"shows no established change ({bounds} {unit}{test})"
    return f"{'rises' if slope.value > 0 else 'falls'} by {number(abs(slope.value))} {unit} ({bounds}{test})"


def _slope_caveats(slope: Coefficient, name: str) -> list[str]:
    if slope.sign_depends_on:
        return [
            f"Without {listing(list(slope.sign_depends_on)).replace(' and ', ' or ')}, {name} has the "
            "other sign."
        ]
    largest = slope.influential
    if largest and (value := slope.left_out[largest]) is not None and abs(value) < abs(slope.value) / 2:
        return [f"Without {largest}, {name} is less than half as steep."]
    return []


# What a sweep found as plain numbers by name, for a tracker: best losses and every fitted coefficient.

Named = tuple[str, float | None, Interval | None]

_UNUSUAL = re.compile(r"[^\w\-. :/]+")


def headline(table: pd.DataFrame, fits: ScalingFits) -> dict[str, float]:
    """Return the best test loss of each dataset, and each fitted value with the ends of its 95 % interval.

    Args:
        table: One row per trial.
        fits: Its fits.

    Returns:
        Values by path, such as ``best_test_loss/digits``, ``law/predicted/pooled/all/intercept`` and, where
        there is an interval, the same with ``/low`` and ``/high``.
    """
    found: dict[str, float] = {}
    if "test_loss" in table:
        best = table.dropna(subset=["test_loss"]).groupby("dataset")["test_loss"].min()
        found.update({f"best_test_loss/{name}": float(loss) for name, loss in best.items()})
    for name, value, bounds in _fitted(fits):
        if value is None:
            continue
        # What MLflow takes in a metric's name.
        path = _UNUSUAL.sub(" ", name)
        found[path] = value
        if bounds is not None:
            found[f"{path}/low"], found[f"{path}/high"] = bounds
    return found


def _fitted(fits: ScalingFits) -> Iterator[Named]:
    for law in fits.laws:
        for one in law.coefficients:
            yield f"law/{law.law}/{law.model}/{law.subset}/{one.name}", one.value, one.interval
    for level in fits.levels:
        where = f"level/{level.response}/{' '.join(level.terms)}/{level.model}/{level.subset}"
        for mean in level.coefficients:
            yield f"{where}/{mean.name}", mean.value, mean.interval
    for exponent in fits.exponents:
        where = f"exponent/{exponent.response}/{exponent.model}/{exponent.subset}"
        yield where, exponent.value, exponent.interval
    for curve in fits.train_size:
        yield f"train_size_exponent/{curve.model}/{curve.dataset}", curve.exponent, curve.interval
    for attack in fits.attacks:
        for association in (attack.on_sharpness, attack.on_d_data):
            slope = association.slope
            if slope is not None:
                where = f"attack/{attack.attack}_{attack.epsilon:g}/{attack.model}/slope on {association.x}"
                yield where, slope.value, slope.interval
