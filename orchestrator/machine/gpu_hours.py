"""The hours of a grid of trials, as the sum of what a GPU check measured.

A trial takes its training steps, its images forward, its images forward and back to the pixels, and
what the CPU does beside them. Each is a measured time; nothing is scaled from a data sheet.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.planning.costs.gpu_models import GpuModel
from orchestrator.planning.costs.needs import need_of
from orchestrator.planning.costs.networks import cost_of
from orchestrator.planning.costs.passes import batch_passes
from search_spaces.specs import TrialSpec

FULL_SIZE = 1750
"""Training images of the largest trial, with which the CPU's part is measured."""


@dataclass(frozen=True)
class MeasuredTimes:
    """Times of each network on one GPU, by the network's name.

    Attributes:
        step_ms: milliseconds of a training step, on the path that trials take.
        evaluated_per_s: images per second forward, in float32.
        gradients_per_s: images per second forward and back to the pixels, in float32.
        build_s: seconds to build a network and put its images on the GPU.
        d_repr_s: seconds to measure the representation's dimension of :data:`FULL_SIZE` images.
    """

    step_ms: Mapping[str, float] = field(default_factory=dict)
    evaluated_per_s: Mapping[str, float] = field(default_factory=dict)
    gradients_per_s: Mapping[str, float] = field(default_factory=dict)
    build_s: Mapping[str, float] = field(default_factory=dict)
    d_repr_s: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of_parts(cls, values: Mapping[str, Any], graphs: Collection[str]) -> MeasuredTimes:
        """Return the times that the parts of a check measured, by part; missing ones are absent."""
        steps = {}
        for model, row in values.get("step_times", {}).items():
            key = "graph_ms" if model in graphs else "eager_ms"
            if key in row:
                steps[model] = float(row[key])
        passes = values.get("passes", {})
        largest = {}
        for model, rows in values.get("trial", {}).items():
            largest[model] = max(rows, key=lambda row: row["train_size"])
        d_repr = {}
        for model, row in largest.items():
            seconds = float(row["timings"].get("d_repr") or 0.0)
            d_repr[model] = seconds * (FULL_SIZE / row["train_size"]) ** 2
        build = {name: float(row["timings"]["build"]) for name, row in largest.items()}
        return cls(
            step_ms=steps,
            evaluated_per_s={name: row["evaluate_16"] for name, row in passes.items()},
            gradients_per_s={name: row["fgsm"] for name, row in passes.items()},
            build_s=build,
            d_repr_s=d_repr,
        )

    def seconds(self, trial: TrialSpec) -> float | None:
        """Return the seconds of a trial alone on the GPU; None if a time is missing."""
        network = trial.network
        name = network.model.name
        relative = _relative(name, self.build_s)
        if relative is None or name not in self.step_ms or name not in self.evaluated_per_s:
            return None
        cost = cost_of(network)
        num_batches = batch_passes(trial, cost)
        # Distances between all pairs of images.
        d_repr_s = self.d_repr_s[relative] * (network.train_size / FULL_SIZE) ** 2
        return (
            num_batches.steps * self.step_ms[name] / 1000
            + num_batches.evaluations * cost.evaluation_batch / self.evaluated_per_s[name]
            + num_batches.gradients * cost.attack_batch / self.gradients_per_s[name]
            + self.build_s[relative]
            + d_repr_s
        )


def _relative(name: str, measured: Collection[str]) -> str | None:
    """Return the measured network that stands for another one: itself, or one of its family."""
    if name in measured:
        return name
    family = name.rstrip("0123456789")
    for relative in measured:
        if relative.startswith(family):
            return relative
    return None


def measured_hours(trials: Collection[TrialSpec], times: MeasuredTimes) -> float | None:
    """Return the hours of all trials, one after the other; None if a network was not measured."""
    seconds = []
    for trial in trials:
        trial_s = times.seconds(trial)
        if trial_s is None or not math.isfinite(trial_s):
            return None
        seconds.append(trial_s)
    return sum(seconds) / 3600


def network_factors(
    trials: Collection[TrialSpec], times: MeasuredTimes, gpu: GpuModel
) -> tuple[tuple[str, float], ...]:
    """Return the measured over the predicted time of all trials of each network, by its name."""
    measured: dict[str, float] = {}
    predicted: dict[str, float] = {}
    for trial in trials:
        seconds = times.seconds(trial)
        if seconds is not None:
            name = trial.network.model.name
            measured[name] = measured.get(name, 0.0) + seconds
            predicted[name] = predicted.get(name, 0.0) + need_of(trial, gpu, given=1.0).seconds
    return tuple((name, seconds / predicted[name]) for name, seconds in measured.items())
