"""What a trial asks for beside what the cluster has, in words: Ray itself waits without one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import ray

from orchestrator.running.autoscaler import launch_report
from orchestrator.running.cluster import Resources
from search_spaces.errors import SetupError

PATIENCE_S = 60.0
"""How long no trial may start before it is said what is missing, and then until it is looked at again."""
ENDS_AFTER_S = 180.0
"""How long no trial may start on a private cluster: it never grows, and nobody else holds anything of it."""
MOST_KINDS = 4
"""Of nodes that are named."""


class StartWatch:
    """Says what is missing when cells wait for a place and none starts, and again when the reason changes.

    Args:
        resources: What a trial asks for.
        say: Is told.
        ends: Whether waiting has an end, as on a private cluster.
    """

    def __init__(self, resources: Resources, say: Callable[[str], None], *, ends: bool = False) -> None:
        self._resources, self._say, self._ends = resources, say, ends
        self._moved_at = self._looked_at = self._seen_at = time.monotonic()
        self._said = ""

    def look(self, trials: Iterable[Any], *, waiting: bool) -> None:
        """Look at Tune's trials; ``waiting`` tells whether any should run.

        Raises:
            SetupError: when nothing will ever start.
        """
        now = time.monotonic()
        if now - self._seen_at > PATIENCE_S / 2:  # it was this driver that stood still
            self._moved_at = self._looked_at = now
        self._seen_at = now
        if not waiting or any(trial.status == "RUNNING" for trial in trials):
            if self._said and waiting:
                self._say(f"The first trial started after {now - self._moved_at:.0f} s.")
            self._moved_at, self._said = now, ""
        elif now - max(self._moved_at, self._looked_at) > PATIENCE_S:
            self._looked_at = now
            reason = why_nothing_starts(self._resources)
            if reason != self._said:
                self._said = reason
                self._say(f"No trial could start for {now - self._moved_at:.0f} s: {reason}")
            if self._ends and now - self._moved_at > ENDS_AFTER_S:
                raise SetupError(
                    "Ray must be able to start a worker on this machine",
                    f"no trial could start for {now - self._moved_at:.0f} s: {reason}",
                    "run the same command again when the machine has less to do, with bash on PATH; "
                    "what is done is kept, and isweep doctor knows other causes",
                )


def why_nothing_starts(resources: Resources) -> str:
    """Say what each trial asks for, what the cluster lacks, and what its autoscaler does about it."""
    report = launch_report()
    if report is not None:
        doing = report.text()
    elif _held(resources):
        doing = "The sweep goes on as soon as it is free."
    else:
        less = "ask for less, or run with --device cpu" if resources.num_gpus else "or ask for less"
        doing = f"This cluster does not grow by itself: add nodes, {less}."
    return f"{what_is_missing(resources)} {doing}"


def what_is_missing(resources: Resources) -> str:
    """Say what each trial asks for, and how much of it the cluster has."""
    there, free = ray.cluster_resources(), ray.available_resources()
    asked = ", ".join(
        f"{amount:g} {name} (the cluster has {there.get(_ray_name(name), 0):g}, "
        f"{free.get(_ray_name(name), 0):g} free)"
        for name, amount in resources.as_ray().items()
    )
    there_in_all = all(amount <= there.get(_ray_name(name), 0) for name, amount in resources.as_ray().items())
    if there_in_all and not _fits(resources):
        return f"each asks for {asked}. No node has all that one asks for: they have {_by_node(resources)}."
    who = " What is not free is held by other work, or by processes that still start."
    return f"each asks for {asked}.{who if _held(resources) else ''}"


def bound_by_cpus(resources: Resources) -> str:
    """Say when trials ask for so many CPUs that cards stay empty, node by node; nothing where they do not."""
    if not resources.num_gpus:
        return ""
    rooms = [
        (int(node.get("GPU", 0) / resources.num_gpus), int(node.get("CPU", 0) / resources.num_cpus))
        for node in _nodes()
    ]
    by_gpu, at_once = sum(gpu for gpu, _ in rooms), sum(map(min, rooms))
    if at_once == by_gpu:
        return ""
    return (
        f"CPUs bound the trials: {at_once} at once by resources.num_cpus {resources.num_cpus:g}, "
        f"{by_gpu} by the cards; {by_gpu * resources.num_cpus:g} CPUs beside the cards would fill them"
    )


def _held(resources: Resources) -> bool:
    """Tell whether some node has all that is asked for, and not all of it is free everywhere."""
    there, free = ray.cluster_resources(), ray.available_resources()
    names = [_ray_name(name) for name in resources.as_ray()]
    return _fits(resources) and any(free.get(name, 0) < there.get(name, 0) for name in names)


def _fits(resources: Resources) -> bool:
    """Tell whether a node has all that is asked for: Ray puts a trial together from no two."""
    asked = [(_ray_name(name), amount) for name, amount in resources.as_ray().items()]
    return any(all(amount <= node.get(name, 0) for name, amount in asked) for node in _nodes())


def _by_node(resources: Resources) -> str:
    kinds = Counter(
        " and ".join(f"{node.get(_ray_name(name), 0):g} {name}" for name in resources.as_ray())
        for node in _nodes()
    )
    return ", ".join(f"{kind} ({number} nodes)" for kind, number in kinds.most_common(MOST_KINDS))


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _ray_name(name: str) -> str:
    return name if name == "memory" else name.upper()
