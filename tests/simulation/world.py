"""A sweep in a simulated world of faults. Every promise of the product is checked on the way."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from orchestrator.machine.cluster import Cluster, Resources
from orchestrator.machine.locks import EXPIRES_S, InUseError, Lease
from orchestrator.machine.ray_folders import remove_abandoned_folders
from orchestrator.results import columns
from orchestrator.results.mlflow_pages import SWEEP_KEY, Page
from orchestrator.results.mlflow_runs import KEY_TAG, STORAGE_TAG, SweepRuns
from orchestrator.results.outlines import TrialOutline
from orchestrator.results.records import FailureKind, StoredRecord, TrialRecord
from orchestrator.results.storage import RetryWithBackoff, StorageAway
from orchestrator.results.store import R, ResultStore, Scan
from orchestrator.results.stored_results import StoredResults, TrialRecords
from orchestrator.results.sweep_tracking import tracking_session
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
from tests.simulation.workers import (
    TRIED_AGAIN,
    ExecutedTrials,
    ReportedFailure,
    SimulatedBackend,
)

MOST_DRIVERS = 40
MEMORY = Path("/dev/shm")
"""Folder in memory for the index files. No test is about the disk itself."""
STORAGE_FAULTS = ("storage away", "storage loses a reply", "storage refuses", "disk full")
CLUSTER = Cluster(
    num_cpus=4, num_gpus=0, object_store_bytes=10**9, num_nodes=2, is_private=False, dashboard=""
)
"""A shared cluster with the resources that simulated trials request."""
ENDS_WITHIN_S = 60.0
"""Seconds after it woke in which a driver must end if another driver has its lease."""
STOPS_WITHIN_S = 10.0
"""Seconds in which a stopped driver must end: MLflow may not answer for 8 s, and its thread needs
one second to see the stop and one to get the turn."""
CALLS_S = 40.0
"""Seconds that a slow storage takes for the calls by which a driver checks another's lease."""


