"""A small sweep with real Ray, Tune, torch, MLflow and report: run, interrupted and continued."""

import doctest
import inspect
import json
import operator
import signal
import subprocess
import sys
import urllib.request
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from orchestrator import RunOptions, Workspace, load_sweep, plan_sweep, results_table
from orchestrator.cli.app import main
from orchestrator.results.mlflow_connection import connect
from orchestrator.results.mlflow_runs import read_rows
from orchestrator.running import stages as run_stages
from orchestrator.running.pilot import run_pilot
from tests.browser.chromium import mlflow_pages
from tests.demo_page import RESULT, stages
from tests.integration import interrupted
from tests.integration.dashboard import DashboardContents, watched_run
from tests.integration.readme import (
    readme_commands,
    readme_python,
    write_own_files,
)
from tests.integration.sweeps import (
    NUM_CURVES,
    NUM_TRIALS,
    SWEEP,
    command,
    isweep,
    isweep_json,
    mlflow_runs,
    stored,
    write_sweep,
)
from tests.isolation import AVAILABLE, REASON, isolated

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> str:
    return write_sweep(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory, sweep) -> tuple[Path, dict[str, Any]]:
    """A root whose small sweep was interrupted when it had two results, and the end of this run."""
    folder = tmp_path_factory.mktemp("root")
    return folder, interrupted.run(sweep, folder, "2", num_results=2, sent_signal=signal.SIGINT)


@pytest.fixture(scope="module")
def watched_sweep(stopped_run, sweep) -> tuple[Path, str, str, DashboardContents, list[str]]:
    """The same root after the sweep was continued, its stdout and stderr, and its dashboard's
    contents and failed requests."""
    folder, _ = stopped_run
    return folder, *watched_run(command("run", sweep, "--root", str(folder)), folder)


@pytest.fixture(scope="module")
def root(watched_sweep) -> Path:
    """A root with the finished small sweep."""
    folder, stdout, *_ = watched_sweep
    report = Path(stdout.splitlines()[-1])
    assert report.name == "report.html"
    assert report.stat().st_size > 10_000
    return folder


def test_an_interrupted_sweep_keeps_its_results(stopped_run):
    _, end = stopped_run
    check_stopped(end)
    assert 2 <= len(end["results"]) < NUM_TRIALS


def test_a_run_passes_the_stages_that_readme_shows(stopped_run, watched_sweep):
    readme_stages = stages("\n".join(json.loads(RESULT.read_text(encoding="utf-8"))["output"]))
    run_stage_names = stages(f"{stopped_run[1]['stderr']}\n{watched_sweep[2]}")
    assert set(readme_stages) <= set(run_stage_names)
    # Earlier stages have no fixed order: Ray starts while data are prepared.
    later = readme_stages[readme_stages.index("measure") :]
    assert later == ["measure", "train", "report"]
    assert [stage for stage in run_stage_names if stage in later] == later


def test_every_planned_trial_is_stored_once_and_tracked_once(stopped_run, root, sweep):
    planned = set(plan_sweep(load_sweep(sweep)).trials_by_id)
    records = stored(root)
    assert set(records) == planned
    # Trials that were finished before the interrupt are never trained again.
    started_at = {name: record["started_at"] for name, record in records.items()}
    assert stopped_run[1]["results"].items() <= started_at.items()
    runs = mlflow_runs(root)
    trials = runs[runs["tags.kind"] == "trial"]
    assert sorted(trials["tags.trial_id"]) == sorted(planned)
    assert set(runs["status"]) == {"FINISHED"}
    parent = runs[runs["tags.kind"] == "sweep"]["run_id"].item()
    assert set(trials["tags.mlflow.parentRunId"]) == {parent}


def test_the_dashboard_shows_trials_and_series_by_their_names(watched_sweep, sweep):
    *_, contents, problems = watched_sweep
    plan = plan_sweep(load_sweep(sweep))
    # The dashboard ends with the command, before it shows the end of the last trials.
    task_names = {f"trial {trial_id}" for trial_id in plan.trials_by_id}
    assert len(contents.tasks & task_names) >= NUM_TRIALS // 2, (contents, problems)
    assert {"IsweepTrial", "IsweepMessages", "IsweepArtifacts", "IsweepArrays"} <= contents.actors
    assert contents.job["job_name"] == "isweep run small"
    assert contents.job["isweep grid"] == f"{NUM_TRIALS} trials, {len(plan.measures)} measures"
    assert sum(contents.states.values()) == NUM_TRIALS
    assert {
        "ray_isweep_trials",
        "ray_isweep_images_per_second",
        "ray_isweep_gpu_share_used",
    } <= contents.series


