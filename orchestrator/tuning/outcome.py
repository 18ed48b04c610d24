"""What a search found: per cell the chosen point, and what speaks for it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from orchestrator.tuning.cells import Point
from orchestrator.tuning.search import CellSearch, Search
from tasks.finding import Finding
from tasks.trials.search_result import SearchResult, SearchStatus

FLAT_WITHIN = 0.05
"""Nat of validation loss above the best within which an optimum counts as flat."""


class Candidate(Finding):
    """A finalist: a point and the validation losses of its trainings, in nat.

    Attributes:
        point: Where.
        losses: One per run that it is judged by, capped (see :func:`tasks.trials.search_result.capped`); runs
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
        if self.chosen is None or self.chance_loss is None:
            return self.why_not
        where = f"{self.model} on {self.dataset}"
        if self.chosen.mean < self.chance_loss:
            unknown = (
                "" if self.own is not None else "the sweep's own recipe failed, so there is no gain to tell"
            )
            return unknown and f"{where}: {unknown}; mend what failed, and tune again: what was found is kept"
        return (
            f"{where}: the best recipe found is no better than guessing "
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
