"""The trials of a search as :class:`orchestrator.running.trials.Work`, and the actor that stops some."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, cast

import ray

from orchestrator.planning.estimate import array_key
from orchestrator.results.records import CellReport
from orchestrator.results.rows import FlatRun, Point
from orchestrator.running.actors import start_beside_driver
from orchestrator.running.queue import CellQueue
from orchestrator.running.trials import Run, Work
from orchestrator.running.worker import TrialTrainable
from orchestrator.tuning.cells import AskedRecord, CellKey, SearchRecord, flat_search
from orchestrator.tuning.outcome import Earlier
from orchestrator.tuning.search import Asked, Rungs, Search, rungs_of
from search_spaces.errors import SweepError
from search_spaces.specs import NetworkSpec, SubsetSpec, TrialSpec
from search_spaces.tuning import SearchTrialSpec, ValidationSpec
from tasks.prepared.subsets import TrialData
from tasks.trials.records import EpochRecord, EpochScore, SearchResult, capped


class IsweepJudge:
    """The actor: every rung of every cell, so that trials on all nodes are compared with each other."""

    def __init__(self, earlier: Iterable[tuple[str, str, int, float]]) -> None:
        self._rungs = Rungs()
        for entry in earlier:
            self._rungs.come(*entry)

    def come(self, study: str, trial_id: str, epoch: int, loss: float) -> bool:
        """See :meth:`orchestrator.tuning.search.Rungs.come`."""
        return self._rungs.come(study, trial_id, epoch, loss)


def perform_search(
    worker: TrialTrainable, data: TrialData, options: dict[str, Any]
) -> tuple[SearchResult, bool]:
    """Train a point of a search, in a worker, until it is done or others are better at a rung."""
    from tasks.trials.trial import run_search_trial

    cell = worker.cell

    def goes_on(epoch: int, loss: float) -> bool:
        # A trial that runs to the end is noted all the same.
        if epoch not in cell["rungs"]:
            return True
        judge = ray.get_actor(cell["judge"])
        among_the_best = ray.get(judge.come.remote(cell["study"], cell["trial_id"], epoch, loss))
        return bool(among_the_best) or not cell["may_be_pruned"]

    found = run_search_trial(
        NetworkSpec.model_validate_json(cell["network"]),
        data,
        micro_batch=cell["micro_batch"],
        go_on=goes_on,
        on_epoch=None if worker.epochs is None else worker.epochs.teller(cell["trial_id"]).ended,
        **options,
    )
    return found, True


AHEAD = 2
"""Trials that may wait for their worker: a point that is asked for early knows less."""


class SearchQueue(CellQueue):
    """Trials of a search that wait, run, or are tried again later.

    Args:
        search: Says what is next.
        cells: Taken trials by id; added to here.
        note: Told of a trial before it is given out; an error of it ends the search.
    """

    def __init__(
        self, search: Search, cells: dict[str, TrialSpec], note: Callable[[Asked], None] = lambda asked: None
    ) -> None:
        super().__init__(deque())
        self._search, self._cells, self._note = search, cells, note
        self._waiting: set[str] = set()

    @property
    def empty(self) -> bool:
        """Whether the search is over, or no trials are given out any more."""
        return self.error is not None or (not (self.later or self.running) and self._search.done)

    def take(self, now: float) -> str | None:
        """Return the next trial, which runs from now on; None when none may be taken yet."""
        taken = super().take(now)
        if taken is None and self.error is None and len(self._waiting) < AHEAD:
            taken = self._asked_for()
        if taken is not None:
            self._waiting.add(taken)
        return taken

    def _asked_for(self) -> str | None:
        """Return a new trial of the search, if it has one."""
        asked = self._search.next()
        if asked is None:
            return None
        try:
            self._note(asked)
        except SweepError as error:
            self.error = error
            return None
        trial_id = asked.spec.trial_id
        self._cells[trial_id] = asked.spec
        self.running.add(trial_id)
        return trial_id

    def started(self, trial_id: str) -> None:
        """A trial has its worker."""
        self._waiting.discard(trial_id)

    def settle(self, trial_id: str) -> None:
        """See :meth:`CellQueue.settle`."""
        self._waiting.discard(trial_id)
        super().settle(trial_id)

    def again(self, trial_id: str, at: float) -> None:
        """See :meth:`CellQueue.again`."""
        self._waiting.discard(trial_id)
        super().again(trial_id, at)


class SearchWork(Work):
    """The trials of a search, each made when it is taken; a context that holds the search's judge.

    Args:
        run: What it is a part of.
        search: Says what is next, and is told what came of it.
        earlier: What is stored of it; added to.
        load: Reads the arrays of a subset, given how many images and how they are split.
        fingerprints: Content hash of each prepared dataset, by prepared id.
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
        # The source of one's own networks is sent along at the start, and is that of every cell.
        firsts = [one.cell.trial(one.cell.own) for one in search.cells.values()]
        cells: dict[str, TrialSpec] = {trial.trial_id: trial for trial in firsts}
        super().__init__(run, SearchQueue(search, cells, self._note), cells)
        self._search, self._stored, self._load, self._fingerprints = search, earlier, load, fingerprints
        runs = range(search.tune.seeds)
        trials = [one.cell.trial(one.cell.own, run) for one in search.cells.values() for run in runs]
        self._by_array = {array_key(self.run.plan, trial): trial for trial in trials}
        self._count()

    def __enter__(self) -> SearchWork:
        """Start the judge, which knows the losses at the rungs of stored trials."""
        rungs = {key: rungs_of(one.cell) for key, one in self._search.cells.items()}
        known = [
            (
                study_name(record.key),
                record.trial_id,
                score.epoch,
                capped(score.loss, record.result.chance_loss),
            )
            for record in self._stored.records.values()
            if record.run == 0
            for score in record.result.curve
            if score.epoch in rungs.get(record.key, ())
        ]
        self._name = f"isweep-judge-{uuid.uuid4().hex[:8]}"
        self._judge = start_beside_driver(IsweepJudge, known, name=self._name, max_restarts=-1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the judge."""
        ray.kill(self._judge)

    def load(self, key: str) -> TrialData:
        """See :class:`Work`."""
        trial = self._by_array[key]
        return self._load(trial.network.subset, trial.network.train_size, trial.validation)

    def job(self, cell: TrialSpec) -> dict[str, Any]:
        """See :class:`Work`."""
        asked = self._search.asked(cell.trial_id)
        return {
            "network": cell.network.model_dump_json(),
            "study": study_name(asked.cell.key),
            "judge": self._name,
            "rungs": rungs_of(asked.cell) if asked.run == 0 else (),
            "may_be_pruned": asked.may_be_pruned,
        }

    def started(self, trial_id: str) -> None:
        """See :class:`Work`; the next trial may be asked for."""
        cast("SearchQueue", self.queue).started(trial_id)

    def found(self, cell: TrialSpec, report: CellReport, attempt: int) -> FlatRun:
        """See :class:`Work`."""
        asked, result = self._search.asked(cell.trial_id), cast("SearchResult", report.outcome)
        record = SearchRecord(
            trial_id=cell.trial_id,
            sweep=self.run.plan.sweep.name,
            role=asked.role,
            run=asked.run,
            spec=asked.spec,
            domain=self.run.plan.datasets[asked.cell.dataset].domain,
            data_fingerprint=report.data_fingerprint,
            gpu_share=report.gpu_share,
            attempt=attempt,
            started_at=report.started_at,
            finished_at=report.finished_at,
            provenance=report.provenance,
            result=result,
        )
        self.run.stored.save(record)
        self._stored.records[cell.trial_id] = record
        self._search.finished(cell.trial_id, result)
        self._count()
        return flat_search(record)

    def given_up(self, trial_id: str) -> None:
        """See :class:`Work`."""
        self._search.failed(trial_id)

    def trained_on(self, cell: TrialSpec) -> NetworkSpec:
        """See :class:`Work`."""
        share = cast("SearchTrialSpec", cell).validation.share
        return cell.network.model_copy(update={"train_size": round(cell.network.train_size * (1 - share))})

    def points(self, epoch: EpochRecord, score: EpochScore | None, at_ms: int) -> tuple[Point, ...]:
        """Return none: a search's run has validation losses alone, which come with its result."""
        return ()

    def _note(self, asked: Asked) -> None:
        """Store that a training was asked for, before it is given out, unless an earlier start did.

        Raises:
            SweepError: when it cannot be stored.
        """
        trial_id, prepared = asked.spec.trial_id, asked.spec.network.subset.prepared.prepared_id
        known = self._stored.asked
        if trial_id in known:
            return
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
        self.run.monitor.trials_planned(done + self._search.num_left, done)


def study_name(key: CellKey) -> str:
    """Name the study of a cell."""
    return " on ".join(key)
