"""What a design could detect: its own analysis on tables drawn in its own shape, and what a cell adds for
its cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.analysis import claims as k
from orchestrator.analysis.formats import Table
from orchestrator.analysis.simulation import Design, Truth, claim_p_values, draw
from orchestrator.analysis.text import to_text
from orchestrator.planning.plan import SweepPlan
from orchestrator.results import columns as c
from search_spaces.errors import ConfigError, unknown_name
from search_spaces.specs import ClassPair

NUM_TABLES = 400
#: What is asked of a design: the law itself, and each part of it alone.
EFFECTS = {
    "law": Truth(),
    "sharpness": Truth(exponent=0.0),
    "exponent": Truth(sharpness=0.0),
    "d_data": Truth(exponent=0.0, sharpness=0.0, d_slope=0.1),
}


def design_of(plan: SweepPlan) -> Design:
    """Return the shape of a sweep's plan: its datasets with their domains and class pairs, models and sizes.

    Every dataset is taken to have every model and size; a plan's holes make its real power a little smaller.
    A dataset without a domain counts as natural.
    """
    pairs: dict[str, set[ClassPair | None]] = {}
    for trial in plan.trials:
        subset = trial.network.subset
        pairs.setdefault(subset.prepared.dataset, set()).add(subset.class_pair)
    return Design(
        datasets=tuple(
            (name, plan.datasets[name].domain or c.NATURAL, len(found)) for name, found in pairs.items()
        ),
        models=tuple(dict.fromkeys(trial.network.model.name for trial in plan.trials)),
        train_sizes=tuple(sorted({trial.network.train_size for trial in plan.trials})),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """How often a design's headline questions are answered with a claim, if the effect is what it is said
    to be.

    ``alone`` counts p ≤ 0.05, ``adjusted`` claims that hold after Holm's adjustment; the standard error of
    each is at most ``0.5 / √num_tables``.
    """

    effect: str
    num_datasets: int
    num_trials: int
    num_tables: int
    alone: dict[str, float]
    adjusted: dict[str, float]
    gpu_hours: float | None = None

    def line(self) -> str:
        """Return one line for a plan: what is detected in at least 4 of 5 such sweeps, and what is not."""
        found = [name for name, share in self.adjusted.items() if share >= 0.8]
        missed = [f"{name} ({share:.0%})" for name, share in self.adjusted.items() if share < 0.8]
        return (
            f"If the effect is “{self.effect}”, {self.num_datasets} datasets settle: "
            f"{', '.join(found) or 'nothing'}; "
            f"not: {', '.join(missed) or 'nothing'}."
        )

    def to_text(self) -> str:
        """Return the power as plain text."""
        rows = tuple((name, f"{self.alone[name]:.0%}", f"{self.adjusted[name]:.0%}") for name in self.alone)
        cost = "" if self.gpu_hours is None else f", {self.gpu_hours:.1f} GPU-hours"
        title = f"Power for “{self.effect}”: {self.num_datasets} datasets, {self.num_trials} trials{cost}"
        error = 0.5 / self.num_tables**0.5
        note = f"Share of {self.num_tables} drawn tables; standard error at most {error:.1%}."
        return to_text(Table("power", title, note, ("question", "alone", "after Holm"), rows))


def power(
    design: Design,
    *,
    effect: str = "law",
    truth: Truth | None = None,
    num_tables: int = NUM_TABLES,
    seed: int = 0,
    gpu_hours: float | None = None,
) -> Power:
    """Simulate a design's own analysis.

    Args:
        design: its datasets, models and train sizes.
        effect: one of :data:`EFFECTS`.
        truth: the effect in full, in place of a named one.
        num_tables: tables drawn.
        seed: of the draws.
        gpu_hours: cost of the design, only carried along.

    Raises:
        ConfigError: if the effect is unknown, or the design has fewer than three datasets or no table is
        asked.
    """
    if truth is None and effect not in EFFECTS:
        raise unknown_name("effect", effect, tuple(EFFECTS))
    if len(design.datasets) < 3 or num_tables < 1:
        raise ConfigError(
            "Power needs at least 3 datasets and one table",
            f"{len(design.datasets)} datasets, {num_tables} tables",
            "add datasets to the sweep",
        )
    rng = np.random.default_rng(seed)
    alone: Counter[str] = Counter()
    adjusted: Counter[str] = Counter()
    asked: dict[str, None] = {}
    for _ in range(num_tables):
        p_values = claim_p_values(design, draw(design, truth or EFFECTS[effect], rng))
        asked |= dict.fromkeys(p_values)
        alone.update(name for name, p in p_values.items() if p <= k.LEVEL)
        adjusted.update(claim.key for claim in k.adjust(p_values) if claim.established)
    return Power(
        effect=effect,
        num_datasets=len(design.datasets),
        num_trials=len(design.layout.dataset),
        num_tables=num_tables,
        alone={name: alone[name] / num_tables for name in asked},
        adjusted={name: adjusted[name] / num_tables for name in asked},
        gpu_hours=gpu_hours,
    )


@dataclass(frozen=True, slots=True)
class Gain:
    """What an addition to a design does to the power of one question, and per GPU-hour."""

    addition: str
    question: str
    power: float
    gain: float
    gain_per_gpu_hour: float | None


def best_additions(
    design: Design,
    question: str,
    *,
    effect: str = "law",
    cost: Callable[[Design], float] | None = None,
    num_tables: int = NUM_TABLES,
    seed: int = 0,
) -> tuple[Gain, ...]:
    """Rank additions (a dataset of each domain, a larger train size, a model) by power gained per
    GPU-hour.
    """
    base = power(design, effect=effect, num_tables=num_tables, seed=seed).alone.get(question, 0.0)
    gains = []
    for name, larger in _additions(design):
        found = power(larger, effect=effect, num_tables=num_tables, seed=seed).alone.get(question, 0.0)
        extra = None if cost is None else cost(larger) - cost(design)
        gains.append(Gain(name, question, found, found - base, (found - base) / extra if extra else None))
    return tuple(
        sorted(gains, key=lambda g: -(g.gain if g.gain_per_gpu_hour is None else g.gain_per_gpu_hour))
    )


def _additions(design: Design) -> Sequence[tuple[str, Design]]:
    domains = sorted({domain for _, domain, _ in design.datasets})
    more = [
        (
            f"one {domain} dataset",
            replace(design, datasets=(*design.datasets, (f"one more {domain}", domain, 1))),
        )
        for domain in domains
    ]
    size = 4 * max(design.train_sizes)
    return [
        *more,
        (f"train size {size:,}", replace(design, train_sizes=(*design.train_sizes, size))),
        ("one model", replace(design, models=(*design.models, "one more model"))),
    ]
