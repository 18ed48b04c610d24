"""Who is trained next: the state of a whole search, told what was found, or reads it from the
store.

In this order: every cell's own recipe; then points of cells, one cell after another; then
finalists, which need nothing new and fill what is left of the cluster.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from orchestrator.results.store import ResultStore, Unreadable
from orchestrator.tuning.combinations import CellKey, Point, TuningCell
from orchestrator.tuning.search_records import AskedRecord, Role, SearchRecord
from search_spaces.fingerprint import derive_seed
from search_spaces.tuning import Sampler, SearchTrialSpec, TuneSpec
from tasks.trials.records import SearchResult, SearchStatus

# Where the next point comes from: an Optuna study per cell, made anew from what is known for every
# proposal: ``docs/decisions/0012-own-ask-and-tell.md``.

STARTUP_TRIALS = 4
"""Points that are drawn at random before a model of the loss is believed, the given ones
included."""
MANY_REPEATS = 25
"""Points in a row that were all known: the space has no more."""


class CellStudy:
    """What the sampler is told of one cell, point by point; the seed is that of the whole
    search.
    """

    def __init__(self, cell: TuningCell, sampler: Sampler, seed: int = 0) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._cell, self._sampler, self._seed = cell, sampler, seed
        self._space: dict[str, BaseDistribution] = {
            "learning_rate": FloatDistribution(*cell.space.learning_rate, log=True),
            "weight_decay": FloatDistribution(*cell.space.weight_decay, log=True),
            "batch_size": CategoricalDistribution(cell.space.batch_size),
        }
        self.trials: list[FrozenTrial] = []

    def propose(self, again: int = 0) -> Point:
        """Return the sampler's next point, which nobody has asked for yet.

        It follows from the seed, the points in their order and what is known of them, so that a
        kill changes nothing; ``again`` counts proposals that nothing was told between.
        """
        seed = (
            derive_seed("sampler", self._seed, list(self._cell.key), len(self.trials), again)
            % 2**32
        )
        study = optuna.create_study(sampler=make_sampler(self._sampler, seed))
        study.add_trials(self.trials)
        # Of four digits: what people copy is what was run.
        params = study.ask(self._space).params
        rounded = {name: type(value)(f"{value:.4g}") for name, value in params.items()}
        return self._cell.nearest(Point.model_validate(rounded))

    def ask(self, point: Point) -> int:
        """Begin a point, which must lie in the space; returns its place among the trials."""
        self.trials.append(self._trial(point.model_dump(), TrialState.RUNNING))
        return len(self.trials) - 1

    def tell(self, place: int, result: SearchResult | None) -> None:
        """Tell what a point that was asked for gave, if anything."""
        state, value = (
            (TrialState.COMPLETE, result.capped_loss) if result else (TrialState.FAIL, None)
        )
        self.trials[place] = self._trial(self.trials[place].params, state, value)

    def add(self, point: Point, result: SearchResult) -> None:
        """Tell of a point that an earlier start asked for, in its turn."""
        self.trials.append(self._trial(point.model_dump(), TrialState.COMPLETE, result.capped_loss))

    def _trial(
        self, params: dict[str, Any], state: TrialState, value: float | None = None
    ) -> FrozenTrial:
        return optuna.create_trial(
            state=state, value=value, params=params, distributions=self._space
        )


def make_sampler(name: Sampler, seed: int) -> BaseSampler:
    """Return a sampler; see ``benchmarks/search.py`` for how they compare."""
    if name == "random":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if name == "gp":
            return GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
        return TPESampler(
            seed=seed, multivariate=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS
        )


@dataclass(frozen=True)
class Asked:
    """A trial to run; ``run`` is 0 for the search's own training of a point.

    ``told`` is its place in the cell's study; None where the study is not told.
    """

    cell: TuningCell
    spec: SearchTrialSpec
    point: Point
    role: Role
    run: int = 0
    told: int | None = None

    @property
    def key(self) -> CellKey:
        """Whose it is."""
        return self.cell.key


Training = tuple[Asked | AskedRecord | SearchRecord, SearchResult | None]
"""What was asked for, and what it gave, if anything."""


@dataclass
class CellSearch:
    """The search of one cell: results by point and run, what runs now by trial id.

    ``num_failed`` points of this start gave nothing, each counted as a whole training, and runs
    ``given_up``; it is ``exhausted`` when the sampler has no new points.
    """

    cell: TuningCell
    study: CellStudy
    tune: TuneSpec
    results: dict[tuple[Point, int], SearchResult] = field(default_factory=dict)
    running: dict[str, Asked] = field(default_factory=dict)
    num_failed: int = 0
    given_up: set[tuple[Point, int]] = field(default_factory=set)
    exhausted: bool = False

    @property
    def spent(self) -> float:
        """What the search took so far, in whole trainings; finalists are counted apart."""
        epochs = sum(result.epochs for (_, run), result in self.results.items() if run == 0)
        return epochs / self.cell.own_recipe.epochs + self.num_failed

    @property
    def num_searching(self) -> int:
        """How many trainings of the search itself run."""
        return sum(asked.run == 0 for asked in self.running.values())

    @property
    def known_runs(self) -> set[tuple[Point, int]]:
        """Points and runs that were found, given up or run now."""
        running = {(asked.point, asked.run) for asked in self.running.values()}
        return self.results.keys() | self.given_up | running

    @property
    def may_ask(self) -> bool:
        """Whether one more whole training is in the budget, when all that run take a whole one
        too.
        """
        return (
            not self.exhausted
            and self.spent + self.num_searching + 1 <= self.tune.num_trainings + 1e-9
        )

    @property
    def owes_own(self) -> bool:
        """Whether the sweep's own recipe is still to be trained, budget or not: all is compared
        with it.
        """
        return (self.cell.own, 0) not in self.known_runs

    @property
    def searched(self) -> bool:
        """Whether the search of this cell is over, its finalists excepted."""
        return not self.num_searching and not self.may_ask and not self.owes_own

    @property
    def num_left(self) -> int:
        """Trainings that run or are to come, at most."""
        if self.searched:
            return len(self.running) + len(self.further())
        budget = 0 if self.exhausted else math.floor(self.tune.num_trainings - self.spent + 1e-9)
        further = (self.tune.finalists + 1) * (self.tune.seeds - 1)
        return len(self.running) + max(budget - self.num_searching, int(self.owes_own)) + further

    def complete(self) -> list[tuple[Point, SearchResult]]:
        """Return the points that were trained to the end, the best first; of equal ones the lowest
        rate.
        """
        found = [
            (point, result)
            for (point, run), result in self.results.items()
            if run == 0 and result.status == SearchStatus.COMPLETE
        ]
        return sorted(found, key=lambda item: (item[1].capped_loss, *item[0].model_dump().values()))

    def finalists(self) -> list[Point]:
        """Return the best points, and the sweep's own."""
        best = [point for point, _ in self.complete()[: self.tune.finalists]]
        own = self.cell.own
        return best if own in best or (own, 0) not in self.results else [*best, own]

    def further(self) -> list[tuple[Point, int]]:
        """Return the runs of finalists that are to come, with what is known of the search now."""
        known, runs = self.known_runs, range(1, self.tune.seeds)
        return [
            (point, run) for point in self.finalists() for run in runs if (point, run) not in known
        ]

    def new_point(self) -> Point | None:
        """Return a new point; None where the space has none left, which is noted."""
        known = self.known_runs
        for again in range(MANY_REPEATS):
            point = self.study.propose(again)
            if (point, 0) not in known:
                return point
        self.exhausted = True
        return None

    def wants(self, point: Point, run: int) -> bool:
        """Tell whether the search as it is set now has a use for a training that was asked for."""
        if run:
            return self.searched and (point, run) in self.further()
        return (
            self.owes_own if point == self.cell.own else self.may_ask and self.cell.contains(point)
        )


