"""Display of results in terminals and notebooks."""

from __future__ import annotations

import html
import io

import pandas as pd
from matplotlib.figure import Figure

TERMINAL_COLUMNS = 80
"""Characters of the narrowest usual terminal, at which a table is continued below."""


class Displayed:
    """A result that a notebook shows as a sentence and a table."""

    def displayed(self) -> pd.DataFrame | None:
        """Return the table that a notebook shows, or None if the sentence says everything."""
        return None

    def _repr_html_(self) -> str:
        sentence = f"<p>{html.escape(repr(self))}</p>"
        table = self.displayed()
        if table is None:
            return sentence
        return sentence + table.to_html(index=False, float_format="{:.4g}".format, na_rep="")


class PrintedTable(pd.DataFrame):
    """A DataFrame that a terminal shows whole: columns that do not fit follow below the first.

    Plain pandas replaces the middle columns by "..." there. What is computed from the table is a
    plain DataFrame again.
    """

    def __repr__(self) -> str:
        return self.to_string(
            line_width=TERMINAL_COLUMNS, float_format="{:.4g}".format, na_rep="", max_rows=60
        )


class CellFigure(Figure):
    """A figure that a notebook shows although pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        with io.BytesIO() as file:
            self.savefig(file, format="png")
            return file.getvalue()
