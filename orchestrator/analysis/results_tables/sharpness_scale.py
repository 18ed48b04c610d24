"""The image scales on which K_F was measured, and whether K_F may be compared between datasets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from orchestrator.results.columns import (
    DATASET,
    IMAGE_SIZE,
    LABEL_SHARPNESS,
    SHARPNESS_CHANNELS,
    SHARPNESS_PIXEL_RANGE,
)
from search_spaces.errors import plural

Policy = Literal["refuse", "ignore"]
"""The user's choice for unequal scales: ``refuse`` makes no fit that compares K_F, and
``ignore`` compares K_F nevertheless."""
UNEQUAL_SCALES = "K_F was measured on unequal scales"
"""Reason why a fit is refused. :attr:`SharpnessScale.note` lists the scales."""
SAME_SHARPNESS = "K_F is the same for all datasets"
UNRECORDED = "unrecorded"
SCALE_COLUMNS = [SHARPNESS_PIXEL_RANGE, IMAGE_SIZE, SHARPNESS_CHANNELS]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharpnessScale:
    """The scales on which K_F was measured.

    Attributes:
        comparable: True if K_F is compared between datasets.
        policy: The user's choice for unequal scales: ``refuse`` or ``ignore``.
        note: Sentences on unequal or unknown scales; empty if all scales are known and equal.
        scales: For each scale, its text and the names of its datasets.
    """

    comparable: bool
    policy: Policy
    note: str
    scales: tuple[tuple[str, tuple[str, ...]], ...] = ()


def sharpness_scale(table: pd.DataFrame, policy: Policy) -> SharpnessScale:
    """Return the scales of K_F. A scale is a pixel range, an image size and a number of channels.

    Args:
        table: A results table with one row per trial.
        policy: The user's choice for unequal scales.
    """
    columns = table.columns.union([LABEL_SHARPNESS, *SCALE_COLUMNS])
    measured = table.reindex(columns=[*columns])
    measured = measured[measured[LABEL_SHARPNESS].notna()]
    scales = []
    parts = []
    for key, rows in measured.groupby(SCALE_COLUMNS, dropna=False):
        scale = spell_scale(key)
        datasets = sorted(rows[DATASET].unique())
        scales.append((scale, tuple(datasets)))
        parts.append(f"{scale}: {', '.join(datasets)}")
    names = "; ".join(parts)
    note = ""
    if len(scales) > 1 and policy == "refuse":
        note = (
            f"{UNEQUAL_SCALES} ({names}), so isweep makes no fit that compares K_F between "
            "datasets. Measure all datasets at one image size and number of channels."
        )
    elif len(scales) > 1:
        note = (
            "K_F is compared between datasets although its scales differ. With more pixels or "
            f"channels, K_F is smaller: {names}."
        )
    elif measured[SCALE_COLUMNS].isna().any(axis=None):
        note = (
            "The scale of K_F is not fully recorded. isweep assumes that the scale is the same for "
            "all datasets."
        )
    return SharpnessScale(
        comparable=len(scales) <= 1 or policy == "ignore",
        policy=policy,
        note=note,
        scales=tuple(scales),
    )


def spell_scale(key: object) -> str:
    """Return the scale of a K_F as text.

    Args:
        key: Pixel range, side in pixels and number of channels; NaN for an unrecorded value.
    """
    pixel_range, side, channels = np.asarray(key, dtype=float).tolist()
    parts = [f"{UNRECORDED} size", f"{UNRECORDED} channels", f"{UNRECORDED} range"]
    if not np.isnan(side):
        parts[0] = f"{side:g}×{side:g} pixels"
    if not np.isnan(channels):
        parts[1] = plural(int(channels), "channel")
    if not np.isnan(pixel_range):
        parts[2] = f"range {pixel_range:g}"
    return ", ".join(parts)
