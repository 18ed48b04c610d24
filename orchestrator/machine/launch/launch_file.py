"""Checks of a launch file for ``ray up``. They detect mistakes before any machine starts and
costs money.

The checks use Ray's schema and botocore's validation. They also detect mistakes that these two
do not detect: placeholders that nobody has filled in, missing files, open ports, too many
permissions, and nodes and disks that remain after the end of the cluster.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata, resources
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from orchestrator.machine.launch.mistakes import UNFILLED, Config, Mistake
from orchestrator.machine.launch.providers import aws_mistakes, gcp_mistakes, local_mistakes
from orchestrator.planning.plain_yaml import read_text
from orchestrator.results.provenance import provenance
from search_spaces.errors import ConfigError
from tasks.atomic import read_whole

COMPARE_HINT = (
    "In isweep's repository, compare the file with `cluster.yaml`, or with the files in `clusters/`"
)
TOKEN_HINT = 'Make a token with the commands under "Tokens" in docs/cluster.md'
SECRET_HINT = (
    "Remove the secret from the launch file. To copy the secret to the nodes as a file of mode "
    "600, use `file_mounts`. Or give the nodes a role"
)
WHEEL_HINT = "Run `make wheel`"
MAX_FILE_BYTES = 100_000
"""Largest size of a launch file in bytes. PyYAML reads a file of this size in a second. The
longest launch file of the repository has 6,000 bytes."""
IN_CHECKOUT_OR_ROOT = (".git", "isweep-root", "mlflow.db", "sweeps", "prepared")
"""Names of files and folders. A folder that contains one of them is a checkout or a root,
which may contain images of patients. Such a folder must not be copied to the nodes."""
WHEEL_FOLDER = "~/isweep-dist"
WHEEL_FILE = re.compile(r"~/isweep-dist/([\w@.-]+\.\w+)")
SECRET_KEY = re.compile(r"secret|password|access_key|(^|_)token$", re.IGNORECASE)
SECRET_SET = re.compile(
    r"(?<![A-Z_])([A-Z_]*(?:TOKEN|SECRET|PASSWORD|ACCESS_KEY)[A-Z_]*)=[\"']?[^\s$~/\"']"
)
"""Pattern of a command that sets an environment variable to a secret. It does not match if the
value is a path or another variable."""
READ_BY_OTHERS = 0o077
"""Permission bits that let the group and other users use a file."""

NEEDED = {
    "": (
        Mistake(
            "auth.ssh_user",
            "the name of the account on the nodes is missing",
            "Write the account's name, for example ubuntu",
        ),
    ),
    "aws": (
        Mistake("provider.region", "the region is missing", "Write a region, such as us-east-1"),
    ),
    "local": (
        Mistake(
            "provider.head_ip",
            "the head node is missing",
            "Write the name of the machine on which isweep runs",
        ),
        Mistake(
            "auth.ssh_private_key",
            "the SSH key with which the head node starts workers is missing",
            "Write the path of a key that was made for this cluster",
        ),
    ),
}
"""Mistakes for required keys that are missing, by type of the provider. ``ray up`` reports
these mistakes late or not at all. The mistakes under the empty type are for all providers."""
PROVIDER_CHECKS = {"aws": aws_mistakes, "gcp": gcp_mistakes, "local": local_mistakes}


def check_launch_file(path: Path) -> list[Mistake]:
    """Return all mistakes in a launch file. Nothing is started, and no provider is contacted."""
    config = _read(path)
    if isinstance(config, Mistake):
        return [config]
    mistakes = list(_schema_mistakes(config))
    if mistakes:
        return mistakes  # the other checks need a file that follows the schema
    for check in (_text_mistakes, _missing_keys, _file_mistakes, _command_mistakes):
        mistakes += check(config)
    provider_check = PROVIDER_CHECKS.get(config["provider"].get("type"))
    if provider_check is not None:
        mistakes += provider_check(config)
    # Some mistakes occur several times, for example in two node types.
    return list(dict.fromkeys(mistakes))


def _read(path: Path) -> Config | Mistake:
    hint = "Give the path of a launch file, for example cluster.yaml"
    try:
        text = read_text(path, "launch file", MAX_FILE_BYTES)
        # This parser rejects a key that occurs twice. Ray would use the last value of the key.
        yaml = YAML(typ="safe", pure=True)
        yaml.version = (1, 1)  # as Ray reads it
        config = yaml.load(text)
    except FileNotFoundError:
        return Mistake("", f"{path} does not exist", hint)
    except ConfigError as error:
        return Mistake("", error.problem, hint)
    except (YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).partition("To suppress")[0].split())
        return Mistake("", f"{path} is not YAML: {reason}", "Correct the line")
    if not isinstance(config, dict) or "cluster_name" not in config:
        problem = f"{path} has no cluster_name, so it is not a launch file for `ray up`"
        return Mistake("", problem, "Start from a copy of cluster.yaml")
    return config


def _schema_mistakes(config: Config) -> Iterator[Mistake]:
    """Yield a mistake for each violation of Ray's schema or of another rule of ``ray up``."""
    import jsonschema

    file = resources.files("ray.autoscaler") / "ray-schema.json"
    schema = json.loads(file.read_text(encoding="utf-8"))
    # The schema lacks this key, which clusters of the user's own machines have.
    schema_keys = {key: value for key, value in config.items() if key != "min_workers"}
    is_wrong = False
    for error in jsonschema.Draft7Validator(schema).iter_errors(schema_keys):
        is_wrong = True
        place = ".".join(str(key) for key in error.absolute_path) or "the file"
        yield Mistake(place, error.message[:300], COMPARE_HINT)
    if is_wrong:
        return
    for target, source in (config.get("file_mounts") or {}).items():
        if not isinstance(source, str):
            place = f"file_mounts.{target}"
            problem = f"{source!r} is not a path"
            yield Mistake(place, problem, "Write the path of a file or folder of this machine")
    is_cloud = config["provider"].get("type") in ("aws", "gcp")
    node_types = config.get("available_node_types") or ()
    head = config.get("head_node_type")
    if is_cloud and head not in node_types:
        problem = f"{head!r} is not a name in available_node_types"
        yield Mistake("head_node_type", problem, COMPARE_HINT)


