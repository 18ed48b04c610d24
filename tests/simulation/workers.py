"""Ray and Tune as :class:`orchestrator.running.trials.Trials` meets them: nodes and workers that fail."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ray.tune.search import Searcher

from orchestrator.results.store import CellReport, FailureKind, TrialFailure, provenance
from orchestrator.running.failures import RETRIES, Place
from orchestrator.running.worker import REPORT, EpochReport
from tasks.trials.records import EpochRecord, TrialResult
from tests.simulation.outside import Outside
from tests.simulation.scheduler import Killed, Process
from tests.unit.orchestrator.results.examples import diverged, trial_result

LONGEST_SILENCE_S = {"trial hangs": 2000.0, "worker says nothing": 120.0}
"""Twenty times what a trial took that was measured, 90 s at most here; and a minute."""
SLOTS = 3
NODES = ("10.0.0.1", "10.0.0.2")
SLOW_S = 3.0
TOLD = {
    "device fails": FailureKind.DEVICE_ERROR,
    "other code": FailureKind.OTHER_CODE,
    "network error": FailureKind.CODE_ERROR,
}
LOST = {
    "worker dies": FailureKind.WORKER_CRASH,
    "node lost": FailureKind.LOST_NODE,
    "memory kill": FailureKind.OUT_OF_MEMORY,
}


KINDS = {**TOLD, **LOST, "trial hangs": FailureKind.HUNG, "worker says nothing": FailureKind.WORKER_CRASH}


class Violation(BaseException):
    """Something that must always hold did not; no `except Exception` of the product takes it for Tune's."""


@cache
def outcome(trial_id: str, data: str) -> TrialResult:
    """What training a cell undisturbed gives: a function of the cell and its data alone."""
    share = zlib.crc32(f"{trial_id} {data}".encode()) % 997 / 997
    return diverged("loss is nan") if share > 0.9 else trial_result(round(0.1 + share, 6))


@dataclass
class SimulatedTrial:
    """A trial of Tune: what is asked of its worker, and when that answers."""

    config: dict[str, Any]
    node: str
    ends_at: float
    fault: str = ""
    began: float = 0.0
    status: str = "PENDING"
    told: list[Any] = field(default_factory=list)
    silent: bool = False

    @property
    def trial_id(self) -> str:
        return str(self.config["cell"]["trial_id"])


class Arrays:
    """Nothing is passed to simulated workers."""

    def trial_started(self, trial: str, key: str) -> None:
        pass

    def trial_ended(self, trial: str, key: str, *, for_good: bool) -> None:
        pass

    def close(self) -> None:
        pass


