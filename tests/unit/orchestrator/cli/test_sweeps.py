"""Commands that run a sweep and say where it stands."""

import json
import os
import re
import shlex

import pytest

from orchestrator.cli import printing
from orchestrator.cli.app import parse
from orchestrator.machine.locks import exclusive
from orchestrator.planning.paths import RootPaths

SWEEP = """
name: mine
models: [small_cnn]
datasets: [mnist5k]
train_sizes: [20, 40]
test_size: 20
image_size: 28
recipe: smoke
"""


PREDICT = ("predict", "smoke", "--model", "x", "--d-data", "9", "--label-sharpness", "1")


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "smoke"],
        ["status", "smoke"],
        ["results", "smoke"],
        ["fit", "smoke"],
        ["report", "smoke", "--from-store"],
        [*PREDICT, "--train-size", "100"],
        ["datasets"],
        ["datasets", "mnist"],
        ["locate", "0" * 16, "--raw", "."],
        ["measure", "absent.npz"],
        ["run", "dmo"],
        ["reconcile", "dmo"],
        ["reconcile", "smoke"],
    ],
    ids=" ".join,
)
def test_a_command_that_only_reads_or_cannot_start_makes_no_root(run, root, arguments):
    run(*arguments)
    assert not os.path.exists(root)


def test_plan_and_status_of_a_sweep_that_never_ran(run, tmp_path):
    code, out, _ = run("plan", "smoke", "--json")
    plan = json.loads(out)
    assert code == 0
    assert set(plan) == {"sweep", "trials", "measures", "not_prepared", "estimate", "power"}
    row = {"trial_id", "model", "dataset", "class_pair", "train_size", "seed", "recipe", "status"}
    assert all(set(trial) == row for trial in plan["trials"])
    assert all(
        set(m) == {"measure_id", "dataset", "train_sizes", "status"} for m in plan["measures"]
    )
    assert {trial["status"] for trial in plan["trials"]} == {"pending"}
    assert [item["dataset"] for item in plan["not_prepared"]] == ["manifold_d4", "manifold_d12"]
    assert plan["estimate"]["trials_left"] == 8
    # No GPU is here and none was named, so no hours of one are told.
    assert (plan["estimate"]["gpu_hours"], plan["estimate"]["cluster"]) == (None, None)
    assert "This machine has no GPU." in plan["estimate"]["text"]
    named = json.loads(run("plan", "smoke", "--gpu", "l4", "--json")[1])["estimate"]
    # GPU-hours count shares, so a whole GPU for each trial takes more of them than sharing does.
    assert 0 < named["cluster"]["hours"] <= named["hours_one_at_a_time"]
    assert named["gpu_hours"] < named["hours_one_at_a_time"]
    assert "8 trials: 0 done; 2 measures: 0 done" in run("plan", "smoke")[1]
    missing = str(tmp_path / "my root")
    _, out, err = run("status", "smoke", "--json", at=missing)
    counts = {"planned", "done", "failed", "running", "pending", "stale", "diverged"}
    live = {"now", "seconds_left", "running_trials"}
    assert set(json.loads(out)) == counts | live | {
        "failures",
        "unreadable",
        "foreign",
        "cost",
        "search",
    }
    assert json.loads(out)["pending"] == 8
    assert (
        f"The root {missing} does not exist. Start with `isweep run smoke --root '{missing}'`"
        in err
    )


@pytest.mark.parametrize("width", [80, 60])
def test_what_is_told_folds_between_words_and_commands_stay_whole(run, root, monkeypatch, width):
    monkeypatch.setattr(printing.stdout, "width", width)
    lines = run("plan", "paper")[1].splitlines()
    assert max(map(len, lines)) <= width
    assert any("isweep datasets NAME" in line for line in lines)
    assert any(
        line.endswith(f"`isweep run demo --root {root}`.") for line in run("status")[1].splitlines()
    )


def test_plan_of_the_paper_is_short_unless_asked_and_names_what_is_missing(run):
    short, whole = run("plan", "paper")[1], run("plan", "paper", "--all")[1]
    assert "972 trials: 0 done; 27 measures: 0 done" in short
    assert len(short.splitlines()) < 30 < 900 < len(whole.splitlines())
    assert re.search(r"mura +0/6 +0/6", short)
    assert "N: 500 to 1750 (6); seed: 0; recipe: paper; pair: 3-8 to " in short
    needs = "See what each dataset needs with `isweep datasets NAME`."
    assert f"Not prepared: mnist, cifar10, svhn, imagenet, brats and 6 more. {needs}" in short


def test_a_value_is_changed_for_one_run(run):
    _, out, _ = run(
        "plan", "smoke", "--json", "--set", "train_sizes=[40]", "--set", "recipe.epochs=3"
    )
    rows = json.loads(out)["trials"]
    assert {(row["train_size"], row["recipe"]) for row in rows} == {(40, "smoke+epochs=3")}


def test_datasets_are_listed(run):
    assert [
        name for name in ("mnist5k", "brats", "prostate") if name not in run("datasets")[1]
    ] == []
    assert json.loads(run("datasets", "brats", "--json")[1])[0]["status"] == "not prepared"


