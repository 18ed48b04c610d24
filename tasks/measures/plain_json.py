"""Conversion of records to plain JSON, as ``isweep measure --json`` prints it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def plain_json(
    fields: Mapping[str, Any],
    left_out_if_none: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the fields of a record as plain JSON, with lists for tuples.

    Args:
        fields: Values of the record by field name.
        left_out_if_none: Names of fields to leave out if their value is None. Any other None
            becomes a null value.
    """
    record: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, tuple):
            record[name] = list(value)
        elif value is not None or name not in left_out_if_none:
            record[name] = value
    return record
