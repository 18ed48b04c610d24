"""Measure the adversarial robustness R of a trained network.

R is the mean *radius* of the images. The radius of an image ``x`` is the smallest norm
``||d||_2`` of a perturbation ``d`` for which the network classifies ``x + d`` differently from
``x``. The pixels of ``x + d`` must be in [0, 255]. The search for this perturbation is similar
to DDN (Rony et al., CVPR 2019). It finds an image near ``x`` that the network classifies
differently. The distance from ``x`` to this image is an upper bound of the radius. Below,
*radius* means this upper bound. The unit of all norms is one gray level, which is 1/255 of the
pixel range.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from search_spaces.specs import RobustnessSpec
from tasks.array_types import BoolArray, Float64Array, Int64Array
from tasks.trials.attacks import PIXEL_MAX, expand_like, margin_gradient
from tasks.trials.evaluation import evaluation_mode
from tasks.trials.records import RadiusSummary, RobustnessRecord

RADIUS_RATE = (0.05, 0.001)
"""Relative change of the sphere's radius per step (gamma of DDN), at the first and the last
step. DDN uses 0.05 in every step. With smaller changes in the last steps, the search comes
closer to the decision boundary."""
STEP_SIZE = (1.0, 0.01)
"""Length of a gradient step as a multiple of the sphere's radius, at the first and the last
step. DDN uses the same numbers as absolute lengths, and starts with a sphere of radius 1."""
SAMPLE_BLOCK = 50
"""Number of sampled images whose distances to all possible starting images are computed in one
block."""
POOL_BLOCK = 256
"""Number of possible starting images that are converted to float32 in one block."""
QUANTILES = (0.05, 0.25, 0.75, 0.95)
"""Quantiles of the radii that a record contains."""
RANGE_TOLERANCE = 1e-3
"""Largest distance from 0 or 255, in pixel units, at which a pixel counts as being at this
limit. Because of float32 rounding, a perturbed pixel at a limit may not be exactly 0 or
255."""


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
    """Measure the robustness R of ``model`` on a random sample of ``images``.

    Args:
        model: The model, which maps pixels in [0, 255] to logits. Its mode is restored
            afterwards.
        images: Images with pixels in [0, 255] of any type, ``(num_images, channels, height,
            width)``.
        labels: The true labels.
        train_images: Further images from which the search may start, ``(num_train, channels,
            height, width)``.
        spec: Size of the sample and numbers of steps. If ``images`` has fewer images than this
            size, the sample contains all of them.
        seed: Seed of the random sample.
        batch_size: Number of images in a pass. It changes only speed and memory.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(images))[: spec.num_images])
    sample = torch.from_numpy(rows).to(images.device)
    pool = torch.cat([train_images, images])
    pool_classes = _predict(model, pool, batch_size)
    sample_classes = pool_classes[len(train_images) + sample]
    radii: list[Tensor] = []
    at_pixel_limit: list[Tensor] = []
    for block_start in range(0, len(sample), SAMPLE_BLOCK):
        block = slice(block_start, block_start + SAMPLE_BLOCK)
        pixels = images[sample[block]].to(torch.float32, copy=True)
        classes = sample_classes[block]
        starting_images = nearest_of_another_class(pixels, classes, pool, pool_classes)
        for batch_start in range(0, len(pixels), batch_size):
            batch = slice(batch_start, batch_start + batch_size)
            perturbations = minimal_perturbations(
                model, pixels[batch], classes[batch], starting_images[batch], spec
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
    """Return a small perturbation of every image that changes its predicted class.

    Each step of the search moves the image along the gradient, so that its logit margin
    becomes smaller. It then projects the image onto a sphere around the original image. If the
    predicted class has changed, the next sphere is smaller. Otherwise the next sphere is
    larger.

    Args:
        model: The model, which maps pixels to logits.
        images: Images with float32 pixels in [0, 255], ``(num_images, channels, height,
            width)``.
        classes: ``(num_images,)`` int64, the predicted class of each original image. This
            function does not predict the classes again: with another batch size, rounding may
            change the order of two almost equal logits. An image in ``starts`` could then have
            the same class.
        starts: For each image, an image for which the network predicts another class; NaN if
            no such image is known.
        spec: Number of gradient steps, and number of bisections before and after the gradient
            steps.

    Returns:
        The smallest perturbations that the search found, in the shape of ``images``. The sum
        of an image and its perturbation is within the pixel range. If the search found no
        perturbation for an image, the values of this image are NaN.
    """
    with evaluation_mode(model):
        best = _bisect(model, images, classes, starts - images, spec.num_bisections)
        best_norms = _norms(best).nan_to_num(math.inf)
        # If an image has no starting image, the radius of its first sphere is the norm of the
        # image.
        sphere_radii = torch.where(best_norms.isinf(), _norms(images).clamp_min(1.0), best_norms)
        perturbations = torch.zeros_like(images)
        for step in range(spec.num_steps):
            margins, gradient = margin_gradient(model, images + perturbations, classes)
            is_adversarial = (margins < 0) & ~gradient.flatten(1).isnan().any(1)

            norms = _norms(perturbations)
            is_better = is_adversarial & (norms < best_norms)
            best = torch.where(expand_like(is_better, images), perturbations, best)
            best_norms = torch.where(is_better, norms, best_norms)

            rate = _annealed(RADIUS_RATE, step, spec.num_steps)
            sphere_radii = _next_sphere_radii(sphere_radii, best_norms, is_adversarial, rate)

            step_lengths = _annealed(STEP_SIZE, step, spec.num_steps) * sphere_radii
            unit_gradient = _unit(gradient.nan_to_num(0.0))
            directions = perturbations - expand_like(step_lengths, images) * unit_gradient
            # If the gradient at the original image is zero, move toward the best image so far.
            has_no_direction = expand_like(_norms(directions) == 0, images)
            directions = torch.where(has_no_direction, best.nan_to_num(0.0), directions)
            perturbations = _project_onto_sphere(images, directions, sphere_radii)
        return _bisect(model, images, classes, best, spec.num_bisections)


def _next_sphere_radii(
    sphere_radii: Tensor, best_norms: Tensor, is_adversarial: Tensor, rate: float
) -> Tensor:
    """Return the radius of the next sphere around each image.

    If the current image is adversarial, the next radius is smaller than both the current
    radius and the best norm. Otherwise the next radius is larger than the current radius.

    Args:
        sphere_radii: ``(num_images,)`` radii of the current spheres.
        best_norms: ``(num_images,)`` norms of the best perturbations; infinite if there is
            none.
        is_adversarial: ``(num_images,)`` mask, True if the network predicts another class for
            the current image.
        rate: Relative change of the radius, for example 0.05.
    """
    shrunk = torch.minimum(sphere_radii, best_norms) * (1 - rate)
    return torch.where(is_adversarial, shrunk, sphere_radii * (1 + rate))


def _project_onto_sphere(images: Tensor, directions: Tensor, sphere_radii: Tensor) -> Tensor:
    """Return perturbations with these directions and norms, clipped to the pixel range."""
    on_sphere = images + _unit(directions) * expand_like(sphere_radii, images)
    return on_sphere.clamp(0, PIXEL_MAX) - images


def _annealed(first_and_last: tuple[float, float], step: int, num_steps: int) -> float:
    """Return the value at one step of a cosine schedule from the first to the last value."""
    first, last = first_and_last
    cosine = (1 + math.cos(math.pi * step / num_steps)) / 2  # from 1 to 0
    return last + (first - last) * cosine


def nearest_of_another_class(
    images: Tensor, classes: Tensor, pool: Tensor, pool_classes: Tensor
) -> Tensor:
    """Return, for every image, the nearest image of another class in ``pool``.

    If all images in the pool have the class of an image, the result for this image is NaN.
    """
    flat = images.flatten(1).float()
    blocks = [
        torch.cdist(flat, block.flatten(1).float()) for block in torch.split(pool, POOL_BLOCK)
    ]
    distances = torch.cat(blocks, dim=1)
    distances[classes[:, None] == pool_classes[None]] = math.inf
    nearest, rows = distances.min(1)
    return torch.where(expand_like(nearest.isinf(), images), math.nan, pool[rows].float())


def summarize_radii(radii: Float64Array, num_values: int) -> RadiusSummary | None:
    """Return the distribution of radii over images.

    Args:
        radii: ``(num_images,)`` radius of each image, without NaN.
        num_values: Number of pixel values of an image.

    Returns:
        The distribution; None if ``radii`` is empty.
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
    radii: Float64Array,
    at_pixel_limit: BoolArray,
    is_wrong: BoolArray,
    rows: Int64Array,
    num_values: int,
    spec: RobustnessSpec,
) -> RobustnessRecord:
    """Return the robustness record of all sampled images.

    Args:
        radii: ``(num_images,)`` radius of each sampled image; NaN if the search found no
            differently classified image.
        at_pixel_limit: ``(num_images,)`` mask of the images at a limit of the pixel range, see
            :func:`_is_at_pixel_limit`.
        is_wrong: ``(num_images,)`` mask of the misclassified images.
        rows: ``(num_images,)`` index of each image in the test set.
        num_values: Number of pixel values of an image.
        spec: The numbers of steps, which are part of the record.
    """
    # RobustnessRecord describes the fields `pred`, `true`, `wrong` and `box_share`. Their
    # names are stored, so they do not change.
    has_radius = np.isfinite(radii)
    share_at_limit = None
    true = None
    reason = ""
    if has_radius.any():
        share_at_limit = float(at_pixel_limit[has_radius].mean())
        # For a misclassified image, the distance to an image that is not classified as the
        # true class is 0, even if the search found no perturbation.
        true_radii = np.where(is_wrong, 0.0, radii)
        true = summarize_radii(true_radii[np.isfinite(true_radii)], num_values)
    else:
        # `true` stays None, because the zeros of the misclassified images would say nothing
        # about the other images.
        reason = "the network predicted the same class for all images in the search"
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
    """Shorten each perturbation by bisection, so that it only just changes the class.

    A perturbation that is NaN stays NaN.
    """
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
    """Return a mask of the images for which a limit of the pixel range prevents a useful step.

    A step is useful if it lowers the logit margin.
    """
    perturbed = images + perturbations.nan_to_num(0.0)
    with evaluation_mode(model):
        gradient = margin_gradient(model, perturbed, classes)[1]
    stopped_below = (perturbed <= RANGE_TOLERANCE) & (gradient > 0)
    stopped_above = (perturbed >= PIXEL_MAX - RANGE_TOLERANCE) & (gradient < 0)
    return (stopped_below | stopped_above).flatten(1).any(1)


def _norms(perturbations: Tensor) -> Tensor:
    """Return the L2 norm of each perturbation, ``(num_images,)``."""
    norms: Tensor = torch.linalg.vector_norm(perturbations.flatten(1), dim=1)
    return norms


def _unit(perturbations: Tensor) -> Tensor:
    """Scale each perturbation to norm 1. A perturbation of norm 0 stays unchanged."""
    norms = _norms(perturbations).clamp_min(torch.finfo(torch.float32).tiny)
    return perturbations / expand_like(norms, perturbations)
