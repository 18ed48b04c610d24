"""Decide which trial a search runs next, from the results so far.

The search of one combination has two phases:

1. Sampling: train the sweep's recipe and then sampled points, each once with seed 0. This
phase ends when two conditions hold: the budget is used up or the space has no new point, and
no training of this phase is running. 2. Finalists: train the best points and the sweep's
recipe again, with seeds from 1.

All combinations share the workers. The search first trains the sweep's recipe of every
combination. It then trains the sampled points of one combination after the other. The
finalists of one combination can start while the last points of other combinations are still in
training.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestrator.tuning.combinations import Combination, CombinationKey, Point, Training
from orchestrator.tuning.earlier_trials import EarlierTrial
from orchestrator.tuning.search_records import Role
from orchestrator.tuning.study import CombinationStudy
from search_spaces.tuning import SearchTrialSpec, TuneSpec
from tasks.trials.records import SearchResult, SearchStatus

MAX_REPEATED_PROPOSALS = 25
"""If the sampler proposes this many known points in a row, the space counts as exhausted: it
has no new points."""
BUDGET_TOLERANCE = 1e-9
"""Tolerance with which the budget is compared, in whole trainings. It is needed because sums
of fractions are not exact."""


@dataclass(frozen=True)
class RequestedTrial:
    """A trial that the search has requested.

    Attributes:
        combination: Model and dataset of the trial.
        spec: The trial.
        training: Point and seed of the trial.
        role: Reason why the search runs the trial.
        study_index: Index of the point in the combination's study. None if the point is not in
            the study.
    """

    combination: Combination
    spec: SearchTrialSpec
    training: Training
    role: Role
    study_index: int | None = None

    @property
    def point(self) -> Point:
        """Point of the search space, or the point of the sweep's recipe."""
        return self.training.point

    @property
    def seed(self) -> int:
        """Number of the training: 0 in the sampling phase, 1 or more for a finalist."""
        return self.training.seed

    @property
    def key(self) -> CombinationKey:
        """Names of the trial's model and dataset."""
        return self.combination.key


@dataclass
class CombinationSearch:
    """The search of one combination.

    Attributes:
        combination: The model and the dataset.
        study: The points and results from which the sampler proposes points.
        tune: Settings of the search.
        results: Results by training.
        running: Running trials by trial id.
        given_up: Trainings that failed and that this command does not try again.
        exhausted: True if the sampler has no new points.
    """

    combination: Combination
    study: CombinationStudy
    tune: TuneSpec
    results: dict[Training, SearchResult] = field(default_factory=dict)
    running: dict[str, RequestedTrial] = field(default_factory=dict)
    given_up: set[Training] = field(default_factory=set)
    exhausted: bool = False

    @property
    def num_failed(self) -> int:
        """Number of points that failed and that this command does not try again."""
        return sum(training.is_of_sampling for training in self.given_up)

    @property
    def spent(self) -> float:
        """Budget used by ended trainings of the sampling phase, in whole trainings.

        A point that is not tried again counts as a whole training.
        """
        epochs = sum(
            result.epochs for training, result in self.results.items() if training.is_of_sampling
        )
        return epochs / self.combination.sweep_recipe.epochs + self.num_failed

    @property
    def num_sampling(self) -> int:
        """Number of running trainings of the sampling phase."""
        return sum(trial.training.is_of_sampling for trial in self.running.values())

    @property
    def known_trainings(self) -> set[Training]:
        """Trainings that have a result, are running, or are not tried again after failures."""
        running = {trial.training for trial in self.running.values()}
        return self.results.keys() | self.given_up | running

    @property
    def may_sample(self) -> bool:
        """True if the budget allows one more sampled point, and the space may have one.

        A running training counts as a whole training.
        """
        if self.exhausted:
            return False
        planned = self.spent + self.num_sampling + 1
        return planned <= self.tune.num_trainings + BUDGET_TOLERANCE

    @property
    def needs_sweep_point(self) -> bool:
        """True if the sweep's recipe was not trained yet, even if the budget is used up."""
        return Training(self.combination.sweep_point, 0) not in self.known_trainings

    @property
    def is_sampling_over(self) -> bool:
        """True if the sampling phase is over. Trainings of finalists may remain."""
        return not self.num_sampling and not self.may_sample and not self.needs_sweep_point

    @property
    def num_left(self) -> int:
        """Upper bound of the number of trainings that are running or must still start."""
        if self.is_sampling_over:
            return len(self.running) + len(self.remaining_finalist_trainings())
        budget = 0
        if not self.exhausted:
            budget = math.floor(self.tune.num_trainings - self.spent + BUDGET_TOLERANCE)
        num_samples = max(budget - self.num_sampling, int(self.needs_sweep_point))
        # If the sweep's recipe is not one of the best points, it is one more finalist.
        max_finalists = self.tune.finalists + 1
        return len(self.running) + num_samples + max_finalists * (self.tune.seeds - 1)

    def complete(self) -> list[tuple[Point, SearchResult]]:
        """Return the points whose training finished without divergence, the best first.

        Points with equal losses are sorted by learning rate, and then by the other values. The
        lowest value is first.
        """
        complete = []
        for training, result in self.results.items():
            if training.is_of_sampling and result.status == SearchStatus.COMPLETE:
                complete.append((training.point, result))
        return sorted(
            complete, key=lambda item: (item[1].capped_loss, *item[0].model_dump().values())
        )

    def finalists(self) -> list[Point]:
        """Return the best points and the point of the sweep's recipe."""
        best = [point for point, _ in self.complete()[: self.tune.finalists]]
        sweep_point = self.combination.sweep_point
        if sweep_point not in best and Training(sweep_point, 0) in self.results:
            best.append(sweep_point)
        return best

    def remaining_finalist_trainings(self) -> list[Training]:
        """Return the trainings of the present finalists that must still start."""
        known_trainings = self.known_trainings
        remaining = []
        for point in self.finalists():
            for seed in range(1, self.tune.seeds):
                training = Training(point, seed)
                if training not in known_trainings:
                    remaining.append(training)
        return remaining

    def sample_point(self) -> Point | None:
        """Return a new point.

        Return None and end the sampling if the space has no new point.
        """
        known_trainings = self.known_trainings
        for repeat in range(MAX_REPEATED_PROPOSALS):
            point = self.study.propose(repeat)
            if Training(point, 0) not in known_trainings:
                return point
        self.exhausted = True
        return None

    def check_exhausted(self) -> None:
        """End the sampling if the space has no new point."""
        if self.may_sample:
            # The proposed point is not needed here, because the study proposes it again at the
            # next call.
            self.sample_point()

    def needs(self, training: Training) -> bool:
        """Return whether the search still needs a trial that an earlier command requested.

        The result depends on the present settings, and on the trials that were added before.
        """
        if not training.is_of_sampling:
            return self.is_sampling_over and training in self.remaining_finalist_trainings()
        if training.point == self.combination.sweep_point:
            return self.needs_sweep_point
        return self.may_sample and self.combination.contains(training.point)


