"""What experiments that move one property return: gates of arms, effects over worlds, the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrator.analysis.law_records import Interval

Moves = Literal["base", "sharpness", "dimension", "nothing"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One dataset of an intervention: which world it belongs to, what was moved in it, and by which dial."""

    dataset: str
    world: str
    moves: Moves
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What the measures say of one arm against its base (log ratios), and whether it counts."""

    arm: Arm
    sharpness_moved: float | None
    dimension_moved: float | None
    counts: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What one response does when one property moves: mean over worlds with its 95 % t interval.

    Attributes:
        estimand: ``Δ log loss / Δ log K_F``, ``Δ log loss`` of controls, or ``exponent · d``.
        arm: empty for all arms together.
        theory: the law's value.
        p_zero, p_theory: paired t tests over worlds.
        num_cells: pairs of equal model and N that entered.
        num_at_chance: pairs left out because their base learned nothing.
        num_without: pairs left out because one side lacks the response (an error of 0 has no logarithm).
    """

    estimand: str
    response: str
    arm: str
    theory: float
    num_worlds: int
    value: float | None
    interval: Interval | None
    p_zero: float | None
    p_theory: float | None
    by_world: dict[str, float]
    num_cells: int = 0
    num_at_chance: int = 0
    num_without: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Interventions:
    """Gates of all arms, effects of those that count, and the sentences that say what came out."""

    gates: tuple[Gate, ...]
    effects: tuple[Effect, ...]
    answer: str

    def effect(self, estimand: str, response: str, arm: str = "") -> Effect | None:
        """Return one effect, or None where it was never tried."""
        for effect in self.effects:
            if (effect.estimand, effect.response, effect.arm) == (estimand, response, arm):
                return effect
        return None
