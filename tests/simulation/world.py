"""A sweep in a world of faults, driven to its end and judged by what must hold then."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from orchestrator.machine.cluster import Cluster, Resources
from orchestrator.machine.locks import EXPIRES_S, InUseError, Lease
from orchestrator.machine.ray_folders import remove_leftovers
from orchestrator.results.mlflow_pages import SWEEP_KEY, Page
from orchestrator.results.mlflow_runs import KEY_TAG, STORAGE_TAG, SweepRuns
from orchestrator.results.outlines import TrialOutline
from orchestrator.results.records import StoredRecord, TrialRecord
from orchestrator.results.storage import RetryWithBackoff, StorageAway
from orchestrator.results.store import R, ResultStore, Scan
from orchestrator.results.stored_results import Records, StoredResults
from orchestrator.results.sweep_tracking import open_tracker
from orchestrator.results.tracking import Tracker
from orchestrator.running.progress import Progress
from orchestrator.running.trial_source import RunContext
from orchestrator.running.trials import TrialLoop
from search_spaces.errors import SetupError
from search_spaces.specs import NetworkSpec
from tasks.trials.records import EpochRecord
from tests.simulation.outside import (
    LEASE,
    Fault,
    Outside,
    PrivateFolder,
    SimulatedProcesses,
    SimulatedServer,
    SimulatedStorage,
)
from tests.simulation.scheduler import Endless, Process, Scheduler, SimulatedClock, Task, Violation
from tests.simulation.sweeps import FOLDER, SWEEP, Grid, Tuning, plan_of
from tests.simulation.workers import ExecutedTrials, SimulatedBackend, ToldFailure

MOST_DRIVERS = 40
MEMORY = Path("/dev/shm")  # an index is a file, and no disk is tested
STORAGE_FAULTS = ("storage away", "storage loses a reply", "storage refuses", "disk full")
CLUSTER = Cluster(
    num_cpus=4, num_gpus=0, object_store_bytes=10**9, num_nodes=2, local=False, dashboard=""
)
"""A shared one, with what simulated trials ask for."""
ENDS_WITHIN_S = 60.0
"""After it woke, for a driver whose lease is another's."""
STOPS_WITHIN_S = (
    10.0  # 8 s in which MLflow takes nothing, and one each for a thread and for its turn
)
CALLS_S = 40.0
"""What the calls of a slow storage take, while a driver looks whether another one lives."""


