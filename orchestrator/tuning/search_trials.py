"""Queue of a search's trials, and source of these trials for the loop that runs trials."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import cast

from orchestrator.results.flat_runs import CurvePoint, FlatRun
from orchestrator.running.messages import TrialReport
from orchestrator.running.queue import TrialQueue
from orchestrator.running.trial_source import RunContext, TrialSource
from orchestrator.running.workers.perform import PerformedTrial, TrialTask
from orchestrator.tuning.earlier_trials import EarlierTrials
from orchestrator.tuning.search import RequestedTrial, Search
from orchestrator.tuning.search_records import RequestRecord, SearchRecord, flat_search
from search_spaces.errors import SweepError
from search_spaces.specs import NetworkSpec, SubsetSpec, TrialSpec
from search_spaces.tuning import SearchTrialSpec, ValidationSpec
from tasks.prepared.subsets import TrialData
from tasks.trials.records import EpochRecord, EpochScore, SearchResult

MAX_WAITING = 2
"""Largest number of trials that wait for a worker. The number is small, because the search
chooses a point when its trial begins to wait. Results that arrive later cannot change this
choice."""


def perform_search(task: TrialTask) -> PerformedTrial:
    """Train a network on a validation split. This function runs in a worker."""
    from tasks.trials.trial import run_search_trial

    assignment = task.assignment
    on_epoch = None
    if task.messages is not None:
        on_epoch = task.messages.publisher(assignment.trial_id).epoch_ended
    result = run_search_trial(
        assignment.spec.network,
        task.data,
        task.device,
        on_epoch=on_epoch,
    )
    return PerformedTrial(result, trained=True)


class SearchQueue(TrialQueue):
    """Queue of a search's trials: waiting, running, or waiting for a retry.

    Args:
        search: The search, which chooses the next trial.
        trials: Trials by id. The queue adds new trials to this mapping.
        store_request: Function that stores a trial before the trial starts. If the function
            raises an error, the search ends.
    """

    def __init__(
        self,
        search: Search,
        trials: dict[str, TrialSpec],
        store_request: Callable[[RequestedTrial], None] = lambda trial: None,
    ) -> None:
        super().__init__(deque())
        self._search = search
        self._trials = trials
        self._store_request = store_request

    @property
    def is_finished(self) -> bool:
        """True if the search is done, or has ended with an error."""
        if self.is_stopped:
            return True
        return self._search.is_done and not self.retry_at and not self.submitted

    def take(self, now: float) -> str | None:
        """Count the next trial as submitted. Return its id, or None if no trial may start."""
        retried = super().take(now)
        if retried is not None:
            return retried
        if self.is_stopped or len(self.submitted - self.running) >= MAX_WAITING:
            return None
        trial = self._search.next_trial()
        if trial is None:
            return None
        try:
            self._store_request(trial)
        except SweepError as error:
            self.stop(error)
            return None
        trial_id = trial.spec.trial_id
        self._trials[trial_id] = trial.spec
        self.submitted.add(trial_id)
        return trial_id


class SearchTrials(TrialSource):
    """Source of a search's trials. Each trial is created when it starts.

    Args:
        run: Context that all trials share.
        search: The search, which chooses the next trial.
        stored_trials: Stored trials of the search. New requests and results are added to them.
        load: Function that reads the arrays of a subset for a train size and a validation
            split.
        fingerprints: Content hashes of the datasets by prepared id.
    """

    perform = staticmethod(perform_search)

    def __init__(
        self,
        run: RunContext,
        search: Search,
        stored_trials: EarlierTrials,
        load: Callable[[SubsetSpec, int, ValidationSpec], TrialData],
        fingerprints: Mapping[str, str],
    ) -> None:
        trials: dict[str, TrialSpec] = {}
        super().__init__(run, SearchQueue(search, trials, self._store_request), trials)
        self._search = search
        self._stored_trials = stored_trials
        self._load = load
        self._fingerprints = fingerprints
        self._trial_by_array: dict[str, SearchTrialSpec] = {}
        # isweep sends the source code of custom networks to the workers at the start. To find
        # all networks, it uses the trials with the sweep's recipe: they use all networks and
        # all arrays of the search.
        for combination_search in search.searches.values():
            combination = combination_search.combination
            for run_number in range(search.tune.seeds):
                trial = combination.trial(combination.sweep_point, run_number)
                trials[trial.trial_id] = trial
                self._trial_by_array[self.array_of(trial)] = trial
        self._show_counts()

    def load_array(self, key: str) -> TrialData:
        """See :class:`TrialSource`."""
        trial = self._trial_by_array[key]
        return self._load(trial.network.subset, trial.network.train_size, trial.validation)

    def store_result(self, trial: TrialSpec, report: TrialReport, attempt: int) -> FlatRun:
        """See :class:`TrialSource`."""
        requested = self._search.running_trial(trial.trial_id)
        fields = self.record_fields(trial, report, attempt)
        record = SearchRecord(**fields, role=requested.role, run=requested.seed)
        self.run.stored.save(record)
        self._stored_trials.records[trial.trial_id] = record
        self._search.add_result(trial.trial_id, cast("SearchResult", report.outcome))
        self._show_counts()
        return flat_search(record)

    def give_up(self, trial_id: str) -> None:
        """See :class:`TrialSource`."""
        self._search.add_result(trial_id, None)

    def trained_network(self, trial: TrialSpec) -> NetworkSpec:
        """See :class:`TrialSource`."""
        share = cast("SearchTrialSpec", trial).validation.share
        train_size = round(trial.network.train_size * (1 - share))
        return trial.network.model_copy(update={"train_size": train_size})

    def curve_points(
        self, epoch: EpochRecord, score: EpochScore | None, at_ms: int
    ) -> tuple[CurvePoint, ...]:
        """Return no points, because the validation losses of a trial come with its result."""
        return ()

    def _store_request(self, trial: RequestedTrial) -> None:
        """Store the request of a trial before it starts, if it is not stored yet."""
        requests = self._stored_trials.requests
        trial_id = trial.spec.trial_id
        if trial_id not in requests:
            prepared_id = trial.spec.network.subset.prepared.prepared_id
            numbers = [request.number for request in requests.values()]
            record = RequestRecord(
                trial_id=trial_id,
                role=trial.role,
                run=trial.seed,
                spec=trial.spec,
                data_fingerprint=self._fingerprints[prepared_id],
                number=1 + max(numbers, default=-1),
            )
            self.run.stored.save(record)
            requests[trial_id] = record

    def _show_counts(self) -> None:
        """Report the number of finished trials and an upper bound of the total."""
        num_done = len(self._stored_trials.records)
        self.run.monitor.planned = num_done + self._search.num_left
        self.run.monitor.done = num_done
