"""A launch file for ``ray up``, looked at before it costs anything: all its mistakes, with the way out."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from orchestrator.planning.plain_yaml import read_text
from orchestrator.results.tracking.provenance import provenance
from orchestrator.running.launch_aws import on_aws
from orchestrator.running.launch_gcp import on_gcp
from orchestrator.running.launch_nodes import UNFILLED, Problem
from orchestrator.running.launch_onprem import own_machines
from search_spaces.errors import ConfigError
from tasks.atomic import read_whole

MAKE_TOKEN = 'make one: see "Tokens" in docs/cluster.md'
PROVIDERS = {"aws": on_aws, "gcp": on_gcp, "local": own_machines}
FOREIGN = (
    ("apiVersion", "a Kubernetes object", "kubectl apply --dry-run=server -f FILE"),
    ("run", "a task of SkyPilot", "sky launch --dryrun FILE"),
    ("phases", "a component of EC2 Image Builder", "aws imagebuilder create-component --dry-run"),
    ("Statement", "a policy of AWS", "the policy validator of your account"),
)
"""Launch files that `ray up` does not read, by a key that they have, and who looks at them."""
OF_CHECKOUT_OR_ROOT = (".git", "isweep-root", "mlflow.db", "sweeps", "prepared")
DIST = re.compile(r"~/isweep-dist/([\w@.-]+\.\w+)")
SECRET_KEY = re.compile(r"secret|password|access_key|(^|_)token$", re.IGNORECASE)
SECRET_SET = re.compile(r"(?<![A-Z_])([A-Z_]*(?:TOKEN|SECRET|PASSWORD|ACCESS_KEY)[A-Z_]*)=[\"']?[^\s$~/\"']")
"""A variable that a command gives a secret by its value, and not by a file or another variable."""
AMOUNT = re.compile(r"(_workers|_minutes|_speed|VolumeSize|diskSizeGb)$")
MAX_FILE_BYTES = 100_000
"""PyYAML reads as many in a second; the longest file of the repository has 6,000."""
MAX_VALUES = 10_000
"""Aliases make any number of values of a short file; no launch file has a thousand."""
COMPARE = "compare with the file of that name in the repository"


class _Once(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Refuses a key that stands twice in one place, of which Ray would take the last without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"{name} stands twice", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def check_launch_file(path: Path) -> list[Problem]:
    """Return all that is found wrong with a launch file; nothing is started and no provider is asked.

    Looked at: YAML, Ray's own checks, places that are still to be filled in, the files that travel, the
    commands that start Ray, account and key, and for ``aws``, ``gcp`` and ``local`` what the provider needs.
    """
    config = _read(path)
    if isinstance(config, Problem):
        return [config]
    for key, what, looks in FOREIGN:
        if key in config:
            told = Problem(str(path), f"{what}, and no file for `ray up`", looks.replace("FILE", str(path)))
            return [told, *_unfilled(config)]
    wrong = [*_untold(config)] or [*_by_ray(config)]
    if wrong:
        return wrong  # the rest would stumble over the same mistakes
    of_provider = PROVIDERS.get(config["provider"]["type"], lambda _: ())
    checks = (_odd, _unfilled, _secrets, _account, _files, _commands, of_provider)
    found = [problem for check in checks for problem in _stumbling_told(check, config)]
    return [*dict.fromkeys(found)]  # of two node types that say the same, once


def _read(path: Path) -> dict[str, Any] | Problem:
    """Return the file's keys, or what stands in the way."""
    try:
        text = read_text(path, "launch file", MAX_FILE_BYTES)
        if text.startswith("#!"):
            return Problem(str(path), "a script, and no file for `ray up`", f"sbatch --test-only {path}")
        config = yaml.load(text, _Once)  # noqa: S506 (made of the safe one)
        if isinstance(config, dict) and next(islice(_values(config), MAX_VALUES, None), None):
            return Problem(str(path), f"more than {MAX_VALUES:,} values", COMPARE)
    except FileNotFoundError:
        return Problem(str(path), "no such file", "name a launch file, e.g. cluster.yaml")
    except ConfigError as error:
        return Problem(str(path), f"{error.rule}: {error.value}", "name a launch file, e.g. cluster.yaml")
    except yaml.YAMLError as error:
        return Problem(str(path), f"not YAML: {' '.join(str(error).split())}", "correct the line")
    except RecursionError:
        return Problem(str(path), "nested too deep, or one value holds itself", COMPARE)
    except ValueError as error:  # of a date that is none
        return Problem(str(path), f"not YAML: {error}", "correct the value, or put it in quotes")
    if not isinstance(config, dict):
        return Problem(str(path), "no keys", "begin with a file of clusters/, or cluster.yaml")
    return config


