"""The one family of errors that users can cause; everything else is a bug and may show a
traceback.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class SweepError(Exception):
    """A mistake that a user can mend: states the rule, the value that broke it, and the way out.

    Args:
        rule: What must hold, one sentence.
        value: What was found instead; empty when the rule says it all.
        way_out: What to do about it; empty only when nothing can be done.
    """

    exit_code = 2

    def __init__(self, rule: str, value: str = "", way_out: str = "") -> None:
        super().__init__(rule, value, way_out)  # all of them, so that it survives pickling
        self.rule = rule
        self.value = value
        self.way_out = way_out

    def __str__(self) -> str:
        """Render as one message: rule, then what was found, then the way out."""
        parts = (
            self.rule.rstrip("."),
            self.value and f"found: {self.value}",
            self.way_out.rstrip("."),
        )
        text = "; ".join(filter(None, parts))
        return text if text.endswith("?") else f"{text}."

    def _render_traceback_(self) -> list[str]:
        """Show a notebook what the command line shows: IPython asks for this instead of a
        traceback.
        """
        return [f"{type(self).__name__}: {self}"]


class ConfigError(SweepError):
    """A sweep file, preset or command-line value that does not make sense."""


class DataError(SweepError):
    """Raw or prepared data that cannot be used as they are."""


class CorruptStoreError(DataError):
    """A stored file whose checksum, size or schema is wrong; never read as if it were whole."""


class NewerRecordError(CorruptStoreError):
    """A stored file that a newer version of this program made: whole, and not ours to replace."""


class SetupError(SweepError):
    """The machine, cluster, storage or tracking server is not as needed."""

    exit_code = 3


def collect(problems: Iterable[SweepError], error: type[SweepError] = ConfigError) -> None:
    """Raise all problems as one ``error`` with a line each, or return when there are none."""
    found = list(problems)
    if not found:
        return
    if len(found) == 1 and isinstance(found[0], error):
        raise found[0]
    lines = "".join(f"\n  - {problem}" for problem in found)
    raise error(f"{plural(len(found), 'problem')} found:{lines}")


def invalid(error: ValidationError) -> SweepError:
    """Return the first thing that pydantic found wrong, as an error of ours."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return ConfigError(
        f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}", repr(first["input"])[:200]
    )


def nearest_path(path: Path) -> str:
    """Return the hint for a path that does not exist: what of it does, and the nearest name
    there.
    """
    try:
        there = next(parent for parent in path.absolute().parents if parent.is_dir())
        wanted = path.absolute().relative_to(there).parts[0]
        near = difflib.get_close_matches(wanted, sorted(os.listdir(there)), n=1)
    except (OSError, ValueError, StopIteration, IndexError):
        return ""
    if near and near[0] == wanted:
        return f"{there / wanted} is a link to nothing"
    return (
        f"did you mean {there / near[0]}?" if near else f"{there} is there, and no {wanted} in it"
    )


def plural(count: int, noun: str) -> str:
    """Return ``1 trial``, ``2 trials``, ``2 classes``."""
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"


def nearest(name: str, known: Iterable[object]) -> str:
    """Return the hint ``did you mean 'demo'?`` with a blank behind it, or nothing where no name is
    near.
    """
    names = {str(one): one for one in known}
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {names[near[0]]!r}? " if near else ""


def unknown_name(kind: str, name: object, known: Iterable[str] | Iterable[int]) -> ConfigError:
    """Return the error for a name that is in no table, with the nearest and all known names."""
    names = sorted(known)
    what, of, whole = kind.partition(" of ")
    kinds = f"{what.replace(' or ', 's or ')}{'es' if what.endswith('s') else 's'}{of}{whole}"
    listed = ", ".join(map(str, names)) or "none"
    return ConfigError(
        f"Unknown {kind}", repr(name), f"{nearest(str(name), names)}known {kinds}: {listed}"
    )
