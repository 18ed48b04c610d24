"""Tables of published numbers. README.md in this folder describes their precision."""

from __future__ import annotations

import csv
from importlib.resources import files


def read_published(name: str) -> list[dict[str, str]]:
    """Return the rows of ``<name>.csv``. All values are text."""
    text = (files(__name__) / f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
