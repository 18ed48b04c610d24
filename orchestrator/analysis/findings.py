"""The findings in plain words, each with what it does not show; written from the fits, never by hand.

A sentence claims something only where a headline claim is established: its interval excludes the null, and
its p-value holds after Holm's adjustment over all headline questions. Otherwise it says that nothing is, with
the estimate, its interval, the p-value that decides, and how often such a table would have shown what the law
says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Literal

import numpy as np
from scipy import special

from orchestrator.analysis import fit_records as r
from orchestrator.analysis import table as t
from orchestrator.analysis.fit_records import Claim, Estimate, Fit, ScalingFits
from orchestrator.analysis.inference import LEVEL, Interval, t_power
from orchestrator.analysis.table import interval, listing, number, p_value, plural
from orchestrator.results import table as c

Verdict = Literal["established", "not established", "cannot be tested", "described"]
AT_EQUAL = "At equal model and train size"
#: A correlation that is called strong: what the power of the attacks' question is reckoned for. The published
#: one, of FGSM over eleven datasets, is 0.84.
STRONG = 0.8


@dataclass(frozen=True, slots=True)
class Finding:
    """A question, its verdict, and what this sweep says to it.

    Attributes:
        short: the answer in a line, for a terminal and the strip on top of the report.
        answer: in full sentences.
        caveats: what belongs to the answer.
        to_add: what would make it testable, where it cannot be tested.
    """

    question: str
    verdict: Verdict
    short: str
    answer: str
    caveats: tuple[str, ...] = ()
    to_add: str = ""

    @property
    def line(self) -> str:
        """The answer in short as a sentence, with what to add where it cannot be tested."""
        added = f" To test it, {self.to_add}." if self.to_add else ""
        return f"{self.short[:1].upper()}{self.short[1:]}.{added}"


def findings(fits: ScalingFits) -> tuple[Finding, ...]:
    """Return the answers of a sweep to the study's questions, those of its experiment first."""
    moved = (_experiment(fits),) if fits.interventions else ()
    return (
        *moved,
        _dimension(fits),
        _sharpness(fits),
        _train_size(fits),
        _attacks(fits),
        _representation(fits),
    )


def family(fits: ScalingFits) -> str:
    """Say over how many questions the claims are adjusted, and that the rest is exploratory."""
    if not fits.claims:
        return "No headline question could be tested; everything here is exploratory."
    held = sum(claim.established for claim in fits.claims)
    return (
        f"{held} of {plural(len(fits.claims), 'headline question')} that could be tested "
        f"{'is' if held == 1 else 'are'} answered with a claim; the chance of any false one is held to "
        f"{LEVEL:.0%} over all of them (Holm). Everything else in this report is exploratory."
    )


def seen(fits: ScalingFits) -> str:
    """Say in a sentence what the datasets show, without a test: which has the highest loss, and which
    properties.
    """
    known = [d for d in fits.datasets if d.loss is not None]
    if len(known) < 2:
        return ""
    hardest = max(known, key=lambda d: d.loss or 0.0)
    tops = {}
    for words, name in (("has the sharpest labels", "label_sharpness"), ("has the highest d_data", "d_data")):
        if all(getattr(d, name) is not None for d in known) and len({getattr(d, name) for d in known}) > 1:
            tops[words] = max(known, key=lambda d: getattr(d, name)).dataset
    if len([d for d in known if d.loss_gain is not None]) > 1:
        words = f"loses most under attack ({hardest.attack})"
        tops[words] = max(known, key=lambda d: -np.inf if d.loss_gain is None else d.loss_gain).dataset
    mine = [words for words, name in tops.items() if name == hardest.dataset]
    rest = [f"{name} {words}" for words, name in tops.items() if name != hardest.dataset]
    also = f", and {listing(mine)}" if mine else ""
    text = f"Of {plural(len(known), 'dataset')}, {hardest.dataset} has the highest loss{also}"
    return "; ".join([text, *rest]) + ". That is what was seen, not a test."


