"""The surroundings of a driver, with the faults of a schedule: storage, MLflow's server, machine."""

from __future__ import annotations

import contextlib
import copy
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import md5, sha256
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from orchestrator.machine.ray_folders import RayFolders
from orchestrator.results.storage import Bucket, StorageAway, StoredFile
from search_spaces.errors import SetupError
from tests.mlflow_client import SimulatedClient
from tests.simulation.scheduler import Killed, Process, Scheduler, Violation

FAULTS = (
    "driver killed",
    "driver frozen",
    "power cut",
    "user stops",
    "second driver",
    "clock set",
    "storage away",
    "storage loses a reply",
    "storage refuses",
    "disk full",
    "file damaged",
    "file deleted",
    "index damaged",
    "server away",
    "server slow",
    "server resets",
    "server doubles",
    "server refuses",
    "server restored",
    "worker dies",
    "node lost",
    "head lost",
    "memory kill",
    "device fails",
    "trial hangs",
    "worker says nothing",
    "other code",
    "network error",
    "report lost",
    "report doubled",
    "a trial fails again",
    "Tune breaks",
    "Tune runs out of memory",
    "sweep extended",
    "data changed",
)
"""Kinds of faults that a seed draws, by the name under which a summary counts them."""
NAMED_ONLY = ("a trial finds no memory", "file exchanged", "result copied from another sweep")
"""Kinds of faults that only named schedules have: they take long, or few seeds would draw them."""
FILE_FAULTS = ("file damaged", "file deleted", "file exchanged", "result copied from another sweep")
"""Kinds of faults that change or delete a stored record."""
RECORDS = ("result.json", "failure.json", "search.json", "asked.json")
AT_ONCE_S = 15.0
"""Seconds in which even a slow driver reads once what it has stored."""
LEASE = "simulated/driver-lease.json"
LASTING = {"storage away", "storage refuses", "disk full"}
LASTING |= {"server away", "server slow", "server resets", "server doubles", "server refuses"}
LONG = LASTING | {"driver frozen"}
"""Kinds of faults whose amount is in seconds."""


class Fault(NamedTuple):
    """A fault of a schedule.

    Attributes:
        step: Number of the outside call at which the fault begins.
        kind: One of :data:`FAULTS` or :data:`NAMED_ONLY`.
        amount: Seconds that the fault lasts, or by which a clock is set. Otherwise a number in
            [0, 1) that selects the file or trial.
    """

    step: int
    kind: str
    amount: float


@dataclass
class PrivateFolder:
    """A folder of a private cluster.

    Attributes:
        owner: The driver that created the folder.
        has_owner_file: Whether the folder has its lock file, which the owner locks while it lives.
        num_processes: Ray processes that run from the folder. They outlive a killed driver.
    """

    owner: Process
    has_owner_file: bool = False
    num_processes: int = 0


