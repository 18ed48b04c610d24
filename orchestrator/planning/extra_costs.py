"""Costs of a plan besides training: attacks and disk space."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

from orchestrator.planning.costs.networks import cost_of
from orchestrator.planning.costs.passes import attack_flops, training_flops
from orchestrator.planning.plan import SweepPlan

COLUMN_BYTES = 650
"""Number of bytes that a Parquet column needs besides its values. We measured 520 to 670 bytes
for 20 to 750 images."""
VALUE_BYTES = 4
"""Number of bytes of a stored prediction, of a label and of a row number."""


def extras(plan: SweepPlan, incomplete: Collection[bool]) -> dict[str, Any]:
    """Estimate the costs of a plan besides training.

    Args:
        plan: The plan.
        incomplete: One value for every finished trial that lacks a measurement. True: the
            weights are stored, so isweep only measures the trial again. False: isweep must
            train the trial again.

    Returns:
        A document for ``isweep plan --json``. ``attack_shares`` contains, for each kind of
        attack, its operations divided by the operations of training. ``uncounted`` contains
        each model whose costs are guessed, with the reason.
    """
    attacks: Counter[str] = Counter()
    training = 0.0
    weights_bytes = 0
    predictions_bytes = 0
    uncounted: dict[str, str] = {}
    for trial in plan.trials:
        network = trial.network
        cost = cost_of(network)
        training += training_flops(trial)
        attacks.update(attack_flops(trial))
        if plan.keeps_weights(trial):
            weights_bytes += cost.state_bytes
        if trial.predictions:
            num_columns = plan.num_outputs(network) + 2  # logits, row number and label
            values_bytes = VALUE_BYTES * network.subset.test_size
            predictions_bytes += num_columns * (COLUMN_BYTES + values_bytes)
        if cost.uncounted:
            uncounted[network.model.name] = cost.uncounted
    attack_shares: dict[str, float] = {}
    if training:
        for kind, flops in attacks.items():
            attack_shares[kind] = flops / training
    return {
        "num_retrained": len(incomplete) - sum(incomplete),
        "num_measured": sum(incomplete),
        "weights_bytes": weights_bytes,
        "predictions_bytes": predictions_bytes,
        "attack_shares": attack_shares,
        "uncounted": uncounted,
    }
