"""What a plan costs beside training: attacks, disk for weights, and how long a trial may take at most."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from orchestrator.planning.measured import MeasuredTrial
from orchestrator.planning.packing import (
    PGD_GRADIENTS,
    attack_flops,
    core_seconds,
    cost_of,
    flops,
    has_cost,
    training_flops,
    uncounted,
)
from orchestrator.planning.plan import SweepPlan
from orchestrator.planning.prices import amount
from search_spaces.trials import NetworkSpec, TrialSpec

ATTACK_BUDGET = 0.15
"""Of training: what all attacks together are meant to cost at most. The paper's grid takes 2 % by default."""
_CHEAPER = {
    "fgsm": "fewer attacks.epsilons or a smaller test_size, or more epochs",
    "pgd": f"{3 * PGD_GRADIENTS} passes per image and strength, so leave pgd out of attacks.methods, or "
    "name few attacks.epsilons, or a smaller test_size",
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
    expected = flops(trial) / min(rates) if rates else core_seconds(trial)
    return max(MIN_LIMIT_S, HANG_FACTOR * expected)


@dataclass(frozen=True)
class Extras:
    """What a plan costs beside training.

    Attributes:
        num_retrained: done trials that are trained again because their weights were not kept.
        num_measured: done trials on whose kept weights only something is measured.
        weights_bytes: disk that kept weights will take in all.
        predictions_bytes: disk that kept predictions will take in all.
        attack_shares: operations of each kind of attack over those of training, over the whole grid; empty
            where nothing is trained.
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
        if not self.attack_shares:
            return "nothing is trained"
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
    return f"{amount(num_bytes / 2**30)} GiB"


def extras(plan: SweepPlan, incomplete: Mapping[str, bool]) -> Extras:
    """Return what a plan costs beside training.

    Args:
        plan: The whole grid.
        incomplete: By id of every done trial that lacks a measurement: whether its weights are kept.
    """
    attacks: Counter[str] = Counter()
    for trial in plan.trials:
        attacks.update(attack_flops(trial))
    training = sum(training_flops(trial) for trial in plan.trials)
    return Extras(
        num_retrained=sum(not kept for kept in incomplete.values()),
        num_measured=sum(incomplete.values()),
        weights_bytes=sum(cost_of(t.network).state_bytes for t in plan.trials if plan.keeps_weights(t)),
        predictions_bytes=sum(_predictions_bytes(plan, t.network) for t in plan.trials if t.predictions),
        attack_shares={kind: spent / training for kind, spent in attacks.items() if training},
        uncounted=uncounted(plan.trials),
    )


def _predictions_bytes(plan: SweepPlan, network: NetworkSpec) -> int:
    num_columns = plan.num_outputs(network) + 2  # image and label
    return num_columns * (COLUMN_BYTES + 4 * network.subset.test_size)
