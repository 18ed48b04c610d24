"""Training and evaluation with the whole set resident as one tensor.

The sets of this study are small (1,750 images of 224x224 are 88 MB as bytes), so they are put on
the device once and batches are rows of that tensor: no loader, no workers, no decoding per epoch.
Pixels stay in the type they are stored in (uint8 as a rule) and become float32, channels last,
batch by batch. Here images are ``(num_images, channels, height, width)`` with pixels in [0, 255],
labels ``(num_images,)`` int64, both on the device of the model, which maps them to logits.

One optimisation step, :class:`Step`, is run by Python on any device, or captured as a graph and
replayed on a GPU: at the study's batches (6 to 40 images) a ResNet spends its time starting its 274
to 687 kernels a step, and a graph starts them all at once. It replays what it captured, so a step
touches only tensors that stay where they are. :class:`Checkpoints` lets a training that was killed
go on as if undisturbed.
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
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from search_spaces.errors import ConfigError
from search_spaces.fingerprint import derive_seed
from search_spaces.specs import RecipeSpec
from tasks.trials.isolation import seeded, set_states_outside_torch, states_outside_torch
from tasks.trials.records import CAPTURE_FAILED, EVALUATION_PASS, EpochRecord

SGD_MOMENTUM = 0.9
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
WARM_UP_STEPS = 3
"""Steps before a capture, as PyTorch's CUDA graph notes advise; they are real steps of the
training."""


class Step:
    """Forward, backward and update of ``model`` on one batch of resident images.

    ``bfloat16`` runs the forward pass under autocast. ``float16_unscaled`` does so in float16
    without scaling the gradients, which is what the released code does on a GPU and which may flush
    small gradients to zero; on a CPU float16 kernels round in other places and are slow, so there
    it shows the effect, not the released numbers. Weights, gradients, the update and the loss are
    float32 in all of them.

    Of a batch ``micro_batch`` images pass the network at once, None for all: the step is that of
    the whole batch, but batch norm sees parts; below one it is a ConfigError. A graph can capture a
    step that is ``capturable``: the optimiser counts its steps on the device. ``images`` are never
    written to.
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
            raise ConfigError(
                "micro_batch must be at least one image", str(micro_batch), "leave it out"
            )
        self.model, self.images, self.labels, self.micro_batch = model, images, labels, micro_batch
        self.optimizer = make_optimizer(model, recipe, capturable=capturable)
        self.recipe = recipe
        self._parameters = list(model.parameters())
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=images.device)
        self._num_hits = torch.zeros((), dtype=torch.int64, device=images.device)
        self._num_examples = 0

    def __call__(self, rows: Tensor) -> None:
        """Take one step on the images at ``rows`` ``(batch_size,)`` int64."""
        self.take(rows)
        self.count(len(rows))

    def take(self, rows: Tensor) -> None:
        """Do what a captured graph replays: nothing here waits for the device or asks it for a
        number.
        """
        # In a small network's step what Python does counts: this is zero_grad without its records
        # and hooks.
        for parameter in self._parameters:
            parameter.grad = None
        for part in [rows] if self.micro_batch is None else split_batches(rows, self.micro_batch):
            pixels = as_pixels(self.images.index_select(0, part))
            with autocast(self.recipe.precision, pixels.device):
                logits = self.model(pixels)
            labels = self.labels.index_select(0, part)
            loss = F.cross_entropy(logits.float(), labels)
            # The mean over the batch is the mean over its parts, weighted by their sizes.
            torch.autograd.backward(
                loss if len(part) == len(rows) else loss * (len(part) / len(rows))
            )
            self._loss_sum.add_(loss.detach(), alpha=len(part))
            self._num_hits += (logits.argmax(1) == labels).sum()
        self.optimizer.step()

    def count(self, num_images: int) -> None:
        """Count a batch of ``num_images`` to the totals."""
        self._num_examples += num_images

    def read_totals(self) -> tuple[float, float]:
        """Return mean loss and accuracy since the last call, and begin anew; only this waits for a
        GPU.
        """
        loss, accuracy = (
            float(self._loss_sum) / self._num_examples,
            int(self._num_hits) / self._num_examples,
        )
        self._loss_sum.zero_()
        self._num_hits.zero_()
        self._num_examples = 0
        return loss, accuracy


