"""The self-test of a GPU with one network: is it correct, and can trials use CUDA graphs?

The test has two parts.

1. **Arithmetic.** Compare the first loss and the first gradient of all weights with float32 on the
   CPU. All trainings on a GPU use the same kernels, so only another device can reveal a wrong
   kernel. If the GPU fails, the comparison is repeated with a new copy of the network. A GPU that
   has failed must not be used, even if it passes the second comparison. The verdict then contains
   this doubt.
2. **Graphs.** Train the network three times from the same start: without CUDA graphs (plain
   steps), with CUDA graphs, and without them again. The two plain trainings show how much the GPU
   varies between equal trainings. If the training with graphs differs by more, the three trainings
   are repeated, and the largest differences of both repetitions count. If graphs still differ by
   more, or if graphs fail or are slower, trials use plain steps.

``python -m orchestrator.machine.self_test DEVICE CASE`` runs the test in a separate process,
because a failed capture can end the process. If the GPU passes the first part, the command prints
:data:`~.self_test_case.COMPARED_LINE`. If the GPU fails the first comparison, the command prints a
preliminary verdict, which counts if the process ends during the second comparison. At the end, the
command prints the verdict as JSON.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.machine.gpu_errors import library_error
from orchestrator.machine.gpus.torch_gpus import compute_capability
from orchestrator.machine.self_test_case import COMPARED_LINE, Case
from orchestrator.planning.costs.gpu_models import BFLOAT16_FROM
from orchestrator.results.records import FailureKind
from search_spaces.specs import RecipeSpec
from tasks.trials.image_tensors import as_pixels
from tasks.trials.isolation import deterministic, fixed_torch_state, seeded, trial_memory
from tasks.trials.models import PixelModel, build_model
from tasks.trials.training import Capture, autocast, capture_graph, has_batch_norm, train

NUM_EPOCHS = 6
"""Number of epochs of each training. The smaller last batch of an epoch is captured in the fourth
epoch, and replayed in the fifth and the sixth."""
LEARNING_RATE = 1e-4
"""Learning rate of each training."""
NOISE_FACTOR = 4.0
"""Largest allowed ratio of two differences: of graphs from plain steps, and of two plain trainings.
"""
LEAST_LOSS_NOISE = 1e-5
"""Difference of an epoch's loss, in nat, that is always allowed: about 100 roundings in float32."""
LEAST_WEIGHT_NOISE = 1e-6
"""Difference of a weight that is always allowed: a hundredth of an Adam step."""
LEAST_SPREAD = 0.05
"""Epochs with graphs may always be slower than plain epochs by this share of their seconds."""
DROPOUT_LOSS_TOLERANCE = 0.2
"""Largest difference of the last epoch's loss, in nat, between trainings with different dropout
masks."""

BATCH_NORM_IMAGES = 8
"""Number of images for the compared gradient of networks with batch norm. With fewer images, batch
norm divides by very small variances."""
PLAIN_IMAGES = 2
"""Images for the compared gradient of networks without batch norm, whose gradients take ten times
as long on a CPU."""
INNER_PRODUCT_CHUNK = 2**24
"""Number of weights to convert to float64 at once, 128 MB; a VGG has 140 million weights."""


@dataclass(frozen=True)
class Tolerance:
    """Largest allowed differences of a device from float32 on the CPU.

    Attributes:
        loss: absolute difference of the first loss, in nat.
        cosine: lower limit of the cosine of the two gradients over all weights.
        least_ratio: lower limit of the ratio of the two gradients' norms.
        largest_ratio: upper limit of that ratio.
    """

    loss: float
    cosine: float
    least_ratio: float
    largest_ratio: float


FLOAT32_ERROR = 1e-4
"""Relative error of a correct convolution in float32, as large as with cuDNN's Winograd kernels."""


