"""The error family of the command line; rooted in :mod:`search_spaces.errors`, the lowest layer."""

from __future__ import annotations

from search_spaces.errors import (
    ConfigError,
    CorruptStoreError,
    DataError,
    SetupError,
    SweepError,
    collect,
    unknown_name,
)

__all__ = [
    "ConfigError",
    "CorruptStoreError",
    "DataError",
    "SetupError",
    "SweepError",
    "collect",
    "unknown_name",
]
