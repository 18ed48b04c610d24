"""Adversarial robustness R of a trained network: how little an image must change to fool it.

R is the mean of ``r(x) = min ||d||_2`` over images ``x``, where ``x + d`` lies in [0, 255]^n and
the network classifies it differently from ``x``. The search follows DDN (Rony et al., CVPR 2019).
Its radii are upper bounds: a differently classified image exists at that distance. Norms are in
pixel units, 1/255 of the range.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search_spaces.specs import RobustnessSpec
from tasks.trials.attacks import PIXEL_MAX, expand_like, margin_gradient
from tasks.trials.records import RadiusSummary, RobustnessRecord
from tasks.trials.training import evaluation_mode

RADIUS_RATE = (0.05, 0.001)
"""Relative change of the radius per step (gamma of DDN), at the first and the last step. DDN keeps
0.05; a finer end comes closer to the decision boundary."""
STEP_SIZE = (1.0, 0.01)
"""Length of a gradient step as a multiple of the current radius, at the first and the last step.
DDN anneals over the same range, but with absolute lengths, from a radius of 1."""
SAMPLE_BLOCK = 50
"""Sampled images whose distances to the pool are computed in one block."""
POOL_BLOCK = 256
"""Pool images that are converted to float32 in one block."""
QUANTILES = (0.05, 0.25, 0.75, 0.95)
RANGE_TOLERANCE = 1e-3
"""Pixel units within which a pixel is at the limit of its range. The sum of a pixel and its change
may miss the limit by a float32 rounding."""


def measure_robustness(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    train_images: Tensor,
    spec: RobustnessSpec,
    *,
    seed: int,
    batch_size: int,
) -> RobustnessRecord:
    """Measure the robustness R of ``model`` on a seeded sample of ``images``.

    Args:
        model: maps pixels in [0, 255] to logits. Its mode is restored afterwards.
        images: ``(num_images, channels, height, width)``, pixels in [0, 255] of any type.
        labels: the true labels.
        train_images: further images that are searched for starting points.
        spec: size of the sample, and effort per image. If there are fewer images, all are taken.
        seed: chooses the sample.
        batch_size: images per pass. It changes nothing but speed and memory.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(images))[: spec.num_images])
    sample = torch.from_numpy(rows).to(images.device)
    pool = torch.cat([train_images, images])
    pool_classes = _predict(model, pool, batch_size)
    sample_classes = pool_classes[len(train_images) + sample]
    radii: list[Tensor] = []
    at_pixel_limit: list[Tensor] = []
    for start in range(0, len(sample), SAMPLE_BLOCK):
        block = slice(start, start + SAMPLE_BLOCK)
        pixels = images[sample[block]].to(torch.float32, copy=True)
        classes = sample_classes[block]
        starts = nearest_of_another_class(pixels, classes, pool, pool_classes)
        for first in range(0, len(pixels), batch_size):
            batch = slice(first, first + batch_size)
            perturbations = minimal_perturbations(
                model, pixels[batch], classes[batch], starts[batch], spec
            )
            radii.append(_norms(perturbations.double()))
            at_pixel_limit.append(
                _is_at_pixel_limit(model, pixels[batch], perturbations, classes[batch])
            )
    return _robustness_record(
        radii=torch.cat(radii).cpu().numpy(),
        at_pixel_limit=torch.cat(at_pixel_limit).cpu().numpy(),
        is_wrong=(sample_classes != labels[sample]).cpu().numpy(),
        rows=rows,
        num_values=images[0].numel(),
        spec=spec,
    )


