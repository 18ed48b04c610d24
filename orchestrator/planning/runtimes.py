"""Expected run time of trials, corrected by the run times of finished trials."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from orchestrator.planning.costs.gpu_models import GpuModel, listed_gpu_model
from orchestrator.planning.costs.memory import peak_bytes
from orchestrator.planning.costs.needs import Corrections, core_seconds, need_of
from orchestrator.planning.costs.networks import is_counted
from search_spaces.errors import SweepError
from search_spaces.specs import TrialSpec
from tasks.trials.records import CONTEXT_BYTES

HANG_FACTOR = 20
"""If a trial takes longer than this many times its expected seconds, it counts as hung. The
factor is large because other programs may slow a machine down."""
UNTIMED_FACTOR = 5
"""Factor by which isweep multiplies the expected seconds if it cannot predict times on this
kind of GPU."""
MIN_LIMIT_S = 600.0
"""Smallest number of seconds after which a trial counts as hung. It includes the time before
the first epoch, in which the trial loads libraries and arrays and starts the GPU."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeasuredTrial:
    """Time and memory of a finished trial.

    Attributes:
        spec: The trial.
        on_gpu: True if the trial ran on a GPU.
        share: Share of a GPU that the trial had. On a CPU, its number of threads.
        seconds: Wall time, seconds.
        gpu: Name of the GPU, as the driver reports it.
        peak_bytes: Peak memory without the CUDA context, in bytes. 0 if it is unknown.
    """

    spec: TrialSpec
    on_gpu: bool
    share: float
    seconds: float
    gpu: str = ""
    peak_bytes: int = 0


def corrections_for(gpu: GpuModel | None, trials: Iterable[MeasuredTrial]) -> Corrections:
    """Return the ratios of measured to predicted values of finished trials, by model.

    Args:
        gpu: Kind of GPU on which times are compared. If it is None, only times on CPU cores
            are compared.
        trials: Finished trials on any machine.
    """
    memory: dict[str, float] = {}
    seconds: dict[str, list[float]] = {}
    seconds_on_cores: dict[str, list[float]] = {}
    for trial in trials:
        network = trial.spec.network
        name = network.model.name
        if not is_counted(network):
            continue
        if trial.peak_bytes and trial.on_gpu:
            ratio = (CONTEXT_BYTES + trial.peak_bytes) / peak_bytes(network)
            memory[name] = max(ratio, memory.get(name, 0.0))
        if not network.recipe.epochs or trial.seconds <= 0:
            continue
        if not trial.on_gpu:
            ratio = trial.seconds * trial.share / core_seconds(trial.spec)
            seconds_on_cores.setdefault(name, []).append(ratio)
        elif gpu is not None and _is_model(trial.gpu, gpu):
            ratio = trial.seconds / need_of(trial.spec, gpu, fixed_share=trial.share).seconds
            seconds.setdefault(name, []).append(ratio)
    return Corrections(memory, _medians(seconds), _medians(seconds_on_cores))


def _is_model(name: str, gpu: GpuModel) -> bool:
    """Return whether ``name`` is a name that a GPU's driver uses for this kind of GPU."""
    like = listed_gpu_model(name)
    # If a GPU is a MIG slice or is not in the table, a plan uses the name that its driver
    # reports.
    return gpu.name == (name if like is None else like.name)


def _medians(ratios: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in ratios.items()}


@dataclass(frozen=True)
class RuntimeModel:
    """Model of the run time of trials on a GPU or on CPUs, corrected by finished trials.

    Attributes:
        gpu: The kind of GPU. None means CPUs.
        corrections: Ratios of measured to predicted values on this GPU or on CPUs.
        share: Share of a GPU that every trial gets. If it is None, each trial gets the share
            that it needs by prediction.
        share_without_mps: Value of ``share`` if a run stops using NVIDIA's MPS.
    """

    gpu: GpuModel | None = None
    corrections: Corrections = field(default_factory=Corrections)
    share: float | None = None
    share_without_mps: float | None = None

    def seconds(self, trial: TrialSpec) -> float:
        """Return the expected seconds of a trial on its share of a GPU, or on a CPU core."""
        if self.gpu is None:
            return core_seconds(trial, self.corrections)
        return need_of(trial, self.gpu, self.corrections, self.share).seconds


def expected_seconds(trials: Iterable[TrialSpec], model: RuntimeModel) -> dict[str, float]:
    """Return the expected seconds of trials by id. Without a prediction, they are infinite."""
    seconds: dict[str, float] = {}
    for trial in trials:
        try:
            seconds[trial.trial_id] = model.seconds(trial)
        except SweepError as error:
            # Trials with the longest expected time start first. So this trial starts first,
            # and its failure reports the error.
            log.warning("%s: %s", trial.trial_id, error)
            seconds[trial.trial_id] = math.inf
    return seconds


def time_limit(trial: TrialSpec, measured: Collection[MeasuredTrial], model: RuntimeModel) -> float:
    """Return the time limit of a trial, in seconds.

    If a trial reports neither a new epoch nor a result within this limit, it counts as hung.
    The limit is ``max(MIN_LIMIT_S, HANG_FACTOR * seconds)``. Here, ``seconds`` depends on two
    durations of the whole trial. The *expected* duration comes from :class:`RuntimeModel`. The
    *scaled* duration is the time of the slowest finished trial of the same model, scaled to
    the size of this trial.

    - On a GPU, ``seconds`` is the larger of the two durations.
    - On a CPU, ``seconds`` is the scaled duration. If no trial of the model has finished, it
      is the expected duration.

    If the operations of the network cannot be counted, the limit is infinite.
    """
    if not is_counted(trial.network):
        return math.inf
    ratios = [
        done.seconds / core_seconds(done.spec)
        for done in measured
        if done.spec.network.model == trial.network.model and done.spec.network.recipe.epochs
    ]
    slowest = max(ratios, default=0.0) * core_seconds(trial)
    expected = model.seconds(trial)
    if model.gpu is None:
        return max(MIN_LIMIT_S, HANG_FACTOR * (slowest or expected))
    if not model.gpu.timed:
        expected *= UNTIMED_FACTOR
    return max(MIN_LIMIT_S, HANG_FACTOR * max(slowest, expected))
