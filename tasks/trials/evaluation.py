"""Compute the loss and accuracy of a network on a set of images.

Images are ``(num_images, channels, height, width)`` with pixels in [0, 255]; labels are
``(num_images,)`` int64. Both are on the device of the model. The model maps pixels to logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.specs import RecipeSpec, TestLoss
from tasks.trials.image_tensors import image_batches
from tasks.trials.records import EVALUATION_PASS

RELEASED_EVAL_BATCH = 64
"""Number of images in an evaluation batch of the released code. The loss rule
``mean_of_batch_means`` uses this number."""


@dataclass(frozen=True)
class Evaluation:
    """The mean cross-entropy in nats and the accuracy of a network on one set of images."""

    loss: float
    accuracy: float


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    loss_rule: TestLoss = "mean_over_examples",
    batch_size: int = EVALUATION_PASS,
) -> Evaluation:
    """Return the mean loss and the accuracy, computed in evaluation mode and in float32.

    Args:
        model: The model, which maps pixels to logits. Its mode is restored afterwards.
        images: Pixels in [0, 255] of any type.
        labels: The true labels.
        loss_rule: Rule for the mean loss, see :func:`mean_loss`.
        batch_size: Number of images per forward pass. It changes only speed and memory.
    """
    losses: list[Tensor] = []
    correct: list[Tensor] = []
    with torch.no_grad(), evaluation_mode(model):
        for pixels, batch_labels in image_batches(images, labels, batch_size):
            batch_losses, batch_correct = scores_per_image(model(pixels), batch_labels)
            losses.append(batch_losses)
            correct.append(batch_correct)
    accuracy = float(torch.cat(correct).double().mean())
    return Evaluation(mean_loss(torch.cat(losses), loss_rule), accuracy)


def scaled_batch_size(
    full_batch_size: int,
    recipe: RecipeSpec,
    micro_batch: int | None,
) -> int:
    """Return the batch size of an evaluation or attack in a trial that may have micro batches.

    With micro batches, the result is ``full_batch_size * micro_batch / recipe.batch_size``,
    rounded down. It is at least 1 and at most ``full_batch_size``. Without micro batches, the
    result is ``full_batch_size``.
    """
    images_per_pass = micro_batch or recipe.batch_size
    scaled = full_batch_size * images_per_pass // recipe.batch_size
    # A micro batch may be larger than the batch of the recipe. The result must not be larger
    # than the full batch size even then.
    return max(1, min(full_batch_size, scaled))


def scores_per_image(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of each image, and a mask of the correctly classified images.

    Args:
        logits: Logits of the network, ``(num_images, num_outputs)``.
        labels: The true labels, ``(num_images,)``.

    Returns:
        The losses in nats as float32, ``(num_images,)``, and the mask, ``(num_images,)``.
    """
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return losses, logits.argmax(1) == labels


def mean_loss(losses: Tensor, loss_rule: TestLoss) -> float:
    """Return the mean of ``losses``, ``(num_images,)``, computed in float64.

    With the rule ``mean_over_examples``, every image has the same weight.
    ``mean_of_batch_means`` is the rule of the released code. With this rule, every batch of
    :data:`RELEASED_EVAL_BATCH` images has the same weight. If the last batch is smaller, its
    images therefore have a larger weight.
    """
    losses = losses.double()
    if loss_rule == "mean_of_batch_means":
        batches = torch.split(losses, RELEASED_EVAL_BATCH)
        losses = torch.stack([batch.mean() for batch in batches])
    return float(losses.mean())


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode, and restore the mode of every module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training
