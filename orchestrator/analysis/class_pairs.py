"""Questions about the class pairs of one dataset, and the slopes that answer them.

Label sharpness K_F is one over a length, and the robustness radius R̂ is a length. If pairs
differed only in contrast, log R̂ would have the slope −1 on log K_F for any network. Therefore
the question on robustness uses numbers without a unit: K_F·δ and R̂/δ. The length δ is the
mean distance of an image to the nearest image with another label. The slope in pixel units is
also printed, without a test.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from orchestrator.analysis.answers import Answer, Question, holm_adjusted
from orchestrator.analysis.grouped_tables.design import Design, Level
from orchestrator.analysis.grouped_tables.fit import fit_groups
from orchestrator.analysis.grouped_tables.slopes import Slope
from orchestrator.analysis.headline import FASTER_THAN_BOUND, LAW_SLOPE
from orchestrator.analysis.inference import MIN_CLASSES
from orchestrator.analysis.results_tables.points import (
    CELL,
    CURVE,
    D_REFERENCE,
    INVERSE_D,
    LOG_LOSS,
    LOG_TRAIN_SIZE,
    at_largest_size,
)
from orchestrator.results.columns import (
    CLASS_PAIR,
    DATASET,
    LABEL_SHARPNESS,
    MEAN_UNLIKE_DISTANCE,
    R_HAT_PRED,
)

NO_DELTA = (
    "this table has no δ, the mean distance to the nearest image with another label "
    f"(column {MEAN_UNLIKE_DISTANCE}); measure the images again to get it"
)
"""Reason why a question on δ cannot be answered if the table has no column of δ."""
ONE_SIZE = "there is only one train size; a curve needs at least two"
"""Reason why the exponent b cannot be estimated."""
UNITS_ALONE = "the units alone give a slope of −1: R̂ is a length, and K_F is one over a length"
"""Reason why the slope of log R̂ on log K_F in pixel units is not tested."""
MIN_PAIRS = 3
"""Smallest number of class pairs for a correlation of log K_F with log δ."""
EXPONENT = "exponent b in N^(-b/d)"
EXPONENT_BEYOND = "exponent b against the law's 1"
LOSS = "slope of log loss on log K_F at equal 1/d"
R_HAT_FREE = "slope of log(R̂/δ) on log(K_F·δ) at equal 1/d"
R_HAT = "slope of log R̂ on log K_F at equal 1/d"
DROP = "slope of accuracy lost to the attack on log K_F at equal 1/d"
DROP_ON_DELTA = "slope of accuracy lost to the attack on log δ at equal 1/d"
LOSS_AT_DELTA = f"{LOSS} and δ"
R_HAT_AT_DELTA = f"{R_HAT} and δ"
DROP_AT_DELTA = f"{DROP} and δ"


@dataclass(frozen=True, slots=True)
class PairQuestion:
    """A question about the class pairs of one dataset, and the slope that answers it.

    Attributes:
        question: The question. Its text is empty if the slope belongs to another question.
        response: Column of the response.
        on: Columns of the regressors. The slope on the first regressor answers the question.
        factor: Sentence on the effect of a step of the regressor, with ``{}`` in place of the
            number. The sentence has no full stop, because an interval follows. It is empty if
            the slope itself is printed.
        level: ``within`` for slopes over the train sizes of a pair, ``between`` for slopes
            over pairs.
        needs_delta: True if a column is computed from δ.
        is_claimed: True if the slope is tested.
    """

    question: Question
    response: str
    on: tuple[str, ...]
    factor: str = ""
    level: Level = "between"
    needs_delta: bool = False
    is_claimed: bool = True


SHARPNESS_AND_D = ("k", "inverse_d")
SHARPNESS_D_AND_DELTA = ("k", "inverse_d", "delta")
PAIR_QUESTIONS = {
    EXPONENT: PairQuestion(
        Question(
            key="pairs_exponent",
            text="Does the loss fall with N?",
            claim="The loss falls with N",
            reverse="The loss rises with N",
            estimand=EXPONENT,
        ),
        response="fall",
        on=("x",),
        factor="Doubling N goes with {} times the loss",
        level="within",
    ),
    EXPONENT_BEYOND: PairQuestion(
        Question(
            key="pairs_exponent_beyond",
            text=FASTER_THAN_BOUND,
            claim="The loss falls faster than the law's bound",
            reverse="The loss falls more slowly than the law's bound",
            estimand="exponent b minus the law's 1",
        ),
        response="beyond",
        on=("x",),
        level="within",
    ),
    LOSS: PairQuestion(
        Question(
            key="pairs_loss",
            text="Do sharper labels go with a higher loss?",
            claim="Sharper labels go with a higher loss",
            reverse="Sharper labels go with a lower loss",
            estimand=LOSS,
            power_of="the law's slope of 1",
        ),
        response="loss",
        on=SHARPNESS_AND_D,
        factor="At equal d_data, pairs with 10 % higher K_F have {} times the loss",
    ),
    R_HAT_FREE: PairQuestion(
        Question(
            key="pairs_r_hat_free",
            text="Do sharper labels go with less robustness, free of scale?",
            claim="Sharper labels go with less robustness, free of scale",
            reverse="Sharper labels go with more robustness, free of scale",
            estimand=R_HAT_FREE,
            expected_sign=-1,
            power_of="the law's slope of 1",
            source="Thm 3, pairs",
            published="−1 by the law; not tested",
        ),
        response="r_hat_free",
        on=("k_free", "inverse_d"),
        factor="At equal d_data, pairs with 10 % higher K_F·δ have {} times the R̂/δ",
        needs_delta=True,
    ),
    R_HAT: PairQuestion(
        Question(key="pairs_r_hat", estimand=R_HAT, expected_sign=-1),
        response="r_hat",
        on=SHARPNESS_AND_D,
        is_claimed=False,
    ),
    DROP: PairQuestion(
        Question(
            key="pairs_drop",
            text="Do attacks cost more accuracy where labels are sharper?",
            claim="Attacks cost more accuracy where labels are sharper",
            reverse="Attacks cost less accuracy where labels are sharper",
            estimand=DROP,
        ),
        response="drop",
        on=SHARPNESS_AND_D,
        factor="At equal d_data, pairs with 10 % higher K_F lost {}",
    ),
    DROP_ON_DELTA: PairQuestion(
        Question(
            key="pairs_drop_on_delta",
            text="Do attacks cost more accuracy where two classes lie closer together?",
            claim="Attacks cost more accuracy where two classes lie closer together",
            reverse="Attacks cost less accuracy where two classes lie closer together",
            estimand=DROP_ON_DELTA,
            expected_sign=-1,
        ),
        response="drop",
        on=("delta", "inverse_d"),
        factor="At equal d_data, pairs with 10 % larger δ lost {}",
        needs_delta=True,
    ),
    LOSS_AT_DELTA: PairQuestion(
        Question(
            key="pairs_loss_at_delta",
            claim="Between class pairs of equal d_data and δ, loss rises with K_F",
            estimand=LOSS_AT_DELTA,
            source="Eq. 2, pairs",
            published="1 by the law; not tested",
            power_of="the law's slope of 1",
        ),
        response="loss",
        on=SHARPNESS_D_AND_DELTA,
        needs_delta=True,
    ),
    R_HAT_AT_DELTA: PairQuestion(
        Question(key="pairs_r_hat_at_delta", estimand=R_HAT_AT_DELTA, expected_sign=-1),
        response="r_hat",
        on=SHARPNESS_D_AND_DELTA,
        needs_delta=True,
    ),
    DROP_AT_DELTA: PairQuestion(
        Question(
            key="pairs_drop_at_delta",
            claim="Between class pairs of equal d_data and δ, attacks cost more at higher K_F",
            estimand=DROP_AT_DELTA,
            source="Thm 3, pairs, attacks",
            published="above 0 by the law; not tested",
        ),
        response="drop",
        on=SHARPNESS_D_AND_DELTA,
        needs_delta=True,
    ),
}
"""The question that each estimand answers, in the order of the answers. The questions at equal
δ are answered together in one finding."""
AT_DELTA = {
    LOSS_AT_DELTA: "log loss",
    R_HAT_AT_DELTA: "log R̂",
    DROP_AT_DELTA: "accuracy lost",
}
"""Words for the response, by name of the estimand at equal δ."""


def pair_answer(slope: Slope, asked_after_seeing: Collection[str] = ()) -> Answer:
    """Return the answer that follows from a slope over class pairs.

    If the slope has no test, the verdict is *not testable*.

    Args:
        slope: The slope.
        asked_after_seeing: Keys of questions that were asked after somebody had seen the data.
    """
    pair_question = PAIR_QUESTIONS[slope.on]
    reason = slope.reason
    if not pair_question.is_claimed:
        reason = UNITS_ALONE
    effect = None
    if pair_question.question.power_of:
        effect = LAW_SLOPE
    return Answer(
        question=pair_question.question,
        value=slope.value,
        interval=slope.interval,
        p_value=slope.p_value,
        adjusted_p=slope.adjusted_p,
        num_tests=slope.num_tests,
        family=slope.family,
        num_replicates=slope.num_groups,
        left_out={f"class {name}": value for name, value in slope.left_out.items()},
        effect=effect,
        test=slope.test,
        reason=reason,
        is_late=pair_question.question.key in asked_after_seeing,
    )


def fit_pairs(points: pd.DataFrame) -> tuple[Slope, ...]:
    """Return the slopes over the class pairs of one dataset.

    If there are several datasets or fewer than five classes, no slope is returned. Pairs that
    share a class share images, so intervals come from a jackknife over classes (t distribution
    with classes − 1 degrees of freedom). The exponent is estimated with an intercept for each
    pair and network. The other slopes compare pairs at equal network, N and 1/d. d, K_F and δ
    are measured at the largest N of a pair. A slope between pairs has two p-values, and the
    larger one is used. One p-value comes from the jackknife, the other one from a permutation
    of classes. The p-values of the tested slopes are Holm-adjusted together.
    """
    points = points.dropna(subset=[LOG_LOSS, D_REFERENCE])
    classes = points[CLASS_PAIR].str.split("-", n=1, expand=True).reindex(columns=[0, 1])
    if points[DATASET].nunique() != 1 or classes.isna().any(axis=None):
        return ()
    if len(set(classes.to_numpy().ravel())) < MIN_CLASSES:
        return ()
    rows = _columns(points).assign(first=classes[0], second=classes[1])
    slopes = {}
    for estimand, question in PAIR_QUESTIONS.items():
        slope = _slope(rows, question)
        if slope is not None:
            slopes[estimand] = replace(slope, on=estimand, adjusted_p=None, num_tests=0)
    family = [slope for slope in slopes.values() if PAIR_QUESTIONS[slope.on].is_claimed]
    for slope in holm_adjusted(family, "class pairs"):
        slopes[slope.on] = slope
    return tuple(slopes.values())


def _columns(points: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of all questions, with one row per point. Unmeasured values are NaN."""
    # The columns are centered within each curve, so the exponent is estimated with an
    # intercept for each pair and network. The law's rate is a slope of 1 on x, so the slope of
    # log loss − x on x is b − 1.
    x = -points[LOG_TRAIN_SIZE] / points[D_REFERENCE]
    curves = pd.DataFrame({"x": x, "fall": points[LOG_LOSS], "beyond": points[LOG_LOSS] - x})
    centred = curves - curves.groupby(points[CURVE]).transform("mean")
    log_sharpness = np.log(at_largest_size(points, LABEL_SHARPNESS))
    log_delta = np.log(at_largest_size(points, MEAN_UNLIKE_DISTANCE))
    log_r_hat = np.log(points[R_HAT_PRED].where(points[R_HAT_PRED] > 0))
    return centred.assign(
        cell=points[CELL],
        inverse_d=points[INVERSE_D],
        delta=log_delta,
        k=log_sharpness,
        k_free=log_sharpness + log_delta,
        loss=points[LOG_LOSS],
        r_hat=log_r_hat,
        r_hat_free=log_r_hat - log_delta,
        drop=mean_accuracy_lost(points),
    )


