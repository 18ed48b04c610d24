"""Do the 90 % intervals of predictions hold datasets and train sizes that were left out, and how
much does a pilot shorten them?

Published numbers: every dataset left out of the prior in turn, its loss at the largest N predicted,
for every model with readable losses; without and with a pilot (its losses at smaller sizes). Then
the same with the largest N left out of the prior as well, so that N is extrapolated. Predictions of
one dataset by several models are no independent cases, so the datasets that were missed are named.
Drawn tables (`blind_tables.py`, which shares no code with the analysis): the same for a dataset
kept back. Shares have their exact (Clopper-Pearson) 95 % bounds. The other side is the interval
that knows nothing of the dataset (model and N alone).

"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from blind_tables import RAGGED, WORLDS, draw, share
from harness import Result, run

from orchestrator.analysis.loss_growth import GrowthCurve, growth_of
from orchestrator.analysis.prediction_inputs import PilotPoint
from orchestrator.analysis.published import published_table
from orchestrator.analysis.results_tables.checks import normalise
from orchestrator.analysis.results_tables.points import fitted_points
from orchestrator.analysis.results_tables.sharpness_scale import SharpnessScale

SCALE = SharpnessScale(comparable=True, policy="ignore", note="")
PILOTS = {"without a pilot": 0, "pilot of 2": 2, "pilot of 3": 3, "pilot of 5": 5}
GOAL = "0.85 to 0.95, 0.30 shorter"
DRAWN = (
    "noise, two decades of N",
    ("noise, datasets' own slopes"),
    "noise, heavy tails",
    "noise, three datasets",
    "law",
    "law, measures with error",
    "law, heavy tails",
    ("law, losses near guessing"),
    "K_F strong",
    *(world.name for world in RAGGED),
)


class Outcome(NamedTuple):
    """How one prediction did.

    Attributes:
        dataset: The dataset that was left out.
        held: Whether the interval held the loss.
        shorter: By which share it was shorter than one that knows nothing of the dataset.
        error: Error of the predicted log loss.
        error_informed, error_plain: The same with d_data and K_F, and without them.
    """

    dataset: str
    held: bool
    shorter: float
    error: float
    error_informed: float
    error_plain: float


def points_of(table: pd.DataFrame) -> pd.DataFrame:
    return fitted_points(normalise(table)[0])[0]


def predicted(
    others: pd.DataFrame, mine: pd.DataFrame, *, extrapolate: bool = False
) -> dict[str, Outcome]:
    """Predict a dataset's loss at its largest N from other datasets and its smaller N.

    ``extrapolate`` leaves that N out of the other datasets too.
    """
    mine = mine.dropna(subset=["log_loss"]).sort_values("train_size")
    if len(mine) < 2:
        return {}
    last = mine.iloc[-1]
    known = others[others["train_size"] < last["train_size"]] if extrapolate else others
    growth = growth_of(known, SCALE)
    forecasts: dict[str, Outcome] = {}
    for kind, size in PILOTS.items():
        if isinstance(growth, str) or len(mine) <= max(size, 1):
            continue
        before = mine.iloc[:-1].head(size)
        pilot = [PilotPoint(row["train_size"], row["test_loss"]) for _, row in before.iterrows()]
        curve = GrowthCurve(growth, last["d_reference"], last["label_sharpness"], pilot)
        value, reach = curve.at(last["train_size"])
        shorter = curve.shorter(last["train_size"])
        if reach is not None and shorter is not None:
            held = bool(abs(value - last["log_loss"]) <= reach)
            errors = [value - last["log_loss"]]
            for informed in (True, False):
                other = GrowthCurve(
                    growth, last["d_reference"], last["label_sharpness"], pilot, informed=informed
                )
                errors.append(other.moments(last["train_size"])[0] - last["log_loss"])
            forecasts[kind] = Outcome(str(last["dataset"]), held, shorter, *errors)
    return forecasts


def published(*, extrapolate: bool) -> list[dict[str, Outcome]]:
    forecasts = []
    for _, table in published_table().groupby("model"):
        points = points_of(table)
        for name in sorted(points["dataset"].unique()):
            mine = points["dataset"] == name
            forecasts.append(predicted(points[~mine], points[mine], extrapolate=extrapolate))
    return forecasts


def drawn(name: str, num: int, *, extrapolate: bool) -> list[dict[str, Outcome]]:
    seed, world = next(
        (k, world) for k, world in enumerate((*WORLDS, *RAGGED)) if world.name == name
    )
    rng, forecasts = np.random.default_rng([20260401, seed]), []
    for _ in range(num):
        table = draw(world, rng)
        both = pd.concat([table.table, table.kept_back])
        points = points_of(both[both["model"] == "a"])
        mine = points["dataset"] == table.kept_back["dataset"].iloc[0]
        forecasts.append(predicted(points[~mine], points[mine], extrapolate=extrapolate))
    return forecasts


def summary(
    forecasts: list[dict[str, Outcome]], *, named: bool = False
) -> dict[str, dict[str, Any]]:
    """Coverage by kind of pilot; ``named``: with the datasets of the published study that were
    missed.
    """
    result: dict[str, dict[str, Any]] = {}
    for kind in PILOTS:
        if not (rows := [row[kind] for row in forecasts if kind in row]):
            continue
        held = share(sum(row.held for row in rows), len(rows))
        median = round(float(np.median([row.shorter for row in rows])), 4)
        result[kind] = {"predictions": held.pop("tables"), "coverage": held.pop("share"), **held}
        result[kind]["shorter (median)"] = median
        for name, errors in (
            ("error", [row.error for row in rows]),
            ("error with d_data and K_F", [row.error_informed for row in rows]),
            ("error without", [row.error_plain for row in rows]),
        ):
            result[kind][name] = round(float(np.sqrt(np.mean(np.square(errors)))), 4)
        if named:
            result[kind]["datasets"] = len({row.dataset for row in rows})
            result[kind]["missed"] = dict(Counter(row.dataset for row in rows if not row.held))
    return result


def prediction_coverage(*, tables: int = 200) -> Result:
    """How often intervals hold the loss: published datasets left out, and drawn tables of each
    world.
    """
    ours = {
        "published, a dataset left out": summary(published(extrapolate=False), named=True),
        "published, a dataset and the largest N left out": summary(
            published(extrapolate=True), named=True
        ),
    }
    for name in DRAWN if tables else ():
        ours[f"drawn: {name}"] = summary(drawn(name, tables, extrapolate=False))
    for name in ("law", "noise, datasets' own slopes") if tables else ():
        ours[f"drawn: {name}; the largest N left out"] = summary(
            drawn(name, tables, extrapolate=True)
        )
    shorter = ours["published, a dataset left out"]["pilot of 5"]["shorter (median)"]
    theirs = {"interval that knows nothing of the dataset": 1.0, "goal": GOAL}
    return {"tables": tables, "ours": ours, "theirs": theirs, "ratio": 1 - shorter}


if __name__ == "__main__":
    run(prediction_coverage)
