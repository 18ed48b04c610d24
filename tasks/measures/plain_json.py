"""Records as plain JSON, which ``isweep measure --json`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def plain_json(fields: Mapping[str, Any], *left_out_if_none: str) -> dict[str, Any]:
    """Return the fields of a record with lists for tuples.

    Args:
        fields: Name of a field -> its value.
        left_out_if_none: Names of fields that have no null value in JSON.
    """
    record: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, tuple):
            record[name] = list(value)
        elif value is not None or name not in left_out_if_none:
            record[name] = value
    return record
