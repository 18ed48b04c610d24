"""The conclusions that ``isweep gpu-check`` draws from the values of its parts.

The names of parts and values are those of :mod:`orchestrator.machine.gpu_check_parts`. The
names are stored, so they must not change.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from orchestrator.machine.gpu_bench import Bench
from orchestrator.machine.gpu_check_parts import Measurements
from orchestrator.machine.gpu_hours import MeasuredTimes, measured_hours, network_factors
from orchestrator.planning.costs.gpu_checks import MIN_SHARING_GAIN
from orchestrator.planning.costs.gpu_models import GpuModel
from orchestrator.planning.costs.networks import cost_of
from orchestrator.planning.costs.pass_times import EAGER_INTERVAL_S, GRAPH_INTERVAL_S, pass_time
from orchestrator.planning.estimate import on_gpus
from tasks.trials.records import CONTEXT_BYTES

NETWORK_PARTS = ("correctness", "step_times", "passes", "memory")
"""Parts with a result for each network. If such a part ends early, some results are
missing."""


def summarize(bench: Bench, parts: Mapping[str, Any]) -> Measurements:
    """Yield the verdict, whether trials share the GPU, the GPU's row for plans, and the
    predicted hours.

    Args:
        bench: the GPU, with the trials.
        parts: result of each part, by name of the part. A result has the keys ``ok`` and
            ``values``.
    """
    values = {name: part["values"] for name, part in parts.items()}
    graphs = values.get("correctness", {}).get("graphs", [])
    plain = [model for model in bench.models if model not in graphs]
    failed = [name for name, part in parts.items() if not part["ok"]]
    verdict = [f"FAIL: {', '.join(failed)}" if failed else "PASS"]
    if plain and bench.on_gpu:
        verdict.append(f"plain steps for {', '.join(plain)}")
    verdict += _missing_networks(bench, values)
    yield "verdict", "; ".join(verdict)
    yield "fast", "auto: captured graphs" if graphs and not plain else "auto: plain steps"
    yield from _sharing(values.get("pairs", {}))
    times = MeasuredTimes.of_parts(values, graphs)
    if "planned_as" not in values.get("gpu", {}) or not times.step_ms:
        return
    planned = GpuModel(**values["gpu"]["planned_as"])
    bench = replace(bench, bfloat16=planned.bfloat16)
    row = measured_row(bench, planned, times, graphs)
    row = replace(row, context_gib=_context_gib(values.get("context", {})))
    # This row has no factors of networks. It is stored even if a prediction below fails.
    yield "row", asdict(row)
    yield from _hours(bench, planned, times, row)


def _missing_networks(bench: Bench, values: Mapping[str, Any]) -> list[str]:
    """Return a text for each part of :data:`NETWORK_PARTS` in which networks have no result."""
    texts = []
    for part in NETWORK_PARTS:
        measured = values.get(part, {})
        if part == "correctness":
            measured = measured.get("self_test", {})
        missing = [model for model in bench.models if model not in measured]
        if missing:
            texts.append(f"{part} lacks {', '.join(missing)}")
    return texts


def _hours(bench: Bench, planned: GpuModel, times: MeasuredTimes, row: GpuModel) -> Measurements:
    """Yield the predicted hours and the measured hours of all trials, and the GPU's complete
    row.

    Args:
        bench: the GPU, with the trials.
        planned: the row that plans used for this GPU before the check.
        times: the measured times of the networks.
        row: the measured row, without factors of networks.
    """
    yield "predicted_hours", on_gpus(bench.trials, planned, 1, share=1.0)["hours"]
    hours = measured_hours(bench.trials, times)
    if hours is not None:
        # With these factors, plans and runs use the measured time of each network.
        factors = network_factors(bench.trials, times, row)
        yield "row", asdict(replace(row, network_factors=factors))
    yield "hours", hours
    if hours is None:
        note = (
            "the hours are unknown, because a network was not measured in all of the parts "
            "step_times, passes and trial"
        )
        yield "hours_note", note


def _sharing(pairs: Mapping[str, Any]) -> Measurements:
    """Yield the smallest gain of two trials on one GPU, with and without MPS. Also yield
    whether trials share the GPU.
    """
    gain = _smallest_gain(pairs.get("without_mps", {}))
    gain_with_mps = _smallest_gain(pairs.get("with_mps", {}))
    yield "pair_gain", gain
    yield "pair_gain_mps", gain_with_mps
    # As in a run: if MPS runs, trials use it. Otherwise a run can start MPS, or use none.
    runs_mps = bool(pairs.get("mps"))
    possible = [gain_with_mps] if runs_mps else [gain_with_mps, gain]
    measured = [value for value in possible if value is not None]
    shares = runs_mps  # without a measurement
    if measured:
        shares = max(measured) >= MIN_SHARING_GAIN
    yield "num_gpus", "left out: trials share a GPU" if shares else 1


def _smallest_gain(rows: Mapping[str, Any]) -> float | None:
    """Return the smallest gain of two trials over one trial, or None if no network was
    measured.
    """
    return min((row["gain"] for row in rows.values() if "gain" in row), default=None)


def _context_gib(measured: Mapping[str, Any]) -> float:
    """Return, in GiB, the largest measured memory of a process besides its tensors. The result
    is at least :data:`CONTEXT_BYTES`.
    """
    # The only value that is no number of bytes is the note.
    sizes: list[int] = [value for name, value in measured.items() if name != "note"]
    return max([CONTEXT_BYTES, *sizes]) / 2**30


def measured_row(
    bench: Bench, planned: GpuModel, times: MeasuredTimes, graphs: Iterable[str]
) -> GpuModel:
    """Return the GPU's row for plans, scaled by the ratio of measured to predicted speed.

    The ratio is the median over the training steps of all networks.
    """
    speeds = []
    for model, step_ms in times.step_ms.items():
        interval = EAGER_INTERVAL_S
        if model in graphs:
            interval = GRAPH_INTERVAL_S
        cost = cost_of(bench.network(model)).step
        expected = pass_time(cost, planned, interval=interval, half=bench.bfloat16)
        speeds.append(1000 * expected.seconds / step_ms)
    speed = statistics.median(speeds)
    return replace(
        planned,
        compute_efficiency=planned.compute_efficiency * speed,
        bandwidth_efficiency=min(1.0, planned.bandwidth_efficiency * speed),
        origin=f"gpu-check: {speed:.2f} times as fast as predicted",
        timed=True,
    )
