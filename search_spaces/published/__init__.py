"""Tables of the published study's numbers. README.md here says how far each can be trusted."""

from __future__ import annotations

import csv
from importlib.resources import files


def read_published(name: str) -> list[dict[str, str]]:
    """Return the rows of ``<name>.csv``, with all values as text."""
    text = (files(__name__) / f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
