"""How one unit of the study is computed: data preparation, measures, training, attacks; no sweep logic."""

from __future__ import annotations

from typing import Any

__all__ = ["measure_array"]


def __getattr__(name: str) -> Any:
    """Import the public functions only when asked for, so that ``import tasks`` stays cheap."""
    if name == "measure_array":
        from tasks.measures.measure import measure_array

        return measure_array
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
