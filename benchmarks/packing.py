"""Effect of the order of trials that share GPUs on the total time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from unittest import mock

from harness import Result, run

from orchestrator.planning.costs.gpu_models import GPU_MODELS, GpuModel, gpu_model
from orchestrator.planning.costs.needs import need_of
from orchestrator.planning.costs.pass_times import EAGER_INTERVAL_S
from orchestrator.planning.estimate import on_gpus
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.replay import Job, replay
from orchestrator.planning.sweep_file import load_sweep
from search_spaces.specs import TrialSpec

NUM_GPUS = (1, 8, 64, 512)
NUM_WAVES = 6


def order(*, preset: str = "paper", gpu: str = "h100") -> Result:
    """Compute the time of a grid for three orders, in replayed minutes.

    The orders are longest first, the order of the plan, and waves. All orders use the same
    predicted costs and shares, so only the order differs. No order can be faster than the lower
    bound. Waves are groups of whole datasets, and each wave waits for the last trial of the wave
    before. The result also has the hours of the whole grid on one GPU of each model with bfloat16.
    No GPU was measured.
    """
    rows = replayed(preset, gpu)
    study = next(row for row in rows if row["num_gpus"] == 64)
    sides = {name: study[name] for name in ("ours", "theirs", "ratio")}
    return {**sides, "preset": preset, "gpu": gpu, "rows": rows, "hours": hours(preset)}


def replayed(preset: str, kind: str) -> list[dict[str, Any]]:
    gpu, trials = gpu_model(kind), plan_sweep(load_sweep(preset)).trials
    jobs = jobs_on(trials, gpu)
    size = -(-len(jobs) // NUM_WAVES)
    waves = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    rows = []
    for number in NUM_GPUS:
        ours, planned = (
            replay(sorted(jobs, key=lambda job: -job.seconds), number),
            replay(jobs, number),
        )
        in_waves = sum(replay(wave, number).makespan for wave in waves)
        rows.append(
            {
                "num_gpus": number,
                "ours": ours.makespan / 60,
                "theirs": {"order of the plan": planned.makespan / 60, "six waves": in_waves / 60},
                "lower_bound": ours.lower_bound / 60,
                "ratio": planned.makespan / ours.makespan,
                "over_lower_bound": ours.makespan / ours.lower_bound,
                "utilisation": ours.utilisation,
            }
        )
    return rows


def hours(preset: str) -> list[dict[str, Any]]:
    """Predict the hours of the grid on one GPU: one trial at a time, shared, and by plain steps."""
    trials = plan_sweep(load_sweep(preset)).trials
    rows = []
    for gpu in (gpu for gpu in GPU_MODELS.values() if gpu.bfloat16):
        row: dict[str, Any] = {
            "gpu": gpu.name,
            "one at a time": on_gpus(trials, gpu, 1, share=1.0)["hours"],
        }
        row["sharing, under MPS"] = on_gpus(trials, gpu, 1)["hours"]
        with mock.patch("orchestrator.planning.costs.needs.GRAPH_INTERVAL_S", EAGER_INTERVAL_S):
            row["plain steps, one at a time"] = on_gpus(trials, gpu, 1, share=1.0)["hours"]
        rows.append(row)
    return rows


def jobs_on(trials: Iterable[TrialSpec], gpu: GpuModel) -> list[Job]:
    needs = [(trial.trial_id, need_of(trial, gpu)) for trial in trials]
    return [Job(trial_id, need.seconds, need.share) for trial_id, need in needs]


if __name__ == "__main__":
    run(order)
