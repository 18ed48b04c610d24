"""Count the passes of a trial through its network, in training and in each attack."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.planning.costs.kernels import NetworkCost
from orchestrator.planning.costs.networks import cost_of
from search_spaces.attacks import ATTACKS
from search_spaces.specs import TrialSpec
from tasks.trials.records import scored_epochs

ROBUSTNESS = "robustness"
"""Key of the passes that search for the radius R. The other keys are names of attacks."""


@dataclass(frozen=True)
class ImagePasses:
    """Numbers of images that pass through a network.

    Attributes:
        gradients: Number of images with a forward pass and a backward pass to the pixels.
        forwards: Number of images with only a forward pass.
    """

    gradients: int
    forwards: int


@dataclass(frozen=True)
class BatchPasses:
    """Numbers of batches that a trial sends through its network.

    Attributes:
        steps: Number of training steps.
        evaluations: Number of batches with only a forward pass.
        gradients: Number of batches with a forward pass and a backward pass to the pixels.
    """

    steps: float
    evaluations: float
    gradients: float


def training_flops(trial: TrialSpec) -> float:
    """Return the number of arithmetic operations of a trial's training."""
    network = trial.network
    flops_per_image = cost_of(network).step.flops / network.recipe.batch_size
    return network.recipe.epochs * network.train_size * flops_per_image


def attack_flops(trial: TrialSpec) -> dict[str, float]:
    """Return the number of arithmetic operations of a trial's attacks, by kind.

    A gradient with respect to the pixels costs as much as three forward passes.
    """
    forward = cost_of(trial.network).forward_flops
    return {
        kind: forward * (3 * passes.gradients + passes.forwards)
        for kind, passes in attack_passes(trial).items()
    }


def attack_passes(trial: TrialSpec) -> dict[str, ImagePasses]:
    """Return the passes of every attack by its name, and of ``robustness``.

    If the trial does not make an attack, its numbers are 0.
    """
    test_size = trial.network.subset.test_size
    num_epsilons = len(trial.attacks.epsilons)
    passes = {kind: ImagePasses(0, 0) for kind in (*ATTACKS, ROBUSTNESS)}
    for method in trial.attacks.methods:
        per_image = ATTACKS[method].passes(trial.attacks.all_parameters(method))
        gradients = per_image.shared_gradients + num_epsilons * per_image.gradients
        passes[method] = ImagePasses(
            gradients=test_size * gradients,
            forwards=test_size * num_epsilons * per_image.forwards,
        )
    robustness = trial.robustness
    if robustness is not None:
        num_images = min(robustness.num_images, test_size)
        passes[ROBUSTNESS] = ImagePasses(
            gradients=num_images * robustness.num_steps,
            forwards=2 * num_images * robustness.num_bisections,
        )
    return passes


def batch_passes(trial: TrialSpec, cost: NetworkCost) -> BatchPasses:
    """Return the numbers of batches that a trial sends through its network."""
    network = trial.network
    recipe = network.recipe
    passes = attack_passes(trial).values()
    gradients = sum(kind.gradients for kind in passes)
    # The same pass computes FGSM's gradients and the test loss. So a trial without FGSM also
    # makes this pass.
    num_shared = 0
    for method in trial.attacks.methods:
        num_shared += ATTACKS[method].passes(trial.attacks.all_parameters(method)).shared_gradients
    if not num_shared:
        gradients += network.subset.test_size
    tested_images = len(scored_epochs(recipe.epochs)) * network.subset.test_size
    forwards = network.train_size + tested_images + sum(kind.forwards for kind in passes)
    return BatchPasses(
        steps=recipe.epochs * math.ceil(network.train_size / recipe.batch_size),
        evaluations=forwards / cost.evaluation_batch,
        gradients=gradients / cost.attack_batch,
    )
