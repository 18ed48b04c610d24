"""Expected run time of trials, corrected by what finished trials took."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from orchestrator.planning.costs.gpu_models import GpuModel, gpu_model_like
from orchestrator.planning.costs.memory import peak_bytes
from orchestrator.planning.costs.needs import Corrections, core_seconds, need_of
from orchestrator.planning.costs.networks import has_cost
from search_spaces.errors import SweepError
from search_spaces.specs import TrialSpec
from tasks.trials.records import CONTEXT_BYTES

log = logging.getLogger(__name__)

# What done trials say of those to come: rates, and how far predictions of memory and time were off.


@dataclass(frozen=True)
class MeasuredTrial:
    """What a finished trial cost in wall time: its ``share`` is of GPUs, or CPU threads.

    ``gpu`` is as its driver says; ``peak_bytes`` are beside the context, 0 where that is not known.
    """

    spec: TrialSpec
    on_gpu: bool
    share: float
    seconds: float
    gpu: str = ""
    peak_bytes: int = 0


def corrections_for(gpu: GpuModel | None, trials: Iterable[MeasuredTrial]) -> Corrections:
    """Return how far predictions of memory, of time on this kind of GPU and of time on cores were
    off.
    """
    memory: dict[str, float] = {}
    seconds: dict[str, list[float]] = {}
    core: dict[str, list[float]] = {}
    for trial in trials:
        network, ran_on = trial.spec.network, gpu_model_like(trial.gpu)
        name = network.model.name
        if not has_cost(network):
            continue
        if trial.peak_bytes and trial.on_gpu:
            ratio = (CONTEXT_BYTES + trial.peak_bytes) / peak_bytes(network)
            memory[name] = max(ratio, memory.get(name, 0.0))
        if not network.recipe.epochs or trial.seconds <= 0:
            continue
        if not trial.on_gpu:
            core.setdefault(name, []).append(trial.seconds * trial.share / core_seconds(trial.spec))
        elif (
            gpu is not None and ran_on is not None and ran_on.name == gpu.name
        ):  # whatever an hour costs
            predicted = need_of(trial.spec, gpu, given=trial.share).seconds
            seconds.setdefault(name, []).append(trial.seconds / predicted)
    medians = [
        {name: statistics.median(found) for name, found in part.items()} for part in (seconds, core)
    ]
    return Corrections(memory, *medians)


@dataclass(frozen=True)
class RuntimeModel:
    """How long trials are expected to take on a GPU, or on CPUs without one, by what was measured
    there.

    ``share`` of a GPU is what every trial gets; None is what each is predicted to need.
    """

    gpu: GpuModel | None = None
    corrections: Corrections = field(default_factory=Corrections)
    share: float | None = None

    def seconds(self, trial: TrialSpec) -> float:
        """Return the seconds of one trial, on its share of the GPU or on one core."""
        if self.gpu is None:
            return core_seconds(trial, self.corrections)
        return need_of(trial, self.gpu, self.corrections, self.share).seconds


def expected_seconds(trials: Iterable[TrialSpec], expectation: RuntimeModel) -> dict[str, float]:
    """Return how long each trial is expected to take, by its id; infinite where nothing is known of
    it.
    """
    seconds: dict[str, float] = {}
    for trial in trials:
        try:
            seconds[trial.trial_id] = expectation.seconds(trial)
        except SweepError as error:  # it will say so itself, and soonest when it goes first
            log.warning("%s: %s", trial.trial_id, error)
            seconds[trial.trial_id] = math.inf
    return seconds


HANG_FACTOR, UNTIMED_FACTOR, MIN_LIMIT_S = 20, 5, 600.0
"""Libraries, arrays and a GPU's start come before the first epoch, and machines are shared."""


def time_limit(
    trial: TrialSpec, measured: Collection[MeasuredTrial], expectation: RuntimeModel
) -> float:
    """Return the seconds without an epoch or a result after which a trial counts as hung.

    Many times the whole trial by the slowest done one of its model, or else by what is expected of
    its GPU, more where that has no hours, or by one core; infinite where its network's operations
    cannot be counted.
    """
    if not has_cost(trial.network):
        return math.inf
    ratios = [
        done.seconds / core_seconds(done.spec)
        for done in measured
        if done.spec.network.model == trial.network.model and done.spec.network.recipe.epochs
    ]
    known, usual = expectation.gpu is not None, expectation.seconds(trial)
    usual *= 1 if expectation.gpu is None or expectation.gpu.timed else UNTIMED_FACTOR
    slowest = max(ratios, default=0.0) * core_seconds(trial)
    return max(MIN_LIMIT_S, HANG_FACTOR * (max(slowest, usual) if known else slowest or usual))
