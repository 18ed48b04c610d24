"""Adversarial attacks on a trained network: how much loss and accuracy a small change of the pixels costs.

FGSM (Goodfellow et al., ICLR 2015) as in Konz & Mazurowski (ICLR 2024): one untargeted step with the true
labels, clamped to the pixel range, in evaluation mode. Epsilons are in pixel units, 1/255 of the range:
epsilon 2 moves every pixel by at most 2 of 255.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.specs import AttackSpec
from tasks.trials.result import AttackRecord
from tasks.trials.training import EVALUATION_BATCH_SIZE, LossRule, evaluation_mode, iterate, mean_loss, score

PIXEL_MAX = 255.0


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Return ``images`` moved by ``epsilon`` pixel units along the sign of the gradient of the loss.

    Args:
        model: maps float pixels in [0, 255] to logits.
        images: ``(num_images, channels, height, width)``, pixels in [0, 255]; left unchanged.
        labels: ``(num_images,)`` int64, the true labels.
        epsilon: step in pixel units.

    Returns:
        Attacked float32 images of the same shape, within [0, 255].
    """
    with evaluation_mode(model):
        return _fgsm(model, images.to(torch.float32), labels, [epsilon])[0]


def _fgsm(model: nn.Module, pixels: Tensor, labels: Tensor, epsilons: Sequence[float]) -> list[Tensor]:
    # One gradient serves all strengths.
    pixels = pixels.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        # A sum, not a mean: the sign is the same and small gradients are not divided into underflow.
        loss = F.cross_entropy(model(pixels).float(), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, pixels)
    direction = gradient.sign()
    return [(pixels.detach() + epsilon * direction).clamp(0, PIXEL_MAX) for epsilon in epsilons]


ATTACKS: dict[str, Callable[[nn.Module, Tensor, Tensor, Sequence[float]], list[Tensor]]] = {"fgsm": _fgsm}
"""Each method maps model, pixels, labels and strengths to one attacked copy of the pixels per strength."""


def attack_all(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attacks: AttackSpec,
    *,
    batch_size: int = EVALUATION_BATCH_SIZE,
    rule: LossRule = "mean_over_examples",
) -> list[AttackRecord]:
    """Attack every image with every method and strength of ``attacks``; one record each, in that order.

    Args:
        model: on the device of ``images``; its mode is restored.
        images: ``(num_images, channels, height, width)``, pixels in [0, 255].
        labels: ``(num_images,)`` int64.
        attacks: methods and strengths.
        batch_size: images attacked at once.
        rule: how losses are averaged, for clean and attacked images alike.
    """
    records = []
    with evaluation_mode(model):
        for method in attacks.methods:
            clean, attacked = _outcomes(model, images, labels, method, attacks.epsilons, batch_size)
            clean_loss = mean_loss(clean[0], batch_size, rule)
            clean_accuracy = float(clean[1].double().mean())
            for epsilon, losses, hits, unchanged in zip(attacks.epsilons, *attacked, strict=True):
                loss, accuracy = mean_loss(losses, batch_size, rule), float(hits.double().mean())
                finite = math.isfinite(loss) and math.isfinite(clean_loss)
                records.append(
                    AttackRecord(
                        method=method,
                        epsilon=epsilon,
                        loss=loss if finite else None,
                        loss_gain=loss - clean_loss if finite else None,
                        accuracy=accuracy,
                        accuracy_drop=clean_accuracy - accuracy,
                        robust_accuracy=float((hits & clean[1]).double().mean()),
                        num_unchanged=int(unchanged.sum()),
                        reason="" if finite else f"the loss on the attacked images is {loss}",
                    )
                )
    return records


def _outcomes(
    model: nn.Module, images: Tensor, labels: Tensor, method: str, epsilons: Sequence[float], batch_size: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return (losses, hits) of the clean images, each ``(num_images,)``, and (losses, hits, unchanged) of the
    attacked ones, each ``(num_epsilons, num_images)``.
    """
    clean, attacked = [], []
    for pixels, batch_labels in iterate(images, labels, batch_size):
        copies = ATTACKS[method](model, pixels, batch_labels, epsilons)
        with torch.no_grad():
            clean.append(score(model(pixels), batch_labels))
            scores = [score(model(copy), batch_labels) for copy in copies]
            unchanged = torch.stack([(copy == pixels).flatten(1).all(1) for copy in copies])
        losses, hits = (torch.stack(parts) for parts in zip(*scores, strict=True))
        attacked.append((losses, hits, unchanged))
    return (
        tuple(torch.cat(parts) for parts in zip(*clean, strict=True)),
        tuple(torch.cat(parts, dim=1) for parts in zip(*attacked, strict=True)),
    )
