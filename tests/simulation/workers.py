"""Ray and Tune as :class:`orchestrator.running.trials.Trials` meets them: nodes and workers that fail."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray.exceptions import OutOfMemoryError
from ray.tune.search import Searcher

from orchestrator.results.store import CellReport, FailureKind, TrialFailure, provenance
from orchestrator.running.failures import RETRIES, Place
from orchestrator.running.worker import REPORT, EpochReport
from tasks.trials.records import EpochRecord, SearchResult, TrialResult
from tests.simulation.outside import Outside
from tests.simulation.scheduler import Killed, Process, Violation

LONGEST_SILENCE_S = {"trial hangs": 2000.0, "worker says nothing": 120.0}
"""Twenty times what a trial took that was measured, 90 s at most here; and a minute."""
SLOTS = 2
"""Of each node."""
NODE_RETURNS_S = 100.0
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
SILENT = {"trial hangs": FailureKind.HUNG, "worker says nothing": FailureKind.WORKER_CRASH}
KINDS = {**TOLD, **LOST, **SILENT, "report lost": FailureKind.WORKER_CRASH}


@dataclass
class SimulatedTrial:
    """A trial of Tune: what is asked of its worker, when that answers, and what goes wrong with it."""

    config: dict[str, Any]
    fault: str = ""
    node: str = ""
    heard_at: float = 0.0
    ends_at: float = 0.0
    status: str = "PENDING"
    killed: bool = False

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


@dataclass
class Cells:
    """What a world knows of the cells that are executed.

    Attributes:
        data: Fingerprint of the images.
        outcome: What a cell gives undisturbed.
        begins: Is told of every cell that a worker begins.
        told: Failures that the sweep told so far, each with its kind and what follows.
        at_rest: Is told which cells run, now and then.
    """

    data: str
    outcome: Callable[[str], TrialResult | SearchResult]
    begins: Callable[[str], None]
    told: list[tuple[str, str, str]]
    at_rest: Callable[[set[str]], None]


class SimulatedExecution:
    """See :class:`orchestrator.running.queue.TuneExecution`; a cell takes ``seconds``, about."""

    def __init__(self, outside: Outside, process: Process, seconds: float, cells: Cells) -> None:
        self._outside, self._process, self._seconds, self._cells = outside, process, seconds, cells
        self._failed, self._num_nodes = Counter[str](), 0
        self._nodes: dict[str, float] = {}
        self._gone_until: list[float] = []
        self.arrays, self._said = Arrays(), list[Any]()
        self._broke: tuple[int, list[str], FailureKind] | None = None
        self._hit: set[str] = set()
        self._node_added()
        self._node_added()

    def heard(self, *, wait: bool = False) -> list[Any]:
        said, self._said = self._said, []
        return said

    def fit(self, trials: Any, feed: Any) -> None:
        """Do as Tune does: take cells while there is room, and tell what becomes of each."""
        outside, running, iteration = self._outside, list[SimulatedTrial](), 0
        finished = False
        self.check_broken()
        while running or not finished:
            iteration += 1
            outside.call(self._process)
            if outside.take("user stops"):
                raise KeyboardInterrupt
            self._nodes_go_and_come(running)
            self._tune_breaks([trial for trial in running if trial.node])
            self._cells.at_rest({trial.trial_id for trial in running if trial.node})
            trials.on_step_begin(iteration, running)
            while not finished and all(trial.node for trial in running):
                found = feed.suggest(f"t{iteration}-{len(running)}")
                if found is None:
                    break
                finished = found == Searcher.FINISHED
                running += [] if finished else [self._given(found)]
                self._place(trials, iteration, running)
            self._place(trials, iteration, running)
            for trial in list(running):
                if trial.node and self._step(trials, iteration, running, trial):
                    running.remove(trial)
            outside.scheduler.wait(None, 1.0 + outside.random.random())

    def check_broken(self) -> None:
        """See that whatever ran when Tune broke was told as failed, and nothing else."""
        if self._broke is not None:
            before, names, kind = self._broke
            self._broke = None
            told = sorted((name, told_kind) for name, told_kind, _ in self._cells.told[before:])
            expected = sorted((name, kind) for name in names)
            self._must(told == expected, f"Tune broke under {expected}, and told were {told}")

    def _node_added(self) -> None:
        self._num_nodes += 1
        self._nodes[f"10.0.0.{self._num_nodes}"] = 0.0

    def _nodes_go_and_come(self, running: list[SimulatedTrial]) -> None:
        outside = self._outside
        for until in [until for until in self._gone_until if until <= outside.scheduler.now]:
            self._gone_until.remove(until)
            self._node_added()
        if self._nodes and outside.take("node lost"):
            lost = outside.random.choice(sorted(self._nodes))
            del self._nodes[lost]
            self._gone_until.append(outside.scheduler.now + outside.random.random() * NODE_RETURNS_S)
            for trial in running:
                if trial.node == lost:
                    self._hits(trial, "node lost")
        able = [trial for trial in running if trial.node and not trial.fault]
        if able and (fault := outside.take(*TOLD, *LOST, "trial hangs", "report lost", "report doubled")):
            self._hits(outside.random.choice(able), fault.kind)

    def _hits(self, trial: SimulatedTrial, fault: str) -> None:
        self._outside.note(f"  {fault}: {trial.trial_id}")
        trial.fault = fault
        if fault in LOST:
            trial.ends_at = 0.0

    def _tune_breaks(self, running: list[SimulatedTrial]) -> None:
        outside, before = self._outside, len(self._cells.told)
        if running and outside.take("Tune breaks"):
            self._broke = before, [trial.trial_id for trial in running], FailureKind.CLUSTER_ERROR
            raise RuntimeError("Tune lost its head")
        known = [trial.trial_id for trial in running if trial.fault != "worker says nothing"]
        if known and outside.take("Tune runs out of memory"):
            self._hit = {outside.random.choice(known)}
            self._broke = before, sorted(self._hit), FailureKind.OUT_OF_MEMORY
            raise RuntimeError("Tune met what it does not know") from OutOfMemoryError("memory pressure")

    def _given(self, config: dict[str, Any]) -> SimulatedTrial:
        fault = self._outside.take("worker says nothing")
        if fault is not None:
            self._outside.note(f"  hits {config['cell']['trial_id']}")
        return SimulatedTrial(config, fault.kind if fault else "")

    def _place(self, trials: Any, iteration: int, running: list[SimulatedTrial]) -> None:
        """Start the trial that waits for a place, if there is one."""
        waiting = next((trial for trial in running if not trial.node), None)
        taken = Counter(trial.node for trial in running)
        free = [node for node in self._nodes if taken[node] < SLOTS]
        if waiting is None or not free:
            return
        waiting.heard_at = now = self._outside.scheduler.now
        waiting.ends_at = now + self._seconds * (0.5 + self._outside.random.random())
        waiting.node, waiting.status = self._outside.random.choice(free), "RUNNING"
        if waiting.fault != "worker says nothing":
            self._cells.begins(waiting.trial_id)
            self._said.append(Place(waiting.trial_id, f"actor of {waiting.trial_id}", waiting.node))
        trials.on_trial_start(iteration, running, waiting)

    def _step(self, trials: Any, iteration: int, running: list[Any], trial: SimulatedTrial) -> bool:
        """Tell what a worker does now; returns whether its trial has ended."""
        now, told = self._outside.scheduler.now, self._cells.told
        if trial.killed or (trial.fault not in ("", *SILENT, "report doubled") and now >= trial.ends_at):
            return self._fails(trials, iteration, running, trial)
        if trial.fault in SILENT:
            return False
        trial.heard_at = now
        if now < trial.ends_at:
            self._said.append(EpochReport(trial.trial_id, EpochRecord(1 + int(now), 0.5, 0.5, 0.1), None))
            return False
        report = CellReport(
            started_at=now - self._seconds,
            finished_at=now,
            outcome=self._cells.outcome(trial.trial_id),
            data_fingerprint=self._cells.data,
            provenance=provenance(),
            node=trial.node,
        )
        trial.status, before = "TERMINATED", len(told)
        for _ in range(2 if trial.fault == "report doubled" else 1):
            trials.on_trial_result(iteration, running, trial, {REPORT: report.model_dump_json()})
        trials.on_trial_complete(iteration, running, trial)
        self._must(len(told) == before, f"{trial.trial_id} has a result and was told as failed")
        return True

    def _fails(self, trials: Any, iteration: int, running: list[Any], trial: SimulatedTrial) -> bool:
        """Tell that a worker failed; the sweep must store that, and tell it once with its kind."""
        self._must(trial.fault in KINDS, f"{trial.trial_id} works and was killed")
        trial.status, told = "ERROR", self._cells.told
        kind, name = KINDS[trial.fault], trial.trial_id
        silent_s = self._outside.scheduler.now - trial.heard_at
        before, calls, known = len(told), self._outside.num_written, self._failed[name]
        lost = trial.fault == "report lost"
        (trials.on_trial_complete if lost else trials.on_trial_error)(iteration, running, trial)
        new = [(told_name, told_kind) for told_name, told_kind, _ in told[before:]]
        self._must(new == [(name, kind)], f"{trial.fault} of {name} was told as {new}")
        self._must(self._outside.num_written > calls, f"{trial.fault} of {name} was not stored")
        # A driver that waits for storage looks at no worker.
        most_s = LONGEST_SILENCE_S.get(trial.fault, math.inf) + self._outside.paused_s
        self._must(silent_s < most_s, f"{trial.fault} of {name} was noticed after {silent_s:.0f} s")
        given_up = "given up" in told[-1][2]
        again = RETRIES[kind] != 0
        self._must(known > 0 or given_up is not again, f"{name}, which {trial.fault}: {told[-1][2]}")
        self._failed[name] += 1
        return True

    @staticmethod
    def _must(holds: bool, why: str) -> None:
        if not holds:
            raise Violation(why)

    def failure_of(self, trial: SimulatedTrial, place: Place | None) -> CellReport | TrialFailure:
        kind = (TOLD | LOST).get(trial.fault, FailureKind.WORKER_CRASH)
        gpu = f"GPU-{trial.node[-1]} of node {trial.node}: " if trial.fault == "device fails" else ""
        failure = TrialFailure(kind=kind, message=f"{gpu}{trial.fault} on {trial.node}")
        now = self._outside.scheduler.now
        report = CellReport(started_at=now, finished_at=now, outcome=failure, node=trial.node)
        return report if trial.fault in TOLD else failure

    def process(self, trial: SimulatedTrial) -> Callable[[], object] | None:
        return partial(setattr, trial, "killed", True) if trial.node else None

    def show(self, monitor: Any, requests: Any) -> None:
        pass

    def count_failure(self, kind: FailureKind) -> None:
        pass

    def fit_nodes(self, failure: TrialFailure) -> set[str]:
        return set(self._nodes)

    def killed_for_memory(self, places: Mapping[str, Place]) -> Collection[str]:
        return self._hit & places.keys()

    def why_nothing_starts(self) -> str:
        return "nothing is free"

    def node_memory_bytes(self) -> float:
        return math.inf

    def is_up(self) -> bool:
        if self._process.dead:
            raise Killed
        return True
