"""The sweeps of the simulated world, a grid and a search, with the checks of their results."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

from orchestrator.planning.plan import SweepPlan, plan_sweep
from orchestrator.results.flat_runs import FlatRun
from orchestrator.results.records import FailureRecord, TrialRecord
from orchestrator.results.state import State, compare_with_plan
from orchestrator.results.stored_results import StoredResults
from orchestrator.results.tracking import Tracker
from orchestrator.running.trial_source import RunContext, SweepTrials, TrialSource
from orchestrator.tuning.combinations import Combination, Point, combinations_to_tune
from orchestrator.tuning.earlier_trials import EarlierTrials
from orchestrator.tuning.outcome import outcomes
from orchestrator.tuning.search import CombinationSearch, Search
from orchestrator.tuning.search_records import Role, SearchRecord, flat_search
from orchestrator.tuning.search_trials import SearchTrials
from orchestrator.tuning.study import CombinationStudy
from search_spaces.sweeps import SweepSpec
from tasks.trials.records import SearchResult, SearchStatus, TrialResult, ValidationScore
from tests.unit.orchestrator.results.examples import diverged, trial_result

FOLDER = "simulated/trials"
SWEEP = {
    "name": "simulated",
    "models": ("small_mlp", "small_cnn"),
    "datasets": ({"name": "manifold_d4"},),
    "train_sizes": (20, 40),
    "test_size": 40,
    "image_size": 16,
    "recipe": {"from": "smoke", "epochs": 2},
}
EXTENSION_BUDGET = 0.04
"""Share of the full budget by which an extended search grows: one training more."""
MAX_POINTS = 12
"""Points that a search requests for one combination, at most."""


def share(trial_id: str, data: str) -> float:
    """Return a number in [0, 1) that follows from a trial and its data."""
    return zlib.crc32(f"{trial_id} {data}".encode()) % 997 / 997


@cache
def trial_result_of(trial_id: str, data: str) -> TrialResult:
    """Return the result of an undisturbed trial. It depends on the trial and its data alone."""
    number = share(trial_id, data)
    if number > 0.9:
        return diverged("loss is nan")
    # Results have no fields that no check needs: half of a schedule's time is writing and reading
    # records.
    return trial_result(round(0.1 + number, 6)).model_copy(update={"attacks": (), "d_repr": {}})


@cache
def search_result_of(trial_id: str, data: str) -> SearchResult:
    """Return the result of an undisturbed trial of a search."""
    number = share(trial_id, data)
    status = SearchStatus.DIVERGED if number > 0.9 else SearchStatus.COMPLETE
    curve = [ValidationScore(epoch=1, loss=0.9, accuracy=0.5)]
    if status == SearchStatus.COMPLETE:
        curve.append(ValidationScore(epoch=2, loss=round(0.1 + number, 6), accuracy=0.5))
    return SearchResult(
        status=status,
        reason="nan" if status == SearchStatus.DIVERGED else "",
        epochs=len(curve),
        curve=tuple(curve),
        num_train=30,
        num_validation=10,
        num_classes=2,
        chance_loss=math.log(2),
    )


@cache
def plan_of(size: int) -> SweepPlan:
    """Return the sweep's plan. A larger size means more seeds, and a larger budget of a search."""
    tune = {
        "budget": 0.12 + EXTENSION_BUDGET * (size - 2),
        "finalists": 1,
        "seeds": 2,
        "sampler": "random",
    }
    document = {**SWEEP, "seeds": tuple(range(size)), "tune": tune}
    return plan_sweep(SweepSpec.model_validate(document))


@cache
def combinations_of(size: int) -> tuple[Combination, ...]:
    return combinations_to_tune(plan_of(size))


@cache
def proposals_of(size: int) -> dict[tuple[str, str], set[Point]]:
    """Return the points that the sampler proposes for each combination, whatever faults happen."""
    tune = plan_of(size).sweep.tune
    points_by_combination: dict[tuple[str, str], set[Point]] = {}
    for combination in combinations_of(size):
        study = CombinationStudy(combination, tune.sampler, tune.seed)
        points: set[Point] = set()
        for _ in range(MAX_POINTS):
            points |= {study.propose(repeat) for repeat in range(2)}
            study.ask(study.propose())
        points_by_combination[combination.key] = points
    return points_by_combination


@dataclass
class Workspace:
    """The part of :class:`orchestrator.planning.plan.Workspace` that comparing with it needs."""

    plan: SweepPlan
    data: str

    @property
    def prepared(self) -> dict[str, Any]:
        """The prepared datasets: all of the plan, with this fingerprint."""
        prepared = SimpleNamespace(fingerprint=self.data)
        return {spec.prepared_id: prepared for spec in self.plan.prepared}


