"""Accuracy of extrapolated learning curves, in comparison with other methods.

The score at the largest train size of each curve is predicted from its first 3, 4 and 5 sizes. The
prior is fitted without the *set* of the curve. The shares of the plain fits and the widening of the
intervals come from the other sets, by a nested leave-one-out, so nothing is tuned on the predicted
set. The sets are: all pairs of classes of the UCI digits, MNIST and Fashion-MNIST; the losses that
the study published; and three learners of LCDB (``pip install lcdb``). "Alone" uses the points of
one network. "Ours" also uses the points of other networks on the same images, up to the same train
size. Rivals use the points of one network:

- last value: no change;
- power law: a line in logarithms (M1 of Alabdulmohsin, Neyshabur & Zhai 2022);
- M2: a power law above a floor, and M3: a power law that bends at small N, both fitted to log
  losses;
- pow3: a power law above a floor, by least squares of the loss itself.

The scores are the root mean squared error of log loss, the share of needed train sizes within a
factor of two (of *all* cases), and the coverage of 90 % intervals with exact 95 % bounds, by set
and by third of the last loss. The N that reaches a target with a probability of 80 % should be
large enough in 80 % of cases. Here the target is the loss at the largest size on M2 fitted to all
points of the curve, so the true N is the largest size.

Bounds show the best possible result:

- noise: the distance of the loss at the largest size from a line through all points of its curve. A
  prediction from the true line would have this error.
- best mix: the best weighted mean of all methods, chosen in hindsight on the predicted losses.
- needed size of the whole curve: the size at which M2, fitted to all points, reaches the loss
  measured at the largest size.
- by chance: the probability that a perfect 90 % interval covers 86 to 94 % of so few curves.

``python benchmarks/prediction_rivals.py --json > benchmarks/results/prediction_rivals.json``
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from harness import Result, run
from learning_curve_prior import (
    LCDB,
    PUBLISHED,
    Case,
    Cases,
    Curve,
    all_curves,
    calibrated,
    calibration_sets,
    cases_of,
    foretell,
    priors_without,
    without,
)
from scipy.optimize import brentq, nnls
from scipy.stats import beta, binom

from orchestrator.analysis.learning_curves import (
    LARGEST_TRAIN_SIZE,
    CurveArrays,
    CurvePrior,
    GridFit,
    LearningCurve,
)
from orchestrator.analysis.simple_curves import RATES, floored_power_law, power_law

PILOT_SIZES = (3, 4, 5)
BENDS = np.concatenate([[0.0], np.exp(np.linspace(np.log(1e-3), np.log(20.0), 60))])
BOOTSTRAPS = 2000
LEAST_COVERAGE, MOST_COVERAGE = 0.86, 0.94
ASSURANCES = (0.05, 0.5, 0.8, 0.95)
"""0.8 is the default of ``isweep predict``; 0.05 and 0.95 bound the interval of a needed N."""
Array = np.ndarray
Rival = Callable[[Array, Array, float], float]
"""Train sizes and log losses of a pilot, and N: the log loss expected there."""


def last_value(sizes: Array, log_losses: Array, size: float) -> float:
    """Predict no change."""
    return float(log_losses[-1])


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
    "M2": floored_power_law,
    "M3": m3,
    "pow3": pow3,
}


def foretold(curves: Sequence[Curve], prior: CurvePrior) -> list[dict[str, Any]]:
    """Return the predictions of our method and of each rival at the largest size of each curve."""
    cases = cases_of(curves, PILOT_SIZES, last_only=True)
    fit = GridFit(CurveArrays(cases.pilots, "loss"), prior)
    return [_foretold(case, cases, fit) for case in cases.cases]


def _foretold(case: Case, cases: Cases, fit: GridFit) -> dict[str, Any]:
    last = case.target
    truth = float(np.log(last.score))
    pilot = cases.pilots[case.pilot]
    sizes = np.array([point.train_size for point in pilot])
    log_losses = np.log([point.score for point in pilot])
    ours = LearningCurve.of_fit(fit, case.pilot, case.siblings)
    alone = LearningCurve.of_fit(fit, case.pilot)
    estimate = ours.log_estimate_at(last.train_size)
    slope, intercept = np.polyfit(np.log(sizes), log_losses, 1)
    by_power_law = (truth - intercept) / slope if slope < 0 else np.inf
    row = {
        "population": population_of(case.curve.source),
        "set": case.curve.source,
        "images": f"{case.curve.source} {case.curve.images}",
        "points": case.num_points,
        "truth": truth,
        "level": log_losses[-1],
        "ours": estimate.value,
        "alone": alone.log_estimate_at(last.train_size).value,
        "low": estimate.low,
        "high": estimate.high,
        "size error, ours": float(np.log(middle_size(ours, last.score) / last.train_size)),
        "size error, power law": float(by_power_law - np.log(last.train_size)),
        "size error, whole curve": size_error_of_whole_curve(case.curve),
        **size_errors_by_assurance(ours, case.curve),
        "noise": noise_of(case.curve),
    }
    for name, rival in RIVALS.items():
        row[name] = rival(sizes, log_losses, last.train_size)
    return row


def middle_size(curve: LearningCurve, score: float) -> float:
    """Return the median of the N at which a curve reaches a score, if it reaches the score at all."""
    reachable = curve.probability_met(score, LARGEST_TRAIN_SIZE)
    return curve.size_for(score, assurance=reachable / 2, limit=np.inf)


def size_errors_by_assurance(ours: LearningCurve, whole: Curve) -> dict[str, float]:
    """Return log(N/N_true) for each probability with which the target should be met.

    N_true is the largest size of the curve. The target is the loss there without its noise.
    """
    sizes = np.array([point.train_size for point in whole.points])
    log_losses = np.log([point.score for point in whole.points])
    target = float(np.exp(floored_power_law(sizes, log_losses, sizes[-1])))
    return {
        assurance_column(assurance): float(
            np.log(ours.size_for(target, assurance=assurance, limit=np.inf) / sizes[-1])
        )
        for assurance in ASSURANCES
    }


def assurance_column(assurance: float) -> str:
    """Return the name of the column with the errors of N at a probability."""
    return f"size error at {assurance:.0%}"


def noise_of(curve: Curve) -> float:
    """Return the studentized residual of the last loss from a line through the whole curve.

    Its mean square is the variance of one loss around a straight curve.
    """
    log_sizes = np.log([point.train_size for point in curve.points])
    log_losses = np.log([point.score for point in curve.points])
    design = np.column_stack([np.ones(len(log_sizes)), log_sizes])
    hat = design @ np.linalg.pinv(design)
    residual = log_losses[-1] - (hat @ log_losses)[-1]
    return float(residual / np.sqrt(1 - hat[-1, -1]))


def size_error_of_whole_curve(curve: Curve) -> float:
    """Return log(N/N_true), with N from M2 fitted to all points of the curve.

    Returns inf if M2 does not reach the last loss.
    """
    sizes = np.array([point.train_size for point in curve.points])
    log_losses = np.log([point.score for point in curve.points])

    def distance(log_size: float) -> float:
        return floored_power_law(sizes, log_losses, float(np.exp(log_size))) - log_losses[-1]

    low, high = float(np.log(sizes[0])), float(np.log(LARGEST_TRAIN_SIZE))
    if distance(low) < 0 or distance(high) > 0:
        return float("inf")
    return float(brentq(distance, low, high, xtol=1e-3) - np.log(sizes[-1]))


def population_of(source: str) -> str:
    """Return whether a set has class pairs, published losses, or curves of LCDB."""
    return source if source in (LCDB, PUBLISHED) else "class pairs"


def rivals() -> Result:
    """Predict each curve without its set, and score all methods."""
    curves = all_curves("loss")
    sets = calibration_sets(curves)
    choices = [*((name,) for name in sets), *combinations(sets, 2)]
    priors = priors_without(curves, "loss", choices)
    rows: list[dict[str, Any]] = []
    chosen = {}
    for left_out in sets:
        of_others = []
        for other in sets:
            if other == left_out:
                continue
            pair = (left_out, other) if (left_out, other) in priors else (other, left_out)
            of_set = [curve for curve in curves if curve.source == other]
            of_others.append(foretell(of_set, priors[pair], "loss"))
        prior = calibrated(priors[left_out,], of_others)
        chosen[left_out] = {
            "share of power law": prior.power_law_share,
            "share of M2": prior.floored_share,
            "widening": prior.widening,
            "fitted to": sorted({curve.source for curve in without(curves, [left_out])}),
        }
        rows += foretold([curve for curve in curves if curve.source == left_out], prior)
    table = pd.DataFrame(rows)
    return {
        "errors": errors_of(table),
        "coverage": coverage_of(table),
        "needed sizes": needed_sizes_of(table),
        "all cells by chance": by_chance(coverage_of(table)),
        "chosen": chosen,
    }


def errors_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return root mean squared errors, and shares of needed sizes within a factor of two."""
    rows = []
    for (population, num_points), cases in table.groupby(["population", "points"]):
        row: dict[str, Any] = {"population": population, "points": num_points}
        row["curves"] = len(cases)
        for name in ("ours", "alone", *RIVALS):
            row[name] = error_of(cases, name)
        best = min(RIVALS, key=lambda name: row[name])
        row["best rival"] = best
        row["ours / best rival"] = row["ours"] / row[best]
        row["its 90 % interval"] = ratio_interval(cases, best)
        row["alone / best rival"] = row["alone"] / row[best]
        row["noise / best rival"] = float(np.sqrt((cases["noise"] ** 2).mean())) / row[best]
        row["best mix / best rival"] = error_of_best_mix(cases) / row[best]
        for name in ("ours", "power law", "whole curve"):
            within = cases[f"size error, {name}"].abs() < np.log(2)
            row[f"N within 2, {name}"] = float(within.mean())
        row["N told"] = float(np.isfinite(cases["size error, ours"]).mean())
        rows.append(row)
    return rows