class Search:
    """A search over all cells of a sweep, see :func:`.combinations.tuning_cells`."""

    def __init__(self, cells: Iterable[TuningCell], tune: TuneSpec) -> None:
        self.tune = tune
        self.cells: dict[CellKey, CellSearch] = {
            cell.key: CellSearch(cell, CellStudy(cell, tune.sampler, tune.seed), tune)
            for cell in cells
        }
        self._again: deque[Asked] = deque()

    def go_on(self, earlier: Iterable[Training]) -> None:
        """Take what earlier starts asked for, in the order of asking; what gave nothing yet runs
        next.

        What the search has no more room for, or no use, is left out.
        """
        earlier = list(earlier)
        for one, result in earlier:
            if result is not None:
                self.cells[one.key].results[one.point, one.run] = result
        for one, result in earlier:
            search = self.cells[one.key]
            if result is None:
                if search.wants(one.point, one.run):
                    self._again.append(self._run(search, one.point, one.role, one.run))
            elif one.run == 0 and search.cell.contains(one.point):
                search.study.add(one.point, result)
        for search in self.cells.values():  # a search that is over is known to be
            if search.may_ask:
                search.new_point()

    def next(self) -> Asked | None:
        """Return a trial to run now; None when none may be, until another ends."""
        if self._again:
            return self._again.popleft()
        for search in self.cells.values():
            if search.owes_own:
                return self._run(search, search.cell.own, Role.OWN)
        for search in self.cells.values():
            if search.may_ask and (new := search.new_point()) is not None:
                return self._run(search, new, Role.SAMPLED)
        for search in self.cells.values():
            for point, run in search.further() if search.searched else ():
                return self._run(search, point, Role.FINALIST, run)
        return None

    @property
    def done(self) -> bool:
        """Whether nothing runs and nothing is left."""
        return all(
            one.searched and not one.running and not one.further() for one in self.cells.values()
        )

    @property
    def num_left(self) -> int:
        """Trainings that run or are to come, at most."""
        return sum(search.num_left for search in self.cells.values())

    def finished(self, trial_id: str, result: SearchResult | None) -> None:
        """Take a result; None of a trial that gave nothing, and will not be tried again at this
        start.
        """
        asked = self.asked(trial_id)
        search = self.cells[asked.key]
        del search.running[trial_id]
        if result is not None:
            search.results[asked.point, asked.run] = result
        else:
            search.given_up.add((asked.point, asked.run))
            search.num_failed += asked.run == 0
        if asked.told is not None:
            search.study.tell(asked.told, result)

    def asked(self, trial_id: str) -> Asked:
        """Return what a running trial is."""
        return next(one.running[trial_id] for one in self.cells.values() if trial_id in one.running)

    def _run(self, search: CellSearch, point: Point, role: Role, run: int = 0) -> Asked:
        told = search.study.ask(point) if run == 0 and search.cell.contains(point) else None
        asked = Asked(search.cell, search.cell.trial(point, run), point, role, run, told)
        search.running[asked.spec.trial_id] = asked
        return asked