@dataclass(frozen=True)
class Gradient:
    """The first loss and gradient of a network.

    Attributes:
        loss: loss of the first batch, in nat.
        of_weights: gradient of each weight tensor, stored on the CPU.
    """

    loss: float
    of_weights: list[Tensor]

    @property
    def norm(self) -> float:
        """Euclidean norm of the gradient over all weights."""
        return math.sqrt(_inner_product(self.of_weights, self.of_weights))

    def cosine(self, reference: Gradient) -> float:
        """Return the cosine of the angle to another gradient; NaN if one of them is zero."""
        norms = self.norm * reference.norm
        if norms > 0:
            return _inner_product(self.of_weights, reference.of_weights) / norms
        return math.nan


def float32_tolerance(perturbed: Gradient, expected: Gradient) -> Tolerance:
    """Return the tolerance for a device that computes in float32 without TensorFloat-32.

    Args:
        perturbed: loss and gradient on the CPU with weights that :func:`_perturbed` changed.
        expected: loss and gradient on the CPU with the original weights.
    """
    length_error = abs(perturbed.norm / expected.norm - 1)
    return Tolerance(
        loss=1e-3 + 3 * abs(perturbed.loss - expected.loss),
        cosine=_least_cosine(perturbed.cosine(expected), margin=0.01),
        least_ratio=0.95 - 2 * length_error,
        largest_ratio=1.05 + 2 * length_error,
    )


def bfloat16_tolerance(rounded: Gradient, expected: Gradient) -> Tolerance:
    """Return the tolerance in bfloat16, from the effect of rounding on the CPU with this network.

    The effect of rounding on the gradient's direction depends on the network. At 224 pixels, the
    cosine between bfloat16 and float32 on the CPU is 0.92 for ResNet-18, 0.74 for ResNet-34, 0.13
    for ResNet-50 and 0.88 to 0.93 for VGGs. The norms differ by at most 3 % for all of them. So the
    limit of the cosine depends on the network, and the limits of the norm do not. An H100 with a
    wrong kernel had a ratio of norms of 0.26 (pytorch#150700).
    """
    return Tolerance(
        loss=0.02 + 3 * abs(rounded.loss - expected.loss),
        cosine=_least_cosine(rounded.cosine(expected), margin=0.05),
        least_ratio=0.7,
        largest_ratio=1.4,
    )


def _least_cosine(cpu_cosine: float, margin: float) -> float:
    """Return the lower limit of a cosine, from the cosine that rounding causes on the CPU."""
    if math.isnan(cpu_cosine):
        return -1.0
    return 1 - 2 * (1 - cpu_cosine) - margin


@dataclass(frozen=True)
class Arithmetic:
    """Comparison of a network's first loss and gradient on a device with float32 on the CPU.

    Attributes:
        model: name of the network.
        precision: precision on the device.
        loss: loss on the device, in nat.
        cpu_loss: loss in float32 on the CPU, in nat.
        cosine: cosine of the angle between the two gradients over all weights.
        norm_ratio: norm of the gradient on the device, divided by that on the CPU.
        tolerance: largest allowed differences.
    """

    model: str
    precision: str
    loss: float
    cpu_loss: float
    cosine: float
    norm_ratio: float
    tolerance: Tolerance

    @property
    def problem(self) -> str:
        """The difference that is too large, as a line of text; empty if there is none.

        NaN counts as too large.
        """
        limits = self.tolerance
        subject = f"{self.model} in {self.precision}"
        if not abs(self.loss - self.cpu_loss) <= limits.loss:
            return (
                f"{subject}: the first loss is {self.loss:.4f}, but {self.cpu_loss:.4f} on "
                f"the CPU (largest allowed difference {limits.loss:.4f})"
            )
        if not self.cosine >= limits.cosine:
            return (
                f"{subject}: the first gradient has another direction than on the CPU (cosine "
                f"{self.cosine:.3f}, at least {limits.cosine:.3f} is allowed)"
            )
        if not limits.least_ratio <= self.norm_ratio <= limits.largest_ratio:
            return (
                f"{subject}: the first gradient is {self.norm_ratio:.3f} times as long as on "
                f"the CPU ({limits.least_ratio:g} to {limits.largest_ratio:g} is allowed)"
            )
        return ""


