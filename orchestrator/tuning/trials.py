"""Running a search's trials as Ray Tune trials: the sweep's own machinery, fed and told by a search."""

from __future__ import annotations

import gc
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from orchestrator.planning.predict import array_key
from orchestrator.results import table as c
from orchestrator.results.records import TrialFailure, provenance
from orchestrator.results.table import FlatRun, Point, _milliseconds, _params
from orchestrator.running.failures import nodes_with_cards
from orchestrator.running.trials import Bookkeeping, TrialSweep
from orchestrator.running.worker import REPORT, Shelf, TrialTrainable, start_beside_driver
from orchestrator.tuning.cells import AskedRecord, CellKey, SearchRecord, SearchReport
from orchestrator.tuning.search import Asked, Rungs, Search, SearchQueue, rungs_of
from search_spaces.errors import SweepError
from search_spaces.specs import NetworkSpec, SubsetSpec, TrialSpec, pair_name
from search_spaces.tuning import SearchTrialSpec, ValidationSpec
from tasks.prepared.subsets import TrialData
from tasks.trials.records import EpochRecord, EpochScore, SearchResult, capped

# A trial of a search as Ray Tune runs it, and the actor that stops those that fall behind.


class IsweepJudge:
    """The actor: every rung of every cell, so that trials on all nodes are compared with each other."""

    def __init__(self, earlier: Iterable[tuple[str, str, int, float]]) -> None:
        self._rungs = Rungs()
        for entry in earlier:
            self._rungs.come(*entry)

    def come(self, study: str, trial_id: str, epoch: int, loss: float) -> bool:
        """See :meth:`orchestrator.tuning.search.Rungs.come`."""
        return self._rungs.come(study, trial_id, epoch, loss)


def start_judge(name: str, earlier: Iterable[tuple[str, str, int, float]]) -> Any:
    """Start the actor under a name of this driver's, knowing of trials that are done; returns its handle."""
    return start_beside_driver(IsweepJudge, list(earlier), name=name, max_restarts=-1)


class SearchTrainable(TrialTrainable):
    """Runs one trial of a search per ``step``; all else is as with the sweep's own trials."""

    def _run(self, started_at: float) -> Any:
        from tasks.trials.trial import run_search_trial

        cell, data = self._cell, self._taken()
        network = NetworkSpec.model_validate_json(cell["network"])
        result = run_search_trial(
            network,
            data,
            **self._options(own_network=network.model.library == "own"),
            micro_batch=cell["micro_batch"],
            go_on=self._goes_on,
            on_epoch=None if self._epochs is None else self._epochs.teller(cell["trial_id"]).ended,
        )
        return SearchReport(
            started_at=started_at,
            finished_at=time.time(),
            outcome=result,
            data_fingerprint=data.data_fingerprint,
            gpu_share=float(cell["num_gpus"]),
        )

    def _goes_on(self, epoch: int, loss: float) -> bool:
        """Ask the judge at a rung; a trial that runs to the end is noted there all the same."""
        cell = self._cell
        if epoch not in cell["rungs"]:
            return True
        judge = ray.get_actor(cell["judge"])
        among_the_best = ray.get(judge.come.remote(cell["study"], cell["trial_id"], epoch, loss))
        return bool(among_the_best) or not cell["may_be_pruned"]


# A trial of a search as a tracker shows it.

VALIDATION_LOSS = "validation_loss"
VALIDATION_ACCURACY = "validation_accuracy"
EPOCHS = "epochs"


