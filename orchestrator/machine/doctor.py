"""Checks of machine, nodes and launch file: what was found, and how to mend it.

Of a launch file Ray's schema and botocore's validation say what a field must be. Here is what they
let pass and a sweep would pay for: places still to be filled in, files that do not travel, open
ports, rights that are too wide, nodes and disks that stay.
"""

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

from orchestrator.machine.cluster import connect
from orchestrator.machine.gpu_problems import ask_nodes, gpu_problems
from orchestrator.machine.gpus import NodeGpus, check_driver, describe, gpus_here
from orchestrator.machine.launch_file import check_launch_file
from orchestrator.planning.paths import RootPaths, check_outlasts_ray
from orchestrator.results.storage import Folder, open_storage
from orchestrator.results.store import provenance
from orchestrator.results.tracking import check_tracker
from search_spaces.errors import SweepError

MIN_FREE_BYTES = 5 * 2**30
ANSWER_TIMEOUT_S = 60.0
SAME = "install the same everywhere: make wheel, ray up"
LOOK = (
    "ask again, for a first answer may be slow; then look at its logs, or take it out of the "
    "cluster"
)
LAUNCH_FILE = "launch file"
"""How the name of its checks begins: a mistake in it is the user's, not the machine's."""
NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "lustre"}


class Check(TypedDict):
    """What a check found; ``fix`` is empty when all is well; ``node`` is what a node of a cluster
    said.
    """

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

    With an address the cluster there is looked at, with an entry per node; without, a private one
    is tried. ``launch`` is a file for ``ray up``.
    """
    nodes: list[Check] = []

    def cluster() -> tuple[bool, str, str]:
        with connect(address, dashboard=False) as there:
            nodes.extend(look_at_nodes() if address is not None else ())
            return (
                True,
                f"{there.num_nodes} nodes, {there.num_cpus:g} CPUs, {there.num_gpus:g} GPUs",
                "",
            )

    checks: dict[str, Callable[[], tuple[bool, str, str]]] = {
        "versions": lambda: (True, ", ".join(map(" ".join, versions_here().items())), ""),
        "gpus": lambda: _gpus(address),
        "root": lambda: _root(root),
        "mlflow store": lambda: (True, check_tracker(RootPaths.at(root), mlflow_uri), ""),
        "ray cluster": cluster,
        "ray access": lambda: _ray_access(address),
    }
    if storage is not None:
        checks["result store"] = lambda: _result_store(storage)
    found = [_found(name, check) for name, check in checks.items()] + nodes
    if launch is not None:
        told = [
            (False, f"{one.where}: {one.what}", one.way_out) for one in check_launch_file(launch)
        ]
        for ok, detail, fix in told or [(True, "nothing is wrong; no provider was asked", "")]:
            found.append(
                {"name": f"{LAUNCH_FILE} {launch.name}", "ok": ok, "detail": detail, "fix": fix}
            )
    return found


def _found(name: str, check: Callable[[], tuple[bool, str, str]]) -> Check:
    try:
        ok, detail, fix = check()
    except SweepError as error:
        ok, detail, fix = False, str(error), error.way_out
    except Exception as error:
        ok, detail, fix = False, f"{type(error).__name__}: {error}", "see the message"
    return {"name": name, "ok": ok, "detail": detail, "fix": "" if ok else fix}


def _gpus(address: str | None) -> tuple[bool, str, str]:
    there = gpus_here()
    check_driver()
    if not there:
        return True, "none: trials run on CPUs" if address is None else "none on this machine", ""
    here = replace(describe(os.environ.get("CUDA_VISIBLE_DEVICES", "")), offered=len(there))
    problems = list(gpu_problems(here))
    what = "; ".join(problem.text for problem in problems)
    way_out = "; ".join(problem.hint for problem in problems)
    return not what, what or ", ".join(gpu.name for gpu in there), way_out


def _root(root: str | None) -> tuple[bool, str, str]:
    paths = RootPaths.at(root)
    check_outlasts_ray(paths.root, "root", "--root")
    # Asking makes nothing: a root that is not made yet is as good as the folder it would lie in.
    base = next(folder for folder in (paths.root, *paths.root.parents) if folder.is_dir())
    if not os.access(base, os.W_OK):
        return False, f"{base} cannot be written", "choose another with --root or ISWEEP_ROOT"
    mounts = [
        line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    ]
    kind = max((len(point), kind) for _, point, kind, *_ in mounts if base.is_relative_to(point))[1]
    if kind in NETWORK_FILE_SYSTEMS:
        fix = "keep SQLite off it: pass --mlflow-uri of a server"
        return False, f"{paths.root} lies on a network file system ({kind})", fix
    free, made = shutil.disk_usage(base).free, "" if paths.root.is_dir() else ", not made yet"
    fix = f"free some space: {MIN_FREE_BYTES / 2**30:g} GiB are wanted"
    return free >= MIN_FREE_BYTES, f"{paths.root}{made}, {free / 2**30:.1f} GiB free", fix


def _result_store(url: str) -> tuple[bool, str, str]:
    """Write, find and remove a file as a run would."""
    files = open_storage(url)
    if isinstance(files, Folder):
        base = next(
            folder for folder in (Path(files.base), *Path(files.base).parents) if folder.exists()
        )
        ok = base.is_dir() and os.access(base, os.W_OK)
        return (
            ok,
            f"{files.base}" if ok else f"{base} cannot be written",
            "choose another with --storage",
        )
    folder = f"{files.base}/.doctor-{uuid.uuid4().hex}"
    files.write(f"{folder}/probe/probe.json", b"{}")
    listed = any(files.find(folder, "probe.json"))
    files.remove(f"{folder}/probe/probe.json")
    return (
        listed,
        f"{url} takes and gives files",
        "it does not list what it took: ask whoever runs it",
    )


def _ray_access(address: str | None) -> tuple[bool, str, str]:
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled" or (address is not None and mode != "token"):
        told = f"RAY_AUTH_MODE={mode or 'not set'}: anyone who reaches the ports runs code"
        fix = "export RAY_AUTH_MODE=token"
        return (
            False,
            told,
            fix if address is None else f"{fix}, and start the cluster's Ray with it",
        )
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if token.exists() and token.stat().st_mode & 0o077:
        return False, "the Ray token file can be read by others", f"chmod 600 {token}"
    private = "private clusters are on loopback with a token of their own"
    return True, private if address is None else f"{address} is asked with the cluster's token", ""


def look_at_nodes() -> list[Check]:
    """Check every node of the connected cluster by a task that runs there, the head first."""
    found = [_checked(answer, node) for answer, node in _answers(ask_nodes(look_here))]
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
                answer = ray.get(reference)
            except ray.exceptions.RayTaskError as error:  # a traceback, whose last line says why
                answer = {
                    "silent": (
                        f"cannot look at itself: {str(error).strip().splitlines()[-1]}",
                        SAME,
                    )
                }
            except ray.exceptions.RayError as error:
                answer = {
                    "silent": (f"does not answer: {str(error).strip().splitlines()[0]}", LOOK)
                }
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
    return {"gpus": describe(), "versions": versions_here(), "free_disk_bytes": _room(session)}


def _checked(answer: dict[str, Any], node: dict[str, Any]) -> Check:
    resources, gpus = node["Resources"], answer.pop("gpus", NodeGpus(""))
    offered, silent = resources.get("GPU", 0.0), answer.pop("silent", None)
    row = {
        "address": node["NodeManagerAddress"],
        "head": "node:__internal_head__" in resources,
        "num_cpus": resources.get("CPU", 0.0),
        "num_gpus": offered,
        "gpus": [gpu.name for gpu in gpus.gpus],
        "driver": gpus.driver,
        "cuda": gpus.cuda,
        "versions": {},
        **answer,
    }
    of_gpus: list[tuple[str, str]] = []
    if not gpus.logical:
        for problem in gpu_problems(replace(gpus, offered=offered)):
            of_gpus.append((problem.text, problem.hint))
    problems = [silent] if silent else [*of_gpus, *_problems(row)]
    what, way_out = ("; ".join(texts) for texts in zip(*problems or [("", "")], strict=True))
    said: Check = {
        "name": f"node {row['address']}",
        "ok": not problems,
        "detail": what,
        "fix": way_out,
    }
    return {**said, "detail": what or "nothing is wrong", "node": row}


def _problems(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, here in versions_here().items():
        if row["versions"][name] != here:
            yield f"has {name} {row['versions'][name]}, the driver {here}", SAME
    if (free := row["free_disk_bytes"]) < MIN_FREE_BYTES:
        wanted = f"free some: {MIN_FREE_BYTES / 2**30:g} GiB are wanted"
        read_only = "" if free else ", or mount it for writing: it takes nothing"
        yield f"disk: {free / 2**30:.1f} GiB free", wanted + read_only


def _room(folder: Path) -> int:
    """Return the bytes that may be written there: none on a disk that turned read-only, as broken
    ones do.
    """
    return shutil.disk_usage(folder).free if os.access(folder, os.W_OK) else 0


def versions_here() -> dict[str, str]:
    """Return versions by package; that of isweep with its commit, which every record will claim."""
    return {"isweep": provenance().code_version} | {
        name: metadata.version(name) for name in ("ray", "torch")
    }
