"""What a launch file needs on AWS: fields as EC2 takes them, rights of the head, disks and cards."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.running.launch_nodes import (
    CUDA_LOCK,
    MIN_DISK_GB,
    UNFILLED,
    Problem,
    asks_for_cuda,
    card_looked_at,
    commands_of,
    in_a_cloud,
    meant,
    workers_of,
)

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
