"""Checks of everything a sweep needs, each with what was found and how to mend it."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from orchestrator.planning.paths import RootPaths, check_outlasts_ray
from orchestrator.results.records import provenance
from orchestrator.results.storage import Folder, open_storage
from orchestrator.results.tracking import check_tracker
from orchestrator.running.cluster import connect
from orchestrator.running.gpus import (
    NodeGpus,
    asked_of_nodes,
    check_driver,
    describe,
    gpu_problems,
    gpus_here,
)
from orchestrator.running.launch import check_launch_file
from search_spaces.errors import SweepError

MIN_FREE_BYTES = 5 * 2**30
MAX_CLOCK_SKEW_S = 5.0
"""Times of a trial are its node's: more would put its start before the sweep's."""
ANSWER_TIMEOUT_S = 60.0
SAME = "install the same everywhere: make wheel, ray up"
LOOK = "ask again, for a first answer may be slow; then look at its logs, or take it out of the cluster"
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

    With an address the cluster there is looked at, with an entry per node; without, a private one is tried.
    ``launch`` is a file for ``ray up``.
    """
    checks: dict[str, Callable[[], tuple[bool, str, str]]] = {
        "versions": lambda: (True, ", ".join(map(" ".join, versions_here().items())), ""),
        "gpus": lambda: _gpus(address),
        "root": lambda: _root(root),
        "mlflow store": lambda: (True, check_tracker(RootPaths.at(root), mlflow_uri), ""),
        "ray cluster": lambda: _cluster(address),
        "ray access": lambda: _ray_access(address),
        "mlflow settings": _mlflow_settings,
    }
    if storage is not None:
        checks["result store"] = lambda: _result_store(storage)
    found = {name: _found(name, check) for name, check in checks.items()}
    nodes = []
    if address is not None and found["ray cluster"]["ok"]:
        with connect(address):
            nodes = look_at_nodes()
    return [*found.values(), *nodes, *(_launch(launch) if launch is not None else ())]


def _found(name: str, check: Callable[[], tuple[bool, str, str]]) -> Check:
    try:
        ok, detail, fix = check()
    except SweepError as error:
        ok, detail, fix = False, str(error), error.way_out
    except Exception as error:
        ok, detail, fix = False, f"{type(error).__name__}: {error}", "see the message"
    return {"name": name, "ok": ok, "detail": detail, "fix": "" if ok else fix}


def _launch(path: Path) -> list[Check]:
    problems, name = check_launch_file(path), f"{LAUNCH_FILE} {path.name}"
    if not problems:
        return [{"name": name, "ok": True, "detail": "nothing is wrong; no provider was asked", "fix": ""}]
    return [
        {"name": name, "ok": False, "detail": f"{one.where}: {one.what}", "fix": one.way_out}
        for one in problems
    ]


def _gpus(address: str | None) -> tuple[bool, str, str]:
    there = gpus_here()
    check_driver()
    if not there:
        return True, "none: trials run on CPUs" if address is None else "none on this machine", ""
    here = replace(describe(os.environ.get("CUDA_VISIBLE_DEVICES", "")), offered=len(there))
    what, way_out = ("; ".join(texts) for texts in zip(*[*gpu_problems(here)] or [("", "")], strict=True))
    return not what, what or ", ".join(gpu.name for gpu in there), way_out


def _root(root: str | None) -> tuple[bool, str, str]:
    paths = RootPaths.at(root)
    check_outlasts_ray(paths.root, "root", "--root")
    # Asking makes nothing: a root that is not made yet is as good as the folder it would lie in.
    base = next(folder for folder in (paths.root, *paths.root.parents) if folder.is_dir())
    if not os.access(base, os.W_OK):
        return False, f"{base} cannot be written", "choose another with --root or ISWEEP_ROOT"
    mounts = [
        line.split()[1:3] for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    ]
    inside = [(point, kind) for point, kind in mounts if base.is_relative_to(point)]
    kind = max(inside, key=lambda mount: len(mount[0]))[1]
    if kind in NETWORK_FILE_SYSTEMS:
        fix = "keep SQLite off it: pass --mlflow-uri of a server"
        return False, f"{paths.root} lies on a network file system ({kind})", fix
    free, made = shutil.disk_usage(base).free, "" if paths.exist else ", not made yet"
    fix = f"free some space: {MIN_FREE_BYTES / 2**30:g} GiB are wanted"
    return free >= MIN_FREE_BYTES, f"{paths.root}{made}, {free / 2**30:.1f} GiB free", fix


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
    names = ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_TRACKING_INSECURE_TLS")
    bad = [name for name in names if os.environ.get(name, "").lower() in {"1", "true"}]
    return not bad, ", ".join(bad) or "no unsafe setting", f"unset {' '.join(bad)}"


