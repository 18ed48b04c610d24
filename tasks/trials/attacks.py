"""Adversarial attacks on a trained network, and its robustness R: how little an image must change
to fool it.

Perturbations are in pixel units, 1/255 of the range: epsilon 2 moves every pixel by at most 2 of
255. All passes are float32 and in evaluation mode; images are ``(num_images, channels, height,
width)`` with pixels in [0, 255], labels ``(num_images,)`` int64. An attack is one function and its
row in :data:`ATTACKS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
    Evaluation,
    LossRule,
    evaluation_mode,
    in_parts,
    iterate,
    mean_loss,
    score,
)

PIXEL_MAX = 255.0
PGD_STEPS = 20
PGD_RESTARTS = 5
PGD_STEP = 0.1
"""Length of a step in epsilons: 20 of them cross the allowed cube, 2 epsilons wide, once."""
RADIUS_STEPS = 100
RADIUS_BISECTIONS = 20
RADIUS_RATE = (0.05, 0.001)
"""Share by which the sphere shrinks or grows, at the first and the last step (DDN's 0.05, then
finer)."""
RADIUS_STEP = (1.0, 0.01)
"""Length of a gradient step in sphere radii, at the first and the last step, as in DDN."""
SEARCH_ROWS = 50
POOL_ROWS = 256
"""Images whose distances are taken at once, and images they are taken to that become float32 at
once."""
QUANTILES = (0.05, 0.25, 0.75, 0.95)


@dataclass(frozen=True)
class CleanPass:
    """What one pass over clean images gives to evaluation and attacks alike.

    Attributes:
        logits: ``(num_images, num_outputs)``.
        losses: ``(num_images,)`` cross-entropy.
        correct: ``(num_images,)`` whether the largest logit is the label's.
        gradient_sign: int8, shape of the images: the sign of the gradient of each image's loss.
    """

    logits: Tensor
    losses: Tensor
    correct: Tensor
    gradient_sign: Tensor

    def evaluation(self, rule: LossRule) -> Evaluation:
        """Return mean loss and accuracy, as :func:`~tasks.trials.training.evaluate` does."""
        return Evaluation(mean_loss(self.losses, rule), float(self.correct.double().mean()))


def attack_pass(recipe: RecipeSpec, micro_batch: int | None = None) -> int:
    """Return how many images pass forward and back at once: as many as need no more memory than
    training.

    An attack keeps float32 activations, twice the bytes of training's bfloat16; hence half its
    batch, and as many parts where training's batches pass in parts.
    """
    return in_parts(max(8, recipe.batch_size // 2), recipe, micro_batch)


def pass_clean(model: nn.Module, images: Tensor, labels: Tensor, *, pass_size: int) -> CleanPass:
    """Pass clean images once, ``pass_size`` at once, forward and back to the pixels."""
    passed: list[tuple[Tensor, ...]] = []
    with evaluation_mode(model):
        for pixels, some in iterate(images, labels, pass_size):
            pixels.requires_grad_(True)
            with torch.enable_grad():
                logits = model(pixels).float()
                # A sum, not a mean: the sign is the same and small gradients are not divided into
                # underflow.
                (gradient,) = torch.autograd.grad(
                    F.cross_entropy(logits, some, reduction="sum"), pixels
                )
            logits = logits.detach()
            passed.append((logits, *score(logits, some), gradient.sign().to(torch.int8)))
    return CleanPass(*(torch.cat(parts) for parts in zip(*passed, strict=True)))


@dataclass(frozen=True)
class Images:
    """Images to attack, which pass at once.

    Attributes:
        pixels: float32.
        labels: the true labels.
        gradient_sign: of each image's loss, see :class:`CleanPass`.
        rows: ``(num_images,)`` int64, the place of each in the test set: random starts go by it.
    """

    pixels: Tensor
    labels: Tensor
    gradient_sign: Tensor
    rows: Tensor


def fgsm(model: nn.Module, images: Images, epsilon: float) -> Tensor:
    """Move every pixel by ``epsilon`` along the sign of the gradient of the loss, clamped to the
    range.

    Goodfellow et al., ICLR 2015, as in Konz & Mazurowski, ICLR 2024: one untargeted step, the true
    labels.
    """
    return (images.pixels + epsilon * images.gradient_sign).clamp(0, PIXEL_MAX)


def pgd(model: nn.Module, images: Images, epsilon: float) -> Tensor:
    """Descend on the margin between the logits within ``epsilon``; keep each image's smallest
    margin.

    Projected gradient descent (Madry et al., ICLR 2018) on a margin loss (f6 of Carlini & Wagner,
    S&P 2017): cross-entropy of a network trained to the end has no gradient left in float32, the
    margin has one wherever the network has. The first start is the image, the others are uniform in
    the allowed cube, drawn for each image by itself, so that no result depends on which images pass
    together.
    """
    low, high = (
        (images.pixels - epsilon).clamp_min(0),
        (images.pixels + epsilon).clamp_max(PIXEL_MAX),
    )
    best, smallest = images.pixels, torch.full_like(images.labels, torch.inf, dtype=torch.float32)
    for restart in range(PGD_RESTARTS):
        moved = images.pixels if not restart else low + _noise(images, restart) * (high - low)
        for step in range(PGD_STEPS + 1):
            margins, gradient = margin_gradient(model, moved, images.labels)
            better = margins < smallest
            best = torch.where(_per_image(better, moved), moved, best)
            smallest = torch.where(better, margins, smallest)
            if step < PGD_STEPS:
                moved = moved - PGD_STEP * epsilon * gradient.sign()
                moved = torch.minimum(torch.maximum(moved, low), high)
    return best


def _noise(images: Images, restart: int) -> Tensor:
    """Return numbers in [0, 1) for every pixel, which depend on the image's row and the restart
    alone.
    """
    drawn = torch.empty(images.pixels.shape)
    for image, row in zip(drawn, images.rows.tolist(), strict=True):
        generator = torch.Generator().manual_seed(row * PGD_RESTARTS + restart)
        image.copy_(torch.rand(image.shape, generator=generator))
    return drawn.to(images.pixels.device)


ATTACKS: dict[str, Callable[[nn.Module, Images, float], Tensor]] = {"fgsm": fgsm, "pgd": pgd}
"""Each method maps a network in evaluation mode, images and epsilon to attacked copies of their
pixels."""


def attack_all(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attacks: AttackSpec,
    clean: CleanPass,
    *,
    pass_size: int,
    rule: LossRule = "mean_over_examples",
) -> list[AttackRecord]:
    """Attack every image with every method and epsilon of ``attacks``; one record each, in that
    order.

    ``labels`` are the true ones, ``clean`` is what :func:`pass_clean` gave for these images, and
    ``rule`` is how losses are averaged, of clean and attacked images alike. How many pass at once
    changes nothing but speed and memory; images and the model's mode stay as they were.
    """
    attacked = [(method, epsilon) for method in attacks.methods for epsilon in attacks.epsilons]
    outcomes: dict[tuple[str, float], list[tuple[Tensor, ...]]] = {
        attack: [] for attack in attacked
    }
    rows = torch.arange(len(images))
    parts = zip(
        iterate(images, labels, pass_size),
        torch.split(clean.gradient_sign, pass_size),
        torch.split(rows, pass_size),
        strict=True,
    )
    with evaluation_mode(model), torch.no_grad():
        for (pixels, some), sign, places in parts if attacked else ():
            batch = Images(pixels, some, sign, places)
            for method, epsilon in attacked:
                moved = ATTACKS[method](model, batch, epsilon)
                unchanged = (moved == pixels).flatten(1).all(1)
                outcomes[method, epsilon].append((*score(model(moved), some), unchanged))
    return [
        _attack_record(
            method,
            epsilon,
            clean,
            *(torch.cat(part) for part in zip(*found, strict=True)),
            rule=rule,
        )
        for (method, epsilon), found in outcomes.items()
    ]


def _attack_record(
    method: str,
    epsilon: float,
    clean: CleanPass,
    losses: Tensor,
    correct: Tensor,
    unchanged: Tensor,
    *,
    rule: LossRule,
) -> AttackRecord:
    before, loss, accuracy = (
        clean.evaluation(rule),
        mean_loss(losses, rule),
        float(correct.double().mean()),
    )
    finite = math.isfinite(loss) and math.isfinite(before.loss)
    return AttackRecord(
        method=method,
        epsilon=epsilon,
        loss=loss if finite else None,
        loss_gain=loss - before.loss if finite else None,
        accuracy=accuracy,
        accuracy_drop=before.accuracy - accuracy,
        robust_accuracy=float((correct & clean.correct).double().mean()),
        num_unchanged=int(unchanged.sum()),
        reason="" if finite else f"the loss on the attacked images is {loss}",
    )


def measure_radii(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    pool: Tensor,
    *,
    num_images: int,
    seed: int,
    pass_size: int = SEARCH_ROWS,
    num_steps: int = RADIUS_STEPS,
    num_bisections: int = RADIUS_BISECTIONS,
) -> RadiusRecord:
    """Measure the robustness R of ``model`` on a fixed seeded sample of ``images``.

    R is the mean of ``r(x) = min ||d||_2`` over all ``d`` with ``x + d`` in [0, 255]^n put in
    another class than ``x``. What is found is an upper bound: an image of another class at that
    distance.

    Starts are looked for among ``pool`` too, more images, as a rule the training set's. The sample
    has ``num_images`` images, or all where there are no more, and depends on ``seed``;
    ``pass_size`` images pass at once. The other numbers are those of :func:`minimal_perturbations`.

    Raises:
        DataError: when there are no images.
    """
    if not len(images) or num_images < 1:
        found = f"{len(images)} images, {num_images} asked for"
        raise DataError("Robustness needs at least one image", found)
    rows = np.sort(np.random.default_rng(seed).permutation(len(images))[:num_images])
    sample, everything = torch.from_numpy(rows).to(images.device), torch.cat([pool, images])
    with torch.no_grad(), evaluation_mode(model):
        batches = torch.split(everything, pass_size)
        predicted = torch.cat(
            [model(batch.to(torch.float32, copy=True)).argmax(1) for batch in batches]
        )
    own = predicted[len(pool) + sample]
    radii, bound = [], []
    for part, classes in zip(*(torch.split(t, SEARCH_ROWS) for t in (sample, own)), strict=True):
        pixels = images[part].to(torch.float32, copy=True)
        starts = nearest_in_another_class(pixels, classes, everything, predicted)
        passes = (torch.split(t, pass_size) for t in (pixels, starts, classes))
        for some, start, kept in zip(*passes, strict=True):
            change = minimal_perturbations(
                model, some, start, num_steps=num_steps, num_bisections=num_bisections
            )
            radii.append(_norms(change.double()))
            bound.append(_range_binds(model, some, change, kept))
    return _radius_record(
        torch.cat(radii).cpu().numpy(),
        torch.cat(bound).cpu().numpy(),
        (own != labels[sample]).cpu().numpy(),
        rows,
        num_values=images[0].numel(),
        num_steps=num_steps,
        num_bisections=num_bisections,
    )


def minimal_perturbations(
    model: nn.Module,
    images: Tensor,
    starts: Tensor,
    *,
    num_steps: int = RADIUS_STEPS,
    num_bisections: int = RADIUS_BISECTIONS,
) -> Tensor:
    """Return, for every image, the smallest change found that the network puts in another class.

    From ``starts`` on it follows DDN (Rony et al., CVPR 2019): a step down the gradient of the
    margin between the logits, then onto a sphere whose radius shrinks while the class is another
    one and grows while not.

    ``starts`` has for every image one that is put in another class, NaN where there is none. Each
    of ``num_steps`` takes two passes; ``num_bisections`` passes find where the class changes on a
    line, before and after. Changes have the shape of ``images`` and lie within the pixel range; NaN
    where none was found.
    """
    with evaluation_mode(model):
        with torch.no_grad():
            predicted = model(images).argmax(1)
        best = _bisected(model, images, predicted, starts - images, num_bisections)
        smallest = _norms(best).nan_to_num(math.inf)
        # An image of its own scale where nothing is known: the sphere grows or shrinks from there.
        radius = torch.where(smallest.isinf(), _norms(images).clamp_min(1.0), smallest)
        change = torch.zeros_like(images)
        for step in range(num_steps):
            margins, gradient = margin_gradient(model, images + change, predicted)
            other = (margins < 0) & ~gradient.flatten(1).isnan().any(1)
            norms = _norms(change)
            better = other & (norms < smallest)
            best = torch.where(_per_image(better, images), change, best)
            smallest = torch.where(better, norms, smallest)
            early = (1 + math.cos(math.pi * step / num_steps)) / 2  # from 1 at the first step down
            rate, length = (
                last + (first - last) * early for first, last in (RADIUS_RATE, RADIUS_STEP)
            )
            radius = torch.where(
                other, torch.minimum(radius, smallest) * (1 - rate), radius * (1 + rate)
            )
            moved = change - _per_image(length * radius, images) * _unit(gradient.nan_to_num(0.0))
            # Where the gradient vanishes at the image itself, the way to the start is the only one
            # known.
            moved = torch.where(_per_image(_norms(moved) == 0, images), best.nan_to_num(0.0), moved)
            change = (images + _unit(moved) * _per_image(radius, images)).clamp(
                0, PIXEL_MAX
            ) - images
        return _bisected(model, images, predicted, best, num_bisections)


def nearest_in_another_class(
    images: Tensor, classes: Tensor, pool: Tensor, pool_classes: Tensor
) -> Tensor:
    """Return for every image the nearest of ``pool`` of another class; NaN where there is none."""
    flat = images.flatten(1).float()
    blocks = [torch.cdist(flat, block.flatten(1).float()) for block in torch.split(pool, POOL_ROWS)]
    distances = torch.cat(blocks, dim=1)
    distances[classes[:, None] == pool_classes[None]] = math.inf
    nearest, rows = distances.min(1)
    return torch.where(_per_image(nearest.isinf(), images), math.nan, pool[rows].float())


def summarise_radii(radii: NDArray[np.float64], num_values: int) -> RadiusSummary | None:
    """Summarise ``radii`` ``(num_images,)`` of images with ``num_values`` numbers; None for no
    radius.
    """
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


def _radius_record(
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
        # A wrong class needs no perturbation, so those images count whether or not another was
        # found.
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


def margins_of(logits: Tensor, classes: Tensor) -> Tensor:
    """Return by how much the logit of each image's class exceeds the largest other one:
    ``(num_images,)``.
    """
    own = logits.gather(1, classes[:, None]).squeeze(1)
    return own - logits.scatter(1, classes[:, None], -math.inf).amax(1)


def margin_gradient(model: nn.Module, pixels: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return :func:`margins_of` of pixels, and the gradient of each with respect to its pixels."""
    pixels = pixels.detach().requires_grad_(True)
    with torch.enable_grad():
        margins = margins_of(model(pixels).float(), classes)
        (gradient,) = torch.autograd.grad(margins.sum(), pixels)
    return margins.detach(), gradient


