"""The question that is asked of a table: which column is explained by which, and what repeats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["within", "between"]
LEVELS: tuple[Level, Level] = ("within", "between")


@dataclass(frozen=True, slots=True)
class Design:
    """The columns of a question, each with its part in it.

    Attributes:
        response: Column of numbers that is explained.
        on: Columns of numbers that explain it, each at equal values of the others.
        groups: Columns whose values say which rows belong together. Several are crossed.
        within: Columns that must be equal for two rows to be compared.
    """

    response: str
    on: tuple[str, ...]
    groups: tuple[str, ...]
    within: tuple[str, ...] = ()

    @property
    def numeric(self) -> tuple[str, ...]:
        """Columns that must hold numbers."""
        return (self.response, *self.on)

    @property
    def labels(self) -> tuple[str, ...]:
        """Columns that hold names, whatever they look like."""
        return (*self.groups, *self.within)

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, numeric ones first."""
        return (*self.numeric, *self.labels)
