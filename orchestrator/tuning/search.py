"""Who is trained next: the state of a whole search, told what was found. Knows no Ray and no store.

In this order: every cell's own recipe; then points of cells, one cell after another, so that what the first
ones find begins the next ones; then finalists, which need nothing new and fill what is left of the cluster.
"""

from __future__ import annotations

import math
import os
import warnings
from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from orchestrator.results.storage import Patience
from orchestrator.tuning.cells import CellKey, Point, Role, TuningCell
from search_spaces.fingerprint import derive_seed
from search_spaces.specs import Domain
from search_spaces.tuning import Sampler, SearchSpace, SearchTrialSpec, TuneSpec
from tasks.trials.records import SearchResult, SearchStatus, capped

# Which trials are stopped early: asynchronous successive halving over epochs.
#
# Li et al., "A System for Massively Parallel Hyperparameter Tuning" (ASHA), MLSys 2020, in the form that
# stops: a trial that comes to a rung goes on when it is among the best third of those that came there
# before, itself included, once enough came to tell a third of them. Nobody waits for anybody.

REDUCTION = 3
RUNGS = (1 / 3,)
"""Shares of a whole training after which a trial is judged. An earlier rung, at a ninth, made searches on the
table of trainings worse than no stopping at all: rates that are best at first are not best at the end."""

BEFORE = 5
"""So many come to a rung before anybody is stopped there: among fewer the best third is the luckiest. At the
default budget of five trainings that stops nothing, which is what the table of trainings speaks for."""


def rung_epochs(num_epochs: int) -> tuple[int, ...]:
    """Return the epochs after which a trial is judged.

    Example:
        >>> rung_epochs(20), rung_epochs(100), rung_epochs(2)
        ((7,), (34,), (1,))
    """
    epochs = {math.ceil(num_epochs * share) for share in RUNGS}
    return tuple(sorted(epoch for epoch in epochs if epoch < num_epochs))


class Rungs:
    """The losses at every rung of every study.

    Args:
        reduction: one in so many goes on.
        before: see :data:`BEFORE`.
    """

    def __init__(self, reduction: int = REDUCTION, before: int = BEFORE) -> None:
        self._reduction, self._before = reduction, before
        self._losses: dict[tuple[Hashable, int], dict[str, float]] = {}

    def come(self, study: Hashable, trial_id: str, epoch: int, loss: float) -> bool:
        """Note a trial's loss at a rung; tell whether it goes on."""
        losses = self._losses.setdefault((study, epoch), {})
        losses[trial_id] = loss
        better = sum(other < loss for other in losses.values())
        return len(losses) <= self._before or better < math.ceil(len(losses) / self._reduction)


# Where the next point comes from: one Optuna study per cell, asked and told by us.
#
# Optuna's storage is a view, like MLflow: it is made anew from the store at every start, so it holds every
# point once, in the order of asking, and none runs that nobody trains. See ``docs/decisions/0012-own-ask-
# and-tell.md``.

STARTUP_TRIALS = 4
"""Points that are drawn at random before a model of the loss is believed, the given ones included."""
NAME = "{} on {}"


def open_storage(path: Path | None, patience: Patience | None = None) -> BaseStorage:
    """Return a new, empty storage: a journal file that ``optuna-dashboard`` opens, or memory for None.

    Args:
        path: Of the journal.
        patience: Waits for a disk that is full; None raises at once.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if path is None:
        return InMemoryStorage()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not emptied in place: who has the old one open goes on reading the old one. A driver that was killed in
    # a write left Optuna's lock, which is waited for, and for ever where the root has moved since; the root's
    # own lock says that nobody else writes.
    for left in (path, path.with_name(f"{path.name}.lock")):
        left.unlink(missing_ok=True)
    return JournalStorage(_PatientJournal(path, patience))


class _PatientJournal(JournalFileBackend):
    """A journal that a full disk leaves without half a line: nobody could read on behind one."""

    def __init__(self, path: Path, patience: Patience | None) -> None:
        super().__init__(str(path))
        self._path, self._patience = path, patience

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append lines, all or none of them; as the store does, wait where there is no room."""
        size = self._path.stat().st_size

        def append() -> None:
            try:
                super(_PatientJournal, self).append_logs(logs)
            except OSError:
                os.truncate(self._path, size)
                raise

        if self._patience is None:
            append()
        else:
            self._patience.until_done(append)


