"""Who holds a root, and which trials run: what a killed run left behind counts for nothing."""

import fcntl
import json
import os
import threading

from orchestrator.planning.plan import Workspace
from orchestrator.results.state import read_state
from orchestrator.running import locks
from orchestrator.running.locks import exclusive, holder_pid, is_held
from orchestrator.running.progress import running_trials


def test_the_holder_is_known_while_it_holds(tmp_path):
    path = tmp_path / "lock"
    assert not is_held(path)
    with exclusive(path, "test"):
        assert is_held(path)
        assert holder_pid(path) == os.getpid()
    assert not is_held(path)
    assert holder_pid(path) is None


def test_a_holder_that_has_not_said_yet_who_it_is(tmp_path):
    path = tmp_path / "lock"
    with exclusive(path, "test"):
        path.write_text("")
        assert is_held(path)
        assert holder_pid(path) is None


def test_another_look_is_no_holder(tmp_path):
    path = tmp_path / "lock"
    path.touch()
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert not is_held(path)


def test_a_run_starts_although_someone_looks_at_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PROBE_ATTEMPTS", 500)
    path = tmp_path / "lock"
    path.touch()
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        timer = threading.Timer(0.05, fcntl.flock, (file, fcntl.LOCK_UN))
        timer.start()
        with exclusive(path, "test"):
            assert holder_pid(path) == os.getpid()
        timer.join()


def test_trials_run_only_while_their_own_run_holds_the_lock(root):
    workspace = Workspace.open("smoke", root)
    trial_id = next(iter(workspace.plan.trials_by_id))
    path = workspace.sweep_paths.progress
    path.parent.mkdir(parents=True, exist_ok=True)

    def leave(pid: int) -> None:
        path.write_text(json.dumps({"pid": pid, "now": "train", "running": {trial_id: {}}}))

    leave(os.getpid())
    assert not running_trials(workspace)
    with exclusive(workspace.paths.lock, "isweep run smoke"):
        assert running_trials(workspace) == [trial_id]
        assert read_state(workspace, running_trials(workspace)).status(trial_id) == "running"
        leave(os.getpid() + 1)
        assert not running_trials(workspace)