def error_of(cases: pd.DataFrame, name: str) -> float:
    """Return the root mean squared error of log loss of a method."""
    return float(np.sqrt(((cases[name] - cases["truth"]) ** 2).mean()))


def ratio_interval(cases: pd.DataFrame, rival: str) -> list[float]:
    """Return the 90 % bootstrap interval of our error divided by a rival's. Images are resampled."""
    generator = np.random.default_rng(0)
    squares = pd.DataFrame(
        {
            "ours": (cases["ours"] - cases["truth"]) ** 2,
            "rival": (cases[rival] - cases["truth"]) ** 2,
        }
    )
    sums = squares.groupby(cases["images"]).sum().to_numpy()
    draws = generator.integers(0, len(sums), (BOOTSTRAPS, len(sums)))
    ratios = np.sqrt(sums[draws, 0].sum(axis=1) / sums[draws, 1].sum(axis=1))
    return [float(bound) for bound in np.quantile(ratios, (0.05, 0.95))]


def error_of_best_mix(cases: pd.DataFrame) -> float:
    """Return the error of the weighted mean of all methods that is best on these cases."""
    methods = cases[["ours", *RIVALS]].to_numpy()
    truth = cases["truth"].to_numpy()
    constraint = 1e3  # weighs the condition that shares add up to 1
    shares, _ = nnls(
        np.vstack([methods, constraint * np.ones(methods.shape[1])]), np.append(truth, constraint)
    )
    return float(np.sqrt(((methods @ shares - truth) ** 2).mean()))


