"""Ray and Tune as :class:`orchestrator.running.trials.TrialLoop` meets them: nodes and workers that
fail."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from ray.exceptions import OutOfMemoryError
from ray.tune.search import Searcher

from orchestrator.results.provenance import provenance
from orchestrator.results.records import FailureKind, TrialFailure
from orchestrator.running.messages import EpochReport, TrialReport, WorkerLocation
from orchestrator.running.queue import ASSIGNMENT, trial_id_of
from orchestrator.running.worker import REPORT
from tasks.trials.records import SearchResult, TrialResult
from tests.simulation.outside import Outside
from tests.simulation.scheduler import Killed, Process, Violation
from tests.unit.orchestrator.results.examples import trial_result

LONGEST_SILENCE_S = {"trial hangs": 2000.0, "worker says nothing": 120.0}
"""Twenty times what a trial took that was measured, 90 s at most here; and a minute."""
SLOTS = 2
"""Of each node."""
NODE_RETURNS_S = 100.0
HISTORY = trial_result().history
"""What a worker tells of its epochs."""
TOLD = {
    "device fails": FailureKind.DEVICE_ERROR,
    "other code": FailureKind.OTHER_CODE,
    "network error": FailureKind.CODE_ERROR,
    "setup fails": FailureKind.SETUP,
    "data are bad": FailureKind.BAD_DATA,
    "a recipe is bad": FailureKind.BAD_CONFIG,
    "a worker's disk is full": FailureKind.DISK_FULL,
}
LOST = {
    "worker dies": FailureKind.WORKER_CRASH,
    "node lost": FailureKind.LOST_NODE,
    "memory kill": FailureKind.OUT_OF_MEMORY,
    "others take all memory": FailureKind.OUT_OF_MEMORY,
}
SILENT = {"trial hangs": FailureKind.HUNG, "worker says nothing": FailureKind.WORKER_CRASH}
KINDS = {**TOLD, **LOST, **SILENT, "report lost": FailureKind.WORKER_CRASH}
TRIED_AGAIN = {
    FailureKind.LOST_NODE: (math.inf, math.inf),
    FailureKind.CLUSTER_ERROR: (5, 5),
    FailureKind.WORKER_CRASH: (2, 2),
    FailureKind.OUT_OF_MEMORY: (2, 7),  # until nothing more can be had
    FailureKind.DEVICE_ERROR: (3, 3),
    FailureKind.HUNG: (1, 1),
    FailureKind.OTHER_CODE: (3, 3),
    FailureKind.SETUP: (3, 3),
    FailureKind.CODE_ERROR: (0, 0),
    FailureKind.BAD_DATA: (0, 0),
    FailureKind.BAD_CONFIG: (0, 0),
    FailureKind.DISK_FULL: (0, 0),
}
"""How often a trial that fails alone is tried again, at least and at most; see docs/failures.md."""
MOST_DEATHS, BREAKS_IN_A_ROW, UNFIT_IN_A_ROW = 20, 5, 4
"""Of a trial, of Tune, and of trials on each node, that a sweep bears."""
AGAIN = ("worker dies", "memory kill", "device fails", "trial hangs")
"""What a trial may do at each attempt."""


@dataclass
class SimulatedTrial:
    """A trial of Tune: what is asked of its worker, when that answers, and what goes wrong with
    it."""

    config: dict[str, Any]
    fault: str = ""
    node: str = ""
    heard_at: float = 0.0
    ends_at: float = 0.0
    status: str = "PENDING"
    killed: bool = False
    num_epochs: int = 0
    lasts_s: float = 0.0

    @property
    def trial_id(self) -> str:
        return trial_id_of(self)


class Arrays:
    """Nothing is passed to simulated workers; who needs it is known.

    Attributes:
        held: Trials that run, for all that was told.
        ended: How often each trial ended for good.
    """

    def __init__(self) -> None:
        self.held, self.ended = set[str](), Counter[str]()

    def add_trial(self, trial: str, key: str) -> None:
        self.held.add(trial)

    def remove_trial(self, trial: str, key: str, *, for_good: bool) -> None:
        self.held.discard(trial)
        self.ended[trial] += for_good

    def check_actor(self) -> None:
        pass

    def close(self) -> None:
        pass


class ToldFailure(NamedTuple):
    """A failure that the sweep told: of which trial, of which kind, and whether it is given up."""

    trial_id: str
    kind: str
    gave_up: bool
    message: str


@dataclass
class ExecutedTrials:
    """What a world knows of the trials that are executed.

    Attributes:
        data: Fingerprint of the images.
        outcome: What a trial gives undisturbed.
        begins: Is told of every trial that a worker begins.
        told: Failures that the sweep told so far, each with its kind and what follows.
        at_rest: Is told which trials run, now and then.
        idle: Is told that no trial is given out now.
    """

    data: str
    outcome: Callable[[str], TrialResult | SearchResult]
    begins: Callable[[str], None]
    told: list[ToldFailure]
    at_rest: Callable[[set[str]], None]
    idle: Callable[[], None]


def _location(trial: SimulatedTrial) -> WorkerLocation:
    """Return where a trial runs: on the one GPU of its node."""
    return WorkerLocation(trial.trial_id, f"actor of {trial.trial_id}", trial.node, gpus="0")


class SimulatedBackend:
    """See :class:`orchestrator.running.backend.Backend`; a trial takes ``seconds``, about."""

    def __init__(
        self, outside: Outside, process: Process, seconds: float, trials: ExecutedTrials
    ) -> None:
        self._outside, self._process, self._seconds, self._trials = (
            outside,
            process,
            seconds,
            trials,
        )
        self._failed, self._num_nodes = defaultdict[str, list[FailureKind]](list), 0
        self._asked: dict[str, tuple[tuple[float, float], int]] = {}
        self._again: dict[str, list[str]] = {}
        self._own_memory, self._others_memory = Counter[str](), Counter[str]()
        self._breaks, self._unfit, self._of_gpus = (
            0,
            Counter[str](),
            defaultdict[tuple[FailureKind, str], set[str]](set),
        )
        self._num_refused, self._up = outside.num_refused, True
        self._nodes: dict[str, float] = {}
        self._gone_until: list[float] = []
        self.arrays, self._said = Arrays(), list[Any]()
        self._broke: tuple[int, list[str], FailureKind] | None = None
        self._hit: set[str] = set()
        self._node_added()
        self._node_added()

    def poll(self, *, wait: bool = False) -> list[Any]:
        said, self._said = self._said, []
        return said

    def fit(self, trials: Any, feed: Any) -> None:
        """Do as Tune does: take trials while there is room, and tell what becomes of each."""
        outside, running, iteration = self._outside, list[SimulatedTrial](), 0
        finished = False
        self.check_broken()
        self._must(not self._process.over, f"the sweep goes on: {self._process.over}")
        while running or not finished:
            iteration += 1
            outside.call(self._process)
            if outside.take("user stops"):
                self._process.asked_to_stop = True
                raise KeyboardInterrupt
            self._nodes_go_and_come(running)
            self._tune_breaks([trial for trial in running if trial.node])
            if iteration % 2 and not self._is_over():
                self._trials.at_rest({trial.trial_id for trial in running if trial.node})
            trials.on_step_begin(iteration, running)
            self._must(not self._is_over(), f"the sweep goes on: {self._process.over}")
            while not finished and all(trial.node for trial in running):
                found = feed.suggest(f"t{iteration}-{len(running)}")
                if found is None:
                    self._trials.idle()
                    break
                finished = found == Searcher.FINISHED
                running += [] if finished else [self._given(found)]
                self._place(trials, iteration, running)
            self._place(trials, iteration, running)
            for trial in list(running):
                if trial.node and self._step(trials, iteration, running, trial):
                    running.remove(trial)
            outside.scheduler.wait(None, self._seconds / 8 * (1.0 + outside.random.random()))

    def _is_over(self) -> bool:
        if self._outside.num_refused > self._num_refused:
            self._process.over.add("The simulated result store permits no write")
        return bool(self._process.over)

    def check(self) -> None:
        """See, when all is done, that every trial has ended once, and no array is held."""
        self.check_broken()
        ended = self.arrays.ended
        self._must(
            not self.arrays.held, f"arrays are held for {self.arrays.held}, which have ended"
        )
        self._must(ended == Counter([*self._asked]), f"of {[*self._asked]} have ended: {ended}")

    def check_broken(self) -> None:
        """See that whatever ran when Tune broke was told as failed, and nothing else."""
        if self._broke is not None:
            before, names, kind = self._broke
            self._broke = None
            told = sorted((told.trial_id, told.kind) for told in self._trials.told[before:])
            expected = sorted((name, kind) for name in names)
            right = told == expected or self._is_over()
            self._must(right, f"Tune broke under {expected}, and told were {told}")
            for failure in self._trials.told[before:]:
                self._judge(failure.trial_id, kind, failure)

    def _node_added(self) -> None:
        self._num_nodes += 1
        self._nodes[f"10.0.0.{self._num_nodes}"] = 0.0

    def _nodes_go_and_come(self, running: list[SimulatedTrial]) -> None:
        outside = self._outside
        for until in [until for until in self._gone_until if until <= outside.scheduler.now]:
            self._gone_until.remove(until)
            self._node_added()
        if self._nodes and (fault := outside.take("node lost")):
            lost = outside.random.choice(sorted(self._nodes))
            del self._nodes[lost]
            self._gone_until.append(outside.scheduler.now + fault.amount * NODE_RETURNS_S)
            for trial in running:
                if trial.node == lost and trial.fault not in SILENT:
                    self._hits(trial, "node lost")
        able = [trial for trial in running if trial.node and not trial.fault]
        if able and (
            fault := outside.take(*TOLD, *LOST, "trial hangs", "report lost", "report doubled")
        ):
            self._hits(outside.random.choice(able), fault.kind)

    def _hits(self, trial: SimulatedTrial, fault: str) -> None:
        self._outside.note(f"  {fault}: {trial.trial_id}")
        trial.fault = fault
        if fault in LOST:
            trial.ends_at = 0.0

    def _tune_breaks(self, running: list[SimulatedTrial]) -> None:
        outside, before = self._outside, len(self._trials.told)
        if running and (fault := outside.take("Tune breaks", "head lost")):
            self._broke = before, [trial.trial_id for trial in running], FailureKind.CLUSTER_ERROR
            self._breaks += 1
            if fault.kind == "head lost" or self._breaks > BREAKS_IN_A_ROW:
                self._process.over.add("Ray Tune cannot run trials")
            self._up = fault.kind != "head lost"
            raise RuntimeError("Tune lost its head")
        known = [trial.trial_id for trial in running if trial.fault != "worker says nothing"]
        if known and outside.take("Tune runs out of memory"):
            self._hit = {outside.random.choice(known)}
            self._broke = before, sorted(self._hit), FailureKind.OUT_OF_MEMORY
            self._breaks += 1
            raise RuntimeError("Tune met what it does not know") from OutOfMemoryError(
                "memory pressure"
            )

    def _given(self, config: dict[str, Any]) -> SimulatedTrial:
        """Start a trial; after an attempt that ran out of memory, the next must ask for more."""
        trial, outside = SimulatedTrial(config), self._outside
        name, failed = trial.trial_id, self._failed[trial.trial_id]
        resources = config[ASSIGNMENT].resources
        self._must(not self._is_over(), f"{name} is given out: {self._process.over}")
        asks = (
            resources.num_gpus,
            resources.fast == "off",
            -float(resources.micro_batch or math.inf),
        )
        num_own = self._own_memory[name]
        before, known = self._asked.get(name, (asks, num_own))
        more = bool(asks[0]) and num_own > known
        self._must(
            asks > before or not more, f"{name} asks for {asks} after {before}, and {failed}"
        )
        self._asked[name] = asks, num_own
        if fault := outside.take("a trial finds no memory"):
            self._again[name] = ["others take all memory"] * int(fault.amount)
        if fault := outside.take("a trial fails again"):
            self._again[name] = [AGAIN[int(fault.amount * len(AGAIN))]] * (
                1 + int(fault.amount * 100) % 9
            )
        if self._again.get(name):
            trial.fault = self._again[name].pop()
        elif fault := outside.take("worker says nothing"):
            trial.fault = fault.kind
        elif outside.take("a trial is slow"):
            trial.lasts_s = 2 * LONGEST_SILENCE_S["trial hangs"]
        if trial.fault:
            outside.note(f"  {trial.fault} hits {name}")
        return trial

    def _place(self, trials: Any, iteration: int, running: list[SimulatedTrial]) -> None:
        """Start the trial that waits for a place, if there is one."""
        waiting = next((trial for trial in running if not trial.node), None)
        taken = Counter(trial.node for trial in running)
        free = [node for node in self._nodes if taken[node] < SLOTS]
        if waiting is None or not free:
            return
        waiting.heard_at = now = self._outside.scheduler.now
        waiting.ends_at = now + (
            waiting.lasts_s or self._seconds * (0.5 + self._outside.random.random())
        )
        waiting.node, waiting.status = self._outside.random.choice(free), "RUNNING"
        if waiting.fault != "worker says nothing":
            self._trials.begins(waiting.trial_id)
            self._said.append(_location(waiting))
        trials.on_trial_start(iteration, running, waiting)

    def _step(self, trials: Any, iteration: int, running: list[Any], trial: SimulatedTrial) -> bool:
        """Tell what a worker does now; returns whether its trial has ended."""
        now, told = self._outside.scheduler.now, self._trials.told
        if trial.killed or (
            trial.fault not in ("", *SILENT, "report doubled") and now >= trial.ends_at
        ):
            return self._fails(trials, iteration, running, trial)
        if trial.fault in SILENT:
            return False
        trial.heard_at = now
        if now < trial.ends_at:
            due = HISTORY[: 1 + (now > trial.ends_at - self._seconds / 4)]
            self._said += [
                EpochReport(trial.trial_id, epoch, None) for epoch in due[trial.num_epochs :]
            ]
            self._said.append(_location(trial))
            trial.num_epochs = len(due)
            return False
        self._breaks, self._unfit[trial.node] = 0, 0
        report = TrialReport(
            started_at=now - self._seconds,
            finished_at=now,
            outcome=self._trials.outcome(trial.trial_id),
            data_fingerprint=self._trials.data,
            provenance=provenance(),
            node=trial.node,
        )
        trial.status, before = "TERMINATED", len(told)
        for _ in range(2 if trial.fault == "report doubled" else 1):
            trials.on_trial_result(iteration, running, trial, {REPORT: report.model_dump_json()})
        trials.on_trial_complete(iteration, running, trial)
        self._must(len(told) == before, f"{trial.trial_id} has a result and was told as failed")
        return True

    def _fails(
        self, trials: Any, iteration: int, running: list[Any], trial: SimulatedTrial
    ) -> bool:
        """Tell that a worker failed; the sweep must store that, and tell it once with its kind."""
        self._must(trial.fault in KINDS, f"{trial.trial_id} works and was killed")
        trial.status, told = "ERROR", self._trials.told
        kind, name = KINDS[trial.fault], trial.trial_id
        self._others_memory[name] += trial.fault == "others take all memory"
        silent_s = self._outside.scheduler.now - trial.heard_at
        before, calls = len(told), self._outside.num_written
        lost = trial.fault == "report lost"
        (trials.on_trial_complete if lost else trials.on_trial_error)(iteration, running, trial)
        if self._is_over():
            return True
        new = [(failure.trial_id, failure.kind) for failure in told[before:]]
        self._must(new == [(name, kind)], f"{trial.fault} of {name} was told as {new}")
        self._must(self._outside.num_written > calls, f"{trial.fault} of {name} was not stored")
        # A driver that waits for storage looks at no worker.
        most_s = LONGEST_SILENCE_S.get(trial.fault, math.inf) + self._outside.paused_s
        self._must(silent_s < most_s, f"{trial.fault} of {name} was noticed after {silent_s:.0f} s")
        self._judge(name, kind, told[-1], trial.node)
        return True

    def _judge(self, name: str, kind: FailureKind, told: ToldFailure, node: str = "") -> None:
        """See that a trial that failed is tried again as often as it should be, and no oftener."""
        mine = self._failed[name]
        mine.append(kind)
        fewest, most = TRIED_AGAIN[kind]
        is_of_memory = kind == FailureKind.OUT_OF_MEMORY
        self._own_memory[name] = mine.count(FailureKind.OUT_OF_MEMORY) - self._others_memory[name]
        if is_of_memory and not self._own_memory[name]:  # nothing that the trial does would help
            fewest = most = MOST_DEATHS - 1
        if kind in (FailureKind.DEVICE_ERROR, FailureKind.HUNG):
            self._of_gpus[kind, node].add(name)
        if len(self._of_gpus[kind, node]) > 1:
            fewest = most = MOST_DEATHS - 1
        elif kind in (FailureKind.WORKER_CRASH, FailureKind.OUT_OF_MEMORY):
            died = [k for one, failed in self._failed.items() if one != name for k in failed]
            more = sum(k not in TOLD.values() for k in died) // 2  # where others die too
            most += more
            fewest += 0 if is_of_memory else more
        given_up, times = told.gave_up, mine.count(kind)
        right = not given_up if times <= min(fewest, MOST_DEATHS - 1) else given_up or times <= most
        self._must(right, f"{name}, of which {kind} is the failure no. {times}: {told.message}")
        if kind == FailureKind.OTHER_CODE:
            self._unfit[node] += 1
            if self._nodes and all(self._unfit[one] >= UNFIT_IN_A_ROW for one in self._nodes):
                self._process.over.add("No node has the same source code as the driver")

    @staticmethod
    def _must(holds: bool, why: str) -> None:
        if not holds:
            raise Violation(why)

    def outcome_of(
        self, trial: SimulatedTrial, location: WorkerLocation | None
    ) -> TrialReport | TrialFailure:
        kind = (TOLD | LOST).get(trial.fault, FailureKind.WORKER_CRASH)
        facts: dict[str, Any] = {}
        if trial.fault == "device fails":
            facts = {"gpu": f"GPU-{trial.node[-1]} of node {trial.node}", "device_lost": True}
        if trial.fault == "others take all memory":
            facts = {"memory": "machine", "held_by_others": 0.9}
        message = f"{trial.fault} on {trial.node}"
        failure = TrialFailure(kind=kind, message=message, **facts)
        now = self._outside.scheduler.now
        report = TrialReport(started_at=now, finished_at=now, outcome=failure, node=trial.node)
        return report if trial.fault in TOLD else failure

    def killer_of(self, trial: SimulatedTrial) -> Callable[[], object] | None:
        return partial(setattr, trial, "killed", True) if trial.node else None

    def publish(self, monitor: Any, requests: Any) -> None:
        pass

    def count_failure(self, kind: FailureKind) -> None:
        pass

    def eligible_nodes(self, failure: TrialFailure) -> set[str]:
        return set(self._nodes)

    def quarantine(self, location: WorkerLocation, seconds: float) -> None:
        pass

    def killed_for_memory(self, locations: Mapping[str, WorkerLocation]) -> Collection[str]:
        return self._hit & locations.keys()

    def shortage(self) -> str:
        return "nothing is free"

    def worker_cpu_seconds(self) -> dict[int, float]:
        return {}

    def node_memory_bytes(self) -> float:
        return math.inf

    def is_up(self) -> bool:
        if self._process.dead:
            raise Killed
        return self._up
