"""A look at every node of a cluster: a task on each says what is there, and the driver what is wrong."""

from __future__ import annotations

import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from orchestrator.results.tracking.provenance import provenance
from orchestrator.running.devices import LOGICAL_GPUS, driver_version, output_of

MIN_FREE_BYTES = 5 * 2**30
MAX_CLOCK_SKEW_S = 5.0
"""Times of a trial are its node's: more would put its start before the sweep's."""
ANSWER_TIMEOUT_S = 60.0
PACKAGES = ("ray", "torch")
SAME = "install the same everywhere: make wheel, ray up"
LOOK = "ask again, for a first answer may be slow; then look at its logs, or take it out of the cluster"

# In a process of its own, since Ray hides the cards from a task that asked for none.
_ASK_TORCH = """
import torch
print(torch.version.cuda or "")
if torch.cuda.is_available():
    torch.zeros(1, device="cuda")
    for index in range(torch.cuda.device_count()):
        print(torch.cuda.get_device_name(index))
"""


@dataclass(frozen=True)
class NodeReport:
    """What a node says of itself, and what is wrong with it.

    Attributes:
        address: Of the node within the cluster.
        head: Whether it is the head.
        num_cpus: That Ray may hand out there.
        num_gpus: Likewise.
        cards: That torch can compute on.
        driver: Version of the NVIDIA driver; empty without.
        cuda: That torch was built for; empty for a build without.
        versions: Of isweep (with its commit), ray and torch.
        free_disk_bytes: Where Ray keeps its session.
        free_spill_bytes: Where objects go that do not fit into memory.
        clock_skew_s: By how much its clock differs from the driver's, at least.
        sees_root: Whether it sees the driver's root: nodes need not. None where there is none to see.
        sees_storage: Whether it reaches the result store by its URL: only the driver's need. Empty when there
            is none, else "yes" or the reason.
        problems: What must be mended, and the way out of each.
    """

    address: str
    head: bool
    num_cpus: float
    num_gpus: float
    cards: tuple[str, ...] = ()
    driver: str = ""
    cuda: str = ""
    versions: tuple[tuple[str, str], ...] = ()
    free_disk_bytes: int = 0
    free_spill_bytes: int = 0
    clock_skew_s: float = 0.0
    sees_root: bool | None = None
    sees_storage: str = ""
    problems: tuple[tuple[str, str], ...] = ()

    def row(self) -> dict[str, Any]:
        """Return the report as JSON takes it."""
        return {**asdict(self), "versions": dict(self.versions)}


def look_at_nodes(root: Path, storage: str | None = None) -> list[NodeReport]:
    """Run one task on every node of the connected cluster.

    Args:
        root: The driver's root; a file is put there for a moment, if it exists.
        storage: fsspec URL of the result store; None asks for none.

    Returns:
        One report per node, the head first; a node that does not answer is reported as such.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(look_here)
    with _mark(root) as mark:
        asked: dict[Any, dict[str, Any]] = {}
        started = time.time()
        for node in ray.nodes():
            if node["Alive"]:
                where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": where}
                asked[look.options(**options).remote(mark, storage)] = node
        found = [_report(answer, node, started) for answer, node in _answers(asked)]
    return sorted(found, key=lambda report: (not report.head, report.address))


def _answers(asked: dict[Any, dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield what each node answers as soon as it does, and at the end those that do not."""
    import ray

    patience = time.monotonic() + ANSWER_TIMEOUT_S
    waiting = list(asked)
    while waiting and (left := patience - time.monotonic()) > 0:
        done, waiting = ray.wait(waiting, timeout=left)
        for reference in done:
            try:
                yield ray.get(reference) | {"answered_at": time.time()}, asked[reference]
            except ray.exceptions.RayTaskError as error:  # a traceback, whose last line says why
                reason = str(error).strip().splitlines()[-1]
                yield {"silent": f"cannot look at itself: {reason}", "way_out": SAME}, asked[reference]
            except ray.exceptions.RayError as error:
                yield {"silent": f"does not answer: {str(error).strip().splitlines()[0]}"}, asked[reference]
    for reference in waiting:
        ray.cancel(reference, force=True)
        yield {"silent": f"gives no answer within {ANSWER_TIMEOUT_S:g} s"}, asked[reference]


