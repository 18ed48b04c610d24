"""What each provider needs of a launch file: EC2 by its description, Google Cloud, one's own machines."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import socket
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

UNFILLED = re.compile(r"CHANGE|\bexample\.(org|com)\b")
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
GCP_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
GCP_MACHINE = re.compile(r"[a-z][a-z0-9]*-[a-z0-9]+(-[a-z0-9]+)*")
GCP_WITH_GPU = re.compile(r"(a2|a3|a4|a4x|g2|g4)-")


class Problem(NamedTuple):
    """What is wrong in a launch file, where, and the way out."""

    where: str
    what: str
    way_out: str


def on_aws(config: dict[str, Any]) -> Iterator[Problem]:
    """Look at the fields of every node, as EC2 takes them, and at the rights of the head."""
    known = importlib.util.find_spec("boto3") is not None
    if not known:
        yield Problem("provider.type", "aws needs boto3 on this machine", "pip install boto3")
    yield from _region(config["provider"].get("region"), known)
    for kind, node in config["available_node_types"].items():
        place, made = f"available_node_types.{kind}.node_config", node["node_config"]
        fields = {key: value for key, value in made.items() if key not in RAYS_OWN}
        wrong = [*_as_ec2_takes_it(place, fields)] if known else []
        yield from wrong
        if not wrong:
            yield from _node_on_aws(place, made)
    yield from _policy(config)
    if not config.get("max_workers"):
        yield Problem("max_workers", "no worker may start", "say how many, e.g. 8")


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


def _region(region: Any, known: bool) -> Iterator[Problem]:
    if not region:
        yield Problem("provider.region", "no region is named", "name one, e.g. us-east-1")
    elif known:
        session = _botocore()
        parts = session.get_available_partitions()
        regions = [name for part in parts for name in session.get_available_regions("ec2", part)]
        if region not in regions:
            yield Problem("provider.region", f"EC2 has no region {region}", _meant(str(region), regions))


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
                yield Problem(f"{place}.{key}", "EC2 knows no such field", _meant(key, [*shape.members]))
    elif shape.type_name == "list":
        for index, inner in enumerate(value):
            yield from _held_to(shape.member, inner, f"{place}[{index}]")
    elif value not in choices and not UNFILLED.search(str(value)):
        yield Problem(place, f"EC2 knows no {value}", _meant(str(value), choices))


def _meant(word: str, known: list[str]) -> str:
    near = get_close_matches(word, known, n=3)
    return f"one of these is meant: {', '.join(near)}" if near else "correct it, or: pip install -U boto3"


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


def on_gcp(config: dict[str, Any]) -> Iterator[Problem]:
    """Look at project, place and machines."""
    provider = config["provider"]
    for key in ("project_id", "region", "availability_zone"):
        if not provider.get(key):
            yield Problem(f"provider.{key}", "not named", "see clusters/gcp.yaml")
    region, zone = provider.get("region"), provider.get("availability_zone")
    if region and zone and not str(zone).startswith(f"{region}-"):
        told = f"{zone} is no zone of {region}"
        yield Problem("provider.availability_zone", told, f"name one such as {region}-a")
    if not GCP_NAME.fullmatch(config["cluster_name"]):
        told = f"{config['cluster_name']!r} cannot be a label of Google Cloud"
        yield Problem("cluster_name", told, "lower-case letters, digits and -, a letter first")
    for kind, node in config["available_node_types"].items():
        yield from _node_on_gcp(f"available_node_types.{kind}", node)
    if not config.get("max_workers"):
        yield Problem("max_workers", "no worker may start", "say how many, e.g. 8")


def _node_on_gcp(place: str, node: dict[str, Any]) -> Iterator[Problem]:
    made = node["node_config"]
    machine = str(made.get("machineType", ""))
    if not GCP_MACHINE.fullmatch(machine):
        told = f"{machine or 'none'} has not the form of one"
        yield Problem(f"{place}.node_config.machineType", told, "name one, e.g. g2-standard-16")
    disks = made.get("disks") or []
    if not any(isinstance(disk, dict) and disk.get("boot") for disk in disks):
        yield Problem(f"{place}.node_config.disks", "no disk to boot from", "see clusters/gcp.yaml")
    if not made.get("networkInterfaces"):
        told = "without one Ray takes the first network of the project, with its firewall rules"
        yield Problem(f"{place}.node_config.networkInterfaces", told, "name your own subnet")
    has_gpu = GCP_WITH_GPU.match(machine) or made.get("guestAccelerators")
    if has_gpu and not node["resources"].get("GPU"):
        told = "does not name the GPU of this machine: no trial would ever start it"
        yield Problem(f"{place}.resources", told, "add GPU: 1, or as many as it has")


def own_machines(config: dict[str, Any]) -> Iterator[Problem]:
    """Look at the names of the machines, at their numbers and at the version of the autoscaler."""
    provider = config["provider"]
    if "coordinator_address" in provider:
        told = "a coordinator hands out machines of its own, and isweep's files know none"
        yield Problem("provider.coordinator_address", told, "name head_ip and worker_ips instead")
        return
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
