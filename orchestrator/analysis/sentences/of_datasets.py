"""Sentences on the answers to the study's questions about several datasets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.analysis.answers import Answer, Question, Verdict
from orchestrator.analysis.fits import ScalingFits, doubling_slope
from orchestrator.analysis.headline import (
    ATTACKS,
    BELOW_BOUND,
    DIMENSION,
    EXPONENT,
    LAW_SLOPE,
    SHARPNESS,
    needed_for_doubling,
    strongest_attack,
)
from orchestrator.analysis.inference import LEVEL
from orchestrator.analysis.law_fits.estimates import Estimate
from orchestrator.analysis.law_fits.exponents import ABOVE_CHANCE, TWONN
from orchestrator.analysis.law_fits.falls import sign_test_p
from orchestrator.analysis.law_fits.records import (
    AttackFit,
    ExponentFit,
    FallFit,
    HeightFit,
    RepresentationFit,
)
from orchestrator.analysis.number_formats import interval, listing, number, p_equals, percent
from orchestrator.analysis.results_tables.points import (
    INVERSE_D,
    IS_MEDICAL,
    LOG_SHARPNESS,
    WORDS,
    given,
)
from orchestrator.analysis.sentences.finding import (
    LABEL_SHARPNESS_MEANS,
    Finding,
    changes_of_sign,
    details_of_test,
    multiplied,
    not_testable,
    p_sentences,
    short_answer,
)
from orchestrator.analysis.sentences.to_add import datasets_to_add
from orchestrator.results.columns import attack_columns
from search_spaces.errors import plural

FALL_QUESTION = "Did the loss fall with N?"
MAX_WORST = 3
"""Number of datasets in the sentence on the highest shares of points with d_repr above d_data.
If further datasets have the same share as the last one, the sentence names them too."""
HELD_EQUAL = {INVERSE_D: "d_data", LOG_SHARPNESS: "K_F", IS_MEDICAL: "domain"}
"""Name of the dataset property that a term represents, by column of the term."""
MAX_NAMED_NETWORKS = 4
"""Largest number of networks that a sentence lists. The tables list all networks."""


def of_datasets(fits: ScalingFits) -> Iterator[Finding]:
    """Yield the findings on the study's questions."""
    yield _dimension(fits)
    yield _sharpness(fits)
    fall = _fall(fits)
    # If there are class pairs, a test answers this question. It is stronger than a count of
    # datasets.
    if fall is not None and not fits.class_pairs:
        yield fall
    yield _exponent(fits)
    yield _attacks(fits)
    yield of_representations(fits)


@dataclass(frozen=True, slots=True)
class Property:
    """A property of datasets, and a comparison of the losses of two kinds of datasets.

    Attributes:
        name: Name of the property.
        column: Column of the term that represents the property in the fit.
        step: Sentence that compares two kinds of datasets, without a full stop. It contains
            ``{}`` in place of the factor between their losses.
        change: Difference of the term between the two kinds of datasets.
        effect: Slope for which the power is computed; None if there is no such slope.
    """

    name: str
    column: str
    step: str
    change: float
    effect: float | None


def _of_height(
    fits: ScalingFits, answer: Answer, dataset_property: Property, notes: Sequence[str]
) -> Finding:
    """Return the finding on a question about heights.

    A height is a dataset's log loss at equal N.
    """
    fit = fits.headline()
    if answer.verdict == "not testable" or answer.value is None:
        to_add = datasets_to_add(fits, fit, "d_data, K_F and losses", answer.reason)
        return not_testable(answer.question.text, answer.reason, to_add, notes)
    column = dataset_property.column
    slope = f"the slope on {WORDS[column]}"
    details = [
        f"This compares {plural(fit.num_datasets, 'dataset')} at equal model and "
        f"N{given(fit.terms, column)}.",
        f"The slope on {WORDS[column]} is {number(answer.value)} "
        f"(95 % interval {interval(answer.interval)}).",
    ]
    if column == INVERSE_D:
        details += [
            "The factor compares datasets with the highest and the lowest d_data.",
            "A negative slope means that the loss rises with d_data.",
        ]
    claim = ""
    if answer.is_decided:
        claim = _claim(answer.value, dataset_property)
    factor, bounds = multiplied(answer.value, answer.interval, dataset_property.change)
    details += details_of_test(answer, slope)
    if not answer.is_decided and dataset_property.effect is not None:
        details.append(_datasets_needed(fit, column, dataset_property.effect, answer.num_tests))
    return Finding(
        question=answer.question.text,
        verdict=answer.verdict,
        sentences=short_answer(
            answer,
            f"{dataset_property.step.format(factor)}{_at_equal(fit.terms, column)}",
            interval(bounds),
            name_of_value=slope,
            claim=claim,
        ),
        details=tuple(details),
        notes=(*changes_of_sign(answer), *notes),
        claim=claim,
    )


