"""A launch file for ``ray up``, looked at before it costs anything: all its mistakes, with the way out."""

from __future__ import annotations

import importlib.util
import re
import socket
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import yaml

UNFILLED = re.compile(r"CHANGE|\bexample\.(org|com)\b")
AMI = re.compile(r"ami-([0-9a-f]{8}|[0-9a-f]{17})")
GROUP = re.compile(r"sg-([0-9a-f]{8}|[0-9a-f]{17})")
MAKE_TOKEN = 'make one: see "Tokens" in docs/cluster.md'


class Problem(NamedTuple):
    """What is wrong in a launch file, where, and the way out."""

    where: str
    what: str
    way_out: str


def check_launch_file(path: Path) -> list[Problem]:
    """Return all that is found wrong with a launch file; nothing is started and no provider is asked.

    Looked at: YAML, Ray's own checks, places that are still to be filled in, the files that travel, the
    commands that start Ray, the key, and for ``aws`` and ``local`` what the provider needs.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        return [Problem(str(path), str(error), "name a launch file, e.g. cluster.yaml")]
    except yaml.YAMLError as error:
        return [Problem(str(path), f"not YAML: {' '.join(str(error).split())}", "correct the line")]
    if not isinstance(config, dict):
        return [Problem(str(path), "no keys", "begin with a file of clusters/, or cluster.yaml")]
    wrong = [*_by_ray(config)]
    if wrong:
        return wrong  # the rest would stumble over the same mistakes
    kind = config["provider"]["type"]
    return [
        *_unfilled(config),
        *_files(config, path.parent),
        *_commands(config),
        *(_on_aws(config) if kind == "aws" else ()),
        *(_own_machines(config) if kind == "local" else ()),
    ]


def _by_ray(config: dict[str, Any]) -> Iterator[Problem]:
    """Ask what Ray itself asks before it calls the provider."""
    from ray.autoscaler._private.providers import _NODE_PROVIDERS
    from ray.autoscaler._private.util import prepare_config, validate_config

    provider = config.get("provider")
    kind = provider.get("type") if isinstance(provider, dict) else None
    if kind is not None and kind not in _NODE_PROVIDERS:
        yield Problem("provider.type", f"{kind} is none that Ray knows", ", ".join(sorted(_NODE_PROVIDERS)))
        return
    try:
        # Ray fills in before it checks, and stumbles over what is not of the form it expects.
        legacy = ("min_workers",) if kind == "local" else ()
        raw = {key: value for key, value in config.items() if key not in legacy}
        validate_config({"cluster_synced_files": [], **raw})
        validate_config(prepare_config(config))
    except Exception as error:  # of its schema, of its own checks, or of what it fills in
        place = ".".join(map(str, getattr(error, "absolute_path", ()))) or "the file"
        text = getattr(error, "message", "") or str(error) or type(error).__name__
        yield Problem(place, text.splitlines()[0], "compare with the file of that name in the repository")


def _values(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text of a document with its place in dots."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _values(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _values(inner, f"{place}[{index}]")
    elif isinstance(value, str):
        yield place, value


def _unfilled(config: dict[str, Any]) -> Iterator[Problem]:
    told = set()  # what stands behind an anchor is filled in once
    for place, text in _values(config):
        if UNFILLED.search(text) and text not in told:
            told.add(text)
            yield Problem(place, f"still to be filled in: {text}", "see the comment marked CHANGE there")


def _files(config: dict[str, Any], folder: Path) -> Iterator[Problem]:
    """Look at what travels: ``ray up`` would copy an old wheel, or stop half-way for want of a token."""
    for there, here in config.get("file_mounts", {}).items():
        path = Path(here).expanduser()  # relative to where `ray up` is typed
        if not path.exists():
            way_out = (
                MAKE_TOKEN if "token" in there else f"make wheel, and stay in the checkout: {Path.cwd()}"
            )
            yield Problem(f"file_mounts.{there}", f"no {here}", way_out)
        elif "token" in there:
            if path.stat().st_mode & 0o077:
                yield Problem(f"file_mounts.{there}", "others can read the token", f"chmod 600 {here}")
            if not path.read_text(encoding="utf-8").strip():
                yield Problem(f"file_mounts.{there}", "the token is empty", MAKE_TOKEN)
        elif path.is_dir() and path.name == "dist":
            yield from _wheels(there, path)
    key = config.get("auth", {}).get("ssh_private_key")
    if key and not Path(key).expanduser().is_file():
        yield Problem("auth.ssh_private_key", f"no {key}", "make one: ssh-keygen -t ed25519, or name yours")


def _wheels(there: str, dist: Path) -> Iterator[Problem]:
    found = [wheel.name.split("-")[1] for wheel in dist.glob("isweep-*.whl")]
    ours = metadata.version("isweep")
    if found != [ours]:
        told = f"wheels of isweep: {', '.join(found) or 'none'}; the one installed here is {ours}"
        yield Problem(f"file_mounts.{there}", told, "make wheel")


def _commands(config: dict[str, Any]) -> Iterator[Problem]:
    """Look at the commands that start Ray: closed to others, and alike on head and workers."""
    starts = {}
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        commands = config.get(name, [])
        starts[name] = start = next((one for one in commands if "ray start" in one), "")
        if not start:
            yield Problem(name, "no `ray start`", "take the command of the repository's file")
        elif "RAY_AUTH_MODE=token" not in start:
            yield Problem(name, "no token is asked for", "put RAY_AUTH_MODE=token before `ray start`")
        if any("ray stop" in one for one in commands):
            yield Problem(name, "`ray stop` ends every Ray process of the account", "take it out")
    head, worker = starts.values()
    if head and "--dashboard-host=127.0.0.1" not in head:
        told = "the dashboard, which runs code, is not bound to the head itself"
        yield Problem("head_start_ray_commands", told, "add --dashboard-host=127.0.0.1")
    if head and "--autoscaling-config" not in head:
        told = "the head would start no worker"
        way_out = "add --autoscaling-config=~/ray_bootstrap_config.yaml"
        yield Problem("head_start_ray_commands", told, way_out)
    port = re.search(r"--port[= ](\d+)", head)
    joined = re.search(r"\$RAY_HEAD_IP:(\d+)", worker)
    if worker and (not joined or joined.group(1) != (port.group(1) if port else "6379")):
        told = "workers look for the head at another port than it has"
        yield Problem(
            "worker_start_ray_commands", told, "use --address=$RAY_HEAD_IP:PORT with the head's --port"
        )


def _on_aws(config: dict[str, Any]) -> Iterator[Problem]:
    if importlib.util.find_spec("boto3") is None:
        yield Problem("provider.type", "aws needs boto3 on this machine", "pip install boto3")
    for kind, node in config["available_node_types"].items():
        place, made = f"available_node_types.{kind}.node_config", node["node_config"]
        for key, form in (("ImageId", AMI), ("SecurityGroupIds", GROUP)):
            named = made.get(key) or []
            for value in [named] if isinstance(named, str) else named:
                if not form.fullmatch(value) and not UNFILLED.search(value):
                    yield Problem(f"{place}.{key}", f"{value} has not the form of one", f"{form.pattern}")
        if not made.get("SecurityGroupIds") and not made.get("NetworkInterfaces"):
            told = "without a security group by id Ray makes one that opens SSH to the world"
            yield Problem(f"{place}.SecurityGroupIds", told, "name your own group: [sg-...]")
        if not made.get("IamInstanceProfile"):
            told = "without a profile Ray gives the head full rights on EC2 and S3"
            yield Problem(f"{place}.IamInstanceProfile", told, "make one of clusters/iam/head.json")
    if not config.get("max_workers"):
        yield Problem("max_workers", "no worker may start", "say how many, e.g. 8")


def _own_machines(config: dict[str, Any]) -> Iterator[Problem]:
    provider = config["provider"]
    workers, head = provider.get("worker_ips") or [], provider.get("head_ip", "")
    for name in ("min_workers", "max_workers"):
        if config.get(name) != len(workers):
            told = f"{config.get(name)}, and worker_ips names {len(workers)}"
            yield Problem(name, told, f"say {len(workers)}: others would be left out without a word")
    if not config.get("auth", {}).get("ssh_private_key"):
        told = "the head needs a key to start the workers"
        yield Problem("auth.ssh_private_key", told, "name one made for this cluster")
    if len({head, *workers}) <= len(workers):
        yield Problem("provider", "a machine is named twice", "name each once, the head apart")
    for name in (head, *workers):
        if not UNFILLED.search(name) and not _known(name):
            told = f"{name}: this machine does not know the name"
            yield Problem("provider", told, "correct it, or give the address")


def _known(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, 22))
    except OSError:
        return False
