"""Answers from a sweep of one dataset: best network, learning curves, robustness, test set size.

The study's four questions compare datasets, so a sweep of one dataset cannot answer them. It
can answer other questions:

- Which network has the lowest loss at each train size, and how certain is this?
- How do losses fall with N, and what would twice the images gain?
- How many images are needed for a score that is better than the best score so far?
- How much does an attack raise the loss at each train size?
- How many test images are needed to detect a difference between the two best networks?
- How high is the intrinsic dimension, compared with the published datasets?
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from orchestrator.analysis.curve_answers import (
    CurveAnswer,
    CurveQuestion,
    answers,
    measured_assurance,
)
from orchestrator.analysis.inference import Interval, t_interval
from orchestrator.analysis.learning_curves import MIN_SIZES, Metric
from orchestrator.analysis.number_formats import listing, number
from orchestrator.analysis.paired_networks import (
    PairedComparison,
    independent_test_size,
    paired_comparison,
)
from orchestrator.analysis.results_tables.chance_level import is_at_chance_level
from orchestrator.results.columns import (
    AUC,
    BEST_EPOCH,
    CLASS_PAIR,
    D_DATA_MLE,
    DATASET,
    MODEL,
    NUM_CLASSES,
    NUM_EPOCHS,
    SEED,
    TEST_ACCURACY,
    TEST_LOSS,
    TEST_SIZE,
    TRAIN_SIZE,
    AttackColumn,
    attack_columns,
)
from search_spaces.errors import DataError, plural
from search_spaces.published import read_published

NORMAL_QUANTILE = 1.959964
"""The 97.5 % quantile of the normal distribution, for 95 % intervals."""
MIN_CLASSES = 2
"""Smallest number of classes among which a network can guess."""
MIN_SEEDS_FOR_INTERVAL = 3
"""Smallest number of seeds for an interval of the difference between two networks."""
SIGNIFICANCE_LEVEL = 0.05
"""Largest p-value at which a difference between two networks on the test images counts as
detected."""
ROBUSTNESS_BUDGET = 8.0
"""Largest epsilon of a reported attack, in 1/255 of the pixel range. People can see larger
changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BestNetwork:
    """The two networks with the lowest mean test losses at one train size.

    Attributes:
        train_size: Train size N.
        model: Name of the network with the lowest loss.
        loss: Mean test loss of this network, in nat.
        runner_up: Name of the network with the second lowest loss.
        runner_up_loss: Mean test loss of the second network, in nat.
        accuracy: Mean test accuracy of the first network; None if it is unknown.
        runner_up_accuracy: Mean test accuracy of the second network; None if it is unknown.
        auroc: Mean AUROC of the first network; None if it is unknown.
        runner_up_auroc: Mean AUROC of the second network; None if it is unknown.
        difference: 95 % interval of log(loss of the second network / loss of the best
            network), paired by seed. None if there are fewer than three seeds.
        paired: Comparison of both networks on the same test images; None if predictions are
            not stored.
        test_images_needed: Number of test images with which 8 of 10 studies would detect the
            difference of the accuracies; None if the accuracies are equal or missing.
    """

    train_size: int
    model: str
    loss: float
    runner_up: str
    runner_up_loss: float
    accuracy: float | None
    runner_up_accuracy: float | None
    auroc: float | None
    runner_up_auroc: float | None
    difference: Interval | None
    paired: PairedComparison | None
    test_images_needed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustnessAtSize:
    """The accuracy and the loss of one network at one train size, with and without an attack.

    Attributes:
        model: Name of the network.
        train_size: Train size N.
        attack: Name of the attack with its epsilon.
        loss_gain: Mean test loss under the attack minus mean test loss without the attack, in
            nat.
        accuracy: Mean test accuracy without the attack; None if it is unknown.
        attacked_accuracy: Mean test accuracy under the attack; None if it is unknown.
        is_at_chance: True if the network is at chance level at this train size.
    """

    model: str
    train_size: int
    attack: str
    loss_gain: float
    accuracy: float | None = None
    attacked_accuracy: float | None = None
    is_at_chance: bool = False

    @property
    def accuracies(self) -> str:
        """Both accuracies in words; empty if an accuracy is unknown."""
        if self.accuracy is None or self.attacked_accuracy is None:
            return ""
        return (
            f"{number(self.attacked_accuracy)} instead of {number(self.accuracy)} at N = "
            f"{number(self.train_size)}"
        )


