"""What a search found: per cell the chosen point, and what speaks for it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.results.store import ResultStore, Unreadable
from orchestrator.tuning.cells import AskedRecord, CellKey, Point, SearchRecord, TuningCell
from orchestrator.tuning.search import CellSearch, Search, Training, rungs_of
from tasks.finding import Finding
from tasks.trials.records import SearchResult, SearchStatus, capped

FLAT_WITHIN = 0.05
"""Nat of validation loss above the best within which an optimum counts as flat."""


class Candidate(Finding):
    """A finalist: a point and the validation losses of its trainings, in nat.

    Attributes:
        point: Where.
        losses: One per run that it is judged by, capped (see :func:`tasks.trials.records.capped`); runs
            have other seeds, splits and class pairs, the same ones for every finalist.
        mean: Of ``losses``.
        std_error: Of the mean, from the spread over runs; None for one run.
        diverged: How many of the runs diverged.
    """

    point: Point
    losses: tuple[float, ...]
    mean: float
    std_error: float | None
    diverged: int


class CellOutcome(Finding):
    """What was found for one model on one dataset.

    Attributes:
        model: Name.
        dataset: Name.
        chosen: See :func:`_choice`; None when none was trained to its end.
        own: The sweep's own recipe, trained as often; None when it failed.
        finalists: All that have every run, those of earlier starts too, best first.
        gain: Mean loss of ``own`` less that of ``chosen``, over the runs that both have.
        gain_std_error: From the spread of the differences, run by run; None for one run, or own kept.
        flat: Smallest and largest rate of trials within ``FLAT_WITHIN`` of the best, all else as tried.
        num_trials: Points that were tried.
        num_pruned: Of them, stopped early.
        num_diverged: Of them, diverged.
        num_failed: Of them, without a result at the last start.
        spent: Search trainings, in whole trainings; finalists' further runs are not in it.
        finalist_trainings: These.
        budget: Allowed for ``spent``.
        chance_loss: Loss of guessing.
    """

    model: str
    dataset: str
    chosen: Candidate | None
    own: Candidate | None
    finalists: tuple[Candidate, ...]
    gain: float | None
    gain_std_error: float | None
    flat: tuple[float, float] | None
    num_trials: int
    num_pruned: int
    num_diverged: int
    num_failed: int
    spent: float
    finalist_trainings: float
    budget: float
    chance_loss: float | None

    @property
    def divergence_rate(self) -> float:
        """Share of the points tried that diverged."""
        return self.num_diverged / self.num_trials if self.num_trials else 0.0

    @property
    def keeps_own(self) -> bool:
        """Whether nothing was better than the sweep's own recipe by more than chance."""
        return self.own is not None and self.chosen == self.own

    @property
    def why_not(self) -> str:
        """Why there is no recipe for this cell, and the way out; empty where there is one."""
        if self.chosen is not None:
            return ""
        where = f"{self.model} on {self.dataset}"
        if self.num_trials and self.num_diverged == self.num_trials:
            return (
                f"{where}: all {self.num_trials} trials diverged, so there is no recipe; "
                "lower tune.learning_rate and tune again: what was found is kept"
            )
        if self.num_trials > self.num_pruned + self.num_diverged:
            return (
                f"{where}: further trainings of every finalist failed or diverged, so there is no recipe; "
                "mend what failed, and tune again: what was found is kept"
            )
        return (
            f"{where}: no trial was trained to its end ({self.num_trials} tried, "
            f"{self.num_diverged} diverged, {self.num_failed} failed), so there is no recipe; "
            "mend what failed, or raise tune.budget, and tune again: what was found is kept"
        )

    @property
    def problem(self) -> str:
        """What to know before using the recipe, and the way out; empty where there is nothing."""
        from orchestrator.analysis.guessing import AT_GUESSING

        if self.chosen is None or self.chance_loss is None:
            return self.why_not
        where = f"{self.model} on {self.dataset}"
        if self.chosen.mean < AT_GUESSING * self.chance_loss:
            unknown = (
                "" if self.own is not None else "the sweep's own recipe failed, so there is no gain to tell"
            )
            return unknown and f"{where}: {unknown}; mend what failed, and tune again: what was found is kept"
        return (
            f"{where}: the best recipe found is hardly better than guessing "
            f"(validation loss {self.chosen.mean:.3f}, guessing {self.chance_loss:.3f}); widen "
            "tune.learning_rate, raise tune.budget or recipe.epochs, and tune again"
        )


def outcomes(search: Search) -> tuple[CellOutcome, ...]:
    """Return what was found so far, cell by cell."""
    return tuple(_outcome(cell, search.tune.finalists, search.tune.seeds) for cell in search.cells.values())


