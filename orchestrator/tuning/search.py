"""Who is trained next: the state of a whole search, told what was found. Knows no Ray and no store.

In this order: every cell's own recipe; then points of cells, one cell after another, so that what the first
ones find begins the next ones; then finalists, which need nothing new and fill what is left of the cluster.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from optuna.storages import BaseStorage

from orchestrator.tuning.cells import CellKey, Point, TuningCell
from orchestrator.tuning.neighbours import Likeness, nearest_first
from orchestrator.tuning.records import Role
from orchestrator.tuning.rungs import rung_epochs
from orchestrator.tuning.study import CellStudy
from search_spaces.tuning import SearchTrialSpec, TuneSpec
from tasks.trials.search_result import SearchResult, SearchStatus

NUM_NEIGHBOURS = 2
"""So many cells give a first point each."""
MANY_REPEATS = 25
"""Points in a row that were all known: the space has no more."""


@dataclass(frozen=True)
class Asked:
    """A trial to run.

    Attributes:
        cell: Whose it is.
        spec: What is trained.
        point: Where.
        role: Why.
        run: 0 for the search's own training of a point.
        ticket: Of the cell's study; None where the study is not told.
    """

    cell: TuningCell
    spec: SearchTrialSpec
    point: Point
    role: Role
    run: int = 0
    ticket: str | None = None

    @property
    def may_be_pruned(self) -> bool:
        """Whether it may be stopped early: what is compared at the end is trained to the end."""
        return self.role in (Role.NEIGHBOUR, Role.SAMPLED)


@dataclass(frozen=True)
class Training:
    """What an earlier start asked for.

    Attributes:
        key: Whose it is.
        point: See :class:`Asked`, likewise the next two.
        role: Why.
        run: Which.
        result: What it gave; None where that start ended before.
    """

    key: CellKey
    point: Point
    role: Role
    run: int
    result: SearchResult | None


@dataclass
class CellSearch:
    """The search of one cell.

    Attributes:
        cell: What is searched.
        study: Who proposes points.
        num_trainings: The budget, in whole trainings.
        results: What was found, by point and run.
        roles: Why each point was tried first.
        running: What runs now, by trial id.
        num_failed: Points of this start that gave nothing; each counts as a whole training.
        given_up: Runs of finalists that gave nothing at this start.
        exhausted: Whether the sampler has no new points.
    """

    cell: TuningCell
    study: CellStudy
    num_trainings: float
    results: dict[tuple[Point, int], SearchResult] = field(default_factory=dict)
    roles: dict[Point, Role] = field(default_factory=dict)
    running: dict[str, Asked] = field(default_factory=dict)
    num_failed: int = 0
    given_up: set[tuple[Point, int]] = field(default_factory=set)
    exhausted: bool = False

    @property
    def spent(self) -> float:
        """What the search took so far, in whole trainings; finalists are counted apart."""
        epochs = sum(result.epochs for (_, run), result in self.results.items() if run == 0)
        return epochs / self.cell.num_epochs + self.num_failed

    @property
    def searching(self) -> list[Asked]:
        """What runs of the search itself."""
        return [asked for asked in self.running.values() if asked.run == 0]

    @property
    def may_ask(self) -> bool:
        """Whether one more whole training is in the budget, when all that run take a whole one too."""
        return not self.exhausted and self.spent + len(self.searching) + 1 <= self.num_trainings + 1e-9

    @property
    def owes_own(self) -> bool:
        """Whether the sweep's own recipe is still to be trained, budget or not: all is compared with it."""
        run = (self.cell.own, 0)
        running = {(asked.point, asked.run) for asked in self.searching}
        return run not in self.results and run not in self.given_up and run not in running

    @property
    def searched(self) -> bool:
        """Whether the search of this cell is over, its finalists excepted."""
        return not self.searching and not self.may_ask and not self.owes_own

    def complete(self) -> list[tuple[Point, SearchResult]]:
        """Return the points that were trained to the end, the best first; of equal ones the lowest rate."""
        found = [
            (point, result)
            for (point, run), result in self.results.items()
            if run == 0 and result.status == SearchStatus.COMPLETE
        ]
        return sorted(found, key=lambda item: (item[1].capped_loss, *item[0].model_dump().values()))

    def finalists(self, number: int) -> list[Point]:
        """Return the best points, and the sweep's own."""
        best = [point for point, _ in self.complete()[:number]]
        own = self.cell.own
        return best if own in best or (own, 0) not in self.results else [*best, own]


