"""Adversarial attacks on a trained network: how much loss and accuracy a small change of the pixels costs.

FGSM (Goodfellow et al., ICLR 2015) as in Konz & Mazurowski (ICLR 2024): one untargeted step with the true
labels, clamped to the pixel range, in evaluation mode. Epsilons are in pixel units, 1/255 of the range:
epsilon 2 moves every pixel by at most 2 of 255.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.specs import AttackSpec, RecipeSpec
from tasks.trials.pgd import pgd
from tasks.trials.result import AttackRecord
from tasks.trials.training import (
    EVALUATION_BATCH_SIZE,
    Evaluation,
    LossRule,
    evaluation_mode,
    in_parts,
    iterate,
    mean_loss,
    score,
)

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
    direction = _directed(model, pixels, labels)[1]
    return _moved(pixels, direction, epsilons)


def _directed(model: nn.Module, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of clean pixels and, from the same pass, the sign of the loss's gradient as int8."""
    pixels = pixels.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        logits = model(pixels).float()
        # A sum, not a mean: the sign is the same and small gradients are not divided into underflow.
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), pixels)
    return logits.detach(), gradient.sign().to(torch.int8)


def _moved(pixels: Tensor, direction: Tensor, epsilons: Sequence[float]) -> list[Tensor]:
    # One gradient serves all strengths.
    return [(pixels + epsilon * direction).clamp(0, PIXEL_MAX) for epsilon in epsilons]


@dataclass(frozen=True)
class CleanPass:
    """What one pass over clean images gives to evaluation and attacks alike.

    Attributes:
        logits: ``(num_images, num_outputs)``.
        losses: ``(num_images,)`` cross-entropy.
        hits: ``(num_images,)`` whether the largest logit is the label's.
        directions: int8, shape of the images: the sign of the gradient of each image's loss.
    """

    logits: Tensor
    losses: Tensor
    hits: Tensor
    directions: Tensor

    def evaluation(self, *, batch_size: int = EVALUATION_BATCH_SIZE, rule: LossRule) -> Evaluation:
        """Return mean loss and accuracy, as :func:`~tasks.trials.training.evaluate` does."""
        return Evaluation(mean_loss(self.losses, batch_size, rule), float(self.hits.double().mean()))


def attack_batch_size(recipe: RecipeSpec, micro_batch: int | None = None) -> int:
    """Return how many images pass forward and back at once: as many as need no more memory than training.

    An attack keeps float32 activations, twice the bytes of training's bfloat16; hence half its batch, and as
    many parts where training's batches pass in parts.
    """
    return in_parts(max(8, recipe.batch_size // 2), recipe, micro_batch)


def pass_clean(
    model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = EVALUATION_BATCH_SIZE
) -> CleanPass:
    """Pass clean images once, in evaluation mode and float32, forward and back to the pixels.

    Args:
        model: on the device of ``images``; its mode is restored.
        images: ``(num_images, channels, height, width)``, pixels in [0, 255].
        labels: ``(num_images,)`` int64.
        batch_size: images per pass.
    """
    all_logits, losses, hits, directions = [], [], [], []
    with evaluation_mode(model):
        for pixels, batch_labels in iterate(images, labels, batch_size):
            logits, direction = _directed(model, pixels, batch_labels)
            batch_losses, batch_hits = score(logits, batch_labels)
            all_logits.append(logits)
            losses.append(batch_losses)
            hits.append(batch_hits)
            directions.append(direction)
    return CleanPass(torch.cat(all_logits), torch.cat(losses), torch.cat(hits), torch.cat(directions))


ATTACKS: dict[str, Callable[[nn.Module, Tensor, Tensor, Sequence[float]], list[Tensor]]] = {
    "fgsm": _fgsm,
    "pgd": pgd,
}
"""Each method maps model, pixels, labels and strengths to one attacked copy of the pixels per strength."""


def attack_all(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attacks: AttackSpec,
    *,
    batch_size: int = EVALUATION_BATCH_SIZE,
    at_once: int | None = None,
    passed_at_once: int | None = None,
    rule: LossRule = "mean_over_examples",
    clean: CleanPass | None = None,
) -> list[AttackRecord]:
    """Attack every image with every method and strength of ``attacks``; one record each, in that order.

    Args:
        model: on the device of ``images``; its mode is restored.
        images: ``(num_images, channels, height, width)``, pixels in [0, 255].
        labels: ``(num_images,)`` int64.
        attacks: methods and strengths.
        batch_size: images per batch whose losses are averaged.
        at_once: images whose gradients are taken at once, which is what memory goes by; None for a batch.
        passed_at_once: attacked images per forward pass; None for a batch.
        rule: how losses are averaged, for clean and attacked images alike.
        clean: the pass over these images, where there was one; None passes them.
    """
    if not attacks.methods:
        return []
    clean = clean or pass_clean(model, images, labels, batch_size=batch_size)
    before = clean.evaluation(batch_size=batch_size, rule=rule)
    records = []
    with evaluation_mode(model), torch.no_grad():
        for method in attacks.methods:
            sizes = passed_at_once or batch_size, at_once or batch_size
            attacked = _outcomes(model, images, labels, method, attacks.epsilons, *sizes, clean)
            for epsilon, losses, hits, unchanged in zip(attacks.epsilons, *attacked, strict=True):
                loss, accuracy = mean_loss(losses, batch_size, rule), float(hits.double().mean())
                finite = math.isfinite(loss) and math.isfinite(before.loss)
                records.append(
                    AttackRecord(
                        method=method,
                        epsilon=epsilon,
                        loss=loss if finite else None,
                        loss_gain=loss - before.loss if finite else None,
                        accuracy=accuracy,
                        accuracy_drop=before.accuracy - accuracy,
                        robust_accuracy=float((hits & clean.hits).double().mean()),
                        num_unchanged=int(unchanged.sum()),
                        reason="" if finite else f"the loss on the attacked images is {loss}",
                    )
                )
    return records


def _outcomes(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    method: str,
    epsilons: Sequence[float],
    batch_size: int,
    at_once: int,
    clean: CleanPass,
) -> tuple[Tensor, ...]:
    """Return losses, hits and whether nothing changed under attack: each ``(num_epsilons, num_images)``."""
    attacked = []
    directions = torch.split(clean.directions, batch_size)
    for (pixels, batch_labels), direction in zip(
        iterate(images, labels, batch_size), directions, strict=True
    ):
        if method == "fgsm":
            copies = _moved(pixels, direction, epsilons)
        else:
            parts = zip(torch.split(pixels, at_once), torch.split(batch_labels, at_once), strict=True)
            moved = [ATTACKS[method](model, *part, epsilons) for part in parts]
            copies = [torch.cat(copy) for copy in zip(*moved, strict=True)]
        scores = [score(model(copy), batch_labels) for copy in copies]
        unchanged = torch.stack([(copy == pixels).flatten(1).all(1) for copy in copies])
        losses, hits = (torch.stack(parts) for parts in zip(*scores, strict=True))
        attacked.append((losses, hits, unchanged))
    return tuple(torch.cat(parts, dim=1) for parts in zip(*attacked, strict=True))
