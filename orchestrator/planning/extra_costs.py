"""What a plan costs besides training: attacks and disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

from orchestrator.planning.costs.networks import cost_of
from orchestrator.planning.costs.passes import attack_flops, training_flops
from orchestrator.planning.plan import SweepPlan

# What a plan costs beside training: attacks and disk.

COLUMN_BYTES = 650
"""Of a Parquet file's column beside its values: measured, 520 to 670 at 20 to 750 images."""


def extras(plan: SweepPlan, incomplete: Collection[bool]) -> dict[str, Any]:
    """Return what a plan costs beside training: of done trials, on disk, by attacks over training.

    ``incomplete`` says of every done trial that lacks a measurement whether its weights are kept:
    it is only measured then, else trained again. Costs of ``uncounted`` networks are guessed, and
    why.
    """
    attacks: Counter[str] = Counter()
    for trial in plan.trials:
        attacks.update(attack_flops(trial))
    training = sum(training_flops(trial) for trial in plan.trials)
    costs = {trial.network.model.name: cost_of(trial.network) for trial in plan.trials}

    # A column per logit, and image and label.
    predictions = [
        (plan.num_outputs(t.network) + 2) * (COLUMN_BYTES + 4 * t.network.subset.test_size)
        for t in plan.trials
        if t.predictions
    ]
    return {
        "num_retrained": sum(not kept for kept in incomplete),
        "num_measured": sum(incomplete),
        "weights_bytes": sum(
            cost_of(t.network).state_bytes for t in plan.trials if plan.keeps_weights(t)
        ),
        "predictions_bytes": sum(predictions),
        "attack_shares": {kind: spent / training for kind, spent in attacks.items() if training},
        "uncounted": {name: cost.uncounted for name, cost in costs.items() if cost.uncounted},
    }
