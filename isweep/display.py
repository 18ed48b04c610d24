"""Display of results in terminals and notebooks."""

from __future__ import annotations

import html
import io

import pandas as pd
from matplotlib.figure import Figure

TERMINAL_COLUMNS = 80
"""Number of characters per line of a printed table. Columns that do not fit are printed below
the other columns."""


class Displayed:
    """A result that a notebook shows as a sentence and a table."""

    def displayed(self) -> pd.DataFrame | None:
        """Return the table that a notebook shows, or None if it shows only the sentence."""
        return None

    def _repr_html_(self) -> str:
        sentence = f"<p>{html.escape(repr(self))}</p>"
        table = self.displayed()
        if table is None:
            return sentence
        return sentence + table.to_html(index=False, float_format="{:.4g}".format, na_rep="")


class PrintedTable(pd.DataFrame):
    """A DataFrame that is printed with all columns. Columns that do not fit are printed below.

    A plain DataFrame shows "..." in place of the middle columns. If you compute a new table
    from this table, the new table is a plain DataFrame.
    """

    def __repr__(self) -> str:
        return self.to_string(
            line_width=TERMINAL_COLUMNS, float_format="{:.4g}".format, na_rep="", max_rows=60
        )


class CellFigure(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        with io.BytesIO() as file:
            self.savefig(file, format="png")
            return file.getvalue()
