"""Train a network, with all training images on the device as one tensor.

The training sets of the study are small: 1,750 images of 224 x 224 bytes need 88 MB. All
images are copied to the device once, as one tensor. A batch is a selection of rows of this
tensor. So a training needs no data loader and no worker processes, and does not decode images
in every epoch.

:mod:`tasks.trials.steps` takes a training step on any device. On a GPU,
:mod:`tasks.trials.cuda_graphs` can capture this step as a CUDA graph and replay it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from search_spaces.errors import ConfigError
from search_spaces.fingerprint import derive_seed
from search_spaces.specs import RecipeSpec
from tasks.trials.checkpoints import Checkpoints
from tasks.trials.cuda_graphs import CapturedSteps, TakeStep
from tasks.trials.isolation import seeded
from tasks.trials.records import EpochRecord
from tasks.trials.steps import Step, has_batch_norm, split_batches


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
    """Train ``model`` in place for ``recipe.epochs`` epochs at a constant learning rate.

    Every epoch uses each image once, in random order. :func:`split_batches` divides this order
    into batches. At the end, the model has the weights after the last epoch, and not the
    weights with the best score.

    Args:
        model: The model. It is moved to ``device``.
        images: The training images. They are copied to ``device``.
        labels: The labels. They are copied to ``device``.
        recipe: The recipe, with optimizer, learning rate, batch size, number of epochs and
            precision.
        seed: Seed of batch order and dropout.
        device: Device of the training.
        on_epoch: Function that is called with the record of every finished epoch that did not
            diverge.
        micro_batch: Number of images per forward pass, see :class:`~tasks.trials.steps.Step`.
        checkpoints: Object that restores a state at the start, and saves states between
            epochs. If it is None, nothing is restored or saved.
        graphs: True to capture the steps as CUDA graphs and replay them. It has no effect on a
            CPU.

    Returns:
        One record per epoch. If the mean loss of an epoch is NaN or infinite, the training
        ends. The last record is then ``diverged``.

    Raises:
        ConfigError: The batch size is 1 and the network has batch norm.
        CaptureError: A step cannot be captured as a CUDA graph.
    """
    if recipe.batch_size == 1 and has_batch_norm(model):
        raise ConfigError(
            "`batch_size` is 1, but the network has batch norm, which needs two images per batch",
            hint="Choose a `batch_size` of 2 or more, or a network without batch norm",
        )
    device = torch.device(device)
    model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    graphs = graphs and device.type == "cuda"
    step = Step(model, images.to(device), labels.to(device), recipe, micro_batch, capturable=graphs)
    take_step: TakeStep = CapturedSteps(step) if graphs else step
    order_generator = torch.Generator().manual_seed(derive_seed("batch order", seed))
    # torch captures the work of the current device, so the training's device must be the
    # current device.
    current_device: AbstractContextManager[object] = nullcontext()
    if graphs:
        current_device = torch.cuda.device(device)
    with current_device, seeded(derive_seed("dropout", seed), device):
        history: list[EpochRecord] = []
        if checkpoints is not None:
            history = checkpoints.restore(model, step.optimizer, order_generator, device)
        for epoch in range(len(history) + 1, recipe.epochs + 1):
            start = time.perf_counter()
            permutation = torch.randperm(len(images), generator=order_generator).to(device)
            for rows in split_batches(permutation, recipe.batch_size):
                take_step(rows)
            loss, accuracy = step.read_scores(num_images=len(images))
            record = EpochRecord(epoch, loss, accuracy, time.perf_counter() - start)
            history.append(record)
            if record.diverged:
                break
            if on_epoch is not None:
                on_epoch(record)
            if checkpoints is not None:
                checkpoints.save_if_due(history, model, step.optimizer, order_generator, device)
    model.zero_grad(set_to_none=True)
    return history
