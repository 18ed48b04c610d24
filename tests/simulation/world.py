"""A sweep in a world of faults: drawn by a seed, driven to its end, and judged by what must hold then."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from orchestrator.planning.plan import SweepPlan, plan_sweep
from orchestrator.results.mlflow_pages import Page
from orchestrator.results.mlflow_runs import DUPLICATE_TAG, KEY_TAG, SweepRuns
from orchestrator.results.records import TrialRecord
from orchestrator.results.state import StoredResults, judge
from orchestrator.results.storage import Patience, StorageAway
from orchestrator.results.store import ResultStore
from orchestrator.results.tracking import Tracker
from orchestrator.running.cluster import Cluster, Resources
from orchestrator.running.locks import Lease
from orchestrator.running.progress import Progress
from orchestrator.running.trials import GridWork, Run, Trials
from search_spaces.errors import SetupError, SweepError
from search_spaces.sweeps import SweepSpec
from tests.simulation.outside import FAULTS, LASTING, Fault, Outside, SimulatedServer, SimulatedStorage
from tests.simulation.scheduler import Endless, Process, Scheduler, SimulatedClock, Task
from tests.simulation.workers import TOLD, SimulatedExecution, outcome

SWEEP = {
    "name": "simulated",
    "models": ["small_mlp", "small_cnn"],
    "datasets": [{"name": "manifold_d4"}],
    "train_sizes": [20, 40],
    "test_size": 40,
    "image_size": 16,
    "seeds": [0, 1],
    "recipe": "smoke",
}
MOST_FAULTS = 8
HORIZON = 400
"""Port calls of an undisturbed sweep, about: faults begin within these."""
MOST_DRIVERS = 40


class Violation(AssertionError):
    """Something that must always hold did not."""


@cache
def the_plan() -> SweepPlan:
    return plan_sweep(SweepSpec.model_validate(SWEEP))


def draw(seed: int) -> list[Fault]:
    """Return the faults of a seed, in order."""
    random = Random(seed)
    faults = []
    for _ in range(random.randint(0, MOST_FAULTS)):
        kind = random.choice(FAULTS)
        amount = random.expovariate(1 / 40) if kind in LASTING else random.random()
        faults.append(Fault(int(random.random() ** 1.5 * HORIZON), kind, amount))
    return sorted(faults)


@dataclass
class Workspace:
    """As much of :class:`orchestrator.planning.plan.Workspace` as judging needs."""

    plan: SweepPlan
    prepared: dict[str, Any] = field(default_factory=dict)


class World:
    """One schedule.

    Args:
        seed: Of delays and turns.
        faults: What goes wrong.
    """

    def __init__(self, seed: int, faults: Sequence[Fault]) -> None:
        random = Random(seed)
        self.scheduler = Scheduler(random)
        self.outside = Outside(self.scheduler, random, [*faults])
        self.begun, self.told = Counter[str](), list[tuple[str, str]]()
        self.holders: list[Process] = []
        self.plan = the_plan()

    def run(self) -> World:
        """Start drivers until one ends well after the last fault, and check what must hold then.

        Raises:
            Violation: naming what did not hold.
            Endless: where the sweep never ends.
        """
        for number in range(MOST_DRIVERS):
            quiet = not self.outside.faults and not self.outside.due
            ended = self._drive(f"driver {number}")
            if quiet and ended == "well":
                self._check_end()
                return self
            if quiet and ended == "badly":
                raise Violation("a driver without a fault did not end well")
            self.outside.due.clear()
            self.scheduler.now += self.outside.random.random() * 100
            if not self.outside.faults or number > MOST_DRIVERS // 2:
                self.outside.faults.clear()
                self.outside.lasting.clear()
        raise Endless(f"{MOST_DRIVERS} drivers did not end the sweep")

    def _drive(self, name: str) -> str:
        """Run a driver to its end; a second one may come in between. Says how it ended."""
        process = Process(name)
        main = Task(self.scheduler, process, lambda: self._driver(process, "root"), name)
        self.outside.note(f"{name} starts")
        self.scheduler.run(main)
        self.scheduler.bury(process)
        if process in self.holders:
            self.holders.remove(process)
        error = main.error
        self.outside.note(f"{name} ended: {'killed' if process.dead and error is None else repr(error)}")
        if error is None:
            return "well" if getattr(process, "finished", False) else "killed"
        if isinstance(error, (SweepError, KeyboardInterrupt, OSError)):
            return "badly"
        raise error

    def _driver(self, process: Process, root: str) -> None:
        """The stages of :func:`orchestrator.running.run.run_sweep`, in its order."""
        outside, clock = self.outside, SimulatedClock(self.scheduler, process)
        storage = SimulatedStorage(outside, process)
        say: Callable[[str], None] = lambda text: outside.note(f"{process.name} says: {text}")  # noqa: E731
        with Lease(storage, root, "isweep run", say, clock):
            self._holds(process)
            if (fault := outside.take("clock set")) is not None:
                clock.set_by = (fault.amount - 0.5) * 1e6
            stored = StoredResults.read(storage)
            stored.patience = Patience(say, clock=clock)
            workspace = Workspace(self.plan)
            state = judge(workspace, stored)
            store_id = stored.store.own_identity()
            server = SimulatedServer(outside, process)
            tracker = Tracker(lambda: SweepRuns(server, Page("simulated", ""), store_id, None), say, clock)
            ending = "FAILED"
            try:
                tracker.reconcile(state.flat_runs(), state.failures.values(), wait=False)
                self._train(process, clock, stored, tracker, state, say)
                stored.forget_lost()
                state = judge(workspace, stored)
                tracker.reconcile(state.flat_runs(), state.failures.values(), wait=False)
                ending = "FINISHED"
            except KeyboardInterrupt:
                ending = "KILLED"
                raise
            finally:
                tracker.close(ending)
            process.behind = tracker.num_behind
            self.holders.remove(process)
        process.finished = True

    def _train(self, process: Process, clock: Any, stored: Any, tracker: Any, state: Any, say: Any) -> None:
        pending = [cell for name, cell in self.plan.trials_by_id.items() if name not in state.results]
        if not pending:
            return

        def begins(trial_id: str) -> None:
            self.begun[trial_id] += 1
            if trial_id in stored.outlines and trial_id not in state.incomplete:
                raise Violation(f"{trial_id} is trained again although its result is sealed")

        world = self

        class Monitor(Progress):
            def trial_failed(self, trial_id: str, kind: str, message: str) -> None:
                world.told.append((trial_id, str(kind)))
                super().trial_failed(trial_id, kind, message)

        run = Run(
            self.plan, None, cluster(), Resources(1, 0), stored, tracker, Monitor(),
        )  # fmt: skip
        work = GridWork(run, pending, lambda subset, size: None, state=state)
        execution = SimulatedExecution(self.outside, process, 8.0, begins)
        Trials(run, work, execution=execution, clock=clock).run()

    def _holds(self, process: Process) -> None:
        alive = [holder.name for holder in self.holders if not holder.dead]
        if alive:
            raise Violation(f"{process.name} holds a sweep that {alive} holds")
        self.holders.append(process)

    def _check_end(self) -> None:
        """What must hold when a sweep has ended well."""
        problems = [*self._wrong_results(), *self._wrong_runs()]
        if problems:
            raise Violation("; ".join(problems))

    def _wrong_results(self) -> list[str]:
        quiet = SimulatedStorage(Outside(self.scheduler, Random(0), files=self.outside.files), Process("judge"))
        quiet._asked = lambda **_: None  # type: ignore[method-assign]
        scan = ResultStore(quiet).scan(TrialRecord)
        found = [f"{bad.path} is not believed: {bad.reason}" for bad in scan.unreadable]
        for name, spec in self.plan.trials_by_id.items():
            if name not in scan.records:
                found.append(f"{name} has no result")
            elif scan.records[name].result != outcome(spec):
                found.append(f"{name} has another result than undisturbed")
        return found

    def _wrong_runs(self) -> list[str]:
        shown: dict[str, list[Any]] = defaultdict(list)
        found = []
        for run in self.outside.server.search_runs([*self.outside.server.experiments]):
            if run.info.status == "RUNNING":
                found.append(f"run {run.info.run_id} of {run.data.tags.get(KEY_TAG)} is RUNNING")
            if run.data.tags.get(DUPLICATE_TAG) != "true":
                shown[run.data.tags[KEY_TAG]].append(run)
        for name, spec in self.plan.trials_by_id.items():
            runs, scores = shown[name], outcome(spec).scores
            if [run.info.status for run in runs] != ["FINISHED"]:
                found.append(f"{name} has runs {[run.info.status for run in runs]}")
            elif runs[0].data.metrics.get("test_loss") != (None if scores is None else scores.test_loss):
                found.append(f"{name} shows another loss")
        return found


def cluster() -> Cluster:
    """A shared cluster with what simulated trials ask for."""
    return Cluster(num_cpus=4, num_gpus=0, object_store_bytes=1e9, num_nodes=2, local=False, dashboard="")


def run_seed(seed: int) -> World:
    """Run a seed; where something is violated, with the fewest faults that still violate it.

    Raises:
        Violation: with seed, faults and what happened.
    """
    faults = draw(seed)
    try:
        return World(seed, faults).run()
    except (Violation, Endless, AssertionError) as error:
        fewest, why, log = shrink(seed, faults, error)
        told = "\n".join([*map(str, fewest), *log[-60:]])
        raise Violation(f"seed {seed}: {why}\n{told}") from None


def shrink(seed: int, faults: list[Fault], error: Exception) -> tuple[list[Fault], Exception, list[str]]:
    """Leave out one fault after another as long as something is violated without it."""
    log: list[str] = []
    for fault in list(faults):
        fewer = [other for other in faults if other is not fault]
        world = World(seed, fewer)
        try:
            world.run()
        except (Violation, Endless, AssertionError) as found:
            faults, error, log = fewer, found, world.outside.log
    if not log:
        world = World(seed, faults)
        try:
            world.run()
        except (Violation, Endless, AssertionError) as found:
            error, log = found, world.outside.log
    return faults, error, log