def look_here(mark: str | None, storage: str | None) -> dict[str, Any]:
    """Return what this node has; runs as a task there."""
    import ray

    session = Path(ray._private.worker._global_node.get_session_dir_path())
    spill = _spill_folder(session)
    lines = output_of(sys.executable, "-c", _ASK_TORCH).splitlines() or [""]
    return {
        "cards": tuple(lines[1:]),
        "driver": driver_version(),
        "cuda": lines[0],
        "versions": versions_here(),
        "free_disk_bytes": _room(session),
        "free_spill_bytes": _room(spill),
        "sees_root": None if mark is None else Path(mark).exists(),
        "sees_storage": _reaches(storage),
        "logical": os.environ.get(LOGICAL_GPUS) == "1",
        "time": time.time(),
    }


def _report(answer: dict[str, Any], node: dict[str, Any], started: float) -> NodeReport:
    resources = node["Resources"]
    base = {
        "address": node["NodeManagerAddress"],
        "head": "node:__internal_head__" in resources,
        "num_cpus": resources.get("CPU", 0.0),
        "num_gpus": resources.get("GPU", 0.0),
    }
    if "silent" in answer:
        problem = (answer["silent"], answer.get("way_out", LOOK))
        return NodeReport(**base, problems=(problem,))
    said, logical, answered_at = answer.pop("time"), answer.pop("logical"), answer.pop("answered_at")
    skew = round(max(0.0, started - said, said - answered_at), 1)
    report = NodeReport(**base, **answer, clock_skew_s=skew)
    return NodeReport(**{**vars(report), "problems": tuple(_problems(report, logical))})


def _problems(report: NodeReport, logical: bool) -> Iterator[tuple[str, str]]:
    if report.num_gpus > len(report.cards) and not logical:
        yield (
            f"offers {report.num_gpus:g} GPUs and torch reaches {len(report.cards)}: "
            f"driver {report.driver or 'absent'}, torch built for CUDA {report.cuda or 'none'}",
            "install a driver for that CUDA, or the torch of constraints-cuda.txt",
        )
    here = dict(versions_here())
    for name, version in report.versions:
        if version != here[name]:
            yield f"has {name} {version}, the driver {here[name]}", SAME
    for what, free in (("disk", report.free_disk_bytes), ("spill space", report.free_spill_bytes)):
        if free < MIN_FREE_BYTES:
            wanted = f"free some: {MIN_FREE_BYTES / 2**30:g} GiB are wanted"
            read_only = "or mount it for writing: it takes nothing" if not free else ""
            yield f"{what}: {free / 2**30:.1f} GiB free", ", ".join(filter(None, (wanted, read_only)))
    if report.clock_skew_s > MAX_CLOCK_SKEW_S:
        yield f"its clock differs by {report.clock_skew_s:g} s or more", "start a time service (chrony, ntpd)"


@contextmanager
def _mark(root: Path) -> Iterator[str | None]:
    """Put a file into the root for nodes to look for; None where it takes none."""
    mark = root / f".seen-{uuid.uuid4().hex}"
    try:
        mark.touch()
    except OSError:
        yield None
        return
    try:
        yield str(mark)
    finally:
        mark.unlink(missing_ok=True)


def _spill_folder(session: Path) -> Path:
    """Return where this node's raylet, our parent, puts what does not fit into memory."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8").split("\0")
    except OSError:
        return session
    told = [word.partition("=")[2] for word in words if word.startswith("--fallback_directory=")]
    return Path(told[0]) if told and Path(told[0]).is_dir() else session


def _room(folder: Path) -> int:
    """Return the bytes that may be written there: none on a disk that turned read-only, as broken ones do."""
    return shutil.disk_usage(folder).free if os.access(folder, os.W_OK) else 0


def _reaches(storage: str | None) -> str:
    if storage is None:
        return ""
    from orchestrator.results.storage import open_storage

    try:
        files = open_storage(storage)
        next(files.find(files.base, "store.json"), None)
    except Exception as error:  # of whatever library stands behind the URL
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
    return "yes"


def versions_here() -> tuple[tuple[str, str], ...]:
    """Return versions by package; that of isweep with its commit, which every record will claim."""
    others = ((name, _version(name)) for name in PACKAGES)
    return ("isweep", provenance().code_version), *others


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