@dataclass(frozen=True, slots=True)
class AttackedAccuracy:
    """The mean accuracy of one network at one train size under an attack.

    Attributes:
        attack: Name of the attack.
        epsilon: Largest change of a pixel, in 1/255 of the pixel range.
        accuracy: Mean accuracy under the attack.
    """

    attack: str
    epsilon: float
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BestScore:
    """The network with the lowest mean test loss at the largest train size.

    Attributes:
        model: Name of the network.
        train_size: Largest train size N.
        loss: Mean test loss, in nat.
        accuracy: Mean test accuracy; None if it is unknown.
        num_classes: Number of classes; 0 if it is unknown.
        num_networks: Number of networks at this train size.
        attacked: Accuracies of this network under the strongest attack up to 8/255, one per
            epsilon. Empty if the network is at chance level.
        num_test_images: Number of test images; 0 if it is unknown or differs between
            trainings.
    """

    model: str
    train_size: int
    loss: float
    accuracy: float | None
    num_classes: int = 0
    num_networks: int = 1
    attacked: tuple[AttackedAccuracy, ...] = ()
    num_test_images: int = 0

    @property
    def sentence(self) -> str:
        """Sentences on the scores of this network, and on the scores of guessing."""
        scores = f"test loss {number(self.loss)} nat"
        guessing = f"{number(math.log(self.num_classes or 1))} nat"
        if self.accuracy is not None:
            scores = f"accuracy {number(self.accuracy)}{self._interval_of_accuracy}, {scores}"
            guessing = f"accuracy {number(1 / (self.num_classes or 1))} and test loss {guessing}"
        best = "has the lowest test loss:" if self.num_networks > 1 else "has"
        images = plural(self.train_size, "training image")
        sentence = f"With {images}, {self.model} {best} {scores}."
        if self.num_classes < MIN_CLASSES:
            return sentence
        return (
            f"{sentence} Guessing among {self.num_classes} equally frequent classes has {guessing}."
        )

    @property
    def _interval_of_accuracy(self) -> str:
        """The 95 % interval of the accuracy in parentheses; empty without the test set size."""
        if self.accuracy is None or not self.num_test_images:
            return ""
        low, high = wilson_interval(self.accuracy, self.num_test_images)
        images = plural(self.num_test_images, "test image")
        return f" (95 % interval {number(low)} to {number(high)} from {images})"

    @property
    def attacked_sentence(self) -> str:
        """Sentences on the accuracy of this network under attack; empty if there is no attack."""
        if not self.attacked:
            return ""
        accuracies = [
            f"{number(attacked.accuracy)} at {attacked.epsilon:g}/255" for attacked in self.attacked
        ]
        return (
            f"Under {self.attacked[0].attack.upper()}, its accuracy is {listing(accuracies)}. "
            "These fractions are the largest change of a pixel, as a share of the pixel range. "
            "A stronger attack can lower the accuracy further."
        )


