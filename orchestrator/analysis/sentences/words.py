"""The list of words that a page explains: those of its own answers, and no others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from orchestrator.analysis.fits import ScalingFits
from orchestrator.analysis.number_formats import number
from orchestrator.analysis.results_tables.chance_level import AT_CHANCE_SHARE
from orchestrator.results.columns import attack_columns

METHODS = {
    "fgsm": "every pixel moves by that much, in the direction that raises the loss (fast gradient "
    "sign method)",
    "pgd": "every pixel moves by at most that much, in several small steps, each in the direction "
    "that raises the loss (projected gradient descent)",
}
"""Attack -> what it does to an image."""


def words_of(fits: ScalingFits) -> Iterator[tuple[str, str]]:
    """Yield a word and its meaning, as they hold on the page of these fits."""
    yield from _of_data(fits)
    yield from _of_tests(fits)
    yield from _of_attacks(fits)
    yield from _of_losses()


def _of_data(fits: ScalingFits) -> Iterator[tuple[str, str]]:
    yield (
        "d_data",
        "Intrinsic dimension of the training images: how many numbers it takes, locally, to tell "
        "one image from its neighbours. In formulas it is d.",
    )
    yield (
        "K_F",
        "Label sharpness: the largest 1/distance over pairs of images with different labels. It "
        "scales with pixel range, side and channels.",
    )
    if fits.class_pairs:
        yield (
            "δ",
            "The mean distance of a training image to the nearest image of the other class (L2, in "
            "1/255 of the pixel range).",
        )
    if any("R̂" in slope.on for slope in fits.class_pairs):
        yield (
            "R̂",
            "The distance from an image to the nearest one that the network labels otherwise.",
        )
    yield (
        "d_repr",
        "Intrinsic dimension of the last hidden layer's activations on the training images.",
    )
    yield "N", "Train size: how many images a network was trained on."
    yield "pooled", "A fit over all models at once, each with its own intercept."


def _of_tests(fits: ScalingFits) -> Iterator[tuple[str, str]]:
    replicates = "datasets, not trainings, since the law is about datasets"
    if fits.class_pairs:
        replicates = "classes, which pairs share, and not over pairs or trainings"
    yield (
        "interval",
        f"The 95 % interval. It is over {replicates}. It is for one number alone, not adjusted for "
        "the number of tests.",
    )
    if fits.class_pairs:
        yield (
            "jackknife",
            "Every number is computed anew without each class in turn; their scatter gives the "
            "interval.",
        )
    yield (
        "supported, contradicted",
        "The adjusted p is at most 0.05 and the interval leaves the null value out. The estimate "
        "is on the side that the question expects, or on the other.",
    )
    yield (
        "undecided",
        "Not shown, and not excluded. The adjusted p is above 0.05, or the interval holds the null "
        "value.",
    )
    yield "described", "Numbers that are shown and not tested."
    yield "not testable", "The table lacks what the test needs; the answer says what to add."
    yield (
        "against 0, against 1",
        "The null value: the number if nothing is there, or the law's bound. Two-sided: a result "
        "on either side counts.",
    )
    yield (
        "adjusted p",
        "The p-value after Holm's correction (1979) for the number of tests beside it.",
    )
    yield (
        "at the verdict's level, … of 100 such studies would detect",
        "The power: how often such data, with this scatter, would detect an effect of that size. "
        "The level is 5 % over the number of tests, the strictest one of Holm's correction.",
    )


def _of_attacks(fits: ScalingFits) -> Iterator[tuple[str, str]]:
    named: dict[str, str] = {}
    for column in attack_columns(dict.fromkeys(fit.response for fit in fits.attacks)):
        named.setdefault(column.attack, column.words)
    for method, words in named.items():
        if method in METHODS:
            yield words, f"An attack: {METHODS[method]}. Sizes are in 1/255 of the pixel range."


def _of_losses() -> Iterator[tuple[str, str]]:
    yield (
        "nat",
        "Unit of the loss, by natural logarithms: 1 nat is 1.44 bits, and guessing between two "
        "classes costs ln 2.",
    )
    share = f"{AT_CHANCE_SHARE:g} ln n or more for n classes"
    yield (
        "at chance level",
        f"A loss of {share} ({number(AT_CHANCE_SHARE * np.log(2))} for two), where accuracy and "
        "AUROC are not well above chance either. Guessing costs ln n.",
    )
    yield (
        "over-confident",
        f"A loss of {share}, although accuracy or AUROC is well above chance: wrong answers are as "
        "sure as right ones.",
    )
