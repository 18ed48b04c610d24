"""Coverage of the 90 % intervals of predictions, and the gain from a pilot.

For the published numbers, each dataset is left out of the prior in turn. Its loss at the largest N
is predicted for each model with readable losses, without and with a pilot (its losses at smaller
sizes). Then the largest N is left out of the prior as well, so N is extrapolated. Predictions of
one dataset by several models are not independent, so the result lists the datasets whose loss was
outside the interval.

For simulated tables (`blind_tables.py`, which shares no code with the analysis), the left-out
dataset is predicted likewise. Shares have exact (Clopper-Pearson) 95 % bounds. The other side is
the interval that ignores the dataset, and uses only model and N.
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
    """The result of one prediction.

    Attributes:
        dataset: Name of the left-out dataset.
        held: Whether the interval contains the loss.
        shorter: Share by which the interval is shorter than the interval that ignores the dataset.
        error: Error of the predicted log loss.
        error_informed, error_plain: Error of the prediction with and without d_data and K_F.
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
    """Predict the loss of a dataset at its largest N from other datasets and its smaller N.

    With ``extrapolate``, the largest N of the other datasets is left out, too.
    """
    mine = mine.dropna(subset=["log_loss"]).sort_values("train_size")
    if len(mine) < 2:
        return {}
    last = mine.iloc[-1]
    prior_points = others[others["train_size"] < last["train_size"]] if extrapolate else others
    growth = growth_of(prior_points, SCALE)
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
            is_covered = bool(abs(value - last["log_loss"]) <= reach)
            errors = [value - last["log_loss"]]
            for informed in (True, False):
                variant = GrowthCurve(
                    growth, last["d_reference"], last["label_sharpness"], pilot, informed=informed
                )
                errors.append(variant.moments(last["train_size"])[0] - last["log_loss"])
            forecasts[kind] = Outcome(str(last["dataset"]), is_covered, shorter, *errors)
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
    """Return the coverage by kind of pilot.

    With ``named``, the published datasets outside their intervals are listed.
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
    """Measure the coverage of intervals for left-out published datasets and for simulated tables."""
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