def wilson_interval(share: float, num_images: int) -> Interval:
    """Return Wilson's 95 % interval of a share of independent images.

    The interval of a mean over seeds is too wide, because it counts each test image once.

    Args:
        share: Share of the images, in [0, 1].
        num_images: Number of images.
    """
    squared = NORMAL_QUANTILE**2 / num_images
    center = (share + squared / 2) / (1 + squared)
    variance = share * (1 - share) / num_images + squared / (4 * num_images)
    half_width = NORMAL_QUANTILE * math.sqrt(variance) / (1 + squared)
    return center - half_width, center + half_width


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyBest:
    """Trainings of a network at its largest N whose test loss was lowest early and rose later.

    Attributes:
        model: Name of the network.
        train_size: Largest train size N.
        num_trainings: Number of trainings at this N.
        num_early: Number of these trainings whose test loss was lowest in the first half of
            the epochs.
        best_epochs: Mean epoch of the lowest test loss, by train size.
    """

    model: str
    train_size: int
    num_trainings: int
    num_early: int
    best_epochs: dict[int, float]

    @property
    def advice(self) -> str:
        """Sentences that advise fewer epochs, with the reason."""
        trainings = plural(self.num_trainings, "training")
        return (
            f"First train {self.model} for fewer epochs: in {self.num_early} of {trainings} at N = "
            f"{number(self.train_size)}, the test loss was lowest in the first half of the epochs "
            "and rose later."
        )

    @property
    def sentence(self) -> str:
        """A sentence on the mean epoch of the lowest loss at each train size."""
        means = [f"{number(epoch)} at N = {number(n)}" for n, epoch in self.best_epochs.items()]
        return f"The mean epoch of the lowest test loss of {self.model} is {listing(means)}."


@dataclass(frozen=True, slots=True)
class Target:
    """A score between the best score that the networks reached and a perfect score.

    Attributes:
        metric: ``accuracy`` or ``loss``.
        value: The score: a share in [0, 1], or a loss in nat.
        is_expected: True if the best network is expected to reach this score with twice the
            images. False if the score has half the errors or half the loss of the best result.
    """

    metric: Metric
    value: float
    is_expected: bool

    @property
    def option(self) -> str:
        """Name of the option of ``isweep predict`` for a target with the same metric."""
        return f"--target-{self.metric} TARGET"

    @property
    def reason(self) -> str:
        """A sentence on how isweep chose this target."""
        proposed = f"isweep proposes the target {self.metric} of {number(self.value)}"
        if self.is_expected:
            return (
                f"{proposed}, because about this {self.metric} is expected with twice your "
                "largest train size."
            )
        errors = "loss" if self.metric == "loss" else "error rate"
        return f"{proposed}, because it has about half the {errors} of the best result so far."


