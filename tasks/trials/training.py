"""Training of a network, with all training images on the device as one tensor.

The datasets of this study are small: 1,750 images of 224x224 are 88 MB as bytes. They are copied to
the device once. A batch is a selection of rows of this tensor. So there are no loaders and no
worker processes, and no epoch decodes images. Pixels have their stored type (normally uint8). Each
batch is converted to float32, channels last. Images are ``(num_images, channels, height, width)``
with pixels in [0, 255]; labels are ``(num_images,)`` int64. Both are on the device of the model.
The model maps pixels to logits.

:class:`Step` runs one training step on any device. On a GPU, a step can also be captured as a CUDA
graph and replayed. With the study's batches of 6 to 40 images, a ResNet's step spends most of its
time on the launch of 274 to 687 kernels. A graph launches all of them at once. A graph always reads
and writes the same memory. So the images, labels and weights of a step must stay at the same
address. Gradients are allocated in the graph's own memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.errors import ConfigError
from search_spaces.fingerprint import derive_seed
from search_spaces.specs import RecipeSpec
from tasks.trials.checkpoints import Checkpoints
from tasks.trials.image_tensors import as_pixels
from tasks.trials.isolation import seeded
from tasks.trials.records import EpochRecord

SGD_MOMENTUM = 0.9
"""Momentum of the optimizer ``sgd``."""
WARM_UP_STEPS = 3
"""Number of steps before a capture, as PyTorch's CUDA graph notes recommend. These steps are normal
steps of the training."""

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


class Step:
    """A training step: forward pass, backward pass and weight update on one batch of images.

    With the precision ``bfloat16``, the forward pass runs under autocast in bfloat16. With
    ``float16_unscaled``, the forward pass runs under autocast in float16, and the gradients are not
    scaled. The released code does the same on a GPU. Small gradients may then become zero. On a
    CPU, float16 kernels are slow and round in other places. So the results are similar to the
    released results, but not equal. Weights, gradients, the update and the loss are float32 in
    every precision.

    Args:
        model: the model, which is trained in place.
        images: the training images, which are not changed.
        labels: labels of the images.
        recipe: optimizer, rates and precision.
        micro_batch: images per forward pass; None for the whole batch. The weights are still
            updated once per batch, but batch norm uses the statistics of each micro batch.
        capturable: True if a CUDA graph will capture the step. The optimizer then counts its steps
            on the device.
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
        self._num_images = 0

    def __call__(self, rows: Tensor) -> None:
        """Take one step on the images with these indices, ``(batch_size,)`` int64."""
        self.run(rows)
        self.count_images(len(rows))

    def run(self, rows: Tensor) -> None:
        """Take one step, without counting its images. A CUDA graph captures this method.

        No operation here may wait for the device or read a number from it.
        """
        # For small networks, this is faster than zero_grad, which also runs hooks.
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
            # This is the same as loss.backward(), which has no type annotations.
            if len(part) == len(rows):
                torch.autograd.backward(loss)
            else:
                # The mean of a batch is the mean of its parts, weighted by their sizes.
                torch.autograd.backward(loss * (len(part) / len(rows)))
            self._loss_sum.add_(loss.detach(), alpha=len(part))
            self._num_correct += (logits.argmax(1) == labels).sum()
        self.optimizer.step()

    def count_images(self, num_images: int) -> None:
        """Add to the number of images since the last call of :meth:`read_totals`."""
        self._num_images += num_images

    def read_totals(self) -> tuple[float, float]:
        """Return mean loss and accuracy since the last call, and reset the sums to zero.

        This is the only method that waits for the GPU.
        """
        loss = float(self._loss_sum) / self._num_images
        accuracy = int(self._num_correct) / self._num_images
        self._loss_sum.zero_()
        self._num_correct.zero_()
        self._num_images = 0
        return loss, accuracy


def split_batches(rows: Tensor, batch_size: int) -> list[Tensor]:
    """Divide ``rows`` into batches of ``batch_size`` rows. The last batch may be smaller.

    Batch norm cannot compute the variance of one image. So if one row is left over, it is added to
    the batch before it, which then has ``batch_size + 1`` rows. With a ``batch_size`` of 1, every
    batch has one row.
    """
    batches = list(torch.split(rows, batch_size))
    has_single_row_left = len(batches) > 1 and len(batches[-1]) == 1
    if has_single_row_left and batch_size > 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


class CaptureError(RuntimeError):
    """A training step could not be captured as a CUDA graph.

    The memory of the capture is free again only after the process has ended (pytorch#190308).
    """


Replay = Callable[[], None]
"""Function that replays a captured graph. On a machine without a GPU, tests use functions that run
the work itself."""
Capture = Callable[[Callable[[], None]], Replay]
"""Function that captures a piece of work without running it, as :func:`capture_graph` does."""