def summary(fits: ScalingFits, *, width: int = 80, most_lines: int = 23) -> list[str]:
    """Return what a terminal shows: verdicts, each with its answer in short, and what limits them."""
    head = (
        f"{fits.num_used:,} of {plural(fits.num_trials, 'trial')} with a loss: "
        f"{plural(len(fits.datasets), 'dataset')}, {plural(len(fits.models), 'model')}. "
        f"{family(fits).split(';')[0]}."
    )
    lines = wrap(head.replace("..", "."), width)
    for finding in findings(fits):
        lines += wrap(f"{finding.verdict.upper()}: {finding.question}", width)
        lines += wrap(finding.line, width, initial_indent="  ", subsequent_indent="  ")
    limits = [*fits.caveats, *(f"Left out: {exclusion}." for exclusion in fits.excluded)]
    for k, text in enumerate(limits):
        wrapped = wrap(f"- {text}", width, subsequent_indent="  ")
        if len(lines) + len(wrapped) > most_lines - (k + 1 < len(limits)):
            return [*lines[: most_lines - 1], f"- {plural(len(limits) - k, 'remark')} more, in the report."]
        lines += wrapped
    return lines


def _factor(log_change: float, bounds: Interval | None) -> str:
    """Say by what a loss is multiplied, with its interval, where its logarithm changes by so much."""
    if bounds is None:
        return number(float(np.exp(log_change)))
    with np.errstate(over="ignore"):
        low, high = (number(float(np.exp(bound))) for bound in sorted(bounds))
    return f"{number(float(np.exp(log_change)))} (95 % interval {low} to {high})"


def _scaled(estimate: Estimate, by: float) -> str:
    bounds = estimate.interval
    return _factor(estimate.value * by, None if bounds is None else (bounds[0] * by, bounds[1] * by))


def _established(claim: Claim | None, estimate: Estimate) -> bool:
    bounds = estimate.interval
    return claim is not None and claim.established and bounds is not None and not bounds[0] <= 0 <= bounds[1]


def _decides(claim: Claim | None) -> str:
    if claim is None:
        return ""
    said = p_value(claim.adjusted_p)
    return f"adjusted p {said}" if said.startswith("<") else f"adjusted p = {said}"


def _power(fits: ScalingFits, estimate: Estimate, degrees: int, effect: float, words: str) -> str:
    """Say how often a table with this scatter would establish an effect."""
    if not estimate.std_error:
        return ""
    level = LEVEL / max(1, len(fits.claims))
    power = t_power(effect, estimate.std_error, degrees, level)
    return f" {words} would be established in about {power:.0%} of such tables."


def _hangs_on(estimate: Estimate, words: str) -> list[str]:
    """Name the dataset that the value hangs on most, with the value without it."""
    name = estimate.influential
    if name is None:
        return []
    weight = estimate.weights.get(name)
    carries = f", which carries {weight:.0%} of the weight" if weight is not None else ""
    turned = sorted(n for n, value in estimate.left_out.items() if value * estimate.value < 0)
    signs = f" Its sign turns without {' or '.join(turned)}." if turned else ""
    value = number(estimate.left_out[name])
    return [
        f"Hangs most on {name}{carries}: without it, {words} is {value} instead of "
        f"{number(estimate.value)}.{signs}"
    ]


def _untested(question: str, reason: str, to_add: str = "", caveats: Sequence[str] = ()) -> Finding:
    return Finding(
        question, "cannot be tested", reason, f"This cannot be tested: {reason}.", tuple(caveats), to_add
    )


def _to_add(fits: ScalingFits, fit: Fit, what: str, reason: str = "") -> str:
    if t.UNEQUAL_SCALES in (fit.reason, reason):
        return "measure K_F at one image size and number of channels"
    if fit.status == "refused":
        return "train until losses leave guessing"
    missing = fit.num_needed - fit.num_datasets
    if missing <= 0:
        return ""
    # Four of one domain can change places in 24 ways, two and three of both in 12 alone.
    domains = Counter(d.domain for d in fits.datasets)
    whose = f"{domains.most_common(1)[0][0]} dataset" if fit.kind == "headline" and domains else "dataset"
    return f"add {plural(missing, whose)} with {what}"