@dataclass(frozen=True, slots=True, kw_only=True)
class OneDataset:
    """The answers from a sweep of one dataset.

    Attributes:
        dataset: Name of the dataset.
        best_score: The network with the lowest mean test loss at the largest train size.
        best: The best network at each train size, sorted by train size; empty if there is only
            one network.
        curves: The learning curve of test losses of each network.
        target: A score that is better than the best score so far; None if there are no
            learning curves.
        target_curves: The learning curve of each network, with the number of images that
            reaches the target.
        target_remarks: Sentences on how often such numbers of images were large enough.
        robustness: Accuracy and loss under the strongest attack up to 8/255, for each network
            and train size.
        d_data: Intrinsic dimension at the largest train size at which it was measured.
        num_seeds: Number of seeds of the sweep.
        why_no_curves: The reason why there are no learning curves; empty if there are some.
        early_best: Networks whose trainings lasted too long in more than half of the cases.
    """

    dataset: str
    best_score: BestScore
    best: tuple[BestNetwork, ...]
    curves: tuple[CurveAnswer, ...]
    target: Target | None
    target_curves: tuple[CurveAnswer, ...]
    target_remarks: tuple[str, ...]
    robustness: tuple[RobustnessAtSize, ...]
    d_data: float | None
    num_seeds: int
    why_no_curves: str = ""
    early_best: tuple[EarlyBest, ...] = ()

    @property
    def best_sentences(self) -> tuple[str, str]:
        """Sentences on the best network by loss at each N, and on how certain its lead is."""
        last = self.best[-1]
        winners = sorted({at_size.model for at_size in self.best})
        if len(winners) == 1:
            sizes = f"at all {plural(len(self.best), 'train size')}"
            if len(self.best) == 1:
                sizes = f"at N = {number(last.train_size)}"
            lead = f"{last.model} has the lowest test loss {sizes}."
        else:
            by_size = [f"{at_size.model} at {number(at_size.train_size)}" for at_size in self.best]
            lead = f"By test loss, the best network depends on N: {listing(by_size)}."
        of_model, of_runner_up = f"{number(last.loss)} nat", f"{number(last.runner_up_loss)} nat"
        accuracies = ""
        if last.accuracy is not None and last.runner_up_accuracy is not None:
            of_model += _scores_in_words(last.accuracy, last.auroc)
            of_runner_up += _scores_in_words(last.runner_up_accuracy, last.runner_up_auroc)
            if last.runner_up_accuracy > last.accuracy:
                accuracies = f" {last.runner_up} has the higher accuracy."
        largest = ", the largest train size," if len(self.best) > 1 else ""
        losses = (
            f"At N = {number(last.train_size)}{largest} the test loss is {of_model} for "
            f"{last.model} and {of_runner_up} for {last.runner_up}.{accuracies}"
        )
        return f"{lead} {losses}", self._certainty()

    @property
    def best_by_size(self) -> str:
        """A sentence on the lowest and the second lowest loss at each train size."""
        parts = []
        for at_size in self.best:
            losses = f"{at_size.model} {number(at_size.loss)}"
            runner_up = f"{at_size.runner_up} {number(at_size.runner_up_loss)}"
            parts.append(f"N = {number(at_size.train_size)}: {losses}, {runner_up}")
        return f"The two lowest test losses at each train size: {'; '.join(parts)}."

    @property
    def best_model(self) -> str:
        """The network with the lowest loss at the largest train size, or the only network."""
        if self.best:
            return self.best[-1].model
        return self.curves[0].name if self.curves else ""

    def images_for_target(self, model: str) -> str:
        """Return a sentence on the number of images that a network needs to reach the target."""
        for curve in self.target_curves:
            if curve.name == model:
                return curve.images_line
        return ""

    def _certainty(self) -> str:
        last = self.best[-1]
        sentences = []
        if last.paired is not None:
            sentences.append(_on_images(last, last.paired))
        if last.difference is not None:
            low, high = (number(float(np.exp(bound))) for bound in last.difference)
            is_detected = last.difference[0] > 0
            detected = "the losses differ" if is_detected else "no difference in loss is detected"
            sentences.append(
                f"Over seeds at N = {number(last.train_size)}, {detected}: the loss of "
                f"{last.runner_up} is {low} to {high} times the loss of {last.model} "
                "(95 % interval)."
            )
        else:
            sentences.append(
                f"With {plural(self.num_seeds, 'seed')}, another training could change these "
                f"losses. Train {MIN_SEEDS_FOR_INTERVAL} seeds to get an interval."
            )
        return " ".join(sentences)

    @property
    def test_set_line(self) -> str:
        """A sentence on the number of test images needed to compare the two best networks."""
        last = self.best[-1]
        if last.test_images_needed is None:
            return ""
        lead = (
            f"To detect the difference in accuracy between {last.model} and {last.runner_up} at "
            f"N = {number(last.train_size)} in 8 of 10 studies, a test set needs about "
            f"{number(last.test_images_needed)} images"
        )
        if last.paired is not None:
            return f"{lead}, with both networks tested on the same images."
        return (
            f"{lead}. Fewer test images suffice if both networks err on the same images. To "
            "compare the networks image by image, run the sweep again with `--set "
            "predictions=true`."
        )

    @property
    def robustness_line(self) -> str:
        """Sentences on accuracy and loss under attack at the smallest and the largest N.

        They leave out networks at chance level: an attack cannot fool a network that learned
        nothing. The last sentence counts the omissions.
        """
        attack = self.robustness[0].attack
        learned = [at_size for at_size in self.robustness if not at_size.is_at_chance]
        sentences = []
        for model in sorted({at_size.model for at_size in learned}):
            of_model = [at_size for at_size in learned if at_size.model == model]
            ends = of_model[:1]
            if len(of_model) > 1:
                ends.append(of_model[-1])
            accuracies = [at_size.accuracies for at_size in ends]
            if all(accuracies):
                sentences.append(
                    f"Under {attack}, the accuracy of {model} is {' and '.join(accuracies)}."
                )
            gains = [
                f"{number(at_size.loss_gain)} nat at N = {number(at_size.train_size)}"
                for at_size in ends
            ]
            sentences.append(f"{attack} raises the loss of {model} by {' and by '.join(gains)}.")
        num_left_out = len(self.robustness) - len(learned)
        if num_left_out:
            sentences.append(
                f"Left out, because the network is at chance level: {num_left_out} of "
                f"{plural(len(self.robustness), 'combination')} of network and N."
            )
        return " ".join(sentences)

    @property
    def dimension_line(self) -> str:
        """Sentences that compare the dataset's intrinsic dimension with the published datasets."""
        if self.d_data is None:
            return ""
        published = published_dimensions()
        num_below = sum(value < self.d_data for value in published)
        return (
            f"d_data {number(self.d_data)} is higher than d_data of {num_below} of the "
            f"{len(published)} published datasets. According to the study's law, datasets of "
            "higher dimension need more images for the same loss. The comparison is rough, "
            "because d_data depends on N and on the estimator. `isweep measure` also compares "
            "K_F with published values."
        )