def capture_graph(work: Callable[[], None]) -> Replay:
    """Capture ``work`` as a CUDA graph on the current device, without running it.

    Returns:
        A function that replays the graph.

    Raises:
        CaptureError: ``work`` cannot be captured. The cause is the original error.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            work()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise CaptureError(f"a step could not be captured: {reason}") from error
    replay: Replay = graph.replay
    return replay


class CapturedSteps:
    """The CUDA graphs of a training step, one graph per batch size.

    There are at most two sizes: the size of full batches, and the size of the last batch of an
    epoch. PyTorch requires a few steps on a side stream before a capture. So the first
    :data:`WARM_UP_STEPS` batches of each size run without a graph. They are normal steps: a
    training with graphs takes the same steps as a training without graphs.

    All graphs exist until the training ends. If one graph were deleted earlier, the other graphs of
    its stream would lose the workspace of cuBLAS (pytorch#193402).

    Args:
        step: the step to capture.
        capture: captures the work of a step, as :func:`capture_graph` does.
    """

    def __init__(self, step: Step, capture: Capture = capture_graph) -> None:
        self._step = step
        self._capture = capture
        # The keys are batch sizes. A graph reads its rows from the same tensor at every replay.
        self._rows: dict[int, Tensor] = {}
        self._replays: dict[int, Replay] = {}
        self._num_batches: dict[int, int] = {}

    def __call__(self, rows: Tensor) -> None:
        """Take one step on the images with these indices, ``(batch_size,)`` int64."""
        size = len(rows)
        self._step.count_images(size)
        self._num_batches[size] = self._num_batches.get(size, 0) + 1
        if self._num_batches[size] <= WARM_UP_STEPS:
            with side_stream(rows.device):
                self._step.run(rows)
            return
        if size not in self._replays:
            self._rows[size] = rows.clone()
            # A capture does not run the step. The replay below runs it, also for this first batch.
            self._replays[size] = self._capture(lambda: self._step.run(self._rows[size]))
        self._rows[size].copy_(rows)
        self._replays[size]()


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Run a block of code on a side stream. On a CPU, run it without a stream.

    The block starts after the earlier work of the current stream. The current stream then waits for
    the work of the block.
    """
    if device.type != "cuda":
        yield
        return
    stream = _side_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    # There is one side stream per process: streams cannot share cached memory, and cuBLAS allocates
    # a workspace for each stream.
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether ``model`` has a batch-norm layer."""
    return any(isinstance(module, _BATCH_NORMS) for module in model.modules())


def make_optimizer(
    model: nn.Module, recipe: RecipeSpec, *, capturable: bool = False
) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe.

    Args:
        model: the network whose parameters are updated.
        recipe: optimizer, learning rate and weight decay.
        capturable: True if a CUDA graph will capture the steps.
    """
    parameters = list(model.parameters())
    rate = recipe.learning_rate
    decay = recipe.weight_decay
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=SGD_MOMENTUM, weight_decay=decay)
    # Adam adds the weight decay to the gradient, as in the released code. AdamW subtracts it from
    # the weights.
    optimizer = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return optimizer(parameters, lr=rate, weight_decay=decay, fused=True, capturable=capturable)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a forward pass runs in this precision."""
    if precision == "float32":
        return nullcontext()
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float16
    return torch.autocast(device.type, dtype=dtype)


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

    Every epoch uses each image once, in random order, in batches of :func:`split_batches`. The
    model ends with the weights after the last epoch, not with the weights of the best score.

    Args:
        model: the model, which is moved to ``device``.
        images: the training images, which are moved to ``device``.
        labels: the labels, which are moved to ``device``.
        recipe: optimizer, rates, batch size, epochs and precision.
        seed: seed of batch order and dropout.
        device: device of the training.
        on_epoch: called with the record of every finished epoch that did not diverge.
        micro_batch: see :class:`Step`.
        checkpoints: restores a state at the start, and saves states between epochs. With None,
            nothing is restored or saved.
        graphs: True to capture the steps as CUDA graphs and replay them. It has no effect on a CPU.

    Returns:
        One record per epoch. If the mean loss of an epoch is NaN or infinite, its record is
        ``diverged`` and is the last one.

    Raises:
        ConfigError: the batch size is 1 and the network has batch norm.
        CaptureError: a step cannot be captured.
    """
    if recipe.batch_size == 1 and has_batch_norm(model):
        raise ConfigError(
            "batch_size is 1, but the network has batch norm, which needs two images per batch",
            hint="Choose a batch_size of 2 or more, or a network without batch norm",
        )
    device = torch.device(device)
    model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    graphs = graphs and device.type == "cuda"
    step = Step(model, images.to(device), labels.to(device), recipe, micro_batch, capturable=graphs)
    run_step: Callable[[Tensor], None] = CapturedSteps(step) if graphs else step
    order_generator = torch.Generator().manual_seed(derive_seed("batch order", seed))
    # A graph captures the work of the current device.
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
                run_step(rows)
            loss, accuracy = step.read_totals()
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
