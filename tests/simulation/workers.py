"""Simulated Ray and Tune for :class:`orchestrator.running.trials.TrialLoop`: nodes and workers fail."""

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
from orchestrator.running.workers.worker import REPORT
from tasks.trials.records import SearchResult, TrialResult
from tests.simulation.outside import Outside
from tests.simulation.scheduler import Killed, Process, Violation
from tests.unit.orchestrator.results.examples import trial_result

LONGEST_SILENCE_S = {"trial hangs": 2000.0, "worker says nothing": 120.0}
"""Seconds after which a silent trial must count as failed. A trial that hangs: 20 times a measured
trial, which takes 90 s at most here. A worker that says nothing: one minute, and a reserve."""
SLOTS = 2
"""Trials that run at the same time on one node."""
NODE_RETURNS_S = 100.0
HISTORY = trial_result().history
"""Epochs that a worker reports."""
REPORTED = {
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
KINDS = {**REPORTED, **LOST, **SILENT, "report lost": FailureKind.WORKER_CRASH}


class ExpectedRetries(NamedTuple):
    """The retries of a trial that fails alone.

    Attributes:
        fewest: Smallest number of retries.
        most: Largest number of retries.
        first_pause_s: Seconds before the first retry; each further pause is twice as long.
        max_pause_s: Seconds of the longest pause.
    """

    fewest: float
    most: float
    first_pause_s: float = 1.0
    max_pause_s: float = 60.0


TRIED_AGAIN = {
    FailureKind.LOST_NODE: ExpectedRetries(math.inf, math.inf),
    FailureKind.CLUSTER_ERROR: ExpectedRetries(5, 5),
    FailureKind.WORKER_CRASH: ExpectedRetries(2, 2),
    FailureKind.OUT_OF_MEMORY: ExpectedRetries(2, 7),  # until nothing more can be had
    FailureKind.DEVICE_ERROR: ExpectedRetries(3, 3),
    FailureKind.HUNG: ExpectedRetries(1, 1),
    FailureKind.OTHER_CODE: ExpectedRetries(3, 3),
    FailureKind.SETUP: ExpectedRetries(3, 3),
    FailureKind.CODE_ERROR: ExpectedRetries(0, 0),
    FailureKind.BAD_DATA: ExpectedRetries(0, 0),
    FailureKind.BAD_CONFIG: ExpectedRetries(0, 0),
    FailureKind.DISK_FULL: ExpectedRetries(0, 0),
}
"""Retries that docs/failures.md promises, by the kind of failure. The simulation compares the sweep
with this table, so a kind with a pause of its own needs the pause here as well."""
MOST_DEATHS = 20
"""Failures after which a trial is given up, whatever their kind."""
BREAKS_IN_A_ROW = 5
"""Failures of Tune in a row that a sweep survives."""
UNFIT_IN_A_ROW = 4
"""Failures in a row for other source code after which a node gets no trial."""
AGAIN = ("worker dies", "memory kill", "device fails", "trial hangs")
"""Faults that a trial may have at every attempt."""


@dataclass
class SimulatedTrial:
    """A trial of Tune.

    Attributes:
        config: The assignment of its worker.
        fault: The fault that hits the trial, or an empty text.
        node: Address of the node on which it runs; empty while it waits for a place.
        heard_at: Virtual second of the worker's last message.
        ends_at: Virtual second at which the worker ends, well or with the fault.
        status: Status in Tune.
        killed: Whether the driver killed the worker.
        num_epochs: Epochs that the worker has reported.
        lasts_s: Seconds of the trial; 0 for the usual time.
    """

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
    """The arrays of a sweep's trials. No array is passed to simulated workers.

    Attributes:
        held: Trials that need their array.
        ended: How often each trial ended for good.
    """

    def __init__(self) -> None:
        self.held = set[str]()
        self.ended = Counter[str]()

    def add_trial(self, trial: str, key: str) -> None:
        self.held.add(trial)

    def remove_trial(self, trial: str, key: str, *, for_good: bool) -> None:
        self.held.discard(trial)
        self.ended[trial] += for_good

    def check_actor(self) -> None:
        pass

    def close(self) -> None:
        pass


class ReportedFailure(NamedTuple):
    """A failure as the sweep reported it to its monitor."""

    trial_id: str
    kind: str
    gave_up: bool
    message: str


@dataclass
class ExecutedTrials:
    """The functions by which a world follows the trials that are executed.

    Attributes:
        data: Fingerprint of the images.
        outcome: Returns the result of an undisturbed trial.
        on_trial_begins: Called with every trial that a worker begins.
        reported_failures: Failures that the sweep reported so far.
        on_step: Called now and then with the trials that run.
        on_no_trial: Called when the sweep starts no trial.
    """

    data: str
    outcome: Callable[[str], TrialResult | SearchResult]
    on_trial_begins: Callable[[str], None]
    reported_failures: list[ReportedFailure]
    on_step: Callable[[set[str]], None]
    on_no_trial: Callable[[], None]


def _location(trial: SimulatedTrial) -> WorkerLocation:
    """Return where a trial runs: on the one GPU of its node."""
    return WorkerLocation(trial.trial_id, f"actor of {trial.trial_id}", trial.node, gpus="0")


class SimulatedBackend:
    """A backend of a trial loop whose nodes and workers fail.

    Args:
        outside: The surroundings with the schedule's faults.
        process: The driver.
        seconds: Average seconds of a trial.
        trials: The functions by which the world follows the trials.

    See :class:`orchestrator.running.backend.Backend`.
    """

    def __init__(
        self, outside: Outside, process: Process, seconds: float, trials: ExecutedTrials
    ) -> None:
        self._outside = outside
        self._process = process
        self._seconds = seconds
        self._trials = trials
        self._failed = defaultdict[str, list[FailureKind]](list)
        # The last request of each trial, and how often its own use of memory had killed it then.
        self._requests: dict[str, tuple[tuple[float, ...], int]] = {}
        self._next_faults: dict[str, list[str]] = {}
        # How often each trial ran out of memory by its own use, and by the use of others.
        self._own_memory = Counter[str]()
        self._others_memory = Counter[str]()
        self._breaks = 0
        self._unfit = Counter[str]()
        self._failed_by_gpu = defaultdict[tuple[FailureKind, str], set[str]](set)
        self._num_refused = outside.num_refused
        self._up = True
        self._num_nodes = 0
        self._nodes: dict[str, float] = {}
        self._nodes_return_at: list[float] = []
        self.arrays = Arrays()
        self._messages: list[Any] = []
        # Failures reported before Tune broke, the trials that must fail with it, and their kind.
        self._interruption: tuple[int, list[str], FailureKind] | None = None
        self._killed_ids: set[str] = set()
        self._add_node()
        self._add_node()

    def poll(self, *, wait: bool = False) -> list[Any]:
        messages = self._messages
        self._messages = []
        return messages

    def fit(self, trials: Any, feed: Any) -> None:
        """Run trials as Tune does: start one while a node is free, and report each one's end."""
        outside = self._outside
        running: list[SimulatedTrial] = []
        iteration = 0
        finished = False
        self.check_broken()
        self._require(not self._process.over, f"the sweep goes on: {self._process.over}")
        while running or not finished:
            iteration += 1
            outside.call(self._process)
            if outside.take("user stops"):
                self._process.asked_to_stop = True
                raise KeyboardInterrupt
            self._change_nodes(running)
            self._tune_breaks([trial for trial in running if trial.node])
            if iteration % 2 and not self._is_over():
                self._trials.on_step({trial.trial_id for trial in running if trial.node})
            trials.on_step_begin(iteration, running)
            self._require(not self._is_over(), f"the sweep goes on: {self._process.over}")
            while not finished and all(trial.node for trial in running):
                config = feed.suggest(f"t{iteration}-{len(running)}")
                if config is None:
                    self._trials.on_no_trial()
                    break
                finished = config == Searcher.FINISHED
                if not finished:
                    running.append(self._start_trial(config))
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
        """Check at the end that every trial has ended once, and that no array is held."""
        self.check_broken()
        held = self.arrays.held
        ended = self.arrays.ended
        trial_ids = [*self._requests]
        self._require(not held, f"arrays are held for {held}, which have ended")
        self._require(ended == Counter(trial_ids), f"of {trial_ids} have ended: {ended}")

    def check_broken(self) -> None:
        """Check that exactly the trials that ran when Tune broke were reported as failed."""
        if self._interruption is None:
            return
        num_before, trial_ids, kind = self._interruption
        self._interruption = None
        failures = self._trials.reported_failures[num_before:]
        reported = sorted((failure.trial_id, failure.kind) for failure in failures)
        expected = sorted((trial_id, kind) for trial_id in trial_ids)
        is_correct = reported == expected or self._is_over()
        self._require(is_correct, f"Tune broke under {expected}, and told were {reported}")
        for failure in self._trials.reported_failures[num_before:]:
            self._check_retries(failure.trial_id, kind, failure)

    def _add_node(self) -> None:
        self._num_nodes += 1
        self._nodes[f"10.0.0.{self._num_nodes}"] = 0.0

    def _change_nodes(self, running: list[SimulatedTrial]) -> None:
        """Add nodes that return, remove lost nodes, and let due faults hit running trials."""
        outside = self._outside
        for return_at in list(self._nodes_return_at):
            if return_at <= outside.scheduler.now:
                self._nodes_return_at.remove(return_at)
                self._add_node()
        if self._nodes and (fault := outside.take("node lost")):
            lost_node = outside.random.choice(sorted(self._nodes))
            del self._nodes[lost_node]
            self._nodes_return_at.append(outside.scheduler.now + fault.amount * NODE_RETURNS_S)
            for trial in running:
                if trial.node == lost_node and trial.fault not in SILENT:
                    self._hit(trial, "node lost")
        healthy_trials = [trial for trial in running if trial.node and not trial.fault]
        if not healthy_trials:
            return
        fault = outside.take(*REPORTED, *LOST, "trial hangs", "report lost", "report doubled")
        if fault:
            self._hit(outside.random.choice(healthy_trials), fault.kind)

    def _hit(self, trial: SimulatedTrial, fault: str) -> None:
        self._outside.note(f"  {fault}: {trial.trial_id}")
        trial.fault = fault
        if fault in LOST:
            trial.ends_at = 0.0

    def _tune_breaks(self, running: list[SimulatedTrial]) -> None:
        """Raise the error of a due fault that breaks Tune while these trials run."""
        outside = self._outside
        num_before = len(self._trials.reported_failures)
        if running and (fault := outside.take("Tune breaks", "head lost")):
            running_ids = [trial.trial_id for trial in running]
            self._interruption = num_before, running_ids, FailureKind.CLUSTER_ERROR
            self._breaks += 1
            if fault.kind == "head lost" or self._breaks > BREAKS_IN_A_ROW:
                self._process.over.add("Ray Tune cannot run trials")
            self._up = fault.kind != "head lost"
            raise RuntimeError("Tune lost its head")
        answering_ids = [
            trial.trial_id for trial in running if trial.fault != "worker says nothing"
        ]
        if answering_ids and outside.take("Tune runs out of memory"):
            self._killed_ids = {outside.random.choice(answering_ids)}
            self._interruption = num_before, sorted(self._killed_ids), FailureKind.OUT_OF_MEMORY
            self._breaks += 1
            raise RuntimeError("Tune met what it does not know") from OutOfMemoryError(
                "memory pressure"
            )

    def _start_trial(self, config: dict[str, Any]) -> SimulatedTrial:
        """Create a trial. After an attempt that ran out of memory its request must be larger."""
        outside = self._outside
        trial = SimulatedTrial(config)
        trial_id = trial.trial_id
        failures = self._failed[trial_id]
        resources = config[ASSIGNMENT].resources
        self._require(not self._is_over(), f"{trial_id} is given out: {self._process.over}")
        request = (
            resources.num_gpus,
            resources.fast == "off",
            -float(resources.micro_batch or math.inf),
        )
        num_own_kills = self._own_memory[trial_id]
        earlier_request, num_known = self._requests.get(trial_id, (request, num_own_kills))
        needs_more = bool(request[0]) and num_own_kills > num_known
        self._require(
            request > earlier_request or not needs_more,
            f"{trial_id} asks for {request} after {earlier_request}, and {failures}",
        )
        self._requests[trial_id] = request, num_own_kills
        if fault := outside.take("a trial finds no memory"):
            self._next_faults[trial_id] = ["others take all memory"] * int(fault.amount)
        if fault := outside.take("a trial fails again"):
            kind = AGAIN[int(fault.amount * len(AGAIN))]
            num_attempts = 1 + int(fault.amount * 100) % 9
            self._next_faults[trial_id] = [kind] * num_attempts
        if self._next_faults.get(trial_id):
            trial.fault = self._next_faults[trial_id].pop()
        elif fault := outside.take("worker says nothing"):
            trial.fault = fault.kind
        elif outside.take("a trial is slow"):
            trial.lasts_s = 2 * LONGEST_SILENCE_S["trial hangs"]
        if trial.fault:
            outside.note(f"  {trial.fault} hits {trial_id}")
        return trial

    def _place(self, trials: Any, iteration: int, running: list[SimulatedTrial]) -> None:
        """Start the trial that waits for a place, if there is one."""
        waiting = next((trial for trial in running if not trial.node), None)
        taken = Counter(trial.node for trial in running)
        free = [node for node in self._nodes if taken[node] < SLOTS]
        if waiting is None or not free:
            return
        lasts_s = waiting.lasts_s
        if not lasts_s:
            lasts_s = self._seconds * (0.5 + self._outside.random.random())
        waiting.heard_at = self._outside.scheduler.now
        waiting.ends_at = self._outside.scheduler.now + lasts_s
        waiting.node = self._outside.random.choice(free)
        waiting.status = "RUNNING"
        if waiting.fault != "worker says nothing":
            self._trials.on_trial_begins(waiting.trial_id)
            self._messages.append(_location(waiting))
        trials.on_trial_start(iteration, running, waiting)

    def _step(self, trials: Any, iteration: int, running: list[Any], trial: SimulatedTrial) -> bool:
        """Take the next step of a worker. Return whether its trial has ended."""
        now = self._outside.scheduler.now
        reported_failures = self._trials.reported_failures
        fails = trial.fault not in ("", *SILENT, "report doubled")
        if trial.killed or (fails and now >= trial.ends_at):
            return self._fail_trial(trials, iteration, running, trial)
        if trial.fault in SILENT:
            return False
        trial.heard_at = now
        if now < trial.ends_at:
            # The second epoch is reported in the last quarter of the trial's average time.
            num_epochs = 1 + (now > trial.ends_at - self._seconds / 4)
            due_epochs = HISTORY[:num_epochs]
            for epoch in due_epochs[trial.num_epochs :]:
                self._messages.append(EpochReport(trial.trial_id, epoch, None))
            self._messages.append(_location(trial))
            trial.num_epochs = len(due_epochs)
            return False
        self._breaks = 0
        self._unfit[trial.node] = 0
        report = TrialReport(
            started_at=now - self._seconds,
            finished_at=now,
            outcome=self._trials.outcome(trial.trial_id),
            data_fingerprint=self._trials.data,
            provenance=provenance(),
            node=trial.node,
        )
        trial.status = "TERMINATED"
        num_before = len(reported_failures)
        num_reports = 2 if trial.fault == "report doubled" else 1
        for _ in range(num_reports):
            trials.on_trial_result(iteration, running, trial, {REPORT: report.model_dump_json()})
        trials.on_trial_complete(iteration, running, trial)
        self._require(
            len(reported_failures) == num_before,
            f"{trial.trial_id} has a result and was told as failed",
        )
        return True

    def _fail_trial(
        self, trials: Any, iteration: int, running: list[Any], trial: SimulatedTrial
    ) -> bool:
        """Let a trial fail. The sweep must store the failure, and report it once with its kind."""
        trial_id = trial.trial_id
        self._require(trial.fault in KINDS, f"{trial_id} works and was killed")
        trial.status = "ERROR"
        kind = KINDS[trial.fault]
        self._others_memory[trial_id] += trial.fault == "others take all memory"
        silent_s = self._outside.scheduler.now - trial.heard_at
        reported_failures = self._trials.reported_failures
        num_before = len(reported_failures)
        num_written = self._outside.num_written
        if trial.fault == "report lost":
            trials.on_trial_complete(iteration, running, trial)
        else:
            trials.on_trial_error(iteration, running, trial)
        if self._is_over():
            return True
        new_failures = [
            (failure.trial_id, failure.kind) for failure in reported_failures[num_before:]
        ]
        is_correct = new_failures == [(trial_id, kind)]
        self._require(is_correct, f"{trial.fault} of {trial_id} was told as {new_failures}")
        is_stored = self._outside.num_written > num_written
        self._require(is_stored, f"{trial.fault} of {trial_id} was not stored")
        # A driver that waits for storage checks no worker.
        max_silence_s = LONGEST_SILENCE_S.get(trial.fault, math.inf) + self._outside.paused_s
        self._require(
            silent_s < max_silence_s,
            f"{trial.fault} of {trial_id} was noticed after {silent_s:.0f} s",
        )
        self._check_retries(trial_id, kind, reported_failures[-1], trial.node)
        return True

    def _check_retries(
        self, trial_id: str, kind: FailureKind, reported_failure: ReportedFailure, node: str = ""
    ) -> None:
        """Check that the sweep retries a failed trial as often as it should, and not more often."""
        own_failures = self._failed[trial_id]
        own_failures.append(kind)
        fewest = TRIED_AGAIN[kind].fewest
        most = TRIED_AGAIN[kind].most
        is_of_memory = kind == FailureKind.OUT_OF_MEMORY
        num_memory_kills = own_failures.count(FailureKind.OUT_OF_MEMORY)
        self._own_memory[trial_id] = num_memory_kills - self._others_memory[trial_id]
        if is_of_memory and not self._own_memory[trial_id]:
            # Other processes took the memory, so a larger request of this trial would not help.
            fewest = most = MOST_DEATHS - 1
        if kind in (FailureKind.DEVICE_ERROR, FailureKind.HUNG):
            self._failed_by_gpu[kind, node].add(trial_id)
        if len(self._failed_by_gpu[kind, node]) > 1:
            fewest = most = MOST_DEATHS - 1
        elif kind in (FailureKind.WORKER_CRASH, FailureKind.OUT_OF_MEMORY):
            # If other trials die too, each trial gets one more attempt for two of their deaths.
            num_more = self._num_deaths_of_others(trial_id) // 2
            most += num_more
            if not is_of_memory:
                fewest += num_more
        given_up = reported_failure.gave_up
        times = own_failures.count(kind)
        if times <= min(fewest, MOST_DEATHS - 1):
            is_correct = not given_up
        else:
            is_correct = given_up or times <= most
        self._require(
            is_correct,
            f"{trial_id}, of which {kind} is the failure no. {times}: {reported_failure.message}",
        )
        if kind == FailureKind.OTHER_CODE:
            self._unfit[node] += 1
            all_unfit = all(self._unfit[address] >= UNFIT_IN_A_ROW for address in self._nodes)
            if self._nodes and all_unfit:
                self._process.over.add("No node has the same source code as the driver")

    def _num_deaths_of_others(self, trial_id: str) -> int:
        """Return how often other trials' processes ended without a report."""
        num_deaths = 0
        for other_id, kinds in self._failed.items():
            if other_id != trial_id:
                num_deaths += sum(kind not in REPORTED.values() for kind in kinds)
        return num_deaths

    @staticmethod
    def _require(holds: bool, problem: str) -> None:
        if not holds:
            raise Violation(problem)

    def outcome_of(
        self, trial: SimulatedTrial, location: WorkerLocation | None
    ) -> TrialReport | TrialFailure:
        kind = (REPORTED | LOST).get(trial.fault, FailureKind.WORKER_CRASH)
        facts: dict[str, Any] = {}
        if trial.fault == "device fails":
            facts = {"gpu": f"GPU-{trial.node[-1]} of node {trial.node}", "device_lost": True}
        if trial.fault == "others take all memory":
            facts = {"memory": "machine", "held_by_others": 0.9}
        message = f"{trial.fault} on {trial.node}"
        failure = TrialFailure(kind=kind, message=message, **facts)
        now = self._outside.scheduler.now
        report = TrialReport(started_at=now, finished_at=now, outcome=failure, node=trial.node)
        return report if trial.fault in REPORTED else failure

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
        return self._killed_ids & locations.keys()

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
