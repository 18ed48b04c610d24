"""Names of trials in Ray's dashboard. Tune has no public interface to set them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from ray.tune.execution.tune_controller import TuneController

from orchestrator.running.queue import trial_id_of

MAX_NAMES = 1_000
"""Largest number of names. For each name, Ray 2.60 stores about 18 kB of metrics in the
driver.

This amount was measured with Ray's older metrics exporter. :mod:`orchestrator.machine.cluster`
and the launch files of this repository select the older exporter. With 400 names, an idle
driver grew by 0.009 MB per second with the older exporter, and by 0.15 MB per second with the
newer exporter."""


@contextlib.contextmanager
def trial_tasks_named(named: set[str], max_names: int = MAX_NAMES) -> Iterator[None]:
    """Name each Ray task after its trial, during a ``with`` block.

    This function uses private attributes of Ray. If a version of Ray lacks them, the tasks
    have Tune's default names.

    Args:
        named: ids of the trials whose tasks have been named. This function adds ids to the
            set. Pass the same set to later ``with`` blocks.
        max_names: largest number of names. The tasks of all further trials have Tune's default
            name.
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
    """Replace the handle of a trial's actor during a ``with`` block, so that the actor's task
    gets a name.
    """
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