@dataclass(frozen=True)
class Difference:
    """Largest differences between trainings.

    Attributes:
        noise: difference between the two plain trainings.
        graphs: difference between the training with graphs and the first plain training.
    """

    noise: float
    graphs: float

    def exceeds(self, least_noise: float) -> bool:
        """Return whether graphs differ by more than noise explains; true for NaN."""
        return not self.graphs <= NOISE_FACTOR * max(self.noise, least_noise)

    def largest_with(self, other: Difference) -> Difference:
        """Return the largest differences of two samples; NaN if one of them is NaN."""
        return Difference(
            noise=_largest([self.noise, other.noise]),
            graphs=_largest([self.graphs, other.graphs]),
        )


@dataclass(frozen=True)
class TrainingComparison:
    """Comparison of three trainings of one network from the same start.

    Attributes:
        model: name of the network.
        losses: largest differences of an epoch's loss, in nat.
        weights: largest differences of a weight; None if training draws random numbers.
        plain_s: seconds of an epoch of the first plain training.
        again_s: seconds of an epoch of the second plain training.
        graph_s: seconds of an epoch with graphs, without captures.
    """

    model: str
    losses: Difference
    weights: Difference | None
    plain_s: float
    again_s: float
    graph_s: float

    @property
    def problem(self) -> str:
        """Text about a difference between graphs and plain steps; empty if there is none."""
        if self.weights is None:
            if not self.losses.graphs <= max(DROPOUT_LOSS_TOLERANCE, 2 * self.losses.noise):
                return (
                    f"{self.model}: with dropout, captured graphs change the loss by "
                    f"{self.losses.graphs:.1e}"
                )
            return ""
        for name, difference, least_noise in (
            ("loss", self.losses, LEAST_LOSS_NOISE),
            ("weight", self.weights, LEAST_WEIGHT_NOISE),
        ):
            if difference.exceeds(least_noise):
                return (
                    f"{self.model}: captured graphs change a {name} by "
                    f"{difference.graphs:.1e}; two plain trainings differ by "
                    f"{difference.noise:.1e}"
                )
        return ""

    def with_earlier(self, earlier: TrainingComparison) -> TrainingComparison:
        """Return this comparison with the largest differences of this and an earlier sample.

        Two plain trainings can be equal by chance. Then the noise of one sample is too small, and
        correct graphs seem to differ. The times remain those of this sample.
        """
        weights = self.weights
        if weights is not None and earlier.weights is not None:
            weights = weights.largest_with(earlier.weights)
        return replace(self, losses=self.losses.largest_with(earlier.losses), weights=weights)

    @property
    def slowness(self) -> str:
        """Text about graphs that are slower than plain steps; empty if they are not slower."""
        tolerance = max(abs(self.plain_s - self.again_s), LEAST_SPREAD * self.plain_s)
        if self.graph_s <= max(self.plain_s, self.again_s) + tolerance:
            return ""
        return (
            f"captured graphs take {self.graph_s:.2f} s an epoch; plain steps take "
            f"{self.plain_s:.2f} s and {self.again_s:.2f} s"
        )


