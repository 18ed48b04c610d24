"""What a driver meets outside: storage, MLflow's server and its machine, with faults of a
schedule."""

from __future__ import annotations

import contextlib
import copy
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import md5
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
"""Everything that may go wrong, by the name that a summary counts."""
NAMED_ONLY = ("a trial finds no memory",)
"""Faults of named schedules alone: they are long, and no seed draws them."""
RECORDS = ("result.json", "failure.json", "search.json", "asked.json")
AT_ONCE_S = 15.0
"""In which even a slow driver that stored something looks at it once."""
LEASE = "simulated/driver-lease.json"
LASTING = {"storage away", "storage refuses", "disk full"}
LASTING |= {"server away", "server slow", "server resets", "server doubles", "server refuses"}
LONG = LASTING | {"driver frozen"}
"""Those whose amount is seconds."""


class Fault(NamedTuple):
    """Something that goes wrong.

    Attributes:
        step: At which port call of the world.
        kind: One of :data:`FAULTS` or :data:`NAMED_ONLY`.
        amount: Seconds that it lasts, or by which a clock is set; which file or trial it hits.
    """

    step: int
    kind: str
    amount: float


@dataclass
class PrivateFolder:
    """A folder of a private cluster.

    Attributes:
        owner: The driver that made it.
        has_owner_file: Whether its lock is there, which the owner holds while it lives.
        num_processes: Of Ray, out of it; they outlive a driver that is killed.
    """

    owner: Process
    has_owner_file: bool = False
    num_processes: int = 0


@dataclass
class Outside:
    """All that outlives a driver.

    Attributes:
        scheduler: Whose turn it is.
        faults: Still to come, in order.
        files: Path -> content, and a number that changes with it.
        machine: Folders of private clusters that drivers made, and who did.
        hit: Paths of files that were damaged or deleted, with the time.
        hit_at_once: Those of them that had just been written, and not been looked at.
        met: How often each fault had something to hit.
        paused_s: Seconds for which a sweep waits for storage or is slow, in all.
        num_refused: Records that storage did not take, and never will.
        index: A file of outlines below the root, which a power cut or a user may spoil.
        log: What happened, for the reader of a failing seed.
        second: Starts a second driver.
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
    second: Callable[[], None] = lambda: None
    index: Path | None = None

    def note(self, text: str) -> None:
        """Write down what happens."""
        self.log.append(f"{self.scheduler.now:9.2f}  {text}")

    def call(self, process: Process) -> None:
        """Somebody asks for something outside: time passes, others run, and what is due goes wrong.

        Raises:
            Killed: where the process dies here.
        """
        self.num_calls += 1
        while self.faults and self.faults[0].step <= self.num_calls:
            self._begins(self.faults.pop(0), process)
        slow = self.is_on("server slow")
        self.scheduler.wait(None, self.random.random() * (5.0 if slow else 0.02))

    def is_on(self, kind: str) -> bool:
        """Tell whether a fault that lasts is on."""
        on = self.lasting.get(kind, -1.0) > self.scheduler.now
        if on:
            self.met[kind] += 1
        return on

    def take(self, *kinds: str) -> Fault | None:
        """Return a fault of these kinds that is due, which has now happened."""
        found = next((fault for fault in self.due if fault.kind in kinds), None)
        if found is not None:
            self.due.remove(found)
            self.met[found.kind] += 1
            self.note(f"fault: {found.kind} ({found.amount:.3g})")
        return found

    def _begins(self, fault: Fault, process: Process) -> None:
        if fault.kind in LASTING:
            self.note(f"fault: {fault.kind} for {fault.amount:.0f} s")
            self.lasting[fault.kind] = self.scheduler.now + fault.amount
            self.paused_s += (
                fault.amount if fault.kind in ("storage away", "disk full", "server slow") else 0.0
            )
        elif fault.kind == "second driver":
            self.met[fault.kind] += 1
            self.note("fault: second driver")
            self.second()
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
                self._lose_what_was_not_flushed()
            raise Killed
        else:
            self.due.append(fault)
            self._files_and_server()

    def _files_and_server(self) -> None:
        """Do to files and to the server what people and restores do."""
        records = sorted(path for path in self.files if path.endswith(RECORDS))
        if records and (fault := self.take("file damaged", "file deleted")):
            path = records[int(fault.amount * len(records)) % len(records)]
            content, _ = self.files.pop(path)
            if fault.kind == "file damaged":
                self.num_written += 1
                self.files[path] = (self._damaged(path, content, fault.amount), self.num_written)
            self.hit[path] = self.scheduler.now
            if self.scheduler.now - self.written_at[path] < AT_ONCE_S:
                self.hit_at_once.add(path)
            self.note(f"  {path}")
        if LEASE in self.files and self.take("lease deleted"):
            del self.files[LEASE]
        if self.index and self.index.exists() and (fault := self.take("index damaged")):
            content = bytearray(self.index.read_bytes())
            digits = [k for k, sign in enumerate(content) if sign in b"0123456789"]
            content[digits[int(fault.amount * len(digits))]] ^= 1
            self.index.write_bytes(content)
        if self.snapshots and (fault := self.take("server restored")):
            kept = self.snapshots[int(fault.amount * len(self.snapshots)) % len(self.snapshots)]
            self.server.kept = _copied(kept)

    def _damaged(self, path: str, content: bytes, amount: float) -> bytes:
        """Cut a file, flip a digit in it, or put another trial's in its place."""
        place, name = int(amount * len(content)), path.rpartition("/")[2]
        if self.random.random() < 0.3:
            return content[:place]
        others = sorted(other for other in self.files if other.endswith(f"/{name}"))
        if others and self.random.random() < 0.5:
            return self.files[self.random.choice(others)][0]
        digits = [k for k, sign in enumerate(content) if sign in b"0123456789"]
        at = digits[place % len(digits)]
        flipped = b"7" if content[at : at + 1] != b"7" else b"3"
        return content[:at] + flipped + content[at + 1 :]

    def keep_snapshot(self) -> None:
        """Keep what the server has now, if it will be restored to it."""
        if any(fault.kind == "server restored" for fault in self.faults):
            self.snapshots.append(_copied(self.server.kept))
            del self.snapshots[:-3]

    def _lose_what_was_not_flushed(self) -> None:
        """Of each file that was not flushed the new content is there, the old one, or a part of the
        new."""
        for path, before in self.not_durable.items():
            what = self.random.random()
            if what < 0.3 and path in self.files:
                content, version = self.files[path]
                self.files[path] = (content[: int(what * len(content))], version)
            elif what < 0.6:
                self.files.pop(path, None)
                if before is not None:
                    self.files[path] = before
        self.not_durable.clear()


