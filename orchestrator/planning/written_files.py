"""Read presets of the package, and sweep and recipe files of a user."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from orchestrator.planning.plain_yaml import read_text
from search_spaces.errors import ConfigError, missing_path_hint

MAX_FILE_BYTES = 1_000_000
"""Size limit of a sweep or recipe file, bytes. A sweep of 100,000 trials needs a few
kilobytes."""


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
    """Return whether a sweep or recipe is given as a path, and not by its name."""
    return "/" in name or name.endswith((".yaml", ".yml"))


def read_file(path: Path, kind: str, named_kind: str, names: Iterable[str]) -> str:
    """Return the text of a sweep or recipe file.

    Args:
        path: The file.
        kind: Word for the file in messages, for example ``sweep file``.
        named_kind: Word for the alternative to a path in messages, for example ``preset``.
        names: Names of all alternatives.

    Raises:
        ConfigError: The file is absent, too large, or not UTF-8.
    """
    try:
        return read_text(path, kind, MAX_FILE_BYTES)
    except FileNotFoundError:
        listed = ", ".join(names)
        hint = f"Correct the path, or use a {named_kind}: {listed}. {missing_path_hint(path)}"
        raise ConfigError(f"The {kind} {path} does not exist", hint=hint.rstrip()) from None
