"""The second part of the self-test. It compares trainings with CUDA graphs and with plain
steps.

A network is trained three times from the same start: with plain steps, with graphs, and with
plain steps again. The two plain trainings show how much the GPU varies between equal
trainings.
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
"""Number of epochs of each training. The last batch of an epoch is smaller than the others. It
is captured in the fourth epoch, and replayed in the fifth and sixth epochs."""
LEARNING_RATE = 1e-4
"""Learning rate of each training."""
NOISE_FACTOR = 4.0
"""Largest allowed difference between graphs and plain steps, as a multiple of the difference
between two plain trainings. The factor is above 1, because two plain trainings are a small
sample."""
LEAST_LOSS_NOISE = 1e-5
"""Smallest noise that is assumed for an epoch's loss, in nat. It is the size of about 100
rounding errors in float32. Graphs may always differ from plain steps by NOISE_FACTOR times
this noise."""
LEAST_WEIGHT_NOISE = 1e-6
"""Smallest noise that is assumed for a weight. It is a hundredth of LEARNING_RATE, and
LEARNING_RATE is about the length of a step of Adam. Graphs may always differ from plain steps
by NOISE_FACTOR times this noise."""
SPEED_MARGIN = 0.05
"""Share of a plain epoch's time by which an epoch with graphs may always be slower."""
DROPOUT_LOSS_TOLERANCE = 0.2
"""Difference in the last epoch's loss, in nat, that is always allowed between trainings that
draw different random numbers. Such trainings have, for example, different dropout masks."""
RANDOM_NOISE_FACTOR = 2
"""Factor that replaces NOISE_FACTOR if trainings draw different random numbers. The
differences of such trainings are large, so a smaller factor is enough."""
DROPOUT_RATE = 0.5
"""Share of the values that dropout drops in the test of a graph's dropout."""
NUM_DROPOUT_VALUES = 10_000
"""Number of values in the test of a graph's dropout."""
MAX_DROPOUT_ERROR = 0.07
"""Largest allowed error of the share of dropped values in two draws. It is twenty times the
standard error of this share."""


@dataclass(frozen=True)
class Difference:
    """The largest differences between trainings, either in losses or in weights.

    Attributes:
        noise: difference between the two plain trainings.
        graphs: difference between the training with graphs and the first plain training. The
            file of ``isweep gpu-check`` contains the name of this attribute.
    """

    noise: float
    graphs: float

    def is_more_than_noise(self, least_noise: float) -> bool:
        """Return whether graphs differ from plain steps by more than noise can explain. NaN
        counts as a difference.

        Args:
            least_noise: noise that is assumed if the two plain trainings differ by less than
                this value.
        """
        return not self.graphs <= NOISE_FACTOR * max(self.noise, least_noise)

    def merged_with(self, other: Difference) -> Difference:
        """Return the larger value of each difference in two samples, or NaN if one value is
        NaN.
        """
        return Difference(
            noise=_largest([self.noise, other.noise]),
            graphs=_largest([self.graphs, other.graphs]),
        )


@dataclass(frozen=True)
class TrainingComparison:
    """The comparison of three trainings of one network from the same start.

    Attributes:
        model: name of the network.
        losses: largest differences in the loss of an epoch, in nat.
        weights: largest differences in a weight. It is None if the training draws random
            numbers. Graphs and plain steps then draw different numbers, so their weights must
            differ.
        plain_s: seconds of an epoch of the first plain training.
        again_s: seconds of an epoch of the second plain training.
        graph_s: seconds of an epoch with graphs that contains no capture.
    """

    model: str
    losses: Difference
    weights: Difference | None
    plain_s: float
    again_s: float
    graph_s: float

    @property
    def problem(self) -> str:
        """A text about a difference between graphs and plain steps, or an empty text if they
        agree.
        """
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
                    f"{difference.graphs:.1e}, but two plain trainings differ by "
                    f"{difference.noise:.1e}"
                )
        return ""

    def merged_with(self, earlier: TrainingComparison) -> TrainingComparison:
        """Return this comparison, with the largest differences of this sample and of an
        earlier sample.

        Two plain trainings can be equal by chance. The noise of this one sample is then too
        small, and correct graphs seem to differ. The times in the result are those of this
        sample.
        """
        weights = self.weights
        if weights is not None and earlier.weights is not None:
            weights = weights.merged_with(earlier.weights)
        return replace(self, losses=self.losses.merged_with(earlier.losses), weights=weights)

    @property
    def slowness(self) -> str:
        """A text that says how much slower graphs are than plain steps, or an empty text if
        they are not slower.
        """
        tolerance = max(abs(self.plain_s - self.again_s), SPEED_MARGIN * self.plain_s)
        if self.graph_s <= max(self.plain_s, self.again_s) + tolerance:
            return ""
        return (
            f"captured graphs take {self.graph_s:.2f} s per epoch, but plain steps take "
            f"{self.plain_s:.2f} s and {self.again_s:.2f} s"
        )


class _Dropout(Enum):
    """The dropout of the compared trainings. Each value is an argument of
    :func:`build_network`.
    """

    REMOVED = 0.0
    """The network has no dropout."""
    UNCHANGED = None
    """The network has the same dropout as in its trials. A network may also have no dropout at
    all."""


def compare_trainings(case: Case, device: torch.device) -> list[TrainingComparison]:
    """Train a network with CUDA graphs and with plain steps. Return the comparisons.

    If the network has dropout, it is trained without dropout first, and then with dropout.
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
        weights: all tensors of the trained network's state, in float32 on the CPU.
        epoch_s: seconds of the faster one of the last two epochs. These two epochs contain no
            capture.
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
        dropout: dropout of the network in these trainings.
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
    """Return whether a training draws random numbers, either for dropout or in another layer."""
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
    """Train the network once, always from the same start."""
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
    """Return the largest difference between two series of losses.

    The result is infinite if one training ended early. It is NaN if a loss is NaN.
    """
    if len(first) != len(second):
        return math.inf
    return _largest([abs(left - right) for left, right in zip(first, second, strict=True)])


def _largest(values: Sequence[float]) -> float:
    """Return the largest value, or NaN if any value is NaN. Python's ``max`` may ignore NaN."""
    return float(torch.tensor(values, dtype=torch.float64).max())


def _largest_change(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Return the largest difference between two lists of tensors, or NaN if any value is NaN."""
    changes = [(left - right).abs().max() for left, right in zip(first, second, strict=True)]
    return float(torch.stack(changes).max())


def dropout_problem(device: torch.device, capture: Capture = capture_graph) -> str:
    """Return a text if dropout in a graph repeats its mask or drops a wrong share of values.
    Otherwise return an empty text.

    Args:
        device: device of the graph. A CPU has no graphs, so on a CPU the test runs only with
            another ``capture``.
        capture: function that captures a graph. Tests pass another function.
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
            "dropout in a captured graph repeats its random numbers, or keeps "
            f"{remaining_share:.0%} of the values instead of {1 - DROPOUT_RATE:.0%}"
        )
    return ""
