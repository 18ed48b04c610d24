"""Numbers of ``isweep run dimension-moved``: its images, its power and its table.

``moved`` prints the numbers of the fifth registration from the committed table, and ``longer``
those of the sixth. ``--keep CSV`` first copies the needed columns from a table of ``isweep results
--csv``. ``images`` measures d and K_F of the sweep's images by level, without training. ``drawn``
computes the power: the share of tables, drawn from known laws, with each verdict.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from findings_numbers import LevelTable, dimension_moved, read, trained_longer
from harness import Result, run

from tasks.measures.measure import measure_array
from tasks.measures.records import MeasureSettings
from tasks.sources.demo import mnist5k
from tasks.sources.nuisance import vary
from tasks.sources.pictures import to_prepared

RESULTS = Path(__file__).with_name("results")
TABLE, LONGER = (RESULTS / f"dimension_moved{of}.csv.gz" for of in ("", "_longer"))
COLUMNS = [
    *("trial_id", "dataset", "class_pair", "model", "train_size", "seed", "status"),
    *("test_loss", "test_accuracy", "train_accuracy"),
    *("d_data_mle", "d_data_twonn", "label_sharpness"),
]
LEVELS = (0, 2, 4, 6)
PAIRS = [
    *("01", "12", "23", "34", "45", "56", "67", "78", "89", "09"),
    *("02", "13", "24", "35", "46", "57", "68", "79", "08", "19"),
    *("03", "14", "25", "36", "47", "58", "69", "07", "18", "29"),
]
"""Every digit is in six pairs: digits that lie one to three apart, counted in a ring of ten."""
SIZES = [80, 135, 225, 380, 640]

LAW_HOLDS, ONE_SLOPE = "slopes go with 1/d", "one slope for all"
NEITHER, OPEN = "slopes go with d otherwise", "cannot be told"


def moved(*, keep: Path | None = None) -> Result:
    """Print the numbers of the fifth registration and its verdicts."""
    _keep(keep, TABLE)
    result = dimension_moved(read(TABLE))
    return {"verdict": verdict(result), "prediction": predicts(result), **result}


def longer(*, keep: Path | None = None) -> Result:
    """Print the sixth registration's numbers: the same networks, trained longer."""
    _keep(keep, LONGER)
    result = trained_longer(read(TABLE), read(LONGER))
    return {"verdict": verdict(result), "prediction": predicts(result), **result}


def _keep(table: Path | None, path: Path) -> None:
    """Copy the needed columns from a table of results, if there is one."""
    if table is None:
        return
    rows = pd.read_csv(table)[COLUMNS].sort_values(["dataset", "model", "train_size", "seed"])
    compression: Any = {"method": "gzip", "mtime": 0}
    rows.to_csv(path, index=False, float_format="%.5g", compression=compression)


def verdict(answers: Any) -> str:
    """Return the registered verdict on the power γ of d."""
    not_none = answers["power of d against 0"]["adjusted_p"] <= 0.05
    not_law = answers["power of d against 1"]["adjusted_p"] <= 0.05
    if not_none and not_law:
        return NEITHER
    if not_none:
        return LAW_HOLDS
    return ONE_SLOPE if not_law else OPEN


def predicts(answers: Any) -> str:
    """Return the registered verdict on the prediction of unseen pairs."""
    gain = answers["b/d less one slope, new pairs"]
    if gain["adjusted_p"] > 0.05:
        return OPEN
    return "b/d predicts better" if gain["value"] < 0 else "one slope predicts better"


def images(num_images: int = 640, *, copies: int = 1, image_size: int = 10) -> Result:
    """Measure the images of all pairs by level.

    With ``copies`` above 1, each picture occurs so often, with different values of the factors.
    """
    digits = mnist5k()
    settings = MeasureSettings(estimators=("mle",), sharpness_sample=None)
    result: Result = {}
    for level in LEVELS:
        rows = []
        for pair in PAIRS:
            at = np.flatnonzero(np.isin(digits.labels, [int(name) for name in pair]))
            varied = [vary(digits.pixels[at], level, seed) for seed in range(copies)]
            pixels = np.stack(
                [
                    to_prepared(picture, image_size=image_size, channels=1)
                    for picture in np.concatenate(varied)
                ]
            )
            labels = np.tile(digits.labels[at] == int(pair[1]), copies).astype(int)
            chosen = np.random.default_rng(0).permutation(len(labels))[:num_images]
            record = measure_array(pixels[chosen], labels[chosen], settings=settings)
            (size,) = record.sizes
            rows.append((size.d_data["mle"].value, size.label_sharpness.value))
        values = np.array(rows, dtype=float)
        result[f"level {level}"] = {
            "d": [float(v) for v in np.quantile(values[:, 0], (0, 0.5, 1))],
            "K_F": [float(v) for v in np.quantile(values[:, 1], (0, 0.5, 1))],
        }
    return {"num_images": num_images, "copies": copies, **result}


