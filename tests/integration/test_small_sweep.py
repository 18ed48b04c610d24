"""Everything real: Ray, Tune, torch, MLflow on SQLite, the report; run, run again, interrupted,
continued."""

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
from tests.integration.dashboard import Seen, watched_run
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
def stopped(tmp_path_factory, sweep) -> tuple[Path, dict[str, Any]]:
    """A root in which the small sweep was interrupted when it had two results, and how it ended."""
    folder = tmp_path_factory.mktemp("root")
    return folder, interrupted.run(sweep, folder, "2", until=2, send=signal.SIGINT)


@pytest.fixture(scope="module")
def watched(stopped, sweep) -> tuple[Path, str, str, Seen, list[str]]:
    """That root, when the sweep has gone on to its end, what it printed, and what its dashboard
    said."""
    folder, _ = stopped
    return folder, *watched_run(command("run", sweep, "--root", str(folder)), folder)


@pytest.fixture(scope="module")
def root(watched) -> Path:
    """A root with the small sweep finished."""
    folder, out, *_ = watched
    report = Path(out.splitlines()[-1])
    assert report.name == "report.html"
    assert report.stat().st_size > 10_000
    return folder


def test_an_interrupted_sweep_keeps_what_it_has(stopped):
    _, how = stopped
    check_stopped(how)
    assert 2 <= len(how["results"]) < NUM_TRIALS


def test_a_run_passes_the_stages_that_readme_shows(stopped, watched):
    shown = stages("\n".join(json.loads(RESULT.read_text(encoding="utf-8"))["output"]))
    passed = stages(f"{stopped[1]['stderr']}\n{watched[2]}")
    assert set(shown) <= set(passed)
    later = shown[shown.index("measure") :]  # before, Ray starts while data are prepared
    assert [stage for stage in passed if stage in later] == later == ["measure", "train", "report"]


def test_every_planned_trial_is_stored_once_and_tracked_once(stopped, root, sweep):
    planned = set(plan_sweep(load_sweep(sweep)).trials_by_id)
    found = stored(root)
    assert set(found) == planned
    # What was finished before the interrupt is never trained again.
    assert (
        stopped[1]["results"].items()
        <= {name: one["started_at"] for name, one in found.items()}.items()
    )
    runs = mlflow_runs(root)
    trials = runs[runs["tags.kind"] == "trial"]
    assert sorted(trials["tags.trial_id"]) == sorted(planned)
    assert set(runs["status"]) == {"FINISHED"}
    parent = runs[runs["tags.kind"] == "sweep"]["run_id"].item()
    assert set(trials["tags.mlflow.parentRunId"]) == {parent}


def test_the_dashboard_shows_trials_and_series_by_their_names(watched, sweep):
    *_, seen, troubles = watched
    plan = plan_sweep(load_sweep(sweep))
    # It ends with the command, before the last trials are seen to end.
    named = {f"trial {trial_id}" for trial_id in plan.trials_by_id}
    assert len(seen.tasks & named) >= NUM_TRIALS // 2, (seen, troubles)
    assert {"IsweepTrial", "IsweepEpochs", "IsweepKeeper", "IsweepArrays"} <= seen.actors
    assert seen.job["job_name"] == "isweep run small"
    assert seen.job["isweep grid"] == f"{NUM_TRIALS} trials, {len(plan.measures)} measures"
    assert sum(seen.states.values()) == NUM_TRIALS
    assert {
        "ray_isweep_trials",
        "ray_isweep_images_per_second",
        "ray_isweep_gpu_share_used",
    } <= seen.series


def test_a_second_run_trains_nothing(root, sweep):
    before = stored(root)
    done = isweep("run", sweep, root=root)
    assert stored(root) == before
    assert f"{NUM_TRIALS} of {NUM_TRIALS} trials done" in done.stderr
    assert "Ray" not in done.stderr  # nothing to do, so no cluster is started


def test_the_tables_from_mlflow_and_from_the_store_are_equal(root, sweep):
    workspace = Workspace.open(sweep, str(root))
    rows = read_rows(connect(f"sqlite:///{root / 'mlflow.db'}"), "small")
    tracked, from_store = results_table(workspace, rows), results_table(workspace)
    columns = sorted(from_store.columns)
    assert len(from_store) == NUM_TRIALS
    assert sorted(tracked.columns) == columns
    pd.testing.assert_frame_equal(tracked[columns], from_store[columns])


