"""Tables of the fits as LaTeX, to be included in a paper as they are; needs the package booktabs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from orchestrator.analysis.formats import Table
from tasks.atomic import write_atomic

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--",
    "≤": r"$\leq$", "≥": r"$\geq$", "≲": r"$\lesssim$", "²": "$^2$", "·": r"$\cdot$", "×": r"$\times$",
    "ε": r"$\varepsilon$", "“": "``", "”": "''", "→": r"$\rightarrow$", "<": "$<$", ">": "$>$",
}  # fmt: skip


def escape(text: str) -> str:
    """Return text that LaTeX sets as it reads."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def to_latex(table: Table) -> str:
    """Render a table as a ``table`` environment with caption and label."""
    columns = "l" * min(table.numeric_from, len(table.header)) + "r" * max(
        0, len(table.header) - table.numeric_from
    )
    caption = ". ".join(part.rstrip(".") for part in (table.title, table.note) if part)
    lines = [" & ".join(map(escape, cells)) + r" \\" for cells in (table.header, *table.rows)]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{escape(caption)}.}}",
            rf"\label{{tab:{table.key}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def write_latex(tables: Iterable[Table], folder: Path) -> None:
    """Write every table that has rows as ``{key}.tex``; files of tables that have none now are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {f"{table.key}.tex": to_latex(table) for table in tables if table.rows}
    for stale in folder.glob("*.tex"):
        if stale.name not in written:
            stale.unlink()
    for name, text in written.items():
        write_atomic(folder / name, text.encode(), durable=False)
