"""The design of a fit: the columns of a table that are response, regressors and groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["within", "between"]
LEVELS: tuple[Level, Level] = ("within", "between")


@dataclass(frozen=True, slots=True)
class Design:
    """The roles of a table's columns in a fit.

    Attributes:
        response: Column of the response.
        on: Columns of the regressors. Each slope is at equal values of the other regressors.
        groups: Columns that assign rows to groups. Several columns make crossed groups.
        within: Columns of conditions. Only rows with equal values in these columns are
            compared.
    """

    response: str
    on: tuple[str, ...]
    groups: tuple[str, ...]
    within: tuple[str, ...] = ()

    @property
    def numeric(self) -> tuple[str, ...]:
        """Columns whose cells must be numbers."""
        return (self.response, *self.on)

    @property
    def labels(self) -> tuple[str, ...]:
        """Columns whose cells are names, even if they look like numbers."""
        return (*self.groups, *self.within)

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, numeric ones first."""
        return (*self.numeric, *self.labels)
