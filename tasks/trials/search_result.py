"""What a trial of a learning-rate search found, typed. Needs no torch to be read."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from tasks.finding import Finding

CAP_OF_CHANCE = 2.0
"""Losses count for at most so many times that of guessing: how badly a network diverged says nothing."""


class SearchStatus(StrEnum):
    """How a trial of a search ended; each is a result."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    """Stopped early, because at its epoch too many others of its search were better."""
    DIVERGED = "diverged"
    """Its training or validation loss was no finite number."""


class ValidationScore(Finding):
    """The network on the validation images after one epoch; the loss is cross-entropy in nat."""

    epoch: int
    loss: float
    accuracy: float


class SearchResult(Finding):
    """What a trial of a search found.

    Attributes:
        status: see :class:`SearchStatus`.
        reason: why it diverged or was stopped; empty when complete.
        epochs: epochs of training that it took.
        curve: the validation images after each epoch; a diverged one's end before the loss that is no number.
        num_train: images that it was trained on.
        num_validation: images that it was judged on.
        num_classes: classes of the task.
        chance_loss: loss of guessing, ln of ``num_classes``.
        device: where it ran.
        num_threads: torch threads on the CPU.
        peak_memory_bytes: see :class:`tasks.trials.result.TrialResult`.
        micro_batch: likewise.
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
        """Validation loss after the last epoch, as the sweep's own trials count it; None when diverged."""
        return None if self.status == SearchStatus.DIVERGED else self.curve[-1].loss

    @property
    def capped_loss(self) -> float:
        """A finite number to minimise: the loss, or its cap where it diverged or is far worse than chance."""
        return capped(self.loss, self.chance_loss)


def capped(loss: float | None, chance_loss: float) -> float:
    """Return ``loss``, or ``CAP_OF_CHANCE * chance_loss`` where it is larger, NaN or None."""
    cap = CAP_OF_CHANCE * chance_loss
    # False for NaN.
    return loss if loss is not None and loss < cap else cap