def _untold(config: dict[str, Any]) -> Iterator[Problem]:
    """Find what Ray would stumble over without naming the place."""
    mounts = config.get("file_mounts")
    for there, here in mounts.items() if isinstance(mounts, dict) else ():
        if not isinstance(here, str):
            yield Problem(
                f"file_mounts.{there}", f"{here!r} is no path", "name a file or folder of this machine"
            )


def _by_ray(config: dict[str, Any]) -> Iterator[Problem]:
    """Ask what Ray itself asks before it calls the provider."""
    from ray.autoscaler._private.providers import _NODE_PROVIDERS
    from ray.autoscaler._private.util import prepare_config, validate_config

    provider = config.get("provider")
    kind = provider.get("type") if isinstance(provider, dict) else None
    if kind is not None and str(kind) not in _NODE_PROVIDERS:
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
        yield Problem(place, text.splitlines()[0], COMPARE)


def _stumbling_told(
    check: Callable[[dict[str, Any]], Iterable[Problem]], config: dict[str, Any]
) -> list[Problem]:
    """Return what a check finds; where a value has a form that it cannot hold, that is what it finds."""
    try:
        return [*check(config)]
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        told = f"something has not the form that it has in the repository's file: {error}"
        return [Problem("the file", told, COMPARE)]