def _copied(runs: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a server's runs; points and ids never change."""
    return {
        run_id: {name: copy.copy(part) for name, part in run.items()}
        for run_id, run in runs.items()
    }


def _tag(content: bytes) -> str:
    """As of S3: the same bytes have the same tag, written when they may."""
    return md5(content, usedforsecurity=False).hexdigest()


class SimulatedStorage(Bucket):
    """An object store as one process sees it."""

    def __init__(self, outside: Outside, process: Process) -> None:
        super().__init__(None, "simulated", "")
        self._outside, self._process = outside, process

    def _asked(self, path: str = "", *, writes: bool = False) -> None:
        self._outside.call(self._process)
        if self._outside.is_on("storage away"):
            raise StorageAway("The simulated result store does not answer")
        if writes and self._outside.is_on("disk full"):
            raise StorageAway("The simulated result store has no space left")
        if writes and self._outside.is_on("storage refuses"):
            self._outside.num_refused += path.endswith(RECORDS)
            raise SetupError("The simulated result store permits no write")

    def _answered(self) -> None:
        """The reply is on its way: what was asked for is done."""
        if self._outside.take("storage loses a reply"):
            raise StorageAway("The simulated result store lost a reply")
        if self._process.dead:
            raise Killed

    def read(self, path: str) -> bytes:
        return self.read_tagged(path)[0]

    def read_tagged(self, path: str) -> tuple[bytes, str]:
        self._asked()
        if path not in self._outside.files:
            raise FileNotFoundError(path)
        content = self._outside.files[path][0]
        return content, _tag(content)

    def read_many(
        self, files: Iterable[StoredFile]
    ) -> Iterator[tuple[StoredFile, bytes | OSError]]:
        for found in [*files]:
            try:
                yield found, self.read(found.path)
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
        self._asked(path, writes=True)
        outside = self._outside
        there = outside.files.get(path)
        tag = mode["e_tag"] if isinstance(mode, dict) else ""
        if (mode == "create" and there) or (tag and (there is None or _tag(there[0]) != tag)):
            self._answered()
            return None
        outside.num_written += 1
        outside.files[path] = (bytes(data), outside.num_written)
        outside.written_at[path] = outside.scheduler.now
        if path.endswith("result.json") and outside.take("killed behind a result"):
            self._process.dead = True
        self._answered()
        return _tag(data)

    def remove(self, path: str) -> None:
        frozen_s, outside = self._process.frozen_s, self._outside
        self._asked(path, writes=True)
        gone = outside.files.pop(path, None)
        name = json.loads(gone[0])["name"] if gone and path == LEASE else self._process.root
        if name != self._process.root and self._process.frozen_s == frozen_s:
            raise Violation(f"{self._process.name} removes the lease of {name}")
        if gone and path.endswith(RECORDS) and outside.take("killed behind a removal"):
            self._process.dead = True
        self._answered()

    def find(self, folder: str, name: str) -> Iterator[StoredFile]:
        self._asked()
        depth = folder.count("/") + 2
        for path in sorted(self._outside.files):
            if (
                path.startswith(f"{folder}/")
                and path.endswith(f"/{name}")
                and path.count("/") == depth
            ):
                yield StoredFile(path, _tag(self._outside.files[path][0]))


WRITES = ("create", "set_", "update", "log_", "restore", "delete")


class SimulatedServer:
    """MLflow's client of one process, whose server may be away, slow, or lose and double what it is
    told."""

    tracking_uri = "memory:"

    def __init__(self, outside: Outside, process: Process) -> None:
        self._outside, self._process = outside, process

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._outside.server, name)

        def asked(*args: Any, **options: Any) -> Any:
            outside = self._outside
            outside.call(self._process)
            if outside.is_on("server away"):
                raise MlflowException("API request failed: connection refused")
            if name.startswith(WRITES) and outside.is_on("server refuses"):
                raise MlflowException("You may not write here", PERMISSION_DENIED)
            if name.startswith(WRITES) and outside.random.random() < 0.2:
                outside.keep_snapshot()
            found = method(*args, **options)
            if name.startswith(WRITES) and outside.is_on("server doubles"):
                with contextlib.suppress(MlflowException):
                    found = method(*args, **options)
            if self._process.dead:
                raise Killed
            if outside.is_on("server resets"):
                raise MlflowException("API request failed: connection reset by peer")
            return found

        return asked