def flat_search(record: SearchRecord) -> FlatRun:
    """Return a stored trial of a search as one flat run: its validation losses are a series over epochs."""
    network, result = record.spec.network, record.result
    started = _milliseconds(record.started_at)
    metrics: dict[str, float] = {EPOCHS: result.epochs, c.WALL_TIME_S: record.finished_at - record.started_at}
    if result.loss is not None:
        metrics |= {VALIDATION_LOSS: result.loss, VALIDATION_ACCURACY: result.curve[-1].accuracy}
    tags = {
        c.TRIAL_ID: record.trial_id,
        c.SWEEP: record.sweep,
        c.MODEL: network.model.name,
        c.RECIPE: network.recipe.name,
        c.DATASET: network.subset.prepared.dataset,
        c.DOMAIN: record.domain or "",
        c.CLASS_PAIR: pair_name(network.subset.class_pair),
        c.TRAIN_SIZE: str(network.train_size),
        c.SEED: str(network.seed),
        c.STATUS: str(result.status),
        c.ATTEMPT: str(record.attempt),
        c.DATA_FINGERPRINT: record.data_fingerprint,
        c.CODE_VERSION: record.provenance.code_version,
        "role": str(record.role),
    }
    return FlatRun(
        record.trial_id,
        "trial",
        tags,
        _params(network.model_dump(mode="json")),
        metrics,
        tuple(
            (c.EPOCH_PREFIX + name, score.epoch, value, started)
            for score in result.curve
            for name, value in ((VALIDATION_LOSS, score.loss), (VALIDATION_ACCURACY, score.accuracy))
        ),
        started,
        _milliseconds(record.finished_at),
        _milliseconds(record.finished_at),
    )


MOST_TRIALS = 100_000
"""More than use one array: it leaves the object store for want of room, never because all are done."""


@dataclass
class SearchSweep(TrialSweep):
    """All that the trials of one ``isweep tune`` share; attributes as those of :class:`TrialSweep`.

    Attributes:
        load: Reads the arrays of a subset, given how many images and how they are split.
        records: Results of this search, by trial id; added to.
        asked: What the search has asked for, likewise.
        fingerprints: Content hash of each prepared dataset, by prepared id.
    """

    load: Callable[[SubsetSpec, int, ValidationSpec], TrialData]  # type: ignore[assignment]
    trainable: type[TrialTrainable] = SearchTrainable
    records: dict[str, SearchRecord] = field(default_factory=dict)
    asked: dict[str, AskedRecord] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)

    def search(self, search: Search) -> None:
        """Run ``search`` to its end.

        Raises:
            SweepError: when results cannot be stored; whatever finished before is kept.
        """
        self.searched = search
        trials: dict[str, SearchTrialSpec] = {}
        for one in search.cells.values():
            for run in range(search.tune.seeds):
                trial = one.cell.trial(one.cell.own, run)
                trials[array_key(self.plan, trial)] = trial

        def load(key: str) -> TrialData:
            trial = trials[key]
            return self.load(trial.network.subset, trial.network.train_size, trial.validation)

        shelf = Shelf(dict.fromkeys(trials, MOST_TRIALS), load, self._array_budget)
        self.judge = f"isweep-judge-{uuid.uuid4().hex[:8]}"
        judge = start_judge(self.judge, self._earlier(search))
        try:
            self._run_search(search, shelf)
        finally:
            ray.kill(judge)
            shelf.close()

    def _run_search(self, search: Search, shelf: Shelf) -> None:
        cells: dict[str, TrialSpec] = {}
        queue = SearchQueue(search, cells)
        self.count()
        callback = SearchBookkeeping(self, cells, queue, shelf, {})
        queue.on_asked = callback.on_asked
        # The source of one's own networks is sent along at the start, and is that of every cell.
        firsts = [one.cell.trial(one.cell.own) for one in search.cells.values()]
        cells.update({trial.trial_id: trial for trial in firsts})
        while not queue.empty:
            try:
                self._fit(cells, shelf, queue, callback)
            except Exception as error:
                callback.fit_failed(error)
            gc.collect()
            if callback.fatal is not None:
                raise callback.fatal
            callback.account_for_the_rest()

    def note(self, asked: Asked) -> None:
        """Store that a training was asked for, unless an earlier start did.

        Raises:
            SweepError: when it cannot be stored.
        """
        trial_id, prepared = asked.spec.trial_id, asked.spec.network.subset.prepared.prepared_id
        if trial_id in self.asked:
            return
        record = AskedRecord(
            trial_id=trial_id,
            role=asked.role,
            run=asked.run,
            spec=asked.spec,
            data_fingerprint=self.fingerprints[prepared],
            number=1 + max((known.number for known in self.asked.values()), default=-1),
        )
        self.stored.save(record)
        self.asked[trial_id] = record

    def count(self) -> None:
        """Tell the monitor what is done and how much is left at most."""
        done = len(self.records)
        self.monitor.trials_planned(done + self.searched.num_left, done)

    def _earlier(self, search: Search) -> list[tuple[str, str, int, float]]:
        """Return what the judge would know had it been there: losses at the rungs of stored trials."""
        rungs = {key: rungs_of(one.cell) for key, one in search.cells.items()}
        return [
            (
                study_name(record.key),
                record.trial_id,
                score.epoch,
                capped(score.loss, record.result.chance_loss),
            )
            for record in self.records.values()
            if record.run == 0
            for score in record.result.curve
            if score.epoch in rungs.get(record.key, ())
        ]

    def _cell(self, cell: TrialSpec) -> dict[str, Any]:
        request = self.requests.of(cell)
        asked = self.searched.asked(cell.trial_id)
        return {
            "trial_id": cell.trial_id,
            "network": cell.network.model_dump_json(),
            "data": array_key(self.plan, cell),
            **request.for_worker(),
            "study": study_name(asked.cell.key),
            "judge": self.judge,
            "rungs": rungs_of(asked.cell) if asked.run == 0 else (),
            "may_be_pruned": asked.may_be_pruned,
        }


