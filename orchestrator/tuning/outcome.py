"""The outcome of a search: per combination the chosen point, and the evidence for it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.analysis.results_tables.chance_level import AT_CHANCE_SHARE
from orchestrator.tuning.combinations import Point
from orchestrator.tuning.search import CombinationSearch, Search
from orchestrator.tuning.search_records import Row
from tasks.finding import Finding
from tasks.trials.records import SearchResult, SearchStatus


class Candidate(Finding):
    """A finalist, and the runs by which it is judged.

    Attributes:
        point: of the search space.
        losses: capped validation losses of the runs, in nat. Runs have other seeds, splits and
            class pairs; they are the same for every finalist.
        mean: of the losses.
        std_error: of the mean, from the spread over runs; None for one run.
        diverged: number of runs that diverged.
    """

    point: Point
    losses: tuple[float, ...]
    mean: float
    std_error: float | None
    diverged: int


class CombinationOutcome(Finding):
    """The outcome of a search for one model on one dataset.

    Attributes:
        chosen: see :func:`_choose`; None if no point was trained to its end.
        sweep_recipe: the sweep's recipe before the search, trained as often; None if it failed.
        finalists: the best first.
        gain: mean loss of ``sweep_recipe`` minus that of ``chosen``.
        gain_std_error: of the difference, run by run; None for one run, or if ``sweep_recipe`` was
            chosen.
        num_trials: points that were tried.
        num_diverged: of these.
        num_failed: points without a result in the last run.
        spent: trainings of the search, in whole trainings.
        finalist_trainings: further trainings of finalists, in whole trainings.
        budget: whole trainings that the search may take.
        chance_loss: loss of guessing, in nat; None if nothing was tried.
    """

    model: str
    dataset: str
    chosen: Candidate | None
    sweep_recipe: Candidate | None
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
        """Share of the tried points that diverged."""
        if not self.num_trials:
            return 0.0
        return self.num_diverged / self.num_trials

    @property
    def keeps_sweep_recipe(self) -> bool:
        """True if no point was better than the sweep's recipe by more than one error."""
        return self.sweep_recipe is not None and self.chosen == self.sweep_recipe

    @property
    def problem(self) -> str:
        """A warning for users of the recipe, with a fix; empty if there is none."""
        text = self._problem_text()
        if not text:
            return ""
        return f"{self.model} on {self.dataset}: {text}"

    def _problem_text(self) -> str:
        again = "and tune again. Finished trials are kept."
        if self.chosen is None and self.num_trials > self.num_diverged:
            return (
                "further trainings of every finalist failed or diverged, so there is no recipe. "
                f"Correct the failures, {again}"
            )
        if self.chosen is None:
            return (
                f"no point was trained to its end ({self.num_trials} tried, {self.num_diverged} "
                f"diverged, {self.num_failed} failed), so there is no recipe. Lower "
                "tune.learning_rate if trials diverged, correct the failures, or raise "
                f"tune.budget, {again}"
            )
        if self.chance_loss is not None and self.chosen.mean >= AT_CHANCE_SHARE * self.chance_loss:
            return (
                "the best recipe is hardly better than chance "
                f"(validation loss {self.chosen.mean:.3f}, chance loss {self.chance_loss:.3f}). "
                "Widen tune.learning_rate, raise tune.budget or raise recipe.epochs, and tune "
                "again."
            )
        if self.sweep_recipe is None:
            return (
                "the recipe of the sweep failed, so the gain over it is unknown. Correct the "
                f"failures, {again}"
            )
        return ""


@dataclass(frozen=True)
class TuneSummary:
    """The end of a search.

    Attributes:
        combinations: outcomes by model and dataset.
        recipe: path of the recipe.
        report: path of the page; None if nothing was tried.
        num_new: trials of this run.
        num_behind: updates that MLflow lacks.
    """

    combinations: tuple[CombinationOutcome, ...]
    recipe: Path
    report: Path | None
    num_new: int
    num_behind: int = 0

    @property
    def problems(self) -> tuple[str, ...]:
        """Warnings about combinations; see :attr:`CombinationOutcome.problem`."""
        return tuple(outcome.problem for outcome in self.combinations if outcome.problem)

    @property
    def exit_code(self) -> int:
        """Exit code: 0 if every combination has a recipe, 1 otherwise."""
        return int(any(outcome.chosen is None for outcome in self.combinations))

    def document(self) -> dict[str, Any]:
        """Return what ``isweep tune --json`` prints."""
        return {
            "table": outcome_rows(self.combinations),
            "recipe": str(self.recipe),
            "report": None if self.report is None else str(self.report),
            "new_trials": self.num_new,
        }


def outcomes(search: Search) -> tuple[CombinationOutcome, ...]:
    """Return the outcome of every combination as far as it is known."""
    return tuple(map(_outcome, search.searches.values()))