def _scores_in_words(accuracy: float, auroc: float | None) -> str:
    """Return an accuracy, and an AUROC if it is known, in parentheses."""
    of_auroc = "" if auroc is None else f", AUROC {number(auroc)}"
    return f" (accuracy {number(accuracy)}{of_auroc})"


def _on_images(best: BestNetwork, paired: PairedComparison) -> str:
    """Return sentences that compare two networks on the test images of the sweep."""
    low, high = (number(bound) for bound in paired.loss_interval)
    p_value = f"McNemar's p = {paired.p_value:.2g}"
    is_detected = paired.p_value <= SIGNIFICANCE_LEVEL
    verdict = "the accuracies differ" if is_detected else "no difference in accuracy is detected"
    num_first = number(paired.only_first_right)
    num_second = number(paired.only_second_right)
    counts = (
        f"Only {best.model} is right on {num_first} of them, and only {best.runner_up} is right on "
        f"{num_second} of them."
        if paired.num_seeds == 1
        else f"Over {paired.num_seeds} seeds, {best.model} is right more often on {num_first} of "
        f"them, and {best.runner_up} on {num_second}."
    )
    return (
        f"On the same {number(paired.num_images)} test images at N = {number(best.train_size)}, "
        f"{verdict} ({p_value}). {counts} "
        f"The loss of {best.runner_up} is {low} to {high} nat "
        "higher (95 % interval, for these trainings)."
    )


def published_dimensions() -> list[float]:
    """Return d_data of each published dataset at its largest train size."""
    largest: dict[str, tuple[int, float]] = {}
    for row in read_published("d_data"):
        at_size = int(row["train_size"]), float(row["d_data"])
        largest[row["dataset"]] = max(largest.get(row["dataset"], (0, 0.0)), at_size)
    return [d_data for _, d_data in largest.values()]


