"""Estimate the hours and memory that the remaining trials of a sweep need."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from orchestrator.planning.costs.gpu_models import GPU_MODELS, GpuModel
from orchestrator.planning.costs.memory import peak_bytes
from orchestrator.planning.costs.needs import (
    CORE_FLOPS,
    CORE_INTERVAL_S,
    Corrections,
    core_seconds,
    need_of,
)
from orchestrator.planning.estimate_text import estimate_text
from orchestrator.planning.replay import Job, replay
from orchestrator.planning.runtimes import MeasuredTrial, corrections_for
from search_spaces.errors import ConfigError, plural
from search_spaces.specs import TrialSpec

DEFAULT_GPU = "h100"
"""GPU for which isweep plans if the user chose no GPU and this machine has no GPU."""


def estimate(
    trials: Collection[TrialSpec],
    measured_trials: Collection[MeasuredTrial],
    *,
    gpu: GpuModel | None = GPU_MODELS[DEFAULT_GPU],
    num_gpus: int | None = None,
    share: float | None = None,
    num_cpus: int = 1,
) -> dict[str, Any]:
    """Estimate the time and memory of the remaining trials of a sweep.

    Measurements of finished trials correct the estimate.

    Args:
        trials: The remaining trials.
        measured_trials: Finished trials of the sweep.
        gpu: The kind of GPU to plan for. None means CPUs only.
        num_gpus: Number of GPUs. If it is None, plan with the number of GPUs that one trial
            needs.
        share: Share of a GPU that the sweep sets for each trial. If it is None or 0, each
            trial gets the share that it needs by prediction.
        num_cpus: Number of CPU cores on which trials run if there is no GPU.

    Returns:
        A document for ``isweep plan --json``. ``gpu_hours``, ``cluster`` (see :func:`on_gpus`)
        and ``hours_one_at_a_time`` are None without a GPU. ``cpu_core_hours`` is the sum over
        all trials of hours times cores. ``cpu_hours`` is the time until the last trial ends on
        ``num_cpus`` cores. ``memory_bytes`` is the memory of the largest trial. ``refused``
        lists recipes that the GPU cannot compute. ``assumptions`` and ``text`` contain
        sentences for the user.
    """
    corrections = corrections_for(gpu, measured_trials)
    memory = 0.0
    seconds: list[float] = []
    for trial in trials:
        factor = corrections.memory.get(trial.network.model.name, 1.0)
        memory = max(memory, factor * peak_bytes(trial.network))
        seconds.append(core_seconds(trial, corrections))
    cpu_seconds = max(sum(seconds) / num_cpus, max(seconds, default=0.0))
    assumptions = (
        f"CPU times assume {CORE_FLOPS / 1e9:g} GFLOP/s per core and {CORE_INTERVAL_S * 1e6:g} "
        "µs per operation. isweep corrects CPU times with the finished trials of this sweep"
    )
    document: dict[str, Any] = {
        "trials_left": len(trials),
        "gpu_hours": None,
        "cpu_core_hours": sum(seconds) / 3600,
        "cpu_hours": cpu_seconds / 3600,
        "num_cpus": num_cpus,
        "memory_bytes": memory,
        "cluster": None,
        "hours_one_at_a_time": None,
        "refused": [],
        "corrections": asdict(corrections),
        "assumptions": assumptions,
    }
    if gpu is not None:
        num_planned = num_gpus or max(1, int(share or 1))
        cluster = on_gpus(trials, gpu, num_planned, corrections, share)
        # Each trial has one whole GPU here, because trials share a GPU only if isweep knows
        # that this is faster.
        alone = on_gpus(trials, gpu, num_planned, corrections, max(1.0, share or 1.0))
        document["gpu_hours"] = cluster["gpu_hours"]
        document["cluster"] = cluster
        document["hours_one_at_a_time"] = alone["hours"]
        document["assumptions"] = (
            f"GPU times are predicted for {gpu.name} ({gpu.origin}). {assumptions}"
        )
        if not gpu.bfloat16:
            refused: set[str] = set()
            for trial in trials:
                if trial.network.recipe.precision == "bfloat16":
                    refused.add(trial.network.recipe.name)
            document["refused"] = sorted(refused)
    document["text"] = estimate_text(document)
    return document


def on_gpus(
    trials: Collection[TrialSpec],
    gpu: GpuModel,
    num_gpus: int,
    corrections: Corrections | None = None,
    share: float | None = None,
) -> dict[str, Any]:
    """Simulate trials on GPUs. The longest trials start first.

    Args:
        trials: The trials.
        gpu: The kind of GPU.
        num_gpus: Number of GPUs.
        corrections: Ratios of measured to predicted values of finished trials.
        share: Share of a GPU that each trial gets. If it is None or 0, each trial gets the
            share that it needs by prediction.

    Returns:
        A document. ``hours`` is the time until the last trial ends. ``shares`` contains the
        largest share of each model. ``too_large`` lists each model that needs more memory than
        its share of the GPU has, with the memory in bytes.

    Raises:
        ConfigError: One trial needs more GPUs than the plan has.
    """
    gpus_per_trial = max(1, int(share or 1))
    if gpus_per_trial > num_gpus:
        raise ConfigError(
            f"One trial needs {plural(gpus_per_trial, 'GPU')} (`resources.num_gpus`), but the "
            f"plan has only {num_gpus}",
            hint=f"Plan with `--gpus {gpus_per_trial}`, or lower `resources.num_gpus`",
        )
    jobs: list[Job] = []
    shares: dict[str, float] = {}
    too_large: dict[str, float] = {}
    for trial in trials:
        name = trial.network.model.name
        need = need_of(trial, gpu, corrections, share)
        jobs.append(Job(trial.trial_id, need.seconds, need.share))
        shares[name] = max(need.share, shares.get(name, 0.0))
        if need.memory_bytes > min(need.share, 1.0) * gpu.memory_gib * 2**30:
            too_large[name] = max(need.memory_bytes, too_large.get(name, 0.0))
    num_places = num_gpus // gpus_per_trial
    # Start the longest trials first. If a long trial started last, it would run alone at the
    # end.
    longest_first = sorted(jobs, key=lambda job: (-job.seconds, job.name))
    simulated = replay(longest_first, num_places)
    return {
        "gpu": gpu.name,
        "num_gpus": num_gpus,
        "hours": simulated.makespan / 3600,
        "gpu_hours": sum(job.seconds * job.share for job in jobs) / 3600,
        # Some GPUs are idle, because one more trial would need more GPUs than are left.
        "utilisation": simulated.utilisation * num_places * gpus_per_trial / num_gpus,
        "shares": dict(sorted(shares.items())),
        "too_large": dict(sorted(too_large.items())),
        "gpu_data": asdict(gpu),
    }
