"""Training and evaluation of a network, with all images of a set on the device as one tensor.

The datasets of this study are small: 1,750 images of 224x224 are 88 MB as bytes. They are copied to
the device once. A batch is a selection of rows of this tensor, so there are no loaders and no
worker processes, and no epoch decodes images. Pixels have their stored type (normally uint8). Each
batch is converted to float32, channels last. Images are ``(num_images, channels, height, width)``
with pixels in [0, 255]; labels are ``(num_images,)`` int64. Both are on the device of the model.
The model maps pixels to logits.

:class:`Step` runs one training step on any device. On a GPU, a step can also be captured as a CUDA
graph and replayed. With the study's batches of 6 to 40 images, most of a ResNet's step is the
launch of its 274 to 687 kernels. A graph launches all of them at once. A graph always reads and
writes the same memory, so a step uses only tensors that stay at the same address.
:class:`Checkpoints` make it possible to continue an interrupted training with the same results.
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

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from search_spaces.errors import ConfigError
from search_spaces.fingerprint import derive_seed
from search_spaces.specs import RecipeSpec, TestLoss
from tasks.trials.isolation import seeded, set_states_outside_torch, states_outside_torch
from tasks.trials.records import EVALUATION_PASS, EpochRecord, EpochScore

SGD_MOMENTUM = 0.9
"""Momentum of the optimizer ``sgd``."""
WARM_UP_STEPS = 3
"""Number of steps before a capture, as PyTorch's CUDA graph notes recommend. They are part of the
training."""
CHECKPOINT_INTERVAL_S = 300.0
"""Seconds between two checkpoints. A shorter training saves no checkpoint."""
RELEASED_EVAL_BATCH = 64
"""Batch size of the evaluation in the released code. ``mean_of_batch_means`` averages over batches
of this size."""

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


class Step:
    """A training step: forward pass, backward pass and weight update on one batch of images.

    With the precision ``bfloat16``, the forward pass runs under autocast. With
    ``float16_unscaled``, it runs under autocast in float16, and the gradients are not scaled. The
    released code does the same on a GPU. Small gradients may then become zero. On a CPU, float16
    kernels are slow and round in other places, so the results are similar to the released results,
    but not equal. Weights, gradients, the update and the loss are float32 in every precision.

    Args:
        model: the model, which is trained in place.
        images: the training images, which are not changed.
        labels: labels of the images.
        recipe: optimizer, rates and precision.
        micro_batch: images per forward pass; None for the whole batch. The step is still that of
            the whole batch, but batch norm uses the statistics of each part.
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
        """Take one step on the images at ``rows``, ``(batch_size,)`` int64, and count the
        images.
        """
        self.run(rows)
        self.count_images(len(rows))

    def run(self, rows: Tensor) -> None:
        """Take one step, without counting the images. A CUDA graph replays this part.

        No operation here may wait for the device or read a number from it.
        """
        # This is faster than zero_grad, which also runs hooks. It matters for small networks.
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
            # This is loss.backward(), which has no type annotations.
            if len(part) == len(rows):
                torch.autograd.backward(loss)
            else:
                # The mean of a batch is the mean of its parts, weighted by their sizes.
                torch.autograd.backward(loss * (len(part) / len(rows)))
            self._loss_sum.add_(loss.detach(), alpha=len(part))
            self._num_correct += (logits.argmax(1) == labels).sum()
        self.optimizer.step()

    def count_images(self, num_images: int) -> None:
        """Add a batch of ``num_images`` images to the number of images since the last reading."""
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
    """Divide ``rows`` into batches of ``batch_size``, except the last, which may differ.

    A last batch of only one row is added to the batch before it, because batch norm cannot compute
    the variance of one image. So a batch, or a micro batch, has up to ``batch_size + 1`` rows. With
    a ``batch_size`` of 1, every batch has one row.
    """
    batches = list(torch.split(rows, batch_size))
    has_single_row_left = len(batches) > 1 and len(batches[-1]) == 1
    if has_single_row_left and batch_size > 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


class CaptureError(RuntimeError):
    """A training step could not be captured as a CUDA graph.

    The memory of the capture is not free again until the process ends (pytorch#190308).
    """


Replay = Callable[[], None]
"""Function that replays captured work, or just runs work."""
Capture = Callable[[Callable[[], None]], Replay]
"""Function that captures work without running it, as :func:`capture_graph` does."""


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

    There are two sizes at most: that of full batches, and that of the last batch of an epoch. The
    first :data:`WARM_UP_STEPS` batches of each size run without a graph, on a side stream, because
    a capture requires it. They are normal training steps, so a training with graphs takes the same
    steps as a training without graphs.

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
        """Take one step on the images at ``rows``."""
        size = len(rows)
        self._step.count_images(size)
        self._num_batches[size] = self._num_batches.get(size, 0) + 1
        if self._num_batches[size] <= WARM_UP_STEPS:
            with side_stream(rows.device):
                self._step.run(rows)
            return
        if size not in self._replays:
            self._rows[size] = rows.clone()
            # A capture does not run the step. The replay below takes it, also for this first batch.
            self._replays[size] = self._capture(lambda: self._step.run(self._rows[size]))
        self._rows[size].copy_(rows)
        self._replays[size]()


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Run a block on a side stream, after the work of the current stream. On a CPU, just run it.

    The current stream waits for the work of the block.
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


