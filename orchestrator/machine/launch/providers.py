"""Checks of a launch file that depend on the provider: AWS, Google Cloud, or your own machines."""

from __future__ import annotations

import importlib
import json
from collections import ChainMap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from socket import getaddrinfo
from typing import Any

from orchestrator.machine.launch.mistakes import UNFILLED, Config, Mistake

HEAD_POLICY = Path("clusters/iam/head.json")
"""File with the rights of the head on AWS. It is in the checkout in which the user types ``ray
up``."""
SSH_PORT = 22


@dataclass(frozen=True)
class NodeType:
    """A node type of a cloud.

    Attributes:
        key_path: key of the node type's configuration in the launch file, with dots between
            nested keys.
        request: configuration that Ray sends to the provider to start a node of this type.
        is_head: True if the head has this type.
    """

    key_path: str
    request: dict[str, Any]
    is_head: bool


def _node_types(config: Config) -> Iterator[NodeType]:
    """Yield the node types of a cluster."""
    for name, node_type in config["available_node_types"].items():
        yield NodeType(
            key_path=f"available_node_types.{name}.node_config",
            request=node_type["node_config"],
            is_head=name == config["head_node_type"],
        )


def _cloud_mistakes(config: Config) -> Iterator[Mistake]:
    """Yield the mistakes that are possible in every cloud."""
    head = config["head_node_type"]
    may_start = False
    for name, node_type in config["available_node_types"].items():
        if name != head and node_type.get("max_workers", 1):
            may_start = True
    if not (config.get("max_workers", 0) and may_start):
        yield Mistake(
            "max_workers",
            "no worker can start",
            "Set `max_workers: 8`, for example, both in the launch file itself and in a node "
            "type of workers",
        )
    if config["provider"].get("cache_stopped_nodes", True):
        yield Mistake(
            "provider.cache_stopped_nodes",
            "Ray would stop nodes without deleting them, so the disks would stay and cost money",
            "Set `cache_stopped_nodes: false`",
        )


def aws_mistakes(config: Config) -> Iterator[Mistake]:
    """Yield the mistakes of a cluster on AWS."""
    yield from _cloud_mistakes(config)
    if find_spec("boto3") is None:
        yield Mistake(
            "provider.type",
            "`aws` needs the package boto3, which is not installed on this machine",
            "Run `pip install boto3`",
        )
    else:
        for node_type in _node_types(config):
            is_invalid = False
            for mistake in _request_mistakes(node_type):
                is_invalid = True
                yield mistake
            if not is_invalid:
                yield from _aws_node_mistakes(node_type)
    yield from _policy_mistakes(config)


def _request_mistakes(node_type: NodeType) -> Iterator[Mistake]:
    """Yield a mistake for each field that EC2 would reject, by botocore's description of EC2."""
    shape = _instance_request_shape()
    validator = importlib.import_module("botocore.validate").ParamValidator()
    fields = {"MinCount": 1, "MaxCount": 1} | node_type.request
    fields.pop("SubnetIds", None)  # Ray removes this field from its request to EC2
    report = validator.validate(fields, shape).generate_report()
    for line in report.splitlines():
        problem = line.split(", must be one of")[0]
        hint = "Correct the field. If EC2 accepts the field, run `pip install -U boto3`"
        yield Mistake(node_type.key_path, problem, hint)


@cache
def _instance_request_shape() -> Any:
    """Return botocore's description of a request to start instances. Reading it takes half a
    second.
    """
    session = importlib.import_module("botocore.session").get_session()
    return session.get_service_model("ec2").operation_model("RunInstances").input_shape


def _aws_node_mistakes(node_type: NodeType) -> Iterator[Mistake]:
    """Yield the mistakes of a node type on AWS."""
    request = node_type.request
    key_path = node_type.key_path
    market = request.get("InstanceMarketOptions", {}).get("MarketType")
    if node_type.is_head and market == "spot":
        yield Mistake(
            f"{key_path}.InstanceMarketOptions",
            "the head is a spot instance. If AWS terminates it, the sweep ends and the root "
            "on its disk is lost",
            "Use spot instances for workers only",
        )
    if not request.get("ImageId"):
        yield Mistake(
            f"{key_path}.ImageId",
            "the image is missing, so Ray chooses one",
            "Write the id of an image with Python 3.11 to 3.13",
        )
    if not request.get("IamInstanceProfile"):
        yield Mistake(
            f"{key_path}.IamInstanceProfile",
            "the profile is missing, so Ray gives the head full rights",
            "Write the name of a profile with the rights of clusters/iam/head.json",
        )
    if not (request.get("SecurityGroupIds") or request.get("NetworkInterfaces")):
        yield Mistake(
            f"{key_path}.SecurityGroupIds",
            "the security group is missing, so Ray makes one that opens SSH to the internet",
            "Write the id of your security group: [sg-...]",
        )
    devices = request.get("BlockDeviceMappings") or ()
    disks = [device["Ebs"] for device in devices if "Ebs" in device]
    if not disks:
        yield Mistake(
            f"{key_path}.BlockDeviceMappings",
            "no disk is configured, so the disk may not be encrypted",
            "Configure a disk with `Encrypted: true`",
        )
    elif not all(disk.get("Encrypted") for disk in disks):
        yield Mistake(
            f"{key_path}.BlockDeviceMappings", "a disk is not encrypted", "Set `Encrypted: true`"
        )
    if not all(disk.get("DeleteOnTermination", True) for disk in disks):
        yield Mistake(
            f"{key_path}.BlockDeviceMappings",
            "after its node is terminated, a disk stays and costs money",
            "Set `DeleteOnTermination: true`",
        )