class World:
    """One schedule.

    Args:
        seed: Of delays and turns.
        faults: What goes wrong.
        of: What is driven.
    """

    def __init__(self, seed: int, faults: Sequence[Fault], of: type[Grid | Tuning] = Grid) -> None:
        random = Random(seed)
        self.scheduler = Scheduler(random)
        self.outside = Outside(self.scheduler, random, [*faults])
        self.told: list[ToldFailure] = []
        self.sealed: set[tuple[str, str]] = set()
        self.holders: list[Process] = []
        self.killed_at: dict[Process, float] = {}
        self.of, self.size, self.data, self.num_drivers = of, 2, "f", 0
        self.started: list[tuple[Process, Task]] = []
        self.outside.second = lambda: self._start(f"root of driver {self.num_drivers + 1}")
        # Long enough, now and then, for a second driver to wait for the first one's lease in vain.
        self.seconds = random.choice((8.0, 8.0, 60.0))
        self.asks = Resources(1, random.choice((0, 0.25)))
        self.folder, self.roots, self.num_taken = Path(), set[str](), 0
        self.looked_at: tuple[str, int, int, int] | None = None
        self.foreign = self._foreign() if random.random() < 0.5 else {}
        self.quiet = SimulatedStorage(
            Outside(self.scheduler, Random(0), files=self.outside.files), Process("reader")
        )
        self.quiet._asked = lambda *_, **__: None  # type: ignore[method-assign]
        self.reader = Reader(self.quiet)

    def _foreign(self) -> dict[str, Any]:
        """A sweep of this name, of another store, is on this server, and works on this machine."""
        elsewhere = PrivateFolder(Process("another sweep"), has_owner_file=True, num_processes=3)
        self.outside.machine[Path("isweep-ray-0")] = elsewhere
        server = self.outside.server
        found = server.create_experiment(f"isweep/{SWEEP['name']}", tags={STORAGE_TAG: "another"})
        for name in [*plan_of(self.size).trials_by_id][:2]:
            server.create_run(found, tags={KEY_TAG: name})
        return deepcopy(server.kept)

    def run(self) -> World:
        """Start drivers until one ends well after the last fault, and check what must hold then.

        Raises:
            Violation: naming what did not hold.
            Endless: where the sweep never ends.
        """
        with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
            self.folder = Path(folder)
            return self._run()

    def _run(self) -> World:
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
        """Time passes, and people do what they do between two runs; after many, no more goes
        wrong."""
        outside = self.outside
        if outside.take("sweep extended"):
            self.size = 3
        if outside.take("data changed"):
            self.data = "g"
        self.scheduler.now += outside.random.random() * 100
        if outside.faults:  # a sweep that is done asks for little
            outside.num_calls = max(
                outside.num_calls, outside.faults[0].step - outside.random.randint(1, 60)
            )
        if not outside.faults or self.num_drivers > MOST_DRIVERS // 2:
            outside.faults.clear()
            outside.lasting.clear()
            outside.due.clear()

    def _start(self, root: str) -> None:
        self.num_drivers += 1
        process = Process(f"driver {self.num_drivers}")
        for other, _ in self.started:
            other.beside = process.beside = True
        main = Task(self.scheduler, process, lambda: self._driver(process, root), process.name)
        self.started.append((process, main))
        self.outside.note(f"{process.name} starts, of {root}")
        main.start()

    def _until_ended(self, process: Process, main: Task) -> str:
        """Let a driver come to its end; says how it ended."""
        self.scheduler.run(main)
        if process.dead:
            self.killed_at[process] = self.scheduler.now
        self.scheduler.bury(process)
        self.started.remove((process, main))
        if process in self.holders:
            self.holders.remove(process)
        held = json.loads(self.outside.files[LEASE][0]) if LEASE in self.outside.files else {}
        excused = process in self.killed_at or any(
            self.outside.met[kind] for kind in STORAGE_FAULTS
        )
        if held.get("token") == process.token and not excused:
            raise Violation(f"{process.name} has ended, and its lease is there")
        if process.taken and self.scheduler.now - process.frozen_until > ENDS_WITHIN_S:
            raise Violation(f"{process.name} works on, and another driver took its lease over")
        error, server = main.error, self.outside.server
        self.outside.note(
            f"{process.name} ended: {'well' if process.finished else error or 'killed'}"
        )
        if error is None or self._may_end_with(process, error):
            self._look(process.root)
            if any(server.kept.get(run_id) != run for run_id, run in self.foreign.items()):
                raise Violation("the runs of another store's sweep were changed")
            return "badly" if error else "well" if process.finished else "killed"
        raise error

    def _may_end_with(self, process: Process, error: BaseException) -> bool:
        """Tell whether something happened for which a driver may end so."""
        if isinstance(error, KeyboardInterrupt):
            return process.asked_to_stop
        if isinstance(error, InUseError):
            return process.beside
        problem = error.problem if isinstance(error, SetupError) else ""
        if problem.startswith("The simulated result store"):
            return any(self.outside.met[kind] for kind in STORAGE_FAULTS)
        return any(problem.startswith(reason) for reason in process.over)

    def _look(self, root: str) -> None:
        """Somebody looks at the sweep, and the index of its root tells what the records do."""
        state = (
            root,
            self.outside.num_written,
            len(self.outside.hit),
            self.outside.met["index damaged"],
        )
        if self.of is Grid and state != self.looked_at:
            self.looked_at = state
            seen = StoredResults.read(self.quiet, self._index(root), quick=True).trials.outlines
            found = self.reader.scan(TrialRecord).records
            there = {name: TrialOutline.of(record) for name, record in found.items()}
            for name in sorted(seen.keys() | there.keys()):
                path = f"{FOLDER}/{name}/result.json"
                if seen.get(name) != there.get(name) and path not in self.outside.hit_at_once:
                    raise Violation(
                        f"a look at {root} sees {seen.get(name)} of {name}, not {there.get(name)}"
                    )

    def _index(self, root: str) -> Path:
        self.outside.index = self.folder / f"{root}.sqlite"
        return self.outside.index

    def _driver(self, process: Process, root: str) -> None:
        """Take the locks, remove orphans and do the stages, as ``run_sweep`` and ``tune_sweep``
        do."""
        outside, clock, began = (
            self.outside,
            SimulatedClock(self.scheduler, process),
            self.scheduler.now,
        )
        storage, processes = (
            SimulatedStorage(outside, process),
            SimulatedProcesses(outside, process),
        )
        say: Callable[[str], None] = lambda text: outside.note(f"{process.name} says: {text}")  # noqa: E731

        def interrupt(error: SetupError, ended: Any) -> None:
            process.stopped = True

        if any(
            other.root == root and not other.dead
            for other, _ in self.started
            if other is not process
        ):
            raise InUseError(f"{root} is in use by another command")  # the kernel's lock
        process.root = root
        self.roots.add(root)
        lease = Lease(storage, root, "isweep run", say, clock, interrupt)
        with lease:
            process.token = lease._token
            self._holds(process, began)
            try:
                dead = [*self.killed_at]
                remove_leftovers(processes)
                processes.check_orphans(dead)
                with processes.cluster():
                    self._sweep(process, clock, storage, say)
            finally:
                if not process.dead:
                    self.holders.remove(process)
        process.finished = True

    def _sweep(
        self,
        process: Process,
        clock: SimulatedClock,
        storage: SimulatedStorage,
        say: Callable[[str], None],
    ) -> None:
        index = self._index(process.root) if self.of is Grid else None
        outside, stored = self.outside, StoredResults.read(storage, index)
        stored.retry = RetryWithBackoff(say, clock=clock)
        sweep = self.of(self.size, self.data, stored)
        store_id = stored.store.store_id(create=True)
        server = SimulatedServer(outside, process)
        results, failures = sweep.shown()
        tracker = Tracker(
            lambda: SweepRuns(server, Page("simulated", ""), store_id, None), say, clock
        )
        monitor, ending, left = Monitor(self, sweep), "FAILED", (0.0, 0.0, 0.0)
        try:
            with open_tracker(tracker, results, failures):
                run = RunContext(sweep.plan, None, CLUSTER, self.asks, stored, tracker, monitor)
                if source := sweep.source(run):
                    at_rest = lambda running: self._at_rest(tracker, monitor, running)  # noqa: E731
                    begins = lambda trial_id: self._begins(sweep, monitor, trial_id)  # noqa: E731
                    idle = partial(self._idle, monitor)
                    executed = ExecutedTrials(
                        self.data, sweep.outcome, begins, self.told, at_rest, idle
                    )
                    execution = SimulatedBackend(outside, process, self.seconds, executed)
                    try:
                        TrialLoop(run, source, execution, clock).run()
                    except KeyboardInterrupt:
                        away_until = outside.lasting.get("server away", 0.0)
                        left = self.scheduler.now, process.frozen_s, away_until
                        raise
                    except StorageAway as error:
                        raise Violation(f"storage that was away ended the sweep: {error}") from None
                    finally:
                        execution.check_broken()
                    execution.check()
                done, failed = sweep.ends(tracker)
                self._check(self._wrong_claims(sweep, done))
            ending = "FINISHED"
        except KeyboardInterrupt:
            ending = "KILLED"
            took = min(self.scheduler.now + left[1] - process.frozen_s, left[2]) - left[0]
            if took > STOPS_WITHIN_S:
                raise Violation(
                    f"{process.name} was stopped, and waits {took:.0f} s for MLflow"
                ) from None
            raise
        finally:
            if not process.dead:
                self._at_rest(tracker, monitor, set(), ending)
        answers = all(
            until < self.scheduler.now - 60
            for kind, until in outside.lasting.items()
            if kind.startswith("server")
        )
        if (
            tracker.num_unsent_updates
            and answers
            and not (outside.met["server refuses"] or process.frozen_s)
        ):
            raise Violation(f"{tracker.num_unsent_updates} rows are behind, and the server answers")
        if not tracker.num_unsent_updates and not self._server_unknown():
            self._check(self._wrong_runs(sweep, done, "nothing is behind, and yet ", failed))

    def _server_unknown(self) -> int:
        """What others did to a server's runs is found at the next start."""
        return (
            self.outside.met["server restored"]
            + self.outside.met["server doubles"]
            + self.num_taken
        )

    def _begins(self, sweep: Grid | Tuning, monitor: Monitor, trial_id: str) -> None:
        """A worker begins a trial; a driver that slept may not know yet that another has its
        lease."""
        if self.num_taken and any(process.taken for process, _ in self.started):
            return
        if (early := monitor.not_before.get(trial_id, 0.0) - self.scheduler.now) > 0:
            raise Violation(f"{trial_id} is tried again {early:.2f} s too early")
        path = f"{FOLDER}/{trial_id}/{sweep.file}"
        if (trial_id, sweep.data) in self.sealed and path not in self.outside.hit:
            raise Violation(f"{trial_id} is trained again although its result was sealed")
        asked = f"{FOLDER}/{trial_id}/asked.json"
        if self.of is Tuning and asked not in {*self.outside.files, *self.outside.hit}:
            raise Violation(f"{trial_id} is trained, and it is not stored that it was asked for")

    def _idle(self, monitor: Monitor) -> None:
        """No trial is given out; those that failed wait no longer than they should."""
        late = [name for name, at in monitor.not_before.items() if at < self.scheduler.now - 0.01]
        if found := [name for name in late if monitor.statuses.get(name) == "FAILED"]:
            raise Violation(f"{found} should be tried again by now")

    def _holds(self, process: Process, began: float) -> None:
        alive = [holder for holder in self.holders if not holder.dead]
        for holder in alive:
            holder.taken = holder.frozen_until > began and holder.frozen_s > EXPIRES_S / 2
            self.num_taken += holder.taken
        if found := [holder.name for holder in alive if not holder.taken]:
            raise Violation(f"{process.name} holds a sweep that {found} holds")
        killed = any(at > began for at in self.killed_at.values()) or any(
            one.dead for one, _ in self.started
        )
        waited = self.scheduler.now - began - process.frozen_s
        if waited > EXPIRES_S + CALLS_S and not killed:
            raise Violation(f"{process.name} waited {waited:.0f} s for another driver, which lived")
        if waited > CALLS_S and self.roots == {process.root}:
            raise Violation(f"{process.name} waited {waited:.0f} s for a lease of its own root")
        self.holders.append(process)

    def _at_rest(
        self, tracker: Tracker, monitor: Monitor, running: set[str], ending: str = ""
    ) -> None:
        """While a sweep runs, and at its ``ending``, MLflow shows each trial as it is if nothing is
        behind."""
        if tracker.num_unsent_updates or self._server_unknown():
            return
        shown = defaultdict[str, list[Any]](list)
        for run_id, run in self.outside.server.kept.items():
            if run_id not in self.foreign and run["info"]["lifecycle_stage"] == "active":
                shown[run["tags"][KEY_TAG]].append(run)
        statuses = {name: [run["info"]["status"] for run in runs] for name, runs in shown.items()}
        may_run = set() if ending else {*running, *monitor.stopped, SWEEP_KEY}
        for name, runs in shown.items():
            says = [run["tags"].get("status") for run in runs if run["info"]["status"] != "RUNNING"]
            if ("RUNNING" in statuses[name] and name not in may_run) or "running" in says:
                raise Violation(f"MLflow shows {name} as running, and nothing is behind")
        for name, status in monitor.statuses.items():
            status = "KILLED" if ending and status == "RUNNING" else status
            if statuses.get(name) != [status]:
                raise Violation(
                    f"MLflow shows {name}, {status}, as {statuses.get(name)}, nothing is behind"
                )
            tags, points = shown[name][0]["tags"], shown[name][0]["points"]
            if status == "FAILED" and tags["failure_kind"] != monitor.kinds.get(
                name, tags["failure_kind"]
            ):
                raise Violation(
                    f"MLflow shows {name}, {monitor.kinds[name]}, as {tags['failure_kind']}"
                )
            if lacks := monitor.epochs[name] - {point.step for point in points}:
                raise Violation(f"MLflow lacks epochs {lacks} of {name}, which is {status}")
            if ending and self._never_again(name):
                twice = Counter(
                    (point.key, point.step, point.value) for point in points
                ).most_common(1)
                if twice and twice[0][1] > 1:
                    raise Violation(f"MLflow has a point of {name} twice: {twice}")
        if (
            ending
            and (ending == "FINISHED" or monitor.has_begun)
            and statuses[SWEEP_KEY] != [ending]
        ):
            raise Violation(f"MLflow shows a sweep that {ending} as {statuses[SWEEP_KEY]}")

    def _never_again(self, trial_id: str) -> bool:
        """Tell whether a trial can have been tried once alone."""
        broke = any(self.outside.met[kind] for kind in ("Tune breaks", "Tune runs out of memory"))
        return (
            self.num_drivers == 1
            and not broke
            and all(failure.trial_id != trial_id for failure in self.told)
        )

    def _check_end(self) -> None:
        """What must hold when a sweep has ended well."""
        met, kills, store = self.outside.met, len(self.killed_at), self.reader
        sweep = self.of(
            self.size, self.data, StoredResults(store, Records(store, {}, {}), {}, {}, [])
        )
        records, problems = sweep.judged(bool(self.outside.hit))
        failed = Counter(failure.trial_id for failure in self.told)
        same = (
            self.of is Grid
            and not self.outside.hit
            and not met["data changed"]
            and not self.num_taken
        )
        for name, record in records.items():
            if record.result != sweep.outcome(name):
                problems.append(f"{name} has another result than undisturbed")
            # A driver may be killed after it stored a failure and before it told it.
            fewest = 1 + failed[name] if same else 1
            if not fewest <= record.attempt <= 1 + failed[name] + kills:
                problems.append(
                    f"{name} counts {record.attempt} attempts after {failed[name]} failures"
                )
            if met["power cut"] or self.num_taken:
                continue  # stories are not flushed, and two drivers tell them
            story = [event.what for event in store.events(name)].count("failed")
            untold = (
                kills + sum(met[kind] for kind in STORAGE_FAULTS)
                if self.of is Grid
                else failed[name]
            )
            if not failed[name] - untold <= story <= failed[name]:
                problems.append(f"the story of {name} has {story} of {failed[name]} failures")
        there = [one.owner for one in self.outside.machine.values() if one.num_processes]
        left = [owner.name for owner in there if owner in self.killed_at]
        problems += [f"processes of {left} run on"] if left else []
        self._check([*problems, *self._wrong_runs(sweep, records, "")])

    @staticmethod
    def _check(problems: list[str]) -> None:
        if problems:
            raise Violation("; ".join(problems))

    def _wrong_claims(self, sweep: Grid | Tuning, done: Iterable[str]) -> list[str]:
        """Say of which trials a driver that ends believes what is not so."""
        found, hit = [], self.outside.hit
        for name in done:
            path = f"{FOLDER}/{name}/{sweep.file}"
            # What goes while the driver looks, it may miss; a search does not look again.
            just_now = hit.get(path, -1.0) > self.scheduler.now - 1.0
            if (
                path not in self.outside.files
                and not just_now
                and not (self.of is Tuning and path in hit)
            ):
                found.append(f"{name} counts as done and is not there")
        told = {failure.trial_id for failure in self.told if failure.gave_up}
        found += [
            f"{name} is neither done nor given up"
            for name in sweep.planned().difference(done)
            if name not in told and f"{FOLDER}/{name}/{sweep.file}" not in hit
        ]
        return found

    def _wrong_runs(
        self, sweep: Grid | Tuning, names: Iterable[str], said: str, failed: Iterable[str] = ()
    ) -> list[str]:
        """Say what MLflow shows wrongly of trials that have a result."""
        shown: dict[str, list[Any]] = defaultdict(list)
        found = []
        for run in self.outside.server.search_runs([*self.outside.server.experiments]):
            if run.info.run_id in self.foreign:
                continue
            if run.info.status == "RUNNING":
                found.append(
                    f"{said}run {run.info.run_id} of {run.data.tags.get(KEY_TAG)} is RUNNING"
                )
            shown[run.data.tags[KEY_TAG]].append(run)
        for name in failed:
            if [run.info.status for run in shown[name]] != ["FAILED"]:
                found.append(
                    f"{said}{name}, which failed, has {[run.info.status for run in shown[name]]}"
                )
        for name in names:
            runs, (metric, loss) = shown[name], sweep.loss(name)
            if [run.info.status for run in runs] != ["FINISHED"]:
                found.append(f"{said}{name} has runs {[run.info.status for run in runs]}")
            elif runs[0].data.metrics.get(metric) != loss:
                found.append(f"{said}{name} shows another loss")
        return found


