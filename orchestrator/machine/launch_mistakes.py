"""A mistake in a launch file for ``ray up``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

UNFILLED = re.compile(r"CHANGE|\bexample\.(org|com)\b")
"""Texts of the repository's launch files in places that must be filled in."""

Config = dict[str, Any]
"""A launch file as YAML gives it."""


@dataclass(frozen=True)
class Mistake:
    """A mistake in a launch file.

    Attributes:
        place: the key, with dots; empty if the problem names the file.
        problem: what is wrong there.
        hint: what to do.
    """

    place: str
    problem: str
    hint: str

    @property
    def text(self) -> str:
        """Where the mistake is, and what is wrong."""
        if not self.place:
            return self.problem
        return f"{self.place}: {self.problem}"