def test_a_second_run_trains_nothing(root, sweep):
    records = stored(root)
    process = isweep("run", sweep, root=root)
    assert stored(root) == records
    assert f"{NUM_TRIALS} of {NUM_TRIALS} trials done" in process.stderr
    assert "Ray" not in process.stderr  # no trial is left, so no cluster is started


def test_the_tables_from_mlflow_and_from_the_store_are_equal(root, sweep):
    workspace = Workspace.open(sweep, str(root))
    rows = read_rows(connect(f"sqlite:///{root / 'mlflow.db'}"), "small")
    tracked = results_table(workspace, rows)
    from_store = results_table(workspace)
    columns = sorted(from_store.columns)
    assert len(from_store) == NUM_TRIALS
    assert sorted(tracked.columns) == columns
    pd.testing.assert_frame_equal(tracked[columns], from_store[columns])


def test_a_row_has_the_values_of_its_trial_and_measure(root, sweep):
    table = results_table(Workspace.open(sweep, str(root))).set_index("trial_id")
    for trial_id, record in stored(root).items():
        row = table.loc[trial_id]
        assert row["test_loss"] == record["result"]["scores"]["test_loss"]
        assert row["train_size"] == record["spec"]["network"]["train_size"]
    assert table["d_data_mle"].notna().all()
    by_dataset = table.groupby("dataset")["d_data_mle"].mean()
    assert by_dataset["manifold_d4"] < by_dataset["manifold_d12"]


def test_status_plan_and_results_as_json(root, sweep):
    status, plan, rows = (
        isweep_json(name, sweep, root=root) for name in ("status", "plan", "results")
    )
    assert {
        key: status[key] for key in ("planned", "done", "failed", "running", "pending", "failures")
    } == {
        "planned": NUM_TRIALS,
        "done": NUM_TRIALS,
        "failed": 0,
        "running": 0,
        "pending": 0,
        "failures": [],
    }
    assert plan["sweep"] == "small"
    assert {row["status"] for row in plan["trials"]} == {"done"}
    assert set(plan["trials"][0]) == {
        "trial_id",
        "model",
        "recipe",
        "dataset",
        "class_pair",
        "train_size",
        "seed",
        "status",
    }
    assert [measure["status"] for measure in plan["measures"]] == ["done", "done"]
    assert plan["estimate"]["trials_left"] == 0
    assert rows == isweep_json("results", sweep, "--from-store", root=root)
    assert len(rows) == NUM_TRIALS


@pytest.mark.long
def test_fit_report_reconcile_and_files(root, sweep, tmp_path):
    assert isinstance(isweep_json("fit", sweep, root=root), dict)
    assert Path(isweep_json("report", sweep, root=root)["report"]).exists()
    counts = isweep_json("reconcile", sweep, root=root)
    assert counts == {
        "replayed": 0,
        "closed": 0,
        "duplicates": 0,
        "up_to_date": NUM_TRIALS + NUM_CURVES,
    }
    csv = tmp_path / "t.csv"
    parquet = tmp_path / "t.parquet"
    isweep("results", sweep, "--csv", str(csv), "--parquet", str(parquet), root=root)
    assert len(pd.read_csv(csv)) == len(pd.read_parquet(parquet)) == NUM_TRIALS


@pytest.mark.long
def test_a_pilot_on_own_images_is_trained_once(root, sweep, tmp_path, in_process, monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    images = rng.integers(0, 200, (60, 16, 16), dtype=np.uint8) + (40 * labels)[
        :, None, None
    ].astype(np.uint8)
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)
    source = str(tmp_path / "mine.npz")
    sizes = {"train_sizes": (20, 40), "test_size": 16}
    options = RunOptions(root=str(root), num_cpus=1, dashboard=False, tracking=False)
    pilot = run_pilot(load_sweep(sweep), source, "small_mlp", options, **sizes)
    monkeypatch.setattr(run_stages, "connect", None)  # the second call needs no cluster
    assert run_pilot(load_sweep(sweep), source, "small_mlp", options, **sizes) == pilot
    assert [point.train_size for point in pilot.points] == [20, 40]
    assert all(point.test_loss > 0 for point in pilot.points)
    assert pilot.d_data > 0
    arguments = (
        "predict",
        sweep,
        "--model",
        "small_mlp",
        "--train-size",
        "80",
        "--pilot",
        "absent",
        "--from-store",
    )
    process = isweep(*arguments, root=root, exit_code=2)
    assert "No prediction can be computed from this sweep: " in process.stderr