class Reader(ResultStore):
    """The store as somebody sees it who only reads, meets no fault, and reads no content twice."""

    def __init__(self, storage: SimulatedStorage) -> None:
        super().__init__(storage)
        self._known: dict[tuple[type[StoredRecord], str, bytes], Scan[Any]] = {}

    def scan(self, kind: type[R]) -> Scan[R]:
        found = Scan[R]()
        for file in self.listing(kind).values():
            key = kind, file.path, self._files.read(file.path)
            if key not in self._known:
                scan = Scan[R]()
                scan.records.update(self.read_each(kind, [file], scan.unreadable))
                self._known[key] = scan
            found.records.update(self._known[key].records)
            found.unreadable.extend(self._known[key].unreadable)
        return found


class Monitor(Progress):
    """Keeps what the sweep tells of its trials.

    Attributes:
        statuses: What MLflow should show of each trial.
        kinds: Of the last failure of each.
        epochs: Those that a running trial told of.
        stopped: Trials that were stopped with Tune, and wait again in their run.
        not_before: When each trial that failed may be tried again: after 1 s, then twice as long
            each time.
        has_begun: Whether a trial was.
    """

    def __init__(self, world: World, sweep: Grid | Tuning) -> None:
        super().__init__()
        self._world, self._data, self.statuses = world, sweep.data, sweep.statuses()
        self.stopped, self.kinds, self.has_begun = set[str](), dict[str, str](), False
        self.epochs, self.not_before = defaultdict[str, set[int]](set), dict[str, float]()
        self._failures = Counter[str]()

    def trial_started(self, trial_id: str) -> None:
        super().trial_started(trial_id)
        self.has_begun = True
        self.stopped.discard(trial_id)
        self.statuses[trial_id] = "RUNNING"

    def trial_epoch(self, trial_id: str, epoch: EpochRecord, network: NetworkSpec) -> None:
        super().trial_epoch(trial_id, epoch, network)
        if self._world.of is Grid:
            self.epochs[trial_id].add(epoch.epoch)

    def trial_finished(self, trial_id: str, status: str) -> None:
        if self.statuses.get(trial_id) == "FINISHED":
            raise Violation(f"the result of {trial_id} is told twice")
        self._world.sealed.add((trial_id, self._data))
        super().trial_finished(trial_id, status)
        self.epochs.pop(trial_id, None)
        self.stopped.discard(trial_id)
        self.statuses[trial_id] = "FINISHED"

    def trial_failed(
        self, trial_id: str, kind: str, message: str, retry_after_s: float | None
    ) -> None:
        gave_up = retry_after_s is None
        self._world.told.append(ToldFailure(trial_id, str(kind), gave_up, message))
        self._failures[trial_id] += 1
        pause = min(2.0 ** (self._failures[trial_id] - 1), 60.0)
        self.kinds[trial_id] = str(kind)
        self.not_before[trial_id] = math.inf if gave_up else self._world.scheduler.now + pause
        super().trial_failed(trial_id, kind, message, retry_after_s)
        self.stopped.discard(trial_id)
        self.statuses[trial_id] = "FAILED"

    def trial_stopped(self, trial_id: str) -> None:
        super().trial_stopped(trial_id)
        self.stopped.add(trial_id)
        self.statuses.pop(trial_id, None)
