"""Files that a user wrote: whether a name is a path, and the text of the file."""

from __future__ import annotations

from pathlib import Path

from orchestrator.planning.plain_yaml import MAX_FILE_BYTES, read_text
from orchestrator.planning.sweep_file import preset_names
from search_spaces.errors import (
    ConfigError,
    nearest_path,
)
from search_spaces.recipes import RECIPES


def is_path(name: str) -> bool:
    """Return whether a name of a sweep or recipe is a path."""
    return "/" in name or name.endswith((".yaml", ".yml"))


def read_file(path: Path, kind: str = "sweep file") -> str:
    """Return the text of a sweep or recipe file."""
    try:
        return read_text(path, kind, MAX_FILE_BYTES)
    except FileNotFoundError:
        what, names = (
            ("presets", preset_names()) if kind == "sweep file" else ("known recipes", RECIPES)
        )
        way_out = f"{what} are: {', '.join(names)}; {nearest_path(path)}"
        raise ConfigError(f"The {kind} must exist", str(path), way_out) from None
