"""Training and evaluation with the whole dataset resident on the device as one tensor.

The sets of this study are small (1,750 images of 224x224 are 88 MB as bytes). They are put on the
device once, and batches are rows of that tensor: no loader, no worker processes, no decoding in
each epoch. Pixels stay in their stored type (normally uint8) and become float32, channels last,
batch by batch. Images are ``(num_images, channels, height, width)`` with pixels in [0, 255]; labels
are ``(num_images,)`` int64. Both are on the device of the model, which maps pixels to logits.

Python runs one optimization step, :class:`Step`, on any device. On a GPU a step can also be
captured as a graph and replayed. At the study's batches (6 to 40 images) a ResNet spends its time
starting its 274 to 687 kernels per step, and a graph starts them all at once. A graph replays what
was captured, so a step touches only tensors that keep their memory. :class:`Checkpoints` let a
training that was killed continue as if undisturbed.
"""

from __future__ import annotations

import io
import pickle
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from search_spaces.errors import ConfigError
from search_spaces.fingerprint import derive_seed
from search_spaces.specs import RecipeSpec
from tasks.trials.isolation import seeded, set_states_outside_torch, states_outside_torch
from tasks.trials.records import EVALUATION_PASS, EpochRecord, EpochScore

SGD_MOMENTUM = 0.9
WARM_UP_STEPS = 3
"""Steps before a capture, as PyTorch's CUDA graph notes advise. They are real training steps."""
CHECKPOINT_INTERVAL_S = 300.0
"""Seconds between two checkpoints. A shorter training writes none."""
AVERAGED_BATCH = 64
"""Batch size of the released evaluation, which ``mean_of_batch_means`` averages over."""

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


