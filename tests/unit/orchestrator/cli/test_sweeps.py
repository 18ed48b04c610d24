"""Test the commands that run a sweep and show its state."""

import json
import os
import re
import shlex

import pytest

from orchestrator.cli import printing
from orchestrator.cli.app import parse
from orchestrator.cli.sweeps import _obstacles
from orchestrator.machine.locks import lock_file
from orchestrator.planning.paths import RootPaths
from orchestrator.planning.workspace import Workspace
from orchestrator.running.run_plan import RunPlan
from search_spaces.errors import SetupError
from tasks.sources.base import Item, Listing
from tests.small_sweep import small_sweep

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
    for measure in plan["measures"]:
        assert set(measure) == {"measure_id", "dataset", "train_sizes", "status"}
    assert {trial["status"] for trial in plan["trials"]} == {"pending"}
    assert [item["dataset"] for item in plan["not_prepared"]] == ["manifold_d4", "manifold_d12"]
    assert plan["estimate"]["trials_left"] == 8
    # This machine has no GPU and none was named, so there are no GPU-hours.
    assert (plan["estimate"]["gpu_hours"], plan["estimate"]["cluster"]) == (None, None)
    assert "This machine has no GPU." in plan["estimate"]["text"]
    named = json.loads(run("plan", "smoke", "--gpu", "l4", "--json")[1])["estimate"]
    # GPU-hours count shares of a GPU: they are fewer than hours with one trial at a time on a GPU.
    assert 0 < named["cluster"]["hours"] <= named["hours_one_at_a_time"]
    assert named["gpu_hours"] < named["hours_one_at_a_time"]
    assert "8 trials: 0 done; 2 measures: 0 done" in run("plan", "smoke")[1]
    missing = str(tmp_path / "my root")
    _, out, err = run("status", "smoke", "--json", at=missing)
    counts = {"planned", "done", "failed", "running", "waiting", "pending", "stale", "diverged"}
    live = {"now", "seconds_left", "running_trials", "waiting_trials"}
    assert set(json.loads(out)) == counts | live | {
        "failures",
        "unreadable",
        "foreign",
        "cost",
        "search",
    }
    assert json.loads(out)["pending"] == 8
    hint = f"The root {missing} does not exist. Start with `isweep run smoke --root '{missing}'`"
    assert hint in err


@pytest.mark.long
@pytest.mark.parametrize("width", [80, 60])
def test_long_lines_break_between_words_and_never_inside_commands(run, root, monkeypatch, width):
    monkeypatch.setattr(printing.stdout, "width", width)
    lines = run("plan", "paper")[1].splitlines()
    assert max(map(len, lines)) <= width
    assert any("isweep datasets NAME" in line for line in lines)
    lines_of_status = run("status")[1].splitlines()
    assert any(line.endswith(f"`isweep run demo --root {root}`.") for line in lines_of_status)


def test_plan_of_the_paper_is_short_without_all_and_names_missing_data(run):
    short = run("plan", "paper")[1]
    every_trial = run("plan", "paper", "--all")[1]
    assert "972 trials: 0 done; 27 measures: 0 done" in short
    assert len(short.splitlines()) < 30
    assert len(every_trial.splitlines()) > 900
    assert re.search(r"mura +0/6 +0/6", short)
    assert "N: 500 to 1750 (6 values); seed: 0; recipe: paper; pair: 3-8 to " in short
    needs = "See what a dataset needs with `isweep datasets NAME`."
    names = "mnist, cifar10, svhn, imagenet, brats and 6 more"
    assert f"Datasets that are not prepared: {names}. {needs}" in short


def test_a_value_is_changed_for_one_run(run):
    _, out, _ = run(
        "plan", "smoke", "--json", "--set", "train_sizes=[40]", "--set", "recipe.epochs=3"
    )
    rows = json.loads(out)["trials"]
    assert {(row["train_size"], row["recipe"]) for row in rows} == {(40, "smoke+epochs=3")}


def test_datasets_are_listed(run):
    text = run("datasets")[1]
    for name in ("mnist5k", "brats", "prostate"):
        assert name in text
    assert json.loads(run("datasets", "brats", "--json")[1])[0]["status"] == "not prepared"


def test_a_hint_is_a_command_with_the_options_of_the_user(run, tmp_path):
    place = str(tmp_path / "my root")
    preset = tmp_path / "my sweep.yaml"
    preset.write_text(SWEEP, encoding="utf-8")
    storage = f"file://{tmp_path}/store"
    _, _, err = run("fit", str(preset), "--from-store", "--storage", storage, at=place)
    hint = re.search(r"Run the sweep with `(isweep .*?)`", err)[1]
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


