"""Take a training step: forward pass, backward pass and weight update on one batch.

All training images are on the device as one tensor, and a batch is a selection of rows of this
tensor. Pixels have their stored type (normally uint8). Each batch is converted to float32 in
the channels-last layout. Images are ``(num_images, channels, height, width)`` with pixels in
[0, 255]; labels are ``(num_images,)`` int64. Both are on the device of the model. The model
maps pixels to logits.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.specs import RecipeSpec
from tasks.trials.image_tensors import as_pixels

SGD_MOMENTUM = 0.9
"""Momentum of the optimizer ``sgd``."""
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


class Step:
    """A training step: forward pass, backward pass and weight update on one batch of images.

    With the precision ``bfloat16``, the forward pass runs under autocast in bfloat16. With
    ``float16_unscaled``, the forward pass runs under autocast in float16, and the gradients
    are not scaled, so small gradients may become zero. The released code does the same on a
    GPU. On a CPU, float16 kernels are slow, and round at other places than on a GPU. So
    results on a CPU are similar to the results of the released code, but not equal. Weights,
    gradients, the update and the loss are float32 in every precision.

    Args:
        model: The model. It is trained in place.
        images: The training images. They are not changed.
        labels: Labels of the images.
        recipe: The recipe, with optimizer, learning rate, weight decay and precision.
        micro_batch: Number of images per forward pass; None for the whole batch. The weights
            are still updated once per batch, but batch norm uses the statistics of each micro
            batch.
        capturable: True if a CUDA graph will capture the step. The optimizer then counts its
            steps on the device.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        recipe: RecipeSpec,
        micro_batch: int | None = None,
        *,
        capturable: bool = False,
    ) -> None:
        self.model = model
        self.images = images
        self.labels = labels
        self.recipe = recipe
        self.micro_batch = micro_batch
        self.optimizer = make_optimizer(model, recipe, capturable=capturable)
        self._parameters = list(model.parameters())
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=images.device)
        self._num_correct = torch.zeros((), dtype=torch.int64, device=images.device)

    def __call__(self, rows: Tensor) -> None:
        """Take one step on the images with these indices, ``(batch_size,)`` int64.

        A CUDA graph may capture this method. So no operation in it may wait for the device, or
        copy a number from the device to the CPU.
        """
        # Setting gradients to None directly is faster for small networks than zero_grad, which
        # also runs hooks.
        for parameter in self._parameters:
            parameter.grad = None
        parts = [rows]
        if self.micro_batch is not None:
            parts = split_batches(rows, self.micro_batch)
        for part in parts:
            pixels = as_pixels(self.images.index_select(0, part))
            with autocast(self.recipe.precision, pixels.device):
                logits = self.model(pixels)
            labels = self.labels.index_select(0, part)
            loss = F.cross_entropy(logits.float(), labels)
            # torch.autograd.backward(loss) does the same as loss.backward(), but has type
            # annotations.
            if len(part) == len(rows):
                torch.autograd.backward(loss)
            else:
                # The mean of a batch is the mean of its parts, weighted by their sizes.
                torch.autograd.backward(loss * (len(part) / len(rows)))
            self._loss_sum.add_(loss.detach(), alpha=len(part))
            self._num_correct += (logits.argmax(1) == labels).sum()
        self.optimizer.step()

    def read_scores(self, num_images: int) -> tuple[float, float]:
        """Return the mean loss and accuracy since the last call, and start new sums.

        No other method waits for the GPU.

        Args:
            num_images: Number of images in all steps since the last call. The step itself
                cannot count the images, because the replay of a CUDA graph runs no Python
                code.
        """
        loss = float(self._loss_sum) / num_images
        accuracy = int(self._num_correct) / num_images
        self._loss_sum.zero_()
        self._num_correct.zero_()
        return loss, accuracy


def split_batches(rows: Tensor, batch_size: int) -> list[Tensor]:
    """Divide ``rows`` into batches of ``batch_size`` rows. The last batch may be smaller.

    Batch norm cannot compute the variance of one image. So if the last batch would have only
    one row, this row is added to the batch before it, which then has ``batch_size + 1`` rows.
    If ``batch_size`` is 1, every batch has one row.
    """
    batches = list(torch.split(rows, batch_size))
    has_single_row_left = len(batches) > 1 and len(batches[-1]) == 1
    if has_single_row_left and batch_size > 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether ``model`` has a batch-norm layer."""
    return any(isinstance(module, _BATCH_NORMS) for module in model.modules())


def make_optimizer(
    model: nn.Module, recipe: RecipeSpec, *, capturable: bool = False
) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe.

    Args:
        model: The network whose parameters are updated.
        recipe: The recipe, with optimizer, learning rate and weight decay.
        capturable: True if a CUDA graph will capture the steps.
    """
    parameters = list(model.parameters())
    rate = recipe.learning_rate
    decay = recipe.weight_decay
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=SGD_MOMENTUM, weight_decay=decay)
    # Adam adds the weight decay to the gradient, as in the released code. AdamW subtracts the
    # weight decay from the weights.
    optimizer = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return optimizer(parameters, lr=rate, weight_decay=decay, fused=True, capturable=capturable)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return a context manager in which a forward pass runs in this precision."""
    if precision == "float32":
        return nullcontext()
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float16
    return torch.autocast(device.type, dtype=dtype)
