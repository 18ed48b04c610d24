"""Read files of ``isweep gpu-check``: measured rates of GPUs, and gains by sharing a GPU."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from orchestrator.planning.costs.gpu_models import GpuModel

MIN_SHARING_GAIN = 1.1
"""Smallest gain for which trials share a GPU. The gain is the number of images per second of
two trials together, divided by the number of one trial alone."""
RATES = tuple(field.name for field in fields(GpuModel) if field.type == "float")
"""Columns of the table of GPUs that a check can measure."""
GAINS = ("pair_gain", "pair_gain_mps")
"""Keys of the measured gain by sharing a GPU, without and with MPS."""


def gpu_check_folders(root: Path) -> tuple[Path, ...]:
    """Return the folders with files of ``isweep gpu-check``.

    If both folders contain a file for a model of GPU, the file in the root counts, because
    later folders have priority.
    """
    return Path(__file__).parents[3] / "benchmarks" / "results" / "gpu", root / "gpu"


def read_checks(folders: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return the summaries of all GPU checks, by the name that the GPU's driver reports.

    If a GPU was checked several times, the last file of the last folder is used. Damaged files
    and files with impossible numbers are ignored.
    """
    checks: dict[str, dict[str, Any]] = {}
    for folder in folders:
        for path in sorted(folder.glob("gpu-check-*.json")):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                summary = dict(record["parts"]["summary"]["values"])
                row = summary.get("row") or {}
                numbers = [row[name] for name in RATES if name in row]
                numbers += [factor for _, factor in row.get("network_factors", ())]
                numbers += [summary[gain] for gain in GAINS if summary.get(gain)]
                if all(0 < float(number) < math.inf for number in numbers):
                    checks[str(record["gpu"])] = {**summary, "row": row}
            except (OSError, ValueError, KeyError, TypeError):
                continue
    return checks


def packing_pays(name: str, checks: Mapping[str, Mapping[str, Any]], *, mps: bool) -> bool:
    """Return whether trials should share a GPU.

    If two trials on one GPU of this kind were measured, the measured gain decides. Otherwise
    trials share a GPU if and only if MPS runs.
    """
    summary = checks.get(name) or {}
    gain = summary.get("pair_gain_mps" if mps else "pair_gain")
    if gain is None:
        return mps
    return float(gain) >= MIN_SHARING_GAIN