def test_a_root_that_cannot_be_made_is_refused(run, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = run("status", "smoke", at=str(tmp_path / "file" / "root"))
    assert code == 2
    assert "cannot be used as the root" in err
    assert "Choose another folder with --root or ISWEEP_ROOT" in err


def test_a_root_that_is_a_dangling_link_or_no_text_is_refused_with_the_reason(run, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    code, _, err = run("status", "smoke", at=str(tmp_path / "link"))
    assert code == 2
    assert "cannot be used as the root: it is a link to a missing folder. Choose" in err
    with pytest.raises(
        SetupError, match="/a\N{REPLACEMENT CHARACTER} cannot be used as the root: its name"
    ):
        RootPaths.at(f"{tmp_path}/a\udcff")


def test_a_second_run_on_one_root_names_the_first(run, root):
    with lock_file(RootPaths.at(root).make().lock, "isweep run other"):
        code, _, err = run("run", "smoke", "--no-tracking")
    assert code == 3
    assert f"is in use by process {os.getpid()} (isweep run other, since" in err
    # The lock is free again after its process released it.
    with lock_file(RootPaths.at(root).make().lock, "again"):
        pass


def test_ctrl_c_prints_how_many_trials_are_kept_and_how_to_continue(run, root, monkeypatch):
    def interrupt(preset, options, *, progress, changes):
        progress.planned = 8
        progress.done = 3
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.running.run.run_sweep", interrupt)
    code, out, err = run("run", "smoke")
    assert (code, out) == (130, "")
    hint = f"Continue with `isweep run smoke --root {root}`. "
    assert err == f"Stopped. The results of 3 of 8 trials are kept. {hint}"


@pytest.mark.parametrize("command", ["run", "tune"])
def test_a_sweep_name_gives_a_warning_if_the_file_has_changed(
    run, root, tmp_path, monkeypatch, command
):
    from orchestrator.planning.workspace import Workspace

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    module = {"run": "running.run", "tune": "tuning.tune_sweep"}[command]
    monkeypatch.setattr(f"orchestrator.{module}.{command}_sweep", interrupt)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.yaml"
    file.write_text(SWEEP, encoding="utf-8")
    Workspace.open(str(file), root).write_sweep_file()
    assert "as it last ran" not in run(command, "mine")[2]
    file.write_text(SWEEP.replace("20, 40", "20, 60"), encoding="utf-8")
    hint = f"To use the file, run `isweep {command} ./mine.yaml --root {root}`"
    warning = "isweep uses the sweep mine as it last ran, but the file ./mine.yaml is different."
    assert f"{warning} {hint}" in run(command, "mine")[2]
    assert "as it last ran" not in run(command, "./mine.yaml")[2]


def test_status_without_a_name_lists_the_sweeps_of_the_root(run, root):
    from orchestrator.planning.workspace import Workspace

    _, out, _ = run("status")
    assert out.endswith(
        f"No sweep has run in the root {root}. Start with `isweep run demo --root {root}`.\n"
    )
    Workspace.open("smoke", root, changes={"seeds": [0, 1]}).write_sweep_file()
    _, out, _ = run("status", "--json")
    assert [(row["sweep"], row["planned"]) for row in json.loads(out)] == [("smoke", 16)]


def test_without_results_a_running_sweep_is_to_be_watched_not_started(run, root, monkeypatch):
    from orchestrator.running.progress import RunState

    monkeypatch.setattr(
        "orchestrator.running.progress.read_run", lambda workspace: RunState(now="train")
    )
    _, _, err = run("results", "smoke", "--from-store")
    hint = f"Watch the run with `isweep status smoke --root {root}`."
    assert f"no results yet, but the sweep is running. {hint}" in err


def test_a_stored_sweep_is_found_by_its_name_without_its_file(run, root, tmp_path):
    from orchestrator.planning.workspace import Workspace

    path = tmp_path / "any.yaml"
    path.write_text(SWEEP, encoding="utf-8")
    Workspace.open(str(path), root).write_sweep_file()
    path.unlink()
    document = json.loads(run("status", "mine", "--json")[1])
    assert document["planned"] == 10  # two train sizes of five class pairs
    _, _, err = run("status", "mne")
    assert f"'mne' is not a preset, and not a sweep in the root {root}. Did you mean 'mine'?" in err


def test_plan_says_what_a_sweep_with_few_datasets_shows(run, tmp_path):
    path = tmp_path / "few.yaml"
    text = SWEEP.replace("20, 40", "20, 30, 40").replace("image_size: 28", "image_size: 16")
    path.write_text(text.replace("mnist5k", "manifold_d4"), encoding="utf-8")
    code, out, err = run("plan", str(path))
    assert code == 0, err
    assert "with more images. One dataset is enough for this." in out
    assert "compare datasets" not in out
    path.write_text(text.replace("mnist5k", "manifold_d4, manifold_d12"), encoding="utf-8")
    out = run("plan", str(path))[1]
    assert "with more images, on each dataset." in out
    assert "The study's questions compare datasets. The sweep has 2 datasets, but" in out


def test_a_sweep_file_may_have_any_name(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text(SWEEP, encoding="utf-8")
    assert json.loads(run("plan", "mine.json", "--json")[1])["sweep"] == "mine"
    (tmp_path / "smoke").write_text("no sweep", encoding="utf-8")
    assert run("plan", "smoke")[0] == 0  # the name of a preset means the preset, not the file


def test_failures_are_grouped_by_reason():
    from orchestrator.cli.sweeps import grouped_failures

    failures = [{"kind": "setup", "message": "no disk", "trial_id": f"t{k}"} for k in range(5)]
    failures.append({"kind": "bad_data", "message": "no images", "trial_id": "u"})
    assert list(grouped_failures(failures)) == [
        "failed (setup) 5 ×: no disk  [t0, t1, t2 and 2 more]",
        "failed (bad_data) 1 ×: no images  [u]",
    ]


def test_plan_notes_doubts_about_changed_files_of_a_prepared_dataset(tmp_path):
    workspace = Workspace.open(small_sweep("changed"), str(tmp_path))
    listing = Listing(
        items=[Item("a.png", 0)] * 60, excluded={"no label": 3}, flags={"column MRN not used": 60}
    )
    run_plan = RunPlan(
        rows=[], cost={}, measures=[], not_prepared=[], changed={"mine": listing}, extra_costs=""
    )
    lines = list(_obstacles(workspace, run_plan))
    note = next(place for place, line in enumerate(lines) if "have other names, sizes" in line)
    assert "reads the 60 files again" in lines[note]
    assert lines[note + 1] == "  left out: no label, 3"
    assert lines[note + 2] == "  doubtful: column MRN not used, 60"