def _at_equal(terms: Sequence[str], column: str) -> str:
    """Return the other terms of a fit, as `` at equal K_F and domain``; empty if there are none."""
    names = [HELD_EQUAL[term] for term in terms if term != column]
    return f" at equal {listing(names)}" if names else ""


def _claim(value: float, dataset_property: Property) -> str:
    """Return the statement that the loss rises or falls with a property."""
    verb = "rises" if value * dataset_property.change > 0 else "falls"
    return f"The loss {verb} with {dataset_property.name}."


def _datasets_needed(fit: HeightFit, column: str, effect: float, tests: int) -> str:
    """Return a sentence on the number of datasets with which studies would detect the effect."""
    needed = needed_for_doubling(fit, column, effect, tests)
    if needed is None:
        return "No practical number of such datasets would let 80 of 100 studies detect it."
    return (
        f"With about {needed:,} such datasets, 80 of 100 studies would detect it. If "
        f"{WORDS[column]} differs less between the datasets, more are needed."
    )


def _dimension(fits: ScalingFits) -> Finding:
    low, high = fits.d_data_range
    notes = []
    gap = fits.height(IS_MEDICAL)
    if gap.status == "ok":
        notes.append(_domain_gap(gap.estimates[0]))
    intrinsic_dimension = Property(
        name="d_data",
        column=INVERSE_D,
        step=(
            f"Datasets with d_data = {number(high)} have {{}} times the loss of datasets with "
            f"{number(low)}"
        ),
        change=1 / high - 1 / low,
        effect=doubling_slope(fits.datasets),
    )
    return _of_height(fits, fits.answer(DIMENSION), intrinsic_dimension, notes)


def _domain_gap(offset: Estimate) -> str:
    """Return a sentence on the ratio of the losses of medical and natural datasets."""
    factor, bounds = multiplied(offset.value, offset.interval, 1.0)
    return (
        f"Here, the loss of medical datasets is {factor} times the loss of natural ones (95 % "
        f"interval {interval(bounds, null=1.0)}). This comparison is exploratory, and it does "
        f"not hold d_data and K_F constant."
    )


def datasets_needed_for_sharpness(fits: ScalingFits) -> int | None:
    """Return the number of datasets with which a study would detect the law's slope on log K_F.

    Returns None if the question is decided, or if no practical number is large enough.
    """
    return _needed_if_undecided(fits, SHARPNESS, LOG_SHARPNESS, LAW_SLOPE)


def datasets_needed_for_dimension(fits: ScalingFits) -> int | None:
    """Return the number of datasets with which a study would detect the effect of d_data.

    The effect is that the loss doubles over the range of d_data. Returns None if the question
    is decided, or if no practical number is large enough.
    """
    effect = doubling_slope(fits.datasets)
    if effect is None:
        return None
    return _needed_if_undecided(fits, DIMENSION, INVERSE_D, effect)


def _needed_if_undecided(
    fits: ScalingFits, question: Question, column: str, effect: float
) -> int | None:
    """Return the number of datasets with which 80 of 100 studies would detect an effect.

    Returns None if the question is decided, or if no practical number is large enough.
    """
    answer = fits.answer(question)
    if answer.verdict != "undecided":
        return None
    return needed_for_doubling(fits.headline(), column, effect, answer.num_tests)


