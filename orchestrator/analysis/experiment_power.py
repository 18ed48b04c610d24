"""What an experiment that moves one property could detect: its own analysis on drawn worlds of its own shape.

Shape letters: W worlds, a arms, m models, s train sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.analysis.clusters import mean_interval
from orchestrator.analysis.formats import Table
from orchestrator.analysis.intervention_records import Arm
from orchestrator.analysis.interventions import MOVED
from orchestrator.analysis.regression import Array
from search_spaces.errors import ConfigError

#: Δ log loss / Δ log K_F of the effects that can be asked for; "exponent" and "d_data" leave it at 0.
SLOPES = {"law": 1.0, "sharpness": 1.0, "exponent": 0.0, "d_data": 0.0}
#: Spread of the slope between worlds, as in the first experiment that was run, and of single trainings in log
#: loss, as in the published residuals.
WORLD_STD, TRIAL_STD = 0.8, 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentPower:
    """How often an experiment tells a slope of log loss on log K_F from 0, and from the law's 1.

    ``half_width`` is the median half width of the slope's 95 % interval.
    """

    effect: str
    slope: float
    num_worlds: int
    num_tables: int
    from_none: float
    from_law: float
    half_width: float

    def line(self) -> str:
        """Return one line for a plan."""
        return (
            f"Power, if losses follow K_F with slope {self.slope:g}: {self.num_worlds} worlds in which only "
            f"K_F is moved tell it from 0 in {self.from_none:.0%}, from the law's 1 in {self.from_law:.0%} "
            f"of such experiments (interval about ±{self.half_width:.2f})."
        )

    def tables(self) -> list[Table]:
        """Return the power as a table."""
        error = 0.5 / self.num_tables**0.5
        note = (
            f"Share of {self.num_tables} drawn experiments; standard error at most {error:.1%}. Every arm "
            f"moves K_F by a factor 2, the least that counts; slopes of worlds spread by {WORLD_STD:g}, "
            f"single trainings by {TRIAL_STD:g} in log loss."
        )
        rows = (("from 0", f"{self.from_none:.0%}"), ("from the law's 1", f"{self.from_law:.0%}"))
        title = f"Power for a slope of {self.slope:g} of log loss on log K_F: {self.num_worlds} worlds"
        return [Table("power-experiment", title, note, ("told", "share"), rows, numeric_from=1)]


def experiment_power(
    arms: Sequence[Arm],
    *,
    num_models: int,
    num_sizes: int,
    effect: str = "law",
    num_tables: int = 200,
    seed: int = 0,
) -> ExperimentPower:
    """Simulate the analysis of an experiment: worlds as replicates, every arm against its world's base.

    Args:
        arms: all datasets of the experiment.
        num_models: networks trained on each.
        num_sizes: train sizes of each.
        effect: one of :data:`SLOPES`.
        num_tables: experiments drawn.
        seed: of the draws.

    Raises:
        ConfigError: if fewer than three worlds have an arm that moves K_F, since worlds are the replicates.
    """
    per_world: dict[str, int] = {}
    for arm in arms:
        if arm.moves == "sharpness":
            per_world[arm.world] = per_world.get(arm.world, 0) + 1
    if len(per_world) < 3:
        raise ConfigError(
            "An experiment needs at least 3 worlds in which K_F is moved",
            f"{len(per_world)}",
            "add worlds to the sweep",
        )
    rng = np.random.default_rng(seed)
    counts = np.array([per_world[name] for name in sorted(per_world)])
    widths, none, law = [], 0, 0
    for _ in range(num_tables):
        _, bounds = mean_interval(drawn_slopes(counts, num_models * num_sizes, SLOPES[effect], rng))
        low, high = bounds or (-np.inf, np.inf)
        none += not low <= 0 <= high
        law += not low <= 1 <= high
        widths.append((high - low) / 2)
    return ExperimentPower(
        effect=effect,
        slope=SLOPES[effect],
        num_worlds=len(counts),
        num_tables=num_tables,
        from_none=none / num_tables,
        from_law=law / num_tables,
        half_width=float(np.median(widths)),
    )


def drawn_slopes(num_arms: Array, num_cells: int, slope: float, rng: np.random.Generator) -> Array:
    """Draw what one experiment finds in every world (W,): the mean over its arms of Δ log loss / Δ log K_F.

    Args:
        num_arms: (W,) of each world.
        num_cells: pairs of a model and a train size.
        slope: mean over worlds.
        rng: of the draws.
    """
    found = []
    for num in num_arms:
        own = rng.normal(slope, WORLD_STD)
        base = rng.normal(0, TRIAL_STD, num_cells)
        changes = own * MOVED + rng.normal(0, TRIAL_STD, (num, num_cells)) - base
        found.append(float(changes.mean() / MOVED))
    return np.array(found)