@dataclass(frozen=True)
class Verdict:
    """The verdict of a self-test.

    Attributes:
        wrong: what the GPU computes wrongly, in one line; empty if it computes correctly.
        plain_because: why trials use plain steps, in one line; empty if they use graphs.
        is_final: False if an error or other load on the GPU caused the verdict. A later test may
            then have another verdict.
        doubt: how the second comparison with the CPU ended, if it did not confirm that the GPU
            computes wrongly. Empty if the second comparison confirmed it, and if the GPU computes
            correctly.
        unchecked: the error of the GPU that ended the comparison with the CPU, in one line. It is
            then unknown whether the GPU computes correctly. Empty if there was no such error.
        seconds: duration of the whole test.
        arithmetic: comparisons with the CPU, also those of the second comparison.
        trainings: comparisons of graphs with plain steps.
    """

    wrong: str
    plain_because: str
    is_final: bool
    doubt: str = ""
    unchecked: str = ""
    seconds: float = 0.0
    arithmetic: tuple[Arithmetic, ...] = ()
    trainings: tuple[TrainingComparison, ...] = ()

    @property
    def is_only_slow(self) -> bool:
        """True if graphs compute correctly and are only slower than plain steps."""
        return bool(self.plain_because) and self.plain_because == _slowness_of(self.trainings)

    def as_fields(self) -> dict[str, Any]:
        """Return the fields as JSON types, by name."""
        return asdict(self) | {"is_only_slow": self.is_only_slow}


def run(
    case: Case,
    device: torch.device,
    on_compared: Callable[[], object] = lambda: None,
    on_wrong: Callable[[Verdict], object] = lambda verdict: None,
) -> Verdict:
    """Test one network on a device; an exception becomes a part of the verdict.

    Args:
        case: the network and its settings.
        device: the GPU, or a CPU.
        on_compared: called when the device has passed the comparison with the CPU.
        on_wrong: called with a preliminary verdict when the device has failed the comparison,
            before the comparison is repeated.
    """
    start = time.perf_counter()
    if device.type == "cuda" and compute_capability() < BFLOAT16_FROM:
        case = replace(case, precision="float32")
    arithmetic: list[Arithmetic] = []
    repeated: list[Arithmetic] = []
    trainings: list[TrainingComparison] = []
    error_text = ""
    unchecked = ""
    is_compared = False
    try:
        with (
            trial_memory(device),
            fixed_torch_state(0, device),
            deterministic(device, case.num_threads),
        ):
            # One by one: if a later comparison fails, a wrong result before it still counts.
            for comparison in compare_with_cpu(case, device):
                arithmetic.append(comparison)
            is_compared = True
            # If the device computes wrongly, a comparison of graphs on it is useless.
            if _wrong_in(arithmetic):
                on_wrong(_wrong_verdict(arithmetic, [], error_text=""))
                repeated += compare_with_cpu(case, device)
            else:
                on_compared()
                trainings += compare_trainings(case, device)
                error_text = frozen_dropout(device)
    except Exception as error:  # A driver, a library or a capture may raise any exception.
        first_line = (str(error).splitlines() or [""])[0][:300]
        error_text = f"{case.model.name}: {type(error).__name__}: {first_line}"
        library_row = library_error(error)
        is_device_error = library_row is not None and library_row.kind == FailureKind.DEVICE_ERROR
        if is_device_error and not is_compared and not _wrong_in(arithmetic):
            unchecked = error_text
    if _wrong_in(arithmetic):
        verdict = _wrong_verdict(arithmetic, repeated, error_text)
    else:
        verdict = replace(_verdict_on_graphs(trainings, error_text), arithmetic=tuple(arithmetic))
    return replace(verdict, unchecked=unchecked, seconds=time.perf_counter() - start)


def _wrong_in(arithmetic: Sequence[Arithmetic]) -> str:
    """Return what a device computes wrongly, in one line; empty if nothing is wrong."""
    return "; ".join(filter(None, (comparison.problem for comparison in arithmetic)))


