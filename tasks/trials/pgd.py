"""Projected gradient descent with restarts (Madry et al., ICLR 2018), on the margin between the logits.

Cross-entropy of a network trained to the end has no gradient left in float32; the margin has one wherever the
network has. Epsilons bound every pixel's change, in units of 1/255 of the range.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tasks.trials.robustness import margins_of

NUM_STEPS = 20
NUM_RESTARTS = 5
STEP_SHARE = 0.1
"""Length of a step in epsilons: 20 of them cross the allowed cube twice."""
PIXEL_MAX = 255.0


def pgd(model: nn.Module, pixels: Tensor, labels: Tensor, epsilons: Sequence[float]) -> list[Tensor]:
    """Return, for every strength, the attacked copy of each image with the smallest margin for its label.

    Args:
        model: in evaluation mode; maps float pixels in [0, 255] to logits.
        pixels: ``(num_images, channels, height, width)`` float32.
        labels: ``(num_images,)`` int64, the true labels.
        epsilons: largest change of a pixel.
    """
    return [_attack(model, pixels.detach(), labels, epsilon) for epsilon in epsilons]


def _attack(model: nn.Module, pixels: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    low, high = (pixels - epsilon).clamp_min(0), (pixels + epsilon).clamp_max(PIXEL_MAX)
    best, smallest = pixels, _margins(model, pixels, labels)[0]
    for restart in range(NUM_RESTARTS):
        moved = pixels
        if restart:  # the first starts from the image itself
            generator = torch.Generator().manual_seed(restart)
            noise = torch.rand(pixels.shape, generator=generator).to(pixels.device)
            moved = low + noise * (high - low)
        for _ in range(NUM_STEPS):
            gradient = _margins(model, moved, labels)[1]
            step = STEP_SHARE * epsilon * gradient.sign()
            moved = torch.minimum(torch.maximum(moved - step, low), high)
        margins = _margins(model, moved, labels)[0]
        better = margins < smallest
        best = torch.where(better.view(-1, *[1] * (pixels.dim() - 1)), moved, best)
        smallest = torch.where(better, margins, smallest)
    return best


def _margins(model: nn.Module, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    pixels = pixels.detach().requires_grad_(True)
    with torch.enable_grad():
        margins = margins_of(model(pixels).float(), labels)
        (gradient,) = torch.autograd.grad(margins.sum(), pixels)
    return margins.detach(), gradient
