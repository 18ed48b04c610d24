"""A grid and a search as a driver of the simulated world has them, and what must hold at the
end."""

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
from orchestrator.tuning.outcome import outcomes
from orchestrator.tuning.search import CombinationStudy, EarlierTrials, Search
from orchestrator.tuning.search_records import Role, SearchRecord, flat_search
from orchestrator.tuning.search_trials import SearchTrials
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
FOR_AN_EXTENSION = 0.04
"""Of a search's budget: one training more."""
MOST_POINTS = 12
"""That are asked for of one trial."""


def share(trial_id: str, data: str) -> float:
    """Return a number in [0, 1) that follows from a trial and its data."""
    return zlib.crc32(f"{trial_id} {data}".encode()) % 997 / 997


@cache
def trained(trial_id: str, data: str) -> TrialResult:
    """What training a trial undisturbed gives: a function of the trial and its data alone."""
    found = share(trial_id, data)
    if found > 0.9:
        return diverged("loss is nan")
    # What no invariant is about is left out: half of a schedule's time is writing and reading
    # records.
    return trial_result(round(0.1 + found, 6)).model_copy(update={"attacks": (), "d_repr": {}})


@cache
def searched(trial_id: str, data: str) -> SearchResult:
    """What a trial of a search gives undisturbed."""
    found = share(trial_id, data)
    status = SearchStatus.DIVERGED if found > 0.9 else SearchStatus.COMPLETE
    curve = [ValidationScore(epoch=1, loss=0.9, accuracy=0.5)]
    if status == SearchStatus.COMPLETE:
        curve.append(ValidationScore(epoch=2, loss=round(0.1 + found, 6), accuracy=0.5))
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
    """Return the sweep's plan; a larger one has more seeds, and a search a larger budget."""
    tune = {
        "budget": 0.12 + FOR_AN_EXTENSION * (size - 2),
        "finalists": 1,
        "seeds": 2,
        "sampler": "random",
    }
    return plan_sweep(
        SweepSpec.model_validate({**SWEEP, "seeds": tuple(range(size)), "tune": tune})
    )


@cache
def combinations_of(size: int) -> tuple[Combination, ...]:
    return combinations_to_tune(plan_of(size))


@cache
def proposals_of(size: int) -> dict[tuple[str, str], set[Point]]:
    """Return the points that the sampler of each combination's search proposes, whatever befalls the
    search."""
    tune, found = plan_of(size).sweep.tune, dict[tuple[str, str], set[Point]]()
    for combination in combinations_of(size):
        study, points = CombinationStudy(combination, tune.sampler, tune.seed), set[Point]()
        for _ in range(MOST_POINTS):
            points |= {study.propose(again) for again in range(2)}
            study.ask(study.propose())
        found[combination.key] = points
    return found


@dataclass
class Workspace:
    """As much of :class:`orchestrator.planning.plan.Workspace` as judging needs."""

    plan: SweepPlan
    data: str

    @property
    def prepared(self) -> dict[str, Any]:
        """Every dataset is prepared, with these images."""
        return {
            spec.prepared_id: SimpleNamespace(fingerprint=self.data) for spec in self.plan.prepared
        }


class Grid:
    """The trials of a plan.

    Args:
        size: See :func:`plan_of`.
        data: Fingerprint of the images.
        stored: What a driver has read.
    """

    file = "result.json"

    def __init__(self, size: int, data: str, stored: StoredResults) -> None:
        self.plan, self.data, self.stored = plan_of(size), data, stored
        self._workspace = Workspace(self.plan, data)

    def outcome(self, trial_id: str) -> TrialResult:
        """Return what a trial gives."""
        return trained(trial_id, self.data)

    def loss(self, trial_id: str) -> tuple[str, float | None]:
        """Return the metric by which MLflow shows it, and its value."""
        scores = self.outcome(trial_id).scores
        return "test_loss", None if scores is None else scores.test_loss

    @property
    def _state(self) -> State:
        return compare_with_plan(self._workspace, self.stored)

    def shown(self) -> tuple[Iterator[FlatRun], Iterable[FailureRecord]]:
        """Return what a tracker is told at the start."""
        return self._state.flat_runs(), self._state.failures.values()

    def statuses(self) -> dict[str, str]:
        """Return what MLflow then shows of each trial."""
        state = self._state
        return dict.fromkeys(state.failures, "FAILED") | dict.fromkeys(state.results, "FINISHED")

    def source(self, run: RunContext) -> TrialSource | None:
        """Return what is left, if anything."""
        state = self._state
        pending = [
            trial for name, trial in self.plan.trials_by_id.items() if name not in state.results
        ]
        return (
            SweepTrials(run, pending, lambda subset, size: None, state=state) if pending else None
        )

    def ends(self, tracker: Tracker) -> tuple[set[str], set[str]]:
        """Do as :func:`orchestrator.running.run.run_sweep` does then; returns what is done, and
        failed."""
        self.stored.drop_deleted_results()
        tracker.reconcile(*self.shown(), wait=False)
        return {*self._state.results}, {*self._state.failures}

    def planned(self) -> set[str]:
        """Return what a driver that ends well has done or given up."""
        return {*self.plan.trials_by_id}

    def judged(self, hit: bool) -> tuple[dict[str, TrialRecord], list[str]]:
        """Return what is stored at the end, and what is wrong with it; ``hit`` tells of lost
        files."""
        scan = self.stored.store.scan(TrialRecord)
        found = [f"{bad.path} is not believed: {bad.reason}" for bad in scan.unreadable]
        found += [f"{name} has no result" for name in self.planned() - scan.records.keys()]
        return {name: one for name, one in scan.records.items() if name in self.planned()}, found


