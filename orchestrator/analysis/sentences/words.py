"""The words that a page of answers explains: only words that occur in its answers."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.analysis.fits import ScalingFits
from orchestrator.analysis.results_tables.chance_level import (
    AT_CHANCE_SHARE,
    chance_limits_in_words,
    chance_losses_in_words,
)
from orchestrator.results.columns import attack_columns
from search_spaces.attacks import ATTACKS


def words_of(fits: ScalingFits) -> Iterator[tuple[str, str]]:
    """Yield each word that the page of these fits explains, and its meaning."""
    yield from _of_data(fits)
    yield from _of_tests(fits)
    yield from _of_attacks(fits)
    yield from _of_losses(fits)


def _of_data(fits: ScalingFits) -> Iterator[tuple[str, str]]:
    yield (
        "d_data",
        "Intrinsic dimension of the training images: the number of directions in which an "
        "image and its neighbors differ. In formulas it is d.",
    )
    yield (
        "K_F",
        "Label sharpness: 1 / the smallest distance between images with different "
        "labels. Its unit "
        "is 1/pixel value. It depends on the pixel range, the image size and the number of "
        "channels.",
    )
    if fits.class_pairs:
        yield (
            "δ",
            "The mean distance from a training image to the nearest image with another label "
            "(L2, in 1/255 of the pixel range). Every image counts, not only the closest "
            "pair.",
        )
    if any("R̂" in slope.on for slope in fits.class_pairs):
        yield (
            "R̂",
            "The distance from an image to the nearest image for which the network predicts "
            "another class.",
        )
    yield (
        "d_repr",
        "Intrinsic dimension of the last hidden layer's activations on the training images.",
    )
    yield "N", "Train size: the number of images on which a network was trained."
    yield (
        "point",
        "One network on one dataset, or on one class pair, at one N. Its numbers are means over "
        "seeds.",
    )
    yield "pooled", "One fit to all models together, with an intercept for each model."


def _of_tests(fits: ScalingFits) -> Iterator[tuple[str, str]]:
    replicates = "datasets, not trainings: the law is about datasets"
    if fits.class_pairs:
        replicates = "classes, not pairs or trainings: pairs share classes"
    yield (
        "interval",
        f"The 95 % interval. Its replicates are {replicates}. An interval holds for one "
        "number and is not adjusted for the number of tests. Only the intervals of "
        "correlations with attacks hold for all these correlations together.",
    )
    if fits.class_pairs:
        yield (
            "jackknife",
            "A method for intervals. A number is computed again without each class in turn, "
            "and the interval follows from the scatter of these values.",
        )
    yield (
        "supported, contradicted",
        "The adjusted p is at most 0.05 and the interval excludes the null value. If the "
        "estimate is on the expected side, the claim is supported. If the estimate is on the "
        "other side, the claim is contradicted.",
    )
    if fits.asked_after_seeing:
        yield (
            "suggested",
            "The effect was detected by the rule for supported and contradicted answers. But "
            "results on these images were known when the question or its settings were chosen, so "
            "the answer confirms nothing.",
        )
    yield (
        "undecided",
        "The effect is neither shown nor excluded. The adjusted p is above 0.05, or the "
        "interval includes the null value.",
    )
    yield (
        "described",
        "The numbers belong to no family of tests, so no verdict follows from them. A p "
        "beside these numbers is not adjusted.",
    )
    yield "not testable", "The table lacks data that the test needs. The answer says what to add."
    yield (
        "test against 0, against 1",
        "0 and 1 are null values: the value without an effect, or the law's bound. In a "
        "two-sided test, a result on either side counts.",
    )
    yield (
        "adjusted p",
        "The p-value after Holm's correction (1979) for the number of tests.",
    )
    yield (
        "at a significance level of …, … of 100 such studies would detect",
        "The power: the share of studies with this scatter that would detect an effect of "
        "this size. The level is 5 % divided by the number of tests, Holm's strictest level. "
        "isweep power simulates sweeps with the scatter of published results instead, so its "
        "powers differ.",
    )


def _of_attacks(fits: ScalingFits) -> Iterator[tuple[str, str]]:
    named: dict[str, str] = {}
    for column in attack_columns(dict.fromkeys(fit.response for fit in fits.attacks)):
        named.setdefault(column.attack, column.words)
    for method, words in named.items():
        if method in ATTACKS:
            effect = ATTACKS[method].effect
            yield words, f"An attack: {effect}. Sizes are in 1/255 of the pixel range."


def _of_losses(fits: ScalingFits) -> Iterator[tuple[str, str]]:
    class_counts = [dataset.num_classes for dataset in fits.datasets]
    limits = chance_limits_in_words(class_counts)
    chance_losses = chance_losses_in_words(class_counts)
    yield (
        "nat",
        "Unit of the loss, from natural logarithms. 1 nat is 1.44 bits. Guessing has a loss of "
        f"{chance_losses}.",
    )
    yield (
        "at chance level",
        f"The loss is at least {AT_CHANCE_SHARE:g} ln n for n classes "
        f"({limits}), and accuracy and AUROC are not well above chance. Guessing has a loss "
        "of ln n.",
    )
    yield (
        "over-confident",
        f"The loss is at least {AT_CHANCE_SHARE:g} ln n for n classes, but accuracy or AUROC "
        "is well above chance. The loss is also larger than the loss of a network with the "
        "same accuracy whose confidence equals this accuracy.",
    )
