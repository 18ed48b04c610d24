"""A search on a table of trainings that were done once: its policy is tested in seconds, without
training.

The table stands in for a cluster of ``num_workers`` equal workers on which an epoch takes one unit
of time. All else, who is asked next, who is chosen, is the search's own code."""

from __future__ import annotations

import csv
import heapq
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from orchestrator.tuning.combinations import Combination, CombinationKey
from orchestrator.tuning.outcome import CombinationOutcome, outcomes
from orchestrator.tuning.search import RequestedTrial, Search
from search_spaces.tuning import TuneSpec
from tasks.trials.records import SearchResult, SearchStatus, ValidationScore


@dataclass(frozen=True)
class TabulatedCell:
    """Every training of the exhaustive grid of one cell.

    Attributes:
        chance_loss: Loss of guessing, in nat.
        curves: By learning rate and seed, the validation loss after each epoch; shorter where it
            diverged.
        num_epochs: Epochs of a whole training.
    """

    chance_loss: float
    curves: Mapping[tuple[float, int], tuple[float, ...]]
    num_epochs: int

    @cached_property
    def rates(self) -> list[float]:
        """The grid, rising."""
        return sorted({rate for rate, _ in self.curves})

    def nearest(self, rate: float) -> float:
        """Return the rate of the grid that stands for ``rate``."""
        return min(self.rates, key=lambda known: abs(math.log(known / rate)))

    def result(self, rate: float, seed: int) -> SearchResult:
        """Return what a training gives."""
        curve = self.curves[self.nearest(rate), seed]
        diverged = len(curve) < self.num_epochs
        return SearchResult(
            status=SearchStatus.DIVERGED if diverged else SearchStatus.COMPLETE,
            epochs=len(curve) + diverged,
            curve=tuple(
                ValidationScore(epoch=i + 1, loss=v, accuracy=0) for i, v in enumerate(curve)
            ),
            num_train=0,
            num_validation=0,
            num_classes=round(math.exp(self.chance_loss)),
            chance_loss=self.chance_loss,
        )

    def mean_loss(self, rate: float) -> float:
        """Return the capped loss of a rate at the end, mean over seeds."""
        return self._mean_losses[self.nearest(rate)]

    @property
    def best_loss(self) -> float:
        """What the exhaustive grid finds."""
        return min(self._mean_losses.values())

    @cached_property
    def _mean_losses(self) -> dict[float, float]:
        losses: dict[float, list[float]] = {}
        for rate, seed in self.curves:
            losses.setdefault(rate, []).append(self.result(rate, seed).capped_loss)
        return {rate: statistics.fmean(found) for rate, found in losses.items()}

    def regret(self, outcome: CombinationOutcome) -> float:
        """Return how many nat the chosen rate is worse than the grid's best; guessing counts for
        none."""
        if outcome.chosen is None:
            return self.chance_loss - self.best_loss
        return self.mean_loss(outcome.chosen.point.learning_rate) - self.best_loss


def read_table(path: Path) -> dict[CombinationKey, TabulatedCell]:
    """Read a table as ``benchmarks/search.py`` writes it: cells by model and subset."""
    curves: dict[CombinationKey, dict[tuple[float, int], tuple[float, ...]]] = {}
    chance: dict[CombinationKey, float] = {}
    lengths: dict[CombinationKey, int] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            key = (row["model"], row["subset"].split(" ")[0])
            losses = row["losses"].split(" ")
            chance[key], lengths[key] = float(row["chance_loss"]), len(losses)
            found = tuple(float(loss) for loss in losses if loss != "-")
            curves.setdefault(key, {})[float(row["learning_rate"]), int(row["seed"])] = found
    return {key: TabulatedCell(chance[key], found, lengths[key]) for key, found in curves.items()}


def replay(
    cells: Mapping[CombinationKey, Combination],
    table: Mapping[CombinationKey, TabulatedCell],
    tune: TuneSpec,
    *,
    num_workers: int = 2,
) -> dict[CombinationKey, CombinationOutcome]:
    """Search every cell on its table; only the learning rate counts.

    Args:
        cells: What is searched.
        table: Their trainings; run r of a point has seed r.
        tune: Settings.
        num_workers: Trainings at the same time.
    """
    search = Search(cells.values(), tune)
    ends: list[tuple[float, int, RequestedTrial]] = []  # when, order of coming, what runs
    clock, number = 0.0, 0
    while True:
        while len(ends) < num_workers and (asked := search.next_trial()) is not None:
            number += 1
            heapq.heappush(ends, (clock + table[asked.combination.key].num_epochs, number, asked))
        if not ends:
            return {(cell.model, cell.dataset): cell for cell in outcomes(search)}
        clock, _, asked = heapq.heappop(ends)
        result = table[asked.combination.key].result(asked.point.learning_rate, asked.run)
        search.add_result(asked.spec.trial_id, result)
