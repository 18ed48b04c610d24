"""Checks of everything a sweep needs, each with what was found and how to mend it."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from orchestrator.planning.paths import RootPaths, check_outlasts_ray
from orchestrator.results.records import provenance
from orchestrator.results.storage import Folder, open_storage
from orchestrator.results.tracking import check_tracker
from orchestrator.running.cluster import MIN_RAY, connect
from orchestrator.running.gpus import LOGICAL_GPUS, driver_version, driver_way_out, output_of
from orchestrator.running.launch import check_launch_file
from search_spaces.errors import SweepError

# A look at every node of a cluster: a task on each says what is there, and the driver what is wrong.

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
        storage: folder or URL of the result store; None asks for none.

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

    # Private: with a Ray that has it no more, it is the folder of a cluster that `ray up` starts.
    node: Any = getattr(ray._private.worker, "_global_node", None)
    session = Path(node.get_session_dir_path() if node else "/tmp/ray/session_latest")
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
            driver_way_out(report.driver, report.cuda),
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


MIN_MLFLOW = (3, 17, 2)
MIN_OPTUNA = (5, 0)
LAUNCH_FILE = "launch file"
"""How the name of its checks begins: a mistake in it is the user's, not the machine's."""
NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "lustre"}


class Check(TypedDict):
    """What a check found; ``fix`` is empty when all is well; ``node`` is what a node of a cluster said."""

    name: str
    ok: bool
    detail: str
    fix: str
    node: NotRequired[dict[str, Any]]


def run_checks(
    root: str | None,
    mlflow_uri: str | None,
    address: str | None,
    storage: str | None = None,
    launch: Path | None = None,
) -> list[Check]:
    """Run all checks; one that fails never stops the others.

    Args:
        root: Folder of everything.
        mlflow_uri: MLflow store.
        address: Of a Ray cluster to look at; None tries a private one.
        storage: folder or URL of the result store.
        launch: A file for ``ray up`` to look at.

    Returns:
        One entry per check; with an address also one per node of the cluster there.
    """
    checks: list[tuple[str, Callable[[], tuple[bool, str, str]]]] = [
        ("python", _python),
        ("ray version", _ray_version),
        ("mlflow version", _mlflow_version),
        ("optuna version", _optuna_version),
        ("torch", _torch),
        ("gpus", lambda: _gpus(address)),
        ("root", lambda: _root(root)),
        ("mlflow store", lambda: _tracker(root, mlflow_uri)),
        ("ray cluster", lambda: _cluster(address)),
        ("ray access", lambda: _ray_access(address)),
        ("mlflow settings", _mlflow_settings),
        ("image settings", _image_settings),
    ]
    if storage is not None:
        checks.append(("result store", lambda: _result_store(storage)))
    found = [_found(name, check) for name, check in checks]
    if address is not None and all(check["ok"] for check in found if check["name"] == "ray cluster"):
        found += _nodes(RootPaths.at(root).root, storage, address)
    return found + (_launch(launch) if launch is not None else [])


def _found(name: str, check: Callable[[], tuple[bool, str, str]]) -> Check:
    try:
        ok, detail, fix = check()
    except SweepError as error:
        ok, detail, fix = False, str(error), error.way_out
    except Exception as error:
        ok, detail, fix = False, f"{type(error).__name__}: {error}", "see the message"
    return {"name": name, "ok": ok, "detail": detail, "fix": "" if ok else fix}


def _launch(path: Path) -> list[Check]:
    problems = check_launch_file(path)
    name = f"{LAUNCH_FILE} {path.name}"
    if not problems:
        return [{"name": name, "ok": True, "detail": "nothing is wrong; no provider was asked", "fix": ""}]
    return [
        {"name": name, "ok": False, "detail": f"{one.where}: {one.what}", "fix": one.way_out}
        for one in problems
    ]


def _nodes(root: Path, storage: str | None, address: str) -> list[Check]:
    with connect(address):
        return [
            {
                "name": f"node {report.address}",
                "ok": not report.problems,
                "detail": "; ".join(what for what, _ in report.problems) or "nothing is wrong",
                "fix": "; ".join(way_out for _, way_out in report.problems),
                "node": report.row(),
            }
            for report in look_at_nodes(root, storage)
        ]


def _python() -> tuple[bool, str, str]:
    ok = (3, 11) <= sys.version_info[:2] < (3, 14)
    return ok, sys.version.split()[0], "use Python 3.11, 3.12 or 3.13"


def _ray_version() -> tuple[bool, str, str]:
    version = metadata.version("ray")
    wanted = ".".join(map(str, MIN_RAY))
    return (
        _tuple(version) >= MIN_RAY,
        version,
        f"pip install 'ray[default,tune]>={wanted}': older has known holes",
    )


def _mlflow_version() -> tuple[bool, str, str]:
    version = metadata.version("mlflow")
    return _tuple(version) >= MIN_MLFLOW, version, "pip install 'mlflow>=3.17.2': older has known holes"


def _optuna_version() -> tuple[bool, str, str]:
    version = metadata.version("optuna")
    return _tuple(version) >= MIN_OPTUNA, version, "pip install 'optuna>=5': isweep tune needs its samplers"


def _torch() -> tuple[bool, str, str]:
    torch = importlib.import_module("torch")
    return True, f"{torch.__version__}, {os.cpu_count()} CPUs", ""


def _gpus(address: str | None) -> tuple[bool, str, str]:
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return True, ", ".join(names), ""
    driver, hidden = driver_version(), os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    if driver and not hidden:
        found = (
            f"NVIDIA driver {driver}, torch {torch.__version__} built for CUDA {torch.version.cuda or 'none'}"
        )
        return False, f"{found} reaches no GPU", driver_way_out(driver, torch.version.cuda)
    return True, "none: trials run on CPUs" if address is None else "none on this machine", ""


def _root(root: str | None) -> tuple[bool, str, str]:
    paths = RootPaths.at(root)
    check_outlasts_ray(paths.root, "root", "--root")
    # Asking makes nothing: a root that is not made yet is as good as the folder it would lie in.
    base = next(folder for folder in (paths.root, *paths.root.parents) if folder.is_dir())
    if not os.access(base, os.W_OK):
        return False, f"{base} cannot be written", "choose another with --root or ISWEEP_ROOT"
    free = shutil.disk_usage(base).free
    kind = _file_system(base)
    if kind in NETWORK_FILE_SYSTEMS:
        fix = "keep SQLite off it: pass --mlflow-uri of a server"
        return False, f"{paths.root} lies on a network file system ({kind})", fix
    fix = f"free some space: {MIN_FREE_BYTES / 2**30:g} GiB are wanted"
    made = "" if paths.exist else ", not made yet"
    return free >= MIN_FREE_BYTES, f"{paths.root}{made}, {free / 2**30:.1f} GiB free", fix


def _tracker(root: str | None, uri: str | None) -> tuple[bool, str, str]:
    return True, check_tracker(RootPaths.at(root), uri), ""


def _result_store(url: str) -> tuple[bool, str, str]:
    """Write, find and remove a file as a run would; workers need no right to do so."""
    files = open_storage(url)
    if isinstance(files, Folder):
        base = next(folder for folder in (Path(files.base), *Path(files.base).parents) if folder.exists())
        ok = base.is_dir() and os.access(base, os.W_OK)
        return ok, f"{files.base}" if ok else f"{base} cannot be written", "choose another with --storage"
    folder = f"{files.base}/.doctor-{uuid.uuid4().hex}"
    files.write(f"{folder}/probe/probe.json", b"{}")
    listed = any(files.find(folder, "probe.json"))
    files.remove(f"{folder}/probe/probe.json")
    return listed, f"{url} takes and gives files", "it does not list what it took: ask whoever runs it"


def _cluster(address: str | None) -> tuple[bool, str, str]:
    with connect(address, dashboard=False) as cluster:
        return True, f"{cluster.num_nodes} nodes, {cluster.num_cpus:g} CPUs, {cluster.num_gpus:g} GPUs", ""


def _ray_access(address: str | None) -> tuple[bool, str, str]:
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled" or (address is not None and mode != "token"):
        told = f"RAY_AUTH_MODE={mode or 'not set'}: anyone who reaches the ports runs code"
        fix = "export RAY_AUTH_MODE=token"
        return False, told, fix if address is None else f"{fix}, and start the cluster's Ray with it"
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if token.exists() and token.stat().st_mode & 0o077:
        return False, "the Ray token file can be read by others", f"chmod 600 {token}"
    private = "private clusters are on loopback with a token of their own"
    return True, private if address is None else f"{address} is asked with the cluster's token", ""


def _mlflow_settings() -> tuple[bool, str, str]:
    bad = [
        name
        for name in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_TRACKING_INSECURE_TLS")
        if os.environ.get(name, "").lower() in {"1", "true"}
    ]
    return not bad, ", ".join(bad) or "no unsafe setting", f"unset {' '.join(bad)}"


def _image_settings() -> tuple[bool, str, str]:
    from PIL import ImageFile

    ok = not ImageFile.LOAD_TRUNCATED_IMAGES
    return (
        ok,
        "truncated images are refused" if ok else "truncated images are filled",
        "unset LOAD_TRUNCATED_IMAGES",
    )


def _file_system(path: Path) -> str:
    """Return the type of the file system that holds ``path``, from the kernel's table of mounts."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return "unknown"
    entries = [line.split()[1:3] for line in mounts.read_text(encoding="utf-8").splitlines()]
    inside = [(point, kind) for point, kind in entries if path.is_relative_to(point)]
    return max(inside, key=lambda entry: len(entry[0]))[1] if inside else "unknown"


def _tuple(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