def _values(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of a document with its place in dots."""
    yield place, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _values(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _values(inner, f"{place}[{index}]")


def _odd(config: dict[str, Any]) -> Iterator[Problem]:
    """Find values that no schema forbids and nobody means."""
    for place, value in _values(config):
        if isinstance(value, str) and not value.replace("\n", "").isprintable():
            yield Problem(place, f"{value!r} holds a control character", "type it anew")
        elif isinstance(value, int | float) and AMOUNT.search(place) and not value >= 0:
            yield Problem(place, f"{value} is no amount", "0 or more")
    if not config["cluster_name"].strip():
        yield Problem("cluster_name", "empty", "name the cluster, e.g. isweep")


def _unfilled(config: dict[str, Any]) -> Iterator[Problem]:
    told = set()  # what stands behind an anchor is filled in once
    for place, text in _values(config):
        if isinstance(text, str) and UNFILLED.search(text) and text not in told:
            told.add(text)
            line = next(line for line in text.splitlines() if UNFILLED.search(line))
            yield Problem(place, f"still to be filled in: {line}", "see the comment marked CHANGE there")


def _secrets(config: dict[str, Any]) -> Iterator[Problem]:
    """Find secrets in the file itself: `ray up` copies it to the head, and people copy it to each other."""
    way_out = "take it out: a file that travels by file_mounts, mode 600, or a role of the machine"
    for place, value in _values(config):
        if not isinstance(value, str) or place.startswith("file_mounts."):
            continue
        if value and SECRET_KEY.search(place.rpartition(".")[2]):
            yield Problem(place, "a secret stands in the file", way_out)
        for name in SECRET_SET.findall(value):
            yield Problem(place, f"a secret stands in the file: {name}", way_out)


def _account(config: dict[str, Any]) -> Iterator[Problem]:
    auth = config.get("auth") or {}
    if not auth.get("ssh_user"):
        yield Problem("auth.ssh_user", "nobody to log in as", "name the account, e.g. ubuntu")
    key = auth.get("ssh_private_key")
    if key and not Path(key).expanduser().is_file():
        yield Problem("auth.ssh_private_key", f"no {key}", "make one: ssh-keygen -t ed25519, or name yours")
    elif key and Path(key).expanduser().stat().st_mode & 0o077:
        told = "others can read the key, and ssh will not use it"
        yield Problem("auth.ssh_private_key", told, f"chmod 600 {key}")


def _files(config: dict[str, Any]) -> Iterator[Problem]:
    """Look at what travels: ``ray up`` would copy an old wheel, or stop half-way for want of a token."""
    mounts = config.get("file_mounts") or {}
    if not any("token" in there for there in mounts):
        told = "no token travels, and Ray asks for one"
        yield Problem("file_mounts", told, "add ~/.ray/auth_token: ~/.ray/auth_token")
    for there, here in mounts.items():
        path = Path(here).expanduser()  # relative to where `ray up` is typed
        if not path.exists():
            way_out = (
                MAKE_TOKEN if "token" in there else f"make wheel, and stay in the checkout: {Path.cwd()}"
            )
            yield Problem(f"file_mounts.{there}", f"no {here}", way_out)
        elif "token" in there:
            yield from _token(there, path)
        elif any((path / name).exists() for name in OF_CHECKOUT_OR_ROOT):
            told = f"{here} is a checkout or a root, which may hold images of patients"
            yield Problem(
                f"file_mounts.{there}", told, "let dist/ travel alone; raw data go by `ray rsync-up`"
            )
        elif path.is_dir() and there.rstrip("/") == "~/isweep-dist":
            yield from _wheels(there, path)
    yield from _asked_for(config, mounts)


def _token(there: str, path: Path) -> Iterator[Problem]:
    try:
        text = read_whole(path).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        yield Problem(f"file_mounts.{there}", f"no token can be read there: {error}", MAKE_TOKEN)
        return
    if path.stat().st_mode & 0o077:
        yield Problem(f"file_mounts.{there}", "others can read the token", f"chmod 600 {path}")
    if len(text.split()) != 1:
        told = "the token is empty" if not text else "the token is more than one word"
        yield Problem(f"file_mounts.{there}", told, MAKE_TOKEN)


def _asked_for(config: dict[str, Any], mounts: dict[str, str]) -> Iterator[Problem]:
    """Look whether the files that set-up commands name are among those that travel."""
    names = [name for name in config if name.endswith("setup_commands")]
    commands = " ".join(command for name in names for command in config[name] or ())
    if "~/isweep-dist" not in mounts:
        if "~/isweep-dist" in commands:
            told = "~/isweep-dist does not travel, and set-up commands ask for it"
            yield Problem("file_mounts", told, "add ~/isweep-dist: ./dist")
        return
    folder = Path(mounts["~/isweep-dist"]).expanduser()
    for name in sorted(set(DIST.findall(commands))):
        if folder.is_dir() and not (folder / name).is_file():
            yield Problem("file_mounts.~/isweep-dist", f"no {folder / name}", "make wheel")


def _wheels(there: str, dist: Path) -> Iterator[Problem]:
    wheels = [*dist.glob("isweep-*.whl")]
    found, ours = [wheel.name.split("-")[1] for wheel in wheels], metadata.version("isweep")
    if found != [ours]:
        told = f"wheels of isweep: {', '.join(found) or 'none'}; the one installed here is {ours}"
        yield Problem(f"file_mounts.{there}", told, "make wheel")
        return
    here, baked = provenance().commit, _commit_of(wheels[0])
    if here and baked != here:
        told = f"{wheels[0]} is made of commit {baked[:12] or 'none'}, and {here[:12]} is installed here"
        yield Problem(f"file_mounts.{there}", told, "make wheel")


def _commit_of(wheel: Path) -> str:
    """Return the commit that `make wheel` baked in, or nothing."""
    try:
        with zipfile.ZipFile(wheel) as inside:
            return str(json.loads(inside.read("orchestrator/commit.json"))["commit"])
    except (OSError, zipfile.BadZipFile, KeyError, ValueError):
        return ""


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
    if head and not re.search(r"--head\b", head):
        yield Problem("head_start_ray_commands", "no head is started", "add --head after `ray start`")
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