def test_a_number_edited_in_mlflow_is_reported_ignored_and_repaired(root, sweep):
    client = connect(f"sqlite:///{root / 'mlflow.db'}")
    rows = isweep_json("results", sweep, root=root)
    runs = mlflow_runs(root)
    victim = rows[0]["trial_id"]
    run_id = runs[runs["tags.trial_id"] == victim]["run_id"].item()
    client.log_metric(run_id, "test_loss", 0.000001, step=1)
    process = isweep("results", sweep, "--json", root=root)
    assert json.loads(process.stdout) == rows
    message = f"in 1 value of 1 trial (test_loss of {victim} is 1e-06 in MLflow"
    assert message in process.stderr
    assert isweep_json("reconcile", sweep, root=root)["replayed"] == 1
    assert "MLflow" not in isweep("results", sweep, "--json", root=root).stderr


def test_the_report_is_attached_to_the_parent_run(root):
    runs = mlflow_runs(root)
    parent = runs[runs["tags.kind"] == "sweep"]["run_id"].item()
    client = connect(f"sqlite:///{root / 'mlflow.db'}")
    names = {Path(item.path).name for item in client.list_artifacts(parent, "report")}
    assert {"report.html", "results.csv"} <= names


@pytest.mark.long
def test_a_lost_tracking_store_is_rebuilt_from_the_results(root, sweep, tmp_path):
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    counts = isweep_json("reconcile", sweep, "--mlflow-uri", uri, root=root)
    assert counts["replayed"] == NUM_TRIALS + NUM_CURVES
    rows = isweep_json("results", sweep, "--mlflow-uri", uri, root=root)
    assert rows == isweep_json("results", sweep, root=root)
    sweep_runs = [
        run_of_sweep(connect(tracking_uri))
        for tracking_uri in (uri, f"sqlite:///{root / 'mlflow.db'}")
    ]
    assert sweep_runs[0].data.metrics == sweep_runs[1].data.metrics
    assert sweep_runs[0].data.metrics["trials_done"] == NUM_TRIALS
    assert any(name.startswith("best_test_loss/") for name in sweep_runs[0].data.metrics)
    artifacts = connect(uri).list_artifacts(sweep_runs[0].info.run_id, "report")
    paths = {artifact.path for artifact in artifacts}
    assert {"report/report.html", "report/results.csv", "report/figures"} <= paths


def run_of_sweep(client):
    (experiment,) = [
        experiment
        for experiment in client.search_experiments()
        if experiment.name == "isweep/small"
    ]
    (run,) = client.search_runs([experiment.experiment_id], "tags.kind = 'sweep'")
    return run


def test_every_command_of_the_readme_runs(root, sweep, tmp_path, monkeypatch, capsys):
    write_own_files(tmp_path)
    (tmp_path / "small.yaml").write_text(Path(sweep).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ISWEEP_ROOT", str(root))
    for words in readme_commands():
        code = main(words)
        stdout, stderr = capsys.readouterr()
        assert (code, bool(stdout)) == (0, True), (words, stderr)


@pytest.mark.long  # three processes that import MLflow
def test_mlflows_page_is_served_with_addresses_of_its_answers_until_it_is_stopped(root):
    with mlflow_pages("small", root) as document:
        address = document["address"]
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address) as page:
            assert b"MLflow" in page.read()
        links = document["pages"]["isweep/small"]
        assert all(link.startswith(f"{address}/#/experiments/") for link in links.values())
        assert all("workflowType=machine_learning" in link for link in links.values())
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address)


CHECKS_OF_THE_SWEEP = f"""
assert sweep.counts == {{"planned": {NUM_TRIALS}, "done": {NUM_TRIALS}, "failed": 0, "left": 0}}
rows = sweep.table.query("dataset == 'manifold_d4' and train_size == 80")
best = sweep.best(dataset="manifold_d4", train_size=80)
assert best["test_loss"].tolist() == [rows["test_loss"].mean()]
assert isweep.open("small").table.equals(sweep.table)
assert "<table" in sweep._repr_html_() and sweep.report.name == "report.html"
"""


@pytest.mark.parametrize("text", readme_python())
def test_the_python_of_the_documents_runs(root, tmp_path, monkeypatch, in_process, text):
    write_own_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ISWEEP_ROOT", str(root))
    exec(text + CHECKS_OF_THE_SWEEP, {})


