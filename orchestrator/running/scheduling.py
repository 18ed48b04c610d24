"""What a trial asks for beside what the cluster has, in words: Ray itself waits without one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import ray

from orchestrator.running.cluster import Resources

PATIENCE_S = 30.0
"""How long no trial may start before it is said what is missing."""


class StartWatch:
    """Says once what is missing when cells wait for a place and none starts."""

    def __init__(self, resources: Resources, say: Callable[[str], None]) -> None:
        self._resources, self._say = resources, say
        self._moved_at = time.monotonic()

    def look(self, trials: Iterable[Any], *, waiting: bool) -> None:
        """Look at Tune's trials; ``waiting`` tells whether any should run."""
        if not waiting or any(trial.status == "RUNNING" for trial in trials):
            self._moved_at = time.monotonic()
        elif time.monotonic() - self._moved_at > PATIENCE_S:
            self._moved_at = math.inf
            self._say(what_is_missing(self._resources, PATIENCE_S))


def what_is_missing(resources: Resources, seconds: float) -> str:
    """Say what each trial asks for and the cluster lacks, when none could start for ``seconds``."""
    there, free = ray.cluster_resources(), ray.available_resources()
    asked = ", ".join(
        f"{amount:g} {name} (the cluster has {there.get(_ray_name(name), 0):g}, "
        f"{free.get(_ray_name(name), 0):g} free)"
        for name, amount in resources.as_ray().items()
    )
    return f"No trial could start for {seconds:g} s: each asks for {asked}. Waiting for nodes."


def _ray_name(name: str) -> str:
    return name if name == "memory" else name.upper()
