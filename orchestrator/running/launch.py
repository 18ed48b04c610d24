"""A launch file for ``ray up``, looked at before it costs anything: all its mistakes, with the way out."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import socket
import zipfile
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from orchestrator.planning.sweep_file import read_text
from orchestrator.results.records import provenance
from search_spaces.errors import ConfigError
from tasks.atomic import read_whole

# What nodes of any cloud need: workers that may start and that stay for a while, and a set-up.

UNFILLED = re.compile(r"CHANGE|\bexample\.(org|com)\b")
MIN_IDLE_MINUTES = 5
"""Ray's own default. Between two trials of a node may lie the longest pause of a retry, a minute."""
MIN_DISK_GB = 50
"""An image with a driver takes 30, the locked CUDA packages 10 with what pip keeps; the rest is to spill."""
CUDA_LOCK = "constraints-cuda.txt"
WHEEL = re.compile(r"pip install\b.*isweep-\S*\.whl")
LOOK_AT_CARD = re.compile(r"torch\b.*\bcuda\b")
WHEEL_WAY_OUT = "add: ~/isweep-venv/bin/pip install --no-deps --force-reinstall ~/isweep-dist/isweep-*.whl"


class Problem(NamedTuple):
    """What is wrong in a launch file, where, and the way out."""

    where: str
    what: str
    way_out: str


def in_a_cloud(config: dict[str, Any], library: str, package: str) -> Iterator[Problem]:
    """Look at what all clouds have in common.

    Args:
        config: The launch file.
        library: Of Python, that Ray starts nodes with.
        package: Which brings it.
    """
    if find_spec(library) is None:
        told = f"{config['provider']['type']} needs {package} on this machine"
        yield Problem("provider.type", told, f"pip install {package}")
    yield from _numbers(config)
    if config["provider"].get("cache_stopped_nodes", True):
        told = "Ray would stop nodes and not end them: their disks stay, with what is on them, and cost"
        yield Problem("provider.cache_stopped_nodes", told, "say false")
    yield from installs(config)
    head = [*(config.get("setup_commands") or ()), *(config.get("head_setup_commands") or ())]
    if not config.get("docker") and not any("pip install" in one and package in one for one in head):
        told = f"nothing installs {package}, by which the head starts workers"
        way_out = f"add: ~/isweep-venv/bin/pip install {package} --constraint ~/isweep-dist/constraints.txt"
        yield Problem("head_setup_commands", told, way_out)


