"""What a plan costs beside training: attacks, disk for weights, and how long a trial may take at most."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from orchestrator.planning.measured import ASSUMED_CPU_FLOPS, MeasuredTrial
from orchestrator.planning.packing import cost_of, flops
from orchestrator.planning.plan import SweepPlan
from search_spaces.trials import TrialSpec

PGD_PASSES = 5 * 20 * 3
"""Forward passes per image and strength: restarts, steps, and a step's gradient of the pixels at two."""
HANG_FACTOR = 20
MIN_LIMIT_S = 1800.0


def time_limit(trial: TrialSpec, measured: Collection[MeasuredTrial]) -> float:
    """Return the seconds after which a trial counts as hung: many times what is expected of it.

    Args:
        trial: What is to be done.
        measured: What done trials cost; without any of the model, the slowest device that is assumed.
    """
    model = trial.network.model
    rates = [
        flops(done.spec) / done.seconds
        for done in measured
        if done.spec.network.model == model and done.seconds > 0 and done.spec.network.recipe.epochs
    ]
    work = training_flops(trial) + attack_flops(trial)
    return max(MIN_LIMIT_S, HANG_FACTOR * work / min(rates, default=ASSUMED_CPU_FLOPS))


@dataclass(frozen=True)
class Extras:
    """What a plan costs beside training.

    Attributes:
        num_retrained: done trials that are trained again because their weights were not kept.
        num_measured: done trials on whose kept weights only something is measured.
        weights_bytes: disk that kept weights will take in all.
        attack_share: operations of attacks over those of training, over the whole grid.
    """

    num_retrained: int
    num_measured: int
    weights_bytes: float
    attack_share: float

    @property
    def text(self) -> str:
        """The costs in words."""
        words = [f"kept weights: {self.weights_bytes / 2**30:.2g} GiB in all"]
        words.append(f"attacks: {self.attack_share:.0%} of training")
        if self.num_measured:
            words.append(
                f"{self.num_measured} trained networks are only measured, none of them trained again"
            )
        if self.num_retrained:
            words.append(f"{self.num_retrained} networks are trained again: their weights were not kept")
        return "; ".join(words)


def extras(plan: SweepPlan, incomplete: Mapping[str, bool]) -> Extras:
    """Return what a plan costs beside training.

    Args:
        plan: The whole grid.
        incomplete: By id of every done trial that lacks a measurement: whether its weights are kept.
    """
    attacks = sum(attack_flops(trial) for trial in plan.trials)
    return Extras(
        num_retrained=sum(not kept for kept in incomplete.values()),
        num_measured=sum(incomplete.values()),
        weights_bytes=sum(
            4 * cost_of(t.network).num_parameters for t in plan.trials if plan.keeps_weights(t)
        ),
        attack_share=attacks / max(1.0, sum(training_flops(trial) for trial in plan.trials)),
    )


def attack_flops(trial: TrialSpec) -> float:
    """Return the operations of a trial's attacks: forward passes, and gradients of the pixels at two each."""
    network = trial.network
    forward = cost_of(network).forward_flops
    num_epsilons, test_size = len(trial.attacks.epsilons), network.subset.test_size
    passes = 0.0
    if "fgsm" in trial.attacks.methods:
        passes += test_size * (3 + num_epsilons)
    if "pgd" in trial.attacks.methods:
        passes += test_size * num_epsilons * PGD_PASSES
    if trial.robustness is not None:
        asked = trial.robustness
        passes += min(asked.num_images, test_size) * (3 * asked.num_steps + 2 * asked.num_bisections)
    return forward * passes


def training_flops(trial: TrialSpec) -> float:
    """Return the operations of a trial's training."""
    network = trial.network
    per_image = cost_of(network).step.flops / network.recipe.batch_size
    return network.recipe.epochs * network.train_size * per_image
