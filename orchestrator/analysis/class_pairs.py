"""What the class pairs of one dataset say of the law: a slope with its interval per question.

Label sharpness K_F is one over a length, and the robustness radius R̂ is a length. If pairs differ
in contrast alone, log R̂ falls on log K_F with slope −1, whatever networks do. So the question about
robustness is asked free of scale: both are counted in units of δ, the mean distance of an image to
the nearest image with another label. The slope in pixel units is shown beside it, and claims
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from orchestrator.analysis import inference as i
from orchestrator.analysis import table as t
from orchestrator.analysis.grouped_tables.design import Design, Level
from orchestrator.analysis.grouped_tables.fit import fit_groups
from orchestrator.analysis.grouped_tables.slopes import Slope
from orchestrator.results import columns as c

NO_DELTA = (
    "this table has no δ, the mean distance to the nearest unlike image "
    f"(column {c.MEAN_UNLIKE_DISTANCE}); measure the images again to get it"
)
"""Reason of a question that needs δ, for a table that was measured before δ was a column."""
UNITS_ALONE = "units alone give −1: R̂ is a length, and K_F one over a length"


@dataclass(frozen=True, slots=True)
class PairQuestion:
    """A question to the class pairs of one dataset, and which columns of a pair answer it.

    Attributes:
        text: The question in plain words; empty for a slope that is shown beside another one.
        response: Column that is explained.
        on: Regressors. The slope on the first one answers, at equal others.
        doubling: What the slope means for a factor of two, up to the number.
        level: ``within`` a pair, over its train sizes; or ``between`` pairs, over their heights.
        expects: Sign of the slope if the answer is yes.
        needs_delta: Whether δ enters.
        is_claimed: Whether the slope is tested and may be claimed.
    """

    text: str
    response: str
    on: tuple[str, ...]
    doubling: str = ""
    level: Level = "between"
    expects: int = 1
    needs_delta: bool = False
    is_claimed: bool = True


EXPONENT = "exponent b in N^(-b/d)"
EXPONENT_BEYOND = "exponent b against the law's 1"
LOSS = "slope of log loss on log K_F at equal 1/d"
R_HAT_FREE = "slope of log(R̂/δ) on log(K_F·δ) at equal 1/d"
R_HAT = "slope of log R̂ on log K_F at equal 1/d"
DROP = "slope of accuracy lost to the attack on log K_F at equal 1/d"
LOSS_AT_DELTA, R_HAT_AT_DELTA, DROP_AT_DELTA = (f"{name} and δ" for name in (LOSS, R_HAT, DROP))

_GIVEN_D = ("k", "inverse_d")
_GIVEN_DELTA = (*_GIVEN_D, "delta")
PAIR_QUESTIONS = {
    EXPONENT: PairQuestion(
        "Does the loss fall with N?", "fall", ("x",), "N doubled: loss ×", level="within"
    ),
    EXPONENT_BEYOND: PairQuestion(
        "Does it fall faster than the law's bound asks?", "beyond", ("x",), level="within"
    ),
    LOSS: PairQuestion(
        "Do sharper labels go with a higher loss?", "loss", _GIVEN_D, "K_F doubled: loss ×"
    ),
    R_HAT_FREE: PairQuestion(
        "Do sharper labels go with less robustness, free of scale?",
        "r_hat_free",
        ("k_free", "inverse_d"),
        "K_F·δ doubled: R̂/δ ×",
        expects=-1,
        needs_delta=True,
    ),
    R_HAT: PairQuestion("", "r_hat", _GIVEN_D, expects=-1, is_claimed=False),
    DROP: PairQuestion(
        "Do attacks cost more accuracy where labels are sharper?",
        "drop",
        _GIVEN_D,
        "K_F doubled: accuracy lost +",
    ),
    LOSS_AT_DELTA: PairQuestion("", "loss", _GIVEN_DELTA, needs_delta=True),
    R_HAT_AT_DELTA: PairQuestion("", "r_hat", _GIVEN_DELTA, expects=-1, needs_delta=True),
    DROP_AT_DELTA: PairQuestion("", "drop", _GIVEN_DELTA, needs_delta=True),
}
"""Estimand -> question, in the order of the answers. Those at equal δ are one question in words."""
AT_DELTA = {LOSS_AT_DELTA: "log loss", R_HAT_AT_DELTA: "log R̂", DROP_AT_DELTA: "accuracy lost"}
"""Estimand at equal δ -> what its response is called."""


def fit_pairs(points: pd.DataFrame) -> tuple[Slope, ...]:
    """Ask the class pairs of one dataset, if it is one and has five classes, what the law says.

    Pairs that share a class share its images, so every number is computed anew without each class
    (jackknife, t with classes − 1 degrees of freedom). The exponent has an intercept per pair and
    network. Slopes on log K_F are of a pair's height at equal network and N, given 1/d; d, K_F and
    δ are of the pair's largest N. p is Holm-adjusted over the slopes that may be claimed.
    """
    points = points.dropna(subset=[t.LOG_LOSS, t.D_REFERENCE])
    classes = points[c.CLASS_PAIR].str.split("-", n=1, expand=True).reindex(columns=[0, 1])
    if points[c.DATASET].nunique() != 1 or classes.isna().any(axis=None):
        return ()
    if len(set(classes.to_numpy().ravel())) < i.MIN_CLASSES:
        return ()
    rows = _columns(points).assign(first=classes[0], second=classes[1])
    slopes = []
    for estimand, question in PAIR_QUESTIONS.items():
        slope = _answer(rows, question)
        if slope is not None:
            slopes.append(replace(slope, on=estimand))
    return _adjusted(slopes)


def _columns(points: pd.DataFrame) -> pd.DataFrame:
    """Return what the questions are asked of, a row per point; what was not measured is NaN."""
    # Centred within every curve: the exponent has an intercept per pair and network.
    x = -points[t.LOG_TRAIN_SIZE] / points[t.D_REFERENCE]
    curves = pd.DataFrame({"x": x, "fall": points[t.LOG_LOSS], "beyond": points[t.LOG_LOSS] - x})
    centred = curves - curves.groupby(points[t.CURVE]).transform("mean")
    drops = [name for name in points if str(name).endswith("accuracy_drop")]
    log_sharpness = np.log(t.at_largest_size(points, c.LABEL_SHARPNESS))
    log_delta = np.log(t.at_largest_size(points, c.MEAN_UNLIKE_DISTANCE))
    log_r_hat = np.log(points[c.R_HAT_PRED].where(points[c.R_HAT_PRED] > 0))
    return centred.assign(
        cell=points[t.CELL],
        inverse_d=points[t.INVERSE_D],
        delta=log_delta,
        k=log_sharpness,
        k_free=log_sharpness + log_delta,
        loss=points[t.LOG_LOSS],
        r_hat=log_r_hat,
        r_hat_free=log_r_hat - log_delta,
        drop=points[drops].mean(axis=1) if drops else np.nan,
    )


def _answer(rows: pd.DataFrame, question: PairQuestion) -> Slope | None:
    """Return the slope that answers a question, or why there is none; None if nothing was measured
    that it could be asked of.
    """
    within = ("cell",) if question.level == "between" else ()
    design = Design(question.response, question.on, ("first", "second"), within)
    known = rows.dropna(subset=[*design.columns])
    if len(known):
        return fit_groups(known, design, pairs=True).find(question.level, question.on[0])
    in_pixels = rows[["k", question.response.removesuffix("_free")]].dropna()
    if question.needs_delta and len(in_pixels):
        return Slope(question.level, question.on[0], reason=NO_DELTA)
    return None


def _adjusted(slopes: Sequence[Slope]) -> tuple[Slope, ...]:
    """Adjust the p-values of the slopes that may be claimed for their number."""
    p_values = [slope.p_value if PAIR_QUESTIONS[slope.on].is_claimed else None for slope in slopes]
    return tuple(
        replace(slope, adjusted_p=p) for slope, p in zip(slopes, i.holm(p_values), strict=True)
    )
