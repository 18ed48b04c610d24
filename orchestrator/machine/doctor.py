"""The checks of ``isweep doctor``. They check this machine, the nodes of a cluster, and a
launch file.

Each check reports its result. If a check fails, it also reports what to do. All checks run,
even if some fail.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from orchestrator.machine.cluster import RayStartError, connect
from orchestrator.machine.gpu_problems import Problem, gpu_problems, run_on_nodes
from orchestrator.machine.gpus.records import NodeGpus
from orchestrator.machine.gpus.this_machine import check_driver, gpus_here
from orchestrator.machine.gpus.torch_gpus import describe, describe_node
from orchestrator.machine.launch.launch_file import check_launch_file
from orchestrator.planning.paths import RootPaths, check_outlasts_ray
from orchestrator.results.mlflow_connection import check_tracker
from orchestrator.results.provenance import provenance
from orchestrator.results.storage import Folder, open_storage
from search_spaces.errors import SweepError, plural

MIN_FREE_BYTES = 5 * 2**30
"""Free disk space that a sweep needs for its records, its weights and Ray's logs, in bytes."""
ANSWER_TIMEOUT_S = 60.0
"""Seconds in which all nodes of a cluster must report the results of their checks."""
INSTALL_HINT = "To install the same versions on all nodes, run `make wheel` and `ray up`"
SILENT_HINT = (
    "Run the same check again, because the first answer of a node may be slow. If the node still "
    "does not answer, read the node's logs, or remove the node from the cluster"
)
LAUNCH_FILE = "launch file"
"""Beginning of the names of all checks of a launch file. If such a check fails, the launch
file contains a mistake. It does not mean that the machine has a problem."""
NETWORK_FILE_SYSTEMS = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "afs",
    "9p",
    "virtiofs",
    "lustre",
    "ceph",
    "gpfs",
    "beegfs",
    "fuse.ceph-fuse",
    "fuse.glusterfs",
    "fuse.sshfs",
    "fuse.rclone",
    "fuse.s3fs",
    "fuse.gcsfuse",
)
"""Types of network, shared and cloud file systems, as ``/proc/self/mounts`` lists them.
SQLite's locks are unreliable on these file systems."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a check, without the name of the check.

    Attributes:
        ok: True if the check succeeded.
        detail: result of the check as text.
        fix: advice for the user if the check failed. The text may be empty.
    """

    ok: bool
    detail: str
    fix: str = ""