def coverage_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the coverage of 90 % intervals by left-out set, and by third of the last loss."""
    is_covered = (table["low"] <= table["truth"]) & (table["truth"] <= table["high"])
    thirds = table.groupby(["population", "points"])["level"].transform(
        lambda levels: pd.qcut(levels, 3, labels=False)
    )
    names = thirds.map({0: "low losses", 1: "middle losses", 2: "high losses"})
    width = np.exp((table["high"] - table["low"]) / 2)
    rows = []
    for kind, keys in (("set", table["set"]), ("third", table["population"] + ", " + names)):
        for (name, num_points), index in is_covered.groupby([keys, table["points"]]).groups.items():
            num_covered, num = int(is_covered[index].sum()), len(index)
            rows.append(
                {
                    "by": kind,
                    "name": name,
                    "points": num_points,
                    "curves": num,
                    "coverage": num_covered / num,
                    "low": float(beta.ppf(0.025, num_covered, num - num_covered + 1)),
                    "high": float(beta.ppf(0.975, num_covered + 1, num - num_covered))
                    if num_covered < num
                    else 1.0,
                    "half width": float(width[index].median()),
                    "by chance": chance_of_goal(num),
                }
            )
    return rows


def needed_sizes_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return how often the N of each probability is large enough, by set.

    An N that is not told (no size reaches the target with this probability) is counted apart, not
    as large enough.
    """
    rows = []
    for (name, num_points), cases in table.groupby(["set", "points"]):
        for assurance in ASSURANCES:
            errors = cases[assurance_column(assurance)]
            is_told = np.isfinite(errors)
            is_enough = is_told & (errors >= 0)
            num_enough, num = int(is_enough.sum()), len(errors)
            rows.append(
                {
                    "set": name,
                    "points": num_points,
                    "curves": num,
                    "probability": assurance,
                    "told": float(is_told.mean()),
                    "large enough, of all": num_enough / num,
                    "large enough, of the told": float(is_enough.sum() / max(is_told.sum(), 1)),
                    "median factor": float(np.exp(errors[is_told].median())),
                }
            )
    return rows


def chance_of_goal(num: int) -> float:
    """Return the probability that perfect 90 % intervals cover 86 to 94 % of ``num`` cases."""
    low, high = np.ceil(LEAST_COVERAGE * num - 1e-9), np.floor(MOST_COVERAGE * num + 1e-9)
    return float(binom.cdf(high, num, 0.9) - binom.cdf(low - 1, num, 0.9))


def by_chance(rows: Sequence[dict[str, Any]]) -> float:
    """Return the probability that perfect intervals meet the goal in all sets with 3 and 4 points."""
    by_set = [row for row in rows if row["by"] == "set" and row["points"] < 5]
    return float(np.prod([row["by chance"] for row in by_set]))


if __name__ == "__main__":
    run(rivals)
