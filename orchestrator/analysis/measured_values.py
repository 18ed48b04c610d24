"""The two numbers that a prediction needs, out of a record that ``isweep measure --json`` wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    found = {}
    dimension = record.get("d_data")
    value = dimension.get("mle", {}).get("value") if isinstance(dimension, Mapping) else dimension
    if isinstance(value, (int, float)):
        found["d_data"] = float(value)
    sharpness = record.get("label_sharpness")
    value = sharpness.get("value") if isinstance(sharpness, Mapping) else sharpness
    if isinstance(value, (int, float)):
        found["label_sharpness"] = float(value)
    return found
