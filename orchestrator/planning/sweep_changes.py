"""Values of a sweep changed for one run: ``--set recipe.epochs=3``."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.planning.plain_yaml import read_plain
from search_spaces.errors import (
    ConfigError,
)

# Single values of a sweep changed for one run: ``--set recipe.epochs=3``.

WAY_OUT = "e.g. --set recipe.epochs=3 --set train_sizes='[100, 200]'"


def read_changes(words: Iterable[str]) -> dict[str, object]:
    """Read ``KEY=VALUE`` words, the value as in a sweep file; each key once."""
    changes: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key or not value.strip():
            raise ConfigError("--set must be KEY=VALUE", word, WAY_OUT)
        read = read_plain(value, f"--set {key}")
        if key in changes and changes[key] != read:
            raise ConfigError(
                f"--set {key} must be given one value", f"{changes[key]!r} and {read!r}"
            )
        changes[key] = read
    return changes


def with_changes(document: Mapping[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
    """Return a sweep file's content with values put at dotted keys; numbers in a key are places in
    a list.
    """
    changed = copy.deepcopy(dict(document))
    for key, value in changes.items():
        if not isinstance(key, str):
            raise ConfigError(
                "changes must have dotted keys", repr(key), "e.g. {'recipe.epochs': 3}"
            )
        *parents, last = key.split(".")
        holder: Any = changed
        for part in parents:
            place = _place_in(holder, part, key)
            # A dataset, model or recipe that is written as its name alone.
            if isinstance(holder, list) and isinstance(holder[place], str):
                holder[place] = {"name": holder[place]}
            elif part == "recipe" and isinstance(holder.get(part), str):
                holder[part] = {"from": holder[part]}
            holder = holder[place] if isinstance(holder, list) else holder.setdefault(part, {})
        holder[_place_in(holder, last, key)] = value
    return changed


def _place_in(holder: Any, part: str, key: str) -> Any:
    """Return what a part of a dotted key is in a list or a mapping."""
    if isinstance(holder, dict):
        return part
    if not isinstance(holder, list):
        raise ConfigError(f"--set {key}: nothing can be set there", repr(holder), WAY_OUT)
    if not part.isdecimal() or int(part) >= len(holder):
        raise ConfigError(f"--set {key}: the list has places 0 to {len(holder) - 1}", part, WAY_OUT)
    return int(part)
