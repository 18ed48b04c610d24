"""What a calibration would reach that knew the family: fitted to a blind family's sets, judged on others.

The same statistics and regression as `calibration_fit.py`, on sets of each family of `dimension_blind.py`
with seeds of their own, 500 points, as many dimensions as the blind sets have and all between. The fit
that calibrates uses nothing of it. An error that even this has, no choice of simulated families takes away
from these statistics.

Usage: python benchmarks/dimension_oracle.py [--json] [--draws 40]
"""

from __future__ import annotations

from collections.abc import Callable

import dimension_blind as blind
import numpy as np
from calibration_fit import fitted
from measure_common import parser, report

from tasks.measures.calibration import correction
from tasks.measures.shape import shape_statistics

NUM_POINTS = 500
Maker = Callable[[int, np.random.Generator], np.ndarray]
FAMILIES: dict[str, tuple[int, int, Maker]] = {
    "decoder 32 px": (4, 32, lambda d, rng: blind.decoder_images(NUM_POINTS, d, 32, rng)),
    "deformed digits": (4, 16, lambda d, rng: blind.deformed_digits(NUM_POINTS, d, rng)),
    "curved sheet": (5, 100, lambda d, rng: blind.sheets(NUM_POINTS, d, rng)),
    "tangled sheets": (5, 20, lambda d, rng: blind.sheets(NUM_POINTS, d, rng, number=3)),
}


def statistics_of(points: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    flat = points.reshape(len(points), -1).astype(float)
    flat -= flat.mean(axis=0)
    lengths = (flat**2).sum(axis=1)
    squared = np.maximum(lengths[:, None] + lengths - 2 * flat @ flat.T, 0)
    np.fill_diagonal(squared, 0)
    return shape_statistics(squared, rng)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--draws", type=int, default=40)
    options = arguments.parse_args()
    errors: dict[str, dict[str, float]] = {}
    for number, (name, (low, high, make)) in enumerate(FAMILIES.items()):
        rows, dimensions = [], []
        for draw in range(options.draws):
            rng = np.random.default_rng([20261128, number, draw])
            d = round(np.exp(rng.uniform(np.log(low), np.log(high))))
            row = statistics_of(make(d, rng), rng)
            if row is not None:
                rows.append(row)
                dimensions.append(d)
        x, log_d, fold = np.array(rows), np.log(dimensions), np.arange(len(rows)) % 5
        found = np.empty(len(x))
        for part in range(5):
            out = fold == part
            one = fitted(x[~out], log_d[~out], np.full((~out).sum(), name))
            found[out] = one.log_dimension(x[out])
        ways = {"family known": found, "calibrated": correction().log_dimension(x), "twonn": x[:, 0]}
        errors[name] = {way: float(abs(np.exp(p - log_d) - 1).mean()) for way, p in ways.items()}
    mean = {way: float(np.mean([table[way] for table in errors.values()])) for way in ("calibrated", "twonn")}
    ours = float(np.mean([table["family known"] for table in errors.values()]))
    report(
        options.json,
        f"mean relative error on {options.draws} sets of each blind family, if the family is known",
        ours,
        mean,
        {way: ours / value for way, value in mean.items()},
        families=errors,
    )


if __name__ == "__main__":
    main()