class World:
    """One schedule of faults, and all that outlives its drivers.

    Args:
        seed: The seed of delays and turns.
        faults: The faults, in order.
        sweep_kind: The kind of sweep: the trials of a grid, or a search.

    Attributes:
        reported_failures: Failures that the sweep reported so far.
        stored_results: Trial and data of every result that was stored.
        holders: Drivers that hold the lease; a second one is a violation.
        killed_at: Virtual second at which each killed driver died.
        started: Drivers that have started and not ended, with their main threads.
        seconds: Average seconds of a trial.
        num_taken: How often a driver took the lease from a driver that was frozen.
        foreign_runs: MLflow runs of another store's sweep, which must not change.
    """

    def __init__(
        self, seed: int, faults: Sequence[Fault], sweep_kind: type[Grid | Tuning] = Grid
    ) -> None:
        random = Random(seed)
        self.scheduler = Scheduler(random)
        self.outside = Outside(self.scheduler, random, [*faults])
        self.reported_failures: list[ReportedFailure] = []
        self.stored_results: set[tuple[str, str]] = set()
        self.holders: list[Process] = []
        self.killed_at: dict[Process, float] = {}
        self.sweep_kind = sweep_kind
        self.size = 2
        self.data = "f"
        self.num_drivers = 0
        self.started: list[tuple[Process, Task]] = []
        self.outside.start_second_driver = lambda: self._start(
            f"root of driver {self.num_drivers + 1}"
        )
        # Long enough, now and then, for a second driver to wait for the first one's lease in vain.
        self.seconds = random.choice((8.0, 8.0, 60.0))
        self.resources = Resources(1, random.choice((0, 0.25)))
        self.folder = Path()
        self.roots = set[str]()
        self.num_taken = 0
        self.checked_state: tuple[str, int, int, int] | None = None
        self.foreign_runs = self._add_foreign_sweep() if random.random() < 0.5 else {}
        self.quiet_storage = SimulatedStorage(
            Outside(self.scheduler, Random(0), files=self.outside.files), Process("reader")
        )
        self.quiet_storage._call = lambda *_, **__: None  # type: ignore[method-assign]
        self.reader = Reader(self.quiet_storage)

    def _add_foreign_sweep(self) -> dict[str, Any]:
        """Add a sweep with the same name, but another store, to the server and to this machine."""
        elsewhere = PrivateFolder(Process("another sweep"), has_owner_file=True, num_processes=3)
        self.outside.machine[Path("isweep-ray-0")] = elsewhere
        server = self.outside.server
        experiment_id = server.create_experiment(
            f"isweep/{SWEEP['name']}", tags={STORAGE_TAG: "another"}
        )
        for trial_id in [*plan_of(self.size).trials_by_id][:2]:
            server.create_run(experiment_id, tags={KEY_TAG: trial_id})
        return deepcopy(server.runs)

    def run(self) -> World:
        """Start drivers until one ends well after the last fault, then check every promise.

        Raises:
            Violation: a promise is broken. The message says which one.
            Endless: the sweep never ends.
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
        """Let time pass between two drivers, and apply what users do then.

        After half of all drivers no further fault happens, so that the sweep can end.
        """
        outside = self.outside
        if outside.take("sweep extended"):
            self.size = 3
        if outside.take("data changed"):
            self.data = "g"
        self.scheduler.now += outside.random.random() * 100
        if outside.faults:
            # A finished sweep makes few calls: count on to just before the next fault's step.
            next_fault_step = outside.faults[0].step
            num_calls = next_fault_step - outside.random.randint(1, 60)
            outside.num_calls = max(outside.num_calls, num_calls)
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
        """Run a driver to its end and check how it ended. Return "well", "badly" or "killed"."""
        self.scheduler.run(main)
        if process.dead:
            self.killed_at[process] = self.scheduler.now
        self.scheduler.bury(process)
        self.started.remove((process, main))
        if process in self.holders:
            self.holders.remove(process)
        lease_fields = {}
        if LEASE in self.outside.files:
            lease_fields = json.loads(self.outside.files[LEASE][0])
        storage_failed = any(self.outside.met[kind] for kind in STORAGE_FAULTS)
        may_leave_lease = process in self.killed_at or storage_failed
        if lease_fields.get("token") == process.token and not may_leave_lease:
            raise Violation(f"{process.name} has ended, and its lease is there")
        if process.taken and self.scheduler.now - process.frozen_until > ENDS_WITHIN_S:
            raise Violation(f"{process.name} works on, and another driver took its lease over")
        error = main.error
        ending = "well" if process.finished else error or "killed"
        self.outside.note(f"{process.name} ended: {ending}")
        if error is not None and not self._may_end_with(process, error):
            raise error
        self._check_index(process.root)
        runs = self.outside.server.runs
        if any(runs.get(run_id) != run for run_id, run in self.foreign_runs.items()):
            raise Violation("the runs of another store's sweep were changed")
        if error is not None:
            return "badly"
        return "well" if process.finished else "killed"

    def _may_end_with(self, process: Process, error: BaseException) -> bool:
        """Return whether an event of this schedule allows that a driver ends with this error."""
        if isinstance(error, KeyboardInterrupt):
            return process.asked_to_stop
        if isinstance(error, InUseError):
            return process.beside
        problem = error.problem if isinstance(error, SetupError) else ""
        if problem.startswith("The simulated result store"):
            return any(self.outside.met[kind] for kind in STORAGE_FAULTS)
        return any(problem.startswith(reason) for reason in process.over)

    def _check_index(self, root: str) -> None:
        """Check that a root's index shows the same outline of each trial as its stored record."""
        state = (
            root,
            self.outside.num_written,
            len(self.outside.hit),
            self.outside.met["index damaged"],
        )
        if self.sweep_kind is not Grid or state == self.checked_state:
            return
        self.checked_state = state
        index = self._index(root)
        outlines = StoredResults.read(self.quiet_storage, index, quick=True).trials.outlines
        records = self.reader.scan(TrialRecord).records
        expected_outlines = {name: TrialOutline.of(record) for name, record in records.items()}
        for name in sorted(outlines.keys() | expected_outlines.keys()):
            path = f"{FOLDER}/{name}/result.json"
            outline = outlines.get(name)
            expected = expected_outlines.get(name)
            if outline != expected and path not in self.outside.hit_at_once:
                raise Violation(f"a look at {root} sees {outline} of {name}, not {expected}")

    def _index(self, root: str) -> Path:
        self.outside.index = self.folder / f"{root}.sqlite"
        return self.outside.index

    def _driver(self, process: Process, root: str) -> None:
        """Take the locks, remove orphans and run the sweep, as ``run_sweep`` and ``tune_sweep`` do."""
        outside = self.outside
        clock = SimulatedClock(self.scheduler, process)
        started_at = self.scheduler.now
        storage = SimulatedStorage(outside, process)
        processes = SimulatedProcesses(outside, process)

        def say(text: str) -> None:
            outside.note(f"{process.name} says: {text}")

        def interrupt(error: SetupError, ended: Any) -> None:
            process.stopped = True

        others = [other for other, _ in self.started if other is not process]
        if any(other.root == root and not other.dead for other in others):
            # Stands for the kernel's lock on a root.
            raise InUseError(f"{root} is in use by another command")
        process.root = root
        self.roots.add(root)
        lease = Lease(storage, root, "isweep run", say, clock, interrupt)
        with lease:
            process.token = lease._token
            self._check_lease(process, started_at)
            try:
                dead = [*self.killed_at]
                remove_abandoned_folders(processes)
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
        index = self._index(process.root) if self.sweep_kind is Grid else None
        outside = self.outside
        stored = StoredResults.read(storage, index)
        stored.retry = RetryWithBackoff(say, clock=clock)
        sweep = self.sweep_kind(self.size, self.data, stored)
        store_id = stored.store.store_id(create=True)
        server = SimulatedServer(outside, process)
        results, failures = sweep.shown_runs()
        tracker = Tracker(
            lambda: SweepRuns(server, Page("simulated", ""), store_id, None), say, clock
        )
        monitor = Monitor(self, sweep)
        ending = "FAILED"
        # For a stopped driver: when it was stopped, how long it was frozen until then, and until
        # when MLflow is away.
        stopped_at = stopped_frozen_s = away_until = 0.0
        try:
            with tracking_session(tracker, results, failures):
                run = RunContext(
                    sweep.plan, None, CLUSTER, self.resources, stored, tracker, monitor
                )
                source = sweep.source(run)
                if source:
                    executed = ExecutedTrials(
                        self.data,
                        sweep.outcome,
                        partial(self._check_start, sweep, monitor),
                        self.reported_failures,
                        partial(self._check_mlflow, tracker, monitor),
                        partial(self._check_waiting, monitor),
                    )
                    backend = SimulatedBackend(outside, process, self.seconds, executed)
                    try:
                        TrialLoop(run, source, backend, clock).run()
                    except KeyboardInterrupt:
                        stopped_at = self.scheduler.now
                        stopped_frozen_s = process.frozen_s
                        away_until = outside.lasting.get("server away", 0.0)
                        raise
                    except StorageAway as error:
                        raise Violation(f"storage that was away ended the sweep: {error}") from None
                    finally:
                        backend.check_broken()
                    backend.check()
                done, failed = sweep.ends(tracker)
                self._check(self._wrong_claims(sweep, done))
            ending = "FINISHED"
        except KeyboardInterrupt:
            ending = "KILLED"
            frozen_s = process.frozen_s - stopped_frozen_s
            wait_s = min(self.scheduler.now - frozen_s, away_until) - stopped_at
            if wait_s > STOPS_WITHIN_S:
                raise Violation(
                    f"{process.name} was stopped, and waits {wait_s:.0f} s for MLflow"
                ) from None
            raise
        finally:
            if not process.dead:
                self._check_mlflow(tracker, monitor, set(), ending)
        server_answers = all(
            until < self.scheduler.now - 60
            for kind, until in outside.lasting.items()
            if kind.startswith("server")
        )
        if (
            tracker.num_unsent_updates
            and server_answers
            and not (outside.met["server refuses"] or process.frozen_s)
        ):
            raise Violation(f"{tracker.num_unsent_updates} rows are behind, and the server answers")
        if not tracker.num_unsent_updates and not self._num_server_changes():
            self._check(self._wrong_runs(sweep, done, "nothing is behind, and yet ", failed))

    def _num_server_changes(self) -> int:
        """Return how often others changed the server's runs, which only the next start repairs."""
        return (
            self.outside.met["server restored"]
            + self.outside.met["server doubles"]
            + self.num_taken
        )

    def _check_start(self, sweep: Grid | Tuning, monitor: Monitor, trial_id: str) -> None:
        """Check that a trial which a worker begins may begin now."""
        if self.num_taken and any(process.taken for process, _ in self.started):
            # A driver that was frozen may not know yet that another driver has its lease.
            return
        early_s = monitor.not_before.get(trial_id, 0.0) - self.scheduler.now
        if early_s > 0:
            raise Violation(f"{trial_id} is tried again {early_s:.2f} s too early")
        path = f"{FOLDER}/{trial_id}/{sweep.file}"
        if (trial_id, sweep.data) in self.stored_results and path not in self.outside.hit:
            raise Violation(f"{trial_id} is trained again although its result was sealed")
        request_path = f"{FOLDER}/{trial_id}/asked.json"
        request_paths = {*self.outside.files, *self.outside.hit}
        if self.sweep_kind is Tuning and request_path not in request_paths:
            raise Violation(f"{trial_id} is trained, and it is not stored that it was asked for")

    def _check_waiting(self, monitor: Monitor) -> None:
        """Check, when no trial starts, that no failed trial waits longer than its pause."""
        waiting_ids = []
        for name, retry_at in monitor.not_before.items():
            if retry_at < self.scheduler.now - 0.01 and monitor.statuses.get(name) == "FAILED":
                waiting_ids.append(name)
        if waiting_ids:
            raise Violation(f"{waiting_ids} should be tried again by now")

    def _check_lease(self, process: Process, started_at: float) -> None:
        """Check that a driver got the lease alone, and did not wait for it too long."""
        alive = [holder for holder in self.holders if not holder.dead]
        for holder in alive:
            holder.taken = holder.frozen_until > started_at and holder.frozen_s > EXPIRES_S / 2
            self.num_taken += holder.taken
        other_holders = [holder.name for holder in alive if not holder.taken]
        if other_holders:
            raise Violation(f"{process.name} holds a sweep that {other_holders} holds")
        killed = any(at > started_at for at in self.killed_at.values())
        killed = killed or any(other.dead for other, _ in self.started)
        wait_s = self.scheduler.now - started_at - process.frozen_s
        if wait_s > EXPIRES_S + CALLS_S and not killed:
            raise Violation(f"{process.name} waited {wait_s:.0f} s for another driver, which lived")
        if wait_s > CALLS_S and self.roots == {process.root}:
            raise Violation(f"{process.name} waited {wait_s:.0f} s for a lease of its own root")
        self.holders.append(process)

    def _check_mlflow(
        self, tracker: Tracker, monitor: Monitor, running: set[str], ending: str = ""
    ) -> None:
        """Check that MLflow shows every trial as it is, unless the tracker has unsent updates.

        Args:
            tracker: The sweep's tracker.
            monitor: The statuses that MLflow should show.
            running: Trials that run now.
            ending: Status with which the sweep ended; empty while it runs.
        """
        if tracker.num_unsent_updates or self._num_server_changes():
            return
        shown_runs = defaultdict[str, list[Any]](list)
        for run_id, run in self.outside.server.runs.items():
            if run_id not in self.foreign_runs and run["info"]["lifecycle_stage"] == "active":
                shown_runs[run["tags"][KEY_TAG]].append(run)
        statuses = defaultdict[str, list[str]](list)
        may_run = set() if ending else {*running, *monitor.stopped, SWEEP_KEY}
        for name, runs in shown_runs.items():
            for run in runs:
                status = run["info"]["status"]
                statuses[name].append(status)
                tagged_as_running = run["tags"].get("status") == "running"
                is_wrong = name not in may_run if status == "RUNNING" else tagged_as_running
                if is_wrong:
                    raise Violation(f"MLflow shows {name} as running, and nothing is behind")
        for name, status in monitor.statuses.items():
            expected = "KILLED" if ending and status == "RUNNING" else status
            if statuses.get(name) != [expected]:
                raise Violation(
                    f"MLflow shows {name}, {expected}, as {statuses.get(name)}, nothing is behind"
                )
            self._check_mlflow_run(monitor, name, expected, shown_runs[name][0])
            if ending and self._ran_once(name):
                points = shown_runs[name][0]["points"]
                counts = Counter((point.key, point.step, point.value) for point in points)
                repeated_points = [point for point, count in counts.items() if count > 1]
                if repeated_points:
                    raise Violation(f"MLflow has a point of {name} twice: {repeated_points[:1]}")
        has_own_run = ending == "FINISHED" or (ending and monitor.has_begun)
        if has_own_run and statuses[SWEEP_KEY] != [ending]:
            raise Violation(f"MLflow shows a sweep that {ending} as {statuses[SWEEP_KEY]}")

    @staticmethod
    def _check_mlflow_run(monitor: Monitor, name: str, status: str, run: dict[str, Any]) -> None:
        """Check that a trial's MLflow run has the last failure's kind, and every epoch."""
        if status == "FAILED":
            shown_kind = run["tags"]["failure_kind"]
            expected_kind = monitor.kinds.get(name, shown_kind)
            if shown_kind != expected_kind:
                raise Violation(f"MLflow shows {name}, {expected_kind}, as {shown_kind}")
        missing_epochs = monitor.epochs[name] - {point.step for point in run["points"]}
        if missing_epochs:
            raise Violation(f"MLflow lacks epochs {missing_epochs} of {name}, which is {status}")

    def _ran_once(self, trial_id: str) -> bool:
        """Return whether a trial cannot have been tried more than once."""
        broke = any(self.outside.met[kind] for kind in ("Tune breaks", "Tune runs out of memory"))
        failed = any(failure.trial_id == trial_id for failure in self.reported_failures)
        return self.num_drivers == 1 and not broke and not failed

    def _check_end(self) -> None:
        """Check every promise about a sweep that has ended well."""
        met = self.outside.met
        kills = len(self.killed_at)
        store = self.reader
        stored = StoredResults(store, TrialRecords(store, {}, {}), {}, {}, [])
        sweep = self.sweep_kind(self.size, self.data, stored)
        records, problems = sweep.check_records(bool(self.outside.hit))
        failed = Counter(failure.trial_id for failure in self.reported_failures)
        is_undisturbed = (
            self.sweep_kind is Grid
            and not self.outside.hit
            and not met["data changed"]
            and not self.num_taken
        )
        for name, record in records.items():
            if record.result != sweep.outcome(name):
                problems.append(f"{name} has another result than undisturbed")
            # A driver may be killed after it stored a failure and before it reported the failure.
            fewest = 1 + failed[name] if is_undisturbed else 1
            most = 1 + failed[name] + kills
            if not fewest <= record.attempt <= most:
                problems.append(
                    f"{name} counts {record.attempt} attempts after {failed[name]} failures"
                )
            if met["power cut"] or self.num_taken:
                continue  # Event logs are not flushed, and two drivers write to them.
            num_failed_events = [event.what for event in store.events(name)].count("failed")
            # A search logs no events of failures.
            most_missing = failed[name]
            if self.sweep_kind is Grid:
                most_missing = kills + sum(met[kind] for kind in STORAGE_FAULTS)
            if not failed[name] - most_missing <= num_failed_events <= failed[name]:
                problems.append(
                    f"the story of {name} has {num_failed_events} of {failed[name]} failures"
                )
        owners = [folder.owner for folder in self.outside.machine.values() if folder.num_processes]
        owner_names = [owner.name for owner in owners if owner in self.killed_at]
        if owner_names:
            problems.append(f"processes of {owner_names} run on")
        if self.sweep_kind is Grid:
            problems += self._wrong_sweep_names(records)
        self._check([*problems, *self._wrong_runs(sweep, records, "")])

    def _wrong_sweep_names(self, records: Mapping[str, TrialRecord]) -> list[str]:
        """Return which MLflow runs do not name the sweep that trained their result."""
        problems = []
        for run_id, run in self.outside.server.runs.items():
            record = records.get(run["tags"][KEY_TAG])
            is_shown = (
                run["info"]["lifecycle_stage"] == "active" and run_id not in self.foreign_runs
            )
            if record is not None and is_shown and run["tags"].get(columns.SWEEP) != record.sweep:
                problems.append(f"the run of {record.trial_id} does not name {record.sweep}")
        return problems

    @staticmethod
    def _check(problems: list[str]) -> None:
        if problems:
            raise Violation("; ".join(problems))

    def _wrong_claims(self, sweep: Grid | Tuning, done: Iterable[str]) -> list[str]:
        """Return what is wrong in a driver's last statement of which trials are done."""
        problems = []
        hit_paths = self.outside.hit
        for name in done:
            path = f"{FOLDER}/{name}/{sweep.file}"
            # A driver may miss a file that is deleted during its last check. A search does not
            # check again.
            deleted_just_now = hit_paths.get(path, -1.0) > self.scheduler.now - 1.0
            unchecked = self.sweep_kind is Tuning and path in hit_paths
            if path not in self.outside.files and not deleted_just_now and not unchecked:
                problems.append(f"{name} counts as done and is not there")
        given_up = {failure.trial_id for failure in self.reported_failures if failure.gave_up}
        for name in sweep.planned().difference(done):
            if name not in given_up and f"{FOLDER}/{name}/{sweep.file}" not in hit_paths:
                problems.append(f"{name} is neither done nor given up")
        return problems

    def _wrong_runs(
        self, sweep: Grid | Tuning, names: Iterable[str], prefix: str, failed: Iterable[str] = ()
    ) -> list[str]:
        """Return what MLflow shows wrongly of trials that are done or failed.

        Args:
            sweep: The driver's sweep.
            names: Trials that have a result.
            prefix: Begin of every message.
            failed: Trials that failed.
        """
        shown_runs: dict[str, list[Any]] = defaultdict(list)
        problems = []
        for run in self.outside.server.search_runs([*self.outside.server.experiments]):
            if run.info.run_id in self.foreign_runs:
                continue
            if run.info.status == "RUNNING":
                problems.append(
                    f"{prefix}run {run.info.run_id} of {run.data.tags.get(KEY_TAG)} is RUNNING"
                )
            shown_runs[run.data.tags[KEY_TAG]].append(run)
        for name in failed:
            statuses = [run.info.status for run in shown_runs[name]]
            if statuses != ["FAILED"]:
                problems.append(f"{prefix}{name}, which failed, has {statuses}")
        for name in names:
            metric, loss = sweep.loss(name)
            statuses = [run.info.status for run in shown_runs[name]]
            if statuses != ["FINISHED"]:
                problems.append(f"{prefix}{name} has runs {statuses}")
            elif shown_runs[name][0].data.metrics.get(metric) != loss:
                problems.append(f"{prefix}{name} shows another loss")
        return problems