class Step:
    """Forward pass, backward pass and weight update on one batch of resident images.

    The precision ``bfloat16`` runs the forward pass under autocast. ``float16_unscaled`` does so in
    float16 without scaling the gradients, as the released code does on a GPU; small gradients may
    become zero. On a CPU float16 kernels are slow and round in other places, so they show the
    effect but not the released numbers. Weights, gradients, the update and the loss are float32 in
    every precision.

    Args:
        model: trained in place.
        images: never written to.
        labels: one for each image.
        recipe: optimizer, rates and precision.
        micro_batch: images that pass the network at once; None for the whole batch. The step is
            that of the whole batch, but batch norm sees the parts.
        capturable: let the optimizer count its steps on the device, as a graph needs it.
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
        self._num_examples = 0

    def __call__(self, rows: Tensor) -> None:
        """Take one step on the images at ``rows`` ``(batch_size,)`` int64, and count it."""
        self.take(rows)
        self.count(len(rows))

    def take(self, rows: Tensor) -> None:
        """Take one step: the part that a graph replays.

        Nothing here may wait for the device or ask it for a number.
        """
        # zero_grad without its records and hooks: in a small network Python's time counts.
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
            if len(part) == len(rows):
                torch.autograd.backward(loss)
            else:
                # The batch's mean is the mean over its parts, weighted by their sizes.
                torch.autograd.backward(loss * (len(part) / len(rows)))
            self._loss_sum.add_(loss.detach(), alpha=len(part))
            self._num_correct += (logits.argmax(1) == labels).sum()
        self.optimizer.step()

    def count(self, num_images: int) -> None:
        """Add a batch of ``num_images`` to the number of examples."""
        self._num_examples += num_images

    def read_totals(self) -> tuple[float, float]:
        """Return mean loss and accuracy since the last call, and start again from zero.

        Only this method waits for a GPU.
        """
        loss = float(self._loss_sum) / self._num_examples
        accuracy = int(self._num_correct) / self._num_examples
        self._loss_sum.zero_()
        self._num_correct.zero_()
        self._num_examples = 0
        return loss, accuracy


def split_batches(rows: Tensor, batch_size: int) -> list[Tensor]:
    """Return ``rows`` in batches.

    A last batch of one row joins the one before it: batch norm needs a variance.
    """
    batches = list(torch.split(rows, batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1 < batch_size:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


class CaptureError(RuntimeError):
    """A step could not be captured; its memory is lost until the process ends (pytorch#190308)."""


def record_graph(work: Callable[[], None]) -> Callable[[], None]:
    """Capture ``work`` on the current CUDA device, without running it, and return its replay.

    Raises:
        CaptureError: it cannot be captured. The cause is the original error.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            work()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise CaptureError(f"a step could not be captured: {reason}") from error
    replay: Callable[[], None] = graph.replay
    return replay


class CapturedSteps:
    """Graphs of a step, one per batch size: one of full batches, another of the ragged last one.

    The first :data:`WARM_UP_STEPS` batches of each size run eagerly on a side stream, as a capture
    demands. They are training steps like all others, so training with and without graphs takes the
    same steps.

    All graphs live as long as the training. A graph that ends while another one of its stream lives
    takes cuBLAS's workspace from it (pytorch#193402).

    Args:
        step: what is captured.
        record: captures work and returns its replay, as :func:`record_graph` does.
    """

    def __init__(
        self, step: Step, record: Callable[[Callable[[], None]], Callable[[], None]] = record_graph
    ) -> None:
        self._step = step
        self._record = record
        # Each by batch size. A graph reads its rows from the same tensor at every replay.
        self._rows: dict[int, Tensor] = {}
        self._replays: dict[int, Callable[[], None]] = {}
        self._num_batches: dict[int, int] = {}

    def __call__(self, rows: Tensor) -> None:
        """Take one step on the images at ``rows``."""
        size = len(rows)
        self._step.count(size)
        self._num_batches[size] = self._num_batches.get(size, 0) + 1
        if self._num_batches[size] <= WARM_UP_STEPS:
            with side_stream(rows.device):
                self._step.take(rows)
            return
        if size not in self._replays:
            self._rows[size] = rows.clone()
            self._replays[size] = self._record(lambda: self._step.take(self._rows[size]))
        self._rows[size].copy_(rows)
        self._replays[size]()


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Run a block on another stream, in order with the current one; do nothing on a CPU."""
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
    # One per process: memory that was cached for a stream serves no other, and cuBLAS keeps a
    # workspace for each.
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def as_pixels(images: Tensor) -> Tensor:
    """Return a float32 copy in channels-last layout, with which convolutions are fastest."""
    # A copy even of float32 images: kernels may round differently on memory aligned differently.
    return images.to(torch.float32, copy=True, memory_format=torch.channels_last)


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether a layer of ``model`` normalizes over the batch."""
    return any(isinstance(module, _BATCH_NORMS) for module in model.modules())


def make_optimizer(
    model: nn.Module, recipe: RecipeSpec, *, capturable: bool = False
) -> torch.optim.Optimizer:
    """Return the recipe's optimizer; ``capturable`` lets a graph capture its steps."""
    parameters = list(model.parameters())
    rate = recipe.learning_rate
    decay = recipe.weight_decay
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


class Checkpoints:
    """Save the state of a training between epochs, and restore it.

    A checkpoint holds the weights, the optimizer's state, the generators of batch order and
    dropout, and the records of the finished epochs. On a CPU the epochs after a restore are the
    same to the last bit. A training that began on a CPU is not continued on a GPU, nor the other
    way round: its numbers would be those of neither.

    Args:
        read: returns the latest complete state, or None if there is none.
        save: stores a state, completely or not at all.
        interval_s: seconds between two saves.

    Attributes:
        test_history: scores on the test images so far. They are the caller's, and are saved and
            restored with the training.
    """

    def __init__(
        self,
        read: Callable[[], bytes | None],
        save: Callable[[bytes], object],
        *,
        interval_s: float = CHECKPOINT_INTERVAL_S,
    ) -> None:
        self.test_history: list[EpochScore] = []
        self._read = read
        self._save = save
        self._interval_s = interval_s
        self._saved_at = time.monotonic()

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        order_generator: torch.Generator,
        device: torch.device,
    ) -> list[EpochRecord]:
        """Restore the latest state.

        Returns:
            The records of the epochs before it; an empty list means a fresh start.
        """
        data = self._read()
        if data is None:
            return []
        try:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            return []
        was_on_gpu = state["dropout_cuda"] is not None
        if was_on_gpu != (device.type == "cuda"):
            return []
        model.load_state_dict(state["model"])
        # Only the moments: whether a graph captures the steps may differ from the last attempt.
        moments = {"state": state["optimizer"]["state"]}
        optimizer.load_state_dict(optimizer.state_dict() | moments)
        order_generator.set_state(state["order"])
        torch.set_rng_state(state["dropout"])
        if was_on_gpu:
            torch.cuda.set_rng_state(state["dropout_cuda"], device)
        set_states_outside_torch(*state["outside_torch"])
        self.test_history[:] = [EpochScore.model_validate(score) for score in state["notes"]]
        return [EpochRecord(**record) for record in state["history"]]

    def save_if_due(
        self,
        history: list[EpochRecord],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        order_generator: torch.Generator,
        device: torch.device,
    ) -> None:
        """Save the state after the last epoch of ``history`` if the interval has passed."""
        if time.monotonic() - self._saved_at < self._interval_s:
            return
        dropout_cuda = None
        if device.type == "cuda":
            dropout_cuda = torch.cuda.get_rng_state(device)
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "order": order_generator.get_state(),
            "dropout": torch.get_rng_state(),
            "dropout_cuda": dropout_cuda,
            "outside_torch": states_outside_torch(),
            "history": [asdict(record) for record in history],
            "notes": [score.plain() for score in self.test_history],
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self._save(buffer.getvalue())
        self._saved_at = time.monotonic()


