"""What a search found: per cell the chosen point and what speaks for it, as tables and as a
page.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.analysis.guessing import AT_GUESSING
from orchestrator.tuning.combinations import Point
from orchestrator.tuning.search import CellSearch, Search
from orchestrator.tuning.search_records import Row
from tasks.finding import Finding
from tasks.trials.records import SearchResult, SearchStatus


class Candidate(Finding):
    """A finalist: a point and the capped validation losses of the runs that it is judged by, in
    nat.

    Runs have other seeds, splits and class pairs, the same ones for every finalist. The error is of
    the mean, from the spread over runs, and None for one.
    """

    point: Point
    losses: tuple[float, ...]
    mean: float
    std_error: float | None
    diverged: int


class CellOutcome(Finding):
    """What was found for one model on one dataset.

    Attributes:
        chosen: See :func:`_choice`; None when none was trained to its end.
        own: The sweep's own recipe, trained as often; None when it failed.
        gain: Mean loss of ``own`` less that of ``chosen``; error run by run, None for one run, or
            own kept.
        num_trials: Points that were tried; ``num_failed`` of them had no result at the last start.
        spent: Search trainings, in whole trainings, of a ``budget``; ``finalist_trainings`` are
            beside it.
    """

    model: str
    dataset: str
    chosen: Candidate | None
    own: Candidate | None
    finalists: tuple[Candidate, ...]
    gain: float | None
    gain_std_error: float | None
    num_trials: int
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
    def problem(self) -> str:
        """What to know before using the recipe, and the hint; empty where there is nothing."""
        again = "and tune again: what was found is kept"
        found = ""
        if self.chosen is None:
            found = (
                f"no point was trained to its end ({self.num_trials} tried, {self.num_diverged} "
                "diverged, "
                f"{self.num_failed} failed), so there is no recipe; lower tune.learning_rate where "
                "they "
                "diverged, mend what failed, or raise tune.budget,"
            )
            if self.num_trials > self.num_diverged:
                why = "further trainings of every finalist failed or diverged"
                found = f"{why}, so there is no recipe; mend what failed,"
        elif self.chance_loss is not None and self.chosen.mean >= AT_GUESSING * self.chance_loss:
            again = "and tune again"
            found = (
                "the best recipe found is hardly better than guessing "
                f"(validation loss {self.chosen.mean:.3f}, guessing {self.chance_loss:.3f}); widen "
                "tune.learning_rate, raise tune.budget or recipe.epochs,"
            )
        elif self.own is None:
            found = "the sweep's own recipe failed, so there is no gain to tell; mend what failed,"
        return found and f"{self.model} on {self.dataset}: {found} {again}"


@dataclass(frozen=True)
class TuneSummary:
    """How a search ended: ``num_new`` trials of this start, ``num_behind`` updates that MLflow
    lacks.
    """

    cells: tuple[CellOutcome, ...]
    recipe: Path
    report: Path | None
    num_new: int
    num_behind: int = 0

    @property
    def problems(self) -> tuple[str, ...]:
        """What a person should know of cells; see :attr:`CellOutcome.problem`."""
        return tuple(cell.problem for cell in self.cells if cell.problem)

    @property
    def exit_code(self) -> int:
        """0 when every cell has a recipe, 1 otherwise."""
        return int(any(cell.chosen is None for cell in self.cells))

    def document(self) -> dict[str, Any]:
        """Return what ``isweep tune --json`` prints."""
        return {
            "table": outcome_rows(self.cells),
            "recipe": str(self.recipe),
            "report": None if self.report is None else str(self.report),
            "new_trials": self.num_new,
        }


def outcomes(search: Search) -> tuple[CellOutcome, ...]:
    """Return what was found so far, cell by cell."""
    return tuple(map(_outcome, search.cells.values()))


def _outcome(search: CellSearch) -> CellOutcome:
    tried = [result for (_, run), result in search.results.items() if run == 0]
    points = search.finalists()
    # Finalists of earlier starts have all their runs too: a search that goes on forgets none.
    points += [point for point, _ in search.complete() if point not in points]
    finalists = [_candidate(search, point) for point in points]
    # Of equal means the first, the better one of the search.
    ranked = sorted(filter(None, finalists), key=lambda candidate: candidate.mean)
    own = next((candidate for candidate in ranked if candidate.point == search.cell.own), None)
    chosen = _choice(ranked, own)
    gains = [] if chosen is None or own is None else _differences(own, chosen)
    further = sum(result.epochs for (_, run), result in search.results.items() if run)
    return CellOutcome(
        model=search.cell.key[0],
        dataset=search.cell.key[1],
        chosen=chosen,
        own=own,
        finalists=tuple(ranked),
        gain=statistics.fmean(gains) if gains else None,
        gain_std_error=None if chosen == own else _std_error(gains),
        num_trials=len(tried),
        num_diverged=sum(result.status == SearchStatus.DIVERGED for result in tried),
        num_failed=search.num_failed,
        spent=search.spent,
        finalist_trainings=further / search.cell.own_recipe.epochs,
        budget=search.tune.num_trainings,
        chance_loss=tried[0].chance_loss if tried else None,
    )


def _choice(ranked: Iterable[Candidate], own: Candidate | None) -> Candidate | None:
    """Return the finalist of lowest mean loss, or the own recipe where that is within one error of
    it.

    The one-standard-error rule of Breiman et al., "Classification and Regression Trees", 1984: what
    is not better by more than the error of the difference, run by run, is not worth leaving what is
    known. One run alone has no error, and the lowest loss is taken.
    """
    best = next(
        (candidate for candidate in ranked if candidate.diverged < len(candidate.losses)), None
    )
    if best is None or own is None or own.diverged == len(own.losses):
        return best
    gains = _differences(own, best)
    return best if statistics.fmean(gains) > (_std_error(gains) or 0.0) else own


def _candidate(search: CellSearch, point: Point) -> Candidate | None:
    """Return a finalist with all its runs; None where one gave nothing: means are over the same
    runs.

    The first made it a finalist, by its luck too, and so is judged by only where there is no other.
    """
    runs = [search.results.get((point, run)) for run in range(search.tune.seeds)]
    found: list[SearchResult] = [result for result in runs if result is not None]
    if len(found) < len(runs):
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


def _std_error(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def outcome_rows(cells: Iterable[CellOutcome]) -> list[Row]:
    """Return one row per model and dataset; losses are of the validation images, in nat."""

    def row(cell: CellOutcome) -> Row:
        chosen, own = cell.chosen, cell.own
        points = {
            name: getattr(chosen.point, name) if chosen else None for name in Point.model_fields
        }
        return {
            "model": cell.model,
            "dataset": cell.dataset,
            **points,
            "validation_loss": chosen.mean if chosen else None,
            "std_error": chosen.std_error if chosen else None,
            "own_validation_loss": own.mean if own else None,
            "own_std_error": own.std_error if own else None,
            "gain": cell.gain,
            "gain_std_error": cell.gain_std_error,
            "num_trials": cell.num_trials,
            "divergence_rate": cell.divergence_rate,
            "trainings": cell.spent,
            "finalist_trainings": cell.finalist_trainings,
            "budget": cell.budget,
        }

    return list(map(row, cells))