def test_hints_are_commands_with_the_options_given(run, tmp_path):
    place = str(tmp_path / "my root")
    preset = tmp_path / "my sweep.yaml"
    preset.write_text(SWEEP, encoding="utf-8")
    storage = f"file://{tmp_path}/store"
    _, _, err = run("fit", str(preset), "--from-store", "--storage", storage, at=place)
    hint = re.search(r"Run `(isweep .*?)`", err)[1]
    assert shlex.split(hint) == [
        "isweep",
        "run",
        str(preset),
        "--root",
        place,
        "--storage",
        storage,
    ]
    assert parse(shlex.split(hint)[1:]).keywords["work"].root == place


def test_a_root_that_cannot_be_made(run, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = run("status", "smoke", at=str(tmp_path / "file" / "root"))
    assert code == 2
    assert "cannot be used as the root" in err
    assert "Choose another folder with --root or ISWEEP_ROOT" in err


def test_a_second_run_on_one_root_says_who_holds_it(run, root):
    with exclusive(RootPaths.at(root).make().lock, "isweep run other"):
        code, _, err = run("run", "smoke", "--no-tracking")
    assert code == 3
    assert f"is in use by process {os.getpid()} (isweep run other, since" in err
    # The lock went with its holder.
    with exclusive(RootPaths.at(root).make().lock, "again"):
        pass


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(run, root, monkeypatch):
    def stopped(preset, options, *, progress, changes):
        progress.planned, progress.done = 8, 3
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.running.run.run_sweep", stopped)
    code, out, err = run("run", "smoke")
    assert (code, out) == (130, "")
    assert (
        err == f"Stopped. 3 of 8 trials are kept. Continue with `isweep run smoke --root {root}`. "
    )


@pytest.mark.parametrize("command", ["run", "tune"])
def test_a_name_says_which_sweep_is_meant_where_a_file_says_otherwise(
    run, root, tmp_path, monkeypatch, command
):
    from orchestrator.planning.workspace import Workspace

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        f"orchestrator.{'running.run' if command == 'run' else 'tuning.tune_sweep'}.{command}_sweep",
        stopped,
    )
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.yaml"
    file.write_text(SWEEP, encoding="utf-8")
    Workspace.open(str(file), root).record()
    assert "as it last ran" not in run(command, "mine")[2]
    file.write_text(SWEEP.replace("20, 40", "20, 60"), encoding="utf-8")
    way = f"isweep {command} ./mine.yaml --root {root}"
    told = f"mine means the sweep as it last ran, but ./mine.yaml is different. To use the file, run `{way}`"
    assert told in run(command, "mine")[2]
    assert "as it last ran" not in run(command, "./mine.yaml")[2]


def test_status_without_a_name_lists_the_sweeps_of_the_root(run, root):
    from orchestrator.planning.workspace import Workspace

    _, out, _ = run("status")
    assert out.endswith(
        f"No sweep has run below this root. Start with `isweep run demo --root {root}`.\n"
    )
    Workspace.open("smoke", root, changes={"seeds": [0, 1]}).record()
    _, out, _ = run("status", "--json")
    assert [(row["sweep"], row["planned"]) for row in json.loads(out)] == [("smoke", 16)]


def test_no_results_while_a_run_works_is_no_reason_to_start_one(run, root, monkeypatch):
    from orchestrator.running.progress import RunState

    monkeypatch.setattr(
        "orchestrator.running.progress.read_run", lambda workspace: RunState(now="train")
    )
    _, _, err = run("results", "smoke", "--from-store")
    assert (
        f"no results yet, but it is running. Watch the run with `isweep status smoke --root {root}`."
        in err
    )


def test_a_sweep_of_the_root_is_found_by_its_name_as_it_ran(run, root, tmp_path):
    from orchestrator.planning.workspace import Workspace

    path = tmp_path / "any.yaml"
    path.write_text(SWEEP, encoding="utf-8")
    Workspace.open(str(path), root).record()
    path.unlink()
    assert (
        json.loads(run("status", "mine", "--json")[1])["planned"] == 10
    )  # two sizes of five pairs
    _, _, err = run("status", "mne")
    assert f"Unknown preset or sweep of {root} 'mne'. Did you mean 'mine'?" in err


def test_a_sweep_file_may_have_any_name(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text(SWEEP, encoding="utf-8")
    assert json.loads(run("plan", "mine.json", "--json")[1])["sweep"] == "mine"
    (tmp_path / "smoke").write_text("no sweep", encoding="utf-8")
    assert run("plan", "smoke")[0] == 0  # a preset's name stays the preset's


def test_failures_are_grouped_by_reason():
    from orchestrator.cli.sweeps import grouped_failures

    failures = [{"kind": "setup", "message": "no disk", "trial_id": f"t{k}"} for k in range(5)]
    failures.append({"kind": "bad_data", "message": "no images", "trial_id": "u"})
    assert list(grouped_failures(failures)) == [
        "failed (setup) 5 ×: no disk  [t0, t1, t2 and 2 more]",
        "failed (bad_data) 1 ×: no images  [u]",
    ]