def test_what_a_row_says_is_what_the_trial_and_the_measure_found(root, sweep):
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
    csv, parquet = tmp_path / "t.csv", tmp_path / "t.parquet"
    isweep("results", sweep, "--csv", str(csv), "--parquet", str(parquet), root=root)
    assert len(pd.read_csv(csv)) == len(pd.read_parquet(parquet)) == NUM_TRIALS


def test_a_pilot_on_own_images_is_trained_once(root, sweep, tmp_path, here, monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    images = rng.integers(0, 200, (60, 16, 16), dtype=np.uint8) + (40 * labels)[
        :, None, None
    ].astype(np.uint8)
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)
    source, sizes = str(tmp_path / "mine.npz"), {"train_sizes": (20, 40), "test_size": 16}
    options = RunOptions(root=str(root), num_cpus=1, dashboard=False, tracking=False)
    found = run_pilot(load_sweep(sweep), source, "small_mlp", options, **sizes)
    monkeypatch.setattr(run_stages, "connect", None)  # asked again, it needs no cluster
    assert run_pilot(load_sweep(sweep), source, "small_mlp", options, **sizes) == found
    assert [point.train_size for point in found.points] == [20, 40]
    assert all(point.test_loss > 0 for point in found.points)
    assert found.d_data > 0
    asked = (
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
    refused = isweep(*asked, root=root, exit_code=2)
    assert "No prediction can be computed from this sweep: " in refused.stderr


def test_a_number_edited_in_mlflow_is_said_overruled_and_mended(root, sweep):
    client = connect(f"sqlite:///{root / 'mlflow.db'}")
    rows = isweep_json("results", sweep, root=root)
    runs = mlflow_runs(root)
    victim = rows[0]["trial_id"]
    run_id = runs[runs["tags.trial_id"] == victim]["run_id"].item()
    client.log_metric(run_id, "test_loss", 0.000001, step=1)
    done = isweep("results", sweep, "--json", root=root)
    assert json.loads(done.stdout) == rows
    said = f"in 1 value of 1 trial (test_loss of {victim} is 1e-06 in MLflow"
    assert said in done.stderr
    assert isweep_json("reconcile", sweep, root=root)["replayed"] == 1
    assert "MLflow" not in isweep("results", sweep, "--json", root=root).stderr


def test_the_report_is_attached_to_the_parent_run(root):
    runs = mlflow_runs(root)
    parent = runs[runs["tags.kind"] == "sweep"]["run_id"].item()
    client = connect(f"sqlite:///{root / 'mlflow.db'}")
    names = {Path(item.path).name for item in client.list_artifacts(parent, "report")}
    assert {"report.html", "results.csv"} <= names


def test_a_lost_tracking_store_is_rebuilt_from_the_results(root, sweep, tmp_path):
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    counts = isweep_json("reconcile", sweep, "--mlflow-uri", uri, root=root)
    assert counts["replayed"] == NUM_TRIALS + NUM_CURVES
    rows = isweep_json("results", sweep, "--mlflow-uri", uri, root=root)
    assert rows == isweep_json("results", sweep, root=root)
    own = [run_of_sweep(connect(place)) for place in (uri, f"sqlite:///{root / 'mlflow.db'}")]
    assert own[0].data.metrics == own[1].data.metrics
    assert own[0].data.metrics["trials_done"] == NUM_TRIALS
    assert any(name.startswith("best_test_loss/") for name in own[0].data.metrics)
    sent = connect(uri).list_artifacts(own[0].info.run_id, "report")
    assert {"report/report.html", "report/results.csv", "report/figures"} <= {
        one.path for one in sent
    }


def run_of_sweep(client):
    (experiment,) = [one for one in client.search_experiments() if one.name == "isweep/small"]
    (run,) = client.search_runs([experiment.experiment_id], "tags.kind = 'sweep'")
    return run


def test_every_command_of_the_readme_runs(root, sweep, tmp_path, monkeypatch, capsys):
    write_own_files(tmp_path)
    (tmp_path / "small.yaml").write_text(Path(sweep).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ISWEEP_ROOT", str(root))
    for words in readme_commands():
        code = main(words)
        out, err = capsys.readouterr()
        assert (code, bool(out)) == (0, True), (words, err)


@pytest.mark.long  # three processes that import MLflow
def test_mlflows_page_is_served_with_addresses_of_its_answers_until_it_is_stopped(root):
    with mlflow_pages("small", root) as shown:
        address = shown["address"]
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address) as page:
            assert b"MLflow" in page.read()
        links = shown["pages"]["isweep/small"]
        assert all(link.startswith(f"{address}/#/experiments/") for link in links.values())
        assert all("workflowType=machine_learning" in link for link in links.values())
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address)


