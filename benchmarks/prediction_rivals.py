"""How well are learning curves extrapolated, beside the methods that others use?

Every curve's largest train size is foretold from its first 3, 4 and 5 sizes, with a prior that was
fitted without the *set* that the curve belongs to. Sets: all pairs of classes of the UCI digits, MNIST
and Fashion-MNIST; the losses that the study published; and, where the package ``lcdb`` is installed
beside (its wheel carries log losses of tabular data), three learners of it. Rivals get the same points:

- last value: no change;
- power law: a line in logarithms (M1 of Alabdulmohsin, Neyshabur & Zhai 2022);
- M2: a power law above a floor, and M3: one that bends at small N, both fitted to log losses;
- pow3: a power law above a floor by least squares of the loss itself.

Scores: root mean squared error of log loss; share of needed train sizes within a factor of two, of
*all* cases; coverage of 90 % intervals with exact 95 % bounds, by set and by third of the last loss.

``python benchmarks/prediction_rivals.py --json > benchmarks/results/prediction_rivals.json``
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from harness import Found, run
from learning_curve_prior import Curve, fit_prior, pair_curves, published_curves, world_curves
from scipy.stats import beta

from orchestrator.analysis.learning_curves import (
    LARGEST_TRAIN_SIZE,
    CurvePoint,
    CurvePrior,
    LearningCurve,
)

PILOT_SIZES = (3, 4, 5)
LCDB_LEARNERS = ("LogisticRegression", "MLPClassifier", "RandomForestClassifier")
LCDB_SIZES = [64 * 2**k for k in range(12)]
CURVES_PER_LEARNER, LCDB_SEEDS, MIN_LCDB_SIZES = 60, 3, 6
RATES = np.linspace(0.02, 3.0, 60)
FLOOR_SHARES = np.concatenate([[0.0], np.linspace(0.02, 0.995, 50)])
BENDS = np.concatenate([[0.0], np.exp(np.linspace(np.log(1e-3), np.log(20.0), 60))])
Array = np.ndarray
Rival = Callable[[Array, Array, float], float]
"""Train sizes and log losses of a pilot, and N: the log loss expected there."""


def last_value(sizes: Array, log_losses: Array, size: float) -> float:
    """Expect no change."""
    return float(log_losses[-1])


def power_law(sizes: Array, log_losses: Array, size: float) -> float:
    """Draw a straight line in logarithms."""
    return float(np.polyval(np.polyfit(np.log(sizes), log_losses, 1), np.log(size)))


def m2(sizes: Array, log_losses: Array, size: float) -> float:
    """Fit loss = b N^-c + floor to log losses, over a grid of c and floor."""
    losses = np.exp(log_losses)
    best = (np.inf, 0.0)
    for rate in RATES:
        powers = sizes**-rate
        for floor in FLOOR_SHARES * losses.min():
            factor = np.exp(np.mean(np.log(losses - floor) - np.log(powers)))
            error = ((log_losses - np.log(factor * powers + floor)) ** 2).sum()
            if error < best[0]:
                best = (error, float(np.log(factor * size**-rate + floor)))
    return best[1]


def m3(sizes: Array, log_losses: Array, size: float) -> float:
    """Fit loss = b (1/N + g)^c to log losses, over a grid of g."""
    best = (np.inf, 0.0)
    for bend in BENDS / sizes[-1]:
        design = np.column_stack([np.ones(len(sizes)), np.log(1 / sizes + bend)])
        coefficients = np.linalg.lstsq(design, log_losses, rcond=None)[0]
        if coefficients[1] < 0:
            coefficients = np.array([log_losses.mean(), 0.0])
        error = ((log_losses - design @ coefficients) ** 2).sum()
        if error < best[0] - 1e-12:
            best = (error, float(coefficients @ [1.0, np.log(1 / size + bend)]))
    return best[1]


def pow3(sizes: Array, log_losses: Array, size: float) -> float:
    """Fit loss = b N^-c + floor by least squares of the loss."""
    losses = np.exp(log_losses)
    best = (np.inf, 0.0)
    for rate in RATES:
        powers = sizes**-rate
        factor, floor = np.linalg.lstsq(
            np.column_stack([powers, np.ones(len(sizes))]), losses, rcond=None
        )[0]
        if factor < 0:
            factor, floor = 0.0, losses.mean()
        if floor < 0:
            factor, floor = max(powers @ losses / (powers @ powers), 0.0), 0.0
        error = ((losses - factor * powers - floor) ** 2).sum()
        if error < best[0]:
            best = (error, float(np.log(max(factor * size**-rate + floor, 1e-6))))
    return best[1]


RIVALS: dict[str, Rival] = {
    "last value": last_value,
    "power law": power_law,
    "M2": m2,
    "M3": m3,
    "pow3": pow3,
}


def lcdb_curves() -> list[Curve]:
    """Log-loss curves of LCDB's wheel: geometric means of three seeds at doubling sizes."""
    spec = importlib.util.find_spec("lcdb")
    if spec is None or spec.submodule_search_locations is None:
        return []
    path = Path(spec.submodule_search_locations[0]) / "database-logloss.csv"
    columns = ["openmlid", "learner", "size_train", "outer_seed", "inner_seed", "score_test"]
    table = pd.read_csv(path, usecols=columns)
    table = table[(table["score_test"] > 0) & table["size_train"].isin(LCDB_SIZES)]
    curves = []
    for learner in LCDB_LEARNERS:
        rows = table[table["learner"].str.endswith(learner)]
        mine = []
        for dataset, trainings in rows.groupby("openmlid"):
            points = _lcdb_points(trainings)
            if len(points) >= MIN_LCDB_SIZES:
                mine.append(Curve(f"LCDB {learner}", str(dataset), points))
        curves += mine[:CURVES_PER_LEARNER]
    return curves


