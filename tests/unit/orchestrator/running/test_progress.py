"""Test the lock of a root, the progress of a run, and its metrics for Prometheus and Grafana."""

import fcntl
import json
import os
import random
import re
import threading
import time
from pathlib import Path

import pytest

from orchestrator.machine import locks
from orchestrator.machine.locks import holder_pid, is_locked, lock_file
from orchestrator.planning.workspace import Workspace
from orchestrator.running import progress
from orchestrator.running.metrics import GAUGES
from orchestrator.running.progress import Progress, format_duration, read_live_state, read_run
from search_spaces.errors import SetupError
from tasks.trials.records import EpochRecord


@pytest.fixture
def workspace(root):
    opened = Workspace.open("smoke", root)
    opened.write_sweep_file()
    return opened


def test_a_link_in_the_place_of_a_lock_is_refused_and_empties_nothing(tmp_path):
    notes = tmp_path / "notes.json"
    notes.write_text("mine")
    (tmp_path / "driver.lock").symlink_to(notes)
    with pytest.raises(
        SetupError, match=r"The lock file .*driver.lock cannot be opened.*Delete .*driver\.lock"
    ):
        lock_file(tmp_path / "driver.lock", "test").__enter__()
    assert notes.read_text() == "mine"


def test_the_holder_of_a_lock_is_known_while_it_has_the_lock(tmp_path):
    path = tmp_path / "lock"
    assert not is_locked(path)
    with lock_file(path, "test"):
        assert (is_locked(path), holder_pid(path)) == (True, os.getpid())
        path.write_text("")  # the holder has not written its process id yet
        assert (is_locked(path), holder_pid(path)) == (True, None)
    assert (is_locked(path), holder_pid(path)) == (False, None)


def test_a_process_that_checks_the_lock_is_no_holder_and_prevents_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LOCK_ATTEMPTS", 500)
    path = tmp_path / "lock"
    path.touch()
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert not is_locked(path)
        timer = threading.Timer(0.05, fcntl.flock, (file, fcntl.LOCK_UN))
        timer.start()
        with lock_file(path, "test"):
            assert holder_pid(path) == os.getpid()
        timer.join()


def running_trials(workspace):
    return sorted(read_live_state(workspace).running)


def test_trials_count_as_running_only_while_their_run_has_the_lock(workspace):
    trial_id = next(iter(workspace.plan.trials_by_id))

    def write_progress(pid: int) -> None:
        state = {"pid": pid, "now": "train", "running": {trial_id: {}}}
        workspace.sweep_paths.progress.write_text(json.dumps(state))

    write_progress(os.getpid())
    assert not running_trials(workspace)
    with lock_file(workspace.paths.lock, "isweep run smoke"):
        assert running_trials(workspace) == [trial_id]
        assert read_live_state(workspace).status(trial_id) == "running"
        write_progress(os.getpid() + 1)
        assert not running_trials(workspace)


@pytest.mark.parametrize("seed", range(3))
def test_running_trials_are_those_that_started_and_did_not_end(workspace, seed):
    """Compare with a set after each event; events come faster than progress is usually saved."""
    names = [f"t{number}" for number in range(30)]
    expected: set[str] = set()
    rng = random.Random(seed)
    progress = Progress(path=workspace.sweep_paths.progress)
    with lock_file(workspace.paths.lock, "isweep run smoke"):
        for _ in range(120):
            if expected and rng.random() < 0.5:
                name = rng.choice(sorted(expected))
                expected.remove(name)
                if rng.random() < 0.3:
                    progress.trial_failed(name, "worker_crash", "gone", None)
                else:
                    progress.trial_finished(name, "done")
            else:
                name = rng.choice(names)
                expected.add(name)
                progress.trial_started(name)
            assert running_trials(workspace) == sorted(expected)
    assert running_trials(workspace) == []