def workers_of(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the node types of workers that may start, by name."""
    kinds = config["available_node_types"]
    return {name: kind for name, kind in kinds.items() if name != config["head_node_type"] and _most(kind)}


def _most(kind: dict[str, Any]) -> int:
    return int(kind.get("max_workers", 1))


def commands_of(config: dict[str, Any], kind: dict[str, Any]) -> list[str]:
    """Return the set-up commands that Ray runs on a worker: those of its type stand for all others."""
    if "worker_setup_commands" in kind:
        return list(kind["worker_setup_commands"])
    return [*(config.get("setup_commands") or ()), *(config.get("worker_setup_commands") or ())]


def _numbers(config: dict[str, Any]) -> Iterator[Problem]:
    most = config.get("max_workers", 0)
    if not most or not workers_of(config):
        yield Problem("max_workers", "no worker may start", "say how many, e.g. 8, here and in a node type")
    for name, kind in config["available_node_types"].items():
        least, own = kind.get("min_workers", 0), kind.get("max_workers", most)
        if least > own:
            told = f"{least}, and max_workers is {own}"
            yield Problem(f"available_node_types.{name}.min_workers", told, "let it be the smaller one")
    idle = [("idle_timeout_minutes", config.get("idle_timeout_minutes", MIN_IDLE_MINUTES))]
    for name, kind in workers_of(config).items():
        if kind.get("idle_timeout_s") is not None:
            idle.append((f"available_node_types.{name}.idle_timeout_s", kind["idle_timeout_s"] / 60))
    for place, minutes in idle:
        if minutes < MIN_IDLE_MINUTES:
            told = f"{minutes:g} minutes: nodes would go between two trials, and each new one installs anew"
            yield Problem(place, told, f"{MIN_IDLE_MINUTES} minutes or more, e.g. 10")


def installs(config: dict[str, Any]) -> Iterator[Problem]:
    """See that every node gets isweep: its wheel is what travels. An image of Docker may hold it."""
    if config.get("docker"):
        return
    if not any(map(WHEEL.search, config.get("setup_commands") or ())):
        yield Problem("setup_commands", "nothing installs the wheel of isweep", WHEEL_WAY_OUT)
        return
    for name, kind in workers_of(config).items() if "available_node_types" in config else ():
        if not any(map(WHEEL.search, commands_of(config, kind))):
            told = "Ray runs these instead of all other set-up commands, and they do not install isweep"
            way_out = "put them into worker_setup_commands of the file, which run after setup_commands"
            yield Problem(f"available_node_types.{name}.worker_setup_commands", told, way_out)


def card_looked_at(config: dict[str, Any], kind: dict[str, Any], machine: str) -> Iterator[Problem]:
    """See that a worker with a card ends its set-up with a look at it."""
    commands = commands_of(config, kind)
    if commands and not LOOK_AT_CARD.search(commands[-1]):
        told = f"{machine} does not end its set-up with a look at the card: with too old a driver it joins"
        yield Problem("worker_setup_commands", told, "end with cluster.yaml's, which makes a tensor there")


def asks_for_cuda(config: dict[str, Any], kind: dict[str, Any]) -> bool:
    """Tell whether a worker's set-up installs the packages of a GPU node, or looks at its card."""
    return any(CUDA_LOCK in one or LOOK_AT_CARD.search(one) for one in commands_of(config, kind))


def meant(word: str, known: list[str], otherwise: str) -> str:
    """Return the known words that are near, as a way out."""
    near = get_close_matches(word, known, n=3)
    return f"one of these is meant: {', '.join(near)}" if near else otherwise


# What a launch file needs on AWS: fields as EC2 takes them, rights of the head, disks and cards.

AMI = re.compile(r"ami-([0-9a-f]{8}|[0-9a-f]{17})")
GROUP = re.compile(r"sg-([0-9a-f]{8}|[0-9a-f]{17})")
POLICY = Path("clusters/iam/head.json")
"""Of the head on AWS, in the checkout where `ray up` is typed."""
RAYS_OWN = ("SubnetIds",)
"""Fields of an AWS node that Ray takes out before it asks EC2."""
EC2_TYPES: dict[str, type[Any]] = {
    "structure": dict,
    "list": list,
    "string": str,
    "integer": int,
    "boolean": bool,
}
NEWER = "correct it, or: pip install -U boto3"
WITH_CARD = re.compile(r"(g4dn|g5|g6|g6e|g6f|gr6|gr6f|g7|g7e|p4d|p4de|p5|p5e|p5en|p6-b200|p6-b300)\.")
"""Families with an NVIDIA card that CUDA 13 computes on: those of g3, p2 and p3 are too old."""
WITH_ARM = re.compile(r"a1\.|[a-z]+\d+[a-z-]*g")
"""Behind the generation of a family stands what is special, g for Amazon's processors: g5g and not g5."""


def on_aws(config: dict[str, Any]) -> Iterator[Problem]:
    """Look at the fields of every node, as EC2 takes them, and at the rights of the head."""
    known = importlib.util.find_spec("boto3") is not None
    yield from in_a_cloud(config, "boto3", "boto3")
    yield from _place(config["provider"], known)
    for kind, node in config["available_node_types"].items():
        place, made = f"available_node_types.{kind}.node_config", node["node_config"]
        fields = {key: value for key, value in made.items() if key not in RAYS_OWN}
        wrong = [*_as_ec2_takes_it(place, fields)] if known else []
        yield from wrong
        if not wrong:
            yield from _node_on_aws(place, made)
            yield from _disks(place, made)
    yield from _machines(config)
    yield from _policy(config)


def _machines(config: dict[str, Any]) -> Iterator[Problem]:
    """Look at what the instance types can do: a head that stays, workers with a card, packages that fit."""
    kinds, workers = config["available_node_types"], workers_of(config)
    head = kinds[config["head_node_type"]]["node_config"]
    if head.get("InstanceMarketOptions", {}).get("MarketType") == "spot":
        place = f"available_node_types.{config['head_node_type']}.node_config.InstanceMarketOptions"
        told = "a spot instance as head: taken away, it takes the sweep and the root on its disk along"
        yield Problem(place, told, "take it out: only workers may be spot instances")
    for name, kind in kinds.items():
        place = f"available_node_types.{name}.node_config.InstanceType"
        machine = kind["node_config"].get("InstanceType", "")
        if WITH_ARM.match(machine) and CUDA_LOCK in str(commands_of(config, kind)):
            told = f"{machine} has an ARM processor, and {CUDA_LOCK} is for x86-64"
            yield Problem(place, told, "name another, e.g. g6.4xlarge; m6i.2xlarge as head")
        elif machine and name in workers and asks_for_cuda(config, kind):
            if WITH_CARD.match(machine):
                yield from card_looked_at(config, kind, machine)
            else:
                told = f"{machine} has no card that CUDA 13 computes on, and its set-up asks for one"
                yield Problem(place, told, "name another, e.g. g6.4xlarge")


def _disks(place: str, made: dict[str, Any]) -> Iterator[Problem]:
    """Look at size and encryption: disks hold images of patients for a while, at least as objects of Ray."""
    place = f"{place}.BlockDeviceMappings"
    disks = [one["Ebs"] for one in made.get("BlockDeviceMappings") or () if "Ebs" in one]
    if not disks:
        told = "no disk is named: the image's own may have 8 GB and is not encrypted"
        yield Problem(place, told, "see cluster.yaml: 100 GB, Encrypted: true")
        return
    if not all(one.get("DeviceName") for one in made["BlockDeviceMappings"]):
        yield Problem(place, "a disk without DeviceName, which EC2 refuses", "add DeviceName: /dev/sda1")
    largest = max(disk.get("VolumeSize", 0) for disk in disks)
    if largest < MIN_DISK_GB:
        told = f"{largest} GB are too few for image, CUDA packages and objects that spill"
        yield Problem(place, told, f"{MIN_DISK_GB} or more, e.g. VolumeSize: 100")
    if not all(disk.get("Encrypted") for disk in disks):
        yield Problem(place, "a disk is not encrypted", "add Encrypted: true")
    if not all(disk.get("DeleteOnTermination", True) for disk in disks):
        yield Problem(place, "a disk stays when its node ends", "say DeleteOnTermination: true")


def _node_on_aws(place: str, made: dict[str, Any]) -> Iterator[Problem]:
    for key, form in (("ImageId", AMI), ("SecurityGroupIds", GROUP)):
        named = made.get(key) or []
        for value in map(str, named if isinstance(named, list) else [named]):
            if not form.fullmatch(value) and not UNFILLED.search(value):
                yield Problem(f"{place}.{key}", f"{value} has not the form of one", f"{form.pattern}")
    if not made.get("InstanceType"):
        yield Problem(f"{place}.InstanceType", "no instance type is named", "name one, e.g. g6.4xlarge")
    if not made.get("ImageId"):
        told = "no image is named: Ray would take one of its own, whose Python may be too old"
        yield Problem(f"{place}.ImageId", told, "name one with Python 3.11 to 3.13")
    if not made.get("SecurityGroupIds") and not made.get("NetworkInterfaces"):
        told = "without a security group by id Ray makes one that opens SSH to the world"
        yield Problem(f"{place}.SecurityGroupIds", told, "name your own group: [sg-...]")
    if not made.get("IamInstanceProfile"):
        told = "without a profile Ray gives the head full rights on EC2 and S3"
        yield Problem(f"{place}.IamInstanceProfile", told, "make one of clusters/iam/head.json")


def _place(provider: dict[str, Any], known: bool) -> Iterator[Problem]:
    region, zones = provider.get("region"), provider.get("availability_zone")
    if not region:
        yield Problem("provider.region", "no region is named", "name one, e.g. us-east-1")
        return
    if known:
        session = _botocore()
        parts = session.get_available_partitions()
        regions = [name for part in parts for name in session.get_available_regions("ec2", part)]
        if region not in regions:
            told = f"EC2 has no region {region}"
            yield Problem("provider.region", told, meant(str(region), regions, NEWER))
    for zone in str(zones).split(",") if zones else ():
        if not zone.strip().startswith(str(region)):
            told = f"{zone.strip()} is no zone of {region}"
            yield Problem("provider.availability_zone", told, f"name one such as {region}a, or none")


@cache
def _botocore() -> Any:
    return importlib.import_module("botocore.session").get_session()


@cache
def _run_instances() -> Any:
    """Return the description of what starts a node, which takes half a second to read."""
    return _botocore().get_service_model("ec2").operation_model("RunInstances").input_shape


def _as_ec2_takes_it(place: str, fields: dict[str, Any]) -> Iterator[Problem]:
    """Hold a node to what botocore knows of RunInstances; nothing is asked there."""
    yield from _held_to(_run_instances(), fields, place)


def _held_to(shape: Any, value: Any, place: str) -> Iterator[Problem]:
    wanted: type[Any] = EC2_TYPES.get(shape.type_name, object)
    choices = getattr(shape, "enum", None) or [value]
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        told = f"{value!r} is no {shape.type_name}"
        yield Problem(place, told, "compare with cluster.yaml")
    elif shape.type_name == "structure":
        for key, inner in value.items():
            if key in shape.members:
                yield from _held_to(shape.members[key], inner, f"{place}.{key}")
            else:
                told = "EC2 knows no such field"
                yield Problem(f"{place}.{key}", told, meant(key, [*shape.members], NEWER))
    elif shape.type_name == "list":
        for index, inner in enumerate(value):
            yield from _held_to(shape.member, inner, f"{place}[{index}]")
    elif value not in choices and not UNFILLED.search(str(value)):
        yield Problem(place, f"EC2 knows no {value}", meant(str(value), choices, NEWER))


def _policy(config: dict[str, Any]) -> Iterator[Problem]:
    """Compare with the head's policy where it lies in the checkout: it names the cluster and the region."""
    if not POLICY.is_file():
        return
    try:
        statements = json.loads(POLICY.read_text(encoding="utf-8"))["Statement"]
        limits = [one["Condition"]["StringEquals"] for one in statements if "Condition" in one]
    except (ValueError, KeyError, TypeError) as error:
        told = f"not a policy: {type(error).__name__} {error}"
        yield Problem(str(POLICY), told, "compare with the file of that name in the repository")
        return
    for where, key, ours in (
        ("cluster_name", "aws:ResourceTag/ray-cluster-name", config["cluster_name"]),
        ("provider.region", "aws:RequestedRegion", config["provider"].get("region")),
    ):
        for named in sorted({one[key] for one in limits if key in one} - {ours}):
            if not UNFILLED.search(named):
                told = f"{ours}, and {POLICY} lets the head start and end nodes of {named} only"
                yield Problem(where, told, "say the same in both, and in the policy of your account")


# What a launch file needs on Google Cloud: place, machines, cards, disks, who may take a machine.

NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
CARDS = (
    {f"g2-standard-{cpus}": 1 for cpus in (4, 8, 12, 16, 32)}
    | {"g2-standard-24": 2, "g2-standard-48": 4, "g2-standard-96": 8}
    | {f"g4-standard-{48 * number}": number for number in (1, 2, 4, 8)}
    | {f"a2-{kind}-{number}g": number for kind in ("highgpu", "ultragpu") for number in (1, 2, 4, 8)}
    | {f"a3-highgpu-{number}g": number for number in (1, 2, 4, 8)}
    | {"a2-megagpu-16g": 16}
    | dict.fromkeys(("a3-edgegpu-8g", "a3-megagpu-8g", "a3-ultragpu-8g", "a4-highgpu-8g"), 8)
)
"""Machines that have cards by their type, with how many."""
FAMILIES = (
    *("e2", "n1", "n2", "n2d", "n4", "n4d", "c2", "c2d", "c3", "c3d", "c4", "c4d", "t2d"),
    *("h3", "h4d", "m1", "m2", "m3", "m4", "x4", "z3"),
)
GCP_WITH_ARM = ("a4x", "c4a", "n4a", "t2a")
MODELS = ("STANDARD", "SPOT", "FLEX_START", "RESERVATION_BOUND")
"""Ways to have a machine, the default first."""
ON_STANDARD_DISKS = ("a2", "c2", "c2d", "e2", "m1", "m2", "n1", "n2", "n2d", "t2a", "t2d")
"""Families that take `pd-standard`, the type of a disk that names none."""
KINDS = ("standard", "highmem", "highcpu", "custom", "megamem", "ultramem", "hypermem")
MACHINE = re.compile(
    rf"({'|'.join((*FAMILIES, *GCP_WITH_ARM))})-(micro|small|medium|({'|'.join(KINDS)})(-\d+)+(-[a-z]+)*)"
)


def on_gcp(config: dict[str, Any]) -> Iterator[Problem]:
    """Look at project, place and machines."""
    yield from in_a_cloud(config, "googleapiclient", "google-api-python-client")
    provider = config["provider"]
    for key in ("project_id", "region", "availability_zone"):
        if not provider.get(key):
            yield Problem(f"provider.{key}", "not named", "see clusters/gcp.yaml")
    region, zone = provider.get("region"), provider.get("availability_zone")
    if region and zone and not str(zone).startswith(f"{region}-"):
        told = f"{zone} is no zone of {region}"
        yield Problem("provider.availability_zone", told, f"name one such as {region}-a")
    if not NAME.fullmatch(config["cluster_name"]):
        told = f"{config['cluster_name']!r} cannot be a label of Google Cloud"
        yield Problem("cluster_name", told, "lower-case letters, digits and -, a letter first")
    for name, kind in config["available_node_types"].items():
        place, made = f"available_node_types.{name}.node_config", kind["node_config"]
        yield from _machine(config, name, kind)
        yield from _gcp_disks(place, made, str(zone))
        yield from _scheduling(place, made, is_head=name == config["head_node_type"])
        reached = name != config["head_node_type"] or provider.get("use_internal_ips")
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
        yield Problem(
            place, told, "add accessConfigs as in clusters/gcp.yaml, or provider.use_internal_ips: true"
        )


def _cards(made: dict[str, Any]) -> int:
    added = sum(int(one.get("acceleratorCount", 0)) for one in made.get("guestAccelerators") or ())
    return CARDS.get(made.get("machineType", ""), 0) or added


def _machine(config: dict[str, Any], name: str, kind: dict[str, Any]) -> Iterator[Problem]:
    made, place = kind["node_config"], f"available_node_types.{name}.node_config.machineType"
    machine, cards = str(made.get("machineType", "")), _cards(made)
    family = machine.partition("-")[0]
    if machine not in CARDS and not MACHINE.fullmatch(machine):
        tail = machine.split("-", 2)[-1]
        others = [f"{one}-{kind}-{tail}" for one in FAMILIES for kind in KINDS]
        known = others if family in FAMILIES else [*CARDS]
        told = f"{machine or 'none'} is none that isweep knows"
        yield Problem(place, told, meant(machine, known, "name one, e.g. g2-standard-16"))
        return
    if family in GCP_WITH_ARM and CUDA_LOCK in str(commands_of(config, kind)):
        told = f"{machine} has an ARM processor, and {CUDA_LOCK} is for x86-64"
        yield Problem(place, told, "name another, e.g. g2-standard-16; n2-standard-8 as head")
    elif name in workers_of(config) and asks_for_cuda(config, kind):
        if cards:
            yield from card_looked_at(config, kind, machine)
        else:
            told = f"{machine} has no card, and its set-up asks for one"
            yield Problem(place, told, "name another, e.g. g2-standard-16")
    offered = kind["resources"].get("GPU", 0)
    if offered != cards:
        told = f"GPU: {offered}, and {machine} has {cards}: trials go by what stands here"
        yield Problem(f"available_node_types.{name}.resources", told, f"say GPU: {cards}")


def _gcp_disks(place: str, made: dict[str, Any], zone: str) -> Iterator[Problem]:
    place = f"{place}.disks"
    boots = [disk for disk in made.get("disks") or () if isinstance(disk, dict) and disk.get("boot")]
    if not boots:
        yield Problem(place, "no disk to boot from", "see clusters/gcp.yaml")
        return
    made_of = boots[0].get("initializeParams") or {}
    size, kind = int(made_of.get("diskSizeGb", 0)), str(made_of.get("diskType", "pd-standard"))
    if size < MIN_DISK_GB:
        told = f"{size} GB are too few for image, CUDA packages and objects that spill"
        yield Problem(place, told, f"{MIN_DISK_GB} or more, e.g. diskSizeGb: 100")
    if not made_of.get("sourceImage"):
        yield Problem(place, "no image is named", "sourceImage: one with a driver and Python 3.11 to 3.13")
    if not boots[0].get("autoDelete"):
        yield Problem(place, "the disk stays when its node ends", "say autoDelete: true")
    family = str(made.get("machineType", "")).partition("-")[0]
    if kind.endswith("pd-standard") and family not in ON_STANDARD_DISKS:
        told = f"pd-standard, the default of diskType, is no disk of {family} machines"
        yield Problem(place, told, f"name another: diskType: zones/{zone}/diskTypes/pd-balanced")
    named = re.search(r"zones/([^/]+)/", kind)
    if named and named.group(1) != zone and not UNFILLED.search(kind):
        told = f"diskType is of {named.group(1)}, the nodes are in {zone}"
        yield Problem(place, told, "say the same in both")


def _scheduling(place: str, made: dict[str, Any], *, is_head: bool) -> Iterator[Problem]:
    """Look at who may take a machine away, and what is left of it then."""
    place, said = f"{place}.scheduling", made.get("scheduling") or {}
    rules = said if isinstance(said, dict) else dict(ChainMap(*said))
    model = rules.get("provisioningModel", MODELS[0])
    if model not in MODELS:
        yield Problem(place, f"provisioningModel {model}", f"say one of {', '.join(MODELS)}")
    spot = model == "SPOT" or rules.get("preemptible")
    if spot and is_head:
        told = "a spot machine as head: taken away, it takes the sweep and the root on its disk along"
        yield Problem(place, told, "take it out: only workers may be spot machines")
    if spot and rules.get("instanceTerminationAction") != "DELETE":
        told = "a spot machine that is taken away would be stopped, and its disk stay and cost"
        yield Problem(place, told, "add instanceTerminationAction: DELETE")
    if _cards(made) and rules.get("onHostMaintenance") != "TERMINATE":
        told = "a machine with a card cannot move to another host, and does not start where it should"
        yield Problem(place, told, "add onHostMaintenance: TERMINATE")


# What a launch file needs for one's own machines: names, numbers, the version of the autoscaler.


def own_machines(config: dict[str, Any]) -> Iterator[Problem]:
    """Look at the names of the machines, at their numbers and at the version of the autoscaler."""
    provider = config["provider"]
    if "coordinator_address" in provider:
        told = "a coordinator hands out machines of its own, and isweep's files know none"
        yield Problem("provider.coordinator_address", told, "name head_ip and worker_ips instead")
        return
    yield from installs(config)
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
        return bool(socket.getaddrinfo(host, 22))
    except OSError:
        return False


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