def _lcdb_points(trainings: pd.DataFrame) -> tuple[CurvePoint, ...]:
    """Return the points at which the three most complete seeds all have a loss."""
    seeds = trainings.groupby(["outer_seed", "inner_seed"])["size_train"].nunique()
    if len(seeds) < LCDB_SEEDS:
        return ()
    chosen = seeds.sort_values(ascending=False).index[:LCDB_SEEDS]
    kept = trainings.set_index(["outer_seed", "inner_seed"]).loc[list(chosen)]
    logs = np.log(kept["score_test"]).groupby(kept["size_train"]).agg(["mean", "count"])
    whole = logs[logs["count"] == LCDB_SEEDS].sort_index()
    return tuple(
        CurvePoint(train_size=float(size), score=float(np.exp(mean)), num_trainings=LCDB_SEEDS)
        for size, mean in whole["mean"].items()
    )


def foretold(curve: Curve, num_points: int, prior: CurvePrior) -> dict[str, Any]:
    """Return what ours and every rival expect at the largest size, from the first sizes."""
    pilot, last = curve.points[:num_points], curve.points[-1]
    posterior = LearningCurve(pilot, "loss", prior)
    estimate = posterior.score_at(last.train_size)
    reachable = posterior.probability_met(last.score, LARGEST_TRAIN_SIZE)
    needed = posterior.size_for(last.score, assurance=reachable / 2, limit=np.inf)
    sizes = np.array([point.train_size for point in pilot])
    log_losses = np.log([point.score for point in pilot])
    slope, intercept = np.polyfit(np.log(sizes), log_losses, 1)
    by_power_law = (np.log(last.score) - intercept) / slope if slope < 0 else np.inf
    return {
        "population": population_of(curve.source),
        "set": curve.source,
        "points": num_points,
        "truth": float(np.log(last.score)),
        "level": log_losses[-1],
        "ours": float(np.log(estimate.value)),
        "low": float(np.log(estimate.low)),
        "high": float(np.log(estimate.high)),
        "size error, ours": float(np.log(needed / last.train_size)),
        "size error, power law": float(by_power_law - np.log(last.train_size)),
        **{name: rival(sizes, log_losses, last.train_size) for name, rival in RIVALS.items()},
    }


def population_of(source: str) -> str:
    """Return whether a set is one of class pairs, published, or LCDB's."""
    if source.startswith("LCDB"):
        return "LCDB"
    return "published" if source == "published" else "class pairs"


def rivals() -> Found:
    """Foretell every curve without its set, and score all methods."""
    pairs, published, lcdb = pair_curves("loss"), published_curves(), lcdb_curves()
    everything = [*pairs, *published, *lcdb]
    training = [*everything, *world_curves("loss")]
    rows = []
    for left_out in sorted({curve.source for curve in everything}):
        others = [curve for curve in training if not _alike(curve.source, left_out)]
        prior = fit_prior(others, "loss")
        for curve in everything:
            if curve.source != left_out:
                continue
            known = (k for k in PILOT_SIZES if len(curve.points) > k)
            rows += [foretold(curve, num_points, prior) for num_points in known]
    table = pd.DataFrame(rows)
    return {"errors": errors_of(table), "coverage": coverage_of(table)}


def _alike(source: str, left_out: str) -> bool:
    """Return whether a set goes with the one left out: LCDB's three, and the digits' worlds."""
    if left_out.startswith("LCDB"):
        return source.startswith("LCDB")
    if population_of(left_out) == "class pairs":
        return source in (left_out, "base datasets")
    return source == left_out


def errors_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return root mean squared errors and shares of needed sizes within a factor of two."""
    rows = []
    for (population, num_points), cases in table.groupby(["population", "points"]):
        row: dict[str, Any] = {"population": population, "points": num_points}
        row["curves"] = len(cases)
        for name in ("ours", *RIVALS):
            row[name] = float(np.sqrt(((cases[name] - cases["truth"]) ** 2).mean()))
        best = min(RIVALS, key=lambda name: row[name])
        row["best rival"] = best
        row["ours / best rival"] = row["ours"] / row[best]
        for name in ("ours", "power law"):
            within = cases[f"size error, {name}"].abs() < np.log(2)
            row[f"N within 2, {name}"] = float(within.mean())
        row["N told"] = float(np.isfinite(cases["size error, ours"]).mean())
        rows.append(row)
    return rows


def coverage_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return coverage of 90 % intervals by left-out set, and by third of the last loss."""
    held = (table["low"] <= table["truth"]) & (table["truth"] <= table["high"])
    thirds = table.groupby(["population", "points"])["level"].transform(
        lambda levels: pd.qcut(levels, 3, labels=False)
    )
    names = thirds.map({0: "low losses", 1: "middle losses", 2: "high losses"})
    width = np.exp((table["high"] - table["low"]) / 2)
    rows = []
    for kind, keys in (("set", table["set"]), ("third", table["population"] + ", " + names)):
        for (name, num_points), index in held.groupby([keys, table["points"]]).groups.items():
            num, of = int(held[index].sum()), len(index)
            rows.append(
                {
                    "by": kind,
                    "name": name,
                    "points": num_points,
                    "curves": of,
                    "coverage": num / of,
                    "low": float(beta.ppf(0.025, num, of - num + 1)) if num else 0.0,
                    "high": float(beta.ppf(0.975, num + 1, of - num)) if num < of else 1.0,
                    "half width": float(width[index].median()),
                }
            )
    return rows


if __name__ == "__main__":
    run(rivals)
