"""Names of trials in Ray's dashboard: Tune has no public way to name the tasks of its trials."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from ray.tune.execution.tune_controller import TuneController

from orchestrator.running.queue import trial_id_of

MAX_NAMES = 1_000
"""Names at most: for each name Ray 2.60 keeps series of metrics, about 18 kB of the driver.

That is with Ray's older exporter, for which :mod:`orchestrator.machine.cluster` and our launch
files ask. With the newer one and 400 names the driver grew by 0.15 MB a second at rest, against
0.009.
"""


@contextlib.contextmanager
def trial_tasks_named(named: set[str], max_names: int = MAX_NAMES) -> Iterator[None]:
    """Give the tasks of trials their trials' ids as names while the block lasts.

    Private: with a Ray that lacks what this uses, tasks keep Tune's name.

    Args:
        named: trials that have a name; it grows, and is kept from one block to the next.
        max_names: names at most; further trials get none.
    """
    schedule = getattr(TuneController, "_schedule_trial_task", None)
    if schedule is None:
        yield
        return

    def schedule_named(
        controller: Any, trial: Any, method_name: str, *arguments: Any, **options: Any
    ) -> Any:
        trial_id = trial_id_of(trial)
        is_named = method_name == "train" and (trial_id in named or len(named) < max_names)
        if not is_named:
            return schedule(controller, trial, method_name, *arguments, **options)
        named.add(trial_id)
        with _task_named(controller, trial, f"trial {trial_id}"):
            return schedule(controller, trial, method_name, *arguments, **options)

    TuneController._schedule_trial_task = schedule_named
    try:
        yield
    finally:
        TuneController._schedule_trial_task = schedule


@contextlib.contextmanager
def _task_named(controller: Any, trial: Any, name: str) -> Iterator[None]:
    """Let Tune find, while the block lasts, an actor whose ``train`` has a name."""
    try:
        actors = controller._actor_manager._live_actors_to_ray_actors_resources
        actor = controller._trial_to_actor[trial]
        entry = actors[actor]
        handle, resources = entry
        with_name = SimpleNamespace(train=handle.train.options(name=name))
    except (AttributeError, KeyError, TypeError, ValueError):
        yield  # kept elsewhere, or in another form
        return
    actors[actor] = (with_name, resources)
    try:
        yield
    finally:
        if actor in actors:
            actors[actor] = entry
