"""Checks of machine, nodes and launch file: what was found, and how to mend it.

Of a launch file Ray's schema and botocore's validation say what a field must be. Here is what they
let pass and a sweep would pay for: places still to be filled in, files that do not travel, open
ports, rights that are too wide, nodes and disks that stay.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import time
import uuid
import zipfile
from collections import ChainMap
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from importlib import metadata, resources
from importlib.util import find_spec
from pathlib import Path
from socket import getaddrinfo
from typing import Any, NamedTuple, NotRequired, TypedDict

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from orchestrator.machine.cluster import connect
from orchestrator.machine.gpus import (
    NodeGpus,
    asked_of_nodes,
    check_driver,
    describe,
    gpu_problems,
    gpus_here,
)
from orchestrator.planning.paths import RootPaths, check_outlasts_ray
from orchestrator.planning.plain_yaml import read_text
from orchestrator.results.mlflow_connection import check_tracker
from orchestrator.results.provenance import provenance
from orchestrator.results.storage import Folder, open_storage
from search_spaces.errors import ConfigError, SweepError
from tasks.atomic import read_whole

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
COMPARE = "compare with the file of that name in the repository"
MAKE_TOKEN = 'make one: see "Tokens" in docs/cluster.md'
MAX_FILE_BYTES = 100_000
"""PyYAML reads as many in a second; the longest file of the repository has 6,000."""
UNFILLED = re.compile(r"CHANGE|\bexample\.(org|com)\b")
OF_CHECKOUT_OR_ROOT = (".git", "isweep-root", "mlflow.db", "sweeps", "prepared")
DIST = re.compile(r"~/isweep-dist/([\w@.-]+\.\w+)")
SECRET_KEY = re.compile(r"secret|password|access_key|(^|_)token$", re.IGNORECASE)
SECRET_SET = re.compile(
    r"(?<![A-Z_])([A-Z_]*(?:TOKEN|SECRET|PASSWORD|ACCESS_KEY)[A-Z_]*)=[\"']?[^\s$~/\"']"
)
"""A variable that a command gives a secret by its value, and not by a file or another variable."""
POLICY = Path("clusters/iam/head.json")
"""Of the head on AWS, in the checkout where `ray up` is typed."""
NEEDED = {
    "aws": (("provider.region", "no region is named", "name one, e.g. us-east-1"),),
    "local": (
        ("provider.head_ip", "no head is named", "name the machine where isweep runs"),
        (
            "auth.ssh_private_key",
            "the head needs a key to start workers",
            "name one made for this cluster",
        ),
    ),
}
"""What `ray up` would miss late or not at all, by provider: place, what is wrong, and the way
out."""


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
        told = [(False, f"{one.where}: {one.what}", one.hint) for one in check_launch_file(launch)]
        for ok, detail, fix in told or [(True, "nothing is wrong; no provider was asked", "")]:
            found.append(
                {"name": f"{LAUNCH_FILE} {launch.name}", "ok": ok, "detail": detail, "fix": fix}
            )
    return found


def _found(name: str, check: Callable[[], tuple[bool, str, str]]) -> Check:
    try:
        ok, detail, fix = check()
    except SweepError as error:
        ok, detail, fix = False, str(error), error.hint
    except Exception as error:
        ok, detail, fix = False, f"{type(error).__name__}: {error}", "see the message"
    return {"name": name, "ok": ok, "detail": detail, "fix": "" if ok else fix}


def _gpus(address: str | None) -> tuple[bool, str, str]:
    there = gpus_here()
    check_driver()
    if not there:
        return True, "none: trials run on CPUs" if address is None else "none on this machine", ""
    here = replace(describe(os.environ.get("CUDA_VISIBLE_DEVICES", "")), offered=len(there))
    what, hint = (
        "; ".join(texts) for texts in zip(*[*gpu_problems(here)] or [("", "")], strict=True)
    )
    return not what, what or ", ".join(gpu.name for gpu in there), hint


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
    found = [_checked(answer, node) for answer, node in _answers(asked_of_nodes(look_here))]
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
    of_gpus = () if gpus.logical else gpu_problems(replace(gpus, offered=offered))
    problems = [silent] if silent else [*of_gpus, *_problems(row)]
    what, hint = ("; ".join(texts) for texts in zip(*problems or [("", "")], strict=True))
    said: Check = {
        "name": f"node {row['address']}",
        "ok": not problems,
        "detail": what,
        "fix": hint,
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


class Problem(NamedTuple):
    """What is wrong in a launch file, where, and the hint."""

    where: str
    what: str
    hint: str


def check_launch_file(path: Path) -> list[Problem]:
    """Return all that is found wrong with a launch file; nothing is started and no provider is
    asked.
    """
    config = _read(path)
    if isinstance(config, Problem):
        return [config]
    wrong = [*_by_ray(config)]
    if wrong:
        return wrong  # the rest would stumble over the same mistakes
    of_provider = {
        "aws": (_in_a_cloud, _on_aws, _policy),
        "gcp": (_in_a_cloud, _on_gcp),
        "local": (_own,),
    }
    checks = (
        _texts,
        _needed,
        _files,
        _commands,
        *of_provider.get(config["provider"].get("type"), ()),
    )
    # Of two node types that say the same, once.
    return [*dict.fromkeys(problem for check in checks for problem in check(config))]


def _read(path: Path) -> dict[str, Any] | Problem:
    try:
        text = read_text(path, "launch file", MAX_FILE_BYTES)
        yaml = YAML(
            typ="safe", pure=True
        )  # which refuses a key that stands twice; Ray takes the last
        yaml.version = (1, 1)  # as Ray reads it
        config = yaml.load(text)
    except FileNotFoundError:
        return Problem(str(path), "no such file", "name a launch file, e.g. cluster.yaml")
    except ConfigError as error:
        return Problem(
            str(path), f"{error.rule}: {error.value}", "name a launch file, e.g. cluster.yaml"
        )
    except (YAMLError, ValueError, RecursionError) as error:
        told = " ".join(str(error).partition("To suppress")[0].split())
        return Problem(str(path), f"not YAML: {told}", "correct the line")
    if not isinstance(config, dict) or "cluster_name" not in config:
        return Problem(
            str(path), "no file for `ray up`: no cluster_name", "begin with cluster.yaml"
        )
    return config


def _by_ray(config: dict[str, Any]) -> Iterator[Problem]:
    """Hold the file to Ray's own schema, and to the rules that `ray up` checks beside it."""
    import jsonschema

    schema = json.loads(
        (resources.files("ray.autoscaler") / "ray-schema.json").read_text(encoding="utf-8")
    )
    # Of one's own machines alone, which the schema does not know.
    told, wrong = {key: value for key, value in config.items() if key != "min_workers"}, False
    for error in jsonschema.Draft7Validator(schema).iter_errors(told):
        wrong = True
        yield Problem(
            ".".join(map(str, error.absolute_path)) or "the file", error.message[:300], COMPARE
        )
    if wrong:
        return
    for there, here in (config.get("file_mounts") or {}).items():
        if not isinstance(here, str):
            yield Problem(
                f"file_mounts.{there}", f"{here!r} is no path", "name a file or folder here"
            )
    kinds = config.get("available_node_types") or ()
    if (
        config["provider"].get("type") in ("aws", "gcp")
        and config.get("head_node_type") not in kinds
    ):
        yield Problem("head_node_type", "must be one of available_node_types", COMPARE)


