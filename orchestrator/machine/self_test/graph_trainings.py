"""The second part of the self-test: compare trainings with CUDA graphs and with plain steps.

A network is trained three times from the same start: with plain steps, with graphs, and with plain
steps again. The two plain trainings show how much the GPU varies between equal trainings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.machine.self_test.case import Case
from orchestrator.machine.self_test.gradients import NO_BATCH_NORM_IMAGES
from orchestrator.machine.self_test.network import (
    build_network,
    is_random_in_training,
    random_images,
)
from search_spaces.specs import RecipeSpec
from tasks.trials.cuda_graphs import Capture, capture_graph
from tasks.trials.models import PixelModel
from tasks.trials.training import train

NUM_EPOCHS = 6
"""Number of epochs of each training. The smaller last batch of an epoch is captured in the fourth
epoch, and replayed in the fifth and the sixth."""
LEARNING_RATE = 1e-4
"""Learning rate of each training."""
NOISE_FACTOR = 4.0
"""Graphs may differ from plain steps by this factor times the difference of two plain trainings.
Two plain trainings are a small sample, so the factor leaves room."""
LEAST_LOSS_NOISE = 1e-5
"""Least noise of an epoch's loss that is assumed, in nat: about 100 roundings in float32. Graphs
may always differ from plain steps by NOISE_FACTOR times this noise."""
LEAST_WEIGHT_NOISE = 1e-6
"""Least noise of a weight that is assumed: a hundredth of LEARNING_RATE, which is about the length
of a step of Adam. Graphs may always differ from plain steps by NOISE_FACTOR times this noise."""
SPEED_MARGIN = 0.05
"""Epochs with graphs may always be slower than plain epochs by this share of their seconds."""
DROPOUT_LOSS_TOLERANCE = 0.2
"""Difference of the last epoch's loss, in nat, that is always allowed between trainings with
different random numbers, for example different dropout masks."""
RANDOM_NOISE_FACTOR = 2
"""NOISE_FACTOR for trainings with different random numbers. Their differences are large, so a
smaller factor suffices."""
DROPOUT_RATE = 0.5
"""Share of the values that the test of a graph's dropout drops."""
NUM_DROPOUT_VALUES = 10_000
"""Number of values in the test of a graph's dropout."""
MAX_DROPOUT_ERROR = 0.07
"""Largest error of the share of dropped values in two draws: twenty times its standard error."""


@dataclass(frozen=True)
class Difference:
    """Largest differences between trainings, in losses or in weights.

    Attributes:
        noise: difference between the two plain trainings.
        graphs: difference between the training with graphs and the first plain training. The name
            is stored in the file of ``isweep gpu-check``.
    """

    noise: float
    graphs: float

    def is_more_than_noise(self, least_noise: float) -> bool:
        """Return whether graphs differ by more than noise explains. The result is True for NaN.

        Args:
            least_noise: noise that is assumed if the two plain trainings differ by less.
        """
        return not self.graphs <= NOISE_FACTOR * max(self.noise, least_noise)

    def merged_with(self, other: Difference) -> Difference:
        """Return the largest differences of two samples, or NaN if one of them is NaN."""
        return Difference(
            noise=_largest([self.noise, other.noise]),
            graphs=_largest([self.graphs, other.graphs]),
        )