def as_pixels(images: Tensor) -> Tensor:
    """Return a float32 copy in the channels-last layout, in which convolutions are fastest."""
    # float32 images are copied as well: kernels may round differently if memory is aligned
    # differently.
    return images.to(torch.float32, copy=True, memory_format=torch.channels_last)


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether ``model`` has a batch-norm layer."""
    return any(isinstance(module, _BATCH_NORMS) for module in model.modules())


def make_optimizer(
    model: nn.Module, recipe: RecipeSpec, *, capturable: bool = False
) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe. With ``capturable``, a CUDA graph can capture its steps."""
    parameters = list(model.parameters())
    rate = recipe.learning_rate
    decay = recipe.weight_decay
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=SGD_MOMENTUM, weight_decay=decay)
    # The weight decay of Adam is an L2 term of the loss, as in the released code. That of AdamW is
    # separate from the gradient.
    optimizer = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return optimizer(parameters, lr=rate, weight_decay=decay, fused=True, capturable=capturable)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a forward pass has this precision."""
    if precision == "float32":
        return nullcontext()
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float16
    return torch.autocast(device.type, dtype=dtype)


class Checkpoints:
    """Saves the state of a training between epochs, and restores it.

    A checkpoint contains the weights, the state of the optimizer, the random states of batch order
    and dropout, and the records of the finished epochs. On a CPU, the epochs after a restart have
    the same results to the last bit. A training that began on a CPU does not continue on a GPU, or
    the other way round, because the results would belong to neither device.

    Args:
        read: returns the latest complete state, or None if there is no state.
        save: stores a state, either completely or not at all.
        interval_s: smallest number of seconds between two checkpoints.

    Attributes:
        test_history: scores on the test images so far. The caller adds to this list. It is saved
            and restored with the training.
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
            The records of the finished epochs; empty if the training must start from the beginning.
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
        # Only the moments are restored: ``capturable`` may differ from that of the last attempt.
        moments = {"state": state["optimizer"]["state"]}
        optimizer.load_state_dict(optimizer.state_dict() | moments)
        order_generator.set_state(state["order"])
        torch.set_rng_state(state["dropout"])
        if was_on_gpu:
            torch.cuda.set_rng_state(state["dropout_cuda"], device)
        set_states_outside_torch(*state["outside_torch"])
        # Stored checkpoints have the test history under the key "notes".
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
        """Save the state after the last epoch of ``history``, if the interval has passed."""
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

    On a CPU, the tensor shares the memory of the array and must not be changed. The array may be
    read-only, as arrays in Ray's object store are.
    """
    with warnings.catch_warnings():
        # torch warns about read-only arrays, but the tensor is never changed.
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

    Every epoch uses each image once, in batches of :func:`split_batches`. The resulting weights are
    those after the last epoch, not those with the best score.

    Args:
        model: the model, which is moved to ``device``.
        images: the training images, which are moved to ``device``.
        labels: the labels, which are moved to ``device``.
        recipe: optimizer, rates, batch size, epochs and precision.
        seed: seed of batch order and dropout.
        device: device of the training.
        on_epoch: called with the record of every finished epoch that did not diverge.
        micro_batch: see :class:`Step`.
        checkpoints: restores a state at the start, and saves states between epochs.
        graphs: True to capture the steps as CUDA graphs on a GPU, and replay them.

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
    """Return loss and accuracy, computed in evaluation mode and float32.

    Args:
        model: maps pixels to logits. Its mode is restored afterwards.
        images: pixels in [0, 255] of any type.
        labels: the true labels.
        loss_rule: rule for the average of losses, see :func:`mean_loss`.
        batch_size: images per forward pass. It only changes speed and memory.
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


def scaled_batch_size(full_batch_size: int, recipe: RecipeSpec, micro_batch: int | None) -> int:
    """Return the batch size of an evaluation or an attack, scaled down as training is.

    The factor is ``micro_batch / recipe.batch_size``, and 1 without micro batches. The batch size
    is rounded down, and at least 1.
    """
    images_per_pass = micro_batch or recipe.batch_size
    scaled = full_batch_size * images_per_pass // recipe.batch_size
    return max(1, min(full_batch_size, scaled))


def image_batches(
    images: Tensor, labels: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of copied float32 pixels with their labels, in the stored order."""
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        yield as_pixels(images[rows]), labels[rows]


def scores_per_image(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of each image, and whether the image is classified correctly."""
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return losses, logits.argmax(1) == labels


def mean_loss(losses: Tensor, loss_rule: TestLoss) -> float:
    """Return the mean of ``losses``, ``(num_images,)``, by a rule. It is computed in float64.

    ``mean_of_batch_means`` is the rule of the released code: the mean over batches of
    :data:`RELEASED_EVAL_BATCH` images. The images of a smaller last batch have a larger weight.
    """
    losses = losses.double()
    if loss_rule == "mean_of_batch_means":
        batches = torch.split(losses, RELEASED_EVAL_BATCH)
        losses = torch.stack([batch.mean() for batch in batches])
    return float(losses.mean())


class evaluation_mode:
    """Context in which a model is in evaluation mode. At the end every module has its old mode."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._modes = [(module, module.training) for module in self._model.modules()]
        self._model.eval()

    def __exit__(self, *exception: object) -> None:
        for module, mode in self._modes:
            module.training = mode