class Check(TypedDict):
    """A check with its name and outcome, as the command prints it.

    If the check succeeded, ``fix`` is empty. ``node`` describes a node of a cluster. Only the
    checks of such nodes have this key.
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
    """Run all checks and return them in order.

    Args:
        root: folder for all files of isweep. None means the default root.
        mlflow_uri: address of MLflow. None means the default address.
        address: address of a running cluster. All its nodes are checked. None means that a
            private cluster is started and checked.
        storage: folder or URL of a result store. None means that no store is checked.
        launch: launch file for ``ray up``. None means that no launch file is checked.
    """
    node_checks: list[Check] = []
    checks = [
        _run_check("versions", _check_versions),
        _run_check("gpus", _check_gpus, address),
        _run_check("root", _check_root, root),
        _run_check("mlflow store", _check_mlflow, root, mlflow_uri),
        _run_check("ray cluster", _check_cluster, address, node_checks),
        _run_check("ray access", _check_ray_access, address),
    ]
    if storage is not None:
        checks.append(_run_check("result store", _check_result_store, storage))
    checks += node_checks
    if launch is not None:
        checks += _launch_file_checks(launch)
    return checks


def _run_check(name: str, check: Callable[..., Outcome], *arguments: object) -> Check:
    """Run a check, and return its outcome. A check that raises an exception has failed."""
    try:
        outcome = check(*arguments)
    except SweepError as error:
        outcome = Outcome(False, error.problem, error.hint)
    except Exception as error:
        fix = "Correct the error in this message, and run the same check again"
        outcome = Outcome(False, f"{type(error).__name__}: {error}", fix)
    fix = "" if outcome.ok else outcome.fix
    return {"name": name, "ok": outcome.ok, "detail": outcome.detail, "fix": fix}


def _check_versions() -> Outcome:
    texts = [f"{package} {version}" for package, version in versions_here().items()]
    return Outcome(True, ", ".join(texts))


def _check_gpus(address: str | None) -> Outcome:
    """Check the GPUs of this machine and NVIDIA's driver.

    Args:
        address: address of a running cluster, or None if trials run on this machine.
    """
    gpus = gpus_here()
    check_driver()
    if not gpus:
        detail = "no GPU on this machine"
        if address is None:
            detail += ", so trials run on CPUs"
        return Outcome(True, detail)
    node = replace(describe(os.environ.get("CUDA_VISIBLE_DEVICES")), num_ray_gpus=len(gpus))
    problems = list(gpu_problems(node))
    if problems:
        return _outcome_of(problems)
    return Outcome(True, ", ".join(gpu.name for gpu in gpus))


def _outcome_of(problems: Iterable[Problem]) -> Outcome:
    problems = list(problems)
    return Outcome(
        ok=not problems,
        detail="; ".join(problem.text for problem in problems),
        fix=". ".join(dict.fromkeys(problem.hint for problem in problems)),
    )


def _check_root(root: str | None) -> Outcome:
    """Check that files can be written to the root, that it has enough space, and that SQLite
    files can be locked there.
    """
    paths = RootPaths.at(root)
    check_outlasts_ray(paths.root, "root", "--root")
    # The check makes no folder. If the root does not exist, its nearest parent folder is
    # checked.
    base = next(folder for folder in (paths.root, *paths.root.parents) if folder.is_dir())
    if not os.access(base, os.W_OK):
        return Outcome(
            False,
            f"{base} cannot be written",
            "Choose another folder with --root or ISWEEP_ROOT",
        )
    kind = _file_system(base)
    if kind in NETWORK_FILE_SYSTEMS:
        return Outcome(
            False,
            f"{paths.root} is on a network file system ({kind}), where MLflow's SQLite file "
            "cannot be locked",
            "Use an MLflow server with --mlflow-uri, or choose another folder with --root",
        )
    free = shutil.disk_usage(base).free
    missing = "" if paths.root.is_dir() else " does not exist yet. The disk for this folder"
    return Outcome(
        free >= MIN_FREE_BYTES,
        f"{paths.root}{missing} has {free / 2**30:.1f} GiB free",
        f"Free some space: a sweep needs {MIN_FREE_BYTES / 2**30:g} GiB",
    )


def _file_system(folder: Path) -> str:
    """Return the type of a folder's file system."""
    mounts = []
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, mount_point, kind, *_ = line.split()
        if folder.is_relative_to(mount_point):
            mounts.append((len(mount_point), kind))
    # The longest mount point is the innermost.
    return max(mounts)[1]


def _check_mlflow(root: str | None, mlflow_uri: str | None) -> Outcome:
    return Outcome(True, check_tracker(RootPaths.at(root), mlflow_uri))


def _check_cluster(address: str | None, node_checks: list[Check]) -> Outcome:
    """Connect to a cluster. If it is a running cluster, add the checks of its nodes to
    ``node_checks``.
    """
    try:
        with connect(address, dashboard=False) as cluster:
            if address is not None:
                node_checks += check_nodes()
            return Outcome(
                True,
                f"{plural(cluster.num_nodes, 'node')}, {plural(cluster.num_cpus, 'CPU')}, "
                f"{plural(cluster.num_gpus, 'GPU')}",
            )
    except RayStartError as error:
        # The hint of this error would be to run this command.
        return Outcome(
            False,
            error.problem,
            "Fix the other checks of this command that failed. If all are ok, end other "
            "programs, or restart the machine",
        )