def one_dataset(table: pd.DataFrame, predictions: pd.DataFrame | None = None) -> OneDataset | None:
    """Return the answers from a table of one dataset.

    Returns None if the table has several datasets or class pairs.

    Args:
        table: One row per finished training, with the columns of a sweep's table.
        predictions: One row per training and test image, as returned by
            :func:`orchestrator.results.rows.predictions_table`; None if no predictions are
            stored.
    """
    has_logarithm = (table[TEST_LOSS] > 0) & np.isfinite(table[TEST_LOSS])
    done = table[has_logarithm]
    names = table[[DATASET, CLASS_PAIR]].drop_duplicates()
    if len(names) != 1 or done.empty:
        return None
    best = []
    for size in sorted(done[TRAIN_SIZE].unique()):
        at_size = best_network(done[done[TRAIN_SIZE] == size], predictions)
        if at_size is not None:
            best.append(at_size)
    with_sizes = done.groupby(MODEL)[TRAIN_SIZE].transform("nunique") >= MIN_SIZES
    curves: tuple[CurveAnswer, ...] = ()
    target_curves: tuple[CurveAnswer, ...] = ()
    target = None
    why_no_curves = ""
    if with_sizes.any():
        try:
            curves = answers(done[with_sizes], CurveQuestion()).curves
            target = next_target(done[with_sizes])
            question = CurveQuestion(target.metric, target=target.value)
            target_curves = answers(done[with_sizes], question).curves
        except DataError as error:
            why_no_curves = str(error)
    return OneDataset(
        dataset=str(names[DATASET].iloc[0]),
        best_score=best_score(done),
        best=tuple(best),
        curves=curves,
        target=target,
        target_curves=target_curves,
        target_remarks=tuple(measured_assurance(target_curves)),
        robustness=robustness_by_size(done),
        d_data=_at_largest_size(done, D_DATA_MLE),
        why_no_curves=why_no_curves,
        num_seeds=max(1, int(done[SEED].nunique())),
        early_best=early_best(done),
    )


def best_score(rows: pd.DataFrame) -> BestScore:
    """Return the network with the lowest mean test loss at the largest train size.

    The lowest loss of all train sizes would be lower only by luck, or because the largest
    training sets need other settings.
    """
    at_largest = rows[rows[TRAIN_SIZE] == rows[TRAIN_SIZE].max()]
    means = at_largest.groupby(MODEL)[[TEST_LOSS, TEST_ACCURACY]].mean()
    best = means.sort_values(TEST_LOSS).reset_index().iloc[0]
    of_best = at_largest[at_largest[MODEL] == best[MODEL]]
    train_size = int(at_largest[TRAIN_SIZE].iloc[0])
    attacked: tuple[AttackedAccuracy, ...] = ()
    # An attack cannot fool a network that learned nothing.
    if not _is_at_chance(of_best):
        attacked = _attacked_accuracies(rows, str(best[MODEL]), train_size)
    class_counts = rows.get(NUM_CLASSES, pd.Series(dtype=float)).dropna().unique()
    return BestScore(
        model=str(best[MODEL]),
        train_size=train_size,
        loss=float(best[TEST_LOSS]),
        accuracy=_known(best[TEST_ACCURACY]),
        num_classes=int(class_counts[0]) if len(class_counts) == 1 else 0,
        num_networks=len(means),
        attacked=attacked,
        num_test_images=_single_test_size(rows),
    )


def _is_at_chance(rows: pd.DataFrame) -> bool:
    """Return whether the mean scores of these trainings are at chance level."""
    means = rows.reindex(columns=[TEST_LOSS, TEST_ACCURACY, AUC, NUM_CLASSES]).astype(float).mean()
    return is_at_chance_level(
        means[TEST_LOSS], means[NUM_CLASSES], accuracy=means[TEST_ACCURACY], auc=means[AUC]
    )


def _single_test_size(rows: pd.DataFrame) -> int:
    """Return the number of test images of each training; 0 if it is unknown or differs."""
    sizes = rows.get(TEST_SIZE, pd.Series(dtype=float)).dropna().unique()
    return int(sizes[0]) if len(sizes) == 1 else 0


def _known(value: float) -> float | None:
    """Return a number, or None for NaN."""
    return None if pd.isna(value) else float(value)


def _attacked_accuracies(
    rows: pd.DataFrame, model: str, train_size: int
) -> tuple[AttackedAccuracy, ...]:
    """Return the accuracies of a network under the strongest attack, by epsilon."""
    strongest = _strongest_attack(rows)
    if strongest is None:
        return ()
    of_network = rows[(rows[MODEL] == model) & (rows[TRAIN_SIZE] == train_size)]
    accuracies = []
    for column in attack_columns(map(str, rows)):
        drop = _accuracy_drop(column)
        if column.attack != strongest.attack or column.epsilon > ROBUSTNESS_BUDGET:
            continue
        if drop in rows and of_network[drop].notna().any():
            accuracy = float((of_network[TEST_ACCURACY] - of_network[drop]).mean())
            accuracies.append(AttackedAccuracy(column.attack, column.epsilon, accuracy))
    return tuple(accuracies)


