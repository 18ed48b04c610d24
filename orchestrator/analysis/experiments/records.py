"""Records of an experiment: its arms, their changes of K_F and d, and the effects on responses."""

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
"""Smallest change of log K_F of an arm that is used: a factor of two in K_F."""
MOVED_DIMENSION = float(np.log(1.25))
"""Smallest change of log d of an arm that is used. It is smaller than for K_F, because d is harder
to double."""
HELD = 0.05
"""Largest change of the logarithm of the property that an arm should leave unchanged."""
SMALL_SHARE = 0.5
"""Share of the law's rate. A slope is called small if its whole interval is closer to 0 than
this share."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One dataset of a world: its base or a condition.

    Attributes:
        dataset: Name of the dataset.
        world: Name of the world.
        moves: The property that this condition should change, or ``nothing``; ``base`` for a base
            dataset.
        name: Name of the condition, the same in all worlds.
        shows: Classes that its images show.
        intervene_on: Images that the condition changes: all images, or training images alone.
    """

    dataset: str
    world: str
    moves: Moves
    name: str = ""
    shows: tuple[str, ...] = ()
    intervene_on: InterveneOn = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The check of one arm against its base.

    Attributes:
        arm: The arm.
        sharpness_moved: Change of log K_F from base to arm.
        dimension_moved: Change of log d from base to arm.
        counts: True if the arm changed its property, and no other.
        reason: Reason why the arm is not used.
    """

    arm: Arm
    sharpness_moved: float | None = None
    dimension_moved: float | None = None
    counts: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """The change of one response if one property changes, as a mean over worlds.

    Two methods give an interval and p-values: t over worlds, and a jackknife over the classes
    that worlds share. The wider interval and the larger p-values are stored.

    Attributes:
        estimand: The estimated number, in words.
        response: Name of the response.
        arm: Name of the condition; empty for all conditions together.
        theory: The law's value of the number.
        num_worlds: Number of worlds in the mean.
        num_classes: Number of classes in the jackknife; 0 if they are too few for one.
        value: The mean over worlds.
        interval: 95 % interval of the mean.
        p_zero: p-value against no effect.
        p_theory: p-value against the law's value.
        by_world: Value of each world, by its name.
        num_cells: Number of pairs of arm and base, of equal model and N.
        num_at_chance: Number of pairs left out because their base has at least the chance
            loss.
        num_without: Number of pairs left out because the base or the arm lacks the response. The
            logarithm of an error of 0 is missing.
        trained_on: Images on which the compared networks were trained; empty unless arms
            change training images alone.
        tested_on: Images on which they were tested; empty unless arms change training images
            alone.
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
        """True if the interval excludes 0."""
        return is_significant(0.0, self.interval)

    @property
    def smaller_than_half(self) -> bool:
        """True if the whole interval is closer to 0 than half the law's rate."""
        if self.interval is None:
            return False
        bound = SMALL_SHARE * abs(self.theory)
        low, high = self.interval
        return -bound < low <= high < bound

    @property
    def in_units_of_the_law(self) -> Interval:
        """The interval divided by the law's value. Values near 1 agree with the law."""
        if self.interval is None or not self.theory:
            return -np.inf, np.inf
        low, high = sorted(bound / self.theory for bound in self.interval)
        return low, high

    @property
    def verdict(self) -> Verdict:
        """The verdict on the law's direction, without correction for other responses."""
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
        gates: The checks (gates) of all arms.
        effects: Effects of the arms that are used.
        answer: Checks and effects in sentences.
        moved_shares: Median share of the bases' test loss on the images that a condition
            changes: ``base`` before the change, ``condition`` after it.
    """

    gates: tuple[Gate, ...]
    effects: tuple[Effect, ...]
    answer: str
    moved_shares: Mapping[str, float] = field(default_factory=dict)
