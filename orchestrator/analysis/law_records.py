"""What the law's own fits return: levels over dataset means, the within-dataset exponent, rivals and
claims.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Status = Literal["ok", "not_enough_data", "refused"]
Interval = tuple[float, float]

#: All models together, each with its own intercept.
POOLED = "pooled"
#: Both domains together.
ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeansCoefficient:
    """One coefficient over dataset means: t interval with G − p degrees of freedom, permutation beside it.

    ``exact`` says that all rearrangements were tried and that datasets are exchangeable under the null.
    """

    name: str
    value: float
    std_error: float
    interval: Interval
    p_value: float
    permutation_p: float | None = None
    num_permutations: int = 0
    exact: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much smaller one form's error is than another's on datasets neither has seen; negative is smaller.

    The mean over datasets of the difference in squared error, with its 95 % t interval over datasets.
    """

    against: str
    value: float
    interval: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelFit:
    """Dataset effects of log loss or log error, at equal model and train size, on properties of datasets.

    Attributes:
        response: ``test_loss`` or ``test_error``.
        terms: regressors, in the order of ``coefficients``.
        label_correlation: of log K_F with the domain label over datasets; near 1, no fit can part them.
        held_out_rmse: error in the log response on datasets left out of the fit.
        versus_label: against the bare domain label on the same datasets.
    """

    response: str
    terms: tuple[str, ...]
    model: str
    subset: str
    status: Status
    reason: str = ""
    num_datasets: int = 0
    num_points: int = 0
    coefficients: tuple[MeansCoefficient, ...] = ()
    label_correlation: float | None = None
    held_out_rmse: float | None = None
    versus_label: Difference | None = None

    def coefficient(self, name: str) -> MeansCoefficient:
        """Return the coefficient called ``name``.

        Raises:
            KeyError: if the fit has none of that name.
        """
        return {c.name: c for c in self.coefficients}[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExponentRival:
    """One form of the exponent of N, scored on the curves of datasets left out of its fit (heights left
    free).
    """

    form: str
    num_coefficients: int
    rmse: float
    versus_none: Difference | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExponentFit:
    """The exponent of N within datasets, times d: log loss on −log N / d with an intercept for every curve.

    1 is the law's bound, 0 no dependence on N. Changing the unit of N, of pixels or of the loss changes
    nothing here.

    Attributes:
        response: ``test_loss``, ``test_error``, or ``label_sharpness``, whose growth with N times d is 2
            where unlike labels lie mixed, and 0 where classes are separated.
        dimension: which d: ``d_data_mle`` or ``d_data_twonn`` at the largest train size of each dataset
        and class
            pair, or a variant of it.
        num_curves: curves with two train sizes and d_data.
        num_at_guessing: of these, those left out since guessing holds their losses down.
        interval: 95 %, jackknife over datasets (CR3), t with G − 1 degrees of freedom.
        wild_p: of the hypothesis 0, by the wild cluster bootstrap over datasets.
        left_out: the value without each dataset.
        by_dataset: each dataset's own value.
    """

    response: str
    dimension: str
    model: str
    subset: str
    status: Status
    reason: str = ""
    num_datasets: int = 0
    num_points: int = 0
    num_curves: int = 0
    num_at_guessing: int = 0
    size_span: float | None = None
    value: float | None = None
    std_error: float | None = None
    interval: Interval | None = None
    p_value: float | None = None
    wild_p: float | None = None
    wild_p_predicted: float | None = None
    left_out: dict[str, float] = field(default_factory=dict)
    by_dataset: dict[str, float] = field(default_factory=dict)
    rivals: tuple[ExponentRival, ...] = ()
    verdict: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackFamily:
    """All attacks × epsilons × models as one family of correlations with K_F, over dataset effects.

    ``adjusted`` are (attack, epsilon, model, r, adjusted p), by max-|r| permutation of K_F over datasets.
    """

    status: Status
    reason: str = ""
    num_datasets: int = 0
    num_permutations: int = 0
    exact: bool = False
    adjusted: tuple[tuple[str, float, str, float, float], ...] = ()
    num_established: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One headline question: its p-value, Holm's adjustment over all of them, and whether it is established.

    Everything else in the report is exploratory.
    """

    key: str
    p_value: float
    adjusted_p: float
    established: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ChanceCount:
    """Points whose loss is at or above ln 2, which guessing between two classes gives."""

    num_points: int
    num_at_chance: int
    by_dataset: dict[str, tuple[int, int]] = field(default_factory=dict)
    left_out: bool = False