def early_best(rows: pd.DataFrame) -> tuple[EarlyBest, ...]:
    """Return networks whose test loss was lowest early in more than half of their trainings.

    Only trainings at the network's largest N are considered.
    """
    if not {BEST_EPOCH, NUM_EPOCHS} <= set(rows):
        return ()
    tested = rows.dropna(subset=[BEST_EPOCH, NUM_EPOCHS])
    by_model = [_early_best_of(str(model), part) for model, part in tested.groupby(MODEL)]
    return tuple(early for early in by_model if 2 * early.num_early > early.num_trainings)


def _early_best_of(model: str, tested: pd.DataFrame) -> EarlyBest:
    """Count the trainings of a network at its largest N with the lowest test loss early."""
    largest_size = int(tested[TRAIN_SIZE].max())
    of_largest = tested[tested[TRAIN_SIZE] == largest_size]
    means = tested.groupby(TRAIN_SIZE)[BEST_EPOCH].mean()
    return EarlyBest(
        model=model,
        train_size=largest_size,
        num_trainings=len(of_largest),
        num_early=int((of_largest[BEST_EPOCH] <= of_largest[NUM_EPOCHS] / 2).sum()),
        best_epochs=dict(zip(means.index.astype(int).tolist(), means.tolist(), strict=True)),
    )


def next_target(rows: pd.DataFrame) -> Target:
    """Return the score that the best network is expected to reach with twice the images.

    ``isweep predict`` proposes the same target. If the expected score is not better than the
    best score so far, the target is a score with half the errors, or half the loss, of the
    best score. Accuracies are used if all rows have an accuracy and no network is perfect.

    Args:
        rows: Trainings of networks with at least two train sizes.
    """
    means = rows.groupby([MODEL, TRAIN_SIZE])[[TEST_ACCURACY, TEST_LOSS]].mean()
    lowest_error_rate = float(1 - means[TEST_ACCURACY].max())
    metric: Metric = "loss"
    if rows[TEST_ACCURACY].notna().all() and lowest_error_rate > 0:
        metric = "accuracy"
    expected = answers(rows, CurveQuestion(metric)).example_target()
    if expected is not None:
        return Target(metric, expected, is_expected=True)
    if metric == "accuracy":
        return Target(metric, round(1 - _half(lowest_error_rate), 12), is_expected=False)
    return Target(metric, _half(float(means[TEST_LOSS].min())), is_expected=False)


def _half(lowest: float) -> float:
    """Return half of the lowest errors so far, rounded to one digit."""
    return float(f"{lowest / 2:.0e}")


def best_network(rows: pd.DataFrame, predictions: pd.DataFrame | None = None) -> BestNetwork | None:
    """Compare the two best networks at one train size. Returns None if there is only one network.

    Args:
        rows: Trainings of one train size.
        predictions: Stored predictions of the sweep; None if there are none.
    """
    means = rows.groupby(MODEL)[TEST_LOSS].mean().sort_values()
    if len(means) < 2:
        return None
    best, runner_up = (str(name) for name in means.index[:2])
    train_size = int(rows[TRAIN_SIZE].iloc[0])
    seeds = rows[SEED].fillna(0)  # A user's table may lack seeds.
    by_seed = np.log(rows[TEST_LOSS]).groupby([seeds, rows[MODEL]]).mean().unstack()
    differences = (by_seed[runner_up] - by_seed[best]).dropna().to_numpy(dtype=float)
    accuracies = rows.groupby(MODEL)[TEST_ACCURACY].mean()
    aurocs = pd.Series(dtype=float)  # A user's table may lack AUROCs.
    if AUC in rows:
        aurocs = rows.groupby(MODEL)[AUC].mean()
    paired = None
    if predictions is not None:
        at_size = predictions[predictions[TRAIN_SIZE] == train_size]
        paired = paired_comparison(
            at_size[at_size[MODEL] == best], at_size[at_size[MODEL] == runner_up]
        )
    if paired is not None:
        needed = paired.images_needed
    else:
        needed = independent_test_size(accuracies[best], accuracies[runner_up])
    return BestNetwork(
        train_size=train_size,
        model=best,
        loss=float(means[best]),
        runner_up=runner_up,
        runner_up_loss=float(means[runner_up]),
        accuracy=_known(accuracies[best]),
        runner_up_accuracy=_known(accuracies[runner_up]),
        auroc=_known(aurocs.get(best, np.nan)),
        runner_up_auroc=_known(aurocs.get(runner_up, np.nan)),
        difference=_interval(differences),
        paired=paired,
        test_images_needed=needed,
    )


