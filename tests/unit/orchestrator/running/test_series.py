"""Series for Prometheus, the board that draws them, and names of tasks."""

import json
import os
import re

import pytest
from ray.tune.execution.tune_controller import TuneController

from orchestrator.running.progress import BOARD, GAUGES, Progress
from orchestrator.running.queue import trial_tasks_named

SERIES = {"isweep_trials", "isweep_failed_attempts_total", *GAUGES}


def test_the_board_draws_every_series_and_no_other():
    board = json.loads(BOARD.read_text(encoding="utf-8"))
    drawn = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"ray_(isweep_\w+)", target["expr"])
    }
    assert drawn == SERIES
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len({panel["id"] for panel in board["panels"]}) == len(places)


def test_states_add_up_and_pace_has_no_time_left_before_the_first_end():
    progress = Progress(planned=10, done=3, diverged=1)
    progress.trial_started("a")
    progress.failed["b"] = "setup"
    assert progress.states() == {"done": 2, "diverged": 1, "failed": 1, "running": 1, "pending": 5}
    assert set(progress.pace()) < set(GAUGES)
    assert "isweep_seconds_left" not in progress.pace()
    progress.trial_finished("a", "done")
    assert set(progress.pace()) <= set(GAUGES)
    assert progress.pace()["isweep_seconds_left"] >= 0


def test_the_time_left_weighs_trials_by_how_long_they_are_expected_to_take(monkeypatch):
    """Two of ten units took 10 s each; eight of one unit are left for two slots."""
    now = [1000.0]
    monkeypatch.setattr("orchestrator.running.progress.time.monotonic", lambda: now[0])
    progress = Progress(planned=10, slots=2)
    short = [f"short-{n}" for n in range(8)]
    progress.expected = {"long-0": 10.0, "long-1": 10.0, **dict.fromkeys(short, 1.0)}
    for name in ("long-0", "long-1"):
        progress.trial_started(name)
        now[0] += 10
        progress.trial_finished(name, "done")
    assert progress.time_left() == pytest.approx(4.0)
    progress.trial_started(short[0])
    now[0] += 100  # has to end at any moment
    progress.failed[short[1]] = "setup"
    assert progress.time_left() == pytest.approx(3.0)


class Call:
    def __init__(self, said, name=None):
        self.said, self.name = said, name

    def options(self, *, name):
        return Call(self.said, name)

    def remote(self):
        self.said.append(self.name)


class Actor:
    def __init__(self, said):
        self.train = self.stop = Call(said)


class Controller:
    """The private parts of Tune that names are put in through."""

    def __init__(self, said):
        self._actor_manager = self
        self._trial_to_actor = {"trial": "tracked"}
        self._live_actors_to_ray_actors_resources = {"tracked": (Actor(said), "resources")}


class Trial:
    config = {"cell": {"trial_id": "small_cnn-digits"}}  # noqa: RUF012  # as Tune has it

    def __hash__(self):
        return hash("trial")

    def __eq__(self, other):
        return other == "trial"


def schedule(controller, trial, method_name):
    """What Tune does with the parts."""
    actor, _ = controller._live_actors_to_ray_actors_resources[controller._trial_to_actor[trial]]
    getattr(actor, method_name).remote()


@pytest.mark.parametrize(("method", "name"), [("train", "trial small_cnn-digits"), ("stop", None)])
def test_the_task_of_a_trial_has_its_name_and_nothing_stays_changed(monkeypatch, method, name):
    monkeypatch.setattr(TuneController, "_schedule_trial_task", schedule)
    said = []
    controller = Controller(said)
    before = dict(controller._live_actors_to_ray_actors_resources)
    with trial_tasks_named(set()):
        TuneController._schedule_trial_task(controller, Trial(), method)
    assert said == [name]
    assert controller._live_actors_to_ray_actors_resources == before
    assert TuneController._schedule_trial_task is schedule


def test_each_name_costs_memory_so_a_run_gives_out_so_many(monkeypatch):
    monkeypatch.setattr(TuneController, "_schedule_trial_task", schedule)
    monkeypatch.setattr("orchestrator.running.queue.trial_name", lambda trial: trial)
    said = []
    with trial_tasks_named(set(), most=2):
        for trial_id in ("a", "b", "c", "a", "d"):
            controller = Controller(said)
            controller._trial_to_actor = {trial_id: "tracked"}
            TuneController._schedule_trial_task(controller, trial_id, "train")
    assert said == ["trial a", "trial b", None, "trial a", None]


def test_the_driver_takes_the_exporter_that_does_not_leak(ray_local):
    assert os.getenv("RAY_enable_open_telemetry") == "0"  # noqa: SIM112  # Ray's own spelling


def test_with_another_ray_tasks_keep_tunes_name(monkeypatch):
    monkeypatch.setattr(TuneController, "_schedule_trial_task", schedule)
    said = []
    controller = Controller(said)
    del controller._actor_manager
    with trial_tasks_named(set()):
        TuneController._schedule_trial_task(controller, Trial(), "train")
    assert said == [None]
    monkeypatch.delattr(TuneController, "_schedule_trial_task")
    with trial_tasks_named(set()):
        pass
    assert not hasattr(TuneController, "_schedule_trial_task")