@dataclass
class Outside:
    """The part of the world that outlives a driver.

    Attributes:
        scheduler: The scheduler of all threads.
        random: The random numbers of the schedule.
        faults: Faults that are still to come, in order.
        files: Path -> content, and a number that changes with the content.
        not_durable: Path -> earlier entry of ``files``, for files that were not flushed.
        machine: Folders of private clusters, by path.
        server: MLflow's server.
        snapshots: Earlier runs of the server, to which a user may restore it.
        lasting: Kind of a fault that lasts -> virtual second at which it ends.
        due: Faults that have begun and wait for something to hit.
        hit: Path of each file that was damaged or deleted -> virtual second.
        hit_at_once: Paths in ``hit`` that had just been written and were not read yet.
        written_at: Path -> virtual second of the last write.
        met: How often each fault had something to hit.
        paused_s: Seconds for which a sweep waits for storage or is slow, in all.
        num_refused: Records that storage refused for good.
        index: The file of outlines below the root, which a power cut or a user may damage.
        log: Lines for the reader of a failing seed.
        start_second_driver: A function that starts a second driver.
    """

    scheduler: Scheduler
    random: Random
    faults: list[Fault] = field(default_factory=list)
    files: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    not_durable: dict[str, tuple[bytes, int] | None] = field(default_factory=dict)
    machine: dict[Path, PrivateFolder] = field(default_factory=dict)
    server: SimulatedClient = field(default_factory=SimulatedClient)
    snapshots: list[dict[str, Any]] = field(default_factory=list)
    lasting: dict[str, float] = field(default_factory=dict)
    due: list[Fault] = field(default_factory=list)
    hit: dict[str, float] = field(default_factory=dict)
    hit_at_once: set[str] = field(default_factory=set)
    written_at: dict[str, float] = field(default_factory=dict)
    met: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)
    paused_s: float = 0.0
    num_calls: int = 0
    num_written: int = 0
    num_refused: int = 0
    num_folders: int = 0
    start_second_driver: Callable[[], None] = lambda: None
    index: Path | None = None

    def note(self, text: str) -> None:
        """Log an event with its virtual time."""
        self.log.append(f"{self.scheduler.now:9.2f}  {text}")

    def call(self, process: Process) -> None:
        """Count a call of a process: time passes, other threads run, and due faults begin.

        Raises:
            Killed: the process dies in this call.
        """
        self.num_calls += 1
        while self.faults and self.faults[0].step <= self.num_calls:
            self._start_fault(self.faults.pop(0), process)
        longest_s = 5.0 if self.is_on("server slow") else 0.02
        self.scheduler.wait(None, self.random.random() * longest_s)

    def is_on(self, kind: str) -> bool:
        """Return whether a lasting fault of this kind is active. Count it as met if so."""
        on = self.lasting.get(kind, -1.0) > self.scheduler.now
        if on:
            self.met[kind] += 1
        return on

    def take(self, *kinds: str) -> Fault | None:
        """Remove and return a due fault of these kinds, or None. Count it as met."""
        due_fault = next((fault for fault in self.due if fault.kind in kinds), None)
        if due_fault is not None:
            self.due.remove(due_fault)
            self.met[due_fault.kind] += 1
            self.note(f"fault: {due_fault.kind} ({due_fault.amount:.3g})")
        return due_fault

    def _start_fault(self, fault: Fault, process: Process) -> None:
        if fault.kind in LASTING:
            self.note(f"fault: {fault.kind} for {fault.amount:.0f} s")
            self.lasting[fault.kind] = self.scheduler.now + fault.amount
            if fault.kind in ("storage away", "disk full", "server slow"):
                self.paused_s += fault.amount
        elif fault.kind == "second driver":
            self.met[fault.kind] += 1
            self.note("fault: second driver")
            self.start_second_driver()
        elif fault.kind == "driver frozen":
            self.met[fault.kind] += 1
            self.note(f"fault: driver frozen ({process.name}) for {fault.amount:.0f} s")
            process.frozen_until = self.scheduler.now + fault.amount
            process.frozen_s += fault.amount
            self.paused_s += fault.amount
        elif fault.kind == "clock set":
            self.met[fault.kind] += 1
            self.note(f"fault: clock set ({process.name})")
            process.clock_off_s = (fault.amount - 0.5) * 1e6
        elif fault.kind in ("driver killed", "power cut"):
            self.met[fault.kind] += 1
            self.note(f"fault: {fault.kind} ({process.name})")
            process.dead = True
            if fault.kind == "power cut":
                self._lose_unflushed_files()
            raise Killed
        else:
            self.due.append(fault)
            self._files_and_server()

    def _files_and_server(self) -> None:
        """Apply due faults of files and of the server."""
        records = sorted(path for path in self.files if path.endswith(RECORDS))
        if records and (fault := self.take(*FILE_FAULTS)):
            position = int(fault.amount * len(records)) % len(records)
            path = records[position]
            content, _ = self.files.pop(path)
            if fault.kind != "file deleted":
                self.num_written += 1
                self.files[path] = (self._changed(fault, path, content), self.num_written)
            self.hit[path] = self.scheduler.now
            if self.scheduler.now - self.written_at[path] < AT_ONCE_S:
                self.hit_at_once.add(path)
            self.note(f"  {path}")
        if LEASE in self.files and self.take("lease deleted"):
            del self.files[LEASE]
        if self.index and self.index.exists() and (fault := self.take("index damaged")):
            content = bytearray(self.index.read_bytes())
            digits = [index for index, byte in enumerate(content) if byte in b"0123456789"]
            content[digits[int(fault.amount * len(digits))]] ^= 1
            self.index.write_bytes(content)
        if self.snapshots and (fault := self.take("server restored")):
            snapshot = self.snapshots[int(fault.amount * len(self.snapshots)) % len(self.snapshots)]
            self.server.runs = _copied(snapshot)

    def _changed(self, fault: Fault, path: str, content: bytes) -> bytes:
        """Return a file's content after a fault.

        A damaged file is cut, has one digit changed, or has the content of another trial. A
        copied result is intact, but another sweep stored it.
        """
        if fault.kind == "result copied from another sweep":
            return _with_sweep(content, "another")
        position = int(fault.amount * len(content))
        name = path.rpartition("/")[2]
        is_exchanged = fault.kind == "file exchanged"
        if not is_exchanged and self.random.random() < 0.3:
            return content[:position]
        other_paths = sorted(other for other in self.files if other.endswith(f"/{name}"))
        if other_paths and (is_exchanged or self.random.random() < 0.5):
            return self.files[self.random.choice(other_paths)][0]
        digits = [index for index, byte in enumerate(content) if byte in b"0123456789"]
        digit = digits[position % len(digits)]
        flipped = b"7" if content[digit : digit + 1] != b"7" else b"3"
        return content[:digit] + flipped + content[digit + 1 :]

    def keep_snapshot(self) -> None:
        """Save the server's runs, if a later fault restores the server."""
        if any(fault.kind == "server restored" for fault in self.faults):
            self.snapshots.append(_copied(self.server.runs))
            del self.snapshots[:-3]

    def _lose_unflushed_files(self) -> None:
        """Apply a power cut to files that were not flushed.

        Each file has its new content, its earlier content, or a part of the new one afterwards.
        """
        for path, flushed in self.not_durable.items():
            draw = self.random.random()
            if draw < 0.3 and path in self.files:
                content, version = self.files[path]
                self.files[path] = (content[: int(draw * len(content))], version)
            elif draw < 0.6:
                self.files.pop(path, None)
                if flushed is not None:
                    self.files[path] = flushed
        self.not_durable.clear()