def _wrong_verdict(
    arithmetic: Sequence[Arithmetic], repeated: Sequence[Arithmetic], error_text: str
) -> Verdict:
    """Return the verdict on a device that has computed wrongly at least once.

    The verdict is final even if the second comparison finds no difference: trials never use a
    device that has computed wrongly.

    Args:
        arithmetic: the first comparison with the CPU.
        repeated: the second comparison; empty if it has not ended.
        error_text: the error that ended a later comparison; empty if there was none.
    """
    wrong = _wrong_in(arithmetic)
    doubt = ""
    if error_text:
        doubt = f"a later comparison with the CPU failed: {error_text}"
    elif not repeated:
        doubt = "the second comparison with the CPU did not end"
    elif not _wrong_in(repeated):
        doubt = "the second comparison with the CPU found no difference"
    return Verdict(
        wrong=wrong,
        plain_because=wrong,
        is_final=True,
        doubt=doubt,
        arithmetic=(*arithmetic, *repeated),
    )


def _verdict_on_graphs(trainings: Sequence[TrainingComparison], error_text: str) -> Verdict:
    """Return the verdict on a device that computes correctly, as far as it was compared."""
    different = "; ".join(filter(None, (comparison.problem for comparison in trainings)))
    slow = _slowness_of(trainings)
    return Verdict(
        wrong="",
        plain_because=error_text or different or slow,
        is_final=bool(different) or not (error_text or slow),
        trainings=tuple(trainings),
    )


def _slowness_of(trainings: Sequence[TrainingComparison]) -> str:
    """Return text about trainings that are slower with graphs; empty if there are none."""
    return "; ".join(filter(None, (comparison.slowness for comparison in trainings)))


def compare_with_cpu(case: Case, device: torch.device) -> Iterator[Arithmetic]:
    """Yield the comparisons of first loss and gradient on a device with float32 on the CPU.

    The device computes in float32, as evaluation and attacks do, and also in bfloat16 if the recipe
    trains in bfloat16. Float16 is not compared: without scaling it loses small gradients on every
    device.
    """
    model = built(case, dropout=0.0)
    num_images = BATCH_NORM_IMAGES if has_batch_norm(model) else PLAIN_IMAGES
    images, labels = noise(num_images, case.image_size, case.channels)
    if _draws(model, images):
        # For example stochastic depth. In evaluation mode nothing is random.
        model.eval()
    expected = _gradient(model, images, labels, "float32")
    if not (math.isfinite(expected.loss) and 0 < expected.norm < math.inf):
        return  # this network cannot be compared
    with _perturbed(model):
        perturbed = _gradient(model, images, labels, "float32")
    tolerances = {"float32": float32_tolerance(perturbed, expected)}
    # A gradient of VGG has 0.56 GB.
    del perturbed
    if case.precision == "bfloat16":
        rounded = _bfloat16_gradient(model, images, labels)
        tolerances["bfloat16"] = bfloat16_tolerance(rounded, expected)
        del rounded
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for precision, tolerance in tolerances.items():
        actual = _gradient(model, images.to(device), labels.to(device), precision)
        yield Arithmetic(
            model=case.model.name,
            precision=precision,
            loss=actual.loss,
            cpu_loss=expected.loss,
            cosine=actual.cosine(expected),
            norm_ratio=actual.norm / expected.norm,
            tolerance=tolerance,
        )


def _bfloat16_gradient(model: PixelModel, images: Tensor, labels: Tensor) -> Gradient:
    """Return loss and gradient in bfloat16 on the CPU.

    A CPU without instructions for bfloat16 needs up to 40 times as long (52 s of processor time
    instead of 1.3 s for vgg13). Such a CPU computes in float32, with weights and outputs rounded to
    bfloat16. The tolerance needs only the size of the rounding errors, not their exact values.
    """
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return _gradient(model, images, labels, "bfloat16")
    with _rounded_to_bfloat16(model):
        return _gradient(model, images, labels, "float32")


@contextmanager
def _rounded_to_bfloat16(model: PixelModel) -> Iterator[None]:
    """Round weights, and outputs of convolutions and linear layers, to bfloat16 during a block."""
    originals = [weight.detach().clone() for weight in model.parameters()]
    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output: output.bfloat16().float())
        for layer in model.modules()
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)
    ]
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.bfloat16())
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for weight, original in zip(model.parameters(), originals, strict=True):
                weight.copy_(original)


