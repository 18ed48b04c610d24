"""The trials of a search, as a source of trials for the loop that runs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import cast

from orchestrator.results.flat_runs import FlatRun, Point
from orchestrator.running.messages import TrialReport
from orchestrator.running.perform import Performed, TrialTask
from orchestrator.running.queue import TrialQueue
from orchestrator.running.work import RunContext, TrialSource
from orchestrator.tuning.search import Asked, Earlier, Search
from orchestrator.tuning.search_records import AskedRecord, SearchRecord, flat_search
from search_spaces.errors import SweepError
from search_spaces.specs import NetworkSpec, SubsetSpec, TrialSpec
from search_spaces.tuning import SearchTrialSpec, ValidationSpec
from tasks.prepared.subsets import TrialData
from tasks.trials.records import EpochRecord, EpochScore, SearchResult

AHEAD = 2
"""Trials that may wait for their worker: a point that is asked for early knows less."""


def perform_search(task: TrialTask) -> Performed:
    """Train a network on a validation split, in a worker."""
    from tasks.trials.trial import run_search_trial

    assignment = task.assignment
    on_epoch = None
    if task.messages is not None:
        on_epoch = task.messages.publisher(assignment.trial_id).epoch_ended
    result = run_search_trial(
        assignment.spec.network,
        task.data,
        micro_batch=assignment.resources.micro_batch,
        on_epoch=on_epoch,
        **task.device,
    )
    return Performed(result, trained=True)


class SearchQueue(TrialQueue):
    """Trials of a search that wait, run, or are tried again later; those taken are added to
    ``trials``.

    ``note`` is told of a trial before it is given out; an error of it ends the search.
    """

    def __init__(
        self,
        search: Search,
        trials: dict[str, TrialSpec],
        note: Callable[[Asked], None] = lambda asked: None,
    ) -> None:
        super().__init__(deque())
        self._search = search
        self._trials = trials
        self._note = note

    @property
    def is_empty(self) -> bool:
        """Whether the search is over, or no trials are given out any more."""
        return self.error is not None or (not (self.retry_at or self.running) and self._search.done)

    def take(self, now: float) -> str | None:
        """Return the next trial, which runs from now on; None when none may be taken yet."""
        taken = super().take(now)
        if taken is None and self.error is None and len(self.running - self.started) < AHEAD:
            if (asked := self._search.next()) is None:
                return None
            try:
                self._note(asked)
            except SweepError as error:
                self.error = error
                return None
            taken = asked.spec.trial_id
            self._trials[taken] = asked.spec
            self.running.add(taken)
        return taken


class SearchTrials(TrialSource):
    """The trials of a search, each made when it is taken; ``earlier`` is what is stored of it, and
    added to.

    ``load`` reads the arrays of a subset, given how many images and how they are split;
    ``fingerprints`` of prepared datasets are by prepared id.
    """

    perform = staticmethod(perform_search)

    def __init__(
        self,
        run: RunContext,
        search: Search,
        earlier: Earlier,
        load: Callable[[SubsetSpec, int, ValidationSpec], TrialData],
        fingerprints: Mapping[str, str],
    ) -> None:
        runs = range(search.tune.seeds)
        trials = [
            one.cell.trial(one.cell.own, run) for one in search.cells.values() for run in runs
        ]
        # The source of one's own networks is sent along at the start, and is that of every cell.
        cells: dict[str, TrialSpec] = {trial.trial_id: trial for trial in trials}
        super().__init__(run, SearchQueue(search, cells, self._note), cells)
        self._search, self._stored, self._load, self._fingerprints = (
            search,
            earlier,
            load,
            fingerprints,
        )
        self._by_array = {self.array_of(trial): trial for trial in trials}
        self._count()

    def load_array(self, key: str) -> TrialData:
        """See :class:`TrialSource`."""
        trial = self._by_array[key]
        return self._load(trial.network.subset, trial.network.train_size, trial.validation)

    def store_result(self, trial: TrialSpec, report: TrialReport, attempt: int) -> FlatRun:
        """See :class:`TrialSource`."""
        asked = self._search.asked(trial.trial_id)
        fields = self.record_fields(trial, report, attempt)
        record = SearchRecord(**fields, role=asked.role, run=asked.run)
        self.run.stored.save(record)
        self._stored.records[trial.trial_id] = record
        self._search.finished(trial.trial_id, cast("SearchResult", report.outcome))
        self._count()
        return flat_search(record)

    def gave_up(self, trial_id: str) -> None:
        """See :class:`TrialSource`."""
        self._search.finished(trial_id, None)

    def trained_network(self, trial: TrialSpec) -> NetworkSpec:
        """See :class:`TrialSource`."""
        share = cast("SearchTrialSpec", trial).validation.share
        train_size = round(trial.network.train_size * (1 - share))
        return trial.network.model_copy(update={"train_size": train_size})

    def points(self, epoch: EpochRecord, score: EpochScore | None, at_ms: int) -> tuple[Point, ...]:
        """Return none: a search's run has validation losses alone, which come with its result."""
        return ()

    def _note(self, asked: Asked) -> None:
        """Store that a training was asked for, before it is given out, unless an earlier start
        did.
        """
        trial_id, prepared = asked.spec.trial_id, asked.spec.network.subset.prepared.prepared_id
        known = self._stored.asked
        if trial_id not in known:
            record = AskedRecord(
                trial_id=trial_id,
                role=asked.role,
                run=asked.run,
                spec=asked.spec,
                data_fingerprint=self._fingerprints[prepared],
                number=1 + max((one.number for one in known.values()), default=-1),
            )
            self.run.stored.save(record)
            known[trial_id] = record

    def _count(self) -> None:
        """Tell the monitor what is done and how much is left at most."""
        done = len(self._stored.records)
        self.run.monitor.planned, self.run.monitor.done = done + self._search.num_left, done
