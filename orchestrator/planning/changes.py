"""Single values of a sweep changed for one run: ``--set recipe.epochs=3``."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.planning.plain_yaml import read_plain
from search_spaces.errors import ConfigError

WAY_OUT = "e.g. --set recipe.epochs=3 --set train_sizes='[100, 200]'"


def read_changes(words: Iterable[str]) -> dict[str, object]:
    """Read ``KEY=VALUE`` words, the value as in a sweep file.

    Raises:
        ConfigError: for a word that is none, or two values for one key.
    """
    changes: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key or not value.strip():
            raise ConfigError("--set must be KEY=VALUE", word, WAY_OUT)
        read = read_plain(value, f"--set {key}")
        if key in changes and changes[key] != read:
            raise ConfigError(f"--set {key} must be given one value", f"{changes[key]!r} and {read!r}")
        changes[key] = read
    return changes


def with_changes(document: Mapping[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
    """Return a sweep file's content with values put at dotted keys; numbers in a key are places in a list.

    Raises:
        ConfigError: for a key that leads through something that has no keys.
    """
    changed = copy.deepcopy(dict(document))
    for key, value in changes.items():
        if not isinstance(key, str):
            raise ConfigError("changes must have dotted keys", repr(key), "e.g. {'recipe.epochs': 3}")
        *parents, last = key.split(".")
        holder: Any = changed
        for part in parents:
            holder = _inside(holder, part, key)
        if isinstance(holder, list):
            _ = _inside(holder, last, key)
            holder[int(last)] = value
        elif isinstance(holder, dict):
            holder[last] = value
        else:
            raise ConfigError(f"--set {key}: nothing can be set there", repr(holder), WAY_OUT)
    return changed


def _inside(holder: Any, part: str, key: str) -> Any:
    if isinstance(holder, list):
        if not part.isdecimal() or int(part) >= len(holder):
            raise ConfigError(f"--set {key}: the list has places 0 to {len(holder) - 1}", part, WAY_OUT)
        if isinstance(holder[int(part)], str):
            # A dataset or model that is written as its name alone.
            holder[int(part)] = {"name": holder[int(part)]}
        return holder[int(part)]
    if not isinstance(holder, dict):
        raise ConfigError(f"--set {key}: nothing can be set there", repr(holder), WAY_OUT)
    if part == "recipe" and isinstance(holder.get(part), str):
        holder[part] = {"from": holder[part]}
    return holder.setdefault(part, {})