def test_a_running_trial_has_its_epoch_rate_and_remaining_time(workspace):
    trial_id, trial = next(iter(workspace.plan.trials_by_id.items()))
    network = trial.network
    progress = Progress(path=workspace.sweep_paths.progress)
    with lock_file(workspace.paths.lock, "isweep run smoke"):
        progress.trial_started(trial_id)
        progress.trial_epoch(trial_id, EpochRecord(2, 0.5, 0.7, seconds=4.0), network)
        progress.trial_epoch("not running", EpochRecord(2, 0.5, 0.7, seconds=4.0), network)
        progress.save()
        (running_trial,) = read_run(workspace).running.values()
    assert (running_trial.epoch, running_trial.num_epochs) == (2, network.recipe.epochs)
    assert running_trial.images_per_second == network.train_size / 4
    assert running_trial.seconds_left == 4 * (network.recipe.epochs - 2)
    assert running_trial.text("9 s").startswith(
        f"9 s  epoch 2/{network.recipe.epochs}  10 img/s  about "
    )


def test_durations_have_two_units():
    expected = {
        0.4: "0 s",
        59.4: "59 s",
        60: "1 min 00 s",
        3599: "59 min 59 s",
        3600: "1 h 00 min",
    }
    assert {seconds: format_duration(seconds) for seconds in expected} == expected


SERIES = {"isweep_trials", "isweep_failed_attempts_total", *GAUGES}


def test_the_grafana_dashboard_draws_every_series_and_no_other():
    path = Path(progress.__file__).with_name("grafana.json")
    board = json.loads(path.read_text(encoding="utf-8"))
    targets = [target for panel in board["panels"] for target in panel["targets"]]
    expressions = " ".join(target["expr"] for target in targets)
    assert set(re.findall(r"ray_(isweep_\w+)", expressions)) == SERIES
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len({panel["id"] for panel in board["panels"]}) == len(places)


def test_states_add_up_and_the_remaining_time_is_unknown_before_the_first_end():
    progress = Progress(planned=10, done=3, diverged=1)
    progress.trial_started("a")
    progress.failed["b"] = "setup"
    assert progress.states() == {
        "done": 2,
        "diverged": 1,
        "failed": 1,
        "running": 1,
        "waiting": 0,
        "pending": 5,
    }
    assert set(progress.pace()) < set(GAUGES)
    assert "isweep_seconds_left" not in progress.pace()
    progress.trial_finished("a", "done")
    assert set(progress.pace()) <= set(GAUGES)
    assert progress.pace()["isweep_seconds_left"] >= 0


def test_the_remaining_time_weighs_trials_by_their_expected_time(monkeypatch):
    """Two trials of ten units took 10 s each. Eight trials of one unit remain for two slots."""
    now = [1000.0]
    monkeypatch.setattr("orchestrator.running.progress.time.monotonic", lambda: now[0])
    progress = Progress(planned=10, slots=2)
    short = [f"short-{number}" for number in range(8)]
    progress.expected = {"long-0": 10.0, "long-1": 10.0, **dict.fromkeys(short, 1.0)}
    for name in ("long-0", "long-1"):
        progress.trial_started(name)
        now[0] += 10
        progress.trial_finished(name, "done")
    assert progress.time_left() == pytest.approx(4.0)
    progress.trial_started(short[0])
    now[0] += 100  # longer than expected: the trial should end at any moment
    progress.failed[short[1]] = "setup"
    assert progress.time_left() == pytest.approx(3.0)


def test_the_pause_of_a_waiting_trial_counts_in_the_remaining_time():
    progress = Progress(planned=3, name="train")
    progress.trial_started("a")
    progress.trial_finished("a", "done")
    progress.trial_started("b")
    progress.trial_failed("b", "setup", "no licence is free", 600.0)
    assert progress.failed == {}
    assert progress.states()["waiting"] == 1
    assert 590 < progress.time_left() < 610
    when = time.strftime("%T", time.localtime(progress.waiting["b"].retry_at))
    assert f"1 waiting, tried again at {when}" in progress._line()
    progress.trial_started("b")
    assert (progress.waiting, progress.states()["running"]) == ({}, 1)
    progress.trial_failed("b", "setup", "no licence is free", None)
    assert (progress.waiting, progress.failed) == ({}, {"b": "setup"})


def test_the_driver_uses_the_metrics_exporter_that_does_not_leak(ray_local):
    assert os.getenv("RAY_enable_open_telemetry") == "0"  # noqa: SIM112  # Ray's own spelling
