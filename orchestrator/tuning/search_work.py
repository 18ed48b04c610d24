"""The trials of a search as :class:`orchestrator.running.trials.Work`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, cast

from orchestrator.planning.trial_order import array_key
from orchestrator.results.flat_runs import FlatRun, Point
from orchestrator.results.records import CellReport
from orchestrator.running.queue import CellQueue
from orchestrator.running.trials import Run, Work
from orchestrator.running.worker import TrialTrainable
from orchestrator.tuning.search import Asked, Earlier, Search
from orchestrator.tuning.search_records import AskedRecord, SearchRecord, flat_search
from search_spaces.errors import SweepError
from search_spaces.specs import NetworkSpec, SubsetSpec, TrialSpec
from search_spaces.tuning import SearchTrialSpec, ValidationSpec
from tasks.prepared.subsets import TrialData
from tasks.trials.records import EpochRecord, EpochScore, SearchResult

AHEAD = 2

"""Trials that may wait for their worker: a point that is asked for early knows less."""


def perform_search(
    worker: TrialTrainable, data: TrialData, options: dict[str, Any]
) -> tuple[SearchResult, bool]:
    """Train a point of a search, in a worker."""
    from tasks.trials.trial import run_search_trial

    cell = worker.cell
    found = run_search_trial(
        NetworkSpec.model_validate_json(cell["network"]),
        data,
        micro_batch=cell["micro_batch"],
        on_epoch=None if worker.epochs is None else worker.epochs.teller(cell["trial_id"]).ended,
        **options,
    )
    return found, True


class SearchQueue(CellQueue):
    """Trials of a search that wait, run, or are tried again later; those taken are added to
    ``cells``.

    ``note`` is told of a trial before it is given out; an error of it ends the search.
    """

    def __init__(
        self,
        search: Search,
        cells: dict[str, TrialSpec],
        note: Callable[[Asked], None] = lambda asked: None,
    ) -> None:
        super().__init__(deque())
        self._search, self._cells, self._note = search, cells, note

    @property
    def empty(self) -> bool:
        """Whether the search is over, or no trials are given out any more."""
        return self.error is not None or (not (self.later or self.running) and self._search.done)

    def take(self, now: float) -> str | None:
        """Return the next trial, which runs from now on; None when none may be taken yet."""
        taken = super().take(now)
        if taken is None and self.error is None and len(self.running - self.begun) < AHEAD:
            if (asked := self._search.next()) is None:
                return None
            try:
                self._note(asked)
            except SweepError as error:
                self.error = error
                return None
            taken = asked.spec.trial_id
            self._cells[taken] = asked.spec
            self.running.add(taken)
        return taken


class SearchWork(Work):
    """The trials of a search, each made when it is taken; ``earlier`` is what is stored of it, and
    added to.

    ``load`` reads the arrays of a subset, given how many images and how they are split;
    ``fingerprints`` of prepared datasets are by prepared id.
    """

    perform = staticmethod(perform_search)

    def __init__(
        self,
        run: Run,
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
        self._by_array = {array_key(self.run.plan, trial): trial for trial in trials}
        self._count()

    def load(self, key: str) -> TrialData:
        """See :class:`Work`."""
        trial = self._by_array[key]
        return self._load(trial.network.subset, trial.network.train_size, trial.validation)

    def job(self, cell: TrialSpec) -> dict[str, Any]:
        """See :class:`Work`."""
        return {"network": cell.network.model_dump_json()}

    def found(self, cell: TrialSpec, report: CellReport, attempt: int) -> FlatRun:
        """See :class:`Work`."""
        asked, result = self._search.asked(cell.trial_id), cast("SearchResult", report.outcome)
        record = SearchRecord(**self.sealed(cell, report, attempt), role=asked.role, run=asked.run)
        self.run.stored.save(record)
        self._stored.records[cell.trial_id] = record
        self._search.finished(cell.trial_id, result)
        self._count()
        return flat_search(record)

    def given_up(self, trial_id: str) -> None:
        """See :class:`Work`."""
        self._search.finished(trial_id, None)

    def trained_on(self, cell: TrialSpec) -> NetworkSpec:
        """See :class:`Work`."""
        share = cast("SearchTrialSpec", cell).validation.share
        return cell.network.model_copy(
            update={"train_size": round(cell.network.train_size * (1 - share))}
        )

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