def _values(value: object, place: str = "") -> Iterator[tuple[str, object]]:
    """Yield the key and the value of each entry of a document. A nested key is written with
    dots.
    """
    yield place, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _values(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _values(inner, f"{place}[{index}]")


def _text_mistakes(config: Config) -> Iterator[Mistake]:
    """Yield the placeholders that nobody has filled in, and the secrets in the file.

    The file must not contain secrets, because ``ray up`` copies the file to the head.
    """
    earlier_texts = set[str]()
    for place, value in _values(config):
        if not isinstance(value, str):
            continue
        unfilled = [line for line in value.splitlines() if UNFILLED.search(line)]
        # A text with a YAML anchor occurs several times but is filled in once.
        if unfilled and value not in earlier_texts:
            problem = f"the value is an example that you must replace: {unfilled[0]}"
            yield Mistake(place, problem, "Do what the comment with CHANGE in the file says")
        earlier_texts.add(value)
        if place.startswith("file_mounts."):
            continue
        if value and SECRET_KEY.search(place.rpartition(".")[2]):
            yield Mistake(place, "the file contains a secret", SECRET_HINT)
        for name in SECRET_SET.findall(value):
            yield Mistake(place, f"the file contains a secret: {name}", SECRET_HINT)


def _missing_keys(config: Config) -> Iterator[Mistake]:
    values = dict(_values(config))
    for mistake in (*NEEDED[""], *NEEDED.get(config["provider"].get("type"), ())):
        if not values.get(mistake.place):
            yield mistake
    key = values.get("auth.ssh_private_key")
    if not key:
        return
    path = Path(str(key)).expanduser()
    place = "auth.ssh_private_key"
    if not path.is_file():
        hint = "Make a key with `ssh-keygen -t ed25519`, or set another key"
        yield Mistake(place, f"{key} does not exist", hint)
    elif path.stat().st_mode & READ_BY_OTHERS:
        problem = "other users can read the key, so ssh refuses to use it"
        yield Mistake(place, problem, f"Run `chmod 600 {key}`")


def _file_mistakes(config: Config) -> Iterator[Mistake]:
    """Yield mistakes in the files that are copied to the nodes."""
    mounts = config.get("file_mounts") or {}
    if not any("token" in target for target in mounts):
        yield Mistake(
            "file_mounts",
            "no token is copied to the nodes, but Ray needs a token there",
            "Add the line `~/.ray/auth_token: ~/.ray/auth_token`",
        )
    for target, source in mounts.items():
        yield from _mount_mistakes(config, target, source)


def _mount_mistakes(config: Config, target: str, source: str) -> Iterator[Mistake]:
    """Yield the mistakes in one file or folder that is copied to the nodes.

    Args:
        config: the launch file.
        target: path on a node.
        source: path on this machine. A relative path begins in the folder in which the user
            types ``ray up``.
    """
    place = f"file_mounts.{target}"
    path = Path(source).expanduser()
    is_token = "token" in target
    if not path.exists():
        wheel_hint = f"Run `make wheel` and `ray up` in the checkout, not in {Path.cwd()}"
        hint = TOKEN_HINT if is_token else wheel_hint
        yield Mistake(place, f"{source} does not exist", hint)
    elif is_token:
        if path.stat().st_mode & READ_BY_OTHERS:
            yield Mistake(place, "other users can read the token", f"Run `chmod 600 {path}`")
        words = list[str]()
        with suppress(OSError, UnicodeDecodeError):
            words = read_whole(path).decode().split()
        if len(words) != 1:
            yield Mistake(place, "the token's file does not contain exactly one word", TOKEN_HINT)
    elif any((path / name).exists() for name in IN_CHECKOUT_OR_ROOT):
        problem = f"{source} is a checkout or a root, which may contain images of patients"
        yield Mistake(place, problem, "Write `dist/`, and copy raw data with `ray rsync-up`")
    elif path.is_dir() and target.rstrip("/") == WHEEL_FOLDER:
        yield from _wheel_mistakes(place, path)
        commands = str([config[name] for name in config if name.endswith("setup_commands")])
        for name in sorted(set(WHEEL_FILE.findall(commands))):
            if not (path / name).is_file():
                problem = f"{path / name} does not exist, but the setup commands use it"
                yield Mistake(place, problem, WHEEL_HINT)


def _wheel_mistakes(place: str, folder: Path) -> Iterator[Mistake]:
    """Yield a mistake unless a folder contains exactly one isweep wheel, and this wheel has
    the installed version.
    """
    wheels = list(folder.glob("isweep-*.whl"))
    versions = [wheel.name.split("-")[1] for wheel in wheels]
    installed = metadata.version("isweep")
    if versions != [installed]:
        wheels_text = f"wheels of isweep {', '.join(versions)}" if versions else "no isweep wheel"
        problem = f"{folder} has {wheels_text}, but this machine has isweep {installed}"
        yield Mistake(place, problem, WHEEL_HINT)
        return
    commit_in_wheel = "unknown"
    broken = (OSError, zipfile.BadZipFile, KeyError, ValueError)
    with suppress(*broken), zipfile.ZipFile(wheels[0]) as wheel:
        commit_in_wheel = str(json.loads(wheel.read("orchestrator/commit.json"))["commit"])
    commit = provenance().commit
    if commit and commit_in_wheel != commit:
        problem = (
            f"{wheels[0]} was built from commit {commit_in_wheel[:12]}, but this machine has "
            f"commit {commit[:12]}"
        )
        yield Mistake(place, problem, WHEEL_HINT)


def _command_mistakes(config: Config) -> Iterator[Mistake]:
    """Yield mistakes in the commands that start Ray."""
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        commands = config.get(name, ())
        start = next((command for command in commands if "ray start" in command), "")
        if not start:
            hint = "Copy the command from cluster.yaml of the repository"
            yield Mistake(name, "no command contains `ray start`", hint)
        elif "RAY_AUTH_MODE=token" not in start:
            hint = "Put RAY_AUTH_MODE=token before `ray start`"
            yield Mistake(name, "Ray is started without token mode", hint)
        is_head = name.startswith("head")
        if is_head and start and "--dashboard-host=127.0.0.1" not in start:
            problem = "other machines may reach the dashboard, which can run any code"
            yield Mistake(name, problem, "Add --dashboard-host=127.0.0.1 after `ray start`")
        if any("ray stop" in command for command in commands):
            problem = "`ray stop` ends every Ray process of the account"
            yield Mistake(name, problem, "Remove `ray stop`")
