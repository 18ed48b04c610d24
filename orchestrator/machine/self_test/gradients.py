"""The first part of the self-test. It compares a network's first loss and gradient on a device
with the CPU.

The reference is computed in float32 on the CPU. The tolerances depend on the network. To set
them, the gradient is computed a second time on the CPU, with rounded numbers. The GPU may
differ from the reference a few times as much as this second gradient does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.machine.self_test.case import Case
from orchestrator.machine.self_test.network import (
    build_network,
    is_random_in_training,
    random_images,
)
from tasks.trials.image_tensors import as_pixels
from tasks.trials.models import PixelModel
from tasks.trials.steps import autocast, has_batch_norm

BATCH_NORM_IMAGES = 8
"""Number of images from which the gradient is computed if the network has batch norm. With
fewer images, batch norm would divide by very small variances."""
NO_BATCH_NORM_IMAGES = 2
"""Number of images from which the gradient is computed if the network has no batch norm.
Gradients of such networks take ten times as long on a CPU."""
INNER_PRODUCT_CHUNK = 2**24
"""Number of weights that are converted to float64 at once. They take 128 MB in float64. A VGG
has 140 million weights."""
FLOAT32_ERROR = 1e-4
"""Relative error that a correct convolution in float32 may have. cuDNN's Winograd kernels have
this error."""
LOSS_FACTOR = 3
"""Largest allowed difference from the CPU's loss, as a multiple of the difference that
rounding causes on the CPU. A GPU rounds in another way than the CPU, so its error may be
larger by chance."""
DIRECTION_FACTOR = 2
"""Largest allowed value of 1 - cosine, as a multiple of the value that rounding causes on the
CPU. The reason is the same as for LOSS_FACTOR."""
NORM_FACTOR = 2
"""Largest allowed relative difference from the CPU's gradient norm in float32, as a multiple
of the difference that rounding causes on the CPU. The reason is the same as for
LOSS_FACTOR."""
FLOAT32_LOSS_MARGIN = 1e-3
"""Difference between a float32 loss and the CPU's loss that is always allowed, in nat. It is
needed because rounding on the CPU may by chance leave the loss unchanged."""
FLOAT32_COSINE_MARGIN = 0.01
"""Value of 1 - cosine in float32 that is always allowed. A GPU adds numbers in another order
than the CPU."""
FLOAT32_NORM_MARGIN = 0.05
"""Relative difference from the CPU's gradient norm that is always allowed in float32."""
BFLOAT16_LOSS_MARGIN = 0.08
"""Difference between a bfloat16 loss and the CPU's float32 loss that is always allowed, in
nat. In 12 measurements on a CPU with bfloat16 instructions, bfloat16 changed ResNet-50's loss
by at most 0.039. The limit is twice this value. The change varies by chance, so a single
measurement on the CPU is not a reliable limit. A wrong kernel of an H100 changed the loss by
only 0.009 (pytorch#150700). Such a kernel is detected only by the gradient."""
BFLOAT16_COSINE_MARGIN = 0.05
"""Value of 1 - cosine in bfloat16 that is always allowed."""
BFLOAT16_NORM_RATIOS = (0.7, 1.4)
"""Smallest and largest allowed norm of the gradient in bfloat16, divided by the CPU's norm.
Rounding on the CPU changes the norm by at most 3 %. With the wrong kernel of an H100, the
ratio was 0.26 (pytorch#150700)."""


@dataclass(frozen=True)
class Tolerance:
    """The limits for the differences between a device and float32 on the CPU.

    Attributes:
        loss: largest allowed difference between the device's first loss and the CPU's, in nat.
        cosine: smallest allowed cosine of the angle between the two gradients.
        least_ratio: smallest allowed norm of the device's gradient, divided by the CPU's norm.
        largest_ratio: largest allowed value of the same ratio.
    """

    loss: float
    cosine: float
    least_ratio: float
    largest_ratio: float


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
        """Return the cosine of the angle to another gradient, or NaN if one of the gradients
        is zero.
        """
        norms = self.norm * reference.norm
        if norms > 0:
            return _inner_product(self.of_weights, reference.of_weights) / norms
        return math.nan


