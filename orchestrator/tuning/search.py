"""A search: which trial is run next, decided from what is known.

The order is: the sweep's own recipe of every combination; then sampled points, one combination
after the other; then finalists, which need no new points and fill what is left of the cluster.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from orchestrator.results.store import ResultStore, Unreadable
from orchestrator.tuning.combinations import Combination, CombinationKey, Point
from orchestrator.tuning.search_records import RequestRecord, Role, SearchRecord
from search_spaces.fingerprint import derive_seed
from search_spaces.tuning import Sampler, SearchTrialSpec, TuneSpec
from tasks.trials.records import SearchResult, SearchStatus

STARTUP_TRIALS = 4
"""Points, the given ones included, before the sampler uses a model of the loss. They are random."""
MAX_REPEATED_PROPOSALS = 25
"""Known points that the sampler may propose in a row; after that the space has no new ones."""
BUDGET_TOLERANCE = 1e-9
"""Whole trainings by which the budget may be exceeded: sums of fractions are not exact."""
SEED_RANGE = 2**32
"""Seeds of Optuna's samplers are below this."""


class CombinationStudy:
    """The sampler's view of one combination: its points and their results.

    There is an Optuna study per combination, made anew for every proposal from what is known:
    ``docs/decisions/0012-own-ask-and-tell.md``.

    Args:
        combination: whose space is searched.
        sampler: proposes points.
        seed: of the whole search.
    """

    def __init__(self, combination: Combination, sampler: Sampler, seed: int = 0) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._combination = combination
        self._sampler = sampler
        self._seed = seed
        space = combination.space
        self._space: dict[str, BaseDistribution] = {
            "learning_rate": FloatDistribution(*space.learning_rate, log=True),
            "weight_decay": FloatDistribution(*space.weight_decay, log=True),
            "batch_size": CategoricalDistribution(space.batch_size),
        }
        self.trials: list[FrozenTrial] = []

    def propose(self, repeat: int = 0) -> Point:
        """Return the sampler's next point.

        It depends on the seed, on the known points in their order, and on ``repeat`` alone, so that
        a search that was killed proposes the same points.

        Args:
            repeat: number of proposals since the study last changed.
        """
        key = list(self._combination.key)
        seed = derive_seed("sampler", self._seed, key, len(self.trials), repeat) % SEED_RANGE
        study = optuna.create_study(sampler=make_sampler(self._sampler, seed))
        study.add_trials(self.trials)
        proposed = study.ask(self._space).params
        # Four digits, so that what people copy is what was run.
        rounded = {name: type(value)(f"{value:.4g}") for name, value in proposed.items()}
        return self._combination.clip(Point.model_validate(rounded))

    def ask(self, point: Point) -> int:
        """Add a point that now runs and lies in the space, and return its index."""
        self.trials.append(self._trial(point.model_dump(), TrialState.RUNNING))
        return len(self.trials) - 1

    def tell(self, index: int, result: SearchResult | None) -> None:
        """Add the result of a point; None if it has none."""
        params = self.trials[index].params
        if result is None:
            self.trials[index] = self._trial(params, TrialState.FAIL)
        else:
            self.trials[index] = self._trial(params, TrialState.COMPLETE, result.capped_loss)

    def add(self, point: Point, result: SearchResult) -> None:
        """Add a finished point from an earlier run, in the original order."""
        trial = self._trial(point.model_dump(), TrialState.COMPLETE, result.capped_loss)
        self.trials.append(trial)

    def _trial(
        self, params: dict[str, Any], state: TrialState, value: float | None = None
    ) -> FrozenTrial:
        return optuna.create_trial(
            state=state, value=value, params=params, distributions=self._space
        )


def make_sampler(name: Sampler, seed: int) -> BaseSampler:
    """Return an Optuna sampler; ``benchmarks/search.py`` compares them."""
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
class RequestedTrial:
    """A trial that the search wants to be run.

    Attributes:
        combination: its model and dataset.
        spec: the trial.
        point: of the search space.
        role: why it is run.
        run: 0 for the search's own training of a point.
        study_index: index of the point in the combination's study; None if the study does not have
            it.
    """

    combination: Combination
    spec: SearchTrialSpec
    point: Point
    role: Role
    run: int = 0
    study_index: int | None = None

    @property
    def key(self) -> CombinationKey:
        """Names of its model and dataset."""
        return self.combination.key


class EarlierTrial(NamedTuple):
    """A trial that was requested by an earlier run, and its result if there is one."""

    record: RequestRecord | SearchRecord
    result: SearchResult | None


