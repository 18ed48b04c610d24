"""Predict the time of a trial on a GPU or a CPU core, and the share of a GPU that it needs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.planning.costs.gpu_models import GpuModel
from orchestrator.planning.costs.kernels import PassCost
from orchestrator.planning.costs.memory import peak_bytes
from orchestrator.planning.costs.networks import cost_of
from orchestrator.planning.costs.pass_times import (
    EAGER_INTERVAL_S,
    GRAPH_INTERVAL_S,
    PassTime,
    pass_time,
)
from orchestrator.planning.costs.passes import batch_passes
from search_spaces.specs import TrialSpec
from tasks.trials.records import CONTEXT_BYTES

TRIAL_SECONDS = 3.0
"""Seconds that a trial needs besides its passes, for example to build the network, to copy
images, to measure d_repr and to store the result. This number is assumed, not measured."""
CORE_TRIAL_SECONDS = 0.5
"""Seconds that a trial on a CPU core needs besides its passes. This number is assumed, not
measured."""
CORE_FLOPS = 100e9
"""Number of arithmetic operations per second of one CPU core. It is used for models that were
not measured (benchmarks/training_throughput.py)."""
CORE_INTERVAL_S = 30e-6
"""Seconds that one operation on a CPU core needs besides its arithmetic. A step of small_cnn
on 32 images of 32 x 32 pixels has 52 operations and 0.12 GFLOP, and takes 2.9 ms
(benchmarks/results/training_throughput_epyc.json)."""
MEMORY_MARGIN = 1.15
"""Factor by which the memory of a trial's share is larger than the predicted memory. If a
share is too small, its trial runs out of memory."""
BUSY_ENOUGH = 0.95
"""Fraction of the time in which a GPU computes. If the fraction is this large, one more trial
on the GPU gains nothing. Only under MPS, a second process certainly uses the idle time of the
first process."""
SHARE_STEP = 100
"""Number of steps into which a GPU is divided: the share of a trial is a multiple of 1/100 of
a GPU."""
MIN_UNTIMED_SHARE = 0.25
"""Smallest share of a trial on a kind of GPU on which isweep cannot predict times."""


@dataclass(frozen=True)
class Corrections:
    """Measured values divided by predicted values, by the name of the model.

    Attributes:
        memory: Largest ratio of peak memory among the finished trials of a model, on any GPU.
            If a model is not listed, its ratio is 1.
        seconds: Median ratio of seconds among the finished trials of a model, on one kind of
            GPU. If a model is not listed, its ratio is 1.
        core_seconds: Median ratio of seconds among the finished trials of a model, on a CPU
            core. If a model is not listed, its ratio is the median over the listed models.
    """

    memory: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    core_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GpuNeed:
    """Predicted time, share and memory of a trial on one kind of GPU.

    Attributes:
        seconds: Seconds that the trial takes on its share of the GPU.
        share: Share of a GPU, above 0. A whole number above 1 means several GPUs.
        memory_bytes: Peak memory, bytes.
    """

    seconds: float
    share: float
    memory_bytes: float

    @property
    def gpu_seconds(self) -> float:
        """GPU time of the trial, in seconds of one whole GPU: seconds times share."""
        return self.seconds * self.share


@dataclass(frozen=True)
class _TimedPasses:
    """A number of equal passes, and the predicted time of one pass."""

    number: float
    time: PassTime


def need_of(
    trial: TrialSpec,
    gpu: GpuModel,
    corrections: Corrections | None = None,
    fixed_share: float | None = None,
) -> GpuNeed:
    """Predict the time, share and memory of a trial on a kind of GPU.

    Args:
        trial: The trial.
        gpu: The kind of GPU.
        corrections: Ratios of measured to predicted values of finished trials.
        fixed_share: Share of a GPU that the trial gets. If it is None or 0, :func:`_share`
            predicts the share.
    """
    corrections = corrections or Corrections()
    passes = _timed_passes(trial, gpu)
    alone_s = TRIAL_SECONDS + sum(part.number * part.time.seconds for part in passes)
    busy = sum(part.number * part.time.busy for part in passes) / alone_s
    name = trial.network.model.name
    memory = peak_bytes(trial.network) * corrections.memory.get(name, 1.0)
    # The predicted peak includes CONTEXT_BYTES for the CUDA context. Replace this number by
    # the context of this GPU.
    memory += gpu.context_bytes - CONTEXT_BYTES
    share = fixed_share or _share(gpu, busy, memory)
    seconds = alone_s * max(1.0, busy / min(share, 1.0)) * gpu.time_factor(name)
    return GpuNeed(seconds * corrections.seconds.get(name, 1.0), share, memory)


def _timed_passes(trial: TrialSpec, gpu: GpuModel) -> tuple[_TimedPasses, ...]:
    """Return the passes of a trial with their predicted times on a GPU."""
    cost = cost_of(trial.network)
    numbers = batch_passes(trial, cost)
    # isweep does not capture the training steps of your own networks as CUDA graphs.
    is_captured = trial.network.model.library != "own"
    step_interval = GRAPH_INTERVAL_S if is_captured else EAGER_INTERVAL_S
    is_half = trial.network.recipe.precision != "float32"
    step_time = pass_time(cost.step, gpu, interval=step_interval, half=is_half)

    def eager(part: PassCost) -> PassTime:
        return pass_time(part, gpu, interval=EAGER_INTERVAL_S, half=False)

    return (
        _TimedPasses(numbers.steps, step_time),
        _TimedPasses(numbers.evaluations, eager(cost.evaluation)),
        _TimedPasses(numbers.gradients, eager(cost.attack)),
    )


def _share(gpu: GpuModel, busy: float, memory: float) -> float:
    """Return the share of a GPU that a trial needs for its memory and its work.

    If n such trials together keep a GPU busy, each trial needs 1/n of the GPU for its work.

    Args:
        gpu: The kind of GPU.
        busy: Fraction of the trial's time in which the GPU computes, if the trial has a whole
        GPU.
        memory: Peak memory of the trial, bytes.
    """
    num_together = max(1, math.ceil(BUSY_ENOUGH / busy))
    # The share is rounded down: a third becomes 0.33, so that three trials fit on a GPU.
    for_work = math.floor(SHARE_STEP / num_together) / SHARE_STEP
    if not gpu.timed:
        for_work = max(for_work, MIN_UNTIMED_SHARE)
    gpu_bytes = gpu.memory_gib * 2**30
    for_memory = math.ceil(SHARE_STEP * MEMORY_MARGIN * memory / gpu_bytes) / SHARE_STEP
    return min(1.0, max(for_work, for_memory, 1 / SHARE_STEP))


def core_seconds(trial: TrialSpec, corrections: Corrections | None = None) -> float:
    """Predict the seconds of a trial on one CPU core.

    If a model has no correction, isweep uses the median correction of the other models.
    """
    cost = cost_of(trial.network)
    numbers = batch_passes(trial, cost)
    predicted = CORE_TRIAL_SECONDS + (
        numbers.steps * _core_pass_seconds(cost.step)
        + numbers.evaluations * _core_pass_seconds(cost.evaluation)
        + numbers.gradients * _core_pass_seconds(cost.attack)
    )
    measured = corrections.core_seconds if corrections else {}
    usual = statistics.median(measured.values()) if measured else 1.0
    return predicted * measured.get(trial.network.model.name, usual)


def _core_pass_seconds(part: PassCost) -> float:
    return part.flops / CORE_FLOPS + part.num_launches * CORE_INTERVAL_S