def _check_result_store(url: str) -> Outcome:
    """Check a result store. In a bucket, write, list and remove a file as a run does."""
    files = open_storage(url)
    if isinstance(files, Folder):
        folders = (Path(files.base), *Path(files.base).parents)
        base = next(folder for folder in folders if folder.exists())
        if base.is_dir() and os.access(base, os.W_OK):
            return Outcome(True, f"{files.base} can be written")
        fix = "Choose another folder with --storage"
        return Outcome(False, f"{base} cannot be written", fix)
    folder = f"{files.base}/.doctor-{uuid.uuid4().hex}"
    files.write(f"{folder}/probe/probe.json", b"{}")
    is_listed = any(files.find(folder, "probe.json"))
    files.remove(f"{folder}/probe/probe.json")
    if not is_listed:
        return Outcome(
            False,
            f"{url} does not list a file that isweep has just written there",
            "Ask the operator of the store, or choose another store with --storage",
        )
    return Outcome(True, f"isweep can write and list files in {url}")


def _check_ray_access(address: str | None) -> Outcome:
    """Check that Ray accepts only users with a token, and that no other user can read the
    token.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled" or (address is not None and mode != "token"):
        fix = "Run `export RAY_AUTH_MODE=token`"
        if address is not None:
            fix += ", and start the cluster's Ray with the same setting"
        return Outcome(
            False,
            f"RAY_AUTH_MODE is {mode or 'not set'}, so anyone who can connect to Ray's ports "
            "can run code",
            fix,
        )
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if token.exists() and token.stat().st_mode & 0o077:
        return Outcome(False, f"other users can read {token}", f"Run `chmod 600 {token}`")
    if address is None:
        return Outcome(
            True,
            "a private cluster accepts connections only from this machine, and each run has a "
            "new token",
        )
    return Outcome(True, f"requests to {address} carry the cluster's token")


def _launch_file_checks(path: Path) -> list[Check]:
    """Return one failed check for each mistake in a launch file. If there is no mistake,
    return one successful check.
    """
    name = f"{LAUNCH_FILE} {path.name}"
    mistakes = check_launch_file(path)
    if not mistakes:
        detail = "isweep detected no mistake. isweep does not contact the provider for this check"
        return [{"name": name, "ok": True, "detail": detail, "fix": ""}]
    checks: list[Check] = []
    for mistake in mistakes:
        checks.append({"name": name, "ok": False, "detail": mistake.text, "fix": mistake.hint})
    return checks


@dataclass(frozen=True)
class NodeReport:
    """The report of a node about itself, or the problem that prevented the report.

    Attributes:
        gpus: GPUs of the node.
        versions: versions by package, or an empty dict if the report is missing.
        free_disk_bytes: free disk space for Ray's files on the node, in bytes. It is 0 if
            nothing can be written.
        missing: the problem that prevented the report, or None if the node sent its report.
    """

    gpus: NodeGpus = field(default_factory=lambda: NodeGpus(""))
    versions: dict[str, str] = field(default_factory=dict)
    free_disk_bytes: int = 0
    missing: Problem | None = None


def check_nodes() -> list[Check]:
    """Check every node of the connected cluster by a Ray task that runs on the node.

    Returns:
        The checks of the nodes. The head's check comes first, and the others are sorted by
        name.
    """
    nodes = run_on_nodes(report_this_node)
    checks = []
    for reference, report in _wait_for_reports(nodes):
        checks.append(check_node(report, nodes[reference]))
    return sorted(checks, key=lambda check: (not check["node"]["head"], check["name"]))


def _wait_for_reports(references: Iterable[Any]) -> Iterator[tuple[Any, NodeReport]]:
    """Yield each task with its report as soon as the report arrives. Yield the tasks without a
    report last.
    """
    import ray

    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    waiting = list(references)
    while waiting:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            break
        done, waiting = ray.wait(waiting, timeout=left_s)
        for reference in done:
            yield reference, _read_report(reference)
    for reference in waiting:
        ray.cancel(reference, force=True)
        missing = Problem(f"the node did not answer within {ANSWER_TIMEOUT_S:g} s", SILENT_HINT)
        yield reference, NodeReport(missing=missing)


def _read_report(reference: Any) -> NodeReport:
    """Return the report of a finished task. If the task failed, return a report of this
    problem.
    """
    import ray

    try:
        report: NodeReport = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # The text is a traceback. Its last line is the reason.
        reason = str(error).strip().splitlines()[-1]
        return NodeReport(missing=Problem(f"the check fails on the node: {reason}", INSTALL_HINT))
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        return NodeReport(missing=Problem(f"the node does not answer: {reason}", SILENT_HINT))
    return report


def report_this_node() -> NodeReport:
    """Return the report of the node on which this function runs as a Ray task."""
    import ray

    # This attribute is private. If a version of Ray lacks it, use the folder of clusters that
    # `ray up` starts.
    node: Any = getattr(ray._private.worker, "_global_node", None)
    session = Path(node.get_session_dir_path() if node else "/tmp/ray/session_latest")
    return NodeReport(describe_node(), versions_here(), writable_bytes(session))


def check_node(report: NodeReport, node: dict[str, Any]) -> Check:
    """Check the GPUs, package versions and free disk space of a node.

    Args:
        report: the node's report about itself.
        node: Ray's record of the node.
    """
    resources = node["Resources"]
    gpus = replace(report.gpus, num_ray_gpus=resources.get("GPU", 0.0))
    row = {
        "address": node["NodeManagerAddress"],
        "head": "node:__internal_head__" in resources,
        "num_cpus": resources.get("CPU", 0.0),
        "num_gpus": gpus.num_ray_gpus,
        "gpus": [gpu.name for gpu in gpus.gpus],
        "driver": gpus.driver,
        "cuda": gpus.cuda,
        "versions": report.versions,
        "free_disk_bytes": report.free_disk_bytes,
    }
    problems = []
    if report.missing is not None:
        problems.append(report.missing)
    else:
        if not gpus.num_ray_gpus:
            # No trial gets a GPU that Ray does not offer, so only torch itself is checked.
            gpus = replace(gpus, gpus=())
        if not gpus.logical:
            problems += gpu_problems(gpus)
        problems += _version_problems(report.versions)
        problems += _disk_problems(report.free_disk_bytes)
    outcome = _outcome_of(problems)
    return {
        "name": f"node {row['address']}",
        "ok": outcome.ok,
        "detail": outcome.detail or "nothing is wrong",
        "fix": outcome.fix,
        "node": row,
    }


def _version_problems(versions: dict[str, str]) -> Iterator[Problem]:
    for name, version_here in versions_here().items():
        if versions[name] != version_here:
            text = f"the node has {name} {versions[name]}, but this machine has {version_here}"
            yield Problem(text, INSTALL_HINT)


def _disk_problems(free_bytes: int) -> Iterator[Problem]:
    if free_bytes >= MIN_FREE_BYTES:
        return
    hint = f"Free some space: a sweep needs {MIN_FREE_BYTES / 2**30:g} GiB"
    if not free_bytes:
        hint += ", or mount the disk for writing"
    yield Problem(f"the disk has {free_bytes / 2**30:.1f} GiB of free space", hint)


def writable_bytes(folder: Path) -> int:
    """Return how many bytes can be written to a folder.

    If the folder is read-only, the number is 0. Linux makes broken disks read-only.
    """
    if not os.access(folder, os.W_OK):
        return 0
    return shutil.disk_usage(folder).free


def versions_here() -> dict[str, str]:
    """Return the versions of isweep, Ray and torch, by package. Records contain the same
    version of isweep.
    """
    return {
        "isweep": provenance().code_version,
        "ray": metadata.version("ray"),
        "torch": metadata.version("torch"),
    }
