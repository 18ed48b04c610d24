"""Records of fits, one kind each: what was fitted to which points, and the estimates or why none.

A fit that could not be made has no estimates and a ``reason``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from orchestrator.analysis.law_fits.estimates import Estimate
from orchestrator.analysis.results_tables.points import ALL, POOLED
from orchestrator.results.columns import D_REPR_MLE, TEST_LOSS

Status = Literal["ok", "not_enough_data", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The fields that all fits have in common.

    Attributes:
        model: Name of the network; ``pooled`` for all of them, each with its own intercept.
        subset: Domain of the datasets; ``all`` for both.
        response: Column that is explained.
        variant: Which d, which points or which scale of K_F, where it is not the usual one.
        status: ``ok``, or why there is no estimate.
        reason: The same in words.
        num_datasets: Datasets with all numbers that the fit needs.
        num_needed: Datasets that it takes.
        num_points: Points of these datasets.
        estimates: The numbers.
    """

    model: str = POOLED
    subset: str = ALL
    response: str = TEST_LOSS
    variant: str = ""
    status: Status = "not_enough_data"
    reason: str = ""
    num_datasets: int = 0
    num_needed: int = 0
    num_points: int = 0
    estimates: tuple[Estimate, ...] = ()

    def estimate(self, name: str) -> Estimate | None:
        """Return the estimate called ``name``; None if the fit has none of it."""
        for estimate in self.estimates:
            if estimate.name == name:
                return estimate
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeightFit(Fit):
    """Dataset effects of log loss at equal model and N, regressed on properties of the datasets.

    Attributes:
        kind: ``headline`` for 1/d, log K_F and the domain label together; else ``height``.
        terms: Columns of the points that explain the effects.
    """

    kind: Literal["headline", "height"] = "height"
    terms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExponentFit(Fit):
    """Log loss on −log N / d within curves: 1 is the law's bound, 0 no fall.

    Attributes:
        kind: ``exponent``.
        num_curves: Curves with two train sizes and d.
        num_at_chance: Curves left out because chance level holds their losses down.
        bound_p: p-value of "not slower than the bound", which only a slower fall can contradict.
        by_dataset: The exponent of each dataset.
    """

    kind: Literal["exponent"] = "exponent"
    num_curves: int = 0
    num_at_chance: int = 0
    bound_p: float | None = None
    by_dataset: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FallFit(Fit):
    """Log loss on log N within the curves of each dataset; datasets count once.

    Attributes:
        kind: ``fall``.
        train_sizes: Smallest and largest train size.
        num_models: Networks.
        num_curves: Curves with two train sizes.
        num_falling_curves: Curves of which the loss falls.
        sign_p: Exact two-sided p-value of a sign test over datasets.
        by_dataset: Slope of log loss on log N of each dataset.
    """

    kind: Literal["fall"] = "fall"
    train_sizes: tuple[int, int] = (0, 0)
    num_models: int = 0
    num_curves: int = 0
    num_falling_curves: int = 0
    sign_p: float | None = None
    by_dataset: dict[str, float] = field(default_factory=dict)

    @property
    def num_falling(self) -> int:
        """Datasets of which the loss falls."""
        return sum(slope < 0 for slope in self.by_dataset.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackFit(Fit):
    """Correlation of the loss gained by an attack with K_F, within domains.

    Attributes:
        kind: ``attack``.
        interval_critical: Standard errors of Fisher's z by which its interval reaches to each side.
        criticals: Standard errors that the largest correlation exceeds by chance at the levels
            0.05 / k, for k = 1, 2, … tests of a family.
    """

    kind: Literal["attack"] = "attack"
    interval_critical: float = 0.0
    criticals: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RepresentationFit(Fit):
    """A count of the points at which d_repr is at most d_data.

    Attributes:
        kind: ``representation``.
        num_held: Points at which it is.
        by_dataset: Share of the points above, of each dataset that has any.
    """

    kind: Literal["representation"] = "representation"
    response: str = D_REPR_MLE
    num_held: int = 0
    by_dataset: dict[str, float] = field(default_factory=dict)


AnyFit = HeightFit | ExponentFit | FallFit | AttackFit | RepresentationFit