class Reader(ResultStore):
    """A result store that only reads, meets no fault, and reads no content twice."""

    def __init__(self, storage: SimulatedStorage) -> None:
        super().__init__(storage)
        self._scans: dict[tuple[type[StoredRecord], str, bytes], Scan[Any]] = {}

    def scan(self, kind: type[R]) -> Scan[R]:
        all_records = Scan[R]()
        for file in self.listing(kind).values():
            key = kind, file.path, self._files.read(file.path)
            if key not in self._scans:
                scan = Scan[R]()
                scan.records.update(self.read_each(kind, [file], scan.unreadable))
                self._scans[key] = scan
            all_records.records.update(self._scans[key].records)
            all_records.unreadable.extend(self._scans[key].unreadable)
        return all_records


class Monitor(Progress):
    """A progress display that records what the sweep reports of its trials.

    Attributes:
        statuses: Status that MLflow should show of each trial.
        kinds: Kind of each trial's last failure.
        epochs: Epochs that each running trial has reported.
        stopped: Trials that were stopped with Tune, and wait again in their run.
        not_before: Virtual second at which each failed trial may be tried again, by the
            pauses of ``TRIED_AGAIN``.
        has_begun: Whether a trial has begun.
    """

    def __init__(self, world: World, sweep: Grid | Tuning) -> None:
        super().__init__()
        self._world = world
        self._data = sweep.data
        self.statuses = sweep.statuses()
        self.stopped = set[str]()
        self.kinds: dict[str, str] = {}
        self.has_begun = False
        self.epochs = defaultdict[str, set[int]](set)
        self.not_before: dict[str, float] = {}
        self._failures = Counter[str]()

    def trial_started(self, trial_id: str) -> None:
        super().trial_started(trial_id)
        self.has_begun = True
        self.stopped.discard(trial_id)
        self.statuses[trial_id] = "RUNNING"

    def trial_epoch(self, trial_id: str, epoch: EpochRecord, network: NetworkSpec) -> None:
        super().trial_epoch(trial_id, epoch, network)
        if self._world.sweep_kind is Grid:
            self.epochs[trial_id].add(epoch.epoch)

    def trial_finished(self, trial_id: str, status: str) -> None:
        if self.statuses.get(trial_id) == "FINISHED":
            raise Violation(f"the result of {trial_id} is told twice")
        self._world.stored_results.add((trial_id, self._data))
        super().trial_finished(trial_id, status)
        self.epochs.pop(trial_id, None)
        self.stopped.discard(trial_id)
        self.statuses[trial_id] = "FINISHED"

    def trial_failed(
        self, trial_id: str, kind: str, message: str, retry_after_s: float | None
    ) -> None:
        gave_up = retry_after_s is None
        self._world.reported_failures.append(ReportedFailure(trial_id, str(kind), gave_up, message))
        self._failures[trial_id] += 1
        row = TRIED_AGAIN[FailureKind(kind)]
        pause = min(row.first_pause_s * 2 ** (self._failures[trial_id] - 1), row.max_pause_s)
        self.kinds[trial_id] = str(kind)
        self.not_before[trial_id] = math.inf if gave_up else self._world.scheduler.now + pause
        super().trial_failed(trial_id, kind, message, retry_after_s)
        self.stopped.discard(trial_id)
        self.statuses[trial_id] = "FAILED"

    def trial_stopped(self, trial_id: str) -> None:
        super().trial_stopped(trial_id)
        self.stopped.add(trial_id)
        self.statuses.pop(trial_id, None)