def _sharpness(fits: ScalingFits) -> Finding:
    values = [d.label_sharpness for d in fits.datasets if d.label_sharpness]
    # If no two datasets differ by a factor of two, such a factor would be outside the data.
    kinds = "twice the"
    factor = 2.0
    if values and max(values) < factor * min(values):
        kinds = "10 % higher"
        factor = 1.1
    label_sharpness = Property(
        name="K_F",
        column=LOG_SHARPNESS,
        step=f"Datasets with {kinds} K_F have {{}} times the loss",
        change=float(np.log(factor)),
        effect=LAW_SLOPE,
    )
    notes = []
    if fits.sharpness_scale.note:
        notes.append(fits.sharpness_scale.note)
    finding = _of_height(fits, fits.answer(SHARPNESS), label_sharpness, notes)
    return finding.with_sentence(LABEL_SHARPNESS_MEANS)


def _fall(fits: ScalingFits) -> Finding | None:
    """Count the datasets in which the loss fell with N.

    Returns None if no curve has two train sizes.
    """
    fit = fits.fall()
    if fit.status != "ok":
        return None
    (slope,) = fit.estimates
    smallest, largest = fit.train_sizes
    share = _of_all_datasets(fit.num_falling, fit.num_datasets)
    details = []
    if fit.sign_p is not None and fit.num_datasets > 1 and not fits.dependent_datasets:
        details.append(
            "A two-sided exact sign test of the datasets' slopes gives "
            f"{p_equals(fit.sign_p)}, not adjusted."
        )
    factor, bounds = multiplied(slope.value, slope.interval, float(np.log(2)))
    doubling = f"Doubling N went with {factor} times the loss"
    if bounds is not None:
        doubling += f" (95 % interval {interval(bounds, null=1.0)})"
    counted = f"{fit.num_falling_curves} of {plural(fit.num_curves, 'curve')}"
    mean_slope = f"The mean slope of log loss on log N is {number(slope.value)}"
    if slope.interval is not None:
        mean_slope += f" (95 % interval {interval(slope.interval)})"
    details += [
        "Every dataset has the same weight. Its networks are averaged.",
        *_of_doubling_by_model(fit),
        *_of_short_training(fit),
        f"The loss of a single network fell in {counted}.",
        f"{mean_slope}.",
    ]
    return Finding(
        question=FALL_QUESTION,
        verdict="described",
        sentences=(
            f"The loss fell from N = {smallest:,} to {largest:,} in {share}.",
            f"{doubling}.",
            *_without_unfitted(fit),
        ),
        details=tuple(details),
    )


def _of_doubling_by_model(fit: FallFit) -> Iterator[str]:
    """Yield a sentence on the factor for twice the N of each network, if there are a few."""
    if 1 < len(fit.by_model) <= MAX_NAMED_NETWORKS:
        factors = []
        for model, slope in fit.by_model.items():
            factor, _ = multiplied(slope, None, float(np.log(2)))
            factors.append(f"{factor} for {model}")
        yield f"By network, this factor is {listing(factors)}."


def _without_unfitted(fit: FallFit) -> Iterator[str]:
    """Yield a sentence on the factor without networks that do not fit their training images.

    With the same number of epochs, a larger N means more optimizer steps. Some networks may
    therefore have a high loss at small N only because they had too few steps.
    """
    if not fit.num_unfitted:
        return
    if fit.of_fitted is None:
        yield f"More training steps at larger N may contribute: {_unfitted_at_smallest(fit)}."
        return
    factor, bounds = multiplied(fit.of_fitted.value, fit.of_fitted.interval, float(np.log(2)))
    in_parentheses = ""
    if bounds is not None:
        in_parentheses = f" ({interval(bounds, null=1.0)})"
    yield (
        "Without networks that do not fit their training images, this factor is "
        f"{factor}{in_parentheses}."
    )


def _of_short_training(fit: FallFit) -> Iterator[str]:
    """Yield a sentence on the reason of a lower factor without unfitted networks."""
    if fit.num_unfitted and fit.of_fitted is not None:
        yield f"More training steps at larger N may contribute: {_unfitted_at_smallest(fit)}."


def _unfitted_at_smallest(fit: FallFit) -> str:
    """Return the number of networks that do not fit their training images at the smallest N."""
    verb, whose = ("does", "its") if fit.num_unfitted == 1 else ("do", "their")
    return (
        f"at N = {fit.train_sizes[0]:,}, {fit.num_unfitted} of "
        f"{plural(fit.num_at_smallest, 'network')} {verb} not fit {whose} training images"
    )


