"""A launch file for ``ray up``, looked at before it costs anything: all its mistakes, with the way out.

Ray's schema and botocore's validation say what a field must be. What is looked at here is what they let pass
and a sweep would pay for: places still to be filled in, files that do not travel, open ports, nodes that go
or stay, disks in clear.
"""

from __future__ import annotations

import importlib
import json
import re
import zipfile
from collections import ChainMap
from collections.abc import Iterator
from difflib import get_close_matches
from importlib import metadata, resources
from importlib.util import find_spec
from pathlib import Path
from socket import getaddrinfo
from typing import Any, NamedTuple

import yaml

from orchestrator.planning.sweep_file import read_text
from orchestrator.results.records import provenance
from search_spaces.errors import ConfigError
from tasks.atomic import read_whole

COMPARE = "compare with the file of that name in the repository"
MAKE_TOKEN = 'make one: see "Tokens" in docs/cluster.md'
NEWER = "correct it, or: pip install -U boto3"
FOREIGN = (
    ("apiVersion", "a Kubernetes object", "kubectl apply --dry-run=server -f FILE"),
    ("run", "a task of SkyPilot", "sky launch --dryrun FILE"),
    ("phases", "a component of EC2 Image Builder", "aws imagebuilder create-component --dry-run"),
    ("Statement", "a policy of AWS", "the policy validator of your account"),
)
"""Launch files that `ray up` does not read, by a key that they have, and who looks at them."""
PROVIDERS = ("aliyun", "aws", "azure", "external", "gcp", "kuberay", "local", "spark", "vsphere")
MAX_FILE_BYTES = 100_000
"""PyYAML reads as many in a second; the longest file of the repository has 6,000."""
UNFILLED = re.compile(r"CHANGE|\bexample\.(org|com)\b")
OF_CHECKOUT_OR_ROOT = (".git", "isweep-root", "mlflow.db", "sweeps", "prepared")
DIST = re.compile(r"~/isweep-dist/([\w@.-]+\.\w+)")
SECRET_KEY = re.compile(r"secret|password|access_key|(^|_)token$", re.IGNORECASE)
SECRET_SET = re.compile(r"(?<![A-Z_])([A-Z_]*(?:TOKEN|SECRET|PASSWORD|ACCESS_KEY)[A-Z_]*)=[\"']?[^\s$~/\"']")
"""A variable that a command gives a secret by its value, and not by a file or another variable."""
MIN_IDLE_MINUTES = 5
"""Ray's own default. Between two trials of a node may lie the longest pause of a retry, a minute."""
MIN_DISK_GB = 50
"""An image with a driver takes 30, the locked CUDA packages 10 with what pip keeps; the rest is to spill."""
FEW_GB = "GB are too few for image, CUDA packages and objects that spill"
WHEEL = re.compile(r"pip install\b.*isweep-\S*\.whl")
CUDA_LOCK = "constraints-cuda.txt"
LOOK_AT_CARD = re.compile(r"torch\b.*\bcuda\b")
POLICY = Path("clusters/iam/head.json")
"""Of the head on AWS, in the checkout where `ray up` is typed."""
RAYS_OWN = ("SubnetIds",)
"""Fields of an AWS node that Ray takes out before it asks EC2."""
LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


class Problem(NamedTuple):
    """What is wrong in a launch file, where, and the way out."""

    where: str
    what: str
    way_out: str


def check_launch_file(path: Path) -> list[Problem]:
    """Return all that is found wrong with a launch file; nothing is started and no provider is asked."""
    config = _read(path)
    if isinstance(config, Problem):
        return [config]
    for key, what, looks in FOREIGN:
        if key in config:
            told = Problem(str(path), f"{what}, and no file for `ray up`", looks.replace("FILE", str(path)))
            return [told, *_unfilled(config)]
    wrong = [*_by_ray(config)]
    if wrong:
        return wrong  # the rest would stumble over the same mistakes
    of_provider = {"aws": _on_aws, "gcp": _on_gcp, "local": _own_machines}.get(config["provider"]["type"])
    checks = (_unfilled, _secrets, _account, _files, _commands, *filter(None, (of_provider,)))
    # Of two node types that say the same, once.
    return [*dict.fromkeys(problem for check in checks for problem in check(config))]


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