@contextmanager
def _perturbed(model: PixelModel) -> Iterator[None]:
    """Change each weight by a random relative error of :data:`FLOAT32_ERROR` during a block."""
    generator = torch.Generator().manual_seed(0)
    originals = [weight.detach().clone() for weight in model.parameters()]
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + FLOAT32_ERROR * torch.randn(weight.shape, generator=generator))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, original in zip(model.parameters(), originals, strict=True):
                weight.copy_(original)


def _draws(model: PixelModel, images: Tensor) -> bool:
    """Return whether a network draws random numbers in training: compare two passes on the CPU."""
    with torch.no_grad():
        outputs = []
        for seed in (1, 2):
            with seeded(seed):
                outputs.append(model.train()(as_pixels(images)))
    return not torch.equal(*outputs)


def _gradient(model: PixelModel, images: Tensor, labels: Tensor, precision: str) -> Gradient:
    """Return loss and gradient of a batch, in the model's present mode (training or evaluation)."""
    model.zero_grad(set_to_none=True)
    with autocast(precision, images.device):
        logits = model(as_pixels(images))
    loss = F.cross_entropy(logits.float(), labels)
    torch.autograd.backward(loss)
    gradients = [weight.grad.cpu() for weight in model.parameters() if weight.grad is not None]
    model.zero_grad(set_to_none=True)
    return Gradient(float(loss.detach()), gradients)


def _inner_product(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    total = 0.0
    for left, right in zip(first, second, strict=True):
        chunks = zip(
            torch.split(left.flatten(), INNER_PRODUCT_CHUNK),
            torch.split(right.flatten(), INNER_PRODUCT_CHUNK),
            strict=True,
        )
        total += sum(float(a.double() @ b.double()) for a, b in chunks)
    return total


def compare_trainings(case: Case, device: torch.device) -> list[TrainingComparison]:
    """Train a network with CUDA graphs and with plain steps, and compare the two.

    If the network has dropout, do this twice: first without dropout, then with it.

    Graphs and plain steps draw different random numbers, which is no error. So weights are compared
    only without dropout; with dropout only losses are compared.
    """
    images, labels = noise(case.num_images, case.image_size, case.channels)
    dropouts: list[float | None] = [0.0]
    if _has_dropout(built(case, dropout=None)):
        dropouts.append(None)
    comparisons = []
    for dropout in dropouts:
        comparison = _compare(case, images, labels, device, dropout=dropout)
        if comparison.problem:
            second = _compare(case, images, labels, device, dropout=dropout)
            comparison = second.with_earlier(comparison)
        comparisons.append(comparison)
    return comparisons


def _has_dropout(model: PixelModel) -> bool:
    return any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())


@dataclass(frozen=True)
class _Training:
    losses: list[float]
    weights: list[Tensor]
    epoch_s: float


def _compare(
    case: Case, images: Tensor, labels: Tensor, device: torch.device, *, dropout: float | None
) -> TrainingComparison:
    # Graphs run between the plain trainings: if another load grows meanwhile, it affects both.
    plain = _trained(case, images, labels, device, dropout, graphs=False)
    graphs = _trained(case, images, labels, device, dropout, graphs=True)
    graphs_change = _largest_change(plain.weights, graphs.weights)
    # The weights of a VGG have 0.56 GB.
    graphs.weights.clear()
    again = _trained(case, images, labels, device, dropout, graphs=False)
    losses = Difference(
        noise=_largest_difference(plain.losses, again.losses),
        graphs=_largest_difference(plain.losses, graphs.losses),
    )
    weights = None
    if dropout is None or _draws(built(case, dropout), images[:PLAIN_IMAGES]):
        # Only the last loss, because the first losses depend on few random numbers.
        losses = Difference(
            noise=abs(plain.losses[-1] - again.losses[-1]),
            graphs=_largest_difference(plain.losses[-1:], graphs.losses[-1:]),
        )
    else:
        weights = Difference(
            noise=_largest_change(plain.weights, again.weights),
            graphs=graphs_change,
        )
    return TrainingComparison(
        model=case.model.name,
        losses=losses,
        weights=weights,
        plain_s=plain.epoch_s,
        again_s=again.epoch_s,
        graph_s=graphs.epoch_s,
    )