def robustness_by_size(rows: pd.DataFrame) -> tuple[RobustnessAtSize, ...]:
    """Return accuracy and loss under the strongest attack up to 8/255, for each network and N."""
    strongest = _strongest_attack(rows)
    if strongest is None:
        return ()
    # A user's table may lack the accuracies under attack.
    accuracy_drop = rows.get(_accuracy_drop(strongest), np.nan)
    scores = rows[[MODEL, TRAIN_SIZE]].assign(
        loss_gain=rows[strongest.name],
        accuracy=rows[TEST_ACCURACY],
        attacked_accuracy=rows[TEST_ACCURACY] - accuracy_drop,
        loss=rows[TEST_LOSS],
        auc=rows.get(AUC, np.nan),
        num_classes=rows.get(NUM_CLASSES, np.nan),
    )
    attacked = scores.dropna(subset=["loss_gain"])
    means = attacked.groupby([MODEL, TRAIN_SIZE], as_index=False).mean()
    robustness = []
    for at_size in means.to_dict("records"):
        robustness.append(
            RobustnessAtSize(
                model=str(at_size[MODEL]),
                train_size=int(at_size[TRAIN_SIZE]),
                attack=strongest.words,
                loss_gain=at_size["loss_gain"],
                accuracy=_known(at_size["accuracy"]),
                attacked_accuracy=_known(at_size["attacked_accuracy"]),
                is_at_chance=is_at_chance_level(
                    at_size["loss"],
                    at_size["num_classes"],
                    accuracy=at_size["accuracy"],
                    auc=at_size["auc"],
                ),
            )
        )
    return tuple(robustness)


def _accuracy_drop(attack: AttackColumn) -> str:
    """Return the name of the column with the accuracy that an attack costs."""
    return attack.name.replace("loss_gain", "accuracy_drop")


def _strongest_attack(rows: pd.DataFrame) -> AttackColumn | None:
    """Return the column of the strongest attack up to 8/255; None if there is no such attack."""
    columns = [
        column
        for column in attack_columns(map(str, rows))
        if column.epsilon <= ROBUSTNESS_BUDGET and rows[column.name].notna().any()
    ]
    # If several attacks have the largest epsilon, choose the attack that adds the most loss.
    return max(columns, key=lambda column: (column.epsilon, rows[column.name].mean()), default=None)


def _at_largest_size(rows: pd.DataFrame, column: str) -> float | None:
    """Return the mean of a column at the largest N with a value; None if there is no value."""
    if column not in rows:
        return None
    measured = rows[rows[column].notna()]
    if measured.empty:
        return None
    is_largest = measured[TRAIN_SIZE] == measured[TRAIN_SIZE].max()
    return float(measured.loc[is_largest, column].mean())


def _interval(differences: Sequence[float]) -> Interval | None:
    """Return the 95 % t interval of a mean over seeds.

    Returns None if there are fewer than three seeds, or if all differences are equal.
    """
    values = np.asarray(differences)
    if len(values) < MIN_SEEDS_FOR_INTERVAL or values.std() == 0:
        return None
    error = float(values.std(ddof=1) / np.sqrt(len(values)))
    return t_interval(float(values.mean()), error, len(values) - 1)