LOOKED_AT = f"""
assert sweep.counts == {{"planned": {NUM_TRIALS}, "done": {NUM_TRIALS}, "failed": 0, "left": 0}}
rows = sweep.table.query("dataset == 'manifold_d4' and train_size == 80")
best = sweep.best(dataset="manifold_d4", train_size=80)
assert best["test_loss"].tolist() == [rows["test_loss"].mean()]
assert isweep.open("small").table.equals(sweep.table)
assert "<table" in sweep._repr_html_() and sweep.report.name == "report.html"
"""


@pytest.mark.parametrize("text", readme_python())
def test_the_python_of_the_documents_runs(root, tmp_path, monkeypatch, here, text):
    write_own_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ISWEEP_ROOT", str(root))
    exec(text + LOOKED_AT, {})


@pytest.mark.parametrize("function", ["run", "compare", "Sweep.best", "tune"])
def test_the_example_of_a_function_says_what_comes_out(root, monkeypatch, here, function):
    import isweep as front

    monkeypatch.setenv("ISWEEP_ROOT", str(root))
    text = inspect.getdoc(operator.attrgetter(function)(front)).replace('"smoke"', '"small"')
    example = doctest.DocTestParser().get_doctest(text, {}, function, None, 0)
    assert len(example.examples) >= 2
    assert doctest.DocTestRunner().run(example).failed == 0


def test_a_plan_of_other_seeds_uses_what_there_is_and_has_curves_of_its_own(root, sweep, tmp_path):
    extended = write_sweep(tmp_path, SWEEP.replace("[0, 1, 2]", "[0, 1, 2, 3]"))
    status = isweep_json("status", extended, root=root)
    assert (status["planned"], status["done"], status["pending"]) == (NUM_TRIALS + 4, NUM_TRIALS, 4)
    fewer = write_sweep(tmp_path, SWEEP.replace("[0, 1, 2]", "[0, 1]"))
    status = isweep_json("status", fewer, root=root)
    assert (status["done"], len(status["foreign"])) == (NUM_TRIALS - 4, 4)
    shown = [curves(root)]
    for plan in (fewer, sweep):
        assert isweep_json("reconcile", plan, root=root)["replayed"] == NUM_CURVES
        assert isweep_json("reconcile", plan, root=root)["replayed"] == 0
        shown.append(curves(root))
    # A curve over other results is another run, and what it takes the place of is deleted.
    assert [len(one) for one in shown] == [NUM_CURVES] * 3
    assert len(set.union(*shown)) == 3 * NUM_CURVES


def curves(root) -> set[str]:
    """Return the runs of curves that MLflow shows."""
    runs = mlflow_runs(root)
    return set(runs[runs["tags.kind"] == "curve"]["run_id"])


def check_stopped(stopped):
    """See that a run that was asked to stop did, and said how it goes on."""
    assert stopped["exit"] == 130, stopped["stderr"]
    assert stopped["seconds_to_stop"] < 300  # also where much else runs
    assert "trials are kept. Continue with `isweep run" in stopped["stderr"].replace("\n", " ")
    assert "Traceback" not in stopped["stderr"]


@pytest.mark.chaos
@pytest.mark.skipif(not AVAILABLE, reason=REASON)
def test_interrupted_killed_and_continued(root, sweep, tmp_path):
    signals = ["SIGTERM", "SIGHUP", "SIGKILL"]
    done = subprocess.run(
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
    phases = json.loads(done.stdout)
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
    # What was finished before an interruption is never trained again.
    for earlier, later in pairwise(phases.values()):
        assert earlier["results"].items() <= later["results"].items()

    runs = mlflow_runs(tmp_path)
    trials = runs[runs["tags.kind"] == "trial"]
    assert sorted(trials["tags.trial_id"]) == sorted(stored(tmp_path))
    assert set(runs["status"]) == {"FINISHED"}
    # Numbers do not depend on interruptions, nor on what ran beside.
    undisturbed = stored(root)
    for trial_id, record in stored(tmp_path).items():
        one, other = (numbers(found["result"]) for found in (record, undisturbed[trial_id]))
        assert one == other, trial_id


def numbers(result):
    """Return all of a result that follows from its trial: what a network gave, no times and no
    memory."""
    seen = [(epoch["train_loss"], epoch["train_accuracy"]) for epoch in result["history"]]
    return seen, [result[name] for name in ("scores", "d_repr", "attacks", "test_history")]