def _outcome(search: CellSearch, num_finalists: int, num_runs: int) -> CellOutcome:
    tried = [result for (_, run), result in search.results.items() if run == 0]
    points = search.finalists(num_finalists)
    # Finalists of earlier starts have all their runs too: a search that goes on forgets none.
    points += [point for point, _ in search.complete() if point not in points]
    finalists = [_candidate(search, point, num_runs) for point in points]
    # Of equal means the first, the better one of the search.
    ranked = sorted(filter(None, finalists), key=lambda candidate: candidate.mean)
    own = next((candidate for candidate in ranked if candidate.point == search.cell.own), None)
    chosen = _choice(ranked, own)
    gains = [] if chosen is None or own is None else _differences(own, chosen)
    statuses = [result.status for result in tried]
    return CellOutcome(
        model=search.cell.key[0],
        dataset=search.cell.key[1],
        chosen=chosen,
        own=own,
        finalists=tuple(ranked),
        gain=statistics.fmean(gains) if gains else None,
        gain_std_error=None if chosen == own else _std_error(gains),
        flat=_flat(search),
        num_trials=len(tried),
        num_pruned=statuses.count(SearchStatus.PRUNED),
        num_diverged=statuses.count(SearchStatus.DIVERGED),
        num_failed=search.num_failed,
        spent=search.spent,
        finalist_trainings=sum(r.epochs for (_, run), r in search.results.items() if run)
        / search.cell.num_epochs,
        budget=search.num_trainings,
        chance_loss=tried[0].chance_loss if tried else None,
    )


def _choice(ranked: Iterable[Candidate], own: Candidate | None) -> Candidate | None:
    """Return the finalist of lowest mean loss, or the own recipe where that is within one error of it.

    The one-standard-error rule of Breiman et al., "Classification and Regression Trees", 1984: what is not
    better by more than the error of the difference, run by run, is not worth leaving what is known. One run
    alone has no error, and the lowest loss is taken.
    """
    best = next((candidate for candidate in ranked if candidate.diverged < len(candidate.losses)), None)
    if best is None or own is None or own.diverged == len(own.losses):
        return best
    gains = _differences(own, best)
    return best if statistics.fmean(gains) > (_std_error(gains) or 0.0) else own


def _candidate(search: CellSearch, point: Point, num_runs: int) -> Candidate | None:
    """Return a finalist with all its runs; None where one gave nothing: means are over the same runs.

    The first made it a finalist, by its luck too, and so is judged by only where there is no other.
    """
    runs = [search.results.get((point, run)) for run in range(num_runs)]
    found: list[SearchResult] = [result for result in runs if result is not None]
    if len(found) < num_runs:
        return None
    found = found[1:] or found
    losses = tuple(result.capped_loss for result in found)
    return Candidate(
        point=point,
        losses=losses,
        mean=statistics.fmean(losses),
        std_error=_std_error(losses),
        diverged=sum(result.status == SearchStatus.DIVERGED for result in found),
    )


def _differences(own: Candidate, chosen: Candidate) -> list[float]:
    return [before - after for before, after in zip(own.losses, chosen.losses, strict=True)]