def split_batches(rows: Tensor, batch_size: int) -> list[Tensor]:
    """Cut ``rows`` into batches; a last one of one row joins the one before: one has no
    variance.
    """
    batches = list(torch.split(rows, batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1 < batch_size:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


class CaptureError(RuntimeError):
    """A step could not be captured; its memory is lost until the process ends (pytorch#190308)."""


class CapturedSteps:
    """Graphs of a step, one per batch size: full batches have one, the ragged last batch another.

    They live as long as a training and end together: a graph that ends while another of its stream
    lives takes cuBLAS's workspace from it (pytorch#193402).

    The first :data:`WARM_UP_STEPS` batches of each size run eagerly on a side stream, as capture
    demands; they are steps of the training like all others, so both ways of training take the same
    steps.
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
        raise CaptureError(f"{CAPTURE_FAILED}: {type(error).__name__}: {error}") from error
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
    # One per process: memory cached for a stream serves no other, and cuBLAS keeps scratch for
    # each.
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
    """Return the recipe's optimiser over ``model``; ``capturable`` lets a graph capture its
    steps.
    """
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


INTERVAL_S = 300.0
"""Seconds between checkpoints: a trial shorter than that writes none."""


class Checkpoints:
    """Saves a training's state now and then, between epochs, and gives it back.

    It holds weights, the optimiser's state, the generators of batch order and dropout, and the
    epochs so far. What comes after is the same to the last bit on a CPU. A training begun on a CPU
    does not go on on a GPU, nor the other way: its numbers would be those of neither.

    Args:
        read: returns the latest state; None where there is none that is whole.
        save: keeps a state, whole or not at all.
        interval_s: seconds between two.
    """

    def __init__(
        self,
        read: Callable[[], bytes | None],
        save: Callable[[bytes], object],
        *,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._read, self._save, self._interval, self._last = (
            read,
            save,
            interval_s,
            time.monotonic(),
        )
        self.notes: list[dict[str, Any]] = []
        """What else belongs to the training so far; plain values, kept and given back with it."""

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        order: torch.Generator,
        device: torch.device,
    ) -> list[EpochRecord]:
        """Put the latest state in place; return the epochs that it has behind it, none for a fresh
        start.
        """
        data = self._read()
        if data is None:
            return []
        try:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            return []
        if (state["dropout_cuda"] is None) == (device.type == "cuda"):
            return []
        model.load_state_dict(state["model"])
        # Moments alone: whether a graph captures the steps is this attempt's, not the last one's.
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state["optimizer"]["state"]})
        order.set_state(state["order"])
        torch.set_rng_state(state["dropout"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(state["dropout_cuda"], device)
        if "outside_torch" in state:
            set_states_outside_torch(*state["outside_torch"])
        self.notes[:] = state["notes"]
        return [EpochRecord(**record) for record in state["history"]]

    def offer(
        self,
        history: list[EpochRecord],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        order: torch.Generator,
        device: torch.device,
    ) -> None:
        """Save the state after the last epoch of ``history``, if the last save is long enough
        ago.
        """
        if time.monotonic() - self._last < self._interval:
            return
        buffer = io.BytesIO()
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "order": order.get_state(),
            "dropout": torch.get_rng_state(),
            "dropout_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "outside_torch": states_outside_torch(),
            "history": [asdict(record) for record in history],
            "notes": self.notes,
        }
        torch.save(state, buffer)
        self._save(buffer.getvalue())
        self._last = time.monotonic()


AVERAGED_BATCH = 64
"""Batch size of the released evaluation, which ``mean_of_batch_means`` averages over."""

LossRule = Literal["mean_over_examples", "mean_of_batch_means"]


@dataclass(frozen=True)
class Evaluation:
    """Cross-entropy and accuracy of a trained network on one set of images."""

    loss: float
    accuracy: float


def resident(array: NDArray[np.generic], device: torch.device | str = "cpu") -> Tensor:
    """Return ``array`` as a tensor on ``device``; on the CPU it shares the memory and must not be
    written to.

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
    """Train ``model`` in place for ``recipe.epochs`` epochs at a constant rate; the last epoch
    counts.

    Every epoch takes all images once, in batches of :func:`split_batches`, see :class:`Step`; their
    order and dropout follow from ``seed`` alone. All is moved to ``device``; on a GPU ``graphs``
    are captured of the step and replayed. ``on_epoch`` is given the record of every finished epoch
    that did not diverge, and ``checkpoints`` have where an earlier attempt left off, and where this
    one does.

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
    # A graph captures the current device's work; -1 is no device.
    with torch.cuda.device(device if graphs else -1), seeded(derive_seed("dropout", seed), device):
        history = (
            [] if checkpoints is None else checkpoints.restore(model, step.optimizer, order, device)
        )
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

    The rule ``mean_of_batch_means`` is the released code's average over batches of 64, in which the
    images of a shorter last batch weigh more. How many images pass at once changes nothing but
    speed and memory.
    """
    with torch.no_grad(), evaluation_mode(model):
        scores = [score(model(pixels), some) for pixels, some in iterate(images, labels, pass_size)]
    losses, correct = (torch.cat(parts) for parts in zip(*scores, strict=True))
    return Evaluation(mean_loss(losses, rule), float(correct.double().mean()))


def in_parts(num_images: int, recipe: RecipeSpec, micro_batch: int | None) -> int:
    """Return how many of ``num_images`` pass at once where training's batches pass in parts:
    likewise few.
    """
    parts = micro_batch or recipe.batch_size
    return max(1, min(num_images, num_images * parts // recipe.batch_size))


def iterate(images: Tensor, labels: Tensor, pass_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images in the stored order, ``pass_size`` at once, as fresh float32 pixels, and their
    labels.
    """
    for start in range(0, len(images), pass_size):
        rows = slice(start, start + pass_size)
        yield as_pixels(images[rows]), labels[rows]


def score(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and whether the largest logit is the label's, per example."""
    return F.cross_entropy(logits.float(), labels, reduction="none"), logits.argmax(1) == labels


def mean_loss(losses: Tensor, rule: LossRule) -> float:
    """Average per-example ``losses`` ``(num_images,)`` by ``rule``, in float64."""
    losses = losses.double()
    if rule == "mean_of_batch_means":
        losses = torch.stack([batch.mean() for batch in torch.split(losses, AVERAGED_BATCH)])
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
    for name, size in (("batch_size", recipe.batch_size), ("micro_batch", micro_batch)):
        if size == 1 and has_batch_norm(model):
            raise ConfigError(
                "Batch norm needs at least two images per batch",
                f"{name} 1 for a network with batch norm",
                f"use a {name} of 2 or more, or a network without batch norm",
            )
