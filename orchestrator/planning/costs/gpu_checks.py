"""Files that ``isweep gpu-check`` wrote: measured rates of GPUs, and whether trials share one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from orchestrator.planning.costs.gpu_models import GpuModel

PACKING_PAYS = 1.1
"""Trials share a GPU if two of them process this many times the images per second of one."""
RATES = tuple(field.name for field in fields(GpuModel) if field.type == "float")
"""Columns of the table of GPUs that a check may have measured."""
GAINS = ("pair_gain", "pair_gain_mps")
"""Keys of the measured gain by sharing, without and with MPS."""


def read_checks(folders: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return the summaries of the GPU checks in folders, by the driver's name of the GPU.

    If a GPU was checked several times, the last file of the last folder counts. Damaged files and
    those with impossible numbers are left out.
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

    If a pair of trials was measured on this GPU, the measured gain decides. Otherwise trials share
    it if, and only if, MPS runs.
    """
    summary = checks.get(name) or {}
    gain = summary.get("pair_gain_mps" if mps else "pair_gain")
    if gain is None:
        return mps
    return float(gain) >= PACKING_PAYS
