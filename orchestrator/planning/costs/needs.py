"""Predicted time of a trial on a GPU or a core, and the share of a GPU that it needs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.planning.costs.gpu_models import GpuModel
from orchestrator.planning.costs.memory import peak_bytes
from orchestrator.planning.costs.networks import cost_of
from orchestrator.planning.costs.pass_times import EAGER_INTERVAL_S, GRAPH_INTERVAL_S, pass_time
from orchestrator.planning.costs.passes import num_passes
from search_spaces.specs import TrialSpec

TRIAL_SECONDS, CORE_TRIAL_SECONDS = 3.0, 0.5
"""Building, copying, d_repr and storing, per trial beside a GPU's work or on a core: assumed."""
CORE_FLOPS = 100e9
"""Sustained rate of one core where nothing was measured (benchmarks/training_throughput.py)."""
CORE_INTERVAL_S = 30e-6
"""What one operation takes on a core beside its arithmetic: a step of 32 images of 32 pixels by
small_cnn, 52 operations and 0.12 GFLOP, takes 2.9 ms
(benchmarks/results/training_throughput_epyc.json)."""
MEMORY_MARGIN = 1.15
"""Shares are this much larger than predicted memory: a trial that asks too little ends out of
memory."""
BUSY_ENOUGH = 0.95
"""A GPU this busy gains nothing from another trial; that gaps are filled is known of processes
under MPS."""
SHARE_STEP = 100
"""Shares are multiples of a hundredth of a GPU."""


@dataclass(frozen=True)
class Corrections:
    """How far predictions were off, by model: measured over predicted, 1 where unknown.

    ``memory`` is the worst peak on any GPU; ``seconds``, on one kind of GPU, and ``core_seconds``
    medians.
    """

    memory: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    core_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GpuNeed:
    """What a trial needs of one kind of GPU: peak memory, and seconds on its share (of several on
    one).
    """

    seconds: float
    share: float
    memory_bytes: float

    @property
    def gpu_seconds(self) -> float:
        """For how long it takes a whole GPU; of several that it is given all are taken."""
        return self.seconds * self.share


def need_of(
    trial: TrialSpec,
    gpu: GpuModel,
    corrections: Corrections | None = None,
    given: float | None = None,
) -> GpuNeed:
    """Predict what ``trial`` needs of ``gpu``, corrected by what others like it were measured to
    need.

    Its share is ``given``, or for None (or 0) such that as many trials share a GPU as keep it busy
    together, fewer where memory is short.
    """
    corrections, cost, recipe = (
        corrections or Corrections(),
        cost_of(trial.network),
        trial.network.recipe,
    )
    interval = EAGER_INTERVAL_S if trial.network.model.library == "own" else GRAPH_INTERVAL_S
    times = (
        pass_time(cost.step, gpu, interval=interval, half=recipe.precision != "float32"),
        pass_time(cost.evaluation, gpu, interval=EAGER_INTERVAL_S, half=False),
        pass_time(cost.attack, gpu, interval=EAGER_INTERVAL_S, half=False),
    )
    passes = tuple(zip(num_passes(trial, cost), times, strict=True))
    alone = TRIAL_SECONDS + sum(number * part.seconds for number, part in passes)
    busy = sum(number * part.busy for number, part in passes) / alone
    name = trial.network.model.name
    memory = peak_bytes(trial.network) * corrections.memory.get(name, 1.0)
    together = max(1, math.ceil(BUSY_ENOUGH / busy))
    work = (
        math.floor(SHARE_STEP / together) / SHARE_STEP
    )  # down: a third is 0.33, three of which fit
    work = work if gpu.timed else max(work, 0.25)
    room = math.ceil(SHARE_STEP * MEMORY_MARGIN * memory / (gpu.memory_gib * 2**30)) / SHARE_STEP
    share = given or min(1.0, max(work, room, 1 / SHARE_STEP))
    seconds = alone * max(1.0, busy / min(share, 1.0))
    return GpuNeed(seconds * corrections.seconds.get(name, 1.0), share, memory)


def core_seconds(trial: TrialSpec, corrections: Corrections | None = None) -> float:
    """Predict how long a trial takes one core; a model that was not measured is off as others
    are.
    """
    cost, measured = cost_of(trial.network), corrections.core_seconds if corrections else {}
    parts = zip(num_passes(trial, cost), (cost.step, cost.evaluation, cost.attack), strict=True)
    predicted = CORE_TRIAL_SECONDS + sum(
        number * (part.flops / CORE_FLOPS + part.num_launches * CORE_INTERVAL_S)
        for number, part in parts
    )
    usual = statistics.median(measured.values()) if measured else 1.0
    return predicted * measured.get(trial.network.model.name, usual)