class SimulatedProcesses(RayFolders):
    """The machine as one driver sees it."""

    def __init__(self, outside: Outside, process: Process) -> None:
        self._outside, self._process = outside, process

    def _there(self, folder: Path) -> PrivateFolder:
        self._outside.call(self._process)
        if folder not in self._outside.machine:
            raise FileNotFoundError(folder)
        return self._outside.machine[folder]

    def folders(self) -> list[Path]:
        return sorted(self._outside.machine)

    def is_abandoned(self, folder: Path) -> bool:
        with contextlib.suppress(FileNotFoundError):
            there = self._there(folder)
            return there.has_owner_file and there.owner.dead
        return False

    def remove(self, folder: Path) -> None:
        self._outside.call(self._process)
        gone = self._outside.machine.pop(folder, None)
        if gone is not None and not gone.owner.dead:
            raise Violation(
                f"{self._process.name} ended the processes of {gone.owner.name}, which lives"
            )

    @contextlib.contextmanager
    def cluster(self) -> Iterator[None]:
        """Have a private cluster, as :func:`orchestrator.machine.ray_folders.private_folder` makes
        one."""
        outside, process = self._outside, self._process
        outside.num_folders += 1
        folder = Path(f"isweep-ray-{outside.num_folders}")
        outside.call(process)
        made = outside.machine[folder] = PrivateFolder(process)
        outside.call(process)
        made.has_owner_file = True
        outside.call(process)
        made.num_processes = 3
        try:
            yield
        finally:
            if not process.dead:
                del outside.machine[folder]

    def check_orphans(self, dead: Iterable[Process]) -> None:
        """See that nothing runs of drivers that are ``dead``."""
        left = [one.owner.name for one in self._outside.machine.values() if one.num_processes]
        if found := sorted({process.name for process in dead} & set(left)):
            raise Violation(f"processes of {found} run on beside {self._process.name}")
