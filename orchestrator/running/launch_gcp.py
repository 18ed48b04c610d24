"""What a launch file needs on Google Cloud: place, machines, cards, disks, who may take a machine."""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterator
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
WITH_ARM = ("a4x", "c4a", "n4a", "t2a")
MODELS = ("STANDARD", "SPOT", "FLEX_START", "RESERVATION_BOUND")
"""Ways to have a machine, the default first."""
ON_STANDARD_DISKS = ("a2", "c2", "c2d", "e2", "m1", "m2", "n1", "n2", "n2d", "t2a", "t2d")
"""Families that take `pd-standard`, the type of a disk that names none."""
KINDS = ("standard", "highmem", "highcpu", "custom", "megamem", "ultramem", "hypermem")
MACHINE = re.compile(
    rf"({'|'.join((*FAMILIES, *WITH_ARM))})-(micro|small|medium|({'|'.join(KINDS)})(-\d+)+(-[a-z]+)*)"
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
        yield from _disks(place, made, str(zone))
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
    if family in WITH_ARM and CUDA_LOCK in str(commands_of(config, kind)):
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


def _disks(place: str, made: dict[str, Any], zone: str) -> Iterator[Problem]:
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
