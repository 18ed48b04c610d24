"""Estimate of the hours, memory and GPUs that the remaining trials of a sweep take."""

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
from search_spaces.errors import ConfigError
from search_spaces.specs import TrialSpec

IDLE_DRAW = 0.1
"""Share of its power that a GPU draws without work: assumed (about 70 W of an H100)."""


DEFAULT_GPU = "h100"


def estimate(
    left: Collection[TrialSpec],
    measured_trials: Collection[MeasuredTrial],
    *,
    gpu: GpuModel | None = GPU_MODELS[DEFAULT_GPU],
    num_gpus: int | None = None,
    share: float | None = None,
    num_cpus: int = 1,
) -> dict[str, Any]:
    """Estimate what is left of a sweep, by prediction and by what done trials cost.

    Of ``num_gpus`` GPUs, None for as many as one trial takes, each trial gets the ``share`` that
    the sweep asks for; None (or 0) for what it is predicted to need. Without a GPU trials share
    ``num_cpus`` cores.

    Returns:
        ``gpu_hours`` or ``cpu_core_hours``; ``cpu_hours`` until the last trial has ended on
        ``num_cpus``; ``memory_bytes`` of the largest trial; ``refused``, recipes that the GPU
        cannot compute; and more.
    """
    corrections = corrections_for(gpu, measured_trials)
    memory = (
        peak_bytes(t.network) * corrections.memory.get(t.network.model.name, 1.0) for t in left
    )
    rate, interval = (
        f"{CORE_FLOPS / 1e9:g} GFLOP/s",
        f"{CORE_INTERVAL_S * 1e6:g} µs",
    )
    where = "where this sweep has no finished trial of the model yet"
    assumptions = f"{rate} per core and {interval} an operation, {where}"
    seconds = [core_seconds(trial, corrections) for trial in left]
    result: dict[str, Any] = {
        "trials_left": len(left),
        "gpu_hours": None,
        "cpu_core_hours": sum(seconds) / 3600,
        "cpu_hours": max(sum(seconds) / num_cpus, max(seconds, default=0.0)) / 3600,
        "num_cpus": num_cpus,
        "memory_bytes": max(memory, default=0),
        "cluster": None,
        "hours_one_at_a_time": None,
        "refused": [],
        "corrections": asdict(corrections),
        "assumptions": assumptions,
    }
    if gpu is not None:
        there = num_gpus or max(1, int(share or 1))
        recipes = {t.network.recipe.name for t in left if t.network.recipe.precision == "bfloat16"}
        cluster = on_gpus(left, gpu, there, corrections, share)
        # A GPU for each trial, as where nothing shows that sharing one pays.
        alone = on_gpus(left, gpu, there, corrections, max(1.0, share or 1.0))
        result |= {
            "gpu_hours": cluster["gpu_hours"],
            "cluster": cluster,
            "hours_one_at_a_time": alone["hours"],
            "refused": [] if gpu.bfloat16 else sorted(recipes),
            "assumptions": f"predicted for {gpu.name} ({gpu.origin}), {assumptions}",
        }
    return result | {"text": estimate_text(result)}


def on_gpus(
    trials: Collection[TrialSpec],
    gpu: GpuModel,
    num_gpus: int,
    corrections: Corrections | None = None,
    share: float | None = None,
) -> dict[str, Any]:
    """Replay trials on ``num_gpus`` GPUs, longest first, each on ``share`` or what it is predicted
    to need.

    ``hours``, ``dollars`` and ``kilowatt_hours`` are of all GPUs until the last trial ends. By
    model are the largest of ``shares``, and the bytes of trials that are ``too_large`` for the
    memory of their share.
    """
    whole = max(1, int(share or 1))  # GPUs that a trial lies on
    if whole > num_gpus:
        rule = "There must be as many GPUs as one trial asks for"
        found = f"resources.num_gpus {whole}, {num_gpus} in all"
        raise ConfigError(rule, found, f"plan with --gpus {whole}")
    jobs: list[Job] = []
    shares: dict[str, float] = {}
    too_large: dict[str, float] = {}
    for trial in trials:
        name, need = trial.network.model.name, need_of(trial, gpu, corrections, share)
        jobs.append(Job(trial.trial_id, need.seconds, need.share))
        shares[name] = max(need.share, shares.get(name, 0.0))
        if need.memory_bytes > min(need.share, 1.0) * gpu.memory_gib * 2**30:
            too_large[name] = max(need.memory_bytes, too_large.get(name, 0.0))
    groups = num_gpus // whole
    # The longest first, so that none is begun when all others have ended.
    played = replay(sorted(jobs, key=lambda job: (-job.seconds, job.name)), groups)
    # GPUs that are too few for one more trial are paid for too.
    utilisation = played.utilisation * groups * whole / num_gpus
    paid_hours = num_gpus * played.makespan / 3600
    draw = utilisation + IDLE_DRAW * (1 - utilisation)
    return {
        "gpu": gpu.name,
        "num_gpus": num_gpus,
        "hours": played.makespan / 3600,
        "gpu_hours": sum(job.seconds * job.share for job in jobs) / 3600,
        "utilisation": utilisation,
        "dollars": paid_hours * gpu.price,
        "kilowatt_hours": paid_hours * gpu.watts * draw / 1000,
        "shares": dict(sorted(shares.items())),
        "too_large": dict(sorted(too_large.items())),
        "gpu_data": asdict(gpu),
    }
