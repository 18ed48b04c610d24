"""Keyword arguments of the front's functions, checked as the command line checks its options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from search_spaces.errors import ConfigError, invalid, unknown_name

if TYPE_CHECKING:
    from orchestrator import RunOptions
    from orchestrator.running.progress import Progress


def run_options(root: str | Path | None, options: Mapping[str, Any]) -> RunOptions:
    """Return the options that a caller names by keyword.

    Raises:
        ConfigError: for a name that is none, with the nearest one, and a value that the option cannot have.
    """
    from orchestrator import RunOptions

    known = set(RunOptions.__dataclass_fields__) - {"root"}
    for name in options:
        if name not in known:
            raise unknown_name("option", name, known)
    given = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    try:
        return TypeAdapter(RunOptions).validate_python({**given, "root": root_text(root)})
    except ValidationError as error:
        raise invalid(error) from None


def root_text(root: object) -> str | None:
    """Return a root as text, or None for the default one.

    Raises:
        ConfigError: when it is no path.
    """
    if root is not None and (not isinstance(root, (str, Path)) or not str(root).strip()):
        raise ConfigError("root must be the path of a folder", repr(root), "e.g. './isweep-root'")
    return None if root is None else str(root)


def shown_progress(progress: object) -> Progress:
    """Return what shows how far a run is, or what shows nothing.

    Raises:
        ConfigError: when ``progress`` is no truth value.
    """
    from rich.console import Console

    from orchestrator.running.progress import Progress

    if not isinstance(progress, bool):
        raise ConfigError("progress must be True or False", repr(progress), "leave it out to see it")
    return Progress(console=Console() if progress else None)