def _trained(
    case: Case,
    images: Tensor,
    labels: Tensor,
    device: torch.device,
    dropout: float | None,
    *,
    graphs: bool,
) -> _Training:
    """Train from the fixed start, and measure an epoch after all captures."""
    model = built(case, dropout)
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
    history = train(model, images, labels, recipe, seed=0, device=device, graphs=graphs)
    return _Training(
        losses=[record.train_loss for record in history],
        weights=[value.detach().float().cpu() for value in model.state_dict().values()],
        epoch_s=min(record.seconds for record in history[-2:]),
    )


def _largest_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the largest difference of two series of losses.

    It is infinite if one training ended early, and NaN if a loss is NaN.
    """
    if len(first) != len(second):
        return math.inf
    return _largest([abs(left - right) for left, right in zip(first, second, strict=True)])


def _largest(values: Sequence[float]) -> float:
    """Return the largest value; NaN if a value is NaN, which Python's ``max`` may ignore."""
    return float(torch.tensor(values, dtype=torch.float64).max())


def _largest_change(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    changes = [(left - right).abs().max() for left, right in zip(first, second, strict=True)]
    return float(torch.stack(changes).max())


def frozen_dropout(
    device: torch.device,
    capture: Capture = capture_graph,
) -> str:
    """Return text if a graph's dropout repeats its mask or drops a wrong share; else empty."""
    if device.type != "cuda" and capture is capture_graph:
        return ""
    ones = torch.ones(10_000, device=device)
    dropped = torch.empty_like(ones)

    def draw() -> None:
        dropped.copy_(F.dropout(ones, 0.5))

    draw()
    replay = capture(draw)
    masks = []
    for _ in range(2):
        replay()
        masks.append((dropped > 0).cpu())
    kept_share = float(torch.stack(masks).float().mean())
    # 0.07 is twenty times the standard error of 20,000 draws.
    if torch.equal(*masks) or abs(kept_share - 0.5) > 0.07:
        return (
            "dropout in a captured graph repeats its random numbers, or keeps a share of "
            f"{kept_share:.2f} instead of 0.5"
        )
    return ""


def noise(num_images: int, side: int, channels: int = 1) -> tuple[Tensor, Tensor]:
    """Return images of random noise with a fixed seed, and alternating labels 0 and 1.

    Returns:
        Images ``(num_images, channels, side, side)`` uint8, and labels ``(num_images,)`` int64.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (num_images, channels, side, side)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return images, torch.arange(num_images) % 2


def built(case: Case, dropout: float | None = None) -> PixelModel:
    """Return the case's network from a fixed start, on the CPU.

    If ``dropout`` is not None, it replaces the network's own dropout.
    """
    return build_model(
        case.model,
        num_outputs=2,
        in_channels=case.channels,
        input_scale=1 / 255,
        dropout=dropout,
        seed=0,
        image_size=case.image_size,
    )


def main() -> None:
    """Run the case of the command line, and print each verdict as a line of JSON."""
    device_name, case_text = sys.argv[1:]

    def print_compared() -> None:
        print(COMPARED_LINE, flush=True)  # noqa: T201

    def print_verdict(verdict: Verdict) -> None:
        print(json.dumps(verdict.as_fields()), flush=True)  # noqa: T201

    case = Case.from_json(case_text)
    print_verdict(run(case, torch.device(device_name), print_compared, print_verdict))


if __name__ == "__main__":
    main()