def _of_all_datasets(count: int, total: int) -> str:
    """Return a count in words, such as ``3 of 8 datasets`` or ``all 8 datasets``."""
    if count == total > 1:
        return f"all {total} datasets"
    return f"{count} of {plural(total, 'dataset')}"


def _exponent(fits: ScalingFits) -> Finding:
    """Return the finding on the exponent b, with tests against 0 and against the law's bound."""
    question = EXPONENT.text
    notes = ["The law is an upper bound for large N: only a slower fall contradicts it."]
    fit = fits.exponent()
    falls = fits.answer(EXPONENT)
    against_bound = fits.answer(BELOW_BOUND)
    if fit.status != "ok" or falls.value is None:
        to_add = datasets_to_add(fits, fit, "two train sizes and losses clear of chance level")
        return not_testable(question, falls.reason, to_add, notes)
    # Readers can hardly interpret b. Therefore a sentence states the factor by which the loss
    # changes if N doubles, at the median d.
    d_values = [
        d.d_data for d in fits.datasets if d.dataset in fit.by_dataset and d.d_data is not None
    ]
    middle = float(np.median(d_values)) if d_values else 1.0
    factor, bounds = multiplied(falls.value, falls.interval, -np.log(2) / middle)
    allowed = number(float(2 ** (-1 / middle)))
    verdict, claim = _verdict_on_fall(falls, against_bound)
    heaviest = [*_heaviest_dataset(fit.estimates[0])]
    above_the_law = []
    short = short_answer(
        falls,
        f"For a loss ∝ N^(−b/d), b is {number(falls.value)}",
        interval(falls.interval),
        name_of_value="b",
        if_undecided="",
        against=" against b = 0",
    )
    if against_bound.adjusted_p is not None:
        above_the_law = [_above_the_law(fits)]
        short = (*short, _against_the_law(against_bound))
        if not (falls.is_decided or against_bound.is_decided):
            short = (*short, *_why_uncertain(fits.fall(), fit.estimates[0]))
            heaviest = []
    short = (*short, *of_other_estimator(fits))
    if claim:
        claim = f"{claim}."
        short = (claim, *short)
    details = [
        f"b is the slope of log loss on −log N / d within {plural(fit.num_datasets, 'dataset')}.",
        *above_the_law,
        _range_of_exponents(fit),
        f"At this b and the median d_data, {number(middle)}, doubling N goes with {factor} "
        f"times the loss (95 % interval {interval(bounds)}).",
        f"The bound allows a factor of {allowed} or less.",
        *_difference_of_factors(fits.fall(), fit.estimates[0], factor),
        *heaviest,
        *details_of_test(falls, "b"),
        *p_sentences(against_bound),
        *_of_curves_at_chance(fit),
    ]
    return Finding(
        question=question,
        verdict=verdict,
        sentences=short,
        details=tuple(details),
        notes=(*changes_of_sign(falls), *notes),
        claim=claim,
    )


def of_other_estimator(fits: ScalingFits) -> Iterator[str]:
    """Yield a sentence on the exponent with d by TwoNN; none if TwoNN was not measured.

    The exponent is proportional to d, so an estimator that gives a larger d also gives a
    larger exponent.
    """
    fit = fits.exponent(variant=TWONN)
    exponent = fit.estimate("exponent")
    if exponent is None:
        return
    place = ""
    if fit.num_datasets != fits.exponent().num_datasets:
        place = f" in {plural(fit.num_datasets, 'dataset')}"
    yield (
        f"With d by TwoNN{place}, b is {number(exponent.value)} "
        f"({interval(exponent.interval)}; exploratory)."
    )


def _of_curves_at_chance(fit: ExponentFit) -> Iterator[str]:
    """Yield a sentence on the number of fitted curves if other curves are near chance level."""
    if fit.num_at_chance:
        num_clear = fit.num_curves - fit.num_at_chance
        yield (
            f"b is fitted to {num_clear} of {plural(fit.num_curves, 'curve')}, because the "
            "others are near chance level."
        )