def to_device(array: NDArray[np.generic], device: torch.device | str = "cpu") -> Tensor:
    """Return ``array`` as a tensor on ``device``.

    On a CPU the tensor shares the array's memory and must not be written to. The array may be
    read-only, as arrays from Ray's object store are.
    """
    with warnings.catch_warnings():
        # Nothing here writes to the tensor, so a read-only array is no danger.
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
    """Train ``model`` in place for ``recipe.epochs`` epochs at a constant learning rate.

    Every epoch takes all images once, in batches of :func:`split_batches`. The weights after the
    last epoch are kept, not the best ones.

    Args:
        model: moved to ``device``.
        images: moved to ``device``.
        labels: moved to ``device``.
        recipe: optimizer, rates, batch size, epochs and precision.
        seed: of batch order and dropout.
        device: where the training runs.
        on_epoch: called with the record of every finished epoch that did not diverge.
        micro_batch: see :class:`Step`.
        checkpoints: restored at the start, and saved between epochs.
        graphs: on a GPU, capture the steps as graphs and replay them.

    Returns:
        One record per epoch. The last one is ``diverged`` if its mean loss is NaN or infinite.

    Raises:
        ConfigError: the batch size is 1 and the network has batch norm.
        CaptureError: a step cannot be captured.
    """
    if recipe.batch_size == 1 and has_batch_norm(model):
        raise ConfigError(
            "batch_size is 1, but the network has batch norm, which needs two images per batch",
            hint="Use a batch_size of 2 or more, or a network without batch norm",
        )
    device = torch.device(device)
    model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    graphs = graphs and device.type == "cuda"
    step = Step(model, images.to(device), labels.to(device), recipe, micro_batch, capturable=graphs)
    run_step: Callable[[Tensor], None] = CapturedSteps(step) if graphs else step
    order_generator = torch.Generator().manual_seed(derive_seed("batch order", seed))
    # A graph captures the work of the current device. Device -1 changes nothing.
    current_device = torch.cuda.device(device if graphs else -1)
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


LossRule = Literal["mean_over_examples", "mean_of_batch_means"]
"""The average of losses. ``mean_of_batch_means`` is the released code's average over batches of
64, in which the images of a shorter last batch weigh more."""


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy in nats, and accuracy, of a network on one set of images."""

    loss: float
    accuracy: float


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    rule: LossRule = "mean_over_examples",
    batch_size: int = EVALUATION_PASS,
) -> Evaluation:
    """Return loss and accuracy in evaluation mode and float32; the model's mode is restored.

    Args:
        model: maps pixels to logits.
        images: pixels in [0, 255] of any type.
        labels: the true labels.
        rule: how losses are averaged.
        batch_size: images per pass. It changes nothing but speed and memory.
    """
    losses: list[Tensor] = []
    correct: list[Tensor] = []
    with torch.no_grad(), evaluation_mode(model):
        for pixels, batch_labels in image_batches(images, labels, batch_size):
            batch_losses, batch_correct = scores_per_image(model(pixels), batch_labels)
            losses.append(batch_losses)
            correct.append(batch_correct)
    return Evaluation(mean_loss(torch.cat(losses), rule), float(torch.cat(correct).double().mean()))


def scaled_batch_size(num_images: int, recipe: RecipeSpec, micro_batch: int | None) -> int:
    """Return the batch size of a pass other than training's.

    It is ``num_images`` if training passes whole batches. If training passes a fraction of each
    batch, it is that fraction of ``num_images``, and at least 1: memory is short for both.
    """
    part = micro_batch or recipe.batch_size
    return max(1, min(num_images, num_images * part // recipe.batch_size))


def image_batches(
    images: Tensor, labels: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of fresh float32 pixels with their labels, in the stored order."""
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        yield as_pixels(images[rows]), labels[rows]


def scores_per_image(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image's cross-entropy, and whether its largest logit is the label's."""
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return losses, logits.argmax(1) == labels


def mean_loss(losses: Tensor, rule: LossRule) -> float:
    """Return the mean of ``losses`` ``(num_images,)`` by ``rule``, computed in float64."""
    losses = losses.double()
    if rule == "mean_of_batch_means":
        losses = torch.stack([batch.mean() for batch in torch.split(losses, AVERAGED_BATCH)])
    return float(losses.mean())


class evaluation_mode:
    """Put a model in evaluation mode for a block, then give every module its own mode back."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._modes = [(module, module.training) for module in self._model.modules()]
        self._model.eval()

    def __exit__(self, *exception: object) -> None:
        for module, mode in self._modes:
            module.training = mode
