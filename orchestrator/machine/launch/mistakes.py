"""The record of a mistake in a launch file for ``ray up``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

UNFILLED = re.compile(r"CHANGE|\bexample\.(org|com)\b")
"""Pattern of texts in the repository's launch files that users must replace."""

Config = dict[str, Any]
"""A parsed launch file."""


@dataclass(frozen=True)
class Mistake:
    """A mistake in a launch file.

    Attributes:
        place: key in the file, with dots between nested keys. It is empty if the problem
            concerns the whole file.
        problem: description of the mistake at this place.
        hint: advice for the user.
    """

    place: str
    problem: str
    hint: str

    @property
    def text(self) -> str:
        """A text with the place of the mistake and the problem."""
        if not self.place:
            return self.problem
        return f"{self.place}: {self.problem}"