def _height(fits: ScalingFits, name: str) -> tuple[Fit, Estimate | None, str]:
    """The headline fit, the estimate of one term of it where it can be tested, and why not."""
    fit = fits.find("headline")
    if fit.status != "ok":
        return fit, None, fit.reason
    estimate = fit.estimate(name)
    if estimate is None:
        return fit, None, t.UNEQUAL_SCALES if not fits.sharpness_scale.comparable else "K_F was not measured"
    if not estimate.is_tested:
        return fit, None, _few_ways(estimate)
    return fit, estimate, ""


def _few_ways(estimate: Estimate) -> str:
    ways = plural(estimate.num_resamples, "way")
    return f"datasets can change places within domains in {ways}, too few for a p-value of {LEVEL:g}"


def _given(fit: Fit, name: str) -> str:
    others = [t.WORDS[term] if term != t.LOG_SHARPNESS else "K_F" for term in fit.terms if term != name]
    return f", given {listing(others)}" if others else ""


def _of_height(
    fits: ScalingFits, key: str, name: str, question: str, what: str, meaning: str, by: float, law: str,
    effect: float, effect_words: str, caveats: Sequence[str],
) -> Finding:  # fmt: skip
    """Answer one of the two questions about heights.

    Args:
        fits: all fits.
        key: of the claim.
        name: the term.
        question: as it is asked.
        what: the property, as it is said to go with the loss.
        meaning: what is done to the property; the loss is multiplied.
        by: by which change of the term that is.
        law: what the law says of the factor, or nothing.
        effect: of the term, that power is reckoned for.
        effect_words: how that is said.
        caveats: of the answer.
    """
    fit, estimate, reason = _height(fits, name)
    if estimate is None:
        return _untested(question, reason, _to_add(fits, fit, "d_data, K_F and losses", reason), caveats)
    claim = fits.claim(key)
    factor = f"{meaning} multiplies the loss by {_scaled(estimate, by)}{law}"
    term = t.WORDS[name]
    slope = f"slope on {term} {number(estimate.value)} ({interval(estimate.interval)}), {_decides(claim)}"
    where = f"{AT_EQUAL}{_given(fit, name)}, over {plural(fit.num_datasets, 'dataset')}"
    held = _established(claim, estimate)
    way = "rises" if estimate.value * by > 0 else "falls"
    if held:
        answer = f"{where}, log test loss {way} with {what}: {factor}; {slope}."
    else:
        degrees = fit.num_datasets - len(fit.terms) - 1
        power = _power(fits, estimate, degrees, effect, effect_words)
        answer = f"{where}, no change of log test loss with {what} is established: {factor}; {slope}.{power}"
    short = f"{factor}; {_decides(claim)}"
    notes = (*_hangs_on(estimate, f"the slope on {term}"), *caveats)
    return Finding(question, "established" if held else "not established", short, answer, notes)


def _dimension(fits: ScalingFits) -> Finding:
    question = "Is a dataset of higher intrinsic dimension harder to learn?"
    known = sorted(d.d_data for d in fits.datasets if d.d_data is not None and d.loss is not None)
    low, high = (known[0], known[-1]) if known else (1.0, 1.0)
    by = 1 / high - 1 / low
    gap = fits.find("height", t.IS_MEDICAL)
    caveats = []
    if gap.status == "ok":
        offset = gap.estimates[0]
        p = "" if offset.resampled_p is None else f", permutation p {p_value(offset.resampled_p)}"
        caveats.append(
            f"From natural to medical the loss is multiplied by {_scaled(offset, 1.0)}{p}; exploratory, "
            "over all that the domains differ by."
        )
    return _of_height(
        fits, r.DIMENSION, t.INVERSE_D, question, "d_data",
        f"going from the lowest to the highest d_data here ({number(low)} to {number(high)})", by, "",
        np.log(2) / max(abs(by), 1e-12), "A loss twice as high at the highest d_data as at the lowest",
        caveats,
    )  # fmt: skip


