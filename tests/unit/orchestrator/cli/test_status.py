"""Test ``isweep status`` while a run works on the sweep."""

import itertools
import json
import re
import shutil
import time

import pytest
from rich.console import Console

from orchestrator.cli import status
from orchestrator.machine.locks import lock_file
from orchestrator.planning.workspace import Workspace
from orchestrator.results.records import FailureKind, FailureRecord, TrialFailure
from orchestrator.results.store import Event, ResultStore
from orchestrator.running.progress import Progress, RunningTrial, WaitingTrial
from tests.damage import directory, fifo, loop


@pytest.fixture
def workspace(root):
    opened = Workspace.open("smoke", root)
    opened.write_sweep_file()
    return opened


def test_running_trials_are_shown(run, workspace):
    ids = list(workspace.plan.trials_by_id)
    progress = Progress(path=workspace.sweep_paths.progress)
    progress.planned = len(ids)
    with lock_file(workspace.paths.lock, "isweep run smoke"):
        progress.stage("train")
        for trial_id in ids[:2]:
            progress.trial_started(trial_id)
        code, out, _ = run("status", "smoke", "--json")
        document = json.loads(out)
        assert (code, document["running"], document["pending"]) == (0, 2, len(ids) - 2)
        assert list(document["running_trials"]) == ids[:2]
        assert document["now"] == f"train  0/{len(ids)} done  2 running"
        _, out, _ = run("status", "smoke")
        assert f"running {ids[0]}" in out
        assert "now: train" in out


def test_a_failed_trial_waits_for_its_next_attempt_only_while_its_run_lives(run, workspace):
    ids = list(workspace.plan.trials_by_id)
    failure = TrialFailure(kind=FailureKind.SETUP, message="no licence is free")
    store = ResultStore(workspace.results_url)
    for trial_id in ids[:2]:
        trial = workspace.plan.trials_by_id[trial_id]
        store.save(FailureRecord(trial_id=trial_id, spec=trial, attempt=1, failure=failure))
    progress = Progress(path=workspace.sweep_paths.progress)
    with lock_file(workspace.paths.lock, "isweep run smoke"):
        progress.trial_failed(ids[0], "setup", "no licence is free", 600.0)
        progress.trial_failed(ids[1], "setup", "no licence is free", None)
        at = progress.waiting[ids[0]].retry_at
        when = f"tried again at {time.strftime('%T', time.localtime(at))}"
        document = json.loads(run("status", "smoke", "--json")[1])
        assert (document["failed"], document["waiting"]) == (1, 1)
        message = "no licence is free"
        expected = {ids[0]: {"kind": "setup", "retry_at": at, "message": message}}
        assert document["waiting_trials"] == expected
        assert [row["trial_id"] for row in document["failures"]] == [ids[1]]
        out = run("status", "smoke")[1]
        assert f"waiting (setup) 1 ×: no licence is free  [{ids[0]}]  {when}" in out
        assert "failed (setup) 1 ×" in out
        assert f"{ids[0]}: waiting, {when}" in run("status", "smoke", "--trial", ids[0])[1]
        trials = json.loads(run("plan", "smoke", "--json")[1])["trials"]
        statuses = {row["trial_id"]: row["status"] for row in trials}
        assert (statuses[ids[0]], statuses[ids[1]]) == ("waiting", "failed")
        progress.waiting[ids[0]] = WaitingTrial(kind="setup", retry_at=at - 700)
        progress.save()
        assert "tried again as soon as a worker is free" in run("status", "smoke")[1]
        progress.trial_started(ids[0])
        document = json.loads(run("status", "smoke", "--json")[1])
        assert (document["failed"], document["running"], document["waiting"]) == (1, 1, 0)
        assert [row["trial_id"] for row in document["failures"]] == [ids[1]]
    # The driver has ended, so nothing tries the trial again.
    document = json.loads(run("status", "smoke", "--json")[1])
    assert (document["failed"], document["waiting"], document["waiting_trials"]) == (2, 0, {})
    history = json.loads(run("status", "smoke", "--trial", ids[0], "--json")[1])
    assert (history["status"], history["retry_at"]) == ("failed", None)


def test_watching_ends_with_the_run(run, workspace, monkeypatch):
    progress = Progress(path=workspace.sweep_paths.progress)
    lock = lock_file(workspace.paths.lock, "isweep run smoke")
    lock.__enter__()
    progress.stage("train")
    wake_ups = itertools.count()

    def sleep(seconds):
        if next(wake_ups) == 2:
            lock.__exit__(None, None, None)

    monkeypatch.setattr("orchestrator.cli.status.time.sleep", sleep)
    code, out, err = run("status", "smoke", "--watch", "--json")
    assert code == 0
    assert next(wake_ups) == 3
    # A file gets one line for each change. Stdout is for data, so the lines are on stderr.
    assert err.count("planned 8 done 0 failed 0 running 0 waiting 0 pending 8 train") == 1
    assert json.loads(out)["now"] == ""


