"""Names of trials on Ray's dashboard, by private places of Tune that may change."""

from types import SimpleNamespace

import pytest
from ray.tune.execution.tune_controller import TuneController

from orchestrator.running.queue import TRIAL_ID
from orchestrator.running.task_names import trial_tasks_named

TRIAL = SimpleNamespace(config={TRIAL_ID: "mlp-1"})


class Handle:
    """An actor, whose method tells the name under which it was called."""

    name = ""
    train = property(lambda self: self)

    def options(self, name):
        named = Handle()
        named.name = name
        return named


def controller_with(entry):
    manager = SimpleNamespace(_live_actors_to_ray_actors_resources={"actor": entry})
    return SimpleNamespace(_actor_manager=manager, _trial_to_actor={id(TRIAL): "actor"})


class ById(dict):
    def __getitem__(self, trial):
        return super().__getitem__(id(trial))


@pytest.fixture
def scheduled(monkeypatch):
    """Names of the tasks that Tune scheduled."""
    names = []

    def schedule(controller, trial, method_name):
        actors = controller._actor_manager._live_actors_to_ray_actors_resources
        handle = actors["actor"]
        handle = handle[0] if isinstance(handle, tuple) else handle
        names.append(handle.train.name)

    monkeypatch.setattr(TuneController, "_schedule_trial_task", schedule)
    return names


def controller(entry):
    made = controller_with(entry)
    made._trial_to_actor = ById(made._trial_to_actor)
    return made


def test_a_training_task_has_its_trial_s_name_and_the_actor_is_put_back(scheduled):
    handle = Handle()
    tune = controller((handle, "resources"))
    with trial_tasks_named(set()):
        TuneController._schedule_trial_task(tune, TRIAL, "train")
        TuneController._schedule_trial_task(tune, TRIAL, "save")
    assert scheduled == ["trial mlp-1", ""]
    assert tune._actor_manager._live_actors_to_ray_actors_resources["actor"] == (
        handle,
        "resources",
    )


@pytest.mark.parametrize("entry", [(Handle(), "resources", "more"), Handle()])
def test_where_tune_keeps_its_actors_in_another_form_tasks_keep_its_name(scheduled, entry):
    """The guard raised an UnboundLocalError in the very case that it guards."""
    tune = controller(entry)
    with trial_tasks_named(set()):
        TuneController._schedule_trial_task(tune, TRIAL, "train")
    assert scheduled == [""]
    assert tune._actor_manager._live_actors_to_ray_actors_resources["actor"] is entry


def test_no_more_trials_are_named_than_ray_has_room_for(scheduled):
    tune = controller((Handle(), "resources"))
    named = {"another"}
    with trial_tasks_named(named, max_names=1):
        TuneController._schedule_trial_task(tune, TRIAL, "train")
    assert (scheduled, named) == ([""], {"another"})