def _read(path: Path) -> dict[str, Any] | Problem:
    """Return the file's keys, or what stands in the way."""
    try:
        text = read_text(path, "launch file", MAX_FILE_BYTES)
        if text.startswith("#!"):
            return Problem(str(path), "a script, and no file for `ray up`", f"sbatch --test-only {path}")
        config = yaml.load(text, _Once)  # noqa: S506 (made of the safe one)
    except FileNotFoundError:
        return Problem(str(path), "no such file", "name a launch file, e.g. cluster.yaml")
    except ConfigError as error:
        return Problem(str(path), f"{error.rule}: {error.value}", "name a launch file, e.g. cluster.yaml")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return Problem(str(path), f"not YAML: {' '.join(str(error).split())}", "correct the line")
    if not isinstance(config, dict):
        return Problem(str(path), "no keys", "begin with a file of clusters/, or cluster.yaml")
    return config


def _by_ray(config: dict[str, Any]) -> Iterator[Problem]:
    """Hold the file to Ray's own schema, and to the few rules that `ray up` checks beside it."""
    import jsonschema

    schema = json.loads((resources.files("ray.autoscaler") / "ray-schema.json").read_text(encoding="utf-8"))
    legacy = {"min_workers"}  # of one's own machines alone, which the schema does not know
    told = {key: value for key, value in config.items() if key not in legacy}
    for error in jsonschema.Draft7Validator(schema).iter_errors(told):
        yield Problem(".".join(map(str, error.absolute_path)) or "the file", error.message[:300], COMPARE)
    provider, kinds = config.get("provider"), config.get("available_node_types")
    if not isinstance(provider, dict):
        return
    if str(provider.get("type")) not in PROVIDERS:
        yield Problem("provider.type", f"{provider.get('type')} is none that Ray knows", ", ".join(PROVIDERS))
    for there, here in (config.get("file_mounts") or {}).items():
        if not isinstance(here, str):
            yield Problem(f"file_mounts.{there}", f"{here!r} is no path", "name a file or folder here")
    if provider.get("type") in ("aws", "gcp") and config.get("head_node_type") not in (kinds or ()):
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


def _in_a_cloud(config: dict[str, Any], library: str, package: str) -> Iterator[Problem]:
    """Look at what all clouds have in common: workers that start and stay for a while, and a set-up."""
    if find_spec(library) is None:
        told = f"{config['provider']['type']} needs {package} on this machine"
        yield Problem("provider.type", told, f"pip install {package}")
    if not config.get("max_workers", 0) or not _workers_of(config):
        yield Problem("max_workers", "no worker may start", "say how many, e.g. 8, here and in a node type")
    idle = [("idle_timeout_minutes", config.get("idle_timeout_minutes", MIN_IDLE_MINUTES))]
    for name, kind in _workers_of(config).items():
        if kind.get("idle_timeout_s") is not None:
            idle.append((f"available_node_types.{name}.idle_timeout_s", kind["idle_timeout_s"] / 60))
    for place, minutes in idle:
        if minutes < MIN_IDLE_MINUTES:
            told = f"{minutes:g} minutes: nodes would go between two trials, and each new one installs anew"
            yield Problem(place, told, f"{MIN_IDLE_MINUTES} minutes or more, e.g. 10")
    if config["provider"].get("cache_stopped_nodes", True):
        told = "Ray would stop nodes and not end them: their disks stay, with what is on them, and cost"
        yield Problem("provider.cache_stopped_nodes", told, "say false")
    yield from _installs(config)
    head = [*(config.get("setup_commands") or ()), *(config.get("head_setup_commands") or ())]
    if not config.get("docker") and not any("pip install" in one and package in one for one in head):
        told = f"nothing installs {package}, by which the head starts workers"
        way_out = f"add: ~/isweep-venv/bin/pip install {package} --constraint ~/isweep-dist/constraints.txt"
        yield Problem("head_setup_commands", told, way_out)
    for kind in _workers_of(config).values():
        commands = _commands_of(config, kind)
        if any(CUDA_LOCK in one for one in commands) and not LOOK_AT_CARD.search(commands[-1]):
            told = "the set-up of a worker with a card does not end with a look at it, so it joins without"
            yield Problem("worker_setup_commands", told, "end with cluster.yaml's last command")


