"""Outcome of a search: the chosen point of each combination, and the evidence for it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.analysis.results_tables.chance_level import AT_CHANCE_SHARE
from orchestrator.tuning.combinations import Point, Training
from orchestrator.tuning.search import CombinationSearch, Search
from orchestrator.tuning.search_records import Row
from tasks.json_record import JsonRecord
from tasks.trials.records import SearchResult, SearchStatus


class Candidate(JsonRecord):
    """A finalist of a search, with those of its trainings that are compared.

    Attributes:
        point: Point of the search space.
        losses: Validation losses of the trainings, nat, see :attr:`SearchResult.capped_loss`.
            Trainings differ in seed, split and class pair. All finalists have the same seeds.
        mean: Mean of the losses, nat.
        std_error: Standard error of the mean over seeds. None if there is only one seed.
        diverged: Number of trainings that diverged.
    """

    point: Point
    losses: tuple[float, ...]
    mean: float
    std_error: float | None
    diverged: int


class CombinationOutcome(JsonRecord):
    """The outcome of a search for one model on one dataset.

    Attributes:
        model: Name of the model.
        dataset: Name of the dataset.
        chosen: The chosen finalist, see :func:`_choose`. None if every finalist failed or
            diverged.
        sweep_recipe: The sweep's recipe as a finalist. None if it failed.
        finalists: All finalists. The best finalist is the first.
        gain: Mean loss of ``sweep_recipe`` minus mean loss of ``chosen``, nat.
        gain_std_error: Standard error of the gain over seeds. None if there is only one seed,
            or if ``sweep_recipe`` was chosen.
        num_trials: Number of tried points that have a result.
        num_diverged: Number of tried points that diverged.
        num_failed: Number of points at which the last command stopped trying after failures.
        spent: Used part of the search's budget, in whole trainings.
        finalist_trainings: Number of further trainings of finalists, in whole trainings.
        budget: Budget of the search, in whole trainings.
        chance_loss: Loss of a network that ignores its images, nat. None if there is no
            result.
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
        """True if no point was better than the sweep's recipe by more than one standard error."""
        return self.sweep_recipe is not None and self.chosen == self.sweep_recipe

    @property
    def problem(self) -> str:
        """Warning for users of the recipe, with a fix. It is empty if there is no problem."""
        text = self._problem_text()
        if not text:
            return ""
        return f"{self.model} on {self.dataset}: {text}"

    def _problem_text(self) -> str:
        again = "and tune again. Finished trials are kept."
        if self.chosen is None and self.num_trials > self.num_diverged:
            return (
                "for every finalist, a repeated training failed or diverged, so there is "
                f"no recipe. Correct the failures, {again}"
            )
        if self.chosen is None:
            return (
                f"no training finished ({self.num_trials} tried, {self.num_diverged} "
                f"diverged, {self.num_failed} failed), so there is no recipe. If trials diverged, "
                "lower `tune.learning_rate`. Or correct the failures, or raise `tune.budget`, "
                f"{again}"
            )
        if self.chance_loss is not None and self.chosen.mean >= AT_CHANCE_SHARE * self.chance_loss:
            return (
                f"the validation loss of the best recipe ({self.chosen.mean:.3f}) is hardly "
                f"below the chance loss ({self.chance_loss:.3f}). Widen `tune.learning_rate`, "
                "raise `tune.budget` or raise `recipe.epochs`, and tune again."
            )
        if self.sweep_recipe is None:
            return (
                "the trainings with the sweep's recipe failed, so the gain over the sweep's recipe "
                f"is unknown. Correct the failures, {again}"
            )
        return ""


