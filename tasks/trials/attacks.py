"""Attack a trained network with adversarial perturbations of its images.

Pixels are in [0, 255], and epsilon has the same unit. For example, an attack with epsilon 2
(often written 2/255) changes a pixel by at most 2. All forward and backward passes use float32
and evaluation mode. Images are ``(num_images, channels, height, width)``; labels are
``(num_images,)`` int64. Each attack has one function in this module and one row in
:data:`search_spaces.attacks.ATTACKS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.attacks import ATTACKS
from search_spaces.errors import ConfigError
from search_spaces.row_parameters import Number
from search_spaces.specs import AttackRequest, RecipeSpec, TestLoss
from tasks.table_rows import load_target
from tasks.trials.evaluation import (
    Evaluation,
    evaluation_mode,
    mean_loss,
    scaled_batch_size,
    scores_per_image,
)
from tasks.trials.image_tensors import image_batches
from tasks.trials.records import AttackRecord

PIXEL_MAX = 255.0
"""Largest pixel value."""


@dataclass(frozen=True)
class CleanPass:
    """The outputs and gradient signs of a network on the clean images.

    The evaluation and all attacks use these numbers, so they are computed only once.

    Attributes:
        logits: The logits of the network, ``(num_images, num_outputs)``.
        losses: Cross-entropy of each image in nats, ``(num_images,)``.
        is_correct: Mask of the images that are classified correctly, ``(num_images,)``.
        gradient_sign: Sign of the gradient of each image's loss with respect to its pixels, as
            int8 in the shape of the images.
    """

    logits: Tensor
    losses: Tensor
    is_correct: Tensor
    gradient_sign: Tensor

    def evaluation(self, loss_rule: TestLoss) -> Evaluation:
        """Return the mean loss and the accuracy on the clean images."""
        accuracy = float(self.is_correct.double().mean())
        return Evaluation(mean_loss(self.losses, loss_rule), accuracy)


def attack_batch_size(recipe: RecipeSpec, micro_batch: int | None = None) -> int:
    """Return the batch size at which an attack needs about as much memory as a training pass.

    An attack stores activations in float32, which need twice the memory of activations in
    bfloat16. So the batch size is half of the batch size of the training, and at least 8.
    Recipes with float32 use the same rule. With micro batches, the batch size of an attack is
    reduced by the same factor as the batch of the training.
    """
    full_batch_size = max(8, recipe.batch_size // 2)
    return scaled_batch_size(full_batch_size, recipe, micro_batch)


def run_clean_pass(
    model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int
) -> CleanPass:
    """Compute outputs and gradient signs of clean images, in batches of ``batch_size``."""
    batches: list[CleanPass] = []
    with evaluation_mode(model):
        for pixels, batch_labels in image_batches(images, labels, batch_size):
            pixels.requires_grad_(True)
            with torch.enable_grad():
                logits = model(pixels).float()
                # The gradient of the sum has the same sign as the gradient of the mean. The
                # gradient of the mean is smaller by the batch size, so it could underflow.
                loss = F.cross_entropy(logits, batch_labels, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, pixels)
            logits = logits.detach()
            losses, is_correct = scores_per_image(logits, batch_labels)
            # torch.sign of NaN is 0, so FGSM does not change a pixel whose gradient is NaN.
            batches.append(CleanPass(logits, losses, is_correct, gradient.sign().to(torch.int8)))
    return CleanPass(
        logits=torch.cat([batch.logits for batch in batches]),
        losses=torch.cat([batch.losses for batch in batches]),
        is_correct=torch.cat([batch.is_correct for batch in batches]),
        gradient_sign=torch.cat([batch.gradient_sign for batch in batches]),
    )


@dataclass(frozen=True)
class AttackBatch:
    """A batch of images to attack.

    Attributes:
        pixels: Pixels as float32 in [0, 255], ``(num_images, channels, height, width)``.
        labels: ``(num_images,)`` int64, the true labels.
        gradient_sign: Sign of the gradient at the clean images, see :class:`CleanPass`. Only
            FGSM uses it.
        rows: ``(num_images,)`` int64, the index of each image in the test set. The seed of a
            random start depends on this index.
    """

    pixels: Tensor
    labels: Tensor
    gradient_sign: Tensor
    rows: Tensor


class AttackFunction(Protocol):
    """The signature of every attack function in :data:`search_spaces.attacks.ATTACKS`."""

    def __call__(
        self, model: nn.Module, batch: AttackBatch, epsilon: float, **parameters: Number
    ) -> Tensor:
        """Return attacked copies of ``batch.pixels``, float32 in [0, 255].

        Args:
            model: The model, which maps pixels to logits. It is in evaluation mode.
            batch: The images. The function must not change them.
            epsilon: Largest change of a pixel, in the unit of the pixels.
            parameters: The parameters of the attack. Every parameter has a value.
        """


def fgsm(model: nn.Module, batch: AttackBatch, epsilon: float) -> Tensor:
    """Change every pixel by ``epsilon`` in the direction that increases the loss.

    This is the fast gradient sign method (Goodfellow et al., ICLR 2015), as in Konz &
    Mazurowski (ICLR 2024). The attack is untargeted, and consists of one step. Pixels stay
    within [0, 255].
    """
    return (batch.pixels + epsilon * batch.gradient_sign).clamp(0, PIXEL_MAX)


def pgd(
    model: nn.Module,
    batch: AttackBatch,
    epsilon: float,
    *,
    num_steps: int,
    num_restarts: int,
    relative_step_size: float,
) -> Tensor:
    """Attack by projected gradient descent on the logit margin.

    The function returns, for each image, the copy with the smallest margin of all steps and
    descents. The attack is PGD (Madry et al., ICLR 2018) with a margin loss (f6 of Carlini &
    Wagner, S&P 2017). For a converged network, the gradient of the cross-entropy underflows to
    zero in float32 (gradient masking). The gradient of the margin does not underflow. The
    first descent starts at the image. All other descents start at a random point of the
    L-infinity ball of radius ``epsilon``.

    Args:
        model: See :class:`AttackFunction`.
        batch: See :class:`AttackFunction`.
        epsilon: Radius of the L-infinity ball around an image, in the unit of the pixels.
        num_steps: Number of gradient steps in one descent.
        num_restarts: Number of descents, including the first one. With 1, there is only the
            first descent. Stored records contain the name of this parameter, so it must not
            change.
        relative_step_size: Change of each pixel in one step, as a fraction of ``epsilon``.
    """
    low = (batch.pixels - epsilon).clamp_min(0)
    high = (batch.pixels + epsilon).clamp_max(PIXEL_MAX)
    step_size = relative_step_size * epsilon
    best = _BestCandidates(batch)
    for restart in range(num_restarts):
        adversarial = batch.pixels
        if restart > 0:
            seeds = batch.rows * num_restarts + restart  # unique for each image and restart
            noise = _uniform_noise(batch, seeds)
            adversarial = low + noise * (high - low)
        for _ in range(num_steps):
            margins, gradient = margin_gradient(model, adversarial, batch.labels)
            best.update(adversarial, margins)
            adversarial = adversarial - step_size * gradient.sign()
            adversarial = torch.minimum(torch.maximum(adversarial, low), high)
        best.update(adversarial, forward_margins(model, adversarial, batch.labels))
    return best.images


class _BestCandidates:
    """The candidates with the smallest margins so far, one for every image of a batch.

    Attributes:
        images: The best candidates. Before the first update, they are the original images.
    """

    def __init__(self, batch: AttackBatch) -> None:
        self.images = batch.pixels
        self._margins = torch.full_like(batch.labels, torch.inf, dtype=torch.float32)

    def update(self, candidates: Tensor, margins: Tensor) -> None:
        """Replace the best candidate of each image whose new candidate has a smaller margin.

        A new candidate whose margin is NaN is ignored.
        """
        is_smaller = margins < self._margins
        self.images = torch.where(expand_like(is_smaller, candidates), candidates, self.images)
        self._margins = torch.where(is_smaller, margins, self._margins)


def _uniform_noise(batch: AttackBatch, seeds: Tensor) -> Tensor:
    """Return random numbers in [0, 1), in the shape of the pixels.

    Every image has its own seed, so the random numbers do not depend on the batch size.
    """
    noise = torch.empty(batch.pixels.shape)
    for image_noise, seed in zip(noise, seeds.tolist(), strict=True):
        generator = torch.Generator().manual_seed(seed)
        image_noise.copy_(torch.rand(image_noise.shape, generator=generator))
    return noise.to(batch.pixels.device)


def attack_function(method: str) -> AttackFunction:
    """Return the function of an attack of :data:`search_spaces.attacks.ATTACKS`.

    Raises:
        ConfigError: The row of the attack contains the name of a function that does not exist.
    """
    row = f"search_spaces/attacks.py, ATTACKS, row {method!r}: `function`"
    return cast(AttackFunction, load_target(ATTACKS[method].function, row))


def _with_parameters(attack: AttackRequest) -> Callable[[nn.Module, AttackBatch], Tensor]:
    """Return a function that runs one attack with its epsilon and parameters."""
    function = attack_function(attack.method)
    parameters = ATTACKS[attack.method].values(dict(attack.parameters))

    def run(model: nn.Module, batch: AttackBatch) -> Tensor:
        adversarial = function(model, batch, attack.epsilon, **parameters)
        is_tensor = isinstance(adversarial, Tensor)
        if not is_tensor or adversarial.shape != batch.pixels.shape:
            returned = f"a {type(adversarial).__name__}"
            if is_tensor:
                returned = f"pixels of shape {tuple(adversarial.shape)}"
            raise ConfigError(
                f"search_spaces/attacks.py, ATTACKS, row {attack.method!r}: `function` returned "
                f"{returned} for pixels of shape {tuple(batch.pixels.shape)}",
                hint="Return one adversarial copy of each image, in the same shape",
            )
        return adversarial

    return run


@dataclass(frozen=True)
class AttackOutcome:
    """The results of one attack at one epsilon on the images of a batch.

    Attributes:
        losses: Cross-entropy of each attacked image in nats, ``(num_images,)``.
        is_correct: Mask of the attacked images that are classified correctly,
            ``(num_images,)``.
        is_unchanged: Mask of the images in which the attack changed no pixel,
            ``(num_images,)``.
    """

    losses: Tensor
    is_correct: Tensor
    is_unchanged: Tensor


def attack_all(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attacks: Sequence[AttackRequest],
    clean: CleanPass,
    *,
    batch_size: int,
    loss_rule: TestLoss,
) -> list[AttackRecord]:
    """Attack every image with every attack.

    Args:
        model: The model, which maps pixels to logits. Its mode is restored afterwards.
        images: Pixels in [0, 255] of any type. They are not changed.
        labels: The true labels.
        attacks: The attacks, each with its method, epsilon and parameters.
        clean: Result of :func:`run_clean_pass` on these images.
        batch_size: Number of images in a pass. It changes only speed and memory.
        loss_rule: Rule for the mean loss on clean and on attacked images, see
            :func:`~tasks.trials.evaluation.mean_loss`.

    Returns:
        One record for each attack.
    """
    functions = [_with_parameters(attack) for attack in attacks]
    # Each attack has one list, which collects the outcomes of all batches.
    outcomes_by_attack: list[list[AttackOutcome]] = [[] for _ in attacks]
    signs = torch.split(clean.gradient_sign, batch_size)
    rows = torch.split(torch.arange(len(images)), batch_size)
    parts = zip(image_batches(images, labels, batch_size), signs, rows, strict=True)
    with evaluation_mode(model), torch.no_grad():
        for (pixels, batch_labels), batch_signs, batch_rows in parts:
            batch = AttackBatch(pixels, batch_labels, batch_signs, batch_rows)
            for function, outcomes in zip(functions, outcomes_by_attack, strict=True):
                adversarial = function(model, batch)
                losses, is_correct = scores_per_image(model(adversarial), batch_labels)
                is_unchanged = (adversarial == pixels).flatten(1).all(dim=1)
                outcomes.append(AttackOutcome(losses, is_correct, is_unchanged))
    return [
        _attack_record(attack, clean, outcomes, loss_rule)
        for attack, outcomes in zip(attacks, outcomes_by_attack, strict=True)
    ]


def _attack_record(
    attack: AttackRequest,
    clean: CleanPass,
    outcomes: Sequence[AttackOutcome],
    loss_rule: TestLoss,
) -> AttackRecord:
    """Make the record of one attack from its outcomes on all batches."""
    is_correct = torch.cat([outcome.is_correct for outcome in outcomes])
    is_unchanged = torch.cat([outcome.is_unchanged for outcome in outcomes])
    clean_scores = clean.evaluation(loss_rule)
    loss = mean_loss(torch.cat([outcome.losses for outcome in outcomes]), loss_rule)
    accuracy = float(is_correct.double().mean())
    # Robust accuracy is the share of the images that are classified correctly before and after
    # the attack.
    robust_accuracy = float((is_correct & clean.is_correct).double().mean())
    loss_missing_reason = ""
    if not math.isfinite(clean_scores.loss):
        loss_missing_reason = f"the loss on the clean images is {clean_scores.loss}"
    elif not math.isfinite(loss):
        loss_missing_reason = f"the loss on the attacked images is {loss}"
    return AttackRecord(
        method=attack.method,
        epsilon=attack.epsilon,
        parameters=dict(attack.parameters),
        loss=None if loss_missing_reason else loss,
        loss_gain=None if loss_missing_reason else loss - clean_scores.loss,
        accuracy=accuracy,
        accuracy_drop=clean_scores.accuracy - accuracy,
        robust_accuracy=robust_accuracy,
        num_unchanged=int(is_unchanged.sum()),
        reason=loss_missing_reason,
    )


def logit_margins(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the logit margin ``z_y - max_{k != y} z_k`` of each image, for a given class y.

    Args:
        logits: Logits of the network, ``(num_images, num_outputs)``.
        classes: ``(num_images,)`` int64, the class y of each image.

    Returns:
        ``(num_images,)`` margins. A margin is negative if another class has the largest logit.
    """
    class_logits = logits.gather(1, classes[:, None]).squeeze(1)
    return class_logits - logits.scatter(1, classes[:, None], -math.inf).amax(1)


def forward_margins(model: nn.Module, pixels: Tensor, classes: Tensor) -> Tensor:
    """Return the logit margins of ``pixels``, ``(num_images,)``, without a backward pass.

    Gradients are enabled, although no gradient is computed: without gradients, fused attention
    layers round differently. An attack compares these margins with the margins from
    :func:`margin_gradient`, so both must round equally.
    """
    with torch.enable_grad():
        logits = model(pixels.detach().requires_grad_(True)).float()
        return logit_margins(logits, classes).detach()


def margin_gradient(
    model: nn.Module,
    pixels: Tensor,
    classes: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the logit margins of ``pixels``, and their gradients with respect to the pixels."""
    pixels = pixels.detach().requires_grad_(True)
    with torch.enable_grad():
        margins = logit_margins(model(pixels).float(), classes)
        (gradient,) = torch.autograd.grad(margins.sum(), pixels)
    return margins.detach(), gradient


def expand_like(values: Tensor, like: Tensor) -> Tensor:
    """Reshape ``values``, ``(num_images,)``, so that they broadcast with the images ``like``."""
    return values.view(-1, *[1] * (like.dim() - 1))