def look_at_nodes() -> list[Check]:
    """Check every node of the connected cluster by a task that runs there, the head first.

    What a node said of itself is the check's ``node``; free bytes are those where Ray keeps its session, and
    where objects go that do not fit into memory. A node that does not answer is told as such.
    """
    started = time.time()
    found = [_checked(answer, node, started) for answer, node in _answers(asked_of_nodes(look_here))]
    return sorted(found, key=lambda check: (not check["node"]["head"], check["name"]))


def _answers(asked: dict[Any, dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield what each node answers as soon as it does, and at the end those that do not."""
    import ray

    patience = time.monotonic() + ANSWER_TIMEOUT_S
    waiting = list(asked)
    while waiting and (left := patience - time.monotonic()) > 0:
        done, waiting = ray.wait(waiting, timeout=left)
        for reference in done:
            try:
                answer = ray.get(reference) | {"answered_at": time.time()}
            except ray.exceptions.RayTaskError as error:  # a traceback, whose last line says why
                answer = {"silent": (f"cannot look at itself: {str(error).strip().splitlines()[-1]}", SAME)}
            except ray.exceptions.RayError as error:
                answer = {"silent": (f"does not answer: {str(error).strip().splitlines()[0]}", LOOK)}
            yield answer, asked[reference]
    for reference in waiting:
        ray.cancel(reference, force=True)
        yield {"silent": (f"gives no answer within {ANSWER_TIMEOUT_S:g} s", LOOK)}, asked[reference]


def look_here() -> dict[str, Any]:
    """Return what this node has; runs as a task there."""
    import ray

    # Private: with a Ray that has it no more, it is the folder of a cluster that `ray up` starts.
    node: Any = getattr(ray._private.worker, "_global_node", None)
    session = Path(node.get_session_dir_path() if node else "/tmp/ray/session_latest")
    return {
        "gpus": describe(),
        "versions": versions_here(),
        "free_disk_bytes": _room(session),
        "free_spill_bytes": _room(_spill_folder(session)),
        "time": time.time(),
    }


def _checked(answer: dict[str, Any], node: dict[str, Any], started: float) -> Check:
    """Return what is wrong with a node that was asked at ``started``, by what it said."""
    resources, gpus = node["Resources"], answer.pop("gpus", NodeGpus(""))
    offered, silent = resources.get("GPU", 0.0), answer.pop("silent", None)
    said, answered_at = answer.pop("time", started), answer.pop("answered_at", started)
    row = {
        "address": node["NodeManagerAddress"],
        "head": "node:__internal_head__" in resources,
        "num_cpus": resources.get("CPU", 0.0),
        "num_gpus": offered,
        "gpus": [gpu.name for gpu in gpus.gpus],
        "driver": gpus.driver,
        "cuda": gpus.cuda,
        "versions": {},
        "clock_skew_s": round(max(0.0, started - said, said - answered_at), 1),  # at least
        **answer,
    }
    if silent:
        problems = [silent]
    else:
        problems = [] if gpus.logical else [*gpu_problems(replace(gpus, offered=offered))]
        problems += _problems(row)
    what, way_out = ("; ".join(texts) for texts in zip(*problems or [("", "")], strict=True))
    return {
        "name": f"node {row['address']}",
        "ok": not problems,
        "detail": what or "nothing is wrong",
        "fix": way_out,
        "node": row,
    }


def _problems(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, here in versions_here().items():
        if row["versions"][name] != here:
            yield f"has {name} {row['versions'][name]}, the driver {here}", SAME
    for what, free in (("disk", row["free_disk_bytes"]), ("spill space", row["free_spill_bytes"])):
        if free < MIN_FREE_BYTES:
            wanted = f"free some: {MIN_FREE_BYTES / 2**30:g} GiB are wanted"
            read_only = "" if free else ", or mount it for writing: it takes nothing"
            yield f"{what}: {free / 2**30:.1f} GiB free", wanted + read_only
    if row["clock_skew_s"] > MAX_CLOCK_SKEW_S:
        yield f"its clock differs by {row['clock_skew_s']:g} s or more", "start a time service (chrony, ntpd)"


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


def versions_here() -> dict[str, str]:
    """Return versions by package; that of isweep with its commit, which every record will claim."""
    return {"isweep": provenance().code_version} | {name: metadata.version(name) for name in ("ray", "torch")}
