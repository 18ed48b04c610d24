"""Tables as plain text, for a terminal."""

from __future__ import annotations

from orchestrator.analysis.formats import Table


def to_text(table: Table) -> str:
    """Render a table as aligned plain text."""
    lines = [table.header, *table.rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(table.header))]
    body = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([table.title, *([table.note] if table.note else []), *body])
