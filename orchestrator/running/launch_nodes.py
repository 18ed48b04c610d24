"""What nodes of any cloud need: workers that may start and that stay for a while, and a set-up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any, NamedTuple

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