def _bisected(
    model: nn.Module, images: Tensor, predicted: Tensor, changes: Tensor, num_bisections: int
) -> Tensor:
    """Shorten ``changes`` along their lines to where the class becomes another; NaN stays NaN."""
    low, high = (
        torch.zeros(len(images), device=images.device),
        torch.ones(len(images), device=images.device),
    )

    def moved(share: Tensor) -> Tensor:
        return (images + _per_image(share, images) * changes).clamp(0, PIXEL_MAX)

    with torch.no_grad():
        for _ in range(num_bisections):
            middle = (low + high) / 2
            other = model(moved(middle).nan_to_num(0.0)).argmax(1) != predicted
            high, low = torch.where(other, middle, high), torch.where(other, low, middle)
        return moved(high) - images


def _range_binds(model: nn.Module, pixels: Tensor, change: Tensor, classes: Tensor) -> Tensor:
    """Tell for every image whether the pixel range keeps it from a step that would lower the
    margin.
    """
    moved = pixels + change.nan_to_num(0.0)
    with evaluation_mode(model):
        gradient = margin_gradient(model, moved, classes)[1]
    rounding = 1e-3  # the sum of a pixel and its change may miss the limit by a float32 rounding
    stopped = ((moved <= rounding) & (gradient > 0)) | (
        (moved >= PIXEL_MAX - rounding) & (gradient < 0)
    )
    return stopped.flatten(1).any(1)


def _norms(changes: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(changes.flatten(1), dim=1)
    return norms


def _unit(changes: Tensor) -> Tensor:
    return changes / _per_image(_norms(changes).clamp_min(torch.finfo(torch.float32).tiny), changes)


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