class Search:
    """A search over all cells of a sweep.

    Args:
        cells: From :func:`orchestrator.tuning.cells.tuning_cells`.
        tune: What the sweep says of the search.
        storage: Optuna's.
        known: What is known of each dataset, by name.
    """

    def __init__(
        self,
        cells: Iterable[TuningCell],
        tune: TuneSpec,
        storage: BaseStorage,
        known: Mapping[str, Likeness] | None = None,
    ) -> None:
        self.tune = tune
        self.cells: dict[CellKey, CellSearch] = {
            cell.key: CellSearch(cell, CellStudy(cell, tune.sampler, storage, tune.seed), tune.num_trainings)
            for cell in cells
        }
        self._known = known or {}
        self._asked: dict[str, Asked] = {}
        self._again: deque[Asked] = deque()

    def go_on(self, earlier: Iterable[Training]) -> None:
        """Take what earlier starts asked for, in the order of asking.

        What gave nothing yet is what runs next, so that a search that was killed comes to the points of one
        that was not; what the search has no more room for, or no use, is left out.
        """
        earlier = list(earlier)
        for one in earlier:
            if one.result is not None:
                self._keep(self.cells[one.key], one.point, one.role, one.run, one.result)
        for one in earlier:
            search = self.cells[one.key]
            if one.result is None:
                if self._still_wanted(search, one):
                    self._again.append(self._run(search, one.point, one.role, one.run))
            elif one.run == 0 and search.cell.contains(one.point):
                search.study.add(one.point, one.result)
        for search in self.cells.values():  # a search that is over is known to be
            if search.may_ask and self._new_point(search) is None:
                search.exhausted = True

    def next(self) -> Asked | None:
        """Return a trial to run now; None when none may be, until another ends."""
        if self._again:
            return self._again.popleft()
        for search in self.cells.values():
            if search.owes_own:
                return self._run(search, search.cell.own, Role.OWN)
        for search in self.cells.values():
            if not search.may_ask:
                continue
            new = self._new_point(search)
            if new is not None:
                return self._run(search, *new)
            search.exhausted = True
        for search in self.cells.values():
            for point, run in self._further(search) if search.searched else ():
                return self._run(search, point, Role.FINALIST, run)
        return None

    @property
    def done(self) -> bool:
        """Whether nothing runs and nothing is left."""
        return all(
            search.searched and not search.running and not self._further(search)
            for search in self.cells.values()
        )

    @property
    def num_left(self) -> int:
        """Trainings that run or are to come, at most: one that is stopped early makes room for another."""
        number = 0
        for search in self.cells.values():
            number += len(search.running)
            if search.searched:
                number += len(self._further(search))
                continue
            budget = 0 if search.exhausted else math.floor(search.num_trainings - search.spent + 1e-9)
            number += max(budget - len(search.searching), int(search.owes_own))
            number += (self.tune.finalists + 1) * (self.tune.seeds - 1)
        return number

    def finished(self, trial_id: str, result: SearchResult) -> Asked:
        """Take a result; returns what it is the result of."""
        asked = self._asked.pop(trial_id)
        search = self.cells[asked.cell.key]
        del search.running[trial_id]
        self._keep(search, asked.point, asked.role, asked.run, result)
        if asked.ticket is not None:
            search.study.tell(asked.ticket, result)
        return asked

    def failed(self, trial_id: str) -> None:
        """A trial gave nothing, and will not be tried again at this start."""
        asked = self._asked.pop(trial_id)
        search = self.cells[asked.cell.key]
        del search.running[trial_id]
        search.given_up.add((asked.point, asked.run))
        search.num_failed += asked.run == 0
        if asked.ticket is not None:
            search.study.fail(asked.ticket)

    def asked(self, trial_id: str) -> Asked:
        """Return what a running trial is."""
        return self._asked[trial_id]

    def _keep(self, search: CellSearch, point: Point, role: Role, run: int, result: SearchResult) -> None:
        search.results[point, run] = result
        if run == 0:
            search.roles.setdefault(point, role)

    def _known_runs(self, search: CellSearch) -> set[tuple[Point, int]]:
        running = {(asked.point, asked.run) for asked in search.running.values()}
        return search.results.keys() | search.given_up | running

    def _further(self, search: CellSearch) -> list[tuple[Point, int]]:
        """Return the runs of finalists that are to come, with what is known of the search now."""
        known = self._known_runs(search)
        runs = range(1, self.tune.seeds)
        points = search.finalists(self.tune.finalists)
        return [(point, run) for point in points for run in runs if (point, run) not in known]

    def _still_wanted(self, search: CellSearch, training: Training) -> bool:
        """Tell whether the search as it is set now has a use for a training that was asked for."""
        if training.run:
            return search.searched and (training.point, training.run) in self._further(search)
        if training.point == search.cell.own:
            return search.owes_own
        return search.may_ask and search.cell.contains(training.point)

    def _new_point(self, search: CellSearch) -> tuple[Point, Role] | None:
        """Return a new point of a cell; None where its space has none left."""
        for point in self._of_neighbours(search):
            return point, Role.NEIGHBOUR
        known = self._known_runs(search)
        for again in range(MANY_REPEATS):
            point = search.study.propose(again)
            if (point, 0) not in known:
                return point, Role.SAMPLED
        return None

    def _of_neighbours(self, search: CellSearch) -> Iterable[Point]:
        """Yield the best points of the cells most like this one that it has not tried."""
        if not self.tune.warm_start:
            return
        given = sum(role == Role.NEIGHBOUR for role in search.roles.values())
        given += sum(asked.role == Role.NEIGHBOUR for asked in search.running.values())
        if given >= NUM_NEIGHBOURS:
            return
        others = {key: other.cell for key, other in self.cells.items() if self.cells[key].searched}
        for key in nearest_first(search.cell, others, self._known)[:NUM_NEIGHBOURS]:
            best = self.cells[key].complete()
            if best:
                point = search.cell.nearest(best[0][0])
                if (point, 0) not in self._known_runs(search):
                    yield point

    def _run(self, search: CellSearch, point: Point, role: Role, run: int = 0) -> Asked:
        told = run == 0 and search.cell.contains(point)
        ticket = search.study.ask(point) if told else None
        asked = Asked(search.cell, search.cell.trial(point, run), point, role, run, ticket)
        self._asked[asked.spec.trial_id] = search.running[asked.spec.trial_id] = asked
        return asked


def rungs_of(cell: TuningCell) -> tuple[int, ...]:
    """Return the epochs at which a cell's trials are judged."""
    return rung_epochs(cell.num_epochs)
