"""When K_F may be compared: it is a label difference per pixel distance, so it depends on how pixels are
counted.

For the same pictures K_F ∝ 1 / (pixel range · image side · √channels): stretching the range stretches
distances, and more pixels or channels add terms to them (Konz & Mazurowski 2024, README: equal channel counts
are needed).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from orchestrator.analysis.fit_records import SharpnessScale
from orchestrator.results import columns as c

Policy = Literal["refuse", "rescale", "ignore"]

#: The short reason of every refusal; the long one, with the scales met, is the scale's note.
UNEQUAL_SCALES = "K_F was measured on unequal scales"
#: What a part of a scale is called that no record states.
UNRECORDED = "unrecorded"

#: What is measured on the scale of K_F and converted with it.
_MEASURED = (c.LABEL_SHARPNESS, c.LABEL_SHARPNESS_MEAN, c.LABEL_SHARPNESS_PERMUTED)
_SCALE = [c.SHARPNESS_PIXEL_RANGE, c.IMAGE_SIZE, c.SHARPNESS_CHANNELS]


def apply_policy(table: pd.DataFrame, policy: Policy) -> tuple[pd.DataFrame, SharpnessScale]:
    """Return the table with K_F on one scale (or as it is), and what was found and done.

    Args:
        table: normalised results table.
        policy: ``refuse`` leaves K_F alone and lets fits that need it refuse; ``rescale`` converts to the
        most
            common scale by the law above, which ignores the blur of resizing (about 8 % from 28 to 224
            pixels); ``ignore`` compares the numbers as they stand and says so.
    """
    measured = table[table[c.LABEL_SHARPNESS].notna()]
    scales = measured.groupby(_SCALE, dropna=False)[c.DATASET]
    found = [(spell_scale(key), tuple(sorted(names.unique()))) for key, names in scales]
    if len(found) <= 1:
        unrecorded = bool(len(measured)) and bool(measured[_SCALE].isna().any(axis=None))
        note = "The scale of K_F is not fully recorded; it is taken to be one." if unrecorded else ""
        return table, SharpnessScale(comparable=True, policy=policy, note=note, scales=tuple(found))
    listing = "; ".join(f"{scale}: {', '.join(names)}" for scale, names in found)
    if policy == "rescale" and not measured[_SCALE].isna().any(axis=None):
        reference = np.array(scales.size().idxmax(), dtype=float)
        note = (
            f"K_F was converted to {spell_scale(reference)} by K ∝ 1/(range · side · √channels); "
            f"measured on {listing}."
        )
        scale = SharpnessScale(comparable=True, policy=policy, note=note, scales=tuple(found))
        return table.assign(**{name: _rescaled(table, name, reference) for name in _MEASURED}), scale
    if policy == "ignore":
        note = (
            "K_F is compared over unequal scales as it stands, although more pixels or channels alone "
            f"make it smaller: {listing}."
        )
        return table, SharpnessScale(comparable=True, policy=policy, note=note, scales=tuple(found))
    note = (
        f"K_F was measured on unequal scales ({listing}), so fits that compare it over datasets are refused; "
        "measure at one size and channel count, or fit with sharpness_policy='rescale'."
    )
    return table, SharpnessScale(comparable=False, policy=policy, note=note, scales=tuple(found))


def scales_of(table: pd.DataFrame) -> tuple[str, ...]:
    """Return the scales that a table's K_F was measured on, those alone that are recorded in full."""
    if not {c.LABEL_SHARPNESS, *_SCALE} <= set(table.columns):
        return ()
    known = table.loc[table[c.LABEL_SHARPNESS].notna(), _SCALE].dropna().drop_duplicates()
    return tuple(sorted(spell_scale(row) for row in known.itertuples(index=False, name=None)))


def _rescaled(table: pd.DataFrame, name: str, reference: np.ndarray) -> pd.Series:
    range_, side, channels = (table[part] / value for part, value in zip(_SCALE, reference, strict=True))
    return pd.Series(table[name] * range_ * side * np.sqrt(channels))


def spell_scale(key: object) -> str:
    """Spell the scale of a K_F: its (pixel range, side, channels), NaN where one is not recorded."""
    range_, side, channels = np.asarray(key, dtype=float)
    side_text = f"{UNRECORDED} size" if np.isnan(side) else f"{side:g}×{side:g} pixels"
    plural = "" if channels == 1 else "s"
    channel_text = f"{UNRECORDED} channels" if np.isnan(channels) else f"{channels:g} channel{plural}"
    range_text = f"{UNRECORDED} range" if np.isnan(range_) else f"range {range_:g}"
    return f"{side_text}, {channel_text}, {range_text}"