@pytest.mark.parametrize(
    "function", [pytest.param("run", marks=pytest.mark.long), "compare", "Sweep.best", "tune"]
)
def test_the_example_of_a_function_gives_its_output(root, monkeypatch, in_process, function):
    import isweep as front

    monkeypatch.setenv("ISWEEP_ROOT", str(root))
    text = inspect.getdoc(operator.attrgetter(function)(front)).replace('"smoke"', '"small"')
    example = doctest.DocTestParser().get_doctest(text, {}, function, None, 0)
    assert len(example.examples) >= 2
    assert doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.long
def test_a_plan_of_other_seeds_reuses_results_and_has_its_own_curves(root, sweep, tmp_path):
    extended = write_sweep(tmp_path, SWEEP.replace("[0, 1, 2]", "[0, 1, 2, 3]"))
    status = isweep_json("status", extended, root=root)
    assert (status["planned"], status["done"], status["pending"]) == (NUM_TRIALS + 4, NUM_TRIALS, 4)
    fewer = write_sweep(tmp_path, SWEEP.replace("[0, 1, 2]", "[0, 1]"))
    status = isweep_json("status", fewer, root=root)
    assert (status["done"], len(status["foreign"])) == (NUM_TRIALS - 4, 4)
    curves_by_plan = [curves(root)]
    for plan in (fewer, sweep):
        assert isweep_json("reconcile", plan, root=root)["replayed"] == NUM_CURVES
        assert isweep_json("reconcile", plan, root=root)["replayed"] == 0
        curves_by_plan.append(curves(root))
    # A curve over other results is another run, and the earlier run of the curve is deleted.
    assert [len(run_ids) for run_ids in curves_by_plan] == [NUM_CURVES] * 3
    assert len(set.union(*curves_by_plan)) == 3 * NUM_CURVES


def curves(root) -> set[str]:
    """Return the runs of curves that MLflow shows."""
    runs = mlflow_runs(root)
    return set(runs[runs["tags.kind"] == "curve"]["run_id"])


def check_stopped(end):
    """Check that a stopped run ended in time, and printed how to continue."""
    assert end["exit"] == 130, end["stderr"]
    assert end["seconds_to_stop"] < 300  # also on a busy machine
    assert "trials are kept. Continue with `isweep run" in end["stderr"].replace("\n", " ")
    assert "Traceback" not in end["stderr"]


@pytest.mark.chaos
@pytest.mark.skipif(not AVAILABLE, reason=REASON)
def test_an_interrupted_and_killed_sweep_continues_to_the_same_numbers(root, sweep, tmp_path):
    signals = ["SIGTERM", "SIGUSR1", "SIGKILL"]
    process = subprocess.run(
        isolated(
            sys.executable,
            "-m",
            "tests.integration.interrupted",
            sweep,
            str(tmp_path),
            "2",
            *signals,
        ),
        capture_output=True,
        text=True,
        check=True,
    )
    phases = json.loads(process.stdout)
    finished = phases["finished"]
    for name in signals:
        if name == "SIGKILL":
            assert phases[name]["exit"] == -9
        else:
            check_stopped(phases[name])
    assert finished["exit"] == 0, finished["stderr"]
    counts = [len(phase["results"]) for phase in phases.values()]
    assert counts[0] >= 2
    assert all(earlier < later for earlier, later in pairwise(counts))
    assert counts[-1] == NUM_TRIALS
    # Trials that were finished before an interruption are never trained again.
    for earlier, later in pairwise(phases.values()):
        assert earlier["results"].items() <= later["results"].items()

    runs = mlflow_runs(tmp_path)
    trials = runs[runs["tags.kind"] == "trial"]
    assert sorted(trials["tags.trial_id"]) == sorted(stored(tmp_path))
    assert set(runs["status"]) == {"FINISHED"}
    # Numbers depend neither on interruptions nor on trials that ran at the same time.
    undisturbed = stored(root)
    for trial_id, record in stored(tmp_path).items():
        numbers, expected = (
            reproducible_part(stored_record["result"])
            for stored_record in (record, undisturbed[trial_id])
        )
        assert numbers == expected, trial_id


def reproducible_part(result):
    """Return the part of a result that is equal in every run: scores, but no times and no memory."""
    history = [(epoch["train_loss"], epoch["train_accuracy"]) for epoch in result["history"]]
    return history, [result[name] for name in ("scores", "d_repr", "attacks", "test_history")]
