"""Test the start and the end of a run: repeated runs, messages, and files that are left behind."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from orchestrator.cli.app import main
from orchestrator.machine.cluster import Cluster, RunOptions
from orchestrator.machine.ray_folders import remove_files_of_killed_runs
from orchestrator.planning.paths import RootPaths
from orchestrator.planning.workspace import Workspace
from orchestrator.results.records import TrialRecord
from orchestrator.results.store import ResultStore
from orchestrator.results.stored_results import StoredResults
from orchestrator.running import run as module
from orchestrator.running.messages import TrialReport
from orchestrator.running.preparation import load_arrays, prepare_missing
from orchestrator.running.progress import Progress
from orchestrator.running.run import run_sweep
from orchestrator.running.trial_source import RunContext, SweepTrials
from search_spaces.errors import ConfigError, DataError, NewerRecordError, SetupError
from search_spaces.fingerprint import fingerprint
from tasks.remote import InlineExecutor
from tests.small_sweep import small_sweep
from tests.unit.orchestrator.results.examples import (
    diverged,
    measure_record,
    trial_record,
    trial_result,
)


@pytest.fixture
def finished(root: str) -> Workspace:
    """Return the workspace of the smoke sweep with prepared data and results made by hand."""
    workspace = Workspace.open("smoke", root)
    workspace.paths.make()
    assert workspace.prepared == {}
    prepare_missing(
        workspace, [*workspace.plan.prepared], RunOptions(root=root), InlineExecutor(), Progress()
    )
    assert workspace.prepared == {}  # until the workspace reads the folder again
    workspace.forget_prepared()
    stored = StoredResults.read(workspace.results_url)
    data = {spec.dataset: workspace.prepared[spec.prepared_id] for spec in workspace.plan.prepared}
    for trial in workspace.plan.trials:
        dataset = trial.network.subset.prepared.dataset
        record = trial_record(
            spec=trial, trial_id=trial.trial_id, data_fingerprint=data[dataset].fingerprint
        )
        stored.save(record)
    for spec in workspace.plan.measures:
        dataset = spec.subset.prepared.dataset
        record = measure_record(
            spec=spec, measure_id=spec.measure_id, data_fingerprint=data[dataset].fingerprint
        )
        stored.save(record)
    return workspace


@pytest.fixture
def rerun(finished, root, monkeypatch):
    """Return a function that runs the sweep again without Ray and MLflow, and what this did.

    ``written`` has one entry for each report that was written, and ``notes`` all messages.
    """
    written: list[int] = []
    notes: list[str] = []
    page = finished.sweep_paths.report / "report.html"

    def write(workspace, state):
        written.append(1)
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text("a report")
        return page

    def run(**changes):
        written.clear()
        notes.clear()
        progress = Progress()
        progress.note = notes.append
        options = RunOptions(root=root, tracking=False)
        return run_sweep("smoke", options, progress=progress, changes=changes)

    monkeypatch.setattr("orchestrator.analysis.report.report_sweep", write)
    return SimpleNamespace(run=run, written=written, notes=notes, page=page)


def test_a_run_reads_each_kind_of_record_once(rerun, monkeypatch):
    kinds_read = []
    read_each = ResultStore.read_each

    def collect_kind(store, kind, *arguments):
        kinds_read.append(kind)
        return read_each(store, kind, *arguments)

    monkeypatch.setattr(ResultStore, "read_each", collect_kind)
    summary = rerun.run()
    assert (summary.done, summary.planned, summary.exit_code) == (8, 8, 0)
    assert sorted(kind.__name__ for kind in kinds_read) == [
        "FailureRecord",
        "MeasureRecord",
        "TrialRecord",
    ]


def test_an_array_that_cannot_be_read_ends_the_sweep_with_its_message(
    rerun, finished, in_process, monkeypatch
):
    def fail_to_load(source, key):
        raise SetupError("The disk cannot be read", hint="Repair the disk")

    shutil.rmtree(finished.sweep_paths.folder / "trials" / finished.plan.trials[0].trial_id)
    monkeypatch.setattr(SweepTrials, "load_array", fail_to_load)
    with pytest.raises(SetupError, match=r"The disk cannot be read\. Repair the disk"):
        rerun.run()


def test_a_report_is_written_again_only_if_it_or_its_results_changed(rerun, finished):
    stored = StoredResults.read(finished.results_url)
    record, *_ = stored.trials.values()
    for change, is_written in (
        (lambda: None, True),  # it was never written
        (lambda: None, False),
        (lambda: stored.save(record.model_copy(update={"attempt": 7})), True),
        (lambda: None, False),
        (lambda: rerun.page.write_text("somebody's"), True),
        (lambda: rerun.page.unlink(), True),
        (lambda: None, False),
    ):
        change()
        assert rerun.run().report == rerun.page
        assert bool(rerun.written) is is_written


def test_results_that_are_removed_during_a_run_are_not_counted(rerun, finished, monkeypatch):
    lost, *_ = sorted(finished.plan.trials_by_id)
    write_report = module._report

    def remove_result_and_report(sweep):
        shutil.rmtree(finished.sweep_paths.folder / "trials" / lost)
        return write_report(sweep)

    monkeypatch.setattr(module, "_report", remove_result_and_report)
    summary = rerun.run()
    assert (summary.planned - summary.done, summary.pending, summary.exit_code) == (1, 1, 1)
    message = "1 finished results were removed from the store"
    assert any(note.startswith(message) for note in rerun.notes)


def test_a_sweep_file_that_removes_finished_trials_is_reported_once(
    rerun, finished, root, monkeypatch, capsys
):
    def stop(*_):
        raise ConfigError("the test ends here")

    finished.write_sweep_file()
    monkeypatch.setattr(module, "_start_services", stop)
    with pytest.raises(ConfigError, match="the test ends here"):
        rerun.run(seeds=[0, 1])  # the sweep is extended
    assert rerun.notes == []
    finished.write_sweep_file()
    removed = (
        "The stored sweep smoke has 8 finished trials, but this plan lacks 8 of these trials. "
        "isweep keeps their results, but the new report leaves the results out. To keep both "
        "sweeps, give this sweep another `name`"
    )
    assert main(["plan", "smoke", "--set", "seeds=[1]", "--root", root]) == 0
    assert f"{removed}." in " ".join(capsys.readouterr().out.split())
    assert main(["plan", "smoke", "--root", root]) == 0
    assert "this plan lacks" not in capsys.readouterr().out
    with pytest.raises(ConfigError, match="the test ends here"):
        rerun.run(seeds=[1])
    assert rerun.notes == [removed]
    assert len(ResultStore(finished.results_url).listing(TrialRecord)) == 8
    with pytest.raises(ConfigError, match="the test ends here"):
        rerun.run(seeds=[1])
    assert rerun.notes == []


def test_results_of_another_sweep_for_the_same_trials_are_reported(rerun, finished, monkeypatch):
    def stop(*_):
        raise ConfigError("the test ends here")

    finished.write_sweep_file()
    monkeypatch.setattr(module, "_start_services", stop)
    with pytest.raises(ConfigError, match="the test ends here"):
        rerun.run(name="again")
    num_trials = len(finished.plan.trials)
    assert (
        f"The sweep smoke in this root already has results of {num_trials} trials of this run. "
        "This run trains the trials again, because it does not use results of smoke" in rerun.notes
    )
    first_trial = finished.sweep_paths.folder / "trials" / min(finished.plan.trials_by_id)
    damaged = first_trial / "result.json"
    damaged.write_bytes(b"")
    with pytest.raises(ConfigError, match="the test ends here"):
        rerun.run()
    (note,) = rerun.notes  # the sweep itself is not reported as another sweep
    assert note.startswith(f"1 stored file cannot be used. For example, {damaged}: it is truncated")
    assert f"{finished.paths.log} lists all files that cannot be used" in note


def test_a_missing_gpu_is_reported_before_anything_is_prepared(root, monkeypatch):
    @contextlib.contextmanager
    def connected(*_, **__):
        yield Cluster(2, 0, 1, 10**9, dashboard="", is_private=True)

    monkeypatch.setattr("orchestrator.running.stages.connect", connected)
    monkeypatch.setattr("tasks.prepared.prepare.prepare_dataset", None)
    with pytest.raises(
        ConfigError, match=r"resources\.num_gpus: 0\.1`, but this machine has only 0"
    ):
        run_sweep("smoke", RunOptions(root=root, device="gpu", tracking=False))


CHECK = """
import sys
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.running.networks import check_models
check_models(plan_sweep(load_sweep("demo", {"image_size": int(sys.argv[1])})), ())
print("torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("side", "built"), [("32", "False"), pytest.param("33", "True", marks=pytest.mark.long)]
)
def test_networks_of_a_preset_are_not_built_before_a_start_and_others_are(side, built):
    done = subprocess.run(
        [sys.executable, "-c", CHECK, side], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == built


def test_a_run_does_not_replace_a_result_of_a_newer_version(finished, root):
    """A run must not train the trial again and replace the newer result."""
    path = next((finished.paths.root).rglob("trials/*/result.json"))
    record = {**json.loads(path.read_text())["record"], "schema_version": 99}
    path.write_text(json.dumps({"sha256": fingerprint(record), "record": record}))
    before = path.read_bytes()
    with pytest.raises(NewerRecordError, match="A newer version of isweep wrote"):
        run_sweep("smoke", RunOptions(root=root, tracking=False))
    assert path.read_bytes() == before


def test_a_prepared_dataset_that_is_removed_during_a_run_is_an_error(finished):
    trial = finished.plan.trials[0]
    subset = trial.network.subset
    _ = finished.prepared  # opens the datasets, as a run does
    shutil.rmtree(finished.paths.prepared(subset.prepared))
    with pytest.raises(
        DataError,
        match=r"was changed or removed while a run used the dataset.*To prepare the dataset again, run",
    ):
        load_arrays(finished, subset, trial.network.train_size)


def test_every_start_removes_files_of_a_killed_run(tmp_path):
    paths = RootPaths.at(tmp_path / "root").make()
    prepared = paths.root / "prepared" / "mnist-0123"
    orphans = [paths.root / "prepared" / ".mnist-0123.89abcdef", paths.tune / "smoke-0"]
    parts = paths.root / "prepared" / ".mnist-0123.parts"
    for folder in (prepared, parts, *orphans, paths.sweep("smoke").folder):
        folder.mkdir(parents=True)
        (folder / "a file").touch()
    files = [
        paths.token,
        paths.root / ".driver.id.0.tmp",
        paths.sweep("smoke").folder / ".progress.json.1.tmp",
    ]
    for file in files:
        file.touch()
    remove_files_of_killed_runs(paths)
    assert not [path for path in (*orphans, *files) if path.exists()]
    assert (prepared / "a file").exists()
    assert (parts / "a file").exists(), "an interrupted preparation continues with its parts"
    assert os.listdir(paths.sweep("smoke").folder) == ["a file"]


FRESH = small_sweep("fresh")


def test_a_new_sweep_can_be_opened_by_its_name_at_once_unless_it_is_refused(root):
    workspace = Workspace.open(FRESH, root)
    workspace.make()
    opened = []

    def refuse():
        with workspace.write_sweep_file_if_valid():
            opened.append(Workspace.open("fresh", root))
            raise ConfigError("refused")

    with pytest.raises(ConfigError, match="refused"):
        refuse()
    assert opened[0].plan.trials_by_id.keys() == workspace.plan.trials_by_id.keys()
    with pytest.raises(
        ConfigError, match=rf"'fresh' is not a preset, and not a sweep in the root {root}"
    ):
        Workspace.open("fresh", root)
    with workspace.write_sweep_file_if_valid():
        pass
    changed = Workspace.open({**FRESH, "train_sizes": [40]}, root)
    with pytest.raises(ConfigError, match="refused"), changed.write_sweep_file_if_valid():
        raise ConfigError("refused")
    assert Workspace.open("fresh", root).plan.sweep.train_sizes == (30,)


@pytest.mark.parametrize("trained", [True, False])
def test_a_network_without_a_finished_epoch_that_is_trained_again_counts_as_trained(
    finished, trained
):
    """Both histories are empty: only the worker knows whether it trained."""
    trial = finished.plan.trials[0]
    stored = StoredResults.read(finished.results_url)
    result = diverged() if trained else trial_result()
    result = result.model_copy(update={"history": (), "test_history": ()})
    stored_record = trial_record(
        result, spec=trial, trial_id=trial.trial_id, started_at=100.0, finished_at=200.0
    )
    stored.save(stored_record)
    cluster = SimpleNamespace(object_store_bytes=1e9)
    run = RunContext(finished.plan, finished.paths, cluster, None, stored, None, Progress())
    source = SweepTrials(run, [trial], lambda *_: None)
    report = TrialReport(
        started_at=5000.0,
        finished_at=6000.0,
        outcome=result,
        trained=trained,
        data_fingerprint="new data",
    )
    source.store_result(trial, report, 1)
    record = StoredResults.read(finished.results_url).trials[trial.trial_id]
    expected = (5000.0, 6000.0, None) if trained else (100.0, 200.0, 6000.0)
    assert (record.started_at, record.finished_at, record.measured_at) == expected
