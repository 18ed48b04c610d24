"""Fit the calibration of dimension, and say how it does on families and groups of families left out.

Sets of the families in `calibration_shapes.py`, 1 to 128 dimensions, a third each with 500, 1,750 and 80 to
2,500 points; seeds are fixed. Degree and penalty of the regression, and the least size of an error, were
chosen by errors and coverage on families left out, and by nothing else. `--write` writes
``tasks/measures/calibration.json``.

"Family known" is a regression fitted to other draws of the very family alone.

Usage: python benchmarks/calibration_fit.py [--json] [--draws 95] [--sets FILE.npz] [--write]
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from calibration_shapes import GROUPS
from measure_common import parser, report
from scipy.optimize import nnls

from tasks.measures.calibration import LEAST_ERROR, MOST_DIMENSIONS, Correction, disagreement, terms
from tasks.measures.shape import shape_statistics

TARGET = Path(__file__).parents[1] / "tasks" / "measures" / "calibration.json"
PENALTY = 0.03
ROUNDS = 3
PROBABILITIES = np.linspace(0, 1, 201)
LEVEL = 0.9


def made(draws: int) -> dict[str, np.ndarray]:
    """Family, group, dimension, number of points and statistics of every set."""
    rows: list[tuple[Any, ...]] = []
    for draw in range(draws):
        for group, shapes in GROUPS.items():
            for shape in shapes:
                rng = np.random.default_rng([77, draw, zlib.crc32(shape.__name__.encode())])
                d = round(np.exp(rng.uniform(np.log(1.2), np.log(MOST_DIMENSIONS))))
                d = max(d, 2) if shape.__name__ == "swiss" else d
                num = int((500, 1750, np.exp(rng.uniform(np.log(80), np.log(2500))))[draw % 3])
                points = shape(num, d, rng)
                points = points - points.mean(axis=0)
                lengths = (points**2).sum(axis=1)
                squared = np.maximum(lengths[:, None] + lengths - 2 * points @ points.T, 0)
                np.fill_diagonal(squared, 0)
                statistics = shape_statistics(squared, rng)
                if statistics is not None:
                    rows.append((shape.__name__, group, d, num, statistics))
    names = ("family", "group", "d", "num", "statistics")
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def alike(families: np.ndarray) -> np.ndarray:
    """Weights that give every family the same."""
    _, which, count = np.unique(families, return_inverse=True, return_counts=True)
    weight = 1 / count[which]
    return weight / weight.mean()


def fitted(x: np.ndarray, log_d: np.ndarray, families: np.ndarray) -> Correction:
    """Ridge regression of least absolute errors, by weights anew; without the size of errors."""
    weight = alike(families)
    mean = np.average(x, axis=0, weights=weight)
    deviation = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weight))
    design, target, now = terms((x - mean) / deviation), log_d - x[:, 0], weight
    for _ in range(ROUNDS):
        centre, middle = np.average(design, axis=0, weights=now), np.average(target, weights=now)
        inside = design - centre
        square = (inside * now[:, None]).T @ inside + PENALTY * now.sum() * np.eye(design.shape[1])
        slope = np.linalg.solve(square, (inside * now[:, None]).T @ (target - middle))
        intercept = float(middle - centre @ slope)
        now = weight / np.maximum(abs(target - intercept - design @ slope), LEAST_ERROR)
    none = np.zeros(0)
    return Correction(mean, deviation, intercept, slope, none, none, len(x))


def left_out(sets: dict[str, np.ndarray], key: str) -> np.ndarray:
    """Logarithm of d of every set by the regression fitted without its family or group."""
    found = np.empty(len(sets["d"]))
    for name in np.unique(sets[key]):
        out = sets[key] == name
        one = fitted(sets["statistics"][~out], np.log(sets["d"][~out]), sets["family"][~out])
        found[out] = one.log_dimension(sets["statistics"][out])
    return found


def known(sets: dict[str, np.ndarray]) -> np.ndarray:
    """Logarithm of d by the regression fitted to four fifths of the same family's other sets."""
    found = np.empty(len(sets["d"]))
    fold = np.arange(len(found)) // len(np.unique(sets["family"])) % 5
    for name in np.unique(sets["family"]):
        for part in range(5):
            mine = sets["family"] == name
            out, inside = mine & (fold == part), mine & (fold != part)
            one = fitted(sets["statistics"][inside], np.log(sets["d"][inside]), sets["family"][inside])
            found[out] = one.log_dimension(sets["statistics"][out])
    return found


