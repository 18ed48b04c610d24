"""What a plan costs beside training: attacks, disk for weights, and how long a trial may take at most."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from orchestrator.planning.measured import ASSUMED_CPU_FLOPS, MeasuredTrial
from orchestrator.planning.packing import cost_of, flops, has_cost, uncounted
from orchestrator.planning.plan import SweepPlan
from search_spaces.trials import NetworkSpec, TrialSpec

PGD_PASSES = 5 * 20 * 3
"""Forward passes per image and strength: restarts, steps, and a step's gradient of the pixels at two."""
ATTACK_BUDGET = 0.15
"""Of training: what all attacks together are meant to cost at most. The paper's grid takes 2 % by default."""
_CHEAPER = {
    "fgsm": "fewer attacks.epsilons or a smaller test_size, or more epochs",
    "pgd": f"{PGD_PASSES} passes per image and strength, so leave pgd out of attacks.methods, or name few "
    "attacks.epsilons, or a smaller test_size",
    "robustness": "a smaller robustness.num_images or robustness.num_steps",
}
COLUMN_BYTES = 650
"""Of a Parquet file's column beside its values: measured, 520 to 670 at 20 to 750 images."""
HANG_FACTOR = 20
MIN_LIMIT_S = 600.0
"""Without an epoch or a result: libraries, arrays and a card's start come first, and machines are shared."""


def time_limit(trial: TrialSpec, measured: Collection[MeasuredTrial]) -> float:
    """Return the seconds without an epoch or a result after which a trial counts as hung.

    They are many times what is expected of the whole trial.

    Args:
        trial: What is to be done.
        measured: What done trials cost; without any of the model, the slowest device that is assumed.

    Returns:
        Infinity for a network whose operations cannot be counted.
    """
    if not has_cost(trial.network):
        return math.inf
    model = trial.network.model
    rates = [
        flops(done.spec) / done.seconds
        for done in measured
        if done.spec.network.model == model and done.seconds > 0 and done.spec.network.recipe.epochs
    ]
    work = training_flops(trial) + sum(attack_flops(trial).values())
    return max(MIN_LIMIT_S, HANG_FACTOR * work / min(rates, default=ASSUMED_CPU_FLOPS))


@dataclass(frozen=True)
class Extras:
    """What a plan costs beside training.

    Attributes:
        num_retrained: done trials that are trained again because their weights were not kept.
        num_measured: done trials on whose kept weights only something is measured.
        weights_bytes: disk that kept weights will take in all.
        predictions_bytes: disk that kept predictions will take in all.
        attack_shares: operations of each kind of attack over those of training, over the whole grid.
        uncounted: networks whose costs are guessed from their weights, and what failed in counting them.
    """

    num_retrained: int
    num_measured: int
    weights_bytes: float
    predictions_bytes: float
    attack_shares: dict[str, float]
    uncounted: dict[str, str]

    @property
    def attack_share(self) -> float:
        """Operations of all attacks over those of training."""
        return sum(self.attack_shares.values())

    @property
    def text(self) -> str:
        """The costs in words."""
        words = [f"kept weights: {_gib(self.weights_bytes)} in all"]
        if self.predictions_bytes:
            words.append(f"kept predictions: {_gib(self.predictions_bytes)} in all")
        words.append(self._attacks())
        if self.num_measured:
            words.append(
                f"{self.num_measured} trained networks are only measured, none of them trained again"
            )
        if self.num_retrained:
            words.append(f"{self.num_retrained} networks are trained again: their weights were not kept")
        words += [
            f"costs of {name} are guessed from its weights: {why}" for name, why in self.uncounted.items()
        ]
        return "; ".join(words)

    def _attacks(self) -> str:
        """Say what attacks cost and, where that is more than was meant, what makes them cheaper."""
        shares = {kind: share for kind, share in self.attack_shares.items() if share}
        words = f"attacks: {self.attack_share:.0%} of training"
        if len(shares) > 1:
            words += f" ({', '.join(f'{kind} {share:.0%}' for kind, share in shares.items())})"
        if self.attack_share <= ATTACK_BUDGET:
            return words
        most = max(shares, key=lambda kind: shares[kind])
        times = self.attack_share / ATTACK_BUDGET
        return f"{words}, {times:.1f} times the {ATTACK_BUDGET:.0%} that are meant: {_CHEAPER[most]}"


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2g} GiB"


def extras(plan: SweepPlan, incomplete: Mapping[str, bool]) -> Extras:
    """Return what a plan costs beside training.

    Args:
        plan: The whole grid.
        incomplete: By id of every done trial that lacks a measurement: whether its weights are kept.
    """
    attacks: Counter[str] = Counter()
    for trial in plan.trials:
        attacks.update(attack_flops(trial))
    training = max(1.0, sum(training_flops(trial) for trial in plan.trials))
    return Extras(
        num_retrained=sum(not kept for kept in incomplete.values()),
        num_measured=sum(incomplete.values()),
        weights_bytes=sum(cost_of(t.network).state_bytes for t in plan.trials if plan.keeps_weights(t)),
        predictions_bytes=sum(_predictions_bytes(plan, t.network) for t in plan.trials if t.predictions),
        attack_shares={kind: flops / training for kind, flops in attacks.items()},
        uncounted=uncounted(plan.trials),
    )


def _predictions_bytes(plan: SweepPlan, network: NetworkSpec) -> int:
    num_columns = plan.num_outputs(network) + 2  # image and label
    return num_columns * (COLUMN_BYTES + 4 * network.subset.test_size)


def attack_flops(trial: TrialSpec) -> dict[str, float]:
    """Return the operations of a trial's attacks by kind: forward passes; a gradient counts as two."""
    network = trial.network
    num_epsilons, test_size = len(trial.attacks.epsilons), network.subset.test_size
    passes = dict.fromkeys(_CHEAPER, 0)
    if "fgsm" in trial.attacks.methods:
        passes["fgsm"] = test_size * (3 + num_epsilons)
    if "pgd" in trial.attacks.methods:
        passes["pgd"] = test_size * num_epsilons * PGD_PASSES
    if trial.robustness is not None:
        asked = trial.robustness
        per_image = 3 * asked.num_steps + 2 * asked.num_bisections
        passes["robustness"] = min(asked.num_images, test_size) * per_image
    forward = cost_of(network).forward_flops
    return {kind: forward * number for kind, number in passes.items()}


def training_flops(trial: TrialSpec) -> float:
    """Return the operations of a trial's training."""
    network = trial.network
    per_image = cost_of(network).step.flops / network.recipe.batch_size
    return network.recipe.epochs * network.train_size * per_image
