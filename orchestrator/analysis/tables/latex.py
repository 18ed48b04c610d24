"""Tables as LaTeX, for the package booktabs."""

from __future__ import annotations

import pandas as pd

from orchestrator.analysis.tables.layout import Table

LONG_CELL = 24
"""Limit for the number of characters of a cell. If a cell is longer, the cells of its column
are broken into lines."""
BROKEN_WIDTH = 0.5
"""Share of the text width that all columns with line breaks together have."""
SPECIAL: dict[str, str | int | None] = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "–": "--",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≲": r"$\lesssim$",
    "²": "$^2$",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "ε": r"$\varepsilon$",
    "“": "``",
    "”": "''",
    "→": r"$\rightarrow$",
    "<": "$<$",
    ">": "$>$",
}
"""LaTeX code that prints a special character, by character."""


def escape(text: str) -> str:
    """Return LaTeX code that prints a text unchanged."""
    return text.translate(str.maketrans(SPECIAL))


def to_latex(table: Table) -> str:
    """Return a table as LaTeX.

    Columns with long cells have line breaks and share half the width.
    """
    longest = [0] * len(table.header)
    for row in table.rows:
        for k, cell in enumerate(row):
            longest[k] = max(longest[k], len(cell))
    num_broken = max(1, sum(length > LONG_CELL for length in longest))
    column_format = ""
    for k, length in enumerate(longest):
        if length > LONG_CELL:
            column_format += rf"p{{{BROKEN_WIDTH / num_broken:.2f}\linewidth}}"
        else:
            column_format += "l" if k < table.numeric_from else "r"
    sentences = [text.rstrip(".") for text in (table.title, table.note) if text]
    header = [escape(name) for name in table.header]
    rows = pd.DataFrame(table.rows, columns=header, dtype=str).map(escape)
    text = rows.to_latex(
        index=False,
        escape=False,
        caption=f"{escape('. '.join(sentences))}.",
        label=f"tab:{table.key}",
        column_format=column_format,
    )
    return text.replace(r"\begin{table}", r"\begin{table}\small", 1)
