"""Checks of everything a sweep needs, each with what was found and how to mend it."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import uuid
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from orchestrator.planning.paths import RootPaths, check_outlasts_ray
from orchestrator.results.storage import Folder, open_storage
from orchestrator.results.tracking.choice import check_tracker
from orchestrator.running.cluster import MIN_RAY, connect
from orchestrator.running.launch import check_launch_file
from orchestrator.running.nodes import look_at_nodes
from search_spaces.errors import SweepError

MIN_FREE_BYTES = 5 * 2**30
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
        storage: fsspec URL of the result store.
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
    if not torch.cuda.is_available():
        return True, "none: trials run on CPUs" if address is None else "none on this machine", ""
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return True, ", ".join(names), ""


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
    way_out = "look at the address, the keys and their rights"
    files.write(f"{folder}/probe/probe.json", b"{}", "The result store must take files", way_out)
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
