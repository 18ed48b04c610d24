"""What predictions start from."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.analysis.law_records import Interval, Status

#: The term −log N / d of a prior.
EXPONENT = "exponent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What a sweep says of the losses of a dataset not yet seen: fixed effects and the variances between
    datasets.

    ``values`` and ``covariance`` are of (mean intercept, ``terms``...). Variances are of a dataset's own
    height, of its own slope in log N, and of single points, in squared log loss. ``stretch`` is what
    intervals are made longer by with a pilot of 0, 1, 2, ... trainings: how much further off datasets left
    out were.
    """

    terms: tuple[str, ...]
    values: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    height_variance: float
    slope_variance: float
    residual_variance: float
    degrees_of_freedom: int
    stretch: tuple[float, ...] = (1.0,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """A prior that knows d_data and K_F, and a plain one that knows nothing of the dataset (model and N
    alone).

    ``doubt`` is what a reader of every prediction from it should know.
    """

    model: str
    subset: str
    status: Status
    reason: str = ""
    doubt: str = ""
    num_datasets: int = 0
    centre: float = 0.0
    informed: Prior | None = None
    plain: Prior | None = None
    ranges: dict[str, Interval] = field(default_factory=dict)
