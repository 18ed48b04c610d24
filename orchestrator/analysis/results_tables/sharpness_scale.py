"""The image scale on which K_F was measured, and whether values of datasets may be compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from orchestrator.results.table import (
    DATASET,
    IMAGE_SIZE,
    LABEL_SHARPNESS,
    SHARPNESS_CHANNELS,
    SHARPNESS_PIXEL_RANGE,
)

Policy = Literal["refuse", "ignore"]
#: The short reason of every refusal; the long one, with the scales met, is the scale's note.
UNEQUAL_SCALES = "K_F was measured on unequal scales"
SAME_SHARPNESS = "K_F is the same for all datasets"
UNRECORDED = "unrecorded"
_SCALE = [SHARPNESS_PIXEL_RANGE, IMAGE_SIZE, SHARPNESS_CHANNELS]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharpnessScale:
    """Whether K_F may be compared over datasets, what was done, and the scales met with their
    datasets.
    """

    comparable: bool
    policy: Policy
    note: str
    scales: tuple[tuple[str, tuple[str, ...]], ...] = ()


def sharpness_scale(table: pd.DataFrame, policy: Policy) -> SharpnessScale:
    """Tell whether K_F, which depends on pixel range, side and channels, may be compared over
    datasets.
    """
    measured = table.reindex(columns=[*table.columns.union([LABEL_SHARPNESS, *_SCALE])])
    measured = measured[measured[LABEL_SHARPNESS].notna()]
    scales = measured.groupby(_SCALE, dropna=False)[DATASET]
    found = tuple((spell_scale(key), tuple(sorted(names.unique()))) for key, names in scales)
    listed = "; ".join(f"{scale}: {', '.join(names)}" for scale, names in found)
    comparable, note = len(found) <= 1 or policy == "ignore", ""
    if not comparable:
        note = (
            f"{UNEQUAL_SCALES} ({listed}), so fits that compare it over datasets are refused; "
            "measure at one "
            "size and channel count."
        )
    elif len(found) > 1:
        note = (
            "K_F is compared over unequal scales as it stands, although more pixels or channels "
            "alone make "
            f"it smaller: {listed}."
        )
    elif measured[_SCALE].isna().any(axis=None):
        note = "The scale of K_F is not fully recorded; it is taken to be one."
    return SharpnessScale(comparable=comparable, policy=policy, note=note, scales=found)


def spell_scale(key: object) -> str:
    """Spell the scale of a K_F: its (pixel range, side, channels), NaN where one is not
    recorded.
    """
    range_, side, channels = np.asarray(key, dtype=float).tolist()
    parts = {
        "size": (side, f"{side:g}×{side:g} pixels"),
        "channels": (channels, f"{channels:g} channel{'s' * (channels != 1)}"),
        "range": (range_, f"range {range_:g}"),
    }
    return ", ".join(
        f"{UNRECORDED} {what}" if np.isnan(v) else said for what, (v, said) in parts.items()
    )
