"""When a number is claimed, and what decides it."""

from __future__ import annotations

from orchestrator.analysis.inference import LEVEL, Interval
from orchestrator.analysis.number_formats import p_value


def established(adjusted_p: float | None, bounds: Interval | None, null: float = 0.0) -> bool:
    """Whether a number is claimed: its adjusted p-value holds, and its interval excludes the
    null.
    """
    held = adjusted_p is not None and adjusted_p <= LEVEL
    return held and bounds is not None and not bounds[0] <= null <= bounds[1]


def decided(
    p: float | None, adjusted_p: float | None, bounds: Interval | None, null: float = 0.0
) -> str:
    """Spell the adjusted p-value, and why it establishes nothing where it does not."""
    if p is None or adjusted_p is None:
        return "not tested"
    said = p_value(adjusted_p)
    text = f"adjusted p {said if said.startswith('<') else f'= {said}'}"
    if established(adjusted_p, bounds, null):
        return text
    if adjusted_p <= LEVEL:
        return text + (
            f", but the interval holds {null:g}" if bounds else ", but without an interval"
        )
    text += f", above {LEVEL:g}"
    if not established(0.0, bounds, null):
        return text
    by = " (by resampling, unlike the interval)" if p > LEVEL else ""
    return f"p = {p_value(p)} alone{by}; {text}, decides"