def _inner_product(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Return the inner product of two lists of tensors. It is computed in float64."""
    total = 0.0
    for left, right in zip(first, second, strict=True):
        chunks = zip(
            torch.split(left.flatten(), INNER_PRODUCT_CHUNK),
            torch.split(right.flatten(), INNER_PRODUCT_CHUNK),
            strict=True,
        )
        total += sum(float(a.double() @ b.double()) for a, b in chunks)
    return total


def float32_tolerance(perturbed: Gradient, expected: Gradient) -> Tolerance:
    """Return the tolerance for a device that computes in float32 without TensorFloat-32.

    Args:
        perturbed: loss and gradient on the CPU, with weights that :func:`_perturbed` has
            changed.
        expected: loss and gradient on the CPU, with the original weights.
    """
    norm_error = NORM_FACTOR * abs(perturbed.norm / expected.norm - 1) + FLOAT32_NORM_MARGIN
    return Tolerance(
        loss=FLOAT32_LOSS_MARGIN + LOSS_FACTOR * abs(perturbed.loss - expected.loss),
        cosine=_least_cosine(perturbed.cosine(expected), FLOAT32_COSINE_MARGIN),
        least_ratio=1 - norm_error,
        largest_ratio=1 + norm_error,
    )


def bfloat16_tolerance(rounded: Gradient, expected: Gradient) -> Tolerance:
    """Return the tolerance in bfloat16. It depends on the effect of rounding this network on
    the CPU.

    The effect of rounding on the gradient's direction depends on the network. At 224 pixels,
    the cosine between bfloat16 and float32 on the CPU is 0.92 for ResNet-18, 0.74 for
    ResNet-34, 0.13 for ResNet-50 and 0.88 to 0.93 for VGGs. The limit of the cosine therefore
    depends on the network. Rounding hardly changes the norm, so the limits of the norm are the
    same for all networks.

    Args:
        rounded: loss and gradient in bfloat16 on the CPU.
        expected: loss and gradient in float32 on the CPU.
    """
    least_ratio, largest_ratio = BFLOAT16_NORM_RATIOS
    return Tolerance(
        loss=BFLOAT16_LOSS_MARGIN + LOSS_FACTOR * abs(rounded.loss - expected.loss),
        cosine=_least_cosine(rounded.cosine(expected), BFLOAT16_COSINE_MARGIN),
        least_ratio=least_ratio,
        largest_ratio=largest_ratio,
    )


def _least_cosine(rounded_cosine: float, margin: float) -> float:
    """Return the lower limit of a cosine.

    The largest allowed value of 1 - cosine is DIRECTION_FACTOR times its value for the rounded
    gradient, plus a margin. If the cosine of the rounded gradient is NaN, every direction is
    allowed.
    """
    if math.isnan(rounded_cosine):
        return -1.0
    return 1 - DIRECTION_FACTOR * (1 - rounded_cosine) - margin


@dataclass(frozen=True)
class GradientComparison:
    """The comparison of a network's first loss and gradient on a device with float32 on the
    CPU.

    Attributes:
        model: name of the network.
        precision: precision on the device.
        loss: loss on the device, in nat.
        cpu_loss: loss in float32 on the CPU, in nat.
        cosine: cosine of the angle between the two gradients over all weights.
        norm_ratio: norm of the gradient on the device, divided by the norm on the CPU.
        tolerance: limits for the differences.
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
        """A line of text about a difference that is too large, or an empty text if there is none.

        NaN counts as too large.
        """
        limits = self.tolerance
        subject = f"{self.model} in {self.precision}"
        if not abs(self.loss - self.cpu_loss) <= limits.loss:
            return (
                f"{subject}: the first loss is {self.loss:.4f}, but {self.cpu_loss:.4f} on "
                f"the CPU (the largest allowed difference is {limits.loss:.4f})"
            )
        if not self.cosine >= limits.cosine:
            return (
                f"{subject}: the first gradient has another direction than on the CPU (the "
                f"cosine is {self.cosine:.3f}, but must be at least {limits.cosine:.3f})"
            )
        if not limits.least_ratio <= self.norm_ratio <= limits.largest_ratio:
            return (
                f"{subject}: the first gradient is {self.norm_ratio:.3f} times as long as on "
                f"the CPU (the allowed range is {limits.least_ratio:g} to "
                f"{limits.largest_ratio:g} times)"
            )
        return ""


def compare_with_cpu(case: Case, device: torch.device) -> Iterator[GradientComparison]:
    """Yield comparisons of the first loss and gradient on a device with float32 on the CPU.

    The device computes in float32, because evaluations and attacks do so. If the recipe trains
    in bfloat16, the device also computes in bfloat16. Float16 is not compared, because without
    scaling it loses small gradients on every device. If the reference is not finite, or if its
    gradient is zero, nothing is yielded.
    """
    model = build_network(case, dropout=0.0)
    num_images = BATCH_NORM_IMAGES if has_batch_norm(model) else NO_BATCH_NORM_IMAGES
    images, labels = random_images(num_images, case.image_size, case.channels)
    if is_random_in_training(model, images):
        # The network has stochastic depth, for example. In evaluation mode nothing is random.
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
        yield GradientComparison(
            model=case.model.name,
            precision=precision,
            loss=actual.loss,
            cpu_loss=expected.loss,
            cosine=actual.cosine(expected),
            norm_ratio=actual.norm / expected.norm,
            tolerance=tolerance,
        )


def _bfloat16_gradient(model: PixelModel, images: Tensor, labels: Tensor) -> Gradient:
    """Return the loss and the gradient in bfloat16 on the CPU.

    A CPU without bfloat16 instructions needs up to 40 times as long (52 s of processor time
    instead of 1.3 s for vgg13). On such a CPU, weights and outputs are rounded to bfloat16,
    and all computations are in float32. This is enough, because the tolerance needs only the
    size of the rounding errors, not their exact values.
    """
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return _gradient(model, images, labels, "bfloat16")
    with _rounded_to_bfloat16(model):
        return _gradient(model, images, labels, "float32")


@contextmanager
def _rounded_to_bfloat16(model: PixelModel) -> Iterator[None]:
    """During a ``with`` block, round to bfloat16 all weights and the outputs of convolutions
    and linear layers.
    """
    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output: output.bfloat16().float())
        for layer in model.modules()
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)
    ]
    with _restore_weights_after(model):
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(weight.bfloat16())
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@contextmanager
def _perturbed(model: PixelModel) -> Iterator[None]:
    """During a ``with`` block, change each weight by a random relative error of about
    :data:`FLOAT32_ERROR`.
    """
    generator = torch.Generator().manual_seed(0)
    with _restore_weights_after(model):
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1 + FLOAT32_ERROR * torch.randn(weight.shape, generator=generator))
        yield


@contextmanager
def _restore_weights_after(model: PixelModel) -> Iterator[None]:
    """Restore a network's weights after a ``with`` block that changes them."""
    originals = [weight.detach().clone() for weight in model.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, original in zip(model.parameters(), originals, strict=True):
                weight.copy_(original)


def _gradient(model: PixelModel, images: Tensor, labels: Tensor, precision: str) -> Gradient:
    """Return the loss and the gradient of a batch. The model stays in its present mode,
    training or evaluation.
    """
    model.zero_grad(set_to_none=True)
    with autocast(precision, images.device):
        logits = model(as_pixels(images))
    loss = F.cross_entropy(logits.float(), labels)
    torch.autograd.backward(loss)
    gradients = [weight.grad.cpu() for weight in model.parameters() if weight.grad is not None]
    model.zero_grad(set_to_none=True)
    return Gradient(float(loss.detach()), gradients)