@dataclass(frozen=True)
class TuneSummary:
    """Summary of a finished search.

    Attributes:
        combinations: Outcomes of all combinations.
        recipe: Path of the recipe file that the search wrote.
        report: Path of the report's HTML page. None if no point was tried.
        num_new: Number of trials that this run of the command finished.
        num_unsent_updates: Number of updates that MLflow lacks.
    """

    combinations: tuple[CombinationOutcome, ...]
    recipe: Path
    report: Path | None
    num_new: int
    num_unsent_updates: int = 0

    @property
    def problems(self) -> tuple[str, ...]:
        """Warnings about combinations, see :attr:`CombinationOutcome.problem`."""
        return tuple(outcome.problem for outcome in self.combinations if outcome.problem)

    @property
    def exit_code(self) -> int:
        """Exit code: 0 if every combination has a recipe, 1 otherwise."""
        return int(any(outcome.chosen is None for outcome in self.combinations))

    def document(self) -> dict[str, Any]:
        """Return the document for ``isweep tune --json``."""
        return {
            "table": outcome_rows(self.combinations),
            "recipe": str(self.recipe),
            "report": None if self.report is None else str(self.report),
            "new_trials": self.num_new,
        }


def outcomes(search: Search) -> tuple[CombinationOutcome, ...]:
    """Return the outcome of every combination. It is computed from the results so far."""
    return tuple(map(_outcome, search.searches.values()))


def _outcome(search: CombinationSearch) -> CombinationOutcome:
    combination = search.combination
    tried = [result for training, result in search.results.items() if training.is_of_sampling]
    points = search.finalists()
    # Finalists of an earlier, smaller search also have all their trainings.
    points += [point for point, _ in search.complete() if point not in points]
    candidates = [_candidate(search, point) for point in points]
    # sorted() is stable. So if means are equal, the point that was better in the search is
    # first.
    finalists = sorted(filter(None, candidates), key=lambda candidate: candidate.mean)
    sweep_recipe = None
    for candidate in finalists:
        if candidate.point == combination.sweep_point:
            sweep_recipe = candidate
    chosen = _choose(finalists, sweep_recipe)
    gains = []
    if chosen is not None and sweep_recipe is not None:
        gains = _differences(sweep_recipe, chosen)
    finalist_epochs = sum(
        result.epochs for training, result in search.results.items() if not training.is_of_sampling
    )
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
    """Return the finalist with the lowest mean loss, or the sweep's recipe if it is not worse.

    This is the one-standard-error rule of Breiman et al., "Classification and Regression
    Trees" (1984): the sweep's recipe is chosen unless the gain exceeds its standard error over
    seeds. With one seed there is no standard error, so the finalist with the lower loss is
    chosen.

    Args:
        ranked: All finalists. The best finalist is the first.
        sweep_recipe: The sweep's recipe as a finalist. None if it failed.
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
    """Return a finalist with its trainings, or None if a training has no result.

    If the finalist has other trainings, its training of the sampling phase does not count. The
    reason: the point became a finalist because this training had a low loss, partly by chance.
    """
    results: list[SearchResult] = []
    for seed in range(search.tune.seeds):
        result = search.results.get(Training(point, seed))
        if result is None:
            return None
        results.append(result)
    compared = results[1:] or results
    losses = tuple(result.capped_loss for result in compared)
    return Candidate(
        point=point,
        losses=losses,
        mean=statistics.fmean(losses),
        std_error=_std_error(losses),
        diverged=sum(result.status == SearchStatus.DIVERGED for result in compared),
    )


def _differences(sweep_recipe: Candidate, chosen: Candidate) -> list[float]:
    """Return the loss of ``sweep_recipe`` minus the loss of ``chosen`` for each seed, nat."""
    return [
        before - after for before, after in zip(sweep_recipe.losses, chosen.losses, strict=True)
    ]


def _std_error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean, or None for fewer than two values."""
    if len(values) < 2:
        return None
    return statistics.stdev(values) / math.sqrt(len(values))


def outcome_rows(outcomes: Iterable[CombinationOutcome]) -> list[Row]:
    """Return one row per model and dataset. Losses are validation losses in nat."""
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
