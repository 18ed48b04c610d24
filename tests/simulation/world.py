"""A sweep in a world of faults: drawn by a seed, driven to its end, and judged by what must hold then."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from types import SimpleNamespace
from typing import Any

from orchestrator.planning.plan import SweepPlan, plan_sweep
from orchestrator.results.mlflow_pages import Page
from orchestrator.results.mlflow_runs import DUPLICATE_TAG, KEY_TAG, SweepRuns
from orchestrator.results.state import StoredResults, judge
from orchestrator.results.storage import Patience, StorageAway
from orchestrator.results.store import ResultStore, TrialRecord
from orchestrator.results.tracking import Tracker
from orchestrator.running.cluster import Cluster, Resources
from orchestrator.running.locks import Lease
from orchestrator.running.progress import Progress
from orchestrator.running.trials import GridWork, Run, Trials
from search_spaces.errors import SetupError, SweepError
from search_spaces.sweeps import SweepSpec
from tests.simulation.outside import FAULTS, LASTING, Fault, Outside, SimulatedServer, SimulatedStorage
from tests.simulation.scheduler import Endless, Process, Scheduler, SimulatedClock, Task
from tests.simulation.workers import SimulatedExecution, Violation, outcome

SWEEP = {
    "name": "simulated",
    "models": ("small_mlp", "small_cnn"),
    "datasets": ({"name": "manifold_d4"},),
    "train_sizes": (20, 40),
    "test_size": 40,
    "image_size": 16,
    "recipe": "smoke",
}
MOST_FAULTS = 8
HORIZON = 400
"""Port calls of an undisturbed sweep, about: faults begin within these."""
MOST_DRIVERS = 40


@cache
def the_plan(num_seeds: int) -> SweepPlan:
    return plan_sweep(SweepSpec.model_validate({**SWEEP, "seeds": tuple(range(num_seeds))}))


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
    data: str

    @property
    def prepared(self) -> dict[str, Any]:
        """Every dataset is prepared, with these images."""
        return {spec.prepared_id: SimpleNamespace(fingerprint=self.data) for spec in self.plan.prepared}


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
        self.told: list[tuple[str, str, str]] = []
        self.sealed: set[tuple[str, str]] = set()
        self.holders: list[Process] = []
        self.num_seeds, self.data, self.num_drivers = 2, "f", 0
        self.started: list[tuple[Process, Task]] = []
        self.outside.second = lambda: self._start(f"root of driver {self.num_drivers + 1}")
        # Long enough, now and then, for a second driver to wait for the first one's lease in vain.
        self.seconds = random.choice((8.0, 8.0, 60.0))

    @property
    def plan(self) -> SweepPlan:
        """What is planned now."""
        return the_plan(self.num_seeds)

    def run(self) -> World:
        """Start drivers until one ends well after the last fault, and check what must hold then.

        Raises:
            Violation: naming what did not hold.
            Endless: where the sweep never ends.
        """
        while self.num_drivers < MOST_DRIVERS:
            quiet = not (self.outside.faults or self.outside.due or self.outside.lasting)
            self._start("root")
            ended = self._until_ended(*self.started[0])
            while self.started:
                self._until_ended(*self.started[0])
            if quiet and ended == "well":
                self._check_end()
                return self
            if quiet:
                raise Violation("a driver that met no fault did not end well")
            self._between()
        raise Endless(f"{MOST_DRIVERS} drivers did not end the sweep")

    def _between(self) -> None:
        """Time passes, and people do what they do between two runs; after many, no more goes wrong."""
        outside = self.outside
        if outside.take("sweep extended"):
            self.num_seeds = 3
        if outside.take("data changed"):
            self.data = "g"
        self.scheduler.now += outside.random.random() * 100
        if outside.faults:  # a sweep that is done asks for little
            outside.num_calls = max(outside.num_calls, outside.faults[0].step - outside.random.randint(1, 60))
        if not outside.faults or self.num_drivers > MOST_DRIVERS // 2:
            outside.faults.clear()
            outside.lasting.clear()
            outside.due.clear()

    def _start(self, root: str) -> None:
        self.num_drivers += 1
        process = Process(f"driver {self.num_drivers}")
        main = Task(self.scheduler, process, lambda: self._driver(process, root), process.name)
        self.started.append((process, main))
        self.outside.note(f"{process.name} starts, of {root}")
        main.start()

    def _until_ended(self, process: Process, main: Task) -> str:
        """Let a driver come to its end; says how it ended."""
        self.scheduler.run(main)
        self.scheduler.bury(process)
        self.started.remove((process, main))
        if process in self.holders:
            self.holders.remove(process)
        error = main.error
        self.outside.note(f"{process.name} ended: {'well' if process.finished else error or 'killed'}")
        if error is None:
            return "well" if process.finished else "killed"
        if isinstance(error, (SweepError, KeyboardInterrupt, OSError)):
            return "badly"
        raise error

    def _driver(self, process: Process, root: str) -> None:
        """The stages of :func:`orchestrator.running.run.run_sweep`, in its order."""
        outside, clock = self.outside, SimulatedClock(self.scheduler, process)
        storage = SimulatedStorage(outside, process)
        say: Callable[[str], None] = lambda text: outside.note(f"{process.name} says: {text}")  # noqa: E731

        def interrupt(error: SetupError, ended: Any) -> None:
            process.stopped = True

        if any(other.root == root and not other.dead for other, _ in self.started if other is not process):
            raise SetupError("Only one isweep command may work on a root at a time")  # the kernel's lock
        process.root = root
        with Lease(storage, root, "isweep run", say, clock, interrupt):
            self._holds(process)
            if (fault := outside.take("clock set")) is not None:
                clock.set_by = (fault.amount - 0.5) * 1e6
            stored = StoredResults.read(storage)
            stored.patience = Patience(say, clock=clock)
            workspace = Workspace(self.plan, self.data)
            state = judge(workspace, stored)
            store_id = stored.store.identity(make=True)
            server = SimulatedServer(outside, process)
            tracker = Tracker(lambda: SweepRuns(server, Page("simulated", ""), store_id, None), say, clock)
            ending = "FAILED"
            try:
                tracker.reconcile(state.flat_runs(), state.failures.values(), wait=False)
                self._train(process, clock, stored, tracker, workspace)
                stored.forget_lost()
                state = judge(workspace, stored)
                self._check(self._wrong_claims(workspace, state))
                tracker.reconcile(state.flat_runs(), state.failures.values(), wait=False)
                ending = "FINISHED"
            except KeyboardInterrupt:
                ending = "KILLED"
                raise
            finally:
                tracker.close(ending)
                if not process.dead:
                    self.holders.remove(process)
            answers = all(
                until < self.scheduler.now - 60
                for kind, until in outside.lasting.items()
                if kind.startswith("server")
            )
            if tracker.num_behind and answers:
                raise Violation(f"{tracker.num_behind} rows are behind, and the server answers")
            # A server's older state, or a request that a proxy repeats, is found at the next start.
            unknown = outside.met["server restored"] + outside.met["server doubles"]
            if not tracker.num_behind and not unknown:
                self._check(self._wrong_runs(state.results, "nothing is behind, and yet ", state.failures))
        process.finished = True

    def _train(self, process: Process, clock: Any, stored: Any, tracker: Any, workspace: Workspace) -> None:
        plan, state = workspace.plan, judge(workspace, stored)
        pending = [cell for name, cell in plan.trials_by_id.items() if name not in state.results]
        if not pending:
            return

        def begins(trial_id: str) -> None:
            path = f"simulated/trials/{trial_id}/result.json"
            if (trial_id, workspace.data) in self.sealed and path not in self.outside.hit:
                raise Violation(f"{trial_id} is trained again although its result was sealed")

        monitor = Monitor(self.told, lambda name: self.sealed.add((name, workspace.data)))
        run = Run(plan, None, CLUSTER, Resources(1, 0), stored, tracker, monitor)
        work = GridWork(run, pending, lambda subset, size: None, state=state)
        execution = SimulatedExecution(self.outside, process, workspace.data, self.seconds, begins, self.told)
        try:
            Trials(run, work, execution, clock).run()
        except StorageAway as error:
            raise Violation(f"storage that was away ended the sweep: {error}") from None

    def _holds(self, process: Process) -> None:
        alive = [holder.name for holder in self.holders if not holder.dead]
        if alive:
            raise Violation(f"{process.name} holds a sweep that {alive} holds")
        self.holders.append(process)

    def _check_end(self) -> None:
        """What must hold when a sweep has ended well."""
        self._check([*self._wrong_results(), *self._wrong_runs(self.plan.trials_by_id, "")])

    @staticmethod
    def _check(problems: list[str]) -> None:
        if problems:
            raise Violation("; ".join(problems))

    def _wrong_claims(self, workspace: Workspace, state: Any) -> list[str]:
        """Say of which cells a driver that ends believes what is not so."""
        found = []
        for name in state.results:
            path = f"simulated/trials/{name}/result.json"
            # What goes while the driver looks, it may miss.
            just_now = self.outside.hit.get(path, 0.0) > self.scheduler.now - 1.0
            if path not in self.outside.files and not just_now:
                found.append(f"{name} counts as done and is not there")
        told = {name for name, _, message in self.told if "given up" in message}
        found += [
            f"{name} is neither done nor given up"
            for name in workspace.plan.trials_by_id
            if name not in state.results
            and name not in told
            and f"simulated/trials/{name}/result.json" not in self.outside.hit
        ]
        return found

    def _wrong_results(self) -> list[str]:
        quiet = SimulatedStorage(
            Outside(self.scheduler, Random(0), files=self.outside.files), Process("judge")
        )
        quiet._asked = lambda **_: None  # type: ignore[method-assign]
        scan = ResultStore(quiet).scan(TrialRecord)
        found = [f"{bad.path} is not believed: {bad.reason}" for bad in scan.unreadable]
        for name in self.plan.trials_by_id:
            if name not in scan.records:
                found.append(f"{name} has no result")
            elif scan.records[name].result != outcome(name, self.data):
                found.append(f"{name} has another result than undisturbed")
        return found

    def _wrong_runs(self, names: Iterable[str], said: str, failed: Iterable[str] = ()) -> list[str]:
        """Say what MLflow shows wrongly of cells that have a result."""
        shown: dict[str, list[Any]] = defaultdict(list)
        found = []
        for run in self.outside.server.search_runs([*self.outside.server.experiments]):
            if run.info.status == "RUNNING":
                found.append(f"{said}run {run.info.run_id} of {run.data.tags.get(KEY_TAG)} is RUNNING")
            if run.data.tags.get(DUPLICATE_TAG) != "true":
                shown[run.data.tags[KEY_TAG]].append(run)
        for name in failed:
            if [run.info.status for run in shown[name]] != ["FAILED"]:
                found.append(f"{said}{name}, which failed, has {[run.info.status for run in shown[name]]}")
        for name in names:
            runs, scores = shown[name], outcome(name, self.data).scores
            if [run.info.status for run in runs] != ["FINISHED"]:
                found.append(f"{said}{name} has runs {[run.info.status for run in runs]}")
            elif runs[0].data.metrics.get("test_loss") != (None if scores is None else scores.test_loss):
                found.append(f"{said}{name} shows another loss")
        return found


CLUSTER = Cluster(num_cpus=4, num_gpus=0, object_store_bytes=10**9, num_nodes=2, local=False, dashboard="")
"""A shared one, with what simulated trials ask for."""


class Monitor(Progress):
    """Keeps what the sweep tells of failures."""

    def __init__(self, told: list[tuple[str, str, str]], sealed: Callable[[str], None]) -> None:
        super().__init__()
        self.told, self.sealed = told, sealed

    def trial_finished(self, trial_id: str, status: str) -> None:
        self.sealed(trial_id)
        super().trial_finished(trial_id, status)

    def trial_failed(self, trial_id: str, kind: str, message: str) -> None:
        self.told.append((trial_id, str(kind), message))
        super().trial_failed(trial_id, kind, message)


def run_seed(seed: int) -> World:
    """Run a seed; where something is violated, with the fewest faults that still violate it.

    Raises:
        Violation: with seed, faults and what happened.
    """
    faults = draw(seed)
    try:
        return World(seed, faults).run()
    except (Exception, Violation) as error:
        fewest, why, log = shrink(seed, faults, error)
        told = "\n".join([*map(str, fewest), *log[-60:]])
        raise Violation(f"seed {seed}: {why}\n{told}") from None


def shrink(
    seed: int, faults: list[Fault], error: BaseException
) -> tuple[list[Fault], BaseException, list[str]]:
    """Leave out one fault after another as long as something is violated without it."""
    log: list[str] = []
    for fault in list(faults):
        fewer = [other for other in faults if other is not fault]
        world = World(seed, fewer)
        try:
            world.run()
        except (Exception, Violation) as found:
            faults, error, log = fewer, found, world.outside.log
    if not log:
        world = World(seed, faults)
        try:
            world.run()
        except (Exception, Violation) as found:
            error, log = found, world.outside.log
    return faults, error, log


def run_named(name: str, seed: int) -> World:
    """Run a schedule of :data:`NAMED` with the delays and turns of a seed."""
    return World(seed, sorted(NAMED[name])).run()


def _repeated(kind: str, steps: Sequence[int], amount: float = 0.0) -> list[Fault]:
    return [Fault(step, kind, amount) for step in steps]


REAL = {
    "worker SIGKILL every 5 s for 60 s": _repeated("worker dies", range(10, 130, 10)),
    "raylet SIGKILL, a node added": _repeated("node lost", (30, 31, 32)),
    "memory hog": _repeated("memory kill", (20, 40, 60)),
    "memory hog alone": _repeated("memory kill", (20,)),
    "driver SIGKILL at 20 moments": _repeated("driver killed", range(5, 405, 20)),
    "object store away 30 s": _repeated("storage away", (40,), 30.0),
    "disk filled and freed": _repeated("disk full", (40,), 60.0),
    "MLflow dropped_replies": _repeated("server resets", range(10, 200, 10), 1.0),
    "MLflow away": _repeated("server away", (30,), 60.0),
    "MLflow resetting": _repeated("server resets", (30, 90), 20.0),
    "MLflow slow": _repeated("server slow", (10,), 300.0),
    "MLflow restarted": _repeated("server away", (30, 90, 150), 10.0),
    "PostgreSQL restarted": _repeated("server away", (60,), 20.0),
    "two hosts parted 5 s": _repeated("worker says nothing", (30,)),
    "two hosts parted 15 s": [Fault(30, "worker says nothing", 0.0), Fault(40, "worker dies", 0.0)],
    "two hosts parted 60 s": _repeated("node lost", (30, 34, 38)),
}
"""What stands here for each long run on real processes (``make chaos``), by its name."""

FOUND = {
    "a diverged cell of new data shows the loss of the old": _repeated("data changed", (100,)),
    "a run reopened with a lost reply stays running": [
        *_repeated("file damaged", range(60, 200, 20), 0.2),
        *_repeated("server resets", range(200, 400, 15), 3.0),
    ],
    "two drivers take over a dead one's lease": [
        *_repeated("second driver", (20, 22, 24)),
        *_repeated("driver killed", (40,)),
    ],
    "a server restored in the middle": _repeated("server restored", (60, 120), 0.1),
}
"""What found a fault of the product, or needs several things at once to go wrong."""
NAMED = {**REAL, **FOUND}
