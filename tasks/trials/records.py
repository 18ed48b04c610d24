"""Results of a trial, and of a trial of a learning-rate search, from the worker to the report.

These records need no torch, so that tables and reports can be made without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from tasks.finding import Finding
from tasks.measures.estimators import IntrinsicDimension

CAP_OF_CHANCE = 2.0
"""Largest loss that a search counts, in multiples of the loss at chance level. How badly a network
diverged says nothing."""
EVALUATION_PASS = 16
"""Images per float32 forward pass. With so few no network needs more memory than its training."""
CONTEXT_BYTES = int(0.7 * 2**30)
"""Bytes that a process needs on a GPU besides its tensors: its CUDA context and kernels. Others
report 0.3 to 0.9 GiB (pytorch#58466, #107667); not measured here."""
NUM_SCORED_EPOCHS = 10
"""Epochs, about, after which the test images are evaluated during a training."""


@dataclass(frozen=True)
class ComputeOptions:
    """The device, threads and memory of a trial. No option is part of an identity.

    Attributes:
        device: ``cpu``, ``cuda`` or ``cuda:<index>``.
        num_threads: torch threads on the CPU.
        gpu_fraction: share of the GPU's memory that the trial may take; None sets no limit.
        micro_batch: images per pass in training if memory is short; None for whole batches. Other
            passes shrink in proportion. The update is that of the whole batch, but batch norm sees
            the parts. It is part of the result.
        graphs: True to capture training steps on a GPU as graphs and replay them.
    """

    device: str = "cpu"
    num_threads: int = 1
    gpu_fraction: float | None = None
    micro_batch: int | None = None
    graphs: bool = False


ON_ONE_THREAD = ComputeOptions()
"""One thread of the CPU."""


class SearchStatus(StrEnum):
    """End of a search's trial. Each one is a result, not a failure."""

    COMPLETE = "complete"
    DIVERGED = "diverged"
    """The training or validation loss was NaN or infinite."""


class ValidationScore(Finding):
    """Scores on the validation images after one epoch; the loss is cross-entropy in nats."""

    epoch: int
    loss: float
    accuracy: float


class SearchResult(Finding):
    """The result of a search's trial. Attributes not listed are those of :class:`TrialResult`.

    Attributes:
        epochs: epochs trained, a diverged one included.
        curve: validation scores after each epoch; a loss that is NaN or infinite is not in it.
        num_train: images trained on.
        num_validation: images that each epoch was scored on.
        num_classes: classes of the dataset or class pair.
        chance_loss: cross-entropy at chance level in nats, ln of ``num_classes``.
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
            raise ValueError("a trial that did not diverge has validation losses")
        return self

    @property
    def loss(self) -> float | None:
        """Validation loss after the last epoch, as a sweep's trials count it; None if diverged."""
        if self.status == SearchStatus.DIVERGED:
            return None
        return self.curve[-1].loss

    @property
    def capped_loss(self) -> float:
        """The loss as a search minimizes it: always finite, see :func:`capped`."""
        return capped(self.loss, self.chance_loss)


def capped(loss: float | None, chance_loss: float) -> float:
    """Return ``loss``, or ``CAP_OF_CHANCE * chance_loss`` if it is larger, NaN or None."""
    cap = CAP_OF_CHANCE * chance_loss
    if loss is not None and loss < cap:  # a comparison with NaN is false
        return loss
    return cap


class RadiusSummary(Finding):
    """Distribution of minimal perturbations over images: L2 norms in 1/255 of the pixel range.

    Attributes:
        num_images: images with a radius. The others are in none of the numbers.
        mean: mean radius, the robustness R of the paper's theorem.
        std_error: standard deviation divided by the square root of ``num_images``.
        median: median radius.
        geometric_mean: exp of the mean log radius; None if a radius is 0.
        quantiles: radius by quantile: ``0.05``, ``0.25``, ``0.75`` and ``0.95``.
        mean_per_pixel: ``mean`` divided by the square root of the number of pixel values, to
            compare image sizes.
    """

    num_images: int
    mean: float
    std_error: float | None
    median: float
    geometric_mean: float | None
    quantiles: dict[str, float]
    mean_per_pixel: float


class RobustnessRecord(Finding):
    """Adversarial robustness R of one network, see :mod:`tasks.trials.robustness`.

    Attributes:
        pred: distances to a class other than the predicted one; None if no radius was found.
        true: distances to a class other than the true one, which is 0 for a misclassified image,
            even one without a radius; None if ``pred`` is.
        radii: one for each of ``rows``; None if no differently classified image was found.
        rows: index of each image in the test set, ascending.
        wrong: for each image, whether it is misclassified.
        num_not_found: images without a radius. ``pred`` leaves them out, nothing is imputed.
        box_share: share of the images with a radius whose perturbation is at the limit of the
            pixel range: without the limit it would be smaller.
        num_steps: gradient steps per image.
        num_bisections: bisections between an image and a differently classified one.
        reason: why ``pred`` is None; empty otherwise.
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


class ClassificationScores(Finding):
    """Classification scores of a network on the test images.

    Attributes:
        balanced_accuracy: mean of the classes' accuracies.
        auc: area under the ROC curve. With more than two classes, the mean over classes of one
            against the rest. None if fewer than two classes have images.
        per_class_accuracy: accuracy on the images of each class; None if it has no images.
        calibration_error: expected calibration error (ECE) of the largest probability, 15 bins.
    """

    balanced_accuracy: float
    auc: float | None
    per_class_accuracy: tuple[float | None, ...]
    calibration_error: float


class EpochScore(Finding):
    """Scores on the test images after one epoch of training."""

    epoch: int
    test_loss: float
    test_accuracy: float


def scored_epochs(num_epochs: int) -> frozenset[int]:
    """Return the epochs after which the test images are evaluated: about ten, never the last.

    The last epoch is evaluated anyway. An epoch trains on N images with about three passes each.
    Ten evaluations in a hundred epochs cost a few percent of that on a CPU, and up to 10 % on a
    GPU, which computes float32 slowly.
    """
    every = max(1, num_epochs // NUM_SCORED_EPOCHS)
    return frozenset(range(every, num_epochs, every))


class KeptFile(Finding):
    """A file stored beside a trial's result: weights (safetensors) or predictions (Parquet)."""

    sha256: str
    num_bytes: int


class TrialStatus(StrEnum):
    """End of a trial that has a result."""

    DONE = "done"
    DIVERGED = "diverged"
    """A loss of the training, or of the trained network, was NaN or infinite. This is a result, not
    a failure."""


@dataclass(frozen=True)
class EpochRecord:
    """Scores of one epoch of training, in training mode and while the weights change.

    Attributes:
        epoch: 1 for the first.
        train_loss: mean cross-entropy over the epoch's examples, in nats. NaN or infinite if the
            training diverged; such a record is never part of a result.
        train_accuracy: accuracy over the epoch's examples.
        seconds: wall time.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    seconds: float

    @property
    def diverged(self) -> bool:
        """True if the loss is NaN or infinite. Training ends with such a record."""
        return not math.isfinite(self.train_loss)


def attack_name(method: str, epsilon: float) -> str:
    """Return method and strength as in column names: ``fgsm_1``, ``fgsm_0.5``."""
    # All digits and no exponent: two strengths never share a name, and it can be read back.
    return f"{method}_{Decimal(repr(epsilon)).normalize():f}"


class AttackRecord(Finding):
    """One attack at one strength on one set of images.

    Attributes:
        method: name in :data:`search_spaces.attacks.ATTACKS`.
        epsilon: largest change of a pixel, in units of 1/255 of the range.
        loss: mean loss on the attacked images, in nats; None if it, or the clean loss, is not
            finite.
        loss_gain: ``loss`` minus the loss on the clean images; None if ``loss`` is.
        accuracy: accuracy on the attacked images.
        accuracy_drop: clean accuracy minus ``accuracy``.
        robust_accuracy: share of the images classified correctly before and after the attack.
        num_unchanged: images that the attack did not change, because their gradient is exactly 0
            (gradient masking). A very confident network then looks robust without being so.
        reason: why ``loss`` is None; empty otherwise.
        parameters: parameters of the method that are not at their default.
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
        """Method and strength as in column names: ``fgsm_1``, ``fgsm_0.5``."""
        return attack_name(self.method, self.epsilon)


class FurtherTestRecord(Finding):
    """Scores of a trained network on a further test set: the test images, some of them moved.

    Attributes:
        name: the condition that moved them.
        num_moved: images that it moved toward an image of another class.
        loss: mean cross-entropy over all images, in nats; None if it is not finite.
        accuracy: accuracy over all images.
        moved_loss: mean loss over the moved images; None if it is not finite, or none moved.
        moved_accuracy: accuracy over the moved images; None if none moved.
        unmoved_loss: mean loss over the other images, which are those of the test set; None if it
            is not finite, or all moved.
        unmoved_accuracy: accuracy over the other images; None if all moved.
        robustness: adversarial robustness R on the images of ``TrialResult.robustness``, if
            requested.
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


class NetworkScores(Finding):
    """Scores of a trained network on training and test set; losses are cross-entropy in nats."""

    num_parameters: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    classification: ClassificationScores | None = None
    """None in records that are older than this field."""


class Timings(Finding):
    """Seconds of each stage of a trial; None for a stage that was not reached."""

    build: float | None = None
    train: float | None = None
    evaluate: float | None = None
    d_repr: float | None = None
    attack: float | None = None
    robustness: float | None = None


class StageRecord(Finding):
    """Intrinsic dimension of the representation after one stage of a network.

    Attributes:
        module: name of the submodule whose output is measured.
        num_features: activations of one image.
        d_repr: intrinsic dimension by estimator.
    """

    module: str
    num_features: int
    d_repr: dict[str, IntrinsicDimension]


class TrialResult(Finding):
    """The result of a trial.

    Attributes:
        reason: why it diverged; empty if it did not.
        seed: the derived seed that all random choices came from.
        num_threads: torch threads on the CPU. Another number may change the last digits.
        scores: of the trained network; None if it diverged.
        d_repr: intrinsic dimension of the last hidden layer by estimator. An undefined one has a
            reason.
        d_repr_stages: the same after every stage of the network, if requested; empty for a network
            without stages.
        history: one record for each epoch of training.
        test_history: scores on the test images after some epochs, see :func:`scored_epochs`.
            The last epoch is in ``scores``.
        best_epoch: epoch of ``test_history`` with the smallest test loss. It is chosen on the test
            images, so it shows how training went and is no result to report.
        robustness: adversarial robustness R, if requested.
        weights: the stored weights of the trained network; None if they are not stored.
        weights_note: why weights that should be stored are not.
        further_tests: scores on further test sets, if requested.
        predictions: the stored logits of every test image; None if they are not stored.
        predictions_note: why predictions that should be stored are not.
        peak_memory_bytes: on CUDA, what the process reserved on the GPU for tensors; on a CPU, its
            resident memory, libraries and arrays included.
        pretrained: SHA-256 of the weights that training started from; empty for random ones.
        energy_j: joules that the GPU used during the trial, by its own counter. Whatever else runs
            on the GPU counts too, so with a share of a GPU this is an upper bound.
        energy_note: why there is no ``energy_j``.
        micro_batch: images per pass in training, where memory was short; None for whole batches.
        step_path: how training took its steps: ``eager`` (Python starts every kernel) or ``graph``
            (captured graphs are replayed); empty in records that are older than this field.
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
    weights: KeptFile | None = None
    weights_note: str = ""
    predictions: KeptFile | None = None
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