def _sharpness(fits: ScalingFits) -> Finding:
    question = "Do sharper labels give higher losses?"
    fit = fits.find("headline")
    caveats = []
    if fit.label_correlation is not None and t.LOG_SHARPNESS in fit.terms:
        caveats.append(
            f"Over {plural(fit.num_datasets, 'dataset')} log K_F and the domain label correlate at "
            f"{number(fit.label_correlation)} (a property of these datasets, not an estimate): the more they "
            "go together, the less any fit can part them."
        )
    caveats += [fits.sharpness_scale.note] if fits.sharpness_scale.note else []
    return _of_height(
        fits, r.SHARPNESS, t.LOG_SHARPNESS, question, "K_F", "doubling K_F", np.log(2),
        "; the law's form would give 2", 1.0, "A slope of 1, which the law's form has,", caveats,
    )  # fmt: skip


def _train_size(fits: ScalingFits) -> Finding:
    question = "Does the loss fall with N as the law allows?"
    caveats = ["The law is an upper bound: only a fall slower than it allows contradicts it."]
    fit = fits.find("exponent")
    if fit.status != "ok":
        return _untested(
            question, fit.reason, _to_add(fits, fit, "two train sizes and losses clear of guessing"), caveats
        )
    estimate = fit.estimates[0]
    used = [d.d_data for d in fits.datasets if d.dataset in fit.by_dataset and d.d_data is not None]
    middle = float(np.median(used)) if used else 1.0
    clear = ""
    if fit.num_at_guessing:
        kept = fit.num_curves - fit.num_at_guessing
        clear = f" ({kept} of {plural(fit.num_curves, 'curve')}: the others lie near guessing)"
    times = _scaled(estimate, -np.log(2) / middle)
    factor = f"doubling N multiplies the loss by {times} at d_data {number(middle)}"
    bound = f"the bound asks for {number(float(2 ** (-1 / middle)))} or less"
    slope = f"log test loss on −log N / d has slope {number(estimate.value)} ({interval(estimate.interval)})"
    within = f"Within {plural(fit.num_datasets, 'dataset')}"
    where = f"{within}{clear}, {factor}; {bound}. There {slope}, the bound being 1"
    notes = (*_hangs_on(estimate, "the slope"), *caveats)
    if estimate.interval is None:
        text = f"{within}, {slope}, without any scatter to judge it by."
        return _untested(question, "the losses have no scatter to judge a slope by", caveats=(text, *notes))
    low, high = estimate.interval
    below, falls = fits.claim(r.BELOW_BOUND), fits.claim(r.EXPONENT)
    claim: Claim | None
    if below is not None and below.established and high < 1:
        sure = _established(falls, estimate)
        way = "rises with N" if sure and high < 0 else "falls more slowly with N than the bound allows"
        way += "" if sure else ", if it falls at all"
        held, said, claim = True, f"the loss {way}, which contradicts the bound", below
    elif falls is not None and _established(falls, estimate):
        way = "falls with N, and nothing contradicts the bound" if low > 0 else "rises with N"
        held, said, claim = True, f"the loss {way}", falls
    else:
        held, said, claim = False, "neither a fall with N nor a contradiction is established", falls
    power = "" if held else _power(fits, estimate, fit.num_datasets - 1, 1.0, "A fall as fast as the bound")
    answer = f"{where}; {_decides(claim)}: {said}.{power}"
    short = f"{factor}; {_decides(claim)}: {said}"
    return Finding(question, "established" if held else "not established", short, answer, notes)


