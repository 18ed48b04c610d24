"""What the study chooses: specs, fingerprints, tables of models, datasets and recipes, presets."""

from __future__ import annotations

from search_spaces.errors import ConfigError, CorruptStoreError, DataError, SetupError, SweepError
from search_spaces.fingerprint import canonical_json, derive_seed, fingerprint
from search_spaces.specs import MeasureSpec, PreparedSpec, SubsetSpec, TrialSpec
from search_spaces.sweeps import SweepSpec

__all__ = [
    "ConfigError",
    "CorruptStoreError",
    "DataError",
    "MeasureSpec",
    "PreparedSpec",
    "SetupError",
    "SubsetSpec",
    "SweepError",
    "SweepSpec",
    "TrialSpec",
    "canonical_json",
    "derive_seed",
    "fingerprint",
]
