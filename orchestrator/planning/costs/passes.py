"""How many images a trial sends through its network, in training and by each attack."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.planning.costs.kernels import NetworkCost
from orchestrator.planning.costs.networks import cost_of
from search_spaces.attacks import ATTACKS
from search_spaces.specs import TrialSpec
from tasks.trials.records import epochs_to_look_at


def training_flops(trial: TrialSpec) -> float:
    """Return the operations of a trial's training."""
    network = trial.network
    per_image = cost_of(network).step.flops / network.recipe.batch_size
    return network.recipe.epochs * network.train_size * per_image


@dataclass(frozen=True)
class ImagePasses:
    """How many images pass the network forward and back, and how many forward alone."""

    gradients: int
    forwards: int


def attack_flops(trial: TrialSpec) -> dict[str, float]:
    """Return the floating-point operations of a trial's attacks by kind.

    A gradient by the pixels costs three forward passes.
    """
    forward = cost_of(trial.network).forward_flops
    return {
        kind: forward * (3 * passes.gradients + passes.forwards)
        for kind, passes in attack_passes(trial).items()
    }


def attack_passes(trial: TrialSpec) -> dict[str, ImagePasses]:
    """Return the passes of every attack by name, and of ``robustness``: 0 if not requested."""
    test_size = trial.network.subset.test_size
    num_epsilons = len(trial.attacks.epsilons)
    passes = {kind: ImagePasses(0, 0) for kind in (*ATTACKS, "robustness")}
    for method in trial.attacks.methods:
        per_image = ATTACKS[method].passes(trial.attacks.values(method))
        gradients = per_image.shared_gradients + num_epsilons * per_image.gradients
        passes[method] = ImagePasses(
            gradients=test_size * gradients, forwards=test_size * num_epsilons * per_image.forwards
        )
    robustness = trial.robustness
    if robustness is not None:
        num_images = min(robustness.num_images, test_size)
        passes["robustness"] = ImagePasses(
            gradients=num_images * robustness.num_steps,
            forwards=2 * num_images * robustness.num_bisections,
        )
    return passes


def num_passes(trial: TrialSpec, cost: NetworkCost) -> tuple[float, float, float]:
    """Return how many training steps, batches of an evaluation and gradients of a batch it
    takes.
    """
    network = trial.network
    recipe = network.recipe
    passes = attack_passes(trial)
    gradients = sum(kind.gradients for kind in passes.values())
    forwards = sum(kind.forwards for kind in passes.values())
    looked_at = len(epochs_to_look_at(recipe.epochs)) * network.subset.test_size
    # The pass that gives FGSM its directions gives the test loss too, so it is made without FGSM as
    # well.
    has_clean_gradients = any(
        ATTACKS[method].passes(trial.attacks.values(method)).shared_gradients
        for method in trial.attacks.methods
    )
    if not has_clean_gradients:
        gradients += network.subset.test_size
    return (
        recipe.epochs * math.ceil(network.train_size / recipe.batch_size),
        (network.train_size + looked_at + forwards) / cost.evaluation_batch,
        gradients / cost.attack_batch,
    )