def _against_the_law(against_bound: Answer) -> str:
    """Return a sentence on whether the exponent is compatible with the law's value 1, with p."""
    if against_bound.adjusted_p is None:
        return "There is no test of b against the law's value 1."
    adjusted = p_equals(against_bound.adjusted_p)
    low, high = against_bound.interval or (-np.inf, np.inf)
    conclusion = "no difference from the law's rate is shown"
    if against_bound.is_decided:
        conclusion = "b differs from the law's rate"
    elif low <= LAW_SLOPE <= high:
        conclusion = "the data are compatible with the law's rate"
        if low <= EXPONENT.null <= high:
            # An interval that contains 0 and 1 shows neither whether the loss falls nor how
            # fast. A reason can be that a few datasets with low d have most of the weight in
            # this b.
            conclusion = "b is too uncertain"
    return f"Against the law's b = 1, adjusted {adjusted}: {conclusion}."


def _above_the_law(fits: ScalingFits) -> str:
    """Return a sentence on the number of datasets with an exponent above the law's value 1.

    The sentence also gives the p-value of an exact sign test. Unlike the pooled exponent, the
    sign test gives every dataset the same weight. The sign test belongs to no family of tests,
    so no verdict uses it. It assumes that datasets are independent.
    """
    fit = fits.exponent()
    text = f"b is above 1 in {_of_all_datasets(fit.num_above_bound, len(fit.by_dataset))}"
    exponents = np.array([*fit.by_dataset.values()])
    p = sign_test_p(exponents - LAW_SLOPE)
    if p is not None and not fits.dependent_datasets:
        text += f" (exact sign test: {p_equals(p)}, not adjusted)"
    # Losses at chance level do not fall with N, so the count can differ without them.
    above_chance = fits.exponent(variant=ABOVE_CHANCE)
    if fits.num_at_chance_level and above_chance.by_dataset:
        counted = f"{above_chance.num_above_bound} of {len(above_chance.by_dataset)}"
        text += f"; without points at chance level, in {counted}"
    return f"{text}."


def _range_of_exponents(fit: ExponentFit) -> str:
    """Return a sentence on the smallest and the largest exponent of a dataset."""
    names = sorted(fit.by_dataset, key=fit.by_dataset.__getitem__)
    lowest, highest = names[0], names[-1]
    return (
        f"The b of single datasets ranges from {number(fit.by_dataset[lowest])} ({lowest}) to "
        f"{number(fit.by_dataset[highest])} ({highest})."
    )


def _heaviest_dataset(exponent: Estimate) -> Iterator[str]:
    """Yield a sentence on the dataset with the largest weight in the pooled exponent."""
    if exponent.weights:
        heaviest = max(sorted(exponent.weights), key=exponent.weights.__getitem__)
        share = percent(exponent.weights[heaviest])
        yield f"One dataset, {heaviest}, has {share} of the weight in this b."


def _why_uncertain(fall: FallFit, exponent: Estimate) -> Iterator[str]:
    """Yield a sentence on the dataset with the largest weight in an undecided exponent.

    If the loss fell in all datasets, the previous finding says so, and b seems to contradict it.
    """
    if fall.num_falling != fall.num_datasets or fall.num_datasets < 2:
        yield from _heaviest_dataset(exponent)
    elif exponent.weights:
        heaviest = max(sorted(exponent.weights), key=exponent.weights.__getitem__)
        yield (
            f"The loss still fell in all {fall.num_datasets} datasets: b gives "
            f"{percent(exponent.weights[heaviest])} of its weight to {heaviest}."
        )


def _difference_of_factors(fall: FallFit, exponent: Estimate, factor: str) -> Iterator[str]:
    """Yield sentences on why the factor for doubling N differs from the previous answer."""
    if fall.status == "ok":
        other, _ = multiplied(fall.estimates[0].value, None, float(np.log(2)))
        if other != factor:
            yield (
                f"The previous answer has another factor, {other}: there, all datasets "
                "have the same weight."
            )
    if exponent.weights:
        yield "Here, the weight of a dataset is in proportion to Σ(log N − mean)² / d²."