class SearchBookkeeping(Bookkeeping):
    """The single writer of a search: results are stored first, then the study and the tracker are told."""

    _sweep: SearchSweep
    _queue: SearchQueue

    def on_asked(self, asked: Asked) -> None:
        """Store what is asked for before it is given out."""
        try:
            self._sweep.note(asked)
        except SweepError as error:
            self._end(error)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """See :class:`Bookkeeping`; the next trial may be asked for."""
        super().on_trial_start(iteration, trials, trial, **info)
        self._queue.started(trial.config["cell"]["trial_id"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Store the outcome first, then tell the study and the tracker."""
        trial_id = trial.config["cell"]["trial_id"]
        if trial_id not in self._queue.running or self.fatal is not None:
            return
        try:
            report = SearchReport.model_validate_json(result[REPORT])
            if isinstance(report.outcome, TrialFailure):
                ending = self._fail(trial_id, report.outcome)
                self._tell(trial_id, "failed", ending, report.log)
                self._sweep.retries.check_cards(self._node(trial_id), report.outcome, nodes_with_cards())
            else:
                self._found(trial_id, report, report.outcome)
                ending = str(report.outcome.status)
                self._tell(trial_id, "finished", ending, report.log)
        except SweepError as error:
            self._end(error)

    def _found(self, trial_id: str, report: SearchReport, result: SearchResult) -> None:
        sweep = self._sweep
        asked = sweep.searched.asked(trial_id)
        record = SearchRecord(
            trial_id=trial_id,
            sweep=sweep.plan.sweep.name,
            role=asked.role,
            run=asked.run,
            spec=asked.spec,
            domain=sweep.plan.datasets[asked.cell.dataset].domain,
            data_fingerprint=report.data_fingerprint,
            gpu_share=report.gpu_share,
            attempt=self._attempt(trial_id),
            started_at=report.started_at,
            finished_at=report.finished_at,
            provenance=provenance(),
            result=result,
        )
        sweep.stored.save(record)
        sweep.records[trial_id] = record
        sweep.searched.finished(trial_id, result)
        self._queue.settle(trial_id)
        self._hangs.ended(trial_id)
        self._shelf.trial_ended(trial_id, array_key(sweep.plan, asked.spec), for_good=True)
        sweep.retries.finished(trial_id, self._node(trial_id))
        self._broken = 0
        sweep.tracker.finish(flat_search(record))
        sweep.monitor.trial_finished(trial_id, result.status)
        sweep.count()
        self._show_counts()

    def _trained(self, trial_id: str) -> NetworkSpec:
        spec = self._sweep.searched.asked(trial_id).spec
        num_train = round(spec.network.train_size * (1 - spec.validation.share))
        return spec.network.model_copy(update={"train_size": num_train})

    def _points(self, epoch: EpochRecord, score: EpochScore | None, at_ms: int) -> tuple[Point, ...]:
        return ()  # a search's run has validation losses alone, which come with its result

    def _fail(self, trial_id: str, failure: TrialFailure, *, died: bool = False) -> str:
        ending = super()._fail(trial_id, failure, died=died)
        if trial_id not in self._queue.running and trial_id not in self._queue.later:
            self._sweep.searched.failed(trial_id)
        return ending


def study_name(key: CellKey) -> str:
    """Name the study of a cell."""
    return " on ".join(key)