def _predict(model: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """Return the predicted class of every image, ``(num_images,)`` int64."""
    classes: list[Tensor] = []
    with torch.no_grad(), evaluation_mode(model):
        for batch in torch.split(images, batch_size):
            classes.append(model(batch.to(torch.float32, copy=True)).argmax(1))
    return torch.cat(classes)


def minimal_perturbations(
    model: nn.Module,
    images: Tensor,
    classes: Tensor,
    starts: Tensor,
    spec: RobustnessSpec,
) -> Tensor:
    """Return, for every image, the smallest perturbation found that changes its class.

    The search is DDN's: a step down the gradient of the logit margin, then onto a sphere around the
    image whose radius shrinks while the class is another one, and grows otherwise.

    Args:
        model: maps pixels to logits.
        images: float32 pixels in [0, 255], ``(num_images, channels, height, width)``.
        classes: ``(num_images,)`` int64, the class of each image before it is perturbed. It is not
            predicted again: near a tie another batch size may predict another class, for which
            ``starts`` would be wrong.
        starts: an image of another class for each image; NaN if none is known.
        spec: number of gradient steps, and of forward passes of a binary search for the decision
            boundary, before and after the gradient steps.

    Returns:
        Perturbations of the shape of ``images``, so that the sums lie within the pixel range; NaN
        where none was found.
    """
    with evaluation_mode(model):
        best = _bisect(model, images, classes, starts - images, spec.num_bisections)
        best_norms = _norms(best).nan_to_num(math.inf)
        # Without a start the radius begins at the norm of the image, and grows from there.
        radii = torch.where(best_norms.isinf(), _norms(images).clamp_min(1.0), best_norms)
        perturbations = torch.zeros_like(images)
        for step in range(spec.num_steps):
            margins, gradient = margin_gradient(model, images + perturbations, classes)
            is_adversarial = (margins < 0) & ~gradient.flatten(1).isnan().any(1)
            norms = _norms(perturbations)
            is_better = is_adversarial & (norms < best_norms)
            best = torch.where(expand_like(is_better, images), perturbations, best)
            best_norms = torch.where(is_better, norms, best_norms)
            rate = _annealed(RADIUS_RATE, step, spec.num_steps)
            step_size = _annealed(STEP_SIZE, step, spec.num_steps)
            shrunk = torch.minimum(radii, best_norms) * (1 - rate)
            radii = torch.where(is_adversarial, shrunk, radii * (1 + rate))
            descent = expand_like(step_size * radii, images) * _unit(gradient.nan_to_num(0.0))
            directions = perturbations - descent
            # Zero gradient at the image itself: move toward the starting point.
            has_no_direction = expand_like(_norms(directions) == 0, images)
            directions = torch.where(has_no_direction, best.nan_to_num(0.0), directions)
            on_sphere = images + _unit(directions) * expand_like(radii, images)
            perturbations = on_sphere.clamp(0, PIXEL_MAX) - images
        return _bisect(model, images, classes, best, spec.num_bisections)


def _annealed(first_and_last: tuple[float, float], step: int, num_steps: int) -> float:
    """Return a value annealed by a cosine from the first to the last."""
    first, last = first_and_last
    cosine = (1 + math.cos(math.pi * step / num_steps)) / 2  # from 1 to 0
    return last + (first - last) * cosine


def nearest_of_another_class(
    images: Tensor, classes: Tensor, pool: Tensor, pool_classes: Tensor
) -> Tensor:
    """Return, for every image, the nearest of ``pool`` of another class; NaN if there is none."""
    flat = images.flatten(1).float()
    blocks = [
        torch.cdist(flat, block.flatten(1).float()) for block in torch.split(pool, POOL_BLOCK)
    ]
    distances = torch.cat(blocks, dim=1)
    distances[classes[:, None] == pool_classes[None]] = math.inf
    nearest, rows = distances.min(1)
    return torch.where(expand_like(nearest.isinf(), images), math.nan, pool[rows].float())


def summarize_radii(radii: NDArray[np.float64], num_values: int) -> RadiusSummary | None:
    """Summarize radii ``(num_images,)`` of images with ``num_values`` pixel values each.

    Returns:
        None if there is no radius.
    """
    num_images = len(radii)
    if num_images == 0:
        return None
    mean = float(radii.mean())
    std_error = None
    if num_images > 1:
        std_error = float(radii.std(ddof=1) / math.sqrt(num_images))
    geometric_mean = None
    if (radii > 0).all():
        geometric_mean = float(np.exp(np.log(radii).mean()))
    return RadiusSummary(
        num_images=num_images,
        mean=mean,
        std_error=std_error,
        median=float(np.median(radii)),
        geometric_mean=geometric_mean,
        quantiles={f"{share:g}": float(np.quantile(radii, share)) for share in QUANTILES},
        mean_per_pixel=mean / math.sqrt(num_values),
    )


def _robustness_record(
    *,
    radii: NDArray[np.float64],
    at_pixel_limit: NDArray[np.bool_],
    is_wrong: NDArray[np.bool_],
    rows: NDArray[np.int64],
    num_values: int,
    spec: RobustnessSpec,
) -> RobustnessRecord:
    """Return the record of radii ``(num_images,)``, which are NaN where none was found."""
    has_radius = np.isfinite(radii)
    reason = "the network puts every image that was tried in one class"
    share_at_limit = None
    true = None
    if has_radius.any():
        reason = ""
        share_at_limit = float(at_pixel_limit[has_radius].mean())
        # A misclassified image needs no perturbation, even if none was found.
        true_radii = np.where(is_wrong, 0.0, radii)
        true = summarize_radii(true_radii[np.isfinite(true_radii)], num_values)
    # Without any radius there is no mean to report: one over the misclassified images alone would
    # be 0, however robust the network is on the others.
    return RobustnessRecord(
        pred=summarize_radii(radii[has_radius], num_values),
        true=true,
        radii=tuple(radius if math.isfinite(radius) else None for radius in radii.tolist()),
        rows=tuple(rows.tolist()),
        wrong=tuple(is_wrong.tolist()),
        num_not_found=int((~has_radius).sum()),
        box_share=share_at_limit,
        num_steps=spec.num_steps,
        num_bisections=spec.num_bisections,
        reason=reason,
    )


def _bisect(
    model: nn.Module, images: Tensor, classes: Tensor, perturbations: Tensor, num_bisections: int
) -> Tensor:
    """Shorten each perturbation to the decision boundary on its line; NaN stays NaN."""
    low = torch.zeros(len(images), device=images.device)
    high = torch.ones(len(images), device=images.device)

    def perturbed(shares: Tensor) -> Tensor:
        return (images + expand_like(shares, images) * perturbations).clamp(0, PIXEL_MAX)

    with torch.no_grad():
        for _ in range(num_bisections):
            middle = (low + high) / 2
            is_other_class = model(perturbed(middle).nan_to_num(0.0)).argmax(1) != classes
            high = torch.where(is_other_class, middle, high)
            low = torch.where(is_other_class, low, middle)
        return perturbed(high) - images


def _is_at_pixel_limit(
    model: nn.Module, images: Tensor, perturbations: Tensor, classes: Tensor
) -> Tensor:
    """Return, for every image, whether the pixel range stops a step that would lower the margin."""
    perturbed = images + perturbations.nan_to_num(0.0)
    with evaluation_mode(model):
        gradient = margin_gradient(model, perturbed, classes)[1]
    stopped_below = (perturbed <= RANGE_TOLERANCE) & (gradient > 0)
    stopped_above = (perturbed >= PIXEL_MAX - RANGE_TOLERANCE) & (gradient < 0)
    return (stopped_below | stopped_above).flatten(1).any(1)


def _norms(perturbations: Tensor) -> Tensor:
    """Return the L2 norm of every image's perturbation, ``(num_images,)``."""
    norms: Tensor = torch.linalg.vector_norm(perturbations.flatten(1), dim=1)
    return norms


def _unit(perturbations: Tensor) -> Tensor:
    """Return perturbations scaled to norm 1; a zero one stays zero."""
    norms = _norms(perturbations).clamp_min(torch.finfo(torch.float32).tiny)
    return perturbations / expand_like(norms, perturbations)
