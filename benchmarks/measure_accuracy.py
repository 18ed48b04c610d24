"""Error of each estimator on the field's benchmark manifolds: ours, ours calibrated, scikit-dimension's.

Mean relative error over scikit-dimension's benchmark (Campadelli et al. 2015: spheres, affine spaces, cubes
up to dimension 70, rolls, helices, nonlinear and curled ones), and how often the calibrated interval holds
the true dimension. ``--slow`` adds scikit-dimension's slower estimators.
"""

from __future__ import annotations

import warnings

import numpy as np
from measure_common import parser, report

from tasks.measures.calibration import calibrate
from tasks.measures.estimators import intrinsic_dimension

OURS = ("mle", "twonn", "gride")
FAST = ("MLE", "TwoNN", "lPCA", "CorrInt", "MOM", "KNN", "FisherS", "TLE", "MADA", "MiND_ML")
SLOW = ("DANCo", "ESS")


def main() -> None:
    import skdim

    arguments = parser(__doc__)
    arguments.add_argument("--num-points", type=int, default=1000)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--slow", action="store_true")
    options = arguments.parse_args()
    warnings.simplefilter("ignore")
    benchmark = skdim.datasets.BenchmarkManifolds(random_state=options.seed)
    data = {
        name: np.asarray(points, float) for name, points in benchmark.generate(n=options.num_points).items()
    }
    truth = {name: float(benchmark.truth.loc[name, "Intrinsic Dimension"]) for name in data}
    rows = {}
    for name, points in data.items():
        ours = {key: record.value for key, record in intrinsic_dimension(points, estimators=OURS).items()}
        corrected = calibrate(points, seed=options.seed)
        theirs = {key: by_skdim(key, points) for key in (*FAST, *(SLOW if options.slow else ()))}
        rows[name] = {"true": truth[name], "calibrated": corrected.value, "interval": corrected.interval}
        rows[name] |= ours | {f"skdim {key}": value for key, value in theirs.items()}
    keys = [key for key in next(iter(rows.values())) if key not in ("true", "interval")]
    errors = {key: mean_error(rows, key) for key in keys}
    if not options.json:
        print_table(rows, keys)
    report(
        options.json,
        f"mean relative error on {len(rows)} benchmark manifolds, {options.num_points} points",
        errors["calibrated"],
        {key: value for key, value in errors.items() if key != "calibrated"},
        {key: errors["calibrated"] / value for key, value in errors.items() if key != "calibrated"},
        interval_holds_truth=float(np.mean([holds(row) for row in rows.values()])),
        manifolds=rows if options.json else len(rows),
    )


def by_skdim(name: str, points: np.ndarray) -> float:
    import skdim

    return float(getattr(skdim.id, name)().fit(points).dimension_)


def mean_error(rows: dict[str, dict], key: str) -> float:
    """Undefined values count as an error of one."""
    errors = [
        1.0 if row[key] is None or not np.isfinite(row[key]) else abs(row[key] / row["true"] - 1)
        for row in rows.values()
    ]
    return float(np.mean(errors))


def holds(row: dict) -> bool:
    low, high = row["interval"]
    return low * 0.99 <= row["true"] <= high * 1.01


def print_table(rows: dict[str, dict], keys: list[str]) -> None:
    print("| manifold | true | interval | " + " | ".join(keys) + " |")
    print("|---|---|---|" + "---|" * len(keys))
    for name, row in rows.items():
        cells = [f"{row[key]:.1f}" if row[key] is not None else "–" for key in keys]
        low, high = row["interval"]
        print(f"| {name} | {row['true']:g} | {low:.1f}–{high:.1f} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
