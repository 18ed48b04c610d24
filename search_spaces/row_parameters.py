"""The parameter values of one row of a table. The function of the row reads them by name."""

from __future__ import annotations

from collections.abc import Mapping

from search_spaces.errors import unknown_name

Number = int | float


class RowParameters(dict[str, Number]):
    """A mapping from a row's parameters to their values. An unknown name raises a ConfigError.

    Args:
        row: description of the row for messages, such as ``row 'twonn' of ESTIMATORS``.
        values: value of each parameter.

    Example:
        >>> values = RowParameters("row 'twonn' of ESTIMATORS", {"discard_fraction": 0.1})
        >>> values["discard_fraction"]
        0.1
    """

    def __init__(self, row: str, values: Mapping[str, Number]) -> None:
        super().__init__(values)
        self._row = row

    def __missing__(self, name: str) -> Number:
        """Raise the error for a parameter that the row does not have."""
        raise unknown_name("parameter", name, self, of=self._row)
