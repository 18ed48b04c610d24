"""Read files of ``isweep gpu-check``: measured rates of GPUs, and gains if trials share a GPU."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from orchestrator.planning.costs.gpu_models import GpuModel

MIN_SHARING_GAIN = 1.1
"""Smallest gain at which isweep lets trials share a GPU. The gain is the number of images per
second of two trials together, divided by the number of images per second of one trial
alone."""
RATES = tuple(field.name for field in fields(GpuModel) if field.type == "float")
"""Columns of the table of GPUs whose values a check can measure."""
GAINS = ("pair_gain", "pair_gain_mps")
"""Keys of the measured gain if two trials share a GPU: first without MPS, then with MPS."""


def gpu_check_folders(root: Path) -> tuple[Path, ...]:
    """Return the folders with files of ``isweep gpu-check``.

    The last folder is in the root. If several folders contain a file for the same model of
    GPU, isweep uses the file of the last folder.
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
    """Return whether trials on a GPU are faster if they share it.

    If two trials together were measured on a GPU of this kind, the answer depends on the
    measured gain. Otherwise, the answer is True only if MPS runs.
    """
    summary = checks.get(name) or {}
    gain = summary.get("pair_gain_mps" if mps else "pair_gain")
    if gain is None:
        return mps
    return float(gain) >= MIN_SHARING_GAIN
