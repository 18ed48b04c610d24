"""Simulated results tables of known laws and of no law, on which the reports are tested.

This module uses nothing of the analysis, of its simulation or of its synthetic tables, so it does
not repeat their errors. Losses are log L = −e (log N − c) / d + b_d d + b_K log K + b_label label + height and
slope of the dataset + effects of pair, model and training subset + error. c is the mean of log N,
so effects along N and effects between datasets are separate. d is its value at the largest N. The
estimate in the table grows with N, as real estimates do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]


def share(count: int, num: int) -> dict[str, float]:
    """Return a share with its exact (Clopper-Pearson) 95 % bounds."""
    bounds = stats.binomtest(count, num).proportion_ci(0.95, method="exact")
    numbers = {"share": count / num, "low": float(bounds.low), "high": float(bounds.high)}
    return {**{name: round(value, 4) for name, value in numbers.items()}, "tables": num}


STUDY = (("natural", 5),) * 4 + (("medical", 1),) * 7
SIZES = (500, 750, 1000, 1250, 1500, 1750)
DECADES = (100, 300, 1000, 3000, 10000)
GROWTH = 0.05


@dataclass(frozen=True, kw_only=True)
class World:
    """One kind of table: its shape, its law, its errors and its defects.

    Attributes:
        name: Name of the kind in results.
        datasets: Domain and number of class pairs of each dataset.
        sizes: Train sizes.
        exponent: e of the formula; the law's value is 1.
        on_d: b_d of the formula.
        on_sharpness: b_K of the formula.
        on_label: b_label of the formula.
        on_gain: Slope of the loss that attacks add on standardized K_F.
        slope_std: Standard deviation of the exponents of datasets around ``exponent``.
        heavy: Whether the errors of datasets, subsets and trials have Student's t distribution with
            2 degrees of freedom.
        medical_spread: Factor on the heights of medical datasets.
        collinear: Whether log K_F is a linear function of 1/d.
        lost: Which cells are missing: ``high`` for cells of high loss, ``sizes`` for small N of
            high d and large N of low d.
        outlier: Whether one medical dataset has eight times the K_F of the others.
        long_range: Whether one dataset has two more decades of N.
        shift: Constant added to all log losses; large values bring losses to chance level.
        bend: How shifted losses stay below chance level: smoothly or abruptly.
        measure_error: Relative error of d; the relative error of K_F is three times as large.
        noise_spread: Standard deviation, between datasets, of the log of the size of the trainings'
            errors.
        floor: Floor of the losses, as a share of the loss of each dataset at the first N.
        wander: Standard deviation of the steps of a random walk along N, which correlates errors of
            neighboring N.
        models: Names of the networks.
    """

    name: str
    datasets: tuple[tuple[str, int], ...] = STUDY
    sizes: tuple[int, ...] = SIZES
    exponent: float = 0.0
    on_d: float = 0.0
    on_sharpness: float = 0.0
    on_label: float = 0.0
    on_gain: float = 0.0
    slope_std: float = 0.0
    heavy: bool = False
    medical_spread: float = 1.0
    collinear: bool = False
    lost: str = ""
    outlier: bool = False
    long_range: bool = False
    shift: float = 0.0
    bend: str = "tanh"
    measure_error: float = 0.0
    noise_spread: float = 0.0
    floor: float = 0.0
    wander: float = 0.0
    models: tuple[str, ...] = ("a",)


LAW = {"exponent": 1.0, "on_sharpness": 1.0}
WRONG = {"exponent": -3.0, "on_sharpness": -1.0, "on_d": -0.1}
ONE_DOMAIN = (("medical", 1),) * 10
THREE = (("natural", 5), ("medical", 1), ("medical", 1))
WORLDS = (
    World(name="noise", models=("a", "b")),
    World(name="noise, two decades of N", sizes=DECADES),
    World(name="noise, datasets' own slopes", sizes=DECADES, slope_std=2.0),
    World(name="noise, heavy tails", heavy=True),
    World(name="noise, medical heights four times as spread", medical_spread=4.0),
    World(name="noise, the label alone", on_label=1.5),
    World(name="noise, one domain", datasets=ONE_DOMAIN),
    World(name="noise, three datasets", datasets=THREE),
    World(name="noise, one N", sizes=(1000,)),
    World(name="noise, cells of high loss missing", lost="high"),
    World(name="noise, sizes missing by d", lost="sizes"),
    World(name="noise, one K_F far off", outlier=True, on_label=1.0),
    World(name="noise, one dataset with a long range of N", long_range=True, slope_std=1.0),
    World(name="d and K_F collinear, loss on d alone", collinear=True, on_d=0.2),
    World(name="law", sizes=DECADES, models=("a", "b"), **LAW),
    World(name="law, measures with error", sizes=DECADES, measure_error=0.05, **LAW),
    World(name="law, heavy tails", sizes=DECADES, heavy=True, **LAW),
    World(name="law, cells of high loss missing", sizes=DECADES, lost="high", **LAW),
    World(name="law, losses near guessing", sizes=DECADES, shift=1.0, **LAW),
    World(name="law, losses much nearer guessing", sizes=DECADES, shift=2.0, **LAW),
    World(name="law, losses stop at guessing", sizes=DECADES, shift=1.0, bend="stop", **LAW),
    World(name="law, losses bend early", sizes=DECADES, shift=1.0, bend="exponential", **LAW),
    World(
        name="steep law, losses near guessing",
        sizes=DECADES,
        shift=1.0,
        exponent=3.0,
        on_sharpness=1.0,
    ),
    World(name="law, losses pass guessing freely", sizes=DECADES, shift=1.0, bend="none", **LAW),
    World(name="wrong sign", sizes=DECADES, on_gain=-2.0, **WRONG),
    World(name="K_F strong", sizes=DECADES, on_sharpness=4.0, on_gain=3.0, exponent=6.0),
)
#: For predictions alone: errors of another size in every dataset, and curves that are not straight.
RAGGED = (
    World(name="noisier and quieter datasets", noise_spread=0.7, **LAW),
    World(
        name="noisier and quieter datasets, their own slopes",
        noise_spread=0.7,
        slope_std=2.0,
        **LAW,
    ),
    World(
        name="noisier and quieter datasets, two decades of N",
        sizes=DECADES,
        noise_spread=0.7,
        **LAW,
    ),
    World(name="very unequal noise", noise_spread=1.2, **LAW),
    World(name="a floor", sizes=DECADES, floor=0.2, exponent=4.0, on_sharpness=1.0),
    World(name="a floor, noisier and quieter datasets", floor=0.5, noise_spread=0.7, **LAW),
    World(name="curves that wander", wander=0.3, **LAW),
    World(
        name="curves that wander, two decades of N",
        sizes=DECADES,
        wander=0.3,
        noise_spread=0.5,
        **LAW,
    ),
)


@dataclass(frozen=True)
class Drawn:
    """A simulated table, and the rows of one dataset that was left out of the table."""

    table: pd.DataFrame
    kept_back: pd.DataFrame


def draw(world: World, rng: np.random.Generator) -> Drawn:
    """Draw the table of a world, and one more dataset that is left out of the table.

    The left-out dataset has the domain of the last dataset.
    """
    kinds = (*world.datasets, (world.datasets[-1][0], 1))
    rows = pd.concat(
        [_dataset(world, j, *kind, rng) for j, kind in enumerate(kinds)], ignore_index=True
    )
    names = rows["dataset"].unique()
    mean_log_sharpness = np.log(rows["label_sharpness"]).groupby(rows["dataset"]).mean()
    gain = world.on_gain * rows["dataset"].map(
        (mean_log_sharpness - mean_log_sharpness.mean()) / mean_log_sharpness.std()
    )
    of_datasets = dict(zip(names, rng.normal(0, 1, len(names)), strict=True))
    for epsilon in (2, 8):
        rows[f"fgsm_{epsilon}_loss_gain"] = (
            10 + gain + rows["dataset"].map(of_datasets) + rng.normal(0, 1, len(rows))
        )
    rows["trial_id"] = [f"t{k:05d}" for k in range(len(rows))]
    is_left_out = rows["dataset"] == names[-1]
    table = rows[~is_left_out].sample(frac=1, random_state=int(rng.integers(2**31)))
    return Drawn(_without(table, world.lost), rows[is_left_out])


def _errors(world: World, rng: np.random.Generator, std: float, size: int) -> Array:
    values = rng.standard_t(2, size) if world.heavy else rng.normal(0, 1, size)
    return np.asarray(std * values)


def _dataset(
    world: World, j: int, domain: str, pairs: int, rng: np.random.Generator
) -> pd.DataFrame:
    medical = domain == "medical"
    sizes = world.sizes
    if world.long_range and j == 0:
        sizes = tuple(int(n) for n in np.geomspace(sizes[0], 100 * sizes[-1], len(sizes)))
    centre = float(np.mean(np.log(world.sizes)))
    d_own, k_own = float(rng.uniform(6, 20)), float(rng.normal(0, 0.45)) + 0.9 * medical
    if world.outlier and j == len(world.datasets) - 1:
        k_own = 0.9 + np.log(8)
    height = float(_errors(world, rng, 0.8, 1)[0]) * (world.medical_spread if medical else 1.0)
    own_slope = float(rng.normal(0, world.slope_std))
    own_noise = float(np.exp(rng.normal(0, world.noise_spread))) if world.noise_spread else 1.0
    walk = (
        np.cumsum(rng.normal(0, world.wander, len(sizes))) if world.wander else np.zeros(len(sizes))
    )
    of_model = 0.1 * np.arange(len(world.models)) + _errors(world, rng, 0.2, len(world.models))
    frames = []
    for pair in range(pairs):
        d = d_own * float(np.exp(rng.normal(0, 0.1)))
        log_k = -9.0 + (5.0 - 20.0 / d if world.collinear else k_own + float(rng.normal(0, 0.2)))
        of_subset, of_pair = _errors(world, rng, 0.2, len(sizes)), float(rng.normal(0, 0.3))
        d_seen, k_seen = (
            d * np.exp(rng.normal(0, world.measure_error, len(sizes))),
            np.exp(log_k + rng.normal(0, 3 * world.measure_error, len(sizes))),
        )
        for m, model in enumerate(world.models):
            log_n = np.log(sizes)
            log_loss = (
                _falling((world.exponent + own_slope) * (log_n - centre) / d, world.floor)
                + world.on_d * (d - 13)
                + world.on_sharpness * (log_k + 9)
                + world.on_label * medical
                + height
                + of_model[m]
                + of_pair
                + of_subset
                + walk
                + own_noise * _errors(world, rng, 0.3, len(sizes))
            )
            frames.append(
                pd.DataFrame(
                    {
                        "dataset": f"{domain}{j}",
                        "domain": domain,
                        "class_pair": f"p{pair}" if pairs > 1 else "",
                        "model": model,
                        "train_size": sizes,
                        "test_loss": _loss(log_loss, world, rng),
                        "d_data_mle": d_seen * (np.array(sizes) / sizes[-1]) ** GROWTH,
                        "label_sharpness": k_seen,
                        "seed": 0,
                    }
                )
            )
    return pd.concat(frames)


def _falling(fall: Array, floor: float) -> Array:
    """Return the log of a loss that falls as a power of N towards a floor."""
    if not floor:
        return -fall
    return np.asarray(np.log((1 - floor) * np.exp(fall[0] - fall) + floor) - fall[0])


def _loss(log_loss: Array, world: World, rng: np.random.Generator) -> Array:
    """Return losses of about 0.1 nat.

    With a shift, losses are bent so that none is far above chance level.
    """
    loss = np.exp(log_loss - 2.3 + world.shift)
    share = loss / np.log(2)
    if not world.shift or world.bend == "none":
        return np.asarray(loss)
    if world.bend == "stop":
        return np.asarray(np.log(2) * np.minimum(share, 1) * np.exp(rng.normal(0, 0.02, len(loss))))
    return np.asarray(np.log(2) * (np.tanh(share) if world.bend == "tanh" else 1 - np.exp(-share)))


def _without(table: pd.DataFrame, lost: str) -> pd.DataFrame:
    if lost == "high":
        gone = table["test_loss"] > table["test_loss"].quantile(0.8)
        return table.assign(
            test_loss=table["test_loss"].mask(gone), status=np.where(gone, "diverged", "done")
        )
    if lost == "sizes":
        high = table["d_data_mle"] > table["d_data_mle"].median()
        sizes = sorted(table["train_size"].unique())
        gone = (high & table["train_size"].isin(sizes[:2])) | (
            ~high & table["train_size"].isin(sizes[-2:])
        )
        return table[~gone]
    return table