@dataclass
class CombinationSearch:
    """The search of one combination.

    Attributes:
        combination: its model and dataset.
        study: the points and results as the sampler sees them.
        tune: settings of the search.
        results: by point and run.
        running: trials that run now, by trial id.
        num_failed: points without a result since this start; each counts as a whole training.
        given_up: points and runs without a result since this start.
        exhausted: whether the sampler has no new points.
    """

    combination: Combination
    study: CombinationStudy
    tune: TuneSpec
    results: dict[tuple[Point, int], SearchResult] = field(default_factory=dict)
    running: dict[str, RequestedTrial] = field(default_factory=dict)
    num_failed: int = 0
    given_up: set[tuple[Point, int]] = field(default_factory=set)
    exhausted: bool = False

    @property
    def spent(self) -> float:
        """Whole trainings that the search took so far, without those of finalists."""
        epochs = sum(result.epochs for (_, run), result in self.results.items() if run == 0)
        return epochs / self.combination.sweep_recipe.epochs + self.num_failed

    @property
    def num_searching(self) -> int:
        """Number of trainings that run now, without those of finalists."""
        return sum(trial.run == 0 for trial in self.running.values())

    @property
    def known_runs(self) -> set[tuple[Point, int]]:
        """Points and runs that have a result, were given up, or run now."""
        running = {(trial.point, trial.run) for trial in self.running.values()}
        return self.results.keys() | self.given_up | running

    @property
    def may_sample(self) -> bool:
        """True if the budget has room for one more training, if all that run take a whole one."""
        if self.exhausted:
            return False
        planned = self.spent + self.num_searching + 1
        return planned <= self.tune.num_trainings + BUDGET_TOLERANCE

    @property
    def needs_sweep_point(self) -> bool:
        """True if the sweep's own recipe is still to be trained, whatever the budget."""
        return (self.combination.sweep_point, 0) not in self.known_runs

    @property
    def is_over(self) -> bool:
        """True if the search is over, except for its finalists."""
        return not self.num_searching and not self.may_sample and not self.needs_sweep_point

    @property
    def num_left(self) -> int:
        """Largest number of trainings that run or are to come."""
        if self.is_over:
            return len(self.running) + len(self.remaining_finalist_runs())
        budget = 0
        if not self.exhausted:
            budget = math.floor(self.tune.num_trainings - self.spent + BUDGET_TOLERANCE)
        num_samples = max(budget - self.num_searching, int(self.needs_sweep_point))
        num_finalist_runs = (self.tune.finalists + 1) * (self.tune.seeds - 1)
        return len(self.running) + num_samples + num_finalist_runs

    def complete(self) -> list[tuple[Point, SearchResult]]:
        """Return the points that were trained to the end, the best first.

        Of points with equal losses the one with the lowest learning rate comes first.
        """
        complete = [
            (point, result)
            for (point, run), result in self.results.items()
            if run == 0 and result.status == SearchStatus.COMPLETE
        ]
        return sorted(
            complete, key=lambda item: (item[1].capped_loss, *item[0].model_dump().values())
        )

    def finalists(self) -> list[Point]:
        """Return the best points, and that of the sweep's own recipe."""
        best = [point for point, _ in self.complete()[: self.tune.finalists]]
        sweep_point = self.combination.sweep_point
        if sweep_point not in best and (sweep_point, 0) in self.results:
            best.append(sweep_point)
        return best

    def remaining_finalist_runs(self) -> list[tuple[Point, int]]:
        """Return the runs of finalists that are to come, as far as the search is known now."""
        known_runs = self.known_runs
        remaining = []
        for point in self.finalists():
            for run in range(1, self.tune.seeds):
                if (point, run) not in known_runs:
                    remaining.append((point, run))
        return remaining

    def new_point(self) -> Point | None:
        """Return a new point; None, for the rest of this run, if the space has no more."""
        known_runs = self.known_runs
        for repeat in range(MAX_REPEATED_PROPOSALS):
            point = self.study.propose(repeat)
            if (point, 0) not in known_runs:
                return point
        self.exhausted = True
        return None

    def needs(self, point: Point, run: int) -> bool:
        """Return whether the search, as it is set up now, needs a trial of an earlier run."""
        if run:
            return self.is_over and (point, run) in self.remaining_finalist_runs()
        if point == self.combination.sweep_point:
            return self.needs_sweep_point
        return self.may_sample and self.combination.contains(point)


