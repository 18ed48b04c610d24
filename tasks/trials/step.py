"""One optimisation step, written once: Python runs it on any device, a captured graph replays it on CUDA.

At the study's batches (6 to 40 images) a ResNet on a data-centre card spends its time starting its 274 to 687
kernels per step, not computing them; a graph starts them all at once. A graph replays what it captured, so
the step below touches only tensors that stay where they are: the resident images, the rows of the batch, and
totals that are read once per epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.errors import ConfigError
from search_spaces.specs import RecipeSpec

SGD_MOMENTUM = 0.9
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
WARM_UP_STEPS = 3
"""Steps before a capture, as PyTorch's CUDA graph notes advise; they are real steps of the training."""


class Step:
    """Forward, backward and update of ``model`` on one batch of resident images.

    ``bfloat16`` runs the forward pass under autocast. ``float16_unscaled`` does so in float16 without scaling
    the gradients, which is what the released code does on a GPU and which may flush small gradients to zero;
    on a CPU float16 kernels round in other places and are slow, so there it shows the effect, not the
    released numbers. Weights, gradients, the update and the loss are float32 in all of them.

    Args:
        model: maps float pixels in [0, 255] to logits; on the device of ``images``.
        images: ``(num_images, channels, height, width)``, uint8 or float32; never written to.
        labels: ``(num_images,)`` int64.
        recipe: optimiser, rate, precision.
        micro_batch: images that pass the network at once: the step is that of the whole batch, but batch norm
            sees parts. None for the whole batch.
        capturable: whether a graph can capture the step: the optimiser then counts its steps on the device.

    Raises:
        ConfigError: for a ``micro_batch`` below one.
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
        if micro_batch is not None and micro_batch < 1:
            raise ConfigError("micro_batch must be at least one image", str(micro_batch), "leave it out")
        self.model, self.images, self.labels, self.micro_batch = model, images, labels, micro_batch
        self.optimizer = make_optimizer(model, recipe, capturable=capturable)
        self.recipe = recipe
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=images.device)
        self._num_hits = torch.zeros((), dtype=torch.int64, device=images.device)
        self._num_examples = 0

    def __call__(self, rows: Tensor) -> None:
        """Take one step on the images at ``rows`` ``(batch_size,)`` int64."""
        self.take(rows)
        self.count(len(rows))

    def take(self, rows: Tensor) -> None:
        """Do what a captured graph replays: nothing here waits for the device or asks it for a number."""
        self.optimizer.zero_grad(set_to_none=True)
        parts = split_batches(rows, self.micro_batch or len(rows))
        for part in parts:
            pixels = as_pixels(self.images[part])
            with autocast(self.recipe.precision, pixels.device):
                logits = self.model(pixels)
            labels = self.labels[part]
            loss = F.cross_entropy(logits.float(), labels)
            # The mean over the batch is the mean over its parts, weighted by their sizes.
            torch.autograd.backward(loss if len(part) == len(rows) else loss * (len(part) / len(rows)))
            self._loss_sum += loss.detach().double() * len(part)
            self._num_hits += (logits.argmax(1) == labels).sum()
        self.optimizer.step()

    def count(self, num_images: int) -> None:
        """Count a batch of ``num_images`` to the totals."""
        self._num_examples += num_images

    def read_totals(self) -> tuple[float, float]:
        """Return mean loss and accuracy since the last call, and begin anew; only this waits for a GPU."""
        loss, accuracy = float(self._loss_sum) / self._num_examples, int(self._num_hits) / self._num_examples
        self._loss_sum.zero_()
        self._num_hits.zero_()
        self._num_examples = 0
        return loss, accuracy


def split_batches(rows: Tensor, batch_size: int) -> list[Tensor]:
    """Cut ``rows`` into batches; a last batch of one row joins the batch before it."""
    batches = list(torch.split(rows, batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1 < batch_size:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


class CaptureError(RuntimeError):
    """A step could not be captured; its memory is lost until the process ends (pytorch#190308)."""


class CapturedSteps:
    """Graphs of a step, one per batch size: full batches have one, the ragged last batch another.

    They live as long as a training and end together: a graph that ends while another of its stream lives
    takes cuBLAS's workspace from it (pytorch#193402).

    The first :data:`WARM_UP_STEPS` batches of each size run eagerly on a side stream, as capture demands;
    they are steps of the training like all others, so both ways of training take the same steps.
    """

    def __init__(
        self, step: Step, record: Callable[[Callable[[], None]], Callable[[], None]] | None = None
    ) -> None:
        self._step = step
        self._record = record or record_graph
        self._rows: dict[int, Tensor] = {}
        self._replay: dict[int, Callable[[], None]] = {}
        self._seen: dict[int, int] = {}

    def __call__(self, rows: Tensor) -> None:
        """Take one step on the images at ``rows``."""
        size = len(rows)
        self._step.count(size)
        self._seen[size] = self._seen.get(size, 0) + 1
        if self._seen[size] <= WARM_UP_STEPS:
            with side_stream(rows.device):
                self._step.take(rows)
            return
        if size not in self._replay:
            self._rows[size] = rows.clone()
            self._replay[size] = self._record(lambda: self._step.take(self._rows[size]))
        self._rows[size].copy_(rows)
        self._replay[size]()


def record_graph(work: Callable[[], None]) -> Callable[[], None]:
    """Capture ``work`` on the current CUDA device, without running it, and return its replay.

    Raises:
        CaptureError: when it cannot be captured, whatever the reason; that is its cause.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            work()
    except Exception as error:
        raise CaptureError(f"a step could not be captured: {type(error).__name__}: {error}") from error
    replay: Callable[[], None] = graph.replay
    return replay


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Run a block on another stream, in order with the current one; a no-op on a CPU."""
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
    # One per process: memory cached for a stream serves no other, and cuBLAS keeps scratch for each.
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def as_pixels(images: Tensor) -> Tensor:
    """Return fresh float32 pixels, channels last: the layout that convolutions are fastest with."""
    # A copy even of float32 images: kernels may round differently on memory aligned differently.
    return images.to(torch.float32, copy=True, memory_format=torch.channels_last)


def has_batch_norm(model: nn.Module) -> bool:
    """Tell whether a layer of ``model`` normalises over the batch."""
    return any(isinstance(module, _BATCH_NORMS) for module in model.modules())


def make_optimizer(
    model: nn.Module, recipe: RecipeSpec, *, capturable: bool = False
) -> torch.optim.Optimizer:
    """Return the recipe's optimiser over ``model``; ``capturable`` lets a graph capture its steps."""
    parameters = list(model.parameters())
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=SGD_MOMENTUM, weight_decay=decay)
    # Adam's weight decay is the coupled L2 term of the released code; AdamW's is decoupled.
    optimizer = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return optimizer(parameters, lr=rate, weight_decay=decay, fused=True, capturable=capturable)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context of a forward pass in ``precision``."""
    if precision == "float32":
        return nullcontext()
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float16
    return torch.autocast(device.type, dtype=dtype)