LEVEL_D = (7.1, 8.2, 12.5, 22.3)
D_OF_CLASS, D_OF_PAIR = 0.06, 0.05
"""Standard deviations of log d over classes and over pairs."""
CLASS_SCATTER, PAIR_SCATTER = 0.1, 0.1
"""Standard deviations of slopes over classes and over pairs, as shares of the mean of a level. They
are the same at all levels."""
CURVE_SCATTER = (0.72, 0.5, 0.25, 0.1)
"""Further standard deviation of slopes over curves, as a share of the mean, by level. We assume that
half of this variance belongs to the classes."""
HEIGHT = (-3.4, -1.8, -1.1, -1.0)
"""Mean log loss by level."""
NOISE = (0.28, 0.19, 0.11, 0.11)
"""Standard deviation of a point of log loss about its curve, by level: a mean over two seeds."""
MEAN_SLOPE = 0.28
"""Slope of log loss on -log N at the levels' geometric mean of d."""


def draw(power: float, rng: np.random.Generator) -> LevelTable:
    """Draw a table in which the slope of a curve is proportional to d^(-power)."""
    classes = np.array([[int(name) for name in pair] for pair in PAIRS])

    def effect(of_class: float, of_pair: float) -> np.ndarray:
        shared = rng.normal(0, of_class, 10)[classes].sum(axis=1)
        return np.asarray(shared + rng.normal(0, of_pair, len(PAIRS)))

    log_d = np.log(LEVEL_D) + effect(D_OF_CLASS, D_OF_PAIR)[:, None]
    of_curves = [effect(scatter / 2, scatter / np.sqrt(2)) for scatter in CURVE_SCATTER]
    scatter = 1 + effect(CLASS_SCATTER, PAIR_SCATTER)[:, None] + np.stack(of_curves, axis=1)
    slope = MEAN_SLOPE * np.exp(-power * (log_d - np.log(LEVEL_D).mean())) * scatter
    log_n = np.log(SIZES) - np.log(SIZES).mean()
    noise = rng.normal(0, 1, (*log_d.shape, len(SIZES))) * np.array(NOISE)[:, None]
    loss = np.array(HEIGHT)[:, None] - slope[..., None] * log_n + noise
    return LevelTable(loss, np.exp(log_d), np.zeros(log_d.shape), PAIRS, SIZES)


def drawn(num_tables: int = 300, *, seed: int = 0) -> Result:
    """Count the verdicts on tables drawn from known laws."""
    powers = {"slope as 1/d": 1.0, "slope as d^-0.5": 0.5, "one slope": 0.0}
    result: Result = {"num_tables": num_tables}
    for number, (name, power) in enumerate(powers.items()):
        rng = np.random.default_rng([seed, number])
        tables = [draw(power, rng) for _ in range(num_tables)]
        result[name] = counts(tables, power)
    return result


def counts(tables: list[LevelTable], power: float) -> Result:
    """Return the share of tables with each verdict, and the coverage of the intervals of γ."""
    answers = [table.answers() for table in tables]
    verdicts = Counter(verdict(table_answers) for table_answers in answers)
    predictions = Counter(predicts(table_answers) for table_answers in answers)
    bounds = [table_answers["power of d against 0"] for table_answers in answers]
    return {
        **{name: verdicts[name] / len(tables) for name in (LAW_HOLDS, ONE_SLOPE, NEITHER, OPEN)},
        **{name: count / len(tables) for name, count in predictions.items() if name != OPEN},
        "interval holds the power": float(
            np.mean([b["low"] <= power <= b["high"] for b in bounds])
        ),
        "median width": float(np.median([b["high"] - b["low"] for b in bounds])),
    }


if __name__ == "__main__":
    run(moved, longer, parts=(images, drawn))
