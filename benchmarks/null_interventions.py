"""Rates of false and of true conclusions of the rules for interventions on training images.

The slope of log loss on log K_F of each world is drawn. It is the sum of the true slope, of scatter
between worlds, and of scatter between networks. A part of the scatter between worlds belongs to the
digits of a world. The scatter between networks is that between two seeds of the first sweeps. Then
the product's rules are applied to the 115 worlds of ``interventions-training`` and
``interventions-digits-training``. ``python benchmarks/null_interventions.py`` prints
``benchmarks/results/interventions_training_drawn.json``.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter

import numpy as np

from orchestrator.analysis.experiments.interventions import judged
from orchestrator.analysis.experiments.records import Effect
from orchestrator.planning.sweep_file import load_sweep

SWEEPS = ("interventions-training", "interventions-digits-training")
NUM_PAIRS = 6
"""Networks times train sizes of a world; each is one pair of a condition and its base."""
NETWORK_STD = 0.14
"""Standard deviation of a log loss over seeds, of the first sweeps' trainings (median)."""
LOG_K_F_MOVED = 1.4
"""Change of log K_F by a condition that passed the gate (median of the first sweeps)."""
DIGIT_SHARE = 0.25
"""Share of the variance between worlds that belongs to the two digits of a world."""
NUM_COUNTED = 94
"""Worlds whose condition passes the gate, of 115, as in the first sweeps."""


def shown_digits() -> dict[str, tuple[str, ...]]:
    """Return the digits of each world of both sweeps; none for worlds of other images."""
    return {
        arm.base_name: arm.images.digit_classes
        for name in SWEEPS
        for arm in load_sweep(name).list_experiment_datasets()
        if arm.target == "base"
    }


def drawn(
    shows: dict[str, tuple[str, ...]], slope: float, scatter: float, rng: np.random.Generator
) -> Effect:
    """Draw the slopes of the worlds that count, and apply the rules to their mean."""
    digits = rng.normal(0, scatter * np.sqrt(DIGIT_SHARE / 2), 10)
    of_networks = NETWORK_STD * np.sqrt(2 / NUM_PAIRS) / LOG_K_F_MOVED
    counted = rng.choice(sorted(shows), NUM_COUNTED, replace=False).tolist()
    by_world = {}
    for world in counted:
        of_digits = sum(float(digits[int(name)]) for name in shows[world])
        of_world = rng.normal(0, scatter * np.sqrt(1 - DIGIT_SHARE if shows[world] else 1.0))
        by_world[world] = slope + of_digits + of_world + rng.normal(0, of_networks)
    blank = Effect(
        estimand="Δ log loss / Δ log K_F",
        response="loss",
        arm="",
        theory=1.0,
        num_worlds=len(by_world),
        by_world=by_world,
    )
    return judged(blank, shows)


def conclusions(slope: float, scatter: float, num_tables: int, seed: int = 0) -> dict[str, float]:
    """Return the share of tables with each conclusion for a given true slope."""
    rng, shows = (
        np.random.default_rng([seed, round(100 * slope), round(100 * scatter)]),
        shown_digits(),
    )
    counts: Counter[str] = Counter()
    half_widths = []
    for _ in range(num_tables):
        effect = drawn(shows, slope, scatter, rng)
        assert effect.interval is not None
        low, high = effect.interval
        half_widths.append((high - low) / 2)
        counts["told from 0"] += effect.told_from_zero
        counts["smaller than half the law's rate"] += effect.smaller_than_half
        counts["undecided"] += not (effect.told_from_zero or effect.smaller_than_half)
        counts["interval leaves the true slope out"] += not low <= slope <= high
    shares = {name: count / num_tables for name, count in sorted(counts.items())}
    return {
        "slope": slope,
        "scatter": scatter,
        "half width": float(np.median(half_widths)),
    } | shares


def main() -> None:
    """Print the shares as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-tables", type=int, default=4000)
    num_tables = parser.parse_args().num_tables
    result = [
        conclusions(slope, scatter, num_tables)
        for scatter in (0.5, 0.9)
        for slope in (0.0, 0.2, 0.35, 0.5, 1.0)
    ]
    print(json.dumps({"tables": num_tables, "drawn": result}, indent=1))


if __name__ == "__main__":
    main()
