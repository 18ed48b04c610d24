"""What the parts of a split are called, the same for every kind of own data."""

from __future__ import annotations

import re

from search_spaces.errors import DataError
from tasks.sources.base import RawRequest, Split

NAMES: dict[str, Split | None] = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "test": "test",
    "testing": "test",
    "tst": "test",
    "val": None,
    "valid": None,
    "validation": None,
}
VALIDATION_LEFT_OUT = "validation split"
"""Reason to count: training has its own fixed test set, and a validation split is drawn when tuning."""


def split_of(name: str) -> Split | None:
    """Return the split that a name means: ``train``, ``test``, None for validation, empty for no split.

    Hugging Face's hub calls the folder of a large split's first files ``partial-train``.
    """
    return NAMES.get(name.strip().casefold().removeprefix("partial-"), "")


def split_of_file(name: str, request: RawRequest) -> Split | None:
    """Return the split that a word of a file's name, or else a folder above it, means.

    ``train-00000-of-00002.parquet``, ``skin_test_01.tar`` and ``val/0000.tar`` all say it.

    Raises:
        DataError: when the words of one name mean several.
    """
    parts = name.split("/")
    for words in (re.split(r"[\W_]+", parts[-1]), *([part] for part in parts[-2::-1])):
        meant = {split_of(word) for word in words} - {""}
        if len(meant) > 1:
            rule = f"{request.dataset.name}: a file's name must say one split"
            raise DataError(rule, request.hashed(name), "rename it: train-..., test-... or val-...")
        if meant:
            return meant.pop()
    return ""