def test_ctrl_c_ends_the_display_and_not_the_run(run, workspace, monkeypatch):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.cli.status.time.sleep", stop)
    with lock_file(workspace.paths.lock, "isweep run smoke"):
        Progress(path=workspace.sweep_paths.progress).stage("train")
        code, _, err = run("status", "smoke", "--watch")
    assert code == 130
    assert "Stopped. The display has ended, but the run continues." in err


def test_a_narrow_terminal_shows_the_complete_remaining_time(capsys):
    trial = RunningTrial(
        epoch=9, num_epochs=10, images_per_second=1234.5, seconds_left=30.0
    ).model_dump()
    running = {"resnet_tiny-mnist5k-3-8-n240-s0-d303f9f2ecd9": trial}
    document = {**dict.fromkeys(status.COUNTS, 1), "now": "train", "running_trials": running}
    document["waiting_trials"] = {}
    Console(width=60).print(status.run_display(document))
    text = " ".join(capsys.readouterr().out.split())
    assert text.endswith("epoch 9/10 1,234 img/s about 30 s of training left")


def test_the_event_log_of_a_trial_is_printed(run, workspace):
    first, second, *_ = workspace.plan.trials_by_id
    history = ResultStore(workspace.results_url)
    history.log_event(first, Event(at=1000.0, what="started", attempt=1))
    failed = Event(
        at=1010.0, what="failed", attempt=1, node="10.0.0.7", said="worker_crash: gone (attempt 2)"
    )
    history.log_event(first, failed, "first words\nlast words\n")
    history.log_event(first, Event(at=1012.0, what="started", attempt=2))
    code, out, _ = run("status", "smoke", "--trial", first[-12:])
    assert code == 0
    assert "attempt 1 failed on 10.0.0.7: worker_crash: gone (attempt 2)" in out
    assert "attempt 2 started" in out
    assert f"log of attempt 1: {history.attempt_log_path(first, 1)}" in out
    assert "  last words" in out
    document = json.loads(run("status", "smoke", "--trial", first, "--json")[1])
    assert (document["trial_id"], document["status"], len(document["events"])) == (
        first,
        "pending",
        3,
    )
    assert document["logs"] == {"1": history.attempt_log_path(first, 1)}
    assert (
        "isweep has recorded no attempt at this trial."
        in run("status", "smoke", "--trial", second)[1]
    )


def test_a_damaged_event_log_is_reported(run, workspace):
    trial_id = next(iter(workspace.plan.trials_by_id))
    ResultStore(workspace.results_url).log_event(
        trial_id, Event(at=1000.0, what="started", attempt=1)
    )
    (workspace.sweep_paths.folder / "trials" / trial_id / "history.json").write_text("[")
    code, out, _ = run("status", "smoke", "--trial", trial_id)
    assert code == 0
    assert "The history of a trial in" in out


def test_a_copied_sweep_folder_is_refused_and_the_original_is_listed_once(run, root, workspace):
    workspace.write_sweep_file()
    folder = workspace.sweep_paths.folder
    shutil.copytree(folder, folder.parent / "copy")
    message = "The stored file of the sweep 'copy' contains the name 'smoke'"
    for words in (
        ("results", "copy"),
        ("run", "copy"),
        ("run", "copy", "--set", "recipe.epochs=3"),
    ):
        code, _, err = run(*words)
        assert (code, message in err) == (2, True)
        assert "copy your own sweep file, and change the name" in " ".join(err.split())
    code, out, err = run("status")
    assert (code, out.count("smoke"), message in err) == (2, 1, True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"name: x\n"),
        lambda path: path.write_bytes(b"\xff\xfe\x00"),
        lambda path: path.write_bytes(b"[" * 100_000),
        directory,
        loop,
        fifo,
    ],
    ids=["empty", "another document", "not text", "deep", "directory", "loop", "fifo"],
)
def test_a_damaged_sweep_of_the_root_is_named_and_hides_no_other(run, root, workspace, damage):
    sound_sweep = Workspace.open("demo", root)
    sound_sweep.write_sweep_file()
    damage(workspace.sweep_paths.sweep_file)
    message = "The stored file of the sweep 'smoke' cannot be read: "
    code, out, err = run("status")
    assert code == 2
    assert f"demo  {len(sound_sweep.plan.trials)}" in re.sub(r"[^\w\n]+", "  ", out)
    assert message in err
    code, _, err = run("results", "smoke")
    assert code == 2
    assert message in err
    assert "run your sweep file again" in err
