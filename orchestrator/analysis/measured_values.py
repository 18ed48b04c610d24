"""The two numbers that a prediction needs, out of a record that ``isweep measure --json`` wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.analysis.fit_records import SharpnessScale
from orchestrator.analysis.sharpness import UNRECORDED, spell_scale
from orchestrator.analysis.table_checks import LARGEST_VALUE
from search_spaces.errors import ConfigError

_WAY_OUT = "write one with: isweep measure SOURCE --json > record.json"


def read_record(path: Path) -> dict[str, Any]:
    """Read the JSON that ``isweep measure --json`` wrote.

    Raises:
        ConfigError: when the file is none.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            "A measured record must be a readable JSON file", f"{path}: {error}", _WAY_OUT
        ) from None
    if not isinstance(record, dict) or "d_data" not in record:
        raise ConfigError("A measured record must hold d_data", str(path), _WAY_OUT)
    return record


def values_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Return ``d_data`` (maximum likelihood) and ``label_sharpness`` of a record, as far as it has them."""
    dimension = record.get("d_data")
    values = {
        "d_data": dimension.get("mle") if isinstance(dimension, Mapping) else dimension,
        "label_sharpness": record.get("label_sharpness"),
    }
    plain = {name: v.get("value") if isinstance(v, Mapping) else v for name, v in values.items()}
    # A boolean passes for an integer, and whole numbers of JSON have no largest one.
    return {
        name: float(v)
        for name, v in plain.items()
        if isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < LARGEST_VALUE
    }


def check_scale(record: Mapping[str, Any], scale: SharpnessScale) -> None:
    """Refuse a K_F that was measured on another scale than those of a sweep, where both say theirs.

    Args:
        record: what ``isweep measure --json`` wrote.
        scale: of the sweep's fits; with several scales in one sweep that is its fits' matter.

    Raises:
        ConfigError: with both scales.
    """
    sharpness = record.get("label_sharpness")
    if not isinstance(sharpness, Mapping) or len(scale.scales) != 1:
        return
    theirs = scale.scales[0][0]
    try:
        (low, high), (height, width) = sharpness["pixel_range"], sharpness["side"]
        ours = spell_scale((high - low, np.sqrt(height * width), sharpness["channels"]))
    except (KeyError, TypeError, ValueError):
        return
    if UNRECORDED not in ours + theirs and ours != theirs:
        raise ConfigError(
            "K_F must be measured on the sweep's scale",
            f"{ours} beside the sweep's {theirs}",
            "measure at the sweep's side (--image-size), channels (--channels) and pixel range",
        )
