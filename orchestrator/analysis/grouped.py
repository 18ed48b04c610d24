"""What all class pairs of one dataset say of the law."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from orchestrator.analysis import inference as i
from orchestrator.analysis import table as t
from orchestrator.analysis.grouped_tables.design import LEVELS, Design
from orchestrator.analysis.grouped_tables.fit import fit_groups
from orchestrator.analysis.grouped_tables.slopes import Slope, adjusted
from orchestrator.results import table as c

#: What is asked of class pairs: estimand -> the question in plain words, the column that is
#: explained, and what a doubling goes with.
PAIR_QUESTIONS = {
    "exponent b in N^(-b/d)": ("Does the loss fall with N?", "fall", "N doubled: loss ×"),
    "exponent b against the law's 1": (
        ("Does it fall faster than the law's bound asks?"),
        "beyond",
        "",
    ),
    "slope of log loss on log K_F at equal 1/d": (
        "Do sharper labels go with a higher loss?",
        "loss",
        "K_F doubled: loss ×",
    ),
    "slope of log R̂ on log K_F at equal 1/d": (
        "Do sharper labels go with less robustness?",
        "r_hat",
        "K_F doubled: R̂ ×",
    ),
    "slope of accuracy lost to the attack on log K_F at equal 1/d": (
        ("Do attacks cost more accuracy where labels are sharper?"),
        "drop",
        ("K_F doubled: accuracy lost +"),
    ),
}


def fit_pairs(points: pd.DataFrame) -> tuple[Slope, ...]:
    """Ask the class pairs of one dataset, if it is one and has five classes, what the law says.

    Pairs that share a class share its images, so every number is computed anew without each class
    (jackknife, t with classes − 1 degrees of freedom). The exponent has an intercept per pair and
    network; slopes on log K_F are of a pair's height at equal network and N, given 1/d; d and K_F
    are of the pair's largest N.
    """
    points = points.dropna(subset=[t.LOG_LOSS, t.D_REFERENCE])
    classes = points[c.CLASS_PAIR].str.split("-", n=1, expand=True).reindex(columns=[0, 1])
    if points[c.DATASET].nunique() != 1 or classes.isna().any(axis=None):
        return ()
    if len(set(classes.to_numpy().ravel())) < i.MIN_CLASSES:
        return ()
    x = -points[t.LOG_TRAIN_SIZE] / points[t.D_REFERENCE]
    own = pd.DataFrame({"x": x, "fall": points[t.LOG_LOSS], "beyond": points[t.LOG_LOSS] - x})
    drops = [name for name in points if str(name).endswith("accuracy_drop")]
    radius = points[c.R_HAT_PRED].where(points[c.R_HAT_PRED] > 0)
    rows = (own - own.groupby(points[t.CURVE]).transform("mean")).assign(
        first=classes[0],
        second=classes[1],
        cell=points[t.CELL],
        inverse_d=points[t.INVERSE_D],
        k=np.log(t.at_largest_size(points, c.LABEL_SHARPNESS)),
        loss=points[t.LOG_LOSS],
        r_hat=np.log(radius),
        drop=points[drops].mean(axis=1) if drops else np.nan,
    )
    found = []
    for estimand, (_, name, _) in PAIR_QUESTIONS.items():
        design = Design(name, ("k", "inverse_d"), ("first", "second"), ("cell",))
        if name in own:
            design = replace(design, on=("x",), within=())
        known = rows.dropna(subset=[*design.columns])
        if len(known):
            slope = fit_groups(known, design, pairs=True).find(
                LEVELS[name not in own], design.on[0]
            )
            found.append(replace(slope, on=estimand))
    return adjusted(found)
