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
        on: Columns of the regressors. The slope on one regressor is estimated with the other
            regressors held constant.
        groups: Columns that assign rows to groups. If there are several columns, the groups
            are crossed.
        within: Columns whose values must be equal in rows that are compared, for example the
            train size.
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
        """All columns: first the numeric columns, then the columns of names."""
        return (*self.numeric, *self.labels)
