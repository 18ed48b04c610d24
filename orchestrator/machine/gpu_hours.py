"""The hours that many trials take on a GPU, computed from measurements of ``isweep
gpu-check``.

The time of a trial is the sum of four measured times: training steps, evaluations, gradients
with respect to pixels, and work on the CPU. None of these times is estimated from a data
sheet.
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
"""Number of training images of the largest trial. The work on the CPU is measured with this
trial."""


@dataclass(frozen=True)
class MeasuredTimes:
    """The measured times of one GPU. Each attribute maps the name of a network to its value.

    Attributes:
        step_ms: milliseconds of a training step, with captured graphs if trials of the network
            use them.
        evaluated_per_s: images that are evaluated per second, in float32.
        gradients_per_s: images per second for which gradients with respect to pixels are
            computed, in float32.
        build_s: seconds to build a network and put its images on the GPU.
        d_repr_s: seconds to measure d_repr of :data:`FULL_SIZE` images.
    """

    step_ms: Mapping[str, float] = field(default_factory=dict)
    evaluated_per_s: Mapping[str, float] = field(default_factory=dict)
    gradients_per_s: Mapping[str, float] = field(default_factory=dict)
    build_s: Mapping[str, float] = field(default_factory=dict)
    d_repr_s: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of_parts(cls, values: Mapping[str, Any], graphs: Collection[str]) -> MeasuredTimes:
        """Return the times that the results of a GPU check contain. Networks without
        a result are left out.

        Args:
            values: measured values of the check, by part.
            graphs: names of the networks that train with captured graphs.
        """
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
        """Return the seconds of a trial that has the whole GPU. Return None if a needed time
        was not measured.
        """
        network = trial.network
        name = network.model.name
        relative = _relative(name, self.build_s)
        if relative is None or name not in self.step_ms or name not in self.evaluated_per_s:
            return None
        cost = cost_of(network)
        num_batches = batch_passes(trial, cost)
        # The time grows with the number of pairs of images.
        d_repr_s = self.d_repr_s[relative] * (network.train_size / FULL_SIZE) ** 2
        return (
            num_batches.steps * self.step_ms[name] / 1000
            + num_batches.evaluations * cost.evaluation_batch / self.evaluated_per_s[name]
            + num_batches.gradients * cost.attack_batch / self.gradients_per_s[name]
            + self.build_s[relative]
            + d_repr_s
        )


def _relative(name: str, measured: Collection[str]) -> str | None:
    """Return the name of the measured network whose times are used for a network, or None if
    there is none.

    If the network itself was measured, return its name. Otherwise return another network of
    its family, for example resnet18 for resnet50.
    """
    if name in measured:
        return name
    family = name.rstrip("0123456789")
    for relative in measured:
        if relative.startswith(family):
            return relative
    return None


def measured_hours(trials: Collection[TrialSpec], times: MeasuredTimes) -> float | None:
    """Return the hours that all trials take one after the other. Return None if a network was
    not measured.
    """
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
    """Return the name of each network with a factor: the measured time of its trials, divided
    by the predicted time.
    """
    measured: dict[str, float] = {}
    predicted: dict[str, float] = {}
    for trial in trials:
        seconds = times.seconds(trial)
        if seconds is not None:
            name = trial.network.model.name
            measured[name] = measured.get(name, 0.0) + seconds
            predicted[name] = (
                predicted.get(name, 0.0) + need_of(trial, gpu, fixed_share=1.0).seconds
            )
    return tuple((name, seconds / predicted[name]) for name, seconds in measured.items())