def sharpness_with_delta(points: pd.DataFrame) -> float | None:
    """Return the correlation of log K_F with log δ over class pairs, at the largest N of each pair.

    Returns None if fewer than three pairs have K_F and δ, or if K_F or δ is the same for all
    pairs.
    """
    rows = pd.DataFrame({CLASS_PAIR: points[CLASS_PAIR]})
    for name in (LABEL_SHARPNESS, MEAN_UNLIKE_DISTANCE):
        rows[name] = np.log(at_largest_size(points, name))
    values = rows.dropna().groupby(CLASS_PAIR).mean()
    if len(values) < MIN_PAIRS or (values.std() <= 0).any():
        return None
    return float(values.corr().to_numpy()[0, 1])


def mean_accuracy_lost(points: pd.DataFrame) -> pd.Series:
    """Return the accuracy that each point loses to attacks: a share, averaged over attacks."""
    drops = [name for name in points if str(name).endswith("accuracy_drop")]
    return points[drops].mean(axis=1)


def _slope(rows: pd.DataFrame, question: PairQuestion) -> Slope | None:
    """Return the slope that answers a question, or a reason why it cannot be estimated.

    Returns None if the table lacks the measures that the question needs.
    """
    within: tuple[str, ...] = ()
    if question.level == "between":
        within = ("cell",)
    elif not rows["x"].any():
        return Slope(question.level, question.on[0], reason=ONE_SIZE)
    design = Design(question.response, question.on, ("first", "second"), within)
    complete = rows.dropna(subset=[*design.columns])
    if len(complete):
        return fit_groups(complete, design, pairs=True).find(question.level, question.on[0])
    in_pixels = rows[["k", question.response.removesuffix("_free")]].dropna()
    if question.needs_delta and len(in_pixels):
        return Slope(question.level, question.on[0], reason=NO_DELTA)
    return None
