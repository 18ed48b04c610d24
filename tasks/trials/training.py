"""Training and evaluation with the whole set resident as one tensor.

The sets of this study are small (1,750 images of 224x224 are 88 MB as bytes), so they are put on the device
once and batches are rows of that tensor: no loader, no workers, no decoding per epoch. Pixels stay in the
type they are stored in (uint8 as a rule) and become float32, channels last, batch by batch.

One optimisation step is :class:`tasks.trials.step.Step`, run by Python or replayed as a captured graph.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from search_spaces.errors import ConfigError
from search_spaces.fingerprint import derive_seed
from search_spaces.specs import RecipeSpec
from tasks.trials.checkpoints import Checkpoints
from tasks.trials.measured import EVALUATION_PASS
from tasks.trials.result import EpochRecord
from tasks.trials.seeding import seeded
from tasks.trials.step import CapturedSteps, Step, as_pixels, has_batch_norm, split_batches

AVERAGED_BATCH = 64
"""Batch size of the released evaluation, which ``mean_of_batch_means`` averages over."""

LossRule = Literal["mean_over_examples", "mean_of_batch_means"]


@dataclass(frozen=True)
class Evaluation:
    """Cross-entropy and accuracy of a trained network on one set of images."""

    loss: float
    accuracy: float


def resident(array: NDArray[np.generic], device: torch.device | str = "cpu") -> Tensor:
    """Return ``array`` as a tensor on ``device``; on the CPU it shares the memory and must not be written to.

    The array may be read-only, as arrays from Ray's object store are.
    """
    with warnings.catch_warnings():
        # Nothing here writes to the tensor, so that the array forbids it is no danger.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: RecipeSpec,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    on_epoch: Callable[[EpochRecord], None] | None = None,
    micro_batch: int | None = None,
    checkpoints: Checkpoints | None = None,
    graphs: bool = False,
) -> list[EpochRecord]:
    """Train ``model`` in place for ``recipe.epochs`` epochs at a constant rate; the last epoch counts.

    Every epoch visits all images once in a new order that depends on ``seed`` alone. The last batch of an
    epoch may be shorter; a single image joins the batch before it: batch norm has no variance over one.

    Args:
        model: maps float pixels in [0, 255] to logits; moved to ``device``.
        images: ``(num_images, channels, height, width)``, uint8 or float32, pixels in [0, 255].
        labels: ``(num_images,)`` int64.
        recipe: how.
        seed: seed of batch order and dropout.
        device: where to train.
        on_epoch: called with the record of every finished epoch that did not diverge.
        micro_batch: images that pass at once; see :class:`~tasks.trials.step.Step`. None for whole batches.
        checkpoints: where an earlier attempt left off, and where this one does.
        graphs: on a GPU, replay captured graphs of the step.

    Returns:
        One record per epoch; the last one is ``diverged`` when its mean loss is NaN or infinite.

    Raises:
        ConfigError: for a batch size of 1 with a network that has batch norm.
        CaptureError: when the step cannot be captured.
    """
    _check_batch_norm(model, recipe, micro_batch)
    model.to(device := torch.device(device), memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    graphs &= device.type == "cuda"
    step = Step(model, images.to(device), labels.to(device), recipe, micro_batch, capturable=graphs)
    take = CapturedSteps(step) if graphs else step
    order = torch.Generator().manual_seed(derive_seed("batch order", seed))
    with seeded(derive_seed("dropout", seed), device):
        history = [] if checkpoints is None else checkpoints.restore(model, step.optimizer, order, device)
        for epoch in range(len(history) + 1, recipe.epochs + 1):
            start = time.perf_counter()
            permutation = torch.randperm(len(images), generator=order).to(device)
            for rows in split_batches(permutation, recipe.batch_size):
                take(rows)
            record = EpochRecord(epoch, *step.read_totals(), time.perf_counter() - start)
            history.append(record)
            if record.diverged:
                break
            if on_epoch is not None:
                on_epoch(record)
            if checkpoints is not None:
                checkpoints.offer(history, model, step.optimizer, order, device)
    model.zero_grad(set_to_none=True)
    return history


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    rule: LossRule = "mean_over_examples",
    pass_size: int = EVALUATION_PASS,
) -> Evaluation:
    """Return loss and accuracy in evaluation mode and float32; the model's mode is restored.

    Args:
        model: on the device of ``images``.
        images: ``(num_images, channels, height, width)``, pixels in [0, 255].
        labels: ``(num_images,)`` int64.
        rule: ``mean_of_batch_means`` is the released code's average over batches of 64, in which the images
            of a shorter last batch weigh more.
        pass_size: images per forward pass; changes nothing but speed and memory.
    """
    with torch.no_grad(), evaluation_mode(model):
        scores = [score(model(pixels), some) for pixels, some in iterate(images, labels, pass_size)]
    losses, correct = (torch.cat(parts) for parts in zip(*scores, strict=True))
    return Evaluation(mean_loss(losses, rule), float(correct.double().mean()))


def in_parts(num_images: int, recipe: RecipeSpec, micro_batch: int | None) -> int:
    """Return how many of ``num_images`` pass at once where training's batches pass in parts: likewise few."""
    parts = micro_batch or recipe.batch_size
    return max(1, min(num_images, num_images * parts // recipe.batch_size))


def iterate(images: Tensor, labels: Tensor, pass_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images in the stored order, ``pass_size`` at once, as fresh float32 pixels, and their labels."""
    for start in range(0, len(images), pass_size):
        rows = slice(start, start + pass_size)
        yield as_pixels(images[rows]), labels[rows]


def score(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and whether the largest logit is the label's, per example."""
    return F.cross_entropy(logits.float(), labels, reduction="none"), logits.argmax(1) == labels


def mean_loss(losses: Tensor, rule: LossRule, batch_size: int = AVERAGED_BATCH) -> float:
    """Average per-example ``losses`` ``(num_images,)`` by ``rule``, in float64."""
    losses = losses.double()
    if rule == "mean_of_batch_means":
        losses = torch.stack([batch.mean() for batch in torch.split(losses, batch_size)])
    return float(losses.mean())


class evaluation_mode:
    """Put a model in evaluation mode for a block and give every module its own mode back."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._modes = [(module, module.training) for module in self._model.modules()]
        self._model.eval()

    def __exit__(self, *exception: object) -> None:
        for module, mode in self._modes:
            module.training = mode


def _check_batch_norm(model: nn.Module, recipe: RecipeSpec, micro_batch: int | None) -> None:
    if not has_batch_norm(model):
        return
    for name, size in (("batch_size", recipe.batch_size), ("micro_batch", micro_batch)):
        if size == 1:
            raise ConfigError(
                "Batch norm needs at least two images per batch",
                f"{name} 1 for a network with batch norm",
                f"use a {name} of 2 or more, or a network without batch norm",
            )