class SimulatedExecution:
    """See :class:`orchestrator.running.trials.Execution`.

    Args:
        outside: Its faults hit workers.
        process: The driver's.
        data: Fingerprint of the images.
        seconds: How long a cell takes, about.
        begins: Is told of every cell that a worker begins.
        told: Failures that the sweep told so far, each with its kind.
    """

    def __init__(
        self,
        outside: Outside,
        process: Process,
        data: str,
        seconds: float,
        begins: Callable[[str], None],
        told: list[Any],
    ) -> None:
        self._outside, self._process, self._data, self._begins = outside, process, data, begins
        self._told, self._failed, self._seconds = told, Counter[str](), seconds
        self.arrays, self._said, self._trials = Arrays(), list[Any](), dict[str, SimulatedTrial]()
        self._killed: set[str] = set()

    def heard(self, *, wait: bool = False) -> list[Any]:
        said, self._said = self._said, []
        return said

    def fit(self, trials: Any, feed: Any) -> None:
        """Do as Tune does: take cells while there is room, and tell what becomes of each."""
        outside, running, finished = self._outside, list[SimulatedTrial](), False
        iteration = 0
        while running or not finished:
            iteration += 1
            outside.call(self._process)
            if outside.take("user stops"):
                raise KeyboardInterrupt
            if running and outside.take("Tune breaks"):
                raise RuntimeError("Tune lost its head")
            trials.on_step_begin(iteration, running)
            while not finished and len(running) < SLOTS:
                found = feed.suggest(f"t{iteration}-{len(running)}")
                if found == Searcher.FINISHED:
                    finished = True
                elif found is None:
                    break
                else:
                    running.append(self._given(found))
                    trials.on_trial_start(iteration, running, running[-1])
            for trial in list(running):
                if self._step(trials, iteration, running, trial):
                    running.remove(trial)
            outside.scheduler.wait(None, 1.0 + outside.random.random())

    def _given(self, config: dict[str, Any]) -> SimulatedTrial:
        outside = self._outside
        seconds = self._seconds * (0.5 + outside.random.random())
        now = outside.scheduler.now
        trial = SimulatedTrial(config, outside.random.choice(NODES), now + seconds, began=now)
        fault = outside.take(*TOLD, *LOST, "trial hangs", "worker says nothing")
        if fault is not None:
            trial.fault = fault.kind
            outside.note(f"  hits {trial.trial_id}")
        trial.silent = trial.fault in ("trial hangs", "worker says nothing")
        trial.status = "RUNNING"
        if trial.fault != "worker says nothing":
            self._begins(trial.trial_id)
            self._said.append(Place(trial.trial_id, f"actor of {trial.trial_id}", trial.node))
        self._trials[trial.trial_id] = trial
        return trial

    def _step(self, trials: Any, iteration: int, running: list[Any], trial: SimulatedTrial) -> bool:
        """Tell what a worker does now; returns whether its trial has ended."""
        now = self._outside.scheduler.now
        if trial.trial_id in self._killed:
            self._killed.discard(trial.trial_id)
            return self._fails(trials, iteration, running, trial)
        if trial.silent:
            return False
        if now < trial.ends_at:
            self._said.append(EpochReport(trial.trial_id, EpochRecord(1 + int(now), 0.5, 0.5, 0.1), None))
            return False
        if trial.fault:
            return self._fails(trials, iteration, running, trial)
        report = CellReport(
            started_at=now - self._seconds,
            finished_at=now,
            outcome=outcome(trial.trial_id, self._data),
            data_fingerprint=self._data,
            provenance=provenance(),
            node=trial.node,
        )
        trial.status = "TERMINATED"
        before = len(self._told)
        trials.on_trial_result(iteration, running, trial, {REPORT: report.model_dump_json()})
        trials.on_trial_complete(iteration, running, trial)
        self._must(len(self._told) == before, f"{trial.trial_id} has a result and was told as failed")
        return True

    def _fails(self, trials: Any, iteration: int, running: list[Any], trial: SimulatedTrial) -> bool:
        """Tell that a worker failed; the sweep must store that, and tell it once with its kind."""
        trial.status = "ERROR"
        kind, name, silent_s = KINDS[trial.fault], trial.trial_id, self._outside.scheduler.now - trial.began
        before, calls, known = len(self._told), self._outside.num_written, self._failed[name]
        trials.on_trial_error(iteration, running, trial)
        new = [(told, told_kind) for told, told_kind, _ in self._told[before:]]
        self._must(new == [(name, kind)], f"{trial.fault} of {name} was told as {new}")
        self._must(self._outside.num_written > calls, f"{trial.fault} of {name} was not stored")
        # A driver that waits for storage looks at no worker.
        most_s = LONGEST_SILENCE_S.get(trial.fault, math.inf) + self._outside.paused_s
        self._must(silent_s < most_s, f"{trial.fault} of {name} was noticed after {silent_s:.0f} s")
        given_up = "given up" in self._told[-1][2]
        again = RETRIES[kind] != 0
        self._must(known > 0 or given_up is not again, f"{name}, which {trial.fault}: {self._told[-1][2]}")
        self._failed[name] += 1
        return True

    @staticmethod
    def _must(holds: bool, why: str) -> None:
        if not holds:
            raise Violation(why)

    def failure_of(self, trial: SimulatedTrial, place: Place | None) -> CellReport | TrialFailure:
        kind = (TOLD | LOST).get(trial.fault, FailureKind.WORKER_CRASH)
        failure = TrialFailure(kind=kind, message=f"{trial.fault} on {trial.node}")
        now = self._outside.scheduler.now
        report = CellReport(started_at=now, finished_at=now, outcome=failure, node=trial.node)
        return report if trial.fault in TOLD else failure

    def process(self, trial: SimulatedTrial) -> Callable[[], object] | None:
        return lambda: self._killed.add(trial.trial_id)

    def show(self, monitor: Any, requests: Any) -> None:
        pass

    def count_failure(self, kind: FailureKind) -> None:
        pass

    def fit_nodes(self, failure: TrialFailure) -> set[str]:
        return set(NODES)

    def killed_for_memory(self, places: Mapping[str, Place]) -> Collection[str]:
        return set()

    def why_nothing_starts(self) -> str:
        return "nothing is free"

    def node_memory_bytes(self) -> float:
        return math.inf

    def is_up(self) -> bool:
        if self._process.dead:
            raise Killed
        return True