class CellStudy:
    """The study of one cell.

    Args:
        cell: What is searched.
        sampler: Who proposes points.
        storage: From :func:`open_storage`.
        seed: Of the whole search.
    """

    def __init__(self, cell: TuningCell, sampler: Sampler, storage: BaseStorage, seed: int = 0) -> None:
        self._cell, self._sampler, self._seed = cell, sampler, seed
        self._space = distributions(cell.space)
        self._rungs = rung_epochs(cell.num_epochs)
        self._asked: dict[str, optuna.Trial] = {}
        self.study = optuna.create_study(
            storage=storage, study_name=NAME.format(*cell.key), direction="minimize"
        )

    def propose(self, again: int = 0) -> Point:
        """Return the sampler's next point, which nobody has asked for yet.

        It follows from the seed, the points of the study in their order and what is known of them: a search
        that goes on after a kill proposes what it would have proposed without one.

        Args:
            again: Counts proposals that nothing was told between.
        """
        trials = self.study.get_trials(deepcopy=False)
        seed = derive_seed("sampler", self._seed, list(self._cell.key), len(trials), again) % 2**32
        # On a copy: the study has points as they are trained, rounded, and none that is not.
        thought = optuna.create_study(sampler=make_sampler(self._sampler, seed))
        thought.add_trials(trials)
        params = thought.ask(self._space).params
        return self._cell.nearest(Point.model_validate(params).rounded())

    def ask(self, point: Point) -> str:
        """Begin a point, which must lie in the space; returns its ticket."""
        self.study.enqueue_trial(point.model_dump())
        trial = self.study.ask(self._space)
        self._asked[ticket := str(trial.number)] = trial
        return ticket

    def tell(self, ticket: str, result: SearchResult) -> None:
        """Tell what a point that was asked for gave."""
        trial = self._asked.pop(ticket)
        for epoch, loss in reports(result, self._rungs).items():
            trial.report(loss, epoch)
        for name, value in attributes(result).items():
            trial.set_user_attr(name, value)
        if result.status == SearchStatus.PRUNED:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, result.capped_loss)

    def fail(self, ticket: str) -> None:
        """Tell that a point gave nothing."""
        self.study.tell(self._asked.pop(ticket), state=TrialState.FAIL)

    def add(self, point: Point, result: SearchResult) -> None:
        """Tell of a point that an earlier start asked for, in its turn."""
        pruned = result.status == SearchStatus.PRUNED
        self.study.add_trial(
            optuna.create_trial(
                params=point.model_dump(),
                distributions=self._space,
                # Of a pruned trial Optuna takes the last intermediate value.
                value=result.capped_loss,
                state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
                intermediate_values=reports(result, self._rungs),
                user_attrs=attributes(result),
            )
        )


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Return a space in Optuna's words."""
    return {
        "learning_rate": FloatDistribution(*space.learning_rate, log=True),
        "weight_decay": FloatDistribution(*space.weight_decay, log=True),
        "batch_size": CategoricalDistribution(space.batch_size),
    }


def make_sampler(name: Sampler, seed: int) -> BaseSampler:
    """Return a sampler; see ``benchmarks/search.py`` for how they compare."""
    if name == "random":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if name == "gp":
            return GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
        return TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS)


def reports(result: SearchResult, rungs: tuple[int, ...]) -> dict[int, float]:
    """Return the losses that Optuna is told of on the way: at the rungs, and at the end."""
    shown = {*rungs, result.curve[-1].epoch if result.curve else 0}
    return {
        score.epoch: capped(score.loss, result.chance_loss) for score in result.curve if score.epoch in shown
    }


def attributes(result: SearchResult) -> dict[str, object]:
    """Return what ``optuna-dashboard`` shows beside a trial's value."""
    return {"status": str(result.status), "epochs": result.epochs, "loss": result.loss}


# Which cells are like each other, so that what was found for one can begin the search of another.

OTHER_MODEL = 3.0
"""A rate depends more on the network than on the data: another model is this far away, its kin a third."""
OTHER_DOMAIN = 1.0
SPREAD = {"log_train_size": 1.0, "d_data": 10.0, "log_label_sharpness": 2.0}
"""One step of distance in each measured quantity: about the spread over the study's datasets."""


@dataclass(frozen=True)
class Likeness:
    """What is known of a cell's data before anything is trained.

    Attributes:
        domain: Natural or medical.
        measured: Names of ``SPREAD`` with their values; those not measured are left out.
    """

    domain: Domain | None
    measured: Mapping[str, float]

    @classmethod
    def of(
        cls, domain: Domain | None, train_size: int, d_data: float | None, label_sharpness: float | None
    ) -> Likeness:
        """Return it from what is measured; None was not."""
        measured = {"log_train_size": math.log(train_size)}
        if d_data is not None:
            measured["d_data"] = d_data
        if label_sharpness:
            measured["log_label_sharpness"] = math.log(label_sharpness)
        return cls(domain, measured)


def distance(first: TuningCell, second: TuningCell, known: Mapping[str, Likeness]) -> float:
    """Return how unlike two cells are.

    Args:
        first: A cell.
        second: Another.
        known: What is known of each dataset, by name. What is known of both is compared.
    """
    squares = 0.0
    if first.model != second.model:
        kin = first.model.architecture.rstrip("0123456789") == second.model.architecture.rstrip("0123456789")
        squares += (OTHER_MODEL / 3 if kin else OTHER_MODEL) ** 2
    one, other = known.get(first.dataset), known.get(second.dataset)
    if one is not None and other is not None:
        squares += OTHER_DOMAIN**2 * (one.domain != other.domain)
        for name in SPREAD.keys() & one.measured.keys() & other.measured.keys():
            squares += ((one.measured[name] - other.measured[name]) / SPREAD[name]) ** 2
    return math.sqrt(squares)


def nearest_first(
    cell: TuningCell, others: Mapping[CellKey, TuningCell], known: Mapping[str, Likeness]
) -> list[CellKey]:
    """Return the keys of the other cells, the most alike first; ties keep their order."""
    keys = [key for key in others if key != cell.key]
    return sorted(keys, key=lambda key: distance(cell, others[key], known))


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
