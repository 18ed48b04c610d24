"""How many threads a trial should have on CPUs: what measured trials say of each number, and nothing else.

Another number of threads adds in another order, so it is told and never chosen (docs/decisions/0013).
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping

from orchestrator.planning.measured import MeasuredTrial
from orchestrator.planning.packing import flops, has_cost
from orchestrator.planning.prices import amount
from orchestrator.planning.simulate import Job, longest_first, replay
from search_spaces.trials import TrialSpec

Rates = Mapping[str, Mapping[int, float]]
"""Operations per second of a trial, by model and its number of threads."""


def hours_by_threads(
    left: Collection[TrialSpec], measured_trials: Iterable[MeasuredTrial], num_cores: int
) -> dict[int, float]:
    """Return how long ``left`` takes on one machine by threads of a trial, for each number that was measured.

    As many trials run at once as the machine has threads for, the longest first. Of a network that was not
    measured with a number of threads it is taken that it gains what others gain, in the median.

    Args:
        left: Trials to do.
        measured_trials: What done trials cost.
        num_cores: Of the machine.

    Returns:
        Nothing where no network was measured with two numbers of threads: then there is nothing to compare.
    """
    rates = _rates(measured_trials)
    gains = _gains(rates)
    choices = [threads for threads in sorted(gains) if threads <= num_cores]
    if not left or len(choices) < 2:
        return {}
    comparable = {model: found for model, found in rates.items() if found.keys() & gains.keys()}
    hours = {}
    for threads in choices:
        known = {model: _rate(found, gains, threads) for model, found in comparable.items()}
        usual = statistics.median(known.values())
        jobs = [
            Job(
                trial.trial_id, flops(trial) / known.get(trial.network.model.name, usual), threads / num_cores
            )
            for trial in left
        ]
        hours[threads] = replay(longest_first(jobs), 1).makespan / 3600
    return hours


def threads_text(hours: Mapping[int, float], num_cores: int) -> str:
    """Say it in a line; nothing where there is no choice."""
    said = ", ".join(f"{amount(hours[threads])} h with {threads}" for threads in sorted(hours))
    best = min(hours, key=lambda threads: hours[threads], default=0)
    return (
        f"on {num_cores} cores, by measured threads of a trial: {said}; "
        f"resources.num_cpus: {best} ends first, with other last digits in results"
        if hours
        else ""
    )


def _rates(measured_trials: Iterable[MeasuredTrial]) -> dict[str, dict[int, float]]:
    seen: dict[tuple[str, int], list[float]] = {}
    for trial in measured_trials:
        network = trial.spec.network
        if not trial.on_gpu and trial.seconds > 0 and network.recipe.epochs and has_cost(network):
            key = (network.model.name, int(trial.share))
            seen.setdefault(key, []).append(flops(trial.spec) / trial.seconds)
    rates: dict[str, dict[int, float]] = {}
    for (model, threads), found in seen.items():
        rates.setdefault(model, {})[threads] = statistics.median(found)
    return rates


def _gains(rates: Rates) -> dict[int, float]:
    """Return by number of threads how much faster a trial is than with the fewest that were measured."""
    numbers = {threads for found in rates.values() for threads in found}
    fewest = min(numbers, default=0)
    ratios = {
        threads: [
            found[threads] / found[fewest] for found in rates.values() if {threads, fewest} <= found.keys()
        ]
        for threads in numbers
    }
    return {threads: statistics.median(found) for threads, found in ratios.items() if found}


def _rate(found: Mapping[int, float], gains: Mapping[int, float], threads: int) -> float:
    """Return the rate of one network, measured or from what it was measured with."""
    if threads in found:
        return found[threads]
    return statistics.median(
        rate * gains[threads] / gains[other] for other, rate in found.items() if other in gains
    )
