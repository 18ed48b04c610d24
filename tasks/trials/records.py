"""Result records of a trial of a sweep, and of a trial of a learning-rate search.

This module does not import torch, because tables and reports do not need it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from tasks.json_record import JsonRecord
from tasks.measures.estimators import IntrinsicDimension

CAP_OF_CHANCE = 2.0
"""Largest loss in a search, in multiples of the chance loss. A larger loss is replaced by this
value, because a larger loss says nothing more about the learning rate."""
EVALUATION_PASS = 16
"""Images per float32 forward pass. With so few images, the pass needs less memory than
training."""
CONTEXT_BYTES = int(0.7 * 2**30)
"""Bytes that a process needs on a GPU besides its tensors, for its CUDA context and kernels.
The reported values are 0.3 to 0.9 GiB (pytorch#58466, #107667). We did not measure it."""
NUM_SCORED_EPOCHS = 10
"""Approximate number of epochs after which a training evaluates the test images."""


@dataclass(frozen=True)
class ComputeOptions:
    """The device, threads and memory of a trial. A trial's id does not depend on them.

    Attributes:
        device: ``cpu``, ``cuda`` or ``cuda:<index>``.
        num_threads: number of torch threads on the CPU.
        gpu_fraction: share of the GPU's memory that the trial may use; None sets no limit.
        context_bytes: bytes of this share that the trial cannot use for tensors.
        micro_batch: images per training pass if memory is short; None for whole batches. The
            batches of all other passes are reduced by the same factor. The weights are still
            updated once per batch, but batch norm uses the statistics of each micro batch. The
            result contains this number.
        graphs: True to capture training steps as CUDA graphs and replay them, on a GPU.
    """

    device: str = "cpu"
    num_threads: int = 1
    gpu_fraction: float | None = None
    context_bytes: int = CONTEXT_BYTES
    micro_batch: int | None = None
    graphs: bool = False


ON_ONE_THREAD = ComputeOptions()
"""Compute options for one thread of the CPU."""


class SearchStatus(StrEnum):
    """The way in which a trial of a search ended. Divergence is a result, not a failure."""

    COMPLETE = "complete"
    DIVERGED = "diverged"
    """The training or validation loss was NaN or infinite."""


class ValidationScore(JsonRecord):
    """The scores on the validation images after one epoch. The loss is cross-entropy in nats."""

    epoch: int
    loss: float
    accuracy: float


class SearchResult(JsonRecord):
    """The result of a trial of a search. Its other attributes are described in
    :class:`TrialResult`.

    Attributes:
        epochs: number of trained epochs, including a diverged epoch.
        curve: validation scores after each epoch, except after an epoch that diverged.
        num_train: number of training images.
        num_validation: number of validation images.
        num_classes: number of classes of the dataset or class pair.
        chance_loss: cross-entropy at chance level in nats: ln ``num_classes``.
    """

    status: SearchStatus
    reason: str = ""
    epochs: Annotated[int, Field(ge=0)]
    curve: tuple[ValidationScore, ...] = Field(repr=False)
    num_train: int
    num_validation: int
    num_classes: int
    chance_loss: float
    device: str = "cpu"
    num_threads: int = 1
    peak_memory_bytes: int = 0
    micro_batch: int | None = None

    @model_validator(mode="after")
    def _check_curve(self) -> Self:
        if self.status != SearchStatus.DIVERGED and not self.curve:
            raise ValueError("a trial that did not diverge must have validation losses")
        return self

    @property
    def loss(self) -> float | None:
        """Validation loss after the last epoch; None if the trial diverged."""
        if self.status == SearchStatus.DIVERGED:
            return None
        return self.curve[-1].loss

    @property
    def capped_loss(self) -> float:
        """The loss that a search minimizes. It is always finite, see :func:`capped`."""
        return capped(self.loss, self.chance_loss)


def capped(loss: float | None, chance_loss: float) -> float:
    """Return ``loss``, or ``CAP_OF_CHANCE * chance_loss`` if the loss is larger, NaN or None."""
    cap = CAP_OF_CHANCE * chance_loss
    if loss is not None and loss < cap:  # a comparison with NaN is false
        return loss
    return cap


class RadiusSummary(JsonRecord):
    """The distribution of radii over images.

    A radius is the L2 norm of the smallest perturbation that was found, in 1/255 of the pixel
    range.

    Attributes:
        num_images: number of images with a radius. All other numbers describe these images
            only.
        mean: mean radius, which is the robustness R of the paper's theorem.
        std_error: standard deviation divided by the square root of ``num_images``; None for
            one image.
        median: median radius.
        geometric_mean: exp of the mean log radius; None if a radius is 0.
        quantiles: radius by quantile. The keys are ``0.05``, ``0.25``, ``0.75`` and ``0.95``.
        mean_per_pixel: ``mean`` divided by the square root of the number of pixel values. It
            can be compared between image sizes.
    """

    num_images: int
    mean: float
    std_error: float | None
    median: float
    geometric_mean: float | None
    quantiles: dict[str, float]
    mean_per_pixel: float


class RobustnessRecord(JsonRecord):
    """The adversarial robustness R of one network, see :mod:`tasks.trials.robustness`.

    Attributes:
        pred: distances to the nearest image that is not classified as the predicted class;
            None if no image has a radius.
        true: distances to the nearest image that is not classified as the true class. The
            distance is 0 for every misclassified image, even if it has no radius. None if
            ``pred`` is None.
        radii: radius of each image; None if no differently classified image was found.
        rows: index of each image in the test set, ascending.
        wrong: True for each misclassified image.
        num_not_found: number of images without a radius. ``pred`` does not include them.
        box_share: share of the images with a radius whose perturbation is at a limit of the pixel
            range. Without this limit, their radius would be smaller.
        num_steps: gradient steps per image.
        num_bisections: number of bisection steps on the line between an image and a
            differently classified image.
        reason: reason why ``pred`` is None; otherwise empty.
    """

    pred: RadiusSummary | None
    true: RadiusSummary | None
    radii: tuple[float | None, ...] = Field(repr=False)
    rows: tuple[int, ...] = Field(repr=False)
    wrong: tuple[bool, ...] = Field(repr=False)
    num_not_found: int
    box_share: float | None
    num_steps: int
    num_bisections: int
    reason: str = ""


class ClassificationScores(JsonRecord):
    """The classification scores of a network on the test images.

    Attributes:
        balanced_accuracy: accuracy on the images of each class, averaged over the classes.
        auc: area under the ROC curve. For more than two classes, it is the mean of the areas
            of each class against the rest. None if fewer than two classes have images.
        per_class_accuracy: accuracy on the images of each class; None for a class without
            images.
        calibration_error: expected calibration error (ECE) of the largest probability, in 15
            bins.
    """

    balanced_accuracy: float
    auc: float | None
    per_class_accuracy: tuple[float | None, ...]
    calibration_error: float


class EpochScore(JsonRecord):
    """The scores on the test images after one epoch of training."""

    epoch: int
    test_loss: float
    test_accuracy: float


def scored_epochs(num_epochs: int) -> frozenset[int]:
    """Return about ten epochs after which the test images are evaluated.

    The last epoch is not included, because the trained network is always evaluated. In a
    hundred epochs, ten evaluations add a few percent to the time of the training on a CPU. On
    a GPU, they add up to 10 %, because a GPU computes float32 slowly.
    """
    interval = max(1, num_epochs // NUM_SCORED_EPOCHS)
    return frozenset(range(interval, num_epochs, interval))


class TrialFile(JsonRecord):
    """Checksum and size of a file that is stored with a trial's result.

    The file contains weights (safetensors) or predictions (Parquet).
    """

    sha256: str
    num_bytes: int


class TrialStatus(StrEnum):
    """The way in which a trial ended. A trial that diverged has a result, too."""

    DONE = "done"
    DIVERGED = "diverged"
    """A loss of the training or of the trained network was NaN or infinite. This is a result,
    not a failure."""


@dataclass(frozen=True)
class EpochRecord:
    """The scores of one epoch of training, in training mode and while the weights change.

    Attributes:
        epoch: number of the epoch, from 1.
        train_loss: mean cross-entropy over the images of the epoch, in nats. It is NaN or
            infinite if the training diverged. A result does not contain such a record.
        train_accuracy: accuracy over the images of the epoch.
        seconds: wall time.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    seconds: float

    @property
    def diverged(self) -> bool:
        """True if the loss is NaN or infinite, which ends the training."""
        return not math.isfinite(self.train_loss)


def attack_name(method: str, epsilon: float) -> str:
    """Return the name of an attack in column names, for example ``fgsm_1`` or ``fgsm_0.5``."""
    # The number has all digits and no exponent, so that two strengths never have the same
    # name.
    return f"{method}_{Decimal(repr(epsilon)).normalize():f}"


class AttackRecord(JsonRecord):
    """The result of one attack at one strength on one set of images.

    Attributes:
        method: name in :data:`search_spaces.attacks.ATTACKS`.
        epsilon: largest change of a pixel, in 1/255 of the pixel range.
        loss: mean loss on the attacked images, in nats; None if the attacked or the clean loss
            is not finite.
        loss_gain: ``loss`` minus the loss on the clean images; None if ``loss`` is None.
        accuracy: accuracy on the attacked images.
        accuracy_drop: accuracy on the clean images minus ``accuracy``.
        robust_accuracy: share of the images that are classified correctly before and after the
            attack.
        num_unchanged: number of images that the attack did not change, because their gradient
            is exactly 0 (gradient masking). The gradient of a very confident network is often
            0. Such a network seems robust, but is not.
        reason: reason why ``loss`` is None; otherwise empty.
        parameters: parameters of the method whose value is not the default.
    """

    method: str
    epsilon: float
    loss: float | None
    loss_gain: float | None
    accuracy: float
    accuracy_drop: float
    robust_accuracy: float
    num_unchanged: int
    reason: str = ""
    parameters: dict[str, int | float] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the attack in column names, for example ``fgsm_1`` or ``fgsm_0.5``."""
        return attack_name(self.method, self.epsilon)


class FurtherTestRecord(JsonRecord):
    """The scores of a trained network on a further test set.

    A further test set contains the test images after a condition has changed them: some are
    blended with an image of another class. Stored field names call the blended images *moved*.

    Attributes:
        name: name of the condition.
        num_moved: number of blended images.
        loss: mean cross-entropy over all images, in nats; None if it is not finite.
        accuracy: accuracy over all images.
        moved_loss: mean loss over the blended images; None if it is not finite, or if no image
            is blended.
        moved_accuracy: accuracy over the blended images; None if no image is blended.
        unmoved_loss: mean loss over the other images; None if it is not finite, or if all
            images are blended.
        unmoved_accuracy: accuracy over the other images; None if all images are blended.
        robustness: adversarial robustness R on the images with the same indices as in
            ``TrialResult.robustness``; None if it was not requested.
    """

    name: str
    num_moved: int
    loss: float | None
    accuracy: float
    moved_loss: float | None
    moved_accuracy: float | None
    unmoved_loss: float | None
    unmoved_accuracy: float | None
    robustness: RobustnessRecord | None = None


class NetworkScores(JsonRecord):
    """The scores of a trained network on the training images and on the test images.

    Losses are cross-entropy in nats.
    """

    num_parameters: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    classification: ClassificationScores | None = None
    """Classification scores on the test images; None in old records without this field."""


class Timings(JsonRecord):
    """The seconds of each phase of a trial; None for a phase that did not run."""

    build: float | None = None
    train: float | None = None
    evaluate: float | None = None
    d_repr: float | None = None
    attack: float | None = None
    robustness: float | None = None


class StageRecord(JsonRecord):
    """The intrinsic dimension of the activations after one stage of a network.

    Attributes:
        module: name of the submodule whose output is measured.
        num_features: number of activations of one image.
        d_repr: intrinsic dimension by the name of the estimator.
    """

    module: str
    num_features: int
    d_repr: dict[str, IntrinsicDimension]


class TrialResult(JsonRecord):
    """The result of a trial.

    Attributes:
        reason: reason why the trial diverged; empty if it did not diverge.
        seed: seed from which all other seeds of the trial are derived.
        num_threads: number of torch threads on the CPU. Another number may change the last
            digits.
        scores: scores of the trained network; None if the trial diverged.
        d_repr: intrinsic dimension of the last hidden layer, by the name of the estimator. An
            undefined dimension has a reason.
        d_repr_stages: intrinsic dimension after every stage of the network; empty if it was
            not requested, or if the network has no stages.
        history: one record for each epoch of training.
        test_history: scores on the test images after some epochs, see :func:`scored_epochs`.
            ``scores`` contains the scores after the last epoch.
        best_epoch: epoch of ``test_history`` with the smallest test loss. It is chosen with
            the test images, so the loss of this epoch must not be reported as a result.
        robustness: adversarial robustness R; None if it was not requested.
        weights: file of the trained network's weights; None if no weights are stored.
        weights_note: reason why requested weights are not stored.
        further_tests: scores on further test sets; empty if they were not requested.
        predictions: file of the logits of all test images; None if no predictions are stored.
        predictions_note: reason why requested predictions are not stored.
        peak_memory_bytes: on a GPU, the memory that the process reserved for tensors. On a
            CPU, the resident memory of the process, including libraries and arrays.
        pretrained: SHA-256 of the pretrained weights; empty for random initial weights.
        energy_j: joules that the GPU used during the trial, from the counter of the GPU. If
            the trial shared the GPU, the number includes the other processes, so it is an
            upper bound.
        energy_note: reason why ``energy_j`` is None.
        micro_batch: images per training pass if memory was short; None for whole batches.
        step_path: method of the training steps: ``eager`` (Python starts every kernel) or
            ``graph`` (captured CUDA graphs are replayed). Empty in old records without this
            field.
    """

    status: TrialStatus
    reason: str = ""
    seed: int
    device: str
    num_threads: int
    scores: NetworkScores | None = None
    d_repr: dict[str, IntrinsicDimension] = Field(default_factory=dict)
    d_repr_stages: tuple[StageRecord, ...] = ()
    attacks: tuple[AttackRecord, ...] = ()
    history: tuple[EpochRecord, ...] = ()
    test_history: tuple[EpochScore, ...] = ()
    best_epoch: int | None = None
    robustness: RobustnessRecord | None = None
    further_tests: tuple[FurtherTestRecord, ...] = ()
    weights: TrialFile | None = None
    weights_note: str = ""
    predictions: TrialFile | None = None
    predictions_note: str = ""
    timings: Timings = Timings()
    peak_memory_bytes: int = 0
    pretrained: str = ""
    energy_j: float | None = None
    energy_note: str = ""
    micro_batch: int | None = None
    step_path: str = ""

    @model_validator(mode="after")
    def _scores_fit_the_status(self) -> Self:
        if self.status == TrialStatus.DONE and self.scores is None:
            raise ValueError("a trial that is done must have scores")
        if self.status == TrialStatus.DIVERGED and self.scores is not None:
            raise ValueError("a trial that diverged must have no scores")
        return self