class Grid:
    """The trials of a plan.

    Args:
        size: See :func:`plan_of`.
        data: Fingerprint of the images.
        stored: Stored results as a driver has read them.
    """

    file = "result.json"

    def __init__(self, size: int, data: str, stored: StoredResults) -> None:
        self.plan = plan_of(size)
        self.data = data
        self.stored = stored
        self._workspace = Workspace(self.plan, data)

    def outcome(self, trial_id: str) -> TrialResult:
        """Return the result of an undisturbed trial."""
        return trial_result_of(trial_id, self.data)

    def loss(self, trial_id: str) -> tuple[str, float | None]:
        """Return the metric by which MLflow shows a trial's loss, and its value."""
        scores = self.outcome(trial_id).scores
        return "test_loss", None if scores is None else scores.test_loss

    @property
    def _state(self) -> State:
        return compare_with_plan(self._workspace, self.stored)

    def shown_runs(self) -> tuple[Iterator[FlatRun], Iterable[FailureRecord]]:
        """Return the results and failures that a tracker gets at the start."""
        return self._state.flat_runs(), self._state.failures.values()

    def statuses(self) -> dict[str, str]:
        """Return the status of each trial that MLflow then shows."""
        state = self._state
        return dict.fromkeys(state.failures, "FAILED") | dict.fromkeys(state.results, "FINISHED")

    def source(self, run: RunContext) -> TrialSource | None:
        """Return the source of the pending trials, or None if there are none."""
        state = self._state
        pending = [
            trial for name, trial in self.plan.trials_by_id.items() if name not in state.results
        ]
        if not pending:
            return None
        return SweepTrials(run, pending, lambda subset, size: None, state=state)

    def ends(self, tracker: Tracker) -> tuple[set[str], set[str]]:
        """End the sweep as :func:`orchestrator.running.run.run_sweep` does. Return the ids of done
        and of failed trials."""
        self.stored.drop_deleted_results()
        tracker.reconcile(*self.shown_runs(), wait=False)
        return {*self._state.results}, {*self._state.failures}

    def planned(self) -> set[str]:
        """Return the trials that a driver which ends well has done or given up."""
        return {*self.plan.trials_by_id}

    def check_records(self, files_lost: bool) -> tuple[dict[str, TrialRecord], list[str]]:
        """Return the records that are stored at the end, and what is wrong with them.

        Args:
            files_lost: Whether a fault damaged or deleted files.
        """
        scan = self.stored.store.scan(TrialRecord)
        planned = self.planned()
        problems = [f"{bad.path} is not believed: {bad.reason}" for bad in scan.unreadable]
        problems += [f"{name} has no result" for name in planned - scan.records.keys()]
        records = {name: record for name, record in scan.records.items() if name in planned}
        return records, problems


class Tuning:
    """The search of a sweep; see :class:`Grid`."""

    file = "search.json"

    def __init__(self, size: int, data: str, stored: StoredResults) -> None:
        self.plan = plan_of(size)
        self.data = data
        self.stored = stored
        self._combinations = combinations_of(size)
        self._proposals = proposals_of(size)
        self._fingerprints = {spec.prepared_id: data for spec in self.plan.prepared}
        self._earlier = EarlierTrials.read(stored.store, self._combinations, self._fingerprints)
        self._search = Search(self._combinations, self.plan.sweep.tune)
        self._search.resume(self._earlier.trials())

    def outcome(self, trial_id: str) -> SearchResult:
        return search_result_of(trial_id, self.data)

    def loss(self, trial_id: str) -> tuple[str, float | None]:
        return "validation_loss", self.outcome(trial_id).loss

    def shown_runs(self) -> tuple[Iterator[FlatRun], Iterable[FailureRecord]]:
        return map(flat_search, self._earlier.records.values()), ()

    def statuses(self) -> dict[str, str]:
        return dict.fromkeys(self._earlier.records, "FINISHED")

    def source(self, run: RunContext) -> TrialSource | None:
        if self._search.is_done:
            return None
        return SearchTrials(run, self._search, self._earlier, lambda *_: None, self._fingerprints)

    def ends(self, tracker: Tracker) -> tuple[set[str], set[str]]:
        outcomes(self._search)
        given_up = set()
        for search in self._search.searches.values():
            for point, seed in search.given_up:
                given_up.add(search.combination.trial(point, seed).trial_id)
        return {*self._earlier.records}, given_up

    def planned(self) -> set[str]:
        return set()

    def check_records(self, files_lost: bool) -> tuple[dict[str, SearchRecord], list[str]]:
        earlier = self._earlier
        # Only results of requested trials count. A damaged request no longer matters once its
        # result is stored, and a damaged result of other data may stay.
        result_paths = {f"{FOLDER}/{name}/{self.file}" for name in earlier.requests}
        unreadable = [bad for bad in earlier.unreadable if bad.path in result_paths]
        problems = [f"{bad.path} is not believed: {bad.reason}" for bad in unreadable]
        for search in self._search.searches.values():
            problems += _search_problems(search)
        unproposed = []
        waiting = []
        for trial_id, request in earlier.requests.items():
            is_sampled = request.role == Role.SAMPLED
            if is_sampled and request.point not in self._proposals[request.key]:
                unproposed.append(request.trial_id)
            if not request.run and trial_id not in earlier.records:
                waiting.append(trial_id)
        if unproposed:
            problems.append(f"{unproposed} were asked for, and an unbroken search asks for others")
        if waiting and not files_lost:
            problems.append(f"{waiting} were asked for and never trained")
        return earlier.records, problems


def _search_problems(search: CombinationSearch) -> list[str]:
    """Return what is wrong with the finished search of one combination."""
    problems = []
    model, dataset = search.combination.key
    settings = search.tune
    if search.spent > settings.num_trainings + 1e-9:
        problems.append(
            f"{model} on {dataset} took {search.spent} trainings of {settings.num_trainings}"
        )
    if (
        search.needs_sweep_point
        or not search.is_sampling_over
        or search.remaining_finalist_trainings()
    ):
        problems.append(f"the search of {model} on {dataset} is not done")
    sweep_runs = [(search.combination.sweep_point, run) for run in range(settings.seeds)]
    missing_runs = [run for run in sweep_runs if run not in search.results]
    if missing_runs:
        problems.append(
            f"{model} on {dataset}: of the sweep's own recipe runs {missing_runs} are missing"
        )
    num_first_runs = sum(run == 0 for _, run in search.results)
    if len(search.study.trials) != num_first_runs:
        problems.append(f"the study of {model} on {dataset} has not every point once")
    return problems
