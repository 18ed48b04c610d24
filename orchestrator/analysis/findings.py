"""Three findings in plain words, each with what it does not show; written from the fits, never by hand."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.analysis.fit_records import POOLED, Association, Coefficient, LawFit, ScalingFits
from orchestrator.analysis.formats import interval, number
from orchestrator.analysis.words import MIN_CONVINCING_DATASETS, listing, plural
from orchestrator.results import columns as c


@dataclass(frozen=True, slots=True)
class Finding:
    """A question, what this sweep says to it, and the caveats that belong to the answer."""

    question: str
    answer: str
    caveats: tuple[str, ...] = ()


def findings(fits: ScalingFits) -> tuple[Finding, Finding, Finding]:
    """Return the answers of a sweep to the study's three questions."""
    return _dimension(fits), _sharpness(fits), _representation(fits)


def _dimension(fits: ScalingFits) -> Finding:
    question = "Is a dataset of higher intrinsic dimension harder to learn?"
    answers, caveats = [], []
    for domain in c.DOMAINS:
        fit = fits.law("loss_on_d_data", subset=domain)
        if fit.status != "ok":
            answers.append(f"Among {domain} datasets no slope can be fitted ({fit.reason}).")
            continue
        slope = fit.coefficients[1]
        where = f"Among {plural(fit.num_datasets, f'{domain} dataset')}"
        answers.append(f"{where} log test loss {_change(slope, 'per unit of d_data')}.")
        caveats += _slope_caveats(fit, slope, f"the {domain} slope")
    offset = fits.law("loss_on_d_data_with_offset")
    if offset.status == "ok":
        change = _change(offset.coefficient("is_medical"))
        answers.append(f"From natural to medical, at equal d_data, log test loss {change}.")
    return Finding(question, " ".join(answers), tuple(caveats))


def _sharpness(fits: ScalingFits) -> Finding:
    question = "Do datasets with sharper labels give higher losses and weaker robustness?"
    answers, caveats = [], []
    fit = fits.law("predicted_form")
    if fit.status == "ok":
        slope = fit.coefficient("log_sharpness")
        answers.append(
            f"At equal N and d_data, log loss {_change(slope, 'per unit of log K_F')}; "
            "the law's form would give 1."
        )
        caveats += _slope_caveats(fit, slope, "the coefficient of K_F")
        caveats += _versus_domain(fits)
    else:
        answers.append(f"The loss cannot be related to K_F: {fit.reason}.")
    answers.append(_attacks(fits))
    attacks = [f.on_sharpness for f in fits.attacks if f.model == POOLED and f.on_sharpness.status == "ok"]
    if attacks:
        caveats += [text for text in attacks[-1].caveats if text not in caveats and fit.status != "ok"]
        caveats += _one_domain(attacks[-1])
    return Finding(question, " ".join(answers), tuple(caveats))


def _attacks(fits: ScalingFits) -> str:
    pooled = [f for f in fits.attacks if f.model == POOLED]
    usable = [f for f in pooled if f.on_sharpness.pearson is not None]
    if not usable:
        reason = pooled[0].on_sharpness.reason if pooled else "no attack was run"
        return f"What attacks gain cannot be related to K_F: {reason.rstrip('.')}."
    parts = [
        f"{number(f.on_sharpness.pearson)} for {f.attack.upper()} at {f.epsilon:g}/255"
        for f in usable
        if f.on_sharpness.pearson is not None
    ]
    strongest = usable[-1]
    bounds, contrast = strongest.on_sharpness.pearson_interval, strongest.on_d_data.pearson
    aside = [f"the last with a 95 % interval {interval(bounds)}"] if bounds else []
    aside += [f"with d_data it is {number(contrast)}"] if contrast is not None else []
    words = f" ({', '.join(aside)})" if aside else ""
    return f"The loss gained by an attack correlates with K_F at r = {listing(parts)}{words}."


def _one_domain(found: Association) -> list[str]:
    weak = [f"{r:.2f} among {domain} ones" for domain, r in found.pearson_by_domain.items() if r is not None]
    if not weak:
        return []
    return [
        f"Over dataset means within a domain, the correlation with the strongest attack is {listing(weak)}; "
        "the rest of it is the difference between the domains."
    ]


def _versus_domain(fits: ScalingFits) -> list[str]:
    comparison = next((f for f in fits.comparisons if f.model == POOLED and f.status == "ok"), None)
    scores = {score.form: score for score in comparison.scores} if comparison else {}
    ours, label = scores.get("predicted_form"), scores.get("domain_form")
    if not (ours and label and ours.held_out_rmse and label.held_out_rmse):
        return []
    better = "better" if ours.held_out_rmse < label.held_out_rmse else "no better"
    return [
        f"On datasets left out of the fit, K_F predicts {better} than the bare label natural or medical "
        f"(error in log loss {ours.held_out_rmse:.2f} against {label.held_out_rmse:.2f})."
    ]


def _representation(fits: ScalingFits) -> Finding:
    question = "Does a network compress its data below their intrinsic dimension?"
    found = next((f for f in fits.representations if f.model == POOLED and f.estimator == "mle"), None)
    if found is None or found.share_below is None:
        reason = found.reason if found else "no usable trial"
        return Finding(question, f"This cannot be said: {reason}.")
    bounds = found.share_interval
    span = "" if bounds is None else f" (95 % interval over datasets {bounds[0]:.0%} to {bounds[1]:.0%})"
    answer = (
        f"d_repr is at or below d_data in {found.share_below:.0%} of {plural(found.num_points, 'point')}"
        f"{span}; the approximate bound d_repr ≲ d_data expects nearly all."
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


def _change(coefficient: Coefficient, unit: str = "") -> str:
    """Say what the response does, and whether its sign is established."""
    size = " ".join(filter(None, [number(abs(coefficient.value)), unit]))
    moved = f"{'rises' if coefficient.value > 0 else 'falls'} by {size}"
    if coefficient.interval is None:
        return f"{moved}, with too few datasets for an interval"
    within = f"95 % interval {interval(coefficient.interval)}"
    if _includes_zero(coefficient):
        return f"shows no established change: it {moved} ({within})"
    return f"{moved} ({within})"


def _includes_zero(coefficient: Coefficient) -> bool:
    return coefficient.interval is not None and coefficient.interval[0] <= 0 <= coefficient.interval[1]


def _slope_caveats(fit: LawFit, slope: Coefficient, name: str) -> list[str]:
    caveats = list(fit.caveats)
    if slope.sign_depends_on:
        caveats.append(
            f"Without {listing(list(slope.sign_depends_on)).replace(' and ', ' or ')}, {name} has "
            "the other sign."
        )
    elif (
        slope.influential
        and (value := slope.left_out[slope.influential]) is not None
        and abs(value) < abs(slope.value) / 2
    ):
        caveats.append(
            f"Without {slope.influential}, {name} is {number(value)} instead of {number(slope.value)}."
        )
    return caveats
