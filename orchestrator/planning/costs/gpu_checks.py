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
"""Images per second of two trials on one GPU over those of one, from which on trials share GPUs."""


def read_checks(folders: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return the summaries of what ``isweep gpu-check`` left in folders, by GPU; the last of all
    counts.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("gpu-check-*.json"))):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            summary = dict(record["parts"]["summary"]["values"])
            row = summary.get("row") or {}
            numbers = [
                row[one.name] for one in fields(GpuModel) if one.type == "float" and one.name in row
            ]
            numbers += [
                summary[gain] for gain in ("pair_gain", "pair_gain_mps") if summary.get(gain)
            ]
            if all(0 < float(number) < math.inf for number in numbers):
                found[str(record["gpu"])] = summary | {"row": row}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def packing_pays(name: str, checks: Mapping[str, Mapping[str, Any]], *, mps: bool) -> bool:
    """Tell whether trials share a GPU: as a pair was measured, with MPS or without; else under
    MPS.
    """
    gain = (checks.get(name) or {}).get("pair_gain_mps" if mps else "pair_gain")
    return mps if gain is None else float(gain) >= PACKING_PAYS