def _values(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of a document with its place in dots."""
    yield place, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _values(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _values(inner, f"{place}[{index}]")


def _texts(config: dict[str, Any]) -> Iterator[Problem]:
    """Find what is still to be filled in, and secrets, which `ray up` copies to the head."""
    hint = "take it out: a file that travels by file_mounts, mode 600, or a role of the machine"
    seen = set[str]()
    for place, value in _values(config):
        if not isinstance(value, str):
            continue
        for line in [line for line in value.splitlines() if UNFILLED.search(line)][:1]:
            if value not in seen:  # what stands behind an anchor is filled in once
                yield Problem(
                    place, f"still to be filled in: {line}", "see the comment marked CHANGE there"
                )
        seen.add(value)
        if place.startswith("file_mounts."):
            continue
        if value and SECRET_KEY.search(place.rpartition(".")[2]):
            yield Problem(place, "a secret stands in the file", hint)
        for name in SECRET_SET.findall(value):
            yield Problem(place, f"a secret stands in the file: {name}", hint)


def _needed(config: dict[str, Any]) -> Iterator[Problem]:
    values = dict(_values(config))
    account = ("auth.ssh_user", "nobody to log in as", "name the account, e.g. ubuntu")
    for place, told, hint in (account, *NEEDED.get(config["provider"].get("type"), ())):
        if not values.get(place):
            yield Problem(place, told, hint)
    if key := values.get("auth.ssh_private_key"):
        path, place = Path(key).expanduser(), "auth.ssh_private_key"
        if not path.is_file():
            yield Problem(place, f"no {key}", "make one: ssh-keygen -t ed25519, or name yours")
        elif path.stat().st_mode & 0o077:
            yield Problem(
                place, "others can read the key, and ssh will not use it", f"chmod 600 {key}"
            )


def _files(config: dict[str, Any]) -> Iterator[Problem]:
    """Look at what travels."""
    mounts = config.get("file_mounts") or {}
    if not any("token" in there for there in mounts):
        told = "no token travels, and Ray asks for one"
        yield Problem("file_mounts", told, "add ~/.ray/auth_token: ~/.ray/auth_token")
    for there, here in mounts.items():
        place, path = (
            f"file_mounts.{there}",
            Path(here).expanduser(),
        )  # relative to where `ray up` is typed
        if not path.exists():
            wheel = f"make wheel, and stay in the checkout: {Path.cwd()}"
            yield Problem(place, f"no {here}", MAKE_TOKEN if "token" in there else wheel)
        elif "token" in there:
            if path.stat().st_mode & 0o077:
                yield Problem(place, "others can read the token", f"chmod 600 {path}")
            words = list[str]()
            with suppress(OSError, UnicodeDecodeError):
                words = read_whole(path).decode().split()
            if len(words) != 1:
                yield Problem(place, "the token is not one word of text", MAKE_TOKEN)
        elif any((path / name).exists() for name in OF_CHECKOUT_OR_ROOT):
            told = f"{here} is a checkout or a root, which may hold images of patients"
            yield Problem(place, told, "let dist/ travel alone; raw data go by `ray rsync-up`")
        elif path.is_dir() and there.rstrip("/") == "~/isweep-dist":
            yield from _wheels(place, path)
            commands = str([config[name] for name in config if name.endswith("setup_commands")])
            for name in sorted(set(DIST.findall(commands))):
                if not (path / name).is_file():
                    yield Problem(place, f"no {path / name}", "make wheel")


def _wheels(place: str, dist: Path) -> Iterator[Problem]:
    wheels, ours = [*dist.glob("isweep-*.whl")], metadata.version("isweep")
    found, baked, here = [wheel.name.split("-")[1] for wheel in wheels], "none", provenance().commit
    if found != [ours]:
        told = f"wheels of isweep: {', '.join(found) or 'none'}; the one installed here is {ours}"
        yield Problem(place, told, "make wheel")
        return
    with (
        suppress(OSError, zipfile.BadZipFile, KeyError, ValueError),
        zipfile.ZipFile(wheels[0]) as inside,
    ):
        baked = str(json.loads(inside.read("orchestrator/commit.json"))["commit"])
    if here and baked != here:
        told = f"{wheels[0]} is made of commit {baked[:12]}, and {here[:12]} is installed here"
        yield Problem(place, told, "make wheel")


def _commands(config: dict[str, Any]) -> Iterator[Problem]:
    """Look at the commands that start Ray."""
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = next((one for one in config.get(name, ()) if "ray start" in one), "")
        if not start:
            yield Problem(name, "no `ray start`", "take the command of the repository's file")
        elif "RAY_AUTH_MODE=token" not in start:
            yield Problem(
                name, "no token is asked for", "put RAY_AUTH_MODE=token before `ray start`"
            )
        if name.startswith("head") and start and "--dashboard-host=127.0.0.1" not in start:
            told = "the dashboard, which runs code, is not bound to the head itself"
            yield Problem(name, told, "add --dashboard-host=127.0.0.1 after `ray start`")
        if any("ray stop" in one for one in config.get(name, ())):
            yield Problem(name, "`ray stop` ends every Ray process of the account", "take it out")


def _in_a_cloud(config: dict[str, Any]) -> Iterator[Problem]:
    head, kinds = config["head_node_type"], config["available_node_types"]
    may_start = any(kind.get("max_workers", 1) for name, kind in kinds.items() if name != head)
    if not (config.get("max_workers", 0) and may_start):
        yield Problem(
            "max_workers", "no worker may start", "say how many, e.g. 8, here and in a node type"
        )
    if config["provider"].get("cache_stopped_nodes", True):
        told = (
            "Ray would stop nodes and not end them: their disks stay, with what is on them, and "
            "cost"
        )
        yield Problem("provider.cache_stopped_nodes", told, "say false")


def _nodes(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Yield of each node type its place, what its provider is asked for, and whether it is the
    head's.
    """
    for name, kind in config["available_node_types"].items():
        place, is_head = (
            f"available_node_types.{name}.node_config",
            name == config["head_node_type"],
        )
        yield place, kind["node_config"], is_head


def _on_aws(config: dict[str, Any]) -> Iterator[Problem]:
    if find_spec("boto3") is None:
        yield Problem("provider.type", "aws needs boto3 on this machine", "pip install boto3")
        return
    service = importlib.import_module("botocore.session").get_session().get_service_model("ec2")
    shape = service.operation_model("RunInstances").input_shape
    validator = importlib.import_module("botocore.validate").ParamValidator()
    for place, made, is_head in _nodes(config):
        # Ray takes subnets out before it asks EC2.
        fields = {"MinCount": 1, "MaxCount": 1} | {
            key: made[key] for key in made if key != "SubnetIds"
        }
        wrong = validator.validate(fields, shape).generate_report().splitlines()
        for line in wrong:
            yield Problem(
                place, line.split(", must be one of")[0], "correct it, or: pip install -U boto3"
            )
        if wrong:
            continue
        if is_head and made.get("InstanceMarketOptions", {}).get("MarketType") == "spot":
            told = (
                "a spot instance as head: taken away, it takes the sweep and the root on its "
                "disk along"
            )
            yield Problem(
                f"{place}.InstanceMarketOptions", told, "only workers may be spot instances"
            )
        open_ssh = "without a security group by id Ray makes one that opens SSH to the world"
        for key, told, hint in (
            (
                "ImageId",
                "no image is named, and Ray takes its own",
                "name one with Python 3.11 to 3.13",
            ),
            (
                "IamInstanceProfile",
                "else Ray gives the head full rights",
                "see clusters/iam/head.json",
            ),
            ("SecurityGroupIds", open_ssh, "name your own group: [sg-...]"),
        ):
            if not made.get(key) and not (
                key == "SecurityGroupIds" and made.get("NetworkInterfaces")
            ):
                yield Problem(f"{place}.{key}", told, hint)
        place = f"{place}.BlockDeviceMappings"
        disks = [one["Ebs"] for one in made.get("BlockDeviceMappings") or () if "Ebs" in one]
        if not disks or not all(disk.get("Encrypted") for disk in disks):
            yield Problem(
                place, "a disk is not encrypted, or none is named", "name it, with Encrypted: true"
            )
        if not all(disk.get("DeleteOnTermination", True) for disk in disks):
            yield Problem(place, "a disk stays when its node ends", "say DeleteOnTermination: true")


def _policy(config: dict[str, Any]) -> Iterator[Problem]:
    """Compare with the head's policy in the checkout, which names the cluster and the region."""
    limits: list[dict[str, str]] = []
    with suppress(OSError, ValueError, KeyError, TypeError):  # AWS takes none that is broken
        statements = json.loads(POLICY.read_text(encoding="utf-8"))["Statement"]
        limits = [one["Condition"]["StringEquals"] for one in statements if "Condition" in one]
    for where, key, ours in (
        ("cluster_name", "aws:ResourceTag/ray-cluster-name", config["cluster_name"]),
        ("provider.region", "aws:RequestedRegion", config["provider"].get("region")),
    ):
        for named in sorted({one[key] for one in limits if key in one} - {ours}):
            if not UNFILLED.search(named):
                told = f"{ours}, and {POLICY} lets the head start and end nodes of {named} only"
                yield Problem(
                    where, told, "say the same in both, and in the policy of your account"
                )


def _on_gcp(config: dict[str, Any]) -> Iterator[Problem]:
    for place, made, is_head in _nodes(config):
        boots = [
            disk for disk in made.get("disks") or () if isinstance(disk, dict) and disk.get("boot")
        ]
        if not boots or not boots[0].get("autoDelete"):
            yield Problem(
                f"{place}.disks", "the disk stays when its node ends", "say autoDelete: true"
            )
        nets = made.get("networkInterfaces") or []
        if not nets or not all(one.get("subnetwork") or one.get("network") for one in nets):
            told = (
                "without a subnet the project's default network is taken, which opens SSH to "
                "the world"
            )
            yield Problem(f"{place}.networkInterfaces", told, "name your own: subnetwork")
        said = made.get("scheduling") or {}
        rules = said if isinstance(said, dict) else dict(ChainMap(*said))
        if rules.get("provisioningModel") != "SPOT" and not rules.get("preemptible"):
            continue
        if is_head:
            told = (
                "a spot machine as head: taken away, it takes the sweep and the root on its "
                "disk along"
            )
            yield Problem(
                f"{place}.scheduling", told, "take it out: only workers may be spot machines"
            )
        if rules.get("instanceTerminationAction") != "DELETE":
            told = "a spot machine that is taken away would be stopped, and its disk stay and cost"
            yield Problem(f"{place}.scheduling", told, "add instanceTerminationAction: DELETE")


def _own(config: dict[str, Any]) -> Iterator[Problem]:
    provider = config["provider"]
    head, *workers = map(str, (provider.get("head_ip", ""), *(provider.get("worker_ips") or ())))
    for name in ("min_workers", "max_workers"):
        if config.get(name) != len(workers):
            told = f"{config.get(name)}, and worker_ips names {len(workers)}"
            yield Problem(
                name, told, f"say {len(workers)}: others would be left out without a word"
            )
    if len({head, *workers}) <= len(workers):
        yield Problem("provider", "a machine is named twice", "name each once, the head apart")
    starts = [one for one in config.get("head_start_ray_commands", ()) if "ray start" in one]
    if starts and not any("RAY_enable_autoscaler_v2=0" in one for one in starts):
        told = (
            "version 2 of Ray's autoscaler, its default, leaves the last of one's own machines out"
        )
        yield Problem(
            "head_start_ray_commands", told, "put RAY_enable_autoscaler_v2=0 before `ray start`"
        )
    for name in filter(None, (head, *workers)):
        try:
            UNFILLED.search(name) or getaddrinfo(name, 22)
        except OSError:
            told = f"{name}: this machine does not know the name"
            yield Problem("provider", told, "correct it, or give the address")