@dataclass(frozen=True)
class TrainingComparison:
    """Comparison of three trainings of one network from the same start.

    Attributes:
        model: name of the network.
        losses: largest differences of an epoch's loss, in nat.
        weights: largest differences of a weight. The value is None if the training draws random
            numbers: graphs and plain steps draw different ones, so their weights must differ.
        plain_s: seconds of an epoch of the first plain training.
        again_s: seconds of an epoch of the second plain training.
        graph_s: seconds of an epoch with graphs, without captures.
    """

    model: str
    losses: Difference
    weights: Difference | None
    plain_s: float
    again_s: float
    graph_s: float

    @property
    def problem(self) -> str:
        """Text about a difference between graphs and plain steps, or an empty text without one."""
        if self.weights is None:
            # The training draws random numbers, so only the losses can be compared.
            largest_allowed = max(DROPOUT_LOSS_TOLERANCE, RANDOM_NOISE_FACTOR * self.losses.noise)
            if self.losses.graphs <= largest_allowed:
                return ""
            return (
                f"{self.model}: in trainings with random numbers (such as dropout), captured "
                f"graphs change the loss by {self.losses.graphs:.1e}"
            )
        for name, difference, least_noise in (
            ("loss", self.losses, LEAST_LOSS_NOISE),
            ("weight", self.weights, LEAST_WEIGHT_NOISE),
        ):
            if difference.is_more_than_noise(least_noise):
                return (
                    f"{self.model}: captured graphs change a {name} by "
                    f"{difference.graphs:.1e}; two plain trainings differ by "
                    f"{difference.noise:.1e}"
                )
        return ""

    def merged_with(self, earlier: TrainingComparison) -> TrainingComparison:
        """Return this comparison with the largest differences of this and an earlier sample.

        Two plain trainings can be equal by chance. Then the noise of one sample is too small, and
        correct graphs seem to differ. The times of this sample do not change.
        """
        weights = self.weights
        if weights is not None and earlier.weights is not None:
            weights = weights.merged_with(earlier.weights)
        return replace(self, losses=self.losses.merged_with(earlier.losses), weights=weights)

    @property
    def slowness(self) -> str:
        """Text about graphs that are slower than plain steps, or an empty text if they are not
        slower.
        """
        tolerance = max(abs(self.plain_s - self.again_s), SPEED_MARGIN * self.plain_s)
        if self.graph_s <= max(self.plain_s, self.again_s) + tolerance:
            return ""
        return (
            f"captured graphs take {self.graph_s:.2f} s an epoch; plain steps take "
            f"{self.plain_s:.2f} s and {self.again_s:.2f} s"
        )


class _Dropout(Enum):
    """The dropout of the trainings that are compared. The value is for :func:`build_network`."""

    REMOVED = 0.0
    """The network has no dropout."""
    UNCHANGED = None
    """The network has the dropout of its trials, which may be none."""


def compare_trainings(case: Case, device: torch.device) -> list[TrainingComparison]:
    """Train a network with CUDA graphs and with plain steps, and compare the two.

    If the network has dropout, do this twice: first without dropout, then with it.
    """
    images, labels = random_images(case.num_images, case.image_size, case.channels)
    dropouts = [_Dropout.REMOVED]
    if _has_dropout(build_network(case, _Dropout.UNCHANGED.value)):
        dropouts.append(_Dropout.UNCHANGED)
    comparisons = []
    for dropout in dropouts:
        comparison = _train_three_times(case, images, labels, device, dropout)
        if comparison.problem:
            second = _train_three_times(case, images, labels, device, dropout)
            comparison = second.merged_with(comparison)
        comparisons.append(comparison)
    return comparisons


def _has_dropout(model: PixelModel) -> bool:
    """Return whether a network has a dropout layer that drops values."""
    return any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())


@dataclass(frozen=True)
class _Training:
    """The result of one training.

    Attributes:
        losses: mean loss of each epoch, in nat.
        weights: all values of the trained network's state, in float32 on the CPU.
        epoch_s: seconds of the faster of the last two epochs, which contain no capture.
    """

    losses: list[float]
    weights: list[Tensor]
    epoch_s: float


