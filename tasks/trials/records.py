"""Records with the results of a trial of a sweep, or of a trial of a learning-rate search.

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
"""Largest loss in a search, as a multiple of the chance loss. A search replaces a larger loss
by this value, because larger losses say nothing more about the learning rate."""
EVALUATION_PASS = 16
"""Number of images in a float32 forward pass. With this small number, the pass needs less
memory than a training step."""
CONTEXT_BYTES = int(0.7 * 2**30)
"""Bytes that a process needs on a GPU for its CUDA context and kernels, in addition to its
tensors. Others report 0.3 to 0.9 GiB (pytorch#58466, #107667). We did not measure this
number."""
NUM_SCORED_EPOCHS = 10
"""Approximate number of evaluations of the test images during one training."""


@dataclass(frozen=True)
class ComputeOptions:
    """The device, threads and memory of a trial. They do not change the id of the trial.

    Attributes:
        device: ``cpu``, ``cuda`` or ``cuda:<index>``.
        num_threads: Number of torch threads on the CPU.
        gpu_fraction: Share of the GPU's memory that the trial may use; None sets no limit.
        context_bytes: Bytes of this share that are reserved for the CUDA context. The trial
            cannot use them for tensors.
        micro_batch: Number of images per training pass if memory is short; None for whole
            batches. The batches of all other passes become smaller by the same factor. The
            weights are still updated once per batch, but batch norm uses the statistics of
            each micro batch. The result of the trial contains this number.
        graphs: True to capture training steps as CUDA graphs and replay them. It has no effect
            on a CPU.
    """

    device: str = "cpu"
    num_threads: int = 1
    gpu_fraction: float | None = None
    context_bytes: int = CONTEXT_BYTES
    micro_batch: int | None = None
    graphs: bool = False


ON_ONE_THREAD = ComputeOptions()
"""Compute options of a trial that uses one thread of the CPU."""


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
    """The result of a trial of a search. :class:`TrialResult` describes the other attributes.

    Attributes:
        epochs: Number of epochs in which the network was trained, including a diverged epoch.
        curve: Validation scores after each epoch. A diverged epoch has no scores.
        num_train: Number of training images in the validation split.
        num_validation: Number of validation images.
        num_classes: Number of classes of the dataset or class pair.
        chance_loss: Cross-entropy of a network that ignores its images: ln(``num_classes``),
            in nats.
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
        """The loss that a search minimizes. :func:`capped` limits it, so it is always finite."""
        return capped(self.loss, self.chance_loss)


def capped(loss: float | None, chance_loss: float) -> float:
    """Return ``loss``, limited to ``CAP_OF_CHANCE * chance_loss``.

    If the loss is NaN or None, return this limit.
    """
    cap = CAP_OF_CHANCE * chance_loss
    if loss is not None and loss < cap:  # a comparison with NaN is false
        return loss
    return cap


class RadiusSummary(JsonRecord):
    """The distribution of radii over images.

    The radius of an image is the L2 norm of the smallest perturbation that changes the
    predicted class, as far as the search found it. Its unit is 1/255 of the pixel range.

    Attributes:
        num_images: Number of images with a radius. All other attributes describe only these
            images.
        mean: Mean radius. It is the robustness R in the paper's theorem.
        std_error: Standard error of ``mean``: the standard deviation of the radii divided by
            the square root of ``num_images``; None if there is only one image.
        median: Median radius.
        geometric_mean: Geometric mean of the radii; None if a radius is 0.
        quantiles: Quantiles of the radii. The keys are the texts ``0.05``, ``0.25``, ``0.75``
            and ``0.95``.
        mean_per_pixel: ``mean`` divided by the square root of the number of pixel values of an
            image. This number can be compared between datasets with different image sizes.
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
        pred: Summary of the distances to the nearest image that the network classifies
            differently from the original image; None if no image has a radius.
        true: Summary of the distances to the nearest image that the network does not classify
            as the true class. The distance of a misclassified image is 0, even if the image
            has no radius. ``true`` is None if ``pred`` is None.
        radii: Radius of each image; None for an image for which the search found no
            differently classified image.
        rows: Index of each image in the test set, in ascending order.
        wrong: True for each misclassified image.
        num_not_found: Number of images without a radius. ``pred`` does not include these
            images.
        box_share: Share of the images with a radius whose perturbed image has a pixel at a
            limit of the pixel range, 0 or 255. Without these limits, the radii of these images
            would be smaller.
        num_steps: Number of gradient steps per image.
        num_bisections: Number of bisection steps on the line from an image to a differently
            classified image.
        reason: Reason why ``pred`` is None; otherwise empty.
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
        balanced_accuracy: Accuracy on the images of each class, averaged over the classes.
        auc: Area under the ROC curve. For more than two classes, each class has one curve,
            which separates its images from all other images; ``auc`` is then the mean area.
            None if fewer than two classes have images, or if a logit is not finite.
        per_class_accuracy: Accuracy on the images of each class; None for a class without
            images.
        calibration_error: Expected calibration error (ECE), computed from the largest
            predicted probability of each image, in 15 bins.
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
    """Return the epochs after which the test images are evaluated. They are about ten.

    The last epoch is not included, because the trained network is always evaluated. In a
    training of a hundred epochs, ten evaluations add a few percent to the time on a CPU. On a
    GPU, they add up to 10 %, because evaluations use float32, which is slow there.
    """
    interval = max(1, num_epochs // NUM_SCORED_EPOCHS)
    return frozenset(range(interval, num_epochs, interval))


class TrialFile(JsonRecord):
    """The checksum and size of a file that is stored beside the result of a trial.

    The file contains weights (safetensors) or predictions (Parquet).
    """

    sha256: str
    num_bytes: int


class TrialStatus(StrEnum):
    """The way in which a trial ended. A diverged trial has a result too."""

    DONE = "done"
    DIVERGED = "diverged"
    """A loss of the training or of the trained network was NaN or infinite. This is a result,
    not a failure."""


@dataclass(frozen=True)
class EpochRecord:
    """The scores of one epoch, computed in training mode while the weights change.

    Attributes:
        epoch: Number of the epoch, from 1.
        train_loss: Mean cross-entropy over the images of the epoch, in nats. It is NaN or
            infinite if the training diverged. The result of a trial does not contain the
            record of a diverged epoch.
        train_accuracy: Accuracy over the images of the epoch.
        seconds: Duration of the epoch (wall-clock time).
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    seconds: float

    @property
    def diverged(self) -> bool:
        """True if the loss is NaN or infinite. The training then ends."""
        return not math.isfinite(self.train_loss)


def attack_name(method: str, epsilon: float) -> str:
    """Return the name of an attack for column names, for example ``fgsm_1`` or ``fgsm_0.5``."""
    # The number is written with all its digits and without an exponent. So two different
    # strengths never have the same name.
    return f"{method}_{Decimal(repr(epsilon)).normalize():f}"


class AttackRecord(JsonRecord):
    """The result of one attack at one strength on one set of images.

    Attributes:
        method: Name of the attack in :data:`search_spaces.attacks.ATTACKS`.
        epsilon: Largest change of a pixel, in 1/255 of the pixel range.
        loss: Mean loss on the attacked images, in nats; None if the loss on the attacked or on
            the clean images is not finite.
        loss_gain: ``loss`` minus the loss on the clean images; None if ``loss`` is None.
        accuracy: Accuracy on the attacked images.
        accuracy_drop: Accuracy on the clean images minus ``accuracy``.
        robust_accuracy: Share of the images that are classified correctly before and after the
            attack.
        num_unchanged: Number of images that the attack did not change, because the gradient of
            their loss is exactly 0 (gradient masking). This often occurs if a network is very
            confident. Such a network seems robust, but is not.
        reason: Reason why ``loss`` is None; otherwise empty.
        parameters: Values of the method's parameters that differ from the defaults.
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
        """Name that the attack has in column names, for example ``fgsm_1`` or ``fgsm_0.5``."""
        return attack_name(self.method, self.epsilon)


class FurtherTestRecord(JsonRecord):
    """The scores of a trained network on a further test set.

    A further test set contains the test images after a condition has blended some of them with
    an image of another class. The names of the stored fields use the word *moved* for blended
    images.

    Attributes:
        name: Name of the condition.
        num_moved: Number of blended images.
        loss: Mean cross-entropy over all images, in nats; None if it is not finite.
        accuracy: Accuracy over all images.
        moved_loss: Mean loss over the blended images; None if it is not finite, or if no image
            is blended.
        moved_accuracy: Accuracy over the blended images; None if no image is blended.
        unmoved_loss: Mean loss over the other images; None if it is not finite, or if all
            images are blended.
        unmoved_accuracy: Accuracy over the other images; None if all images are blended.
        robustness: Adversarial robustness R on this test set; None if it was not requested.
            Its images have the same indices as the images in ``TrialResult.robustness``.
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

    Losses are mean cross-entropies in nats.
    """

    num_parameters: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    classification: ClassificationScores | None = None
    """Classification scores on the test images; None in old records, which do not have this
    field."""


class Timings(JsonRecord):
    """The duration of each phase of a trial in seconds; None for a phase that did not run."""

    build: float | None = None
    train: float | None = None
    evaluate: float | None = None
    d_repr: float | None = None
    attack: float | None = None
    robustness: float | None = None


class StageRecord(JsonRecord):
    """The intrinsic dimension of the activations after one stage of a network.

    Attributes:
        module: Name of the submodule whose output is measured.
        num_features: Number of activations of one image.
        d_repr: Estimated intrinsic dimension. The keys are the names of the estimators.
    """

    module: str
    num_features: int
    d_repr: dict[str, IntrinsicDimension]


class TrialResult(JsonRecord):
    """The result of a trial.

    Attributes:
        reason: Reason why the trial diverged; empty if it did not diverge.
        seed: Seed from which all other seeds of the trial are derived.
        num_threads: Number of torch threads on the CPU. With another number, the last digits
            of the results may change.
        scores: Scores of the trained network; None if the trial diverged.
        d_repr: Estimated intrinsic dimension of the last hidden layer. The keys are the names
            of the estimators. If a dimension is undefined, its record contains the reason.
        d_repr_stages: Estimated intrinsic dimension of the activations after every stage of
            the network; empty if it was not requested, or if the network has no stages.
        history: One record for each epoch of training.
        test_history: Scores on the test images after some epochs, see :func:`scored_epochs`.
            The scores after the last epoch are in ``scores``.
        best_epoch: Epoch of ``test_history`` with the smallest test loss. This choice uses the
            test images, so the loss of this epoch must not be reported as a result. None if
            ``test_history`` is empty.
        robustness: Adversarial robustness R; None if it was not requested.
        weights: The stored file with the weights of the trained network; None if no weights
            are stored.
        weights_note: Reason why requested weights are not stored; otherwise empty.
        further_tests: Scores on further test sets; empty if no further test set was requested.
        predictions: The stored file with the logits of all test images; None if no predictions
            are stored.
        predictions_note: Reason why requested predictions are not stored; otherwise empty.
        peak_memory_bytes: Largest memory during the trial. On a GPU, it is the memory that the
            process reserved for tensors. On a CPU, it is the resident memory of the process,
            including libraries and arrays.
        pretrained: SHA-256 of the pretrained weights; empty for random initial weights.
        energy_j: Energy that the GPU used during the trial, in joules, from the counter of the
            GPU. If the trial shared the GPU with other processes, the number includes their
            energy. It is then an upper bound.
        energy_note: Reason why ``energy_j`` is None; otherwise empty.
        micro_batch: Number of images per training pass if memory was short; None for whole
            batches.
        step_path: How the training steps ran: ``eager`` (Python starts every kernel) or
            ``graph`` (captured CUDA graphs are replayed). It is empty in old records, which do
            not have this field.
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