def _with_sweep(content: bytes, sweep: str) -> bytes:
    """Return a stored record with another sweep's name and a correct checksum."""
    fields = json.loads(content)["record"]
    if "sweep" in fields:
        fields["sweep"] = sweep
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return json.dumps({"record": fields, "sha256": sha256(text.encode()).hexdigest()}).encode()


def _copied(runs: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a server's runs. Points and ids are shared: they never change."""
    return {
        run_id: {name: copy.copy(part) for name, part in run.items()}
        for run_id, run in runs.items()
    }


def _tag(content: bytes) -> str:
    """Return the tag of a content. As in S3 the same bytes have the same tag at any time."""
    return md5(content, usedforsecurity=False).hexdigest()


class SimulatedStorage(Bucket):
    """An object store as one process sees it."""

    def __init__(self, outside: Outside, process: Process) -> None:
        super().__init__(None, "simulated", "")
        self._outside = outside
        self._process = process

    def _call(self, path: str = "", *, writes: bool = False) -> None:
        self._outside.call(self._process)
        if self._outside.is_on("storage away"):
            raise StorageAway("The simulated result store does not answer")
        if writes and self._outside.is_on("disk full"):
            raise StorageAway("The simulated result store has no space left")
        if writes and self._outside.is_on("storage refuses"):
            self._outside.num_refused += path.endswith(RECORDS)
            raise SetupError("The simulated result store permits no write")

    def _reply(self) -> None:
        """Return to the caller after the request was done, unless the reply is lost."""
        if self._outside.take("storage loses a reply"):
            raise StorageAway("The simulated result store lost a reply")
        if self._process.dead:
            raise Killed

    def read(self, path: str) -> bytes:
        return self.read_tagged(path)[0]

    def read_tagged(self, path: str) -> tuple[bytes, str]:
        self._call()
        if path not in self._outside.files:
            raise FileNotFoundError(path)
        content = self._outside.files[path][0]
        return content, _tag(content)

    def read_many(
        self, files: Iterable[StoredFile]
    ) -> Iterator[tuple[StoredFile, bytes | OSError]]:
        for file in [*files]:
            try:
                yield file, self.read(file.path)
            except FileNotFoundError:
                continue

    def write(self, path: str, data: bytes, *, durable: bool = True) -> str:
        outside = self._outside
        if not durable:
            outside.not_durable.setdefault(path, outside.files.get(path))
        stamp = str(self.put(path, data, "overwrite"))
        if durable:
            outside.not_durable.pop(path, None)
        return stamp

    def put(self, path: str, data: bytes, mode: str | dict[str, str]) -> str | None:
        self._call(path, writes=True)
        outside = self._outside
        stored = outside.files.get(path)
        required_tag = mode["e_tag"] if isinstance(mode, dict) else ""
        stored_tag = None if stored is None else _tag(stored[0])
        if (mode == "create" and stored) or (required_tag and stored_tag != required_tag):
            self._reply()
            return None
        outside.num_written += 1
        outside.files[path] = (bytes(data), outside.num_written)
        outside.written_at[path] = outside.scheduler.now
        if path.endswith("result.json") and outside.take("killed behind a result"):
            self._process.dead = True
        self._reply()
        return _tag(data)

    def remove(self, path: str) -> None:
        outside = self._outside
        process = self._process
        frozen_s = process.frozen_s
        self._call(path, writes=True)
        removed = outside.files.pop(path, None)
        name = process.root
        if removed and path == LEASE:
            name = json.loads(removed[0])["name"]
        # A driver that was frozen during this call may remove a lease that was taken meanwhile.
        if name != process.root and process.frozen_s == frozen_s:
            raise Violation(f"{process.name} removes the lease of {name}")
        if removed and path.endswith(RECORDS) and outside.take("killed behind a removal"):
            self._process.dead = True
        self._reply()

    def find(self, folder: str, name: str) -> Iterator[StoredFile]:
        self._call()
        depth = folder.count("/") + 2
        for path in sorted(self._outside.files):
            is_named = path.startswith(f"{folder}/") and path.endswith(f"/{name}")
            if is_named and path.count("/") == depth:
                yield StoredFile(path, _tag(self._outside.files[path][0]))


WRITES = ("create", "set_", "update", "log_", "restore", "delete")


class SimulatedServer:
    """MLflow's client of one process. Its server may be away or slow, lose replies and repeat calls."""

    tracking_uri = "memory:"

    def __init__(self, outside: Outside, process: Process) -> None:
        self._outside = outside
        self._process = process

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._outside.server, name)

        def call_server(*args: Any, **options: Any) -> Any:
            outside = self._outside
            outside.call(self._process)
            if outside.is_on("server away"):
                raise MlflowException("API request failed: connection refused")
            if name.startswith(WRITES) and outside.is_on("server refuses"):
                raise MlflowException("You may not write here", PERMISSION_DENIED)
            if name.startswith(WRITES) and outside.random.random() < 0.2:
                outside.keep_snapshot()
            result = method(*args, **options)
            if name.startswith(WRITES) and outside.is_on("server doubles"):
                with contextlib.suppress(MlflowException):
                    result = method(*args, **options)
            if self._process.dead:
                raise Killed
            if outside.is_on("server resets"):
                raise MlflowException("API request failed: connection reset by peer")
            return result

        return call_server