class Search:
    """The search of all combinations of a sweep.

    Args:
        combinations: Result of :func:`.combinations.combinations_to_tune`.
        tune: Settings of the search.

    Attributes:
        searches: Searches by the names of model and dataset.
    """

    def __init__(self, combinations: Iterable[Combination], tune: TuneSpec) -> None:
        self.tune = tune
        self.searches: dict[CombinationKey, CombinationSearch] = {}
        for combination in combinations:
            study = CombinationStudy(combination, tune.sampler, tune.seed)
            self.searches[combination.key] = CombinationSearch(combination, study, tune)
        self._resumed: deque[RequestedTrial] = deque()

    def resume(self, earlier: Iterable[EarlierTrial]) -> None:
        """Add the trials of an earlier command. Those without a result run next.

        Args:
            earlier: Trials in the order in which they were requested. A trial without a result
                is ignored if the search does not need it any more.
        """
        earlier = list(earlier)
        for record, result in earlier:
            if result is not None:
                self.searches[record.key].results[record.training] = result
        for record, result in earlier:
            search = self.searches[record.key]
            if result is None:
                if search.needs(record.training):
                    self._resumed.append(self._request(search, record.training, record.role))
            elif record.training.is_of_sampling and search.combination.contains(record.point):
                search.study.add(record.point, result)
        for search in self.searches.values():
            search.check_exhausted()

    def next_trial(self) -> RequestedTrial | None:
        """Return the next trial to run, or None if a running trial must end first."""
        if self._resumed:
            return self._resumed.popleft()
        searches = self.searches.values()
        for search in searches:
            if search.needs_sweep_point:
                training = Training(search.combination.sweep_point, 0)
                return self._request(search, training, Role.SWEEP_RECIPE)
        for search in searches:
            if search.may_sample:
                point = search.sample_point()
                if point is not None:
                    return self._request(search, Training(point, 0), Role.SAMPLED)
        for search in searches:
            if search.is_sampling_over:
                remaining = search.remaining_finalist_trainings()
                if remaining:
                    return self._request(search, remaining[0], Role.FINALIST)
        return None

    @property
    def is_done(self) -> bool:
        """True if no trial is running and no trial remains."""
        for search in self.searches.values():
            if not search.is_sampling_over or search.running:
                return False
            if search.remaining_finalist_trainings():
                return False
        return True

    @property
    def num_left(self) -> int:
        """Upper bound of the number of trainings that are running or must still start."""
        return sum(search.num_left for search in self.searches.values())

    def add_result(self, trial_id: str, result: SearchResult | None) -> None:
        """Add the result of a running trial.

        ``result`` is None if the trial failed and is not tried again.
        """
        trial = self.running_trial(trial_id)
        search = self.searches[trial.key]
        del search.running[trial_id]
        if result is not None:
            search.results[trial.training] = result
        else:
            search.given_up.add(trial.training)
        if trial.study_index is not None:
            search.study.tell(trial.study_index, result)

    def running_trial(self, trial_id: str) -> RequestedTrial:
        """Return a running trial by its id."""
        for search in self.searches.values():
            if trial_id in search.running:
                return search.running[trial_id]
        raise KeyError(trial_id)

    def _request(self, search: CombinationSearch, training: Training, role: Role) -> RequestedTrial:
        """Create a trial and mark it as running."""
        combination = search.combination
        point = training.point
        study_index = None
        if training.is_of_sampling and combination.contains(point):
            study_index = search.study.ask(point)
        spec = combination.trial(point, training.seed)
        trial = RequestedTrial(combination, spec, training, role, study_index)
        search.running[spec.trial_id] = trial
        return trial
