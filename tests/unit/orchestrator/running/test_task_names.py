"""Test the names of trials on the dashboard of Ray, which use private attributes of Tune."""

from types import SimpleNamespace

import pytest
from ray.tune.execution.tune_controller import TuneController

from orchestrator.running.queue import TRIAL_ID
from orchestrator.running.task_names import trial_tasks_named

TRIAL = SimpleNamespace(config={TRIAL_ID: "mlp-1"})


class Handle:
    """A simulated actor handle whose ``train`` has the name of its task."""

    name = ""
    train = property(lambda self: self)

    def options(self, name):
        named = Handle()
        named.name = name
        return named


class ById(dict):
    def __getitem__(self, trial):
        return super().__getitem__(id(trial))


def controller_with(entry):
    manager = SimpleNamespace(_live_actors_to_ray_actors_resources={"actor": entry})
    actor_by_trial = ById({id(TRIAL): "actor"})
    return SimpleNamespace(_actor_manager=manager, _trial_to_actor=actor_by_trial)


@pytest.fixture
def scheduled(monkeypatch):
    """Return a list that receives the names of the tasks that Tune schedules."""
    names = []

    def schedule(controller, trial, method_name):
        actors = controller._actor_manager._live_actors_to_ray_actors_resources
        handle = actors["actor"]
        handle = handle[0] if isinstance(handle, tuple) else handle
        names.append(handle.train.name)

    monkeypatch.setattr(TuneController, "_schedule_trial_task", schedule)
    return names


def test_a_training_task_has_the_name_of_its_trial_and_the_actor_is_restored(scheduled):
    handle = Handle()
    tune = controller_with((handle, "resources"))
    with trial_tasks_named(set()):
        TuneController._schedule_trial_task(tune, TRIAL, "train")
        TuneController._schedule_trial_task(tune, TRIAL, "save")
    assert scheduled == ["trial mlp-1", ""]
    actors = tune._actor_manager._live_actors_to_ray_actors_resources
    assert actors["actor"] == (handle, "resources")


@pytest.mark.parametrize("entry", [(Handle(), "resources", "more"), Handle()])
def test_tasks_keep_their_names_if_tune_stores_its_actors_in_another_form(scheduled, entry):
    """The check for this case once raised an UnboundLocalError."""
    tune = controller_with(entry)
    with trial_tasks_named(set()):
        TuneController._schedule_trial_task(tune, TRIAL, "train")
    assert scheduled == [""]
    assert tune._actor_manager._live_actors_to_ray_actors_resources["actor"] is entry


def test_the_number_of_task_names_is_limited(scheduled):
    tune = controller_with((Handle(), "resources"))
    named = {"another"}
    with trial_tasks_named(named, max_names=1):
        TuneController._schedule_trial_task(tune, TRIAL, "train")
    assert (scheduled, named) == ([""], {"another"})