class SimulatedProcesses(RayFolders):
    """The machine as one driver sees it."""

    def __init__(self, outside: Outside, process: Process) -> None:
        self._outside = outside
        self._process = process

    def _folder(self, folder: Path) -> PrivateFolder:
        self._outside.call(self._process)
        if folder not in self._outside.machine:
            raise FileNotFoundError(folder)
        return self._outside.machine[folder]

    def folders(self) -> list[Path]:
        return sorted(self._outside.machine)

    def is_abandoned(self, folder: Path) -> bool:
        with contextlib.suppress(FileNotFoundError):
            private_folder = self._folder(folder)
            return private_folder.has_owner_file and private_folder.owner.dead
        return False

    def remove_folder(self, folder: Path) -> None:
        self._outside.call(self._process)
        removed = self._outside.machine.pop(folder, None)
        if removed is not None and not removed.owner.dead:
            raise Violation(
                f"{self._process.name} ended the processes of {removed.owner.name}, which lives"
            )

    @contextlib.contextmanager
    def cluster(self) -> Iterator[None]:
        """Simulate a private cluster, as ``private_folder`` of
        :mod:`orchestrator.machine.ray_folders` creates one."""
        outside = self._outside
        process = self._process
        outside.num_folders += 1
        folder = Path(f"isweep-ray-{outside.num_folders}")
        outside.call(process)
        private_folder = outside.machine[folder] = PrivateFolder(process)
        outside.call(process)
        private_folder.has_owner_file = True
        outside.call(process)
        private_folder.num_processes = 3
        try:
            yield
        finally:
            if not process.dead:
                del outside.machine[folder]

    def check_orphans(self, dead: Iterable[Process]) -> None:
        """Check that no process of a ``dead`` driver runs."""
        folders = self._outside.machine.values()
        owners = {folder.owner.name for folder in folders if folder.num_processes}
        dead_owners = sorted(owners & {process.name for process in dead})
        if dead_owners:
            raise Violation(f"processes of {dead_owners} run on beside {self._process.name}")