def _workers_of(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the node types of workers that may start, by name."""
    head, kinds = config["head_node_type"], config["available_node_types"]
    return {name: kind for name, kind in kinds.items() if name != head and kind.get("max_workers", 1) > 0}


def _commands_of(config: dict[str, Any], kind: dict[str, Any]) -> list[str]:
    """Return the set-up commands that Ray runs on a worker: those of its type stand for all others."""
    if "worker_setup_commands" in kind:
        return list(kind["worker_setup_commands"])
    return [*(config.get("setup_commands") or ()), *(config.get("worker_setup_commands") or ())]


def _installs(config: dict[str, Any]) -> Iterator[Problem]:
    """See that every node gets isweep: its wheel is what travels. An image of Docker may hold it."""
    if config.get("docker"):
        return
    if not any(map(WHEEL.search, config.get("setup_commands") or ())):
        way_out = "add: ~/isweep-venv/bin/pip install --no-deps --force-reinstall ~/isweep-dist/isweep-*.whl"
        yield Problem("setup_commands", "nothing installs the wheel of isweep", way_out)
        return
    for name, kind in _workers_of(config).items() if "available_node_types" in config else ():
        if not any(map(WHEEL.search, _commands_of(config, kind))):
            told = "Ray runs these instead of all other set-up commands, and they do not install isweep"
            way_out = "put them into worker_setup_commands of the file, which run after setup_commands"
            yield Problem(f"available_node_types.{name}.worker_setup_commands", told, way_out)


def _on_aws(config: dict[str, Any]) -> Iterator[Problem]:
    """Look at the fields of every node, as EC2 takes them, and at the rights of the head."""
    yield from _in_a_cloud(config, "boto3", "boto3")
    region, known = config["provider"].get("region"), find_spec("boto3") is not None
    if not region:
        yield Problem("provider.region", "no region is named", "name one, e.g. us-east-1")
    for name, kind in config["available_node_types"].items():
        place, made = f"available_node_types.{name}.node_config", kind["node_config"]
        wrong = [*_held_to_ec2(place, made)] if known else []
        yield from wrong or _node_on_aws(place, made, is_head=name == config["head_node_type"])
    yield from _policy(config)


def _held_to_ec2(place: str, made: dict[str, Any]) -> Iterator[Problem]:
    """Hold a node to what botocore knows of RunInstances; nothing is asked there."""
    service = importlib.import_module("botocore.session").get_session().get_service_model("ec2")
    shape = service.operation_model("RunInstances").input_shape
    fields = {"MinCount": 1, "MaxCount": 1} | {k: v for k, v in made.items() if k not in RAYS_OWN}
    report = importlib.import_module("botocore.validate").ParamValidator().validate(fields, shape)
    for line in report.generate_report().splitlines():
        yield Problem(place, line.split(", must be one of")[0], NEWER)
    machine, kinds = str(made.get("InstanceType", "")), shape.members["InstanceType"].enum
    if machine and machine not in kinds and not UNFILLED.search(machine):
        near = ", ".join(get_close_matches(machine, kinds))
        yield Problem(f"{place}.InstanceType", f"EC2 knows no {machine}", f"{near}? Or: pip install -U boto3")


def _node_on_aws(place: str, made: dict[str, Any], *, is_head: bool) -> Iterator[Problem]:
    if is_head and made.get("InstanceMarketOptions", {}).get("MarketType") == "spot":
        told = "a spot instance as head: taken away, it takes the sweep and the root on its disk along"
        yield Problem(f"{place}.InstanceMarketOptions", told, "only workers may be spot instances")
    for key, told, way_out in (
        ("InstanceType", "no instance type is named", "name one, e.g. g6.4xlarge"),
        ("ImageId", "no image is named: Ray would take one of its own", "name one with Python 3.11 to 3.13"),
        (
            "IamInstanceProfile",
            "without one Ray gives the head full rights",
            "see clusters/iam/head.json",
        ),
    ):
        if not made.get(key):
            yield Problem(f"{place}.{key}", told, way_out)
    if not made.get("SecurityGroupIds") and not made.get("NetworkInterfaces"):
        told = "without a security group by id Ray makes one that opens SSH to the world"
        yield Problem(f"{place}.SecurityGroupIds", told, "name your own group: [sg-...]")
    place = f"{place}.BlockDeviceMappings"
    disks = [one["Ebs"] for one in made.get("BlockDeviceMappings") or () if "Ebs" in one]
    if not disks:
        told = "no disk is named: the image's own may have 8 GB and is not encrypted"
        yield Problem(place, told, "see cluster.yaml: 100 GB, Encrypted: true")
        return
    largest = max(disk.get("VolumeSize", 0) for disk in disks)
    if largest < MIN_DISK_GB:
        yield Problem(place, f"{largest} {FEW_GB}", f"{MIN_DISK_GB} or more, e.g. VolumeSize: 100")
    if not all(disk.get("Encrypted") for disk in disks):
        yield Problem(place, "a disk is not encrypted", "add Encrypted: true")
    if not all(disk.get("DeleteOnTermination", True) for disk in disks):
        yield Problem(place, "a disk stays when its node ends", "say DeleteOnTermination: true")


def _policy(config: dict[str, Any]) -> Iterator[Problem]:
    """Compare with the head's policy where it lies in the checkout: it names the cluster and the region."""
    if not POLICY.is_file():
        return
    try:
        statements = json.loads(POLICY.read_text(encoding="utf-8"))["Statement"]
        limits = [one["Condition"]["StringEquals"] for one in statements if "Condition" in one]
    except (ValueError, KeyError, TypeError) as error:
        yield Problem(str(POLICY), f"not a policy: {type(error).__name__} {error}", COMPARE)
        return
    for where, key, ours in (
        ("cluster_name", "aws:ResourceTag/ray-cluster-name", config["cluster_name"]),
        ("provider.region", "aws:RequestedRegion", config["provider"].get("region")),
    ):
        for named in sorted({one[key] for one in limits if key in one} - {ours}):
            if not UNFILLED.search(named):
                told = f"{ours}, and {POLICY} lets the head start and end nodes of {named} only"
                yield Problem(where, told, "say the same in both, and in the policy of your account")


def _on_gcp(config: dict[str, Any]) -> Iterator[Problem]:
    """Look at project and place, and at the disk, the net and the scheduling of every machine."""
    yield from _in_a_cloud(config, "googleapiclient", "google-api-python-client")
    provider = config["provider"]
    for key in ("project_id", "region", "availability_zone"):
        if not provider.get(key):
            yield Problem(f"provider.{key}", "not named", "see clusters/gcp.yaml")
    if not LABEL.fullmatch(config["cluster_name"]):
        told = f"{config['cluster_name']!r} cannot be a label of Google Cloud"
        yield Problem("cluster_name", told, "lower-case letters, digits and -, a letter first")
    for name, kind in config["available_node_types"].items():
        place, made = f"available_node_types.{name}.node_config", kind["node_config"]
        is_head = name == config["head_node_type"]
        yield from _disk_on_gcp(f"{place}.disks", made)
        yield from _scheduling(f"{place}.scheduling", made.get("scheduling") or {}, is_head=is_head)
        reached = not is_head or provider.get("use_internal_ips")
        yield from _network(f"{place}.networkInterfaces", made.get("networkInterfaces") or [], bool(reached))


def _network(place: str, named: list[dict[str, Any]], reached: bool) -> Iterator[Problem]:
    """Look at a machine's net: whose firewall rules hold there, and whether `ray up` gets through."""
    if not named:
        told = "without one Ray takes the first network of the project, with its firewall rules"
        yield Problem(place, told, "name your own subnet")
        return
    if not all(one.get("subnetwork") or one.get("network") for one in named):
        told = "without a subnet Google takes the network called default, whose rules open SSH to the world"
        yield Problem(place, told, "name your own: subnetwork")
    if not reached and not named[0].get("accessConfigs"):
        told = "no address outside: `ray up` would wait for one a quarter of an hour, and give up"
        way_out = "add accessConfigs as in clusters/gcp.yaml, or provider.use_internal_ips: true"
        yield Problem(place, told, way_out)


def _disk_on_gcp(place: str, made: dict[str, Any]) -> Iterator[Problem]:
    boots = [disk for disk in made.get("disks") or () if isinstance(disk, dict) and disk.get("boot")]
    if not boots:
        yield Problem(place, "no disk to boot from", "see clusters/gcp.yaml")
        return
    made_of = boots[0].get("initializeParams") or {}
    size = int(made_of.get("diskSizeGb", 0))
    if size < MIN_DISK_GB:
        yield Problem(place, f"{size} {FEW_GB}", f"{MIN_DISK_GB} or more, e.g. diskSizeGb: 100")
    if not made_of.get("sourceImage"):
        yield Problem(place, "no image is named", "sourceImage: one with a driver and Python 3.11 to 3.13")
    if not boots[0].get("autoDelete"):
        yield Problem(place, "the disk stays when its node ends", "say autoDelete: true")


def _scheduling(place: str, said: Any, *, is_head: bool) -> Iterator[Problem]:
    """Look at who may take a machine away, and what is left of it then."""
    rules = said if isinstance(said, dict) else dict(ChainMap(*said))
    if rules.get("provisioningModel") != "SPOT" and not rules.get("preemptible"):
        return
    if is_head:
        told = "a spot machine as head: taken away, it takes the sweep and the root on its disk along"
        yield Problem(place, told, "take it out: only workers may be spot machines")
    if rules.get("instanceTerminationAction") != "DELETE":
        told = "a spot machine that is taken away would be stopped, and its disk stay and cost"
        yield Problem(place, told, "add instanceTerminationAction: DELETE")


def _own_machines(config: dict[str, Any]) -> Iterator[Problem]:
    """Look at the names of the machines, at their numbers and at the version of the autoscaler."""
    provider = config["provider"]
    if "coordinator_address" in provider:
        told = "a coordinator hands out machines of its own, and isweep's files know none"
        yield Problem("provider.coordinator_address", told, "name head_ip and worker_ips instead")
        return
    yield from _installs(config)
    head, *workers = map(str, (provider.get("head_ip", ""), *(provider.get("worker_ips") or ())))
    for name in ("min_workers", "max_workers"):
        if config.get(name) != len(workers):
            told = f"{config.get(name)}, and worker_ips names {len(workers)}"
            yield Problem(name, told, f"say {len(workers)}: others would be left out without a word")
    if not config.get("auth", {}).get("ssh_private_key"):
        told = "the head needs a key to start the workers"
        yield Problem("auth.ssh_private_key", told, "name one made for this cluster")
    if len({head, *workers}) <= len(workers):
        yield Problem("provider", "a machine is named twice", "name each once, the head apart")
    starts = [one for one in config.get("head_start_ray_commands", ()) if "ray start" in one]
    if starts and not any("RAY_enable_autoscaler_v2=0" in one for one in starts):
        told = "version 2 of Ray's autoscaler, its default, leaves the last of one's own machines out"
        yield Problem("head_start_ray_commands", told, "put RAY_enable_autoscaler_v2=0 before `ray start`")
    for name in (head, *workers):
        if not UNFILLED.search(name) and not _known(name):
            told = f"{name}: this machine does not know the name"
            yield Problem("provider", told, "correct it, or give the address")


def _known(host: str) -> bool:
    try:
        return bool(getaddrinfo(host, 22))
    except OSError:
        return False