def _std_error(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None


def _flat(search: CellSearch) -> tuple[float, float] | None:
    complete = search.complete()
    if not complete:
        return None
    limit = complete[0][1].capped_loss + FLAT_WITHIN
    rates = [point.learning_rate for point, result in complete if result.capped_loss <= limit]
    return min(rates), max(rates)


# Which searched parameters matter: how much of the losses' ranks each explains, beside what chance gives.

PARAMETERS = ("learning_rate", "weight_decay", "batch_size")
FEWEST_FOR_IMPORTANCE = 12
"""Points of a model, over its datasets. With twelve a rate that alone decides is told from chance in four
searches of five, with 18 in nearly all."""
NUM_GROUPS = 3
NUM_SHUFFLES = 999
ERROR = 0.05
"""How often chance alone tells any parameter of a model apart."""


def importance_table(cells: Sequence[CellSearch], seed: int = 0) -> pd.DataFrame:
    """Return how much each parameter decides the loss at the first rung, one row per model and parameter.

    The points of a model's datasets are taken together, by the rank of their loss within the dataset, at the
    first rung, because all trials come to it. A parameter explains the share of the ranks' variance that lies
    between its lowest, middle and highest third of points, or between batch sizes: the ε² of Kruskal and
    Wallis's test, without its ties. Models of fewer than ``FEWEST_FOR_IMPORTANCE`` points are left out, and
    those whose points are all alike.

    Args:
        cells: The search's.
        seed: Of the shuffles.

    Returns:
        Columns ``model``, ``parameter``, ``num_points``, ``share``, and ``by_chance``: what the shares stay
        below when losses are shuffled among the points of each dataset, for all parameters of a model in
        all but ``ERROR`` of the shuffles (Bonferroni).
    """
    rows = []
    for model in dict.fromkeys(search.cell.key[0] for search in cells):
        found = [_points(search) for search in cells if search.cell.key[0] == model]
        table = pd.concat([one for one in found if not one.empty] or [pd.DataFrame(columns=["rank"])])
        if len(table) < FEWEST_FOR_IMPORTANCE or table["rank"].nunique() == 1:
            continue
        rng = np.random.default_rng(seed)
        ranks = [one["rank"].to_numpy() for one in found]
        shuffled = np.stack(
            [np.concatenate([rng.permutation(some) for some in ranks]) for _ in range(NUM_SHUFFLES)]
        )
        for name in PARAMETERS:
            groups = _groups(table[name].to_numpy(dtype=float), split=name != "batch_size")
            limit = np.quantile(explained(shuffled, groups), 1 - ERROR / len(PARAMETERS), method="higher")
            share = explained(np.concatenate(ranks)[None], groups)[0]
            rows.append((model, name, len(table), float(share), float(limit)))
    return pd.DataFrame(rows, columns=["model", "parameter", "num_points", "share", "by_chance"])


def explained(ranks: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of the variance that lies between groups.

    Args:
        ranks: ``(num_shuffles, num_points)``, not all equal.
        groups: ``(num_points,)``.
    """
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    between = np.zeros(len(ranks))
    for group in np.unique(groups):
        inside = centred[:, groups == group]
        between += inside.sum(axis=1) ** 2 / inside.shape[1]
    return np.asarray(between / (centred**2).sum(axis=1))


def _groups(values: NDArray[np.float64], *, split: bool) -> NDArray[np.int64]:
    """Return the third of each value by its place in their order, or its place among the distinct ones."""
    if not split:
        return np.unique(values, return_inverse=True)[1]
    places = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return places * NUM_GROUPS // len(values)


def _points(search: CellSearch) -> pd.DataFrame:
    """Return the points of a cell with the ranks of their losses at the first rung."""
    rung = (rungs_of(search.cell) or (search.cell.num_epochs,))[0]
    rows = []
    for (point, run), result in search.results.items():
        if run == 0 and search.cell.contains(point):
            reached = [score.loss for score in result.curve if score.epoch == rung]
            rows.append(
                {**point.model_dump(), "loss": capped(reached[0] if reached else None, result.chance_loss)}
            )
    table = pd.DataFrame(rows, columns=[*PARAMETERS, "loss"])
    return table.assign(rank=table["loss"].rank(pct=True))


# What earlier starts left of a search: trainings that were asked for, in their order, and what they gave.


@dataclass(frozen=True)
class Earlier:
    """What is stored of a search.

    Attributes:
        asked: What was asked for, by trial id.
        records: What was found, likewise, the first to end first.
        num_others: Results of another train size, recipe, split or prepared data; kept and not used.
        unreadable: Files that are not believed.
    """

    asked: dict[str, AskedRecord]
    records: dict[str, SearchRecord]
    num_others: int
    unreadable: list[Unreadable]

    @classmethod
    def read(
        cls, store: ResultStore, cells: Iterable[TuningCell], fingerprints: Mapping[str, str]
    ) -> Earlier:
        """Read it.

        Args:
            store: Of the search.
            cells: What is searched now.
            fingerprints: Content hash of each prepared dataset, by prepared id.
        """
        by_key = {cell.key: cell for cell in cells}
        asked, found = store.scan(AskedRecord), store.scan(SearchRecord)
        records = [one for one in found.records.values() if _belongs(one, by_key, fingerprints)]
        records.sort(key=lambda record: record.finished_at)
        return cls(
            {name: one for name, one in asked.records.items() if _belongs(one, by_key, fingerprints)},
            {record.trial_id: record for record in records},
            len(found.records) - len(records),
            asked.unreadable + found.unreadable,
        )

    def trainings(self) -> list[Training]:
        """Return everything in the order in which it was asked for; what is of no known place comes first."""
        every: dict[str, AskedRecord | SearchRecord] = {**self.records, **self.asked}
        ordered = sorted(every.values(), key=lambda one: one.number if isinstance(one, AskedRecord) else -1)
        results = {name: record.result for name, record in self.records.items()}
        return [Training(one.key, one.point, one.role, one.run, results.get(one.trial_id)) for one in ordered]


def _belongs(
    record: AskedRecord | SearchRecord, cells: Mapping[CellKey, TuningCell], fingerprints: Mapping[str, str]
) -> bool:
    """Tell whether a record is of one of these very cells, and made from the data prepared now."""
    cell = cells.get(record.key)
    if cell is None or cell.trial(record.point, record.run) != record.spec:
        return False
    prepared = record.spec.network.subset.prepared.prepared_id
    return fingerprints.get(prepared) == record.data_fingerprint


@dataclass(frozen=True)
class TuneSummary:
    """How a search ended.

    Attributes:
        cells: What was found, by model and dataset.
        recipe: The recipe file.
        report: The report page; None where there is nothing to show.
        num_new: Trials of this start.
        num_behind: Updates that MLflow has not taken.
    """

    cells: tuple[CellOutcome, ...]
    recipe: Path
    report: Path | None
    num_new: int
    num_behind: int = 0

    @property
    def not_tuned(self) -> tuple[CellOutcome, ...]:
        """Cells for which nothing was found."""
        return tuple(cell for cell in self.cells if cell.chosen is None)

    @property
    def problems(self) -> tuple[str, ...]:
        """What a person should know of cells; see :attr:`CellOutcome.problem`."""
        return tuple(cell.problem for cell in self.cells if cell.problem)

    @property
    def exit_code(self) -> int:
        """0 when every cell has a recipe, 1 otherwise."""
        return 1 if self.not_tuned else 0