def _outcome(search: CombinationSearch) -> CombinationOutcome:
    combination = search.combination
    tried = [result for (_, run), result in search.results.items() if run == 0]
    points = search.finalists()
    # Finalists of earlier runs have all their trainings too: a search that goes on forgets none.
    points += [point for point, _ in search.complete() if point not in points]
    candidates = [_candidate(search, point) for point in points]
    # Of equal means the first one, which was better in the search.
    finalists = sorted(filter(None, candidates), key=lambda candidate: candidate.mean)
    sweep_recipe = None
    for candidate in finalists:
        if candidate.point == combination.sweep_point:
            sweep_recipe = candidate
    chosen = _choose(finalists, sweep_recipe)
    gains = []
    if chosen is not None and sweep_recipe is not None:
        gains = _differences(sweep_recipe, chosen)
    finalist_epochs = sum(result.epochs for (_, run), result in search.results.items() if run)
    model, dataset = combination.key
    return CombinationOutcome(
        model=model,
        dataset=dataset,
        chosen=chosen,
        sweep_recipe=sweep_recipe,
        finalists=tuple(finalists),
        gain=statistics.fmean(gains) if gains else None,
        gain_std_error=None if chosen == sweep_recipe else _std_error(gains),
        num_trials=len(tried),
        num_diverged=sum(result.status == SearchStatus.DIVERGED for result in tried),
        num_failed=search.num_failed,
        spent=search.spent,
        finalist_trainings=finalist_epochs / combination.sweep_recipe.epochs,
        budget=search.tune.num_trainings,
        chance_loss=tried[0].chance_loss if tried else None,
    )


def _choose(ranked: Iterable[Candidate], sweep_recipe: Candidate | None) -> Candidate | None:
    """Return the finalist of lowest mean loss, or the sweep's own recipe if it is nearly as good.

    This is the one-standard-error rule of Breiman et al., "Classification and Regression Trees",
    1984. A point that is not better by more than the error of the difference, run by run, is not
    worth leaving the known recipe. One run alone has no error: then the lowest loss is taken.

    Args:
        ranked: finalists, the best first.
        sweep_recipe: the sweep's recipe before the search; None if it failed.
    """
    trained = [candidate for candidate in ranked if candidate.diverged < len(candidate.losses)]
    if not trained:
        return None
    best = trained[0]
    if sweep_recipe is None or sweep_recipe.diverged == len(sweep_recipe.losses):
        return best
    gains = _differences(sweep_recipe, best)
    if statistics.fmean(gains) > (_std_error(gains) or 0.0):
        return best
    return sweep_recipe


def _candidate(search: CombinationSearch, point: Point) -> Candidate | None:
    """Return a finalist with all its runs; None if a run has no result.

    The first run made it a finalist, partly by luck. So it is left out if there are others.
    """
    results: list[SearchResult] = []
    for run in range(search.tune.seeds):
        result = search.results.get((point, run))
        if result is None:
            return None
        results.append(result)
    judged = results[1:] or results
    losses = tuple(result.capped_loss for result in judged)
    return Candidate(
        point=point,
        losses=losses,
        mean=statistics.fmean(losses),
        std_error=_std_error(losses),
        diverged=sum(result.status == SearchStatus.DIVERGED for result in judged),
    )


def _differences(sweep_recipe: Candidate, chosen: Candidate) -> list[float]:
    """Return how much lower the loss of ``chosen`` is, run by run."""
    return [
        before - after for before, after in zip(sweep_recipe.losses, chosen.losses, strict=True)
    ]


def _std_error(values: Sequence[float]) -> float | None:
    """Return the standard error of a mean; None for one value."""
    if len(values) < 2:
        return None
    return statistics.stdev(values) / math.sqrt(len(values))


def outcome_rows(outcomes: Iterable[CombinationOutcome]) -> list[Row]:
    """Return one row per model and dataset; losses are of the validation images, in nat."""
    return list(map(_outcome_row, outcomes))


def _outcome_row(outcome: CombinationOutcome) -> Row:
    row: Row = {"model": outcome.model, "dataset": outcome.dataset}
    for name in Point.model_fields:
        row[name] = getattr(outcome.chosen.point, name) if outcome.chosen else None
    return row | {
        "validation_loss": outcome.chosen.mean if outcome.chosen else None,
        "std_error": outcome.chosen.std_error if outcome.chosen else None,
        "own_validation_loss": outcome.sweep_recipe.mean if outcome.sweep_recipe else None,
        "own_std_error": outcome.sweep_recipe.std_error if outcome.sweep_recipe else None,
        "gain": outcome.gain,
        "gain_std_error": outcome.gain_std_error,
        "num_trials": outcome.num_trials,
        "divergence_rate": outcome.divergence_rate,
        "trainings": outcome.spent,
        "finalist_trainings": outcome.finalist_trainings,
        "budget": outcome.budget,
    }
