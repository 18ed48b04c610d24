"""Read the presets of the package, and a user's sweep files and recipe files."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from orchestrator.planning.plain_yaml import read_text
from search_spaces.errors import ConfigError, missing_path_hint

MAX_FILE_BYTES = 1_000_000
"""Largest size of a sweep or recipe file, bytes. The file of a sweep with 100,000 trials needs
a few kilobytes."""


def preset_names() -> list[str]:
    """Return the names of the presets that ship with the package."""
    folder = resources.files("search_spaces") / "presets"
    names = []
    for entry in folder.iterdir():
        file = Path(entry.name)
        if file.suffix == ".yaml":
            names.append(file.stem)
    return sorted(names)


def preset_text(name: str) -> str:
    """Return the text of a preset."""
    file = resources.files("search_spaces") / "presets" / f"{name}.yaml"
    return file.read_text(encoding="utf-8")


def is_path(name: str) -> bool:
    """Return whether the user gave a sweep or recipe as a path. Otherwise it is a name."""
    return "/" in name or name.endswith((".yaml", ".yml"))


def read_file(path: Path, kind: str, named_kind: str, names: Iterable[str]) -> str:
    """Return the text of a sweep or recipe file.

    Args:
        path: The file.
        kind: Word for the file in messages, for example ``sweep file``.
        named_kind: Word in messages for something that has a name instead of a path, for
            example ``preset``.
        names: All names that the user can give instead of a path.

    Raises:
        ConfigError: The file is absent, too large, or not UTF-8.
    """
    try:
        return read_text(path, kind, MAX_FILE_BYTES)
    except FileNotFoundError:
        listed = ", ".join(names)
        hint = f"Correct the path, or use a {named_kind}: {listed}. {missing_path_hint(path)}"
        raise ConfigError(f"The {kind} {path} does not exist", hint=hint.rstrip()) from None
