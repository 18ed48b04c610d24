"""Adversarial attacks on a trained network: how much loss and accuracy a small change of the pixels costs.

FGSM (Goodfellow et al., ICLR 2015) as in Konz & Mazurowski (ICLR 2024): one untargeted step with the true
labels, clamped to the pixel range, in evaluation mode. Epsilons are in pixel units, 1/255 of the range:
epsilon 2 moves every pixel by at most 2 of 255.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from search_spaces.errors import DataError
from search_spaces.specs import AttackSpec, RecipeSpec
from tasks.trials.records import AttackRecord, RadiusRecord, RadiusSummary
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

# R, the quantity of the paper's robustness theorem: how far the nearest image with another decision lies.
#
# ``r(x) = min ||d||_2`` over all ``d`` with ``x + d`` in [0, 255]^n and another decision than the network's
# on ``x``, in pixel units. What is found is an upper bound: an image with another decision at that
# distance.
#
# The search descends on the margin between the logits, not on the loss: networks trained to the end are so
# sure that cross-entropy has no gradient left in float32. It starts from the nearest image that the network
# puts in another class, so that a radius is found wherever there is such an image, and then follows DDN
# (Rony et al., CVPR 2019), which takes a step down the margin's gradient and puts the result on a sphere
# whose radius shrinks while the decision is another one and grows while it is not.

PIXEL_MAX = 255.0
BATCH_SIZE = 50
POOL_ROWS = 256
"""Images that become float32 at once in looking for the nearest: a whole set takes four times its bytes."""
NUM_STEPS = 100
NUM_BISECTIONS = 20
RADIUS_RATE = (0.05, 0.001)
"""Share by which the sphere shrinks or grows, at the first and the last step (DDN's 0.05, then finer)."""
STEP_LENGTH = (1.0, 0.01)
"""Length of a gradient step in sphere radii, at the first and the last step, as in DDN."""
QUANTILES = (0.05, 0.25, 0.75, 0.95)


def minimal_perturbations(
    model: nn.Module,
    images: Tensor,
    starts: Tensor,
    *,
    num_steps: int = NUM_STEPS,
    num_bisections: int = NUM_BISECTIONS,
) -> Tensor:
    """Return, for every image, the smallest change found that gives another decision.

    Args:
        model: maps float pixels in [0, 255] to logits; two outputs or more.
        images: ``(num_images, channels, height, width)`` float32, pixels in [0, 255].
        starts: for every image one with another decision, same shape; NaN where there is none.
        num_steps: gradient steps; two passes each.
        num_bisections: forward passes to find where the decision changes on a line, before and after.

    Returns:
        Changes ``(num_images, channels, height, width)`` within the pixel range; NaN where none was found.
    """
    with evaluation_mode(model), _frozen(model):
        with torch.no_grad():
            decisions = model(images).argmax(1)
        best = _bisected(model, images, decisions, starts - images, num_bisections)
        smallest = _norms(best).nan_to_num(math.inf)
        # An image of its own scale where nothing is known: the sphere grows or shrinks from there.
        radius = torch.where(smallest.isinf(), _norms(images).clamp_min(1.0), smallest)
        change = torch.zeros_like(images)
        for step in range(num_steps):
            margins, gradient = _margins(model, images + change, decisions)
            other = (margins < 0) & ~gradient.flatten(1).isnan().any(1)
            norms = _norms(change)
            better = other & (norms < smallest)
            best = torch.where(_per_image(better, images), change, best)
            smallest = torch.where(better, norms, smallest)
            rate, length = _decayed(RADIUS_RATE, step, num_steps), _decayed(STEP_LENGTH, step, num_steps)
            radius = torch.where(other, torch.minimum(radius, smallest) * (1 - rate), radius * (1 + rate))
            moved = change - _per_image(length * radius, images) * _unit(gradient.nan_to_num(0.0))
            # Where the gradient vanishes at the image itself, the way to the start is the only one known.
            moved = torch.where(_per_image(_norms(moved) == 0, images), best.nan_to_num(0.0), moved)
            change = (images + _unit(moved) * _per_image(radius, images)).clamp(0, PIXEL_MAX) - images
        return _bisected(model, images, decisions, best, num_bisections)


def nearest_in_another_class(
    images: Tensor, decisions: Tensor, pool: Tensor, pool_decisions: Tensor
) -> Tensor:
    """Return for every image the nearest of ``pool`` with another decision; NaN where there is none.

    Args:
        images: ``(num_images, channels, height, width)``, pixels in [0, 255].
        decisions: ``(num_images,)`` the network's class of each.
        pool: ``(num_pool, channels, height, width)``, as ``images``.
        pool_decisions: ``(num_pool,)``.
    """
    flat = images.flatten(1).float()
    blocks = [torch.cdist(flat, block.flatten(1).float()) for block in torch.split(pool, POOL_ROWS)]
    distances = torch.cat(blocks, dim=1)
    distances[decisions[:, None] == pool_decisions[None]] = math.inf
    nearest, rows = distances.min(1)
    return torch.where(_per_image(nearest.isinf(), images), math.nan, pool[rows].float())


def measure_radii(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    pool: Tensor,
    *,
    num_images: int,
    seed: int,
    at_once: int = BATCH_SIZE,
    num_steps: int = NUM_STEPS,
    num_bisections: int = NUM_BISECTIONS,
) -> RadiusRecord:
    """Measure R of ``model`` on a fixed seeded sample of ``images``.

    Args:
        model: on the device of ``images``; its mode is restored.
        images: ``(num_test, channels, height, width)``, pixels in [0, 255].
        labels: ``(num_test,)`` int64.
        pool: more images, as a rule the training set's, among which starts are looked for.
        num_images: size of the sample; all images where there are no more.
        seed: of the sample.
        at_once: images whose gradients are taken at once.
        num_steps: see :func:`minimal_perturbations`.
        num_bisections: likewise.

    Raises:
        DataError: when there are no images.
    """
    if not len(images) or num_images < 1:
        raise DataError(
            "Robustness needs at least one image", f"{len(images)} images, {num_images} asked for"
        )
    order = np.random.default_rng(seed).permutation(len(images))
    rows = np.sort(order[:num_images])
    everything = torch.cat([pool, images])
    decisions = _decisions(model, everything)
    sample = torch.from_numpy(rows).to(images.device)
    found, bound = [], []
    for part in torch.split(sample, BATCH_SIZE):
        pixels = images[part].to(torch.float32, copy=True)
        own = decisions[len(pool) + part]
        starts = nearest_in_another_class(pixels, own, everything, decisions)
        for some, start, decision in zip(
            *(torch.split(t, at_once) for t in (pixels, starts, own)), strict=True
        ):
            change = minimal_perturbations(
                model, some, start, num_steps=num_steps, num_bisections=num_bisections
            )
            found.append(_norms(change.double()))
            bound.append(_box_binds(model, some, change, decision))
    wrong = decisions[len(pool) + sample] != labels[sample]
    return _record(
        torch.cat(found).cpu().numpy(),
        torch.cat(bound).cpu().numpy(),
        wrong.cpu().numpy(),
        rows,
        num_values=images[0].numel(),
        num_steps=num_steps,
        num_bisections=num_bisections,
    )


def summarise_radii(radii: NDArray[np.float64], num_values: int) -> RadiusSummary | None:
    """Summarise ``radii`` ``(num_images,)`` of images with ``num_values`` numbers; None for no radius."""
    if not len(radii):
        return None
    mean = float(radii.mean())
    return RadiusSummary(
        num_images=len(radii),
        mean=mean,
        std_error=float(radii.std(ddof=1) / math.sqrt(len(radii))) if len(radii) > 1 else None,
        median=float(np.median(radii)),
        geometric_mean=float(np.exp(np.log(radii).mean())) if (radii > 0).all() else None,
        quantiles={f"{share:g}": float(np.quantile(radii, share)) for share in QUANTILES},
        mean_per_pixel=mean / math.sqrt(num_values),
    )


def _record(
    radii: NDArray[np.float64],
    bound: NDArray[np.bool_],
    wrong: NDArray[np.bool_],
    rows: NDArray[np.int64],
    *,
    num_values: int,
    num_steps: int,
    num_bisections: int,
) -> RadiusRecord:
    found = np.isfinite(radii)
    reason = "" if found.any() else "the network puts every image that was tried in one class"
    true = np.where(wrong, 0.0, radii)
    return RadiusRecord(
        pred=summarise_radii(radii[found], num_values),
        # A wrong decision needs no perturbation, so those images count whether or not another was found.
        true=summarise_radii(true[np.isfinite(true)], num_values) if found.any() else None,
        radii=tuple(float(radius) if ok else None for radius, ok in zip(radii, found, strict=True)),
        rows=tuple(int(row) for row in rows),
        wrong=tuple(bool(value) for value in wrong),
        num_not_found=int((~found).sum()),
        box_share=float(bound[found].mean()) if found.any() else None,
        num_steps=num_steps,
        num_bisections=num_bisections,
        reason=reason,
    )


def margins_of(logits: Tensor, decisions: Tensor) -> Tensor:
    """Return by how much the logit of each decision exceeds the largest other one: ``(num_images,)``."""
    own = logits.gather(1, decisions[:, None]).squeeze(1)
    others = logits.scatter(1, decisions[:, None], -math.inf).amax(1)
    return own - others


def _margins(model: nn.Module, pixels: Tensor, decisions: Tensor) -> tuple[Tensor, Tensor]:
    pixels = pixels.detach().requires_grad_(True)
    with torch.enable_grad():
        margins = margins_of(model(pixels).float(), decisions)
        (gradient,) = torch.autograd.grad(margins.sum(), pixels)
    return margins.detach(), gradient


def _bisected(
    model: nn.Module, images: Tensor, decisions: Tensor, changes: Tensor, num_bisections: int
) -> Tensor:
    """Shorten ``changes`` along their lines to where the decision becomes another; NaN stays NaN."""
    low, high = torch.zeros(len(images), device=images.device), torch.ones(len(images), device=images.device)

    def moved(share: Tensor) -> Tensor:
        return (images + _per_image(share, images) * changes).clamp(0, PIXEL_MAX)

    with torch.no_grad():
        for _ in range(num_bisections):
            middle = (low + high) / 2
            other = model(moved(middle).nan_to_num(0.0)).argmax(1) != decisions
            high, low = torch.where(other, middle, high), torch.where(other, low, middle)
        return moved(high) - images


def _decisions(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad(), evaluation_mode(model):
        return torch.cat(
            [model(part.to(torch.float32, copy=True)).argmax(1) for part in torch.split(images, BATCH_SIZE)]
        )


def _box_binds(model: nn.Module, pixels: Tensor, change: Tensor, decisions: Tensor) -> Tensor:
    """Tell for every image whether the pixel range keeps it from a step that would lower the margin."""
    moved = pixels + change.nan_to_num(0.0)
    with evaluation_mode(model), _frozen(model):
        gradient = _margins(model, moved, decisions)[1]
    rounding = 1e-3  # the sum of a pixel and its change may miss the limit by a float32 rounding
    stopped = ((moved <= rounding) & (gradient > 0)) | ((moved >= PIXEL_MAX - rounding) & (gradient < 0))
    return stopped.flatten(1).any(1)


def _decayed(ends: tuple[float, float], step: int, num_steps: int) -> float:
    first, last = ends
    return last + (first - last) * (1 + math.cos(math.pi * step / num_steps)) / 2


def _norms(changes: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(changes.flatten(1), dim=1)
    return norms


def _unit(changes: Tensor) -> Tensor:
    return changes / _per_image(_norms(changes).clamp_min(torch.finfo(torch.float32).tiny), changes)


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))


class _frozen:
    """Ask for no gradient of the weights within a block: a third of a backward pass less."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    def __enter__(self) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(False)

    def __exit__(self, *exception: object) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(True)


# Projected gradient descent with restarts (Madry et al., ICLR 2018), on the margin between the logits.
#
# Cross-entropy of a network trained to the end has no gradient left in float32; the margin has one wherever
# the network has. Epsilons bound every pixel's change, in units of 1/255 of the range.

PGD_NUM_STEPS = 20
NUM_RESTARTS = 5
STEP_SHARE = 0.1
"""Length of a step in epsilons: 20 of them cross the allowed cube twice."""


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
    best, smallest = pixels, _pgd_margins(model, pixels, labels)[0]
    for restart in range(NUM_RESTARTS):
        moved = pixels
        if restart:  # the first starts from the image itself
            generator = torch.Generator().manual_seed(restart)
            noise = torch.rand(pixels.shape, generator=generator).to(pixels.device)
            moved = low + noise * (high - low)
        for _ in range(PGD_NUM_STEPS):
            gradient = _pgd_margins(model, moved, labels)[1]
            step = STEP_SHARE * epsilon * gradient.sign()
            moved = torch.minimum(torch.maximum(moved - step, low), high)
        margins = _pgd_margins(model, moved, labels)[0]
        better = margins < smallest
        best = torch.where(better.view(-1, *[1] * (pixels.dim() - 1)), moved, best)
        smallest = torch.where(better, margins, smallest)
    return best


def _pgd_margins(model: nn.Module, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    pixels = pixels.detach().requires_grad_(True)
    with torch.enable_grad():
        margins = margins_of(model(pixels).float(), labels)
        (gradient,) = torch.autograd.grad(margins.sum(), pixels)
    return margins.detach(), gradient


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
