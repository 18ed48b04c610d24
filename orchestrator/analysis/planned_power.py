"""What a planned sweep could detect and at what cost: its headline questions, and its experiment if any."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from orchestrator.analysis.experiment_power import ExperimentPower, experiment_power
from orchestrator.analysis.formats import Table
from orchestrator.analysis.intervention_records import Arm
from orchestrator.analysis.power import QUESTIONS, Power, best_additions, card_hours, design_of, power
from orchestrator.planning.plan import SweepPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPower:
    """Power of a plan for the headline questions, and of its experiment, None where it has none."""

    headline: Power
    experiment: ExperimentPower | None

    def lines(self) -> list[str]:
        """Return a line for each."""
        return [*([self.experiment.line()] if self.experiment else []), self.headline.line()]

    def tables(self) -> list[Table]:
        """Return the tables of each."""
        return [*(self.experiment.tables() if self.experiment else []), *self.headline.tables()]

    def to_json(self) -> dict[str, Any]:
        """Return what ``isweep power --json`` prints."""
        moved = None if self.experiment is None else asdict(self.experiment)
        return {**asdict(self.headline), "experiment": moved}


def planned_power(
    plan: SweepPlan, *, effect: str = "law", num_tables: int = 200, seed: int = 0, additions: bool = False
) -> PlannedPower:
    """Simulate the analysis of a plan.

    Args:
        plan: the sweep.
        effect: see :data:`orchestrator.analysis.power.EFFECTS`.
        num_tables: tables drawn.
        seed: of the draws.
        additions: whether to rank what could be added to the design.

    Raises:
        ConfigError: if the effect is unknown, or there are fewer than three datasets, or fewer than three
            worlds of an experiment.
    """
    design, cost = design_of(plan), card_hours(plan)
    found = power(design, effect=effect, num_tables=num_tables, seed=seed, gpu_hours=cost(design))
    asked = [question for question in QUESTIONS[effect] if question in found.alone]
    if additions and asked:
        gains = best_additions(design, asked[0], effect=effect, cost=cost, num_tables=num_tables, seed=seed)
        found = replace(found, additions=gains)
    made = plan.sweep.experiment
    if not made:
        return PlannedPower(headline=found, experiment=None)
    arms = tuple(Arm(arm.dataset, arm.world, arm.moves, arm.name) for arm in made)
    moved = experiment_power(
        arms, num_models=len(design.models), num_sizes=len(design.train_sizes), effect=effect,
        num_tables=num_tables, seed=seed,
    )  # fmt: skip
    return PlannedPower(headline=found, experiment=moved)
