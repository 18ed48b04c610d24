"""Records of the fits of the law. Each kind of fit has one class.

A record stores the estimates and the number of points behind them. If a fit was not possible,
its record has no estimates, and ``reason`` states why.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from orchestrator.analysis.law_fits.estimates import Estimate
from orchestrator.analysis.results_tables.points import ALL, POOLED
from orchestrator.results.columns import D_REPR_MLE, TEST_LOSS
from search_spaces.errors import plural

Status = Literal["ok", "not_enough_data", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Base class of all fits, with their common fields.

    Attributes:
        model: Name of the network; ``pooled`` for all networks together.
        subset: Domain of the datasets; ``all`` for both domains.
        response: Column of the response.
        variant: Name of an unusual choice of d, of points or of the scale of K_F; empty for
            the usual choice.
        status: ``ok``, ``not_enough_data`` or ``refused``.
        reason: Text that states why there is no estimate; empty if the status is ``ok``.
        num_datasets: Number of datasets that have all numbers that the fit needs.
        num_needed: Smallest number of datasets for this fit.
        num_points: Number of points that have all numbers that the fit needs.
        estimates: The estimates.
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
        """Return the estimate with this name; None if the fit has no such estimate."""
        for estimate in self.estimates:
            if estimate.name == name:
                return estimate
        return None

    def too_few_datasets(self, needed: str) -> str:
        """Return a text that there are too few datasets.

        Args:
            needed: The numbers that each dataset must have, such as ``with K_F``.
        """
        verb = "is" if self.num_datasets == 1 else "are"
        return (
            f"the fit needs at least {plural(self.num_needed, 'dataset')} {needed}, and there "
            f"{verb} {self.num_datasets}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HeightFit(Fit):
    """A regression of heights on properties of the datasets.

    The height of a dataset is its effect on log loss, compared at equal model and N.

    Attributes:
        kind: ``headline`` if the fit answers the headline questions; else ``height``.
        terms: Columns of the regressors.
    """

    kind: Literal["headline", "height"] = "height"
    terms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExponentFit(Fit):
    """A regression of log loss on −log N / d within curves. The law's bound is a slope of 1.

    Attributes:
        kind: ``exponent``.
        num_curves: Number of curves with d and at least two train sizes.
        num_at_chance: Number of curves that were left out because their losses are at chance
            level.
        bound_p: Two-sided p-value of the null hypothesis that the exponent is 1.
        by_dataset: Exponent of each dataset, by name of the dataset.
    """

    kind: Literal["exponent"] = "exponent"
    num_curves: int = 0
    num_at_chance: int = 0
    bound_p: float | None = None
    by_dataset: dict[str, float] = field(default_factory=dict)

    @property
    def num_above_bound(self) -> int:
        """Number of datasets whose loss falls faster than the law's bound: exponents above 1."""
        return sum(exponent > 1 for exponent in self.by_dataset.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class FallFit(Fit):
    """Slopes of log loss on log N within the curves of each dataset.

    Attributes:
        kind: ``fall``.
        train_sizes: Smallest and largest train size of all curves.
        num_models: Number of networks.
        num_curves: Number of curves with at least two train sizes.
        num_falling_curves: Number of curves with a slope below 0.
        num_at_smallest: Number of networks at the smallest train size.
        num_unfitted: Number of networks at the smallest train size that do not fit their own
            training images.
        sign_p: Two-sided p-value of an exact sign test over datasets.
        by_dataset: Slope of log loss on log N of each dataset, by name of the dataset.
        by_model: Mean slope over datasets of each network, by name of the network.
        of_fitted: The mean slope from networks that fit their training images; None if no
            curve of such networks has two train sizes.
    """

    kind: Literal["fall"] = "fall"
    train_sizes: tuple[int, int] = (0, 0)
    num_models: int = 0
    num_curves: int = 0
    num_falling_curves: int = 0
    num_at_smallest: int = 0
    num_unfitted: int = 0
    sign_p: float | None = None
    by_dataset: dict[str, float] = field(default_factory=dict)
    by_model: dict[str, float] = field(default_factory=dict)
    of_fitted: Estimate | None = None

    @property
    def num_falling(self) -> int:
        """Number of datasets with a slope below 0."""
        return sum(slope < 0 for slope in self.by_dataset.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackFit(Fit):
    """A correlation between the loss that an attack adds and K_F, within domains.

    Attributes:
        kind: ``attack``.
        interval_critical: Half width of the confidence interval, in standard errors of
            Fisher's z.
        criticals: Critical values of the largest z, in standard errors of z. Entry k − 1 is
            for a family of k tests, that is for the level 0.05 / k. Entries whose level no
            permutation can reach are missing.
        range_left_out: Smallest and largest correlation of single models after the most
            influential dataset of this correlation is left out. None if this correlation is
            not the largest one.
    """

    kind: Literal["attack"] = "attack"
    interval_critical: float = 0.0
    criticals: tuple[float, ...] = ()
    range_left_out: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RepresentationFit(Fit):
    """The number of points at which d_repr is at most d_data.

    Attributes:
        kind: ``representation``.
        num_held: Number of points at which d_repr is at most d_data.
        num_unfitted: Number of points whose networks do not fit their own training images.
        num_held_unfitted: Number of points that count both in ``num_held`` and in
            ``num_unfitted``.
        median_ratio: Median of d_repr / d_data over points.
        median_ratio_fitted: The same median without networks that do not fit their training
            images. None if no network fits them.
        by_dataset: Share of points with d_repr above d_data, by name of the dataset. Datasets
            without such points are missing.
    """

    kind: Literal["representation"] = "representation"
    response: str = D_REPR_MLE
    num_held: int = 0
    num_unfitted: int = 0
    num_held_unfitted: int = 0
    median_ratio: float | None = None
    median_ratio_fitted: float | None = None
    by_dataset: dict[str, float] = field(default_factory=dict)


AnyFit = HeightFit | ExponentFit | FallFit | AttackFit | RepresentationFit
