"""What a trial, or one of a learning-rate search, found: typed, the one form from the worker to the
report.

Needs no torch to be read.
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
"""Losses count for at most so many times that of guessing: how badly a network diverged says
nothing."""


class SearchStatus(StrEnum):
    """How a trial of a search ended; each is a result."""

    COMPLETE = "complete"
    DIVERGED = "diverged"
    """Its training or validation loss was no finite number."""


class ValidationScore(Finding):
    """The network on the validation images after one epoch; the loss is cross-entropy in nat."""

    epoch: int
    loss: float
    accuracy: float


class SearchResult(Finding):
    """What a trial of a search found in its ``epochs`` of training; attributes as of
    :class:`TrialResult`.

    ``curve`` has the validation images after each epoch; a diverged one's ends before the loss that
    is no number. ``chance_loss`` is that of guessing, ln of ``num_classes``.
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
        """Validation loss after the last epoch, as the sweep's own trials count it; None when
        diverged.
        """
        return None if self.status == SearchStatus.DIVERGED else self.curve[-1].loss

    @property
    def capped_loss(self) -> float:
        """A finite number to minimise: the loss, or its cap where it diverged or is far worse than
        chance.
        """
        return capped(self.loss, self.chance_loss)


def capped(loss: float | None, chance_loss: float) -> float:
    """Return ``loss``, or ``CAP_OF_CHANCE * chance_loss`` where it is larger, NaN or None."""
    cap = CAP_OF_CHANCE * chance_loss
    # False for NaN.
    return loss if loss is not None and loss < cap else cap


class RadiusSummary(Finding):
    """Distribution of minimal perturbations over images, L2 norms in pixel units (1/255 of the
    range).

    Attributes:
        num_images: images with a radius; those without are in none of the numbers.
        mean: mean radius: the robustness R of the paper's theorem.
        std_error: standard deviation over the square root of ``num_images``.
        median: median radius.
        geometric_mean: exp of the mean log radius; None where a radius is 0.
        quantiles: radius at the shares ``0.05, 0.25, 0.75, 0.95``, by share.
        mean_per_pixel: ``mean`` over the square root of the number of pixel values, for unequal
            image sizes.
    """

    num_images: int
    mean: float
    std_error: float | None
    median: float
    geometric_mean: float | None
    quantiles: dict[str, float]
    mean_per_pixel: float


class RadiusRecord(Finding):
    """Adversarial robustness R of one network: how far the nearest image with another decision
    lies.

    Attributes:
        pred: over all images, distance to another decision than the network's own; None if none was
            found.
        true: the same with radius 0 where the network is wrong.
        radii: one per image of ``rows``; None where no image with another decision was found.
        rows: which test images, ascending.
        wrong: one per image: whether the network's decision is not the label.
        num_not_found: images without a radius; left out of both summaries, never imputed.
        box_share: share of the images found where the pixel range binds: a smaller change would
            leave it.
        num_steps: gradient steps per image.
        num_bisections: bisections between an image and one with another decision.
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
    """How well a network tells the test images' classes apart.

    Attributes:
        balanced_accuracy: mean of the classes' accuracies.
        auc: area under the ROC curve; for more than two classes the mean of each against the rest.
            None where a class is missing.
        per_class_accuracy: share of each class's images that are classified rightly; None for no
            images.
        calibration_error: expected calibration error of the largest probability, 15 bins.
    """

    balanced_accuracy: float
    auc: float | None
    per_class_accuracy: tuple[float | None, ...]
    calibration_error: float


class EpochScore(Finding):
    """The network on the test images after one epoch of training."""

    epoch: int
    test_loss: float
    test_accuracy: float


EVALUATION_PASS = 16
"""Images per float32 forward pass: few enough that no network needs more memory than its training
does."""
CONTEXT_BYTES = int(0.7 * 2**30)
"""What a process holds of a GPU beside its tensors, its CUDA context and kernels: 0.3 to 0.9 GiB in
others' reports (pytorch#58466, #107667), not measured here."""
CAPTURE_FAILED = "a step could not be captured"
"""How the error of a step begins that no graph can replay."""
NUM_EPOCHS_LOOKED_AT = 10