class Search:
    """The search of all combinations of a sweep.

    Args:
        combinations: of :func:`.combinations.combinations_to_tune`.
        tune: settings of the search.

    Attributes:
        searches: searches by the names of model and dataset.
    """

    def __init__(self, combinations: Iterable[Combination], tune: TuneSpec) -> None:
        self.tune = tune
        self.searches: dict[CombinationKey, CombinationSearch] = {}
        for combination in combinations:
            study = CombinationStudy(combination, tune.sampler, tune.seed)
            self.searches[combination.key] = CombinationSearch(combination, study, tune)
        self._resumed: deque[RequestedTrial] = deque()

    def resume(self, earlier: Iterable[EarlierTrial]) -> None:
        """Resume the search of an earlier run. Its trials without a result run next.

        Args:
            earlier: trials in the order in which they were requested. Those for which the search
                has no room any more are left out.
        """
        earlier = list(earlier)
        for record, result in earlier:
            if result is not None:
                self.searches[record.key].results[record.point, record.run] = result
        for record, result in earlier:
            search = self.searches[record.key]
            if result is None:
                if search.needs(record.point, record.run):
                    trial = self._request(search, record.point, record.role, record.run)
                    self._resumed.append(trial)
            elif record.run == 0 and search.combination.contains(record.point):
                search.study.add(record.point, result)
        # A search whose space has no new points is known to be over.
        for search in self.searches.values():
            if search.may_sample:
                search.new_point()

    def next_trial(self) -> RequestedTrial | None:
        """Return a trial to run now; None if there is none until another ends."""
        if self._resumed:
            return self._resumed.popleft()
        searches = self.searches.values()
        for search in searches:
            if search.needs_sweep_point:
                return self._request(search, search.combination.sweep_point, Role.OWN)
        for search in searches:
            if search.may_sample:
                point = search.new_point()
                if point is not None:
                    return self._request(search, point, Role.SAMPLED)
        for search in searches:
            if search.is_over:
                for point, run in search.remaining_finalist_runs():
                    return self._request(search, point, Role.FINALIST, run)
        return None

    @property
    def is_done(self) -> bool:
        """True if nothing runs and nothing is left."""
        for search in self.searches.values():
            if not search.is_over or search.running or search.remaining_finalist_runs():
                return False
        return True

    @property
    def num_left(self) -> int:
        """Largest number of trainings that run or are to come."""
        return sum(search.num_left for search in self.searches.values())

    def add_result(self, trial_id: str, result: SearchResult | None) -> None:
        """Take the result of a running trial; None if it has none and is not tried again."""
        trial = self.running_trial(trial_id)
        search = self.searches[trial.key]
        del search.running[trial_id]
        if result is not None:
            search.results[trial.point, trial.run] = result
        else:
            search.given_up.add((trial.point, trial.run))
            if trial.run == 0:
                search.num_failed += 1
        if trial.study_index is not None:
            search.study.tell(trial.study_index, result)

    def running_trial(self, trial_id: str) -> RequestedTrial:
        """Return a running trial by its id."""
        for search in self.searches.values():
            if trial_id in search.running:
                return search.running[trial_id]
        raise KeyError(trial_id)

    def _request(
        self, search: CombinationSearch, point: Point, role: Role, run: int = 0
    ) -> RequestedTrial:
        """Return a trial that runs from now on."""
        combination = search.combination
        study_index = None
        if run == 0 and combination.contains(point):
            study_index = search.study.ask(point)
        spec = combination.trial(point, run)
        trial = RequestedTrial(combination, spec, point, role, run, study_index)
        search.running[spec.trial_id] = trial
        return trial


@dataclass(frozen=True)
class EarlierTrials:
    """The stored trials of a search, by trial id.

    Attributes:
        requests: trials that were requested.
        records: trials with a result, in the order in which they ended.
        num_others: number of results of another train size, recipe, split or prepared data. They
            are kept and not used.
        unreadable: files that are not used.
    """

    requests: dict[str, RequestRecord]
    records: dict[str, SearchRecord]
    num_others: int
    unreadable: list[Unreadable]

    @classmethod
    def read(
        cls,
        store: ResultStore,
        combinations: Iterable[Combination],
        fingerprints: Mapping[str, str],
    ) -> EarlierTrials:
        """Read the stored trials of some combinations.

        Args:
            store: of the search.
            combinations: as they are searched now.
            fingerprints: content hashes of the datasets by prepared id.
        """
        by_key = {combination.key: combination for combination in combinations}

        def belongs(record: RequestRecord | SearchRecord) -> bool:
            combination = by_key.get(record.key)
            if combination is None or combination.trial(record.point, record.run) != record.spec:
                return False
            prepared_id = record.spec.network.subset.prepared.prepared_id
            return fingerprints.get(prepared_id) == record.data_fingerprint

        requests = store.scan(RequestRecord)
        results = store.scan(SearchRecord)
        records = sorted(
            filter(belongs, results.records.values()), key=lambda record: record.finished_at
        )
        return cls(
            requests={
                record.trial_id: record for record in filter(belongs, requests.records.values())
            },
            records={record.trial_id: record for record in records},
            num_others=len(results.records) - len(records),
            unreadable=requests.unreadable + results.unreadable,
        )

    def trials(self) -> list[EarlierTrial]:
        """Return all trials in the order in which they were requested.

        Results without a request, whose order is unknown, come first.
        """
        every: dict[str, RequestRecord | SearchRecord] = {**self.records, **self.requests}
        trials = []
        for record in sorted(every.values(), key=_request_number):
            result = None
            if record.trial_id in self.records:
                result = self.records[record.trial_id].result
            trials.append(EarlierTrial(record, result))
        return trials


def _request_number(record: RequestRecord | SearchRecord) -> int:
    if isinstance(record, RequestRecord):
        return record.number
    return -1
