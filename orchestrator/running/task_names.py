"""Names of trials in Ray's dashboard, for which Tune has no public interface."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from ray.tune.execution.tune_controller import TuneController

from orchestrator.running.queue import trial_id_of

MAX_NAMES = 1_000
"""Largest number of names. Ray 2.60 stores metrics for each name, about 18 kB in the driver.

This is the memory with Ray's older metrics exporter, which :mod:`orchestrator.machine.cluster`
and the launch files of this repository select. With the newer exporter and 400 names an idle
driver grew by 0.15 MB a second, against 0.009 MB with the older one. """


@contextlib.contextmanager
def trial_tasks_named(named: set[str], max_names: int = MAX_NAMES) -> Iterator[None]:
    """Give Ray's tasks the names of their trials during a block.

    This uses private attributes of Ray. If a version of Ray lacks them, the
    tasks have the names that Tune gives them.

    Args:
        named: ids of the trials whose tasks have a name. This function adds ids to the set.
            Pass the same set to later blocks.
        max_names: largest number of names. The tasks of further trials have Tune's name.
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
    """Replace the handle of a trial's actor during a block, so that its task has a name."""
    try:
        actors = controller._actor_manager._live_actors_to_ray_actors_resources
        actor = controller._trial_to_actor[trial]
        entry = actors[actor]
        handle, resources = entry
        with_name = SimpleNamespace(train=handle.train.options(name=name))
    except (AttributeError, KeyError, TypeError, ValueError):
        yield  # This version of Ray stores its actors in another way.
        return
    actors[actor] = (with_name, resources)
    try:
        yield
    finally:
        if actor in actors:
            actors[actor] = entry
