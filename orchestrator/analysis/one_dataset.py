"""What a sweep of one dataset answers: the best network, the learning curve, the test set it needs.

The study's four questions compare datasets, so one dataset cannot answer them. It can answer which
network does best at each train size, how its losses fall, what twice the images would bring, and
how large a test set must be to tell two networks apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm

from orchestrator.analysis.curve_answers import CurveAnswer, CurveQuestion, answers
from orchestrator.analysis.inference import Interval, t_interval
from orchestrator.analysis.learning_curves import MIN_SIZES
from orchestrator.analysis.table import listing, number, plural
from orchestrator.results.columns import (
    CLASS_PAIR,
    DATASET,
    MODEL,
    SEED,
    TEST_ACCURACY,
    TEST_LOSS,
    TRAIN_SIZE,
)
from search_spaces.errors import DataError

MIN_SEEDS_FOR_INTERVAL = 3
"""Seeds of one train size from which the difference of two networks gets an interval."""
ALPHA, POWER = 0.05, 0.80
"""Level and power of the comparison that a test set is sized for: 8 of 10 studies detect it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BestNetwork:
    """The two networks of lowest mean test loss at one train size.

    Attributes:
        difference: Log of the ratio of their losses (runner-up over best), by seed paired; its 95 %
            interval where there are three seeds or more.
        test_images_needed: Images of a test set on which their accuracies would be told apart in 8
            of 10 studies, if each network erred independently; None where they are equal. Networks
            that err on the same images need fewer.
    """

    train_size: int
    model: str
    loss: float
    runner_up: str
    runner_up_loss: float
    difference: Interval | None
    test_images_needed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OneDataset:
    """The answers of a sweep of one dataset: the best network per train size, and its curves."""

    dataset: str
    best: tuple[BestNetwork, ...]
    curves: tuple[CurveAnswer, ...]
    num_seeds: int
    why_no_curves: str = ""

    @property
    def best_line(self) -> str:
        """Say which network does best, where, and by how much at the largest train size."""
        last = self.best[-1]
        winners = sorted({at_size.model for at_size in self.best})
        if len(winners) == 1:
            where = f"at all {plural(len(self.best), 'train size')}"
            where = where if len(self.best) > 1 else f"at N = {number(last.train_size)}"
            lead = f"the lowest test loss {where} is that of {winners[0]}"
        else:
            by_size = [f"{at_size.model} at {number(at_size.train_size)}" for at_size in self.best]
            lead = f"the best network depends on N: {listing(by_size)}"
        losses = f"{number(last.loss)} against {number(last.runner_up_loss)} of {last.runner_up}"
        return f"{lead}; at N = {number(last.train_size)} it is {losses}. {self._certainty()}"

    def _certainty(self) -> str:
        last = self.best[-1]
        if last.difference is None:
            return (
                f"With {plural(self.num_seeds, 'seed')}, another training could change this; "
                f"{MIN_SEEDS_FOR_INTERVAL} seeds give it an interval."
            )
        low, high = (number(float(np.exp(bound))) for bound in last.difference)
        detected = "the networks differ" if last.difference[0] > 0 else "no difference is detected"
        return f"By seeds, {detected}: losses are {low} to {high} times apart (95 % interval)."

    @property
    def test_set_line(self) -> str:
        """Say how many test images tell the two best networks apart."""
        last = self.best[-1]
        if last.test_images_needed is None:
            return ""
        return (
            f"To tell {last.model} from {last.runner_up} by accuracy in 8 of 10 studies, a test "
            f"set needs about {number(last.test_images_needed)} images; fewer if both err on the "
            "same ones."
        )


def one_dataset(table: pd.DataFrame) -> OneDataset | None:
    """Return what a table of one dataset answers; None for several datasets or class pairs.

    Args:
        table: One row per finished training, with the columns of a sweep's table.
    """
    has_logarithm = (table[TEST_LOSS] > 0) & np.isfinite(table[TEST_LOSS])
    done = table[has_logarithm]
    names = table[[DATASET, CLASS_PAIR]].drop_duplicates()
    if len(names) != 1 or done.empty:
        return None
    sizes = sorted(done[TRAIN_SIZE].unique())
    by_size = (best_network(done[done[TRAIN_SIZE] == size]) for size in sizes)
    with_sizes = done.groupby(MODEL)[TRAIN_SIZE].transform("nunique") >= MIN_SIZES
    curves: tuple[CurveAnswer, ...] = ()
    why_no_curves = ""
    if with_sizes.any():
        try:
            curves = answers(done[with_sizes], CurveQuestion()).curves
        except DataError as error:
            why_no_curves = str(error)
    return OneDataset(
        dataset=str(names[DATASET].iloc[0]),
        best=tuple(best for best in by_size if best is not None),
        curves=curves,
        why_no_curves=why_no_curves,
        num_seeds=max(1, int(done[SEED].nunique())),
    )


def best_network(rows: pd.DataFrame) -> BestNetwork | None:
    """Return the two best networks of one train size; None if there is only one network."""
    means = rows.groupby(MODEL)[TEST_LOSS].mean().sort_values()
    if len(means) < 2:
        return None
    best, runner_up = (str(name) for name in means.index[:2])
    seeds = rows[SEED].fillna(0)  # a table that is not a sweep's may name none
    by_seed = np.log(rows[TEST_LOSS]).groupby([seeds, rows[MODEL]]).mean().unstack()
    differences = (by_seed[runner_up] - by_seed[best]).dropna().to_numpy(dtype=float)
    accuracies = rows.groupby(MODEL)[TEST_ACCURACY].mean()
    return BestNetwork(
        train_size=int(rows[TRAIN_SIZE].iloc[0]),
        model=best,
        loss=float(means[best]),
        runner_up=runner_up,
        runner_up_loss=float(means[runner_up]),
        difference=_interval(differences),
        test_images_needed=size_of_test_set(accuracies[best], accuracies[runner_up]),
    )


def size_of_test_set(first: float, second: float) -> int | None:
    """Return the size of a test set that tells two accuracies apart; None if they are equal.

    n = (z₁₋α⸝₂ + z_power)² (p₁ (1 − p₁) + p₂ (1 − p₂)) / (p₁ − p₂)², the usual size for two
    independent proportions. Both networks see the same images, whose errors usually go together, so
    McNemar's test needs no more.
    """
    if pd.isna(first) or pd.isna(second) or first == second:
        return None
    quantiles = norm.ppf(1 - ALPHA / 2) + norm.ppf(POWER)
    variance = first * (1 - first) + second * (1 - second)
    return int(np.ceil(quantiles**2 * variance / (first - second) ** 2))


def _interval(differences: Sequence[float]) -> Interval | None:
    """Return the 95 % t interval of a mean over seeds, where there are enough that scatter."""
    values = np.asarray(differences)
    if len(values) < MIN_SEEDS_FOR_INTERVAL or values.std() == 0:
        return None
    error = float(values.std(ddof=1) / np.sqrt(len(values)))
    return t_interval(float(values.mean()), error, len(values) - 1)
