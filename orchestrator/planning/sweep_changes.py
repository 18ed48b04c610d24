"""Values of a sweep changed for one run: ``--set recipe.epochs=3``."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.planning.plain_yaml import read_plain
from search_spaces.errors import ConfigError

EXAMPLE = "e.g. --set recipe.epochs=3 --set train_sizes='[100, 200]'"


def read_changes(words: Iterable[str]) -> dict[str, object]:
    """Return the values of ``KEY=VALUE`` words by their key; a value is read as in a sweep file.

    Raises:
        ConfigError: A word has another form, or a key has two values.
    """
    changes: dict[str, object] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key or not text.strip():
            raise ConfigError("--set must be KEY=VALUE", word, EXAMPLE)
        value = read_plain(text, f"--set {key}")
        if key in changes and changes[key] != value:
            values = f"{changes[key]!r} and {value!r}"
            raise ConfigError(f"--set {key} must be given one value", values)
        changes[key] = value
    return changes


def with_changes(document: Mapping[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
    """Return the content of a sweep file with changed values.

    Args:
        document: Content of a sweep file; it is not changed.
        changes: New values by dotted key, for example ``recipe.epochs``. A number in a key is an
            index of a list, from 0.

    Raises:
        ConfigError: A key leads nowhere.
    """
    changed = copy.deepcopy(dict(document))
    for key, value in changes.items():
        if not isinstance(key, str):
            example = "e.g. {'recipe.epochs': 3}"
            raise ConfigError("changes must have dotted keys", repr(key), example)
        *parents, last = key.split(".")
        holder: Any = changed
        for part in parents:
            holder = _enter(holder, part, key)
        holder[_place_in(holder, last, key)] = value
    return changed


def _enter(holder: Any, part: str, key: str) -> Any:
    """Return the value to which one part of a dotted key leads, made a mapping if it was a name."""
    place = _place_in(holder, part, key)
    if isinstance(holder, list):
        if isinstance(holder[place], str):
            holder[place] = {"name": holder[place]}  # a dataset or model written as its name alone
        return holder[place]
    if part == "recipe" and isinstance(holder.get(part), str):
        holder[part] = {"from": holder[part]}
    return holder.setdefault(part, {})


def _place_in(holder: Any, part: str, key: str) -> Any:
    """Return the key or index that one part of a dotted key means in a mapping or list."""
    if isinstance(holder, dict):
        return part
    if not isinstance(holder, list):
        raise ConfigError(f"--set {key}: nothing can be set there", repr(holder), EXAMPLE)
    if not part.isdecimal() or int(part) >= len(holder):
        indices = f"the list has indices 0 to {len(holder) - 1}"
        raise ConfigError(f"--set {key}: {indices}", part, EXAMPLE)
    return int(part)