@dataclass(frozen=True)
class Earlier:
    """What is stored of a search, by trial id; records are in the order in which they ended.

    ``num_others`` are results of another train size, recipe, split or prepared data; kept and not
    used.
    """

    asked: dict[str, AskedRecord]
    records: dict[str, SearchRecord]
    num_others: int
    unreadable: list[Unreadable]

    @classmethod
    def read(
        cls, store: ResultStore, cells: Iterable[TuningCell], fingerprints: Mapping[str, str]
    ) -> Earlier:
        """Read what the store has of these cells; ``fingerprints`` of datasets are by prepared
        id.
        """
        by_key = {cell.key: cell for cell in cells}

        def belongs(record: AskedRecord | SearchRecord) -> bool:
            cell, prepared = by_key.get(record.key), record.spec.network.subset.prepared.prepared_id
            is_ours = cell is not None and cell.trial(record.point, record.run) == record.spec
            return is_ours and fingerprints.get(prepared) == record.data_fingerprint

        asked, found = store.scan(AskedRecord), store.scan(SearchRecord)
        records = sorted(
            filter(belongs, found.records.values()), key=lambda record: record.finished_at
        )
        return cls(
            {name: one for name, one in asked.records.items() if belongs(one)},
            {record.trial_id: record for record in records},
            len(found.records) - len(records),
            asked.unreadable + found.unreadable,
        )

    def trainings(self) -> list[Training]:
        """Return everything in the order in which it was asked for; what is of no known place comes
        first.
        """
        every: dict[str, AskedRecord | SearchRecord] = {**self.records, **self.asked}
        ordered = sorted(
            every.values(), key=lambda one: one.number if isinstance(one, AskedRecord) else -1
        )
        results = {name: record.result for name, record in self.records.items()}
        return [(one, results.get(one.trial_id)) for one in ordered]
