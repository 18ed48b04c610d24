"""What the stored results of a sweep cost, and what using them again has saved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.planning.measured import MeasuredTrial
from orchestrator.planning.prices import Prices, amount
from orchestrator.results.state import State

JOULES_PER_KILOWATT_HOUR = 3.6e6


@dataclass(frozen=True)
class Cost:
    """Of trials that have a result; failed attempts leave no times, so they are not in it.

    Attributes:
        gpu_hours: Hours of whole cards: time times share.
        core_hours: Hours of CPU cores of the trials that ran without a card.
        dollars: At the table's prices.
        kilowatt_hours: At the table's draw.
        saved_gpu_hours: Of training that was not repeated when more was measured on kept networks.
        saved_core_hours: Likewise.
        networks_used_again: How many those were.
        measures: Stored measures, each made once.
        trials_per_measure: Trials that read them, per measure.
        prices: Where prices and draw are from.
    """

    gpu_hours: float
    core_hours: float
    dollars: float
    kilowatt_hours: float
    saved_gpu_hours: float
    saved_core_hours: float
    networks_used_again: int
    measures: int
    trials_per_measure: float
    prices: str

    def text(self) -> str:
        """Say it in a line."""
        parts = [
            f"cost so far {_hours(self.gpu_hours, self.core_hours)}: {amount(self.dollars)} $, "
            f"{amount(self.kilowatt_hours)} kWh ({self.prices})"
        ]
        if self.networks_used_again:
            saved = _hours(self.saved_gpu_hours, self.saved_core_hours)
            parts.append(
                f"{self.networks_used_again} kept networks measured again, not trained: {saved} saved"
            )
        if self.measures:
            parts.append(f"each measure made once for {self.trials_per_measure:.3g} trials")
        return "; ".join(parts)


def cost_of(state: State, prices: Prices) -> Cost:
    """Add up the trials of a sweep that have a result."""
    again = {trial_id for trial_id, outline in state.results.items() if outline.measured_at is not None}
    gpu, core = _unit_hours(state.measured_trials())
    saved_gpu, saved_core = _unit_hours(state.measured_trials(again))
    joules = 3600 * (gpu * prices.card.watts + core * prices.core.watts)
    num_measures = len(state.measures)
    return Cost(
        gpu_hours=gpu,
        core_hours=core,
        dollars=gpu * prices.card.dollars + core * prices.core.dollars,
        kilowatt_hours=joules / JOULES_PER_KILOWATT_HOUR,
        saved_gpu_hours=saved_gpu,
        saved_core_hours=saved_core,
        networks_used_again=len(again),
        measures=num_measures,
        trials_per_measure=len(state.results) / num_measures if num_measures else 0.0,
        prices=prices.origin,
    )


def _unit_hours(trials: Iterable[MeasuredTrial]) -> tuple[float, float]:
    """Return hours of cards and of cores."""
    hours = {True: 0.0, False: 0.0}
    for trial in trials:
        hours[trial.on_gpu] += trial.seconds * trial.share / 3600
    return hours[True], hours[False]


def _hours(gpu: float, core: float) -> str:
    parts = [f"{amount(gpu)} GPU-hours"] * bool(gpu) + [f"{amount(core)} core-hours"] * bool(core or not gpu)
    return " and ".join(parts)