def _verdict_on_fall(falls: Answer, against_bound: Answer) -> tuple[Verdict, str]:
    """Return the joint verdict of two tests, and its statement without a full stop."""
    low, high = falls.interval or (-np.inf, np.inf)
    if against_bound.verdict == "supported":
        return "supported", "The loss falls faster with N than the law's bound"
    if against_bound.verdict == "contradicted":
        if falls.verdict == "contradicted":
            return "contradicted", "The loss rises with N, which contradicts the law's bound"
        if falls.verdict == "supported":
            statement = "The loss falls more slowly with N than the law's bound allows"
        else:
            statement = "If at all, the loss falls more slowly with N than the law's bound allows"
        return "contradicted", statement
    if falls.verdict == "contradicted":
        return "contradicted", "The loss rises with N"
    if falls.verdict == "supported":
        if 0 < low <= high < 1:
            return "supported", (
                "The loss falls with N; it is undecided whether it falls too slowly for the "
                "law's bound"
            )
        return "supported", "The loss falls with N, and nothing contradicts the law's bound"
    return "undecided", ""


def _attacks(fits: ScalingFits) -> Finding:
    """Return the finding on whether attacks raise the loss more if labels are sharper."""
    answer = fits.answer(ATTACKS)
    best = strongest_attack(fits.attacks)
    question = ATTACKS.text
    if best is None:
        return not_testable(question, answer.reason, "put attacks into the sweep file")
    if answer.verdict == "not testable" or answer.value is None:
        to_add = datasets_to_add(fits, best, "K_F and attacks at equal N", answer.reason)
        return not_testable(question, answer.reason, to_add)
    correlations = [fit for fit in fits.attacks if fit.status == "ok"]
    attack = attack_columns([best.response])[0].words
    model = best.model if " " in best.model else f"model {best.model}"
    # If a dataset is left out, another attack or model may have the largest correlation.
    name_of_r = f"r of {attack} on {best.model}"
    domains = {dataset.domain for dataset in fits.datasets}
    within_domains = ", within domains" if len(domains) > 1 else ""
    details = [
        f"r is the correlation of K_F with the loss gained by {attack} on {model}.",
        f"This compares {plural(best.num_datasets, 'dataset')} at equal model and N"
        f"{within_domains}.",
    ]
    if best.variant:
        details.append(f"Only datasets with K_F of {best.variant} are compared.")
    claim = ""
    if answer.is_decided:
        claim = f"{answer.statement}."
        details.append(
            f"The rise is significant in {_num_significant(correlations)} of {len(correlations)} "
            "combinations of attack, epsilon and model, adjusted for their number."
        )
    size = f"The correlation is r = {number(answer.value)}"
    of_interval = ""
    if len(correlations) > 1:
        smallest = min(fit.estimates[0].value for fit in correlations)
        size = (
            f"The {len(correlations)} correlations, one per attack and network, range from "
            f"{number(smallest)} to {number(answer.value)}"
        )
        of_interval = " of the largest one"
    sentences = short_answer(
        answer,
        size,
        interval(answer.interval),
        name_of_value="this r",
        claim=claim,
        of_interval=of_interval,
        without_one=_range_without_one(best, answer, len(correlations)),
    )
    if answer.value <= 0:
        sentences += ("The law expects a rise.",)
    return Finding(
        question=question,
        verdict=answer.verdict,
        sentences=sentences,
        details=(*details, *details_of_test(answer, name_of_r)),
        notes=changes_of_sign(answer),
        claim=claim,
    )


def _range_without_one(best: AttackFit, answer: Answer, num_correlations: int) -> str:
    """Return the range of all correlations without the most influential dataset, as a clause.

    The text is empty if there is one correlation, or if the range is unknown.
    """
    if num_correlations == 1 or best.range_left_out is None:
        return ""
    smallest, largest = map(number, best.range_left_out)
    return (
        f"without {answer.most_influential}, the {num_correlations} range from {smallest} to "
        f"{largest}"
    )


def _num_significant(fits: Sequence[AttackFit]) -> int:
    """Return the number of correlations with an adjusted p of at most 0.05."""
    p_values = (fit.estimates[0].resampled_p for fit in fits)
    return sum(p is not None and p <= LEVEL for p in p_values)


