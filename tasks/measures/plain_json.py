"""Convert records to plain JSON, as ``isweep measure --json`` prints them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def plain_json(
    fields: Mapping[str, Any],
    left_out_if_none: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the fields of a record as plain JSON, in which tuples are lists.

    Args:
        fields: Values of the record by field name.
        left_out_if_none: Names of the fields that the JSON does not contain if their value is
            None. In any other field, None becomes null.
    """
    record: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, tuple):
            record[name] = list(value)
        elif value is not None or name not in left_out_if_none:
            record[name] = value
    return record
