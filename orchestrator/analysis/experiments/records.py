"""Records of an experiment: the arms, their changes of K_F and d, and the effects on responses."""

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
"""Smallest change of log K_F with which an arm is used. It is a factor of two in K_F."""
MOVED_DIMENSION = float(np.log(1.25))
"""Smallest change of log d with which an arm is used. It is smaller than the change of log
K_F, because d is harder to double."""
HELD = 0.05
"""Largest change of the log of a property that an arm should not change, with which an arm is
used."""
SMALL_SHARE = 0.5
"""Limit for a small slope, as a share of the law's rate. A slope is small if its whole
interval is closer to 0 than this limit."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One dataset of a world: the base dataset or a condition.

    Attributes:
        dataset: Name of the dataset.
        world: Name of the world.
        moves: The property that this condition should change, or ``nothing`` for a control. It
            is ``base`` for a base dataset.
        name: Name of the condition. It is the same in all worlds.
        shows: Classes that the images of the dataset show.
        intervene_on: Images that the condition changes: all images, or only training images.
    """

    dataset: str
    world: str
    moves: Moves
    name: str = ""
    shows: tuple[str, ...] = ()
    intervene_on: InterveneOn = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The result of the check of one arm against its base.

    Attributes:
        arm: The arm.
        sharpness_moved: Change of log K_F from base to arm.
        dimension_moved: Change of log d from base to arm.
        counts: True if the arm is used, because it changed its property and no other property.
        reason: Reason why the arm is not used; empty if it is used.
    """

    arm: Arm
    sharpness_moved: float | None = None
    dimension_moved: float | None = None
    counts: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """The change of one response if one property changes, as a mean over worlds.

    Two methods give intervals and p-values: a t distribution over worlds, and a jackknife over
    the classes that worlds share. The wider interval and the larger p-values are stored.

    Attributes:
        estimand: Words for the estimated number.
        response: Name of the response.
        arm: Name of the condition; empty for all conditions together.
        theory: Value that the law predicts for the number.
        num_worlds: Number of worlds over which the mean is taken.
        num_classes: Number of classes in the jackknife; 0 if there are too few classes for a
            jackknife.
        value: The mean over worlds.
        interval: 95 % interval of the mean.
        p_zero: p-value of the test against 0, that is, no effect.
        p_theory: p-value of the test against the law's value.
        by_world: Value of each world, by name of the world.
        num_cells: Number of pairs of an arm and its base at equal model and N.
        num_at_chance: Number of pairs that were left out because the loss of the base is at
            least the chance loss.
        num_without: Number of pairs that were left out because the base or the arm has no log
            response. For example, an error of 0 has no logarithm.
        trained_on: Images on which the compared networks were trained. Empty if arms also
            change test images.
        tested_on: Images on which the compared networks were tested. Empty if arms also change
            test images.
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
        """True if the whole interval lies between −½ and +½ of the law's rate."""
        if self.interval is None:
            return False
        bound = SMALL_SHARE * abs(self.theory)
        low, high = self.interval
        return -bound < low <= high < bound

    @property
    def in_units_of_the_law(self) -> Interval:
        """The interval, divided by the law's value.

        An interval that contains 1 agrees with the law.
        """
        if self.interval is None or not self.theory:
            return -np.inf, np.inf
        low, high = sorted(bound / self.theory for bound in self.interval)
        return low, high

    @property
    def verdict(self) -> Verdict:
        """The verdict on the direction that the law predicts, not corrected for other responses."""
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
        answer: Sentences on the checks and effects.
        moved_shares: Median share of the test loss that comes from images that a condition
            changes. The key ``base`` is for the images before the change, and ``condition``
            for the images after the change.
    """

    gates: tuple[Gate, ...]
    effects: tuple[Effect, ...]
    answer: str
    moved_shares: Mapping[str, float] = field(default_factory=dict)