def of_representations(fits: ScalingFits) -> Finding:
    """Return the finding on the number of points at which d_repr is at most d_data."""
    question = "Does a network compress its data below their intrinsic dimension?"
    fit = fits.representation()
    if fit.status != "ok":
        return not_testable(question, fit.reason, "measure both on one set of training images")
    (share,) = fit.estimates
    count = fit.num_held
    counts_above = False
    comparison = "at most"
    if fit.num_datasets == 1 and 2 * fit.num_held < fit.num_points:
        count = fit.num_points - fit.num_held
        counts_above = True
        comparison = "larger than"
    counts = f"{count} of {plural(fit.num_points, 'point')}"
    if not counts_above:
        counts = _counts_by_network(fits) or counts
    counted = (
        f"At {counts}, the dimension of the network's last hidden layer (d_repr) is "
        f"{comparison} d_data."
    )
    sentences = [
        counted,
        *_of_fitted_networks(fit, counts_above=counts_above),
        *_of_ratio(fit),
    ]
    details = []
    if fit.num_datasets > 1:
        text = (
            "If all datasets have the same weight, d_repr is at most d_data at "
            f"{percent(share.value)} of points"
        )
        if share.interval is not None and share.interval != (0.0, 1.0):
            low, high = share.interval
            text += f" (95 % interval {percent(low)} to {percent(high)})"
        details.append(f"{text}.")
    num_lacking = fits.num_points - fit.num_points
    if num_lacking:
        missing_at = plural(num_lacking, "more point")
        details.append(f"d_repr or d_data is missing at {missing_at}.")
    details += [
        "The bound d_repr ≲ d_data is approximate: it states no largest ratio, so a count of "
        "ratios above 1 does not test it.",
        "These counts are exploratory. They are not tested.",
    ]
    notes = [*_highest_shares(fit)]
    notes.append(
        "d_repr and d_data are estimates. Other estimators can give values that differ by a factor "
        "of 2 or more."
    )
    return Finding(
        question=question,
        verdict="described",
        sentences=tuple(sentences),
        details=tuple(details),
        notes=tuple(notes),
    )


def _highest_shares(fit: RepresentationFit) -> Iterator[str]:
    """Yield a sentence on the datasets in which d_repr is above d_data at most points."""
    by_share = sorted(fit.by_dataset.items(), key=lambda entry: (-entry[1], entry[0]))
    if by_share and fit.num_datasets > 1:
        # Further datasets with the same share as the last named dataset are also named.
        _, smallest_named = by_share[:MAX_WORST][-1]
        worst = [(name, part) for name, part in by_share if part >= smallest_named]
        named = listing([f"{name} ({percent(part)})" for name, part in worst])
        yield f"The share of points with d_repr above d_data is highest in {named}."


def _of_fitted_networks(fit: RepresentationFit, *, counts_above: bool) -> Iterator[str]:
    """Yield a sentence with the results without networks that do not fit their training images.

    A network with unknown train accuracy is counted.

    Args:
        fit: The counts.
        counts_above: True if points with d_repr above d_data are counted. False if the other
            points are counted.
    """
    if not fit.num_unfitted:
        return
    num_fitted = fit.num_points - fit.num_unfitted
    if not num_fitted:
        yield "No network here fits its training images."
        return
    count = fit.num_held - fit.num_held_unfitted
    if counts_above:
        count = num_fitted - count
    text = (
        "Without networks that do not fit their training images, this holds at "
        f"{count} of {num_fitted} points"
    )
    if fit.median_ratio_fitted is not None:
        text += f", and the median d_repr / d_data is {number(fit.median_ratio_fitted)}"
    yield f"{text}."


def _of_ratio(fit: RepresentationFit) -> Iterator[str]:
    """Yield sentences on the median of d_repr / d_data, and whether it agrees with the bound.

    If some networks do not fit their training images, :func:`_of_fitted_networks` states the
    median of the other networks.

    The bound d_repr ≲ d_data is approximate and states no tolerance. A count of ratios above 1
    therefore does not test the bound.
    """
    if fit.median_ratio is not None and not fit.num_unfitted:
        yield f"The median d_repr / d_data is {number(fit.median_ratio)}."
    if fit.num_held == fit.num_points:
        yield "All points agree with the bound d_repr ≲ d_data."


def _counts_by_network(fits: ScalingFits) -> str:
    """Return the counts of points of each network as text.

    The text is empty if there is one network or if there are too many networks to list.
    """
    counts = []
    for model in fits.models:
        of_model = fits.representation(model)
        if of_model.status == "ok":
            points = plural(of_model.num_points, "point")
            counts.append(f"{of_model.num_held} of {points} of {model}")
    if len(counts) == 1 or len(counts) > MAX_NAMED_NETWORKS:
        return ""
    return listing(counts)