def _attacks(fits: ScalingFits) -> Finding:
    question = "Do attacks gain more where labels are sharper?"
    tried = [fit for fit in fits.fits if fit.kind == "attack" and fit.model != t.POOLED]
    if not tried:
        return _untested(question, "no attack was run", "put attacks into the sweep file")
    known = [fit for fit in tried if fit.status == "ok"]
    claim = fits.claim(r.ATTACKS)
    if not known:
        most = max(tried, key=lambda fit: fit.num_datasets)
        return _untested(question, most.reason, _to_add(fits, most, "K_F and attacks at equal N"))
    if claim is None:
        return _untested(question, _few_ways(known[0].estimates[0]), "add a dataset of either domain")
    best = max(known, key=lambda fit: fit.estimates[0].value)
    strongest = best.estimates[0]
    about = f"{plural(len(known), 'combination')} of attack, epsilon and model"
    domains = len({d.domain for d in fits.datasets}) > 1
    means = f"over {best.num_datasets} datasets, at equal model and train size" + (
        ", within domains" if domains else ""
    )
    attack = f"{_attack_words(best)} on {best.model}"
    found = f"r = {number(strongest.value)} (95 % interval {interval(strongest.interval)}) for {attack}"
    held = [fit for fit in known if (fit.estimates[0].resampled_p or 1.0) <= LEVEL]
    if claim.established and strongest.interval is not None and strongest.interval[0] > 0:
        answer = (
            f"The loss gained by an attack rises with K_F in {len(held)} of {about}, adjusted for their "
            f"number ({means}); the strongest is {found}; {_decides(claim)}."
        )
        verdict: Verdict = "established"
    else:
        shift = np.arctanh(STRONG) * np.sqrt(max(best.num_datasets - 3 - domains, 0))
        level = LEVEL / max(1, len(fits.claims))
        power = float(special.ndtr(shift - special.ndtri(1 - level)))
        opposed = "" if strongest.value > 0 else " It falls with K_F, against what the law expects."
        answer = (
            f"For none of {about} is it established that the loss gained rises with K_F ({means}): the "
            f"largest correlation is {found}; {_decides(claim)}.{opposed} A correlation of {STRONG:g} would "
            f"be established in at most {power:.0%} of such tables."
        )
        verdict = "not established"
    if len(known) == 1:
        answer = answer.replace(
            f"in 1 of {about}, adjusted for their number ({means}); the strongest is", f"({means}):"
        )
        answer = answer.replace(f"For none of {about} is it established that", "It is not established that")
        answer = answer.replace("the largest correlation is ", "")
    return Finding(question, verdict, f"correlation {found}; {_decides(claim)}", answer)


def _attack_words(fit: Fit) -> str:
    attack = c.attack_columns([fit.response])[0]
    return f"{attack.attack.upper()} at {attack.epsilon:g}/255"


def _representation(fits: ScalingFits) -> Finding:
    question = "Does a network compress its data below their intrinsic dimension?"
    fit = fits.find("representation", variant="mle", response=c.D_REPR_MLE)
    if fit.status != "ok":
        return _untested(question, fit.reason)
    share = fit.estimates[0]
    span = (
        ""
        if share.interval is None
        else f", 95 % interval {share.interval[0]:.0%} to {share.interval[1]:.0%}"
    )
    found = f"d_repr is at or below d_data at {fit.num_held} of {plural(fit.num_points, 'point')}"
    mean = f"each dataset counting once: {share.value:.0%}{span}"
    caveats = []
    if fit.by_dataset:
        worst = sorted(fit.by_dataset.items(), key=lambda item: (-item[1], item[0]))[:3]
        caveats.append("Above it are most often " + listing([f"{n} ({part:.0%})" for n, part in worst]) + ".")
    caveats.append("Both are estimates on a few hundred points; estimators differ by tens of per cent.")
    answer = f"{found} ({mean}); the approximate bound d_repr ≲ d_data expects nearly all. Exploratory."
    short = f"at {fit.num_held} of {plural(fit.num_points, 'point')} d_repr is at or below d_data ({mean})"
    return Finding(question, "described", short, answer, tuple(caveats))


def _experiment(fits: ScalingFits) -> Finding:
    found = fits.interventions
    assert found is not None  # noqa: S101 - its caller asked
    caveats = [
        "Worlds are the replicates; intervals are over them, for these kinds of images and these networks.",
        "Arms with exchanged labels also raise the loss that no network can go below.",
    ]
    cells = sum(e.num_at_chance for e in found.effects if e.response == "loss" and not e.arm)
    if cells:
        caveats.append(
            f"Left out: {cells} pairs in which the base itself learned nothing (loss at guessing)."
        )
    without = sum(e.num_without for e in found.effects if e.response == "error" and not e.arm)
    if without:
        caveats.append(f"{without} pairs have an error of 0 on one side, which has no logarithm.")
    short = found.answer.split(". ")[0]
    return Finding(
        "When only one property is moved, what follows?", "described", short, found.answer, tuple(caveats)
    )
