"""Change values of a sweep for one run, for example with ``--set recipe.epochs=3``."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.planning.plain_yaml import read_plain
from search_spaces.errors import ConfigError

EXAMPLE = (
    "Write a key of the sweep file and its value, for example `--set recipe.epochs=3` or "
    "`--set train_sizes='[100, 200]'`"
)


def read_changes(words: Iterable[str]) -> dict[str, object]:
    """Return the values of ``KEY=VALUE`` arguments by key. Values are read as in a sweep file.

    Raises:
        ConfigError: An argument is not of the form ``KEY=VALUE``, or a key has two values.
    """
    changes: dict[str, object] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not key:
            raise ConfigError(f"`--set {word}` has no key", hint=EXAMPLE)
        if not equals or not text.strip():
            raise ConfigError(f"`--set {word}` has no value", hint=EXAMPLE)
        value = read_plain(text, f"--set {key}")
        if key in changes and changes[key] != value:
            values = f"{changes[key]!r} and {value!r}"
            hint = f"Use `--set {key}` only once"
            raise ConfigError(f"`--set {key}` has two values: {values}", hint=hint)
        changes[key] = value
    return changes


def with_changes(document: Mapping[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
    """Return the content of a sweep file with changed values.

    Args:
        document: Content of a sweep file. It is not modified.
        changes: New values by dotted key, for example ``recipe.epochs``. A number in a key is
            an index of a list. The first index is 0.

    Raises:
        ConfigError: The document has no place for a key.
    """
    changed = copy.deepcopy(dict(document))
    for key, value in changes.items():
        if not isinstance(key, str):
            raise ConfigError(
                f"`changes` has the key {key!r}, which is not text",
                hint="Write dotted keys, for example changes={'recipe.epochs': 3}",
            )
        *parents, last = key.split(".")
        holder: Any = changed
        for part in parents:
            holder = _enter(holder, part, key)
        holder[_place_in(holder, last, key)] = value
    return changed


def _enter(holder: Any, part: str, key: str) -> Any:
    """Return the value at one part of a dotted key.

    If it is only a name, replace it by a mapping.
    """
    place = _place_in(holder, part, key)
    if isinstance(holder, list):
        if isinstance(holder[place], str):
            holder[place] = {"name": holder[place]}  # a dataset or model written as its name alone
        return holder[place]
    if part == "recipe" and isinstance(holder.get(part), str):
        holder[part] = {"from": holder[part]}
    return holder.setdefault(part, {})


def _place_in(holder: Any, part: str, key: str) -> Any:
    """Return one part of a dotted key as a key of a mapping or an index of a list."""
    if isinstance(holder, dict):
        return part
    if not isinstance(holder, list):
        raise ConfigError(
            f"`--set {key}` cannot set the key `{part}`: the value that should contain "
            f"`{part}` is {holder!r}, which has no keys",
            hint=EXAMPLE,
        )
    if not part.isdecimal() or int(part) >= len(holder):
        indices = "is empty"
        if holder:
            indices = f"has the indices 0 to {len(holder) - 1}"
        raise ConfigError(
            f"`--set {key}` has the index {part}, but the list {indices}", hint=EXAMPLE
        )
    return int(part)
