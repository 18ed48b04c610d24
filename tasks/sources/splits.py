"""What the parts of a split are called, the same for every kind of own data."""

from __future__ import annotations

from tasks.sources.base import Split

NAMES: dict[str, Split | None] = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": None,
    "valid": None,
    "validation": None,
}
VALIDATION_LEFT_OUT = "validation split"
"""Reason to count: training has its own fixed test set, and a validation split is drawn when tuning."""


def split_of(name: str) -> Split | None:
    """Return the split that a name means: ``train``, ``test``, None for validation, empty for no split."""
    return NAMES.get(name.strip().casefold(), "")
