"""The findings in plain words, written from the fits, never by hand: a sentence claims something
only where a headline claim is established and its interval excludes the null; else it says what
decides, with its power.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import factorial, prod
from textwrap import wrap
from typing import Literal

import numpy as np

from orchestrator.analysis import fits as f
from orchestrator.analysis import table as t
from orchestrator.analysis.class_pairs import (
    AT_DELTA,
    PAIR_QUESTIONS,
    R_HAT,
    R_HAT_FREE,
    UNITS_ALONE,
)
from orchestrator.analysis.fits import Claim, Estimate, Fit, ScalingFits
from orchestrator.analysis.grouped_tables.slopes import Slope
from orchestrator.analysis.inference import LEVEL
from orchestrator.analysis.interventions import followed
from orchestrator.analysis.one_dataset import OneDataset
from orchestrator.analysis.table import decided, interval, listing, number, p_value, plural
from orchestrator.results import columns as c

Verdict = Literal["established", "not established", "cannot be tested", "described"]
_VERDICT: dict[bool, Verdict] = {True: "established", False: "not established"}


@dataclass(frozen=True, slots=True)
class Finding:
    """A question, verdict, answer in a line and in full, caveats, what to add; ``way``: yes, no,
    reverse.
    """

    question: str
    verdict: Verdict
    short: str
    answer: str
    caveats: tuple[str, ...] = ()
    to_add: str = ""
    way: str = ""

    @property
    def badge(self) -> str:
        """The verdict, with its answer: that something is established does not say what."""
        return f"{self.way}, {self.verdict}" if self.verdict == "established" else self.verdict

    @property
    def line(self) -> str:
        """The answer in short as a sentence, with what to add where it cannot be tested."""
        added = f" To test it, {self.to_add}." if self.to_add else ""
        return f"{self.short[:1].upper()}{self.short[1:]}.{added}"


def findings(fits: ScalingFits) -> tuple[Finding, ...]:
    """Return the answers to the study's questions; of an experiment, whose chosen worlds share
    images, what followed. What class pairs answer stands first, in place of what cannot be tested.
    """
    if fits.one_dataset is not None:
        return of_one_dataset(fits, fits.one_dataset)
    asked = (_dimension, _sharpness, _train_size, _attacks, _representation)
    found = [answer(fits) for answer in ((_experiment,) if fits.interventions else asked)]
    d_data = next((d.d_data for d in fits.datasets if d.d_data and d.loss), None)
    pairs = [*_of_pairs(fits.class_pairs, d_data)]
    return (*pairs, *(one for one in found if not pairs or one.verdict != "cannot be tested"))


def of_one_dataset(fits: ScalingFits, single: OneDataset) -> tuple[Finding, ...]:
    """Return what one dataset answers, and in one line what would need more of them."""
    answers = []
    if single.best:
        question = f"Which network is best on {single.dataset}?"
        line = single.best_line
        caveats = tuple(filter(None, [single.test_set_line, single.why_no_curves]))
        answers.append(Finding(question, "described", line.rstrip("."), line, caveats))
    for curve in single.curves:
        question = f"What would more images bring {curve.name}?"
        measured, *expected = (line.strip() for line in curve.lines())
        short = " ".join(expected)
        answers.append(Finding(question, "described", short.rstrip("."), f"{measured} {short}"))
    if single.robustness:
        question = "How easily are the networks fooled?"
        line = single.robustness_line
        answers.append(Finding(question, "described", line, f"{line}."))
    representation = _representation(fits)
    if representation.verdict == "described":
        answers.append(representation)
    reason = "the study's questions compare datasets, and here is one"
    to_add = "add datasets: isweep power says how many they need"
    untested = _untested("What do d_data and K_F decide?", reason, to_add)
    place = single.dimension_line
    return (*answers, replace(untested, caveats=(place,)) if place else untested)


def family(fits: ScalingFits) -> str:
    """Say over how many tests the claims are adjusted, and that the rest is exploratory."""
    if fits.interventions:
        return (
            "Its worlds share images: no claim is made of what holds between them; see "
            "docs/fits.md."
        )
    if fits.class_pairs:
        num_tested = sum(slope.adjusted_p is not None for slope in fits.class_pairs)
        return (
            f"Class pairs: jackknife over classes, p by Holm over {num_tested} slopes. R̂: distance "
            "to another decision. δ: mean distance to the nearest unlike image; see docs/fits.md."
        )
    verdicts = Counter(finding.verdict for finding in findings(fits))
    held, num = verdicts["established"], verdicts["established"] + verdicts["not established"]
    if not num:
        return "No headline question could be tested; everything here is exploratory."
    return (
        f"{held} of {plural(num, 'headline question')} that could be tested "
        f"{'is' if 1 in (held, num) else 'are'} answered with a claim; the chance of any false one "
        "is held "
        f"to {LEVEL:.0%} over their {plural(len(fits.claims), 'test')} (Holm). Everything else in "
        "this "
        "report, compression too, is exploratory."
    )


def summary(fits: ScalingFits, *, width: int = 80, most_lines: int = 24) -> list[str]:
    """Return what a terminal shows; remarks beyond ``most_lines`` are counted, an answer is never
    cut.
    """
    said = family(fits)
    head = (
        f"{fits.num_used:,} of {plural(fits.num_trials, 'trial')} fitted: "
        f"{plural(len(fits.datasets), 'dataset')}, {plural(len(fits.models), 'model')}. "
        f"{said if fits.class_pairs else said.split(';')[0] + '.'}"
    )
    limits = [*fits.caveats, *(f"Left out: {one}." for one in fits.excluded)]
    lines = wrap(head, width)
    for finding in findings(fits):
        lines += wrap(f"{finding.badge.upper()}: {finding.question}", width)
        lines += wrap(finding.line, width, initial_indent="  ", subsequent_indent="  ")
    for k, text in enumerate(limits):
        wrapped = wrap(f"- {text}", width, subsequent_indent="  ")
        if len(lines) + len(wrapped) > most_lines - (k + 1 < len(limits)):
            return [*lines, f"- {plural(len(limits) - k, 'remark')} more, in the report."]
        lines += wrapped
    return lines


def _scaled(estimate: Estimate, by: float) -> str:
    """Say by what a loss is multiplied, with its interval, where its logarithm moves by ``by``
    estimates.
    """
    with np.errstate(over="ignore"):
        ends = sorted(float(np.exp(bound * by)) for bound in estimate.interval or ())
    bounds = (ends[0], ends[1]) if ends else None
    return f"{number(float(np.exp(estimate.value * by)))} (95 % interval {interval(bounds)})"


def _decides(claim: Claim | None, estimate: Estimate, null: float = 0.0) -> str:
    p, adjusted_p = (claim.p_value, claim.adjusted_p) if claim else (None, None)
    return decided(p, adjusted_p, estimate.interval, null)


def _power(estimate: Estimate, degrees: int, effect: float, words: str) -> str:
    """How often at most such a study would establish an effect: permutations and Holm ask for
    more.
    """
    power = f.t_power(effect, estimate.std_error, degrees)
    return "" if power is None else f"; {words} would show in at most {power:.0%} of such studies"


def _hangs_on(estimate: Estimate, words: str) -> list[str]:
    """Name the dataset that the value hangs on most, with the value without it."""
    name = estimate.influential
    if name is None:
        return []
    weight = estimate.weights.get(name)
    carries = f", which carries {weight:.0%} of the weight" if weight is not None else ""
    turned = sorted(n for n, value in estimate.left_out.items() if value * estimate.value < 0)
    signs = f" Its sign turns without {' or '.join(turned)}." if turned else ""
    return [
        f"Hangs most on {name}{carries}: without it, {words} is {number(estimate.left_out[name])} "
        "instead of "
        f"{number(estimate.value)}.{signs}"
    ]


def _untested(question: str, reason: str, to_add: str = "", caveats: Sequence[str] = ()) -> Finding:
    answer = f"This cannot be tested: {reason}."
    return Finding(question, "cannot be tested", reason, answer, tuple(caveats), to_add)


def _to_add(fits: ScalingFits, fit: Fit, what: str, reason: str = "") -> str:
    if t.UNEQUAL_SCALES in (fit.reason, reason):
        return "measure K_F at one image size and number of channels"
    if fit.status == "refused":
        return "train until losses leave guessing"
    missing, whose = max(0, fit.num_needed - fit.num_datasets), "dataset"
    domains = Counter(d.domain for d in fits.datasets if d.loss is not None)
    if fit.kind != "exponent" and domains:
        # Four of one domain can change places in 24 ways, two and three of both in 12 alone.
        (domain, num), *others = domains.most_common()
        ways = prod(factorial(other) for _, other in others)
        while ways * factorial(num + missing) < 1 / LEVEL:
            missing += 1
        whose = f"{domain} dataset"
    return f"add {plural(missing, whose)} with {what}" if missing else ""


def _few_ways(estimate: Estimate) -> str:
    ways = plural(estimate.num_resamples, "way")
    return (
        f"datasets can change places within domains in {ways}, too few for a p-value of {LEVEL:g}"
    )


def _of_height(
    fits: ScalingFits,
    key: str,
    name: str,
    question: str,
    *,
    what: str,
    meaning: str,
    by: float,
    law: str,
    effect: float,
    effect_words: str,
    caveats: Sequence[str],
) -> Finding:
    """``meaning`` is done to the property and moves the term by ``by``; power is reckoned for
    ``effect``.
    """
    fit = fits.find("headline")
    estimate, reason = fit.estimate(name), fit.reason
    if estimate is None and fit.status == "ok":
        reason = fits.why_no_sharpness
    elif estimate is not None and not estimate.is_tested:
        reason = _few_ways(estimate)
    if estimate is None or reason:
        return _untested(
            question, reason, _to_add(fits, fit, "d_data, K_F and losses", reason), caveats
        )
    claim, term = fits.claim(key), t.WORDS[name]
    held, decides = claim is not None and claim.established, _decides(claim, estimate)
    short = f"{meaning} multiplies the loss by {_scaled(estimate, by)}{law}; {decides}"
    falling = ", which falls as d_data rises," if name == t.INVERSE_D else ""
    slope = (
        f"The slope on {term}{falling} is {number(estimate.value)} ({interval(estimate.interval)})."
    )
    over = f"{t.given(fit.terms, name)}, over {plural(fit.num_datasets, 'dataset')}"
    rises = estimate.value * by > 0
    found = f"log test loss {'rises' if rises else 'falls'} with {what}"
    if not held:
        found = f"no change of log test loss with {what} is established"
        short += _power(estimate, fit.num_datasets - len(fit.terms) - 1, effect, effect_words)
    notes = (*_hangs_on(estimate, f"the slope on {term}"), *caveats)
    answer = f"At equal model and train size{over}, {found}: {short}. {slope}"
    return Finding(
        question, _VERDICT[held], short, answer, notes, way="yes" if rises else "the reverse"
    )


def _dimension(fits: ScalingFits) -> Finding:
    low, high = fits.d_data_range
    gap = fits.find("height", t.IS_MEDICAL)
    caveats = []
    if gap.status == "ok":
        offset = gap.estimates[0]
        p = "" if offset.resampled_p is None else f", permutation p {p_value(offset.resampled_p)}"
        caveats.append(
            f"From natural to medical the loss is multiplied by {_scaled(offset, 1.0)}{p}, "
            "adjusted for "
            "nothing; exploratory, over all that the domains differ by."
        )
    return _of_height(
        fits,
        f.DIMENSION,
        t.INVERSE_D,
        ("Is a dataset of higher intrinsic dimension harder to learn?"),
        what="d_data",
        by=1 / high - 1 / low,
        law="",
        effect=fits.twice_as_high,
        caveats=caveats,
        meaning=(
            f"going from the lowest to the highest d_data here ({number(low)} to {number(high)})"
        ),
        effect_words="a doubling",
    )


def _sharpness(fits: ScalingFits) -> Finding:
    return _of_height(
        fits,
        f.SHARPNESS,
        t.LOG_SHARPNESS,
        "Do sharper labels give higher losses?",
        what="K_F",
        meaning="doubling K_F",
        by=np.log(2),
        law="; the law's form would give 2",
        effect=1.0,
        effect_words="that",
        caveats=[fits.sharpness_scale.note] if fits.sharpness_scale.note else [],
    )


def _train_size(fits: ScalingFits) -> Finding:
    question = "Does the loss fall with N as the law allows?"
    caveats = ["The law is an upper bound: only a fall slower than it allows contradicts it."]
    fit = fits.find("exponent")
    if fit.status != "ok":
        to_add = _to_add(fits, fit, "two train sizes and losses clear of guessing")
        return _untested(question, fit.reason, to_add, caveats)
    estimate = fit.estimates[0]
    used = [d.d_data for d in fits.datasets if d.dataset in fit.by_dataset and d.d_data is not None]
    middle = float(np.median(used)) if used else 1.0
    kept, of = fit.num_curves - fit.num_at_guessing, plural(fit.num_curves, "curve")
    clear = f" ({kept} of {of}: the others lie near guessing)" * bool(fit.num_at_guessing)
    times = _scaled(estimate, -np.log(2) / middle)
    factor = f"doubling N multiplies the loss by {times} at the median d_data, {number(middle)}"
    slope = (
        f"log test loss on −log N / d has slope {number(estimate.value)} "
        f"({interval(estimate.interval)})"
    )
    notes = (*_hangs_on(estimate, "the slope"), *caveats)
    low, high = estimate.interval or (-np.inf, np.inf)
    below, falls = fits.claim(f.BELOW_BOUND), fits.claim(f.EXPONENT)
    held, decides, way, said = False, _decides(falls, estimate), "no", ""
    sure = falls is not None and falls.established
    if below is not None and below.established:
        said = (
            "rises with N"
            if sure and high < 0
            else "falls more slowly with N than the bound allows"
        )
        said += "" if sure else ", if it falls at all"
        held, decides = True, _decides(below, estimate, 1.0)
        said = f": the loss {said}, which contradicts the bound"
    elif sure:
        held, way, said = True, "no", ": the loss rises with N"
        if low > 0:
            way, said = "yes", ": the loss falls with N, and nothing contradicts the bound"
        if 0 < low <= high < 1:
            way, said = (
                "it falls",
                ": the loss falls with N; that it falls too slowly is not established",
            )
    none = "" if held else " neither a fall with N nor a contradiction is established:"
    said = said or _power(estimate, fit.num_datasets - 1, 1.0, "a fall as fast as the bound")
    short = f"{factor}; {decides}{said}"
    bound = (
        f"The bound asks for {number(float(2 ** (-1 / middle)))} or less; {slope}, the bound "
        "being 1."
    )
    answer = f"Within {plural(fit.num_datasets, 'dataset')}{clear},{none} {short}. {bound}"
    return Finding(question, _VERDICT[held], short, answer, notes, way=way)


def _attacks(fits: ScalingFits) -> Finding:
    question = "Do attacks gain more where labels are sharper?"
    tried, claim = fits.attacks, fits.claim(f.ATTACKS)
    if not tried:
        return _untested(question, "no attack was run", "put attacks into the sweep file")
    known = [fit for fit in tried if fit.status == "ok"]
    best = max(
        known or tried, key=lambda fit: (fit.estimates[0].value if known else 0, fit.num_datasets)
    )
    if claim is None:
        reason = _few_ways(best.estimates[0]) if known else best.reason
        return _untested(question, reason, _to_add(fits, best, "K_F and attacks at equal N"))
    strongest, alone = best.estimates[0], len(known) == 1
    domains = len({d.domain for d in fits.datasets}) > 1
    about = f"{plural(len(known), 'combination')} of attack, epsilon and model"
    of = f" (K_F of {best.variant} alone)" if best.variant else ""
    means = (
        f"over {best.num_datasets} datasets{of}, at equal model and N{', within domains' * domains}"
    )
    model = best.model if " " in best.model else f"model {best.model}"
    attack = f"{c.attack_columns([best.response])[0].words} on {model}"
    found = (
        f"r = {number(strongest.value)} (95 % interval {interval(strongest.interval)}) for {attack}"
    )
    held = claim.established
    decides = decided(
        claim.p_value, claim.adjusted_p, strongest.interval if strongest.value > 0 else None
    )
    found += f"; for a rise, {decides}"
    largest_is, tail = "" if alone else "the largest is ", ""
    if held:
        times = sum((fit.estimates[0].resampled_p or 1.0) <= LEVEL for fit in known)
        of = "" if alone else f" in {times} of {about}, adjusted for their number"
        lead = f"The loss gained by an attack rises with K_F{of}"
    else:
        power = f.correlation_power(best.num_datasets, domains)
        found += f"; r = {f.STRONG:g} would show in at most {power:.0%} of such studies"
        lead = "It is not established" if alone else f"For none of {about} is it established"
        lead += " that the loss gained rises with K_F"
        tail = (
            ""
            if strongest.value > 0
            else " The estimate is of a fall, against what the law expects."
        )
    answer = f"{lead} ({means}): {largest_is}{found}.{tail}"
    notes = tuple(_hangs_on(strongest, "r"))
    return Finding(question, _VERDICT[held], f"correlation {found}", answer, notes, way="yes")


def _of_pairs(slopes: Sequence[Slope], d_data: float | None) -> Iterator[Finding]:
    """Yield what class pairs answer: a finding per question, and one of all slopes at equal δ."""
    by_estimand = {slope.on: slope for slope in slopes}
    for slope in slopes:
        if PAIR_QUESTIONS[slope.on].text:
            in_pixels = by_estimand.get(R_HAT) if slope.on == R_HAT_FREE else None
            yield _of_pair_slope(slope, d_data, in_pixels)
    if at_delta := [slope for slope in slopes if slope.on in AT_DELTA]:
        yield _at_equal_delta(at_delta)


def _of_pair_slope(slope: Slope, d_data: float | None, in_pixels: Slope | None) -> Finding:
    """Say what one slope over class pairs answers; ``in_pixels`` is the same one in pixel units,
    which is shown beside it and claims nothing.
    """
    question = PAIR_QUESTIONS[slope.on]
    caveats = []
    if in_pixels is not None and in_pixels.value is not None:
        shown = f"{number(in_pixels.value)} (95 % interval {interval(in_pixels.interval)})"
        caveats.append(f"In pixel units the {in_pixels.on} is {shown}, but {UNITS_ALONE}.")
    if slope.value is None:
        return _untested(question.text, slope.reason, caveats=caveats)
    without = {f"class {name}": value for name, value in slope.left_out.items()}
    numbers = replace(slope, left_out=without).numbers.removeprefix("slope ")
    text = f"{slope.on.replace('against the', 'less the')} is {numbers}"
    way = "yes" if slope.value * question.expects > 0 else "the reverse"

    def by(value: float) -> float:
        power = -value / (d_data or np.nan) if question.response == "fall" else value
        return float(value * np.log(2) if question.response == "drop" else 2**power)

    low, high = sorted(map(by, slope.interval or (np.nan, np.nan)))
    if question.doubling and slope.established and np.isfinite(low):
        text += f"; {question.doubling} {number(by(slope.value))} ({interval((low, high))})"
    verdict = _VERDICT[slope.established]
    answer = f"{text[:1].upper()}{text[1:]}."
    return Finding(question.text, verdict, text, answer, tuple(caveats), way=way)


def _at_equal_delta(slopes: Sequence[Slope]) -> Finding:
    """Say what still goes with K_F between pairs of equal mean distance δ."""
    question = "What still goes with K_F at equal mean distance between classes?"
    known = [slope for slope in slopes if slope.value is not None]
    if not known:
        return _untested(question, slopes[0].reason)
    said = [
        f"{AT_DELTA[slope.on]} {number(slope.value)} ({interval(slope.interval)})"
        for slope in known
    ]
    text = f"slopes on log K_F at equal 1/d and δ: {'; '.join(said)}"
    claimed = [slope for slope in known if slope.established]
    for slope in claimed:
        moves = "rises" if (slope.value or 0.0) > 0 else "falls"
        text += f"; {AT_DELTA[slope.on]} {moves} with K_F, adjusted p {p_value(slope.adjusted_p)}"
    if not claimed:
        text += "; no effect was detected, and effects within these intervals are possible"
    verdict = _VERDICT[bool(claimed)]
    return Finding(question, verdict, text, f"{text[:1].upper()}{text[1:]}.", way="something")


def _representation(fits: ScalingFits) -> Finding:
    question = "Does a network compress its data below their intrinsic dimension?"
    fit = fits.find("representation")
    if fit.status != "ok":
        return _untested(question, fit.reason, "measure both on one set of training images")
    share = fit.estimates[0]
    tells = share.interval is not None and share.interval != (0.0, 1.0)
    span = (
        f", 95 % interval {' to '.join(f'{bound:.0%}' for bound in share.interval or ())}"
        if tells
        else ""
    )
    mean = f" (each dataset counting once: {share.value:.0%}{span})" if fit.num_datasets > 1 else ""
    points = f"{fit.num_held} of {plural(fit.num_points, 'point')}"
    points += (
        f" ({lack} more lack one of the two)" if (lack := fits.num_points - fit.num_points) else ""
    )
    caveats = ["Both are estimates on a few hundred points; estimators differ by tens of per cent."]
    if worst := sorted(fit.by_dataset.items(), key=lambda item: (-item[1], item[0]))[:3]:
        named = listing([f"{name} ({part:.0%})" for name, part in worst])
        caveats.insert(0, f"Above it are most often {named}.")
    answer = (
        f"d_repr is at or below d_data at {points}{mean}; the approximate bound d_repr ≲ d_data "
        "expects "
        "nearly all. Exploratory."
    )
    short = f"at {points} d_repr is at or below d_data{mean}"
    return Finding(question, "described", short, answer, tuple(caveats))


def _experiment(fits: ScalingFits) -> Finding:
    found = fits.interventions
    assert found is not None  # noqa: S101 - its caller asked
    caveats = [
        "Worlds are the replicates; intervals are over them, for these kinds of images and these "
        "networks. "
        "Where they share classes, an interval is the wider of t over worlds and a jackknife over "
        "classes.",
        "Arms with exchanged labels also raise the loss that no network can go below.",
    ]
    whole = [effect for effect in found.effects if not effect.arm]
    if cells := sum(effect.num_at_chance for effect in whole if effect.response == "loss"):
        caveats.append(
            f"Left out: {plural(cells, 'pair')} whose base guesses (guessing's loss or more)."
        )
    if without := sum(effect.num_without for effect in whole if effect.response == "error"):
        caveats.append(f"{without} pairs have an error of 0 on one side, which has no logarithm.")
    short = followed(found.effects).rstrip(".")
    on_training = any(effect.tested_on for effect in found.effects)
    moved = "in training images alone" if on_training else "in training and test images"
    question = f"When one property is moved, {moved}, what follows?"
    return Finding(question, "described", short, found.answer, tuple(caveats))