def errors_of(
    x: np.ndarray, predicted: np.ndarray, log_d: np.ndarray, families: np.ndarray
) -> dict[str, np.ndarray]:
    """How the size of errors grows, and the quantiles of errors over their size, all families alike."""
    looked, wrong, weight = disagreement(x, predicted), log_d - predicted, alike(families)
    root = np.sqrt(weight)
    growth = nnls(looked * root[:, None], np.maximum(abs(wrong) - LEAST_ERROR, 0) * root)[0]
    ratio = wrong / (LEAST_ERROR + looked @ growth)
    order = np.argsort(ratio)
    reached = np.cumsum(weight[order]) - weight[order] / 2
    return {"error": growth, "quantiles": np.interp(PROBABILITIES * weight.sum(), reached, ratio[order])}


def held(sets: dict[str, np.ndarray], of_families: np.ndarray, of_groups: np.ndarray) -> np.ndarray:
    """Ends of the interval, ``(num, 2)``; width from errors of left-out groups, of other families only."""
    ends = np.empty((len(of_families), 2))
    log_d = np.log(sets["d"])
    for name in np.unique(sets["family"]):
        out = sets["family"] == name
        rest = sets["statistics"][~out], of_groups[~out], log_d[~out], sets["family"][~out]
        width = errors_of(*rest)
        size = LEAST_ERROR + disagreement(sets["statistics"][out], of_families[out]) @ width["error"]
        for i, tail in enumerate(((1 - LEVEL) / 2, (1 + LEVEL) / 2)):
            quantile = np.interp(tail, PROBABILITIES, width["quantiles"])
            ends[out, i] = of_families[out] + quantile * size
    return ends


def by_family(values: np.ndarray, families: np.ndarray, looked: np.ndarray) -> dict[str, float]:
    """Means over the sets that are looked at, and the mean over families first."""
    found = {str(name): float(values[looked & (families == name)].mean()) for name in np.unique(families)}
    return {"mean": round(float(np.mean(list(found.values()))), 4)} | {
        k: round(v, 4) for k, v in found.items()
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--draws", type=int, default=95)
    arguments.add_argument("--sets", type=Path, help="statistics are kept here, and taken from here")
    arguments.add_argument("--write", action="store_true")
    options = arguments.parse_args()
    if options.sets and options.sets.exists():
        sets = dict(np.load(options.sets))
    else:
        sets = made(options.draws)
        if options.sets:
            np.savez(options.sets, **sets)
    log_d, x = np.log(sets["d"]), sets["statistics"]
    families, groups = left_out(sets, "family"), left_out(sets, "group")
    ends = held(sets, families, groups)
    covered = ((ends[:, 0] <= log_d) & (log_d <= ends[:, 1])).astype(float)
    # As many points as the study has, and dimensions that can be asked for.
    looked = np.isin(sets["num"], (500, 1750)) & (sets["d"] >= 2) & (sets["d"] <= 110)
    predictions = {
        "family left out": families, "group left out": groups, "family known": known(sets),
        "twonn": x[:, 0], "directions among 10": x[:, 0] + x[:, 9],
    }  # fmt: skip
    tables = {
        name: by_family(abs(np.exp(p - log_d) - 1), sets["family"], looked) for name, p in predictions.items()
    }
    if options.write:
        whole = vars(fitted(x, log_d, sets["family"])) | errors_of(x, groups, log_d, sets["family"])
        text = {
            key: [float(f"{v:.6g}") for v in value] if isinstance(value, np.ndarray) else value
            for key, value in whole.items()
        }
        TARGET.write_text(json.dumps(text) + "\n", encoding="utf-8")
    ours = tables.pop("family left out")
    report(
        options.json,
        f"mean relative error on {int(looked.sum())} of {len(log_d)} sets of families left out",
        ours["mean"],
        {name: table["mean"] for name, table in tables.items()},
        {name: ours["mean"] / table["mean"] for name, table in tables.items()},
        coverage=by_family(covered, sets["family"], looked),
        ends_apart=float(np.median(np.exp(ends[:, 1] - ends[:, 0])[looked])),
        families=ours,
        others=tables,
    )


if __name__ == "__main__":
    main()
