"""A search on a table of finished trainings, so that a test of its policy needs no training.

The table replaces a cluster of ``num_workers`` equal workers on which an epoch takes one unit of
time. The search itself decides which trial is next and which point is chosen."""

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
class TabulatedCombination:
    """Every training of the exhaustive grid of one combination.

    Attributes:
        chance_loss: Loss at chance level, in nat.
        curves: Learning rate and seed -> validation loss after each epoch. A curve that diverged
            is shorter.
        num_epochs: Epochs of a complete training.
    """

    chance_loss: float
    curves: Mapping[tuple[float, int], tuple[float, ...]]
    num_epochs: int

    @cached_property
    def rates(self) -> list[float]:
        """The learning rates of the grid, rising."""
        return sorted({rate for rate, _ in self.curves})

    def nearest(self, rate: float) -> float:
        """Return the rate of the grid that is nearest to ``rate`` on a logarithmic scale."""
        return min(self.rates, key=lambda grid_rate: abs(math.log(grid_rate / rate)))

    def result(self, rate: float, seed: int) -> SearchResult:
        """Return the result of a training."""
        curve = self.curves[self.nearest(rate), seed]
        diverged = len(curve) < self.num_epochs
        return SearchResult(
            status=SearchStatus.DIVERGED if diverged else SearchStatus.COMPLETE,
            epochs=len(curve) + diverged,
            curve=tuple(
                ValidationScore(epoch=epoch + 1, loss=loss, accuracy=0)
                for epoch, loss in enumerate(curve)
            ),
            num_train=0,
            num_validation=0,
            num_classes=round(math.exp(self.chance_loss)),
            chance_loss=self.chance_loss,
        )

    def mean_loss(self, rate: float) -> float:
        """Return the mean over seeds of the capped final loss of a rate."""
        return self._mean_losses[self.nearest(rate)]

    @property
    def best_loss(self) -> float:
        """The lowest mean loss of the exhaustive grid."""
        return min(self._mean_losses.values())

    @cached_property
    def _mean_losses(self) -> dict[float, float]:
        losses: dict[float, list[float]] = {}
        for rate, seed in self.curves:
            losses.setdefault(rate, []).append(self.result(rate, seed).capped_loss)
        return {rate: statistics.fmean(seed_losses) for rate, seed_losses in losses.items()}

    def regret(self, outcome: CombinationOutcome) -> float:
        """Return by how many nat the chosen rate's loss is above the grid's lowest loss.

        If no rate was chosen, its loss is that at chance level.
        """
        if outcome.chosen is None:
            return self.chance_loss - self.best_loss
        return self.mean_loss(outcome.chosen.point.learning_rate) - self.best_loss


def read_table(path: Path) -> dict[CombinationKey, TabulatedCombination]:
    """Read a table as ``benchmarks/search.py`` writes it: combinations by model and subset."""
    curves: dict[CombinationKey, dict[tuple[float, int], tuple[float, ...]]] = {}
    chance: dict[CombinationKey, float] = {}
    lengths: dict[CombinationKey, int] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            key = (row["model"], row["subset"].split(" ")[0])
            losses = row["losses"].split(" ")
            chance[key] = float(row["chance_loss"])
            lengths[key] = len(losses)
            rate_and_seed = (float(row["learning_rate"]), int(row["seed"]))
            # After a divergence the table has "-".
            curve = tuple(float(loss) for loss in losses if loss != "-")
            curves.setdefault(key, {})[rate_and_seed] = curve
    return {
        key: TabulatedCombination(chance[key], key_curves, lengths[key])
        for key, key_curves in curves.items()
    }


def replay(
    combinations: Mapping[CombinationKey, Combination],
    table: Mapping[CombinationKey, TabulatedCombination],
    tune: TuneSpec,
    *,
    num_workers: int = 2,
) -> dict[CombinationKey, CombinationOutcome]:
    """Search every combination on its table. The result of a trial depends on its learning rate.

    Args:
        combinations: The searched combinations.
        table: Their trainings. Run r of a point has seed r.
        tune: Settings of the search.
        num_workers: Trainings that run at the same time.
    """
    search = Search(combinations.values(), tune)
    # Each entry: when the trial ends, its number in order of start, the trial.
    running: list[tuple[float, int, RequestedTrial]] = []
    clock = 0.0
    number = 0
    while True:
        while len(running) < num_workers and (trial := search.next_trial()) is not None:
            number += 1
            ends_at = clock + table[trial.combination.key].num_epochs
            heapq.heappush(running, (ends_at, number, trial))
        if not running:
            return {(outcome.model, outcome.dataset): outcome for outcome in outcomes(search)}
        clock, _, trial = heapq.heappop(running)
        result = table[trial.combination.key].result(trial.point.learning_rate, trial.seed)
        search.add_result(trial.spec.trial_id, result)