def epochs_to_look_at(num_epochs: int) -> frozenset[int]:
    """Return the epochs after which the test images are passed: about ten, and never the last.

    The last is evaluated anyway. An epoch trains on N images, three passes each; ten passes over
    the test images in a hundred epochs cost a few hundredths of that on a CPU, and up to a tenth on
    a GPU, which computes float32 slowly.
    """
    every = max(1, num_epochs // NUM_EPOCHS_LOOKED_AT)
    return frozenset(range(every, num_epochs, every))


class KeptFile(Finding):
    """A file kept beside a trial's result: its network's weights (safetensors), or predictions
    (Parquet).
    """

    sha256: str
    num_bytes: int


class TrialStatus(StrEnum):
    """How a trial that has a result ended."""

    DONE = "done"
    DIVERGED = "diverged"
    """Training, or the trained network, gave a loss that is no finite number: a result, not a
    failure."""


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch of training saw, in training mode and while the weights moved.

    Attributes:
        epoch: 1 for the first.
        train_loss: mean cross-entropy over the epoch's examples; NaN or infinite when diverged, and
            such a record is never part of a result.
        train_accuracy: share of the epoch's examples that were classified rightly.
        seconds: wall time.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    seconds: float

    @property
    def diverged(self) -> bool:
        """Tell whether the loss stopped being a number; training ends with such a record."""
        return not math.isfinite(self.train_loss)


def attack_name(method: str, epsilon: float) -> str:
    """Return method and strength as columns are named: ``fgsm_1``, ``fgsm_0.5``."""
    # All digits, never an exponent: two strengths never share a name, and columns can be read back.
    return f"{method}_{Decimal(repr(epsilon)).normalize():f}"


class AttackRecord(Finding):
    """One attack at one strength on one set of images.

    Attributes:
        method: name in :data:`tasks.trials.attacks.ATTACKS`.
        epsilon: largest change of a pixel, in units of 1/255 of the range.
        loss: mean loss on the attacked images; None when it is no finite number.
        loss_gain: that, less the loss on the clean images; None likewise.
        accuracy: accuracy on the attacked images.
        accuracy_drop: clean accuracy less ``accuracy``.
        robust_accuracy: share of the images classified rightly both before and after the attack.
        num_unchanged: images the attack left as they were, because their gradient is exactly zero:
            a network so sure of an image that float32 has no gradient left looks robust without
            being it.
        reason: why a loss is None; empty otherwise.
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

    @property
    def name(self) -> str:
        """Method and strength, as columns are named: ``fgsm_1``, ``fgsm_0.5``."""
        return attack_name(self.method, self.epsilon)


class FurtherTestRecord(Finding):
    """A trained network on a further test set: the test images, some of them moved.

    Attributes:
        name: the condition that moved them.
        num_moved: images that it moved.
        loss: mean cross-entropy over all images, in nat; None when it is no finite number.
        accuracy: share of them that are classified rightly.
        moved_loss: mean over the moved images alone; None where none moved, or as ``loss``.
        moved_accuracy: likewise.
        unmoved_loss: mean over the other images, which are those of the test set; None likewise.
        unmoved_accuracy: likewise.
        robustness: distances to other decisions, of the images that ``TrialResult.robustness`` is
            of; where that is asked for.
    """

    name: str
    num_moved: int
    loss: float | None
    accuracy: float
    moved_loss: float | None
    moved_accuracy: float | None
    unmoved_loss: float | None
    unmoved_accuracy: float | None
    robustness: RadiusRecord | None = None


class NetworkScores(Finding):
    """A trained network on its training set and on the test set; losses are cross-entropy in
    nat.
    """

    num_parameters: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    classification: ClassificationScores | None = None
    """None in records from before it was measured."""


class Timings(Finding):
    """Seconds of each stage; None where it was not reached."""

    build: float | None = None
    train: float | None = None
    evaluate: float | None = None
    d_repr: float | None = None
    attack: float | None = None
    robustness: float | None = None


class StageRecord(Finding):
    """The representation after one stage of a network, the output of ``module``: features of one
    image.
    """

    module: str
    num_features: int
    d_repr: dict[str, IntrinsicDimension]


class TrialResult(Finding):
    """What a trial found.

    Attributes:
        reason: why it diverged; empty when done.
        seed: the derived seed all random choices came from.
        num_threads: torch threads on the CPU; another number may change the last digits.
        scores: of the trained network; None when diverged.
        d_repr: by estimator; one that is undefined says why.
        d_repr_stages: the same after every stage of the network, from the pixels on, where asked
            for; empty for a network without stages.
        test_history: the test images after some epochs, at most about ten; the last epoch is in
            ``scores``.
        best_epoch: that of ``test_history`` with the smallest test loss; chosen on the test images,
            so it tells how training went and is no result to report.
        robustness: distances to other decisions, where asked for.
        weights: of the trained network, where they are kept.
        weights_note: why they could not be kept although they should.
        further_tests: losses on further test sets, where asked for.
        predictions: logits of every test image, where they are kept.
        predictions_note: why they could not be kept although they should.
        peak_memory_bytes: on CUDA what the process reserved on the GPU for tensors; on a CPU its
            resident memory, libraries and arrays included.
        pretrained: SHA-256 of the weights that training started from; empty for random ones.
        energy_j: joules that the GPU used while the trial ran, by its own counter: all that ran on
            it counts, so with a share of the GPU it is no more than a bound.
        energy_note: why there is none.
        micro_batch: images that passed the network at once in training, where memory was short;
            None for whole batches.
        step_path: how training took its steps: ``eager`` (Python starts every kernel) or ``graph``
            (captured graphs are replayed); empty in records from before it was noted.
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
    robustness: RadiusRecord | None = None
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