class Tuning:
    """The search of a sweep; see :class:`Grid`."""

    file = "search.json"

    def __init__(self, size: int, data: str, stored: StoredResults) -> None:
        self.plan, self.data, self.stored = plan_of(size), data, stored
        self._combinations, self._proposals = combinations_of(size), proposals_of(size)
        self._fingerprints = {spec.prepared_id: data for spec in self.plan.prepared}
        self._earlier = EarlierTrials.read(stored.store, self._combinations, self._fingerprints)
        self._search = Search(self._combinations, self.plan.sweep.tune)
        self._search.resume(self._earlier.trials())

    def outcome(self, trial_id: str) -> SearchResult:
        return searched(trial_id, self.data)

    def loss(self, trial_id: str) -> tuple[str, float | None]:
        return "validation_loss", self.outcome(trial_id).loss

    def shown(self) -> tuple[Iterator[FlatRun], Iterable[FailureRecord]]:
        return map(flat_search, self._earlier.records.values()), ()

    def statuses(self) -> dict[str, str]:
        return dict.fromkeys(self._earlier.records, "FINISHED")

    def source(self, run: RunContext) -> TrialSource | None:
        if self._search.is_done:
            return None
        return SearchTrials(run, self._search, self._earlier, lambda *_: None, self._fingerprints)

    def ends(self, tracker: Tracker) -> tuple[set[str], set[str]]:
        outcomes(self._search)
        given_up = {
            one.combination.trial(point, run).trial_id
            for one in self._search.searches.values()
            for point, run in one.given_up
        }
        return {*self._earlier.records}, given_up

    def planned(self) -> set[str]:
        return set()

    def judged(self, hit: bool) -> tuple[dict[str, SearchRecord], list[str]]:
        search, earlier = self._search, self._earlier
        # What was asked for decides nothing once it is found, and a result of other data may stay
        # as it is.
        asked_for = {f"{FOLDER}/{name}/{self.file}" for name in earlier.requests}
        unread = [bad for bad in earlier.unreadable if bad.path in asked_for]
        found = [f"{bad.path} is not believed: {bad.reason}" for bad in unread]
        for one in search.searches.values():
            (name, dataset), asked = one.combination.key, one.tune
            if one.spent > asked.num_trainings + 1e-9:
                found.append(
                    f"{name} on {dataset} took {one.spent} trainings of {asked.num_trainings}"
                )
            if one.needs_sweep_point or not one.is_over or one.remaining_finalist_runs():
                found.append(f"the search of {name} on {dataset} is not done")
            own = [(one.combination.sweep_point, run) for run in range(asked.seeds)]
            if left := [run for run in own if run not in one.results]:
                found.append(
                    f"{name} on {dataset}: of the sweep's own recipe runs {left} are missing"
                )
            if len(one.study.trials) != sum(run == 0 for _, run in one.results):
                found.append(f"the study of {name} on {dataset} has not every point once")
        sampled = [one for one in earlier.requests.values() if one.role == Role.SAMPLED]
        if strange := [
            one.trial_id for one in sampled if one.point not in self._proposals[one.key]
        ]:
            found.append(f"{strange} were asked for, and an unbroken search asks for others")
        waits = [
            name
            for name, one in earlier.requests.items()
            if not one.run and name not in earlier.records
        ]
        if waits and not hit:
            found.append(f"{waits} were asked for and never trained")
        return earlier.records, found
