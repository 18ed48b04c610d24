"""``isweep status`` while a run works on the sweep."""

import itertools
import json

import pytest

from orchestrator.planning.workspace import Workspace
from orchestrator.running.lock import exclusive
from orchestrator.running.progress import Progress


@pytest.fixture
def workspace(root):
    opened = Workspace.open("smoke", root)
    opened.record()
    return opened


def test_running_trials_are_shown(run, workspace):
    ids = list(workspace.plan.trials_by_id)
    progress = Progress(path=workspace.sweep_paths.progress)
    progress.trials_planned(len(ids), 0)
    with exclusive(workspace.paths.lock, "isweep run smoke"):
        progress.stage("train")
        for trial_id in ids[:2]:
            progress.trial_started(trial_id)
        code, out, _ = run("status", "smoke", "--json")
        said = json.loads(out)
        assert (code, said["running"], said["pending"]) == (0, 2, len(ids) - 2)
        assert list(said["running_trials"]) == ids[:2]
        assert said["now"] == f"train  0/{len(ids)} done  2 running"
        _, out, _ = run("status", "smoke")
        assert f"running {ids[0]}" in out
        assert "now: train" in out


def test_watching_ends_with_the_run(run, workspace, monkeypatch):
    progress = Progress(path=workspace.sweep_paths.progress)
    lock = exclusive(workspace.paths.lock, "isweep run smoke")
    lock.__enter__()
    progress.stage("train")
    looks = itertools.count()

    def sleep(seconds):
        if next(looks) == 2:
            lock.__exit__(None, None, None)

    monkeypatch.setattr("orchestrator.cli.listing.time.sleep", sleep)
    assert run("status", "smoke", "--watch")[0] == 0
    assert next(looks) == 3
