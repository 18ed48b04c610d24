"""Records of an experiment: its arms, what the measures say of each, and what responses did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from orchestrator.analysis.answers import Verdict, is_significant
from orchestrator.analysis.inference import Interval

Moves = Literal["base", "sharpness", "dimension", "nothing"]
InterveneOn = Literal["all", "training"]
Images = Literal["", "base", "condition"]
MOVED = float(np.log(2))
"""An arm counts if log K_F moves by this much: K_F by a factor of two."""
MOVED_DIMENSION = float(np.log(1.25))
"""The same of log d, which cannot be doubled as easily."""
HELD = 0.05
"""Largest change (log) of the property that an arm holds."""
SMALL_SHARE = 0.5
"""A slope whose interval lies within this share of the law's rate of 0 is smaller than half."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One dataset of a world.

    Attributes:
        dataset: Its name.
        world: The world.
        moves: What it is meant to move.
        name: Name of the condition, the same in all worlds.
        shows: Classes that its images show.
        intervene_on: Whether all images are moved, or training images alone.
    """

    dataset: str
    world: str
    moves: Moves
    name: str = ""
    shows: tuple[str, ...] = ()
    intervene_on: InterveneOn = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The measures of one arm against its base.

    Attributes:
        arm: The arm.
        sharpness_moved: Change of log K_F.
        dimension_moved: Change of log d.
        counts: Whether the arm moved what it should, and that alone.
        reason: Why it does not count.
    """

    arm: Arm
    sharpness_moved: float | None = None
    dimension_moved: float | None = None
    counts: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """The change of one response when one property moves, as a mean over worlds.

    Interval and p-values are the wider and the larger ones of two: t over worlds, and a jackknife
    over the classes that worlds share.

    Attributes:
        estimand: The number, in words.
        response: Name of the response.
        arm: The condition; empty for all together.
        theory: What the law says.
        num_worlds: Worlds that the mean is over.
        num_classes: Classes that the jackknife is over; 0 if there are too few for one.
        value: The mean.
        interval: 95 % interval.
        p_zero: p-value of no effect.
        p_theory: p-value of the law's value.
        by_world: The value of each world.
        num_cells: Pairs of equal model and N that entered.
        num_at_chance: Pairs left out because their base has the chance loss or more.
        num_without: Pairs left out because one side lacks the response (an error of 0).
        trained_on: Images that the compared networks were trained on, if arms move training images
            alone; else empty.
        tested_on: The same of the images that they were tested on.
    """

    estimand: str
    response: str
    arm: str
    theory: float
    num_worlds: int
    num_classes: int = 0
    value: float | None = None
    interval: Interval | None = None
    p_zero: float | None = None
    p_theory: float | None = None
    by_world: dict[str, float]
    num_cells: int = 0
    num_at_chance: int = 0
    num_without: int = 0
    trained_on: Images = ""
    tested_on: Images = ""

    @property
    def told_from_zero(self) -> bool:
        """True if the interval leaves 0 out: the response follows K_F, or moves against the law."""
        return is_significant(0.0, self.interval)

    @property
    def smaller_than_half(self) -> bool:
        """True if the whole interval lies within half the law's rate of 0."""
        if self.interval is None:
            return False
        bound = SMALL_SHARE * abs(self.theory)
        low, high = self.interval
        return -bound < low <= high < bound

    @property
    def in_units_of_the_law(self) -> Interval:
        """The interval divided by the law's value: 1 is the law, and negative is against it."""
        if self.interval is None or not self.theory:
            return -np.inf, np.inf
        low, high = sorted(bound / self.theory for bound in self.interval)
        return low, high

    @property
    def verdict(self) -> Verdict:
        """The verdict on the law's direction; not adjusted for other responses."""
        if self.interval is None or self.p_zero is None or not self.theory:
            return "not testable"
        if not is_significant(self.p_zero, self.interval):
            return "undecided"
        low, _ = self.in_units_of_the_law
        return "supported" if low > 0 else "contradicted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interventions:
    """The results of an experiment.

    Attributes:
        gates: Gates of all arms.
        effects: Effects of the arms that count.
        answer: The same in sentences.
        moved_shares: Median share of the test loss of the bases' networks that lies on the images
            which a condition moves: ``base`` as the base has them, ``condition`` as moved.
    """

    gates: tuple[Gate, ...]
    effects: tuple[Effect, ...]
    answer: str
    moved_shares: Mapping[str, float] = field(default_factory=dict)