def _policy_mistakes(config: Config) -> Iterator[Mistake]:
    """Yield a mistake if the cluster's name or its region differs from the head's policy in
    the checkout.
    """
    conditions: list[dict[str, str]] = []
    with suppress(OSError, ValueError, KeyError, TypeError):  # AWS rejects a broken policy itself
        statements = json.loads(HEAD_POLICY.read_text(encoding="utf-8"))["Statement"]
        for statement in statements:
            if "Condition" in statement:
                conditions.append(statement["Condition"]["StringEquals"])
    for key_path, key, value in (
        ("cluster_name", "aws:ResourceTag/ray-cluster-name", config["cluster_name"]),
        ("provider.region", "aws:RequestedRegion", config["provider"].get("region")),
    ):
        allowed = {condition[key] for condition in conditions if key in condition}
        for name in sorted(allowed - {value}):
            if not UNFILLED.search(name):
                yield Mistake(
                    key_path,
                    f"the value is {value}, but {HEAD_POLICY} allows the head to start and "
                    f"terminate only nodes of {name}",
                    "Write the same name in both files, and in the policy of your AWS account",
                )


def gcp_mistakes(config: Config) -> Iterator[Mistake]:
    """Yield the mistakes of a cluster on Google Cloud."""
    yield from _cloud_mistakes(config)
    for node_type in _node_types(config):
        yield from _gcp_node_mistakes(node_type)


def _gcp_node_mistakes(node_type: NodeType) -> Iterator[Mistake]:
    """Yield the mistakes of a node type on Google Cloud."""
    request = node_type.request
    key_path = node_type.key_path
    disks = [disk for disk in request.get("disks") or () if isinstance(disk, dict)]
    boot_disks = [disk for disk in disks if disk.get("boot")]
    if not boot_disks or not boot_disks[0].get("autoDelete"):
        yield Mistake(
            f"{key_path}.disks",
            "after its node is deleted, the disk stays and costs money",
            "Set `autoDelete: true`",
        )
    networks = request.get("networkInterfaces") or []
    is_named = [network.get("subnetwork") or network.get("network") for network in networks]
    if not networks or not all(is_named):
        yield Mistake(
            f"{key_path}.networkInterfaces",
            "the subnet is missing, so the nodes use the project's default network, which opens "
            "SSH to the internet",
            "Set subnetwork to your subnet",
        )
    scheduling = request.get("scheduling") or {}
    if not isinstance(scheduling, dict):
        scheduling = dict(ChainMap(*scheduling))
    is_spot = scheduling.get("provisioningModel") == "SPOT" or scheduling.get("preemptible")
    if not is_spot:
        return
    if node_type.is_head:
        yield Mistake(
            f"{key_path}.scheduling",
            "the head is a spot machine. If Google stops it, the sweep ends and the root on "
            "its disk is lost",
            "Use spot machines for workers only",
        )
    if scheduling.get("instanceTerminationAction") != "DELETE":
        yield Mistake(
            f"{key_path}.scheduling",
            "Google stops spot machines without deleting them, so their disks stay and cost money",
            "Add `instanceTerminationAction: DELETE`",
        )


def local_mistakes(config: Config) -> Iterator[Mistake]:
    """Yield the mistakes of a cluster that consists of your own machines."""
    provider = config["provider"]
    head = str(provider.get("head_ip", ""))
    workers = [str(name) for name in provider.get("worker_ips") or ()]
    for name in ("min_workers", "max_workers"):
        if config.get(name) != len(workers):
            yield Mistake(
                name,
                f"the value is {config.get(name)}, but worker_ips lists {len(workers)} machines",
                f"Set `{name}: {len(workers)}`",
            )
    if len({head, *workers}) <= len(workers):
        yield Mistake(
            "provider",
            "a machine is listed twice",
            "List each machine once. List the head only in `head_ip`",
        )
    commands = config.get("head_start_ray_commands", ())
    starts = [command for command in commands if "ray start" in command]
    if starts and not any("RAY_enable_autoscaler_v2=0" in command for command in starts):
        yield Mistake(
            "head_start_ray_commands",
            "Ray uses version 2 of its autoscaler by default, which never starts the last "
            "machine of worker_ips",
            "Put RAY_enable_autoscaler_v2=0 before `ray start`",
        )
    for name in (head, *workers):
        if not name or UNFILLED.search(name):
            continue
        try:
            getaddrinfo(name, SSH_PORT)
        except OSError:
            yield Mistake(
                "provider",
                f"this machine cannot look up the address of {name}",
                "Correct the name, or write the machine's IP address",
            )
