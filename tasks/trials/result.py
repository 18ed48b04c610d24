"""What a trial found, typed: the one form from the worker to the report. Needs no torch to be read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from tasks.finding import Finding
from tasks.measures.dimension import IntrinsicDimension
from tasks.trials.measured import ClassificationScores, EpochScore, KeptFile, RadiusRecord


class TrialStatus(StrEnum):
    """How a trial that has a result ended."""

    DONE = "done"
    DIVERGED = "diverged"
    """Training, or the trained network, gave a loss that is no finite number: a result, not a failure."""


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch of training saw, in training mode and while the weights moved.

    Attributes:
        epoch: 1 for the first.
        train_loss: mean cross-entropy over the epoch's examples; NaN or infinite when diverged, and such a
            record is never part of a result.
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
        num_unchanged: images the attack left as they were, because their gradient is exactly zero: a network
            so sure of an image that float32 has no gradient left looks robust without being it.
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


class NetworkScores(Finding):
    """A trained network on its training set and on the test set; losses are cross-entropy in nat."""

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
    """The representation after one stage of a network.

    Attributes:
        module: Whose output it is, by its name within the network.
        num_features: Of one image.
        d_repr: By estimator, as :attr:`TrialResult.d_repr`.
    """

    module: str
    num_features: int
    d_repr: dict[str, IntrinsicDimension]


class TrialResult(Finding):
    """What a trial found.

    Attributes:
        status: see :class:`TrialStatus`.
        reason: why it diverged; empty when done.
        seed: the derived seed all random choices came from.
        device: where it ran.
        num_threads: torch threads on the CPU; another number may change the last digits.
        scores: of the trained network; None when diverged.
        d_repr: by estimator; one that is undefined says why.
        d_repr_stages: the same after every stage of the network, from the pixels on, where asked for; empty
            for a network without stages.
        attacks: one record per method and strength.
        history: one entry per finished epoch.
        test_history: the test images after some epochs, at most about ten; the last epoch is in ``scores``.
        best_epoch: that of ``test_history`` with the smallest test loss; chosen on the test images, so it
            tells how training went and is no result to report.
        robustness: distances to other decisions, where asked for.
        weights: of the trained network, where they are kept.
        weights_note: why they could not be kept although they should.
        predictions: logits of every test image, where they are kept.
        predictions_note: why they could not be kept although they should.
        timings: seconds per stage.
        peak_memory_bytes: on CUDA what the process reserved on the card for tensors; on a CPU its resident
            memory, libraries and arrays included.
        pretrained: SHA-256 of the weights that training started from; empty for random ones.
        energy_j: joules that the card used while the trial ran, by its own counter: all that ran on it
            counts, so with a share of the card it is no more than a bound.
        energy_note: why there is none.
        micro_batch: images that passed the network at once in training, where memory was short; None for
            whole batches.
        step_path: how training took its steps: ``eager`` (Python starts every kernel) or ``graph`` (captured
            graphs are replayed); empty in records from before it was noted.
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