def _train_three_times(
    case: Case, images: Tensor, labels: Tensor, device: torch.device, dropout: _Dropout
) -> TrainingComparison:
    """Train a network without graphs, with graphs, and without graphs again.

    Args:
        case: the network and its settings.
        images: training images, ``(num_images, channels, side, side)`` uint8.
        labels: labels of the images, ``(num_images,)`` int64.
        device: device of the trainings.
        dropout: dropout of the trainings.
    """
    # Graphs run between the plain trainings: if another load grows meanwhile, it affects both.
    plain = _train_once(case, images, labels, device, dropout, uses_graphs=False)
    captured = _train_once(case, images, labels, device, dropout, uses_graphs=True)
    weight_change = _largest_change(plain.weights, captured.weights)
    # The weights of a VGG have 0.56 GB.
    captured.weights.clear()
    again = _train_once(case, images, labels, device, dropout, uses_graphs=False)
    num_compared_epochs = NUM_EPOCHS
    weights = None
    if _is_random(case, images, dropout):
        # The first losses depend on few random numbers, so only the last one is compared.
        num_compared_epochs = 1
    else:
        weight_noise = _largest_change(plain.weights, again.weights)
        weights = Difference(noise=weight_noise, graphs=weight_change)
    plain_losses = plain.losses[-num_compared_epochs:]
    losses = Difference(
        noise=_largest_difference(plain_losses, again.losses[-num_compared_epochs:]),
        graphs=_largest_difference(plain_losses, captured.losses[-num_compared_epochs:]),
    )
    return TrainingComparison(
        model=case.model.name,
        losses=losses,
        weights=weights,
        plain_s=plain.epoch_s,
        again_s=again.epoch_s,
        graph_s=captured.epoch_s,
    )


def _is_random(case: Case, images: Tensor, dropout: _Dropout) -> bool:
    """Return whether a training draws random numbers, for dropout or in another layer."""
    if dropout is _Dropout.UNCHANGED:
        return True
    model = build_network(case, dropout.value)
    return is_random_in_training(model, images[:NO_BATCH_NORM_IMAGES])


def _train_once(
    case: Case,
    images: Tensor,
    labels: Tensor,
    device: torch.device,
    dropout: _Dropout,
    *,
    uses_graphs: bool,
) -> _Training:
    """Train the network from its fixed start."""
    model = build_network(case, dropout.value)
    recipe = RecipeSpec.model_validate(
        {
            "name": "self-test",
            "epochs": NUM_EPOCHS,
            "batch_size": case.batch_size,
            "learning_rate": LEARNING_RATE,
            "optimizer": case.optimizer,
            "input_scale": 1 / 255,
            "precision": case.precision,
        }
    )
    history = train(model, images, labels, recipe, seed=0, device=device, graphs=uses_graphs)
    return _Training(
        losses=[record.train_loss for record in history],
        weights=[value.detach().float().cpu() for value in model.state_dict().values()],
        epoch_s=min(record.seconds for record in history[-2:]),
    )


def _largest_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the largest difference of two series of losses.

    It is infinite if one training ended early, and NaN if a loss is NaN.
    """
    if len(first) != len(second):
        return math.inf
    return _largest([abs(left - right) for left, right in zip(first, second, strict=True)])


def _largest(values: Sequence[float]) -> float:
    """Return the largest value, or NaN if a value is NaN. Python's ``max`` may ignore NaN."""
    return float(torch.tensor(values, dtype=torch.float64).max())


def _largest_change(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Return the largest difference of two lists of tensors, or NaN if a value is NaN."""
    changes = [(left - right).abs().max() for left, right in zip(first, second, strict=True)]
    return float(torch.stack(changes).max())


def dropout_problem(device: torch.device, capture: Capture = capture_graph) -> str:
    """Return text if a graph's dropout repeats its mask or drops a wrong share, otherwise an empty
    text.

    Args:
        device: device of the graph. A CPU has no graphs, so it is only tested with another
            ``capture``.
        capture: function that captures a graph. Tests replace it.
    """
    if device.type != "cuda" and capture is capture_graph:
        return ""
    ones = torch.ones(NUM_DROPOUT_VALUES, device=device)
    dropped = torch.empty_like(ones)

    def draw() -> None:
        dropped.copy_(F.dropout(ones, DROPOUT_RATE))

    draw()
    replay = capture(draw)
    masks = []
    for _ in range(2):
        replay()
        masks.append((dropped > 0).cpu())
    remaining_share = float(torch.stack(masks).float().mean())
    is_wrong_share = abs(remaining_share - (1 - DROPOUT_RATE)) > MAX_DROPOUT_ERROR
    if torch.equal(*masks) or is_wrong_share:
        return (
            "dropout in a captured graph repeats its random numbers, or keeps a share of "
            f"{remaining_share:.2f} instead of {1 - DROPOUT_RATE:g}"
        )
    return ""
