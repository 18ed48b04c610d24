"""Starts and ends of a run: what a finished sweep does again, what is told and left, whatever
happened."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from orchestrator.machine.cluster import Cluster, RunOptions
from orchestrator.machine.ray_folders import remove_orphans
from orchestrator.planning.paths import RootPaths
from orchestrator.planning.workspace import Workspace
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
    """The smoke sweep, prepared for real, with results made by hand."""
    workspace = Workspace.open("smoke", root)
    workspace.paths.make()
    assert workspace.prepared == {}
    prepare_missing(
        workspace, [*workspace.plan.prepared], RunOptions(root=root), InlineExecutor(), Progress()
    )
    assert workspace.prepared == {}  # until it is looked for again
    workspace.look_again()
    stored = StoredResults.read(workspace.results_url)
    data = {spec.dataset: workspace.prepared[spec.prepared_id] for spec in workspace.plan.prepared}
    for cell in workspace.plan.trials:
        made_from = data[cell.network.subset.prepared.dataset].fingerprint
        stored.save(trial_record(spec=cell, trial_id=cell.trial_id, data_fingerprint=made_from))
    for spec in workspace.plan.measures:
        made_from = data[spec.subset.prepared.dataset].fingerprint
        stored.save(
            measure_record(spec=spec, measure_id=spec.measure_id, data_fingerprint=made_from)
        )
    return workspace


@pytest.fixture
def rerun(finished, root, monkeypatch):
    """Runs it again, without Ray and MLflow; returns summary, notes, and whether the report was
    written."""
    written, notes = [], []
    page = finished.sweep_paths.report / "report.html"

    def write(workspace, state):
        written.append(1)
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text("a report")
        return page

    def again(**changes):
        written.clear()
        notes.clear()
        progress = Progress()
        progress.note = notes.append
        return run_sweep(
            "smoke", RunOptions(root=root, tracking=False), progress=progress, changes=changes
        )

    monkeypatch.setattr("orchestrator.analysis.report.report_sweep", write)
    return SimpleNamespace(again=again, written=written, notes=notes, page=page)


def test_a_run_reads_each_kind_of_record_once(rerun, monkeypatch):
    read, read_each = [], ResultStore.read_each
    monkeypatch.setattr(
        ResultStore, "read_each", lambda *its: read.append(its[1]) or read_each(*its)
    )
    summary = rerun.again()
    assert (summary.done, summary.planned, summary.exit_code) == (8, 8, 0)
    assert sorted(kind.__name__ for kind in read) == [
        "FailureRecord",
        "MeasureRecord",
        "TrialRecord",
    ]


def test_an_array_that_cannot_be_read_ends_the_sweep_with_its_message(
    rerun, finished, in_process, monkeypatch
):
    def broken(work, key):
        raise SetupError("The disk cannot be read", hint="Repair the disk")

    shutil.rmtree(finished.sweep_paths.folder / "trials" / finished.plan.trials[0].trial_id)
    monkeypatch.setattr(SweepTrials, "load_array", broken)
    with pytest.raises(SetupError, match=r"The disk cannot be read\. Repair the disk"):
        rerun.again()


def test_a_report_is_written_again_only_where_it_or_what_it_is_made_of_has_changed(rerun, finished):
    stored = StoredResults.read(finished.results_url)
    record, *_ = stored.trials.values()
    for change, again in (
        (lambda: None, True),  # it was never written
        (lambda: None, False),
        (lambda: stored.save(record.model_copy(update={"attempt": 7})), True),
        (lambda: None, False),
        (lambda: rerun.page.write_text("somebody's"), True),
        (lambda: rerun.page.unlink(), True),
        (lambda: None, False),
    ):
        change()
        assert rerun.again().report == rerun.page
        assert bool(rerun.written) is again


def test_results_that_are_removed_while_a_run_goes_on_are_not_counted(rerun, finished, monkeypatch):
    lost, *_ = sorted(finished.plan.trials_by_id)
    real = module._report
    gone = finished.sweep_paths.folder / "trials" / lost
    monkeypatch.setattr(module, "_report", lambda sweep: shutil.rmtree(gone) or real(sweep))
    summary = rerun.again()
    assert (summary.planned - summary.done, summary.pending, summary.exit_code) == (1, 1, 1)
    assert any(
        note.startswith("1 finished results were removed from the store") for note in rerun.notes
    )


def test_cells_that_another_sweep_of_the_root_has_are_told(rerun, finished, monkeypatch):
    def stop(*_):
        raise ConfigError("enough was seen")

    finished.record()
    monkeypatch.setattr(module, "_start_services", stop)
    with pytest.raises(ConfigError, match="enough was seen"):
        rerun.again(name="again")
    num = len(finished.plan.trials)
    assert (
        f"The sweep smoke of this root has results of {num} of these trials. This sweep does not use "
        "them: it trains all of its trials" in rerun.notes
    )
    damaged = (
        finished.sweep_paths.folder / "trials" / min(finished.plan.trials_by_id) / "result.json"
    )
    damaged.write_bytes(b"")
    with pytest.raises(ConfigError, match="enough was seen"):
        rerun.again()
    (note,) = rerun.notes  # nor is a sweep another one than itself
    assert note.startswith(f"1 stored file cannot be used. For example, {damaged}: it is truncated")
    assert f"{finished.paths.log} lists all of them" in note


def test_a_gpu_that_is_not_there_is_told_before_anything_is_prepared(root, monkeypatch):
    @contextlib.contextmanager
    def connected(*_, **__):
        yield Cluster(2, 0, 1, 10**9, dashboard="", local=True)

    monkeypatch.setattr("orchestrator.running.stages.connect", connected)
    monkeypatch.setattr("tasks.prepared.prepare.prepare_dataset", None)
    with pytest.raises(ConfigError, match=r"resources\.num_gpus: 0\.1, but this machine has 0"):
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
def test_networks_of_a_preset_are_not_built_again_before_a_start_and_others_are(side, built):
    done = subprocess.run(
        [sys.executable, "-c", CHECK, side], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == built


def test_a_run_leaves_what_a_newer_version_made_as_it_is(finished, root):
    """It would take the cell for not done, train it again and write over the newer result."""
    path = next((finished.paths.root).rglob("trials/*/result.json"))
    record = {**json.loads(path.read_text())["record"], "schema_version": 99}
    path.write_text(json.dumps({"sha256": fingerprint(record), "record": record}))
    before = path.read_bytes()
    with pytest.raises(NewerRecordError, match="A newer version of isweep wrote"):
        run_sweep("smoke", RunOptions(root=root, tracking=False))
    assert path.read_bytes() == before


def test_a_prepared_dataset_that_goes_is_one_clear_message(finished):
    cell = finished.plan.trials[0]
    subset = cell.network.subset
    _ = finished.prepared
    shutil.rmtree(finished.paths.prepared(subset.prepared))
    with pytest.raises(
        DataError,
        match=r"was changed or removed while a run used it.*Run the same command again to prepare",
    ):
        load_arrays(finished, subset, cell.network.train_size)


def test_every_start_removes_what_a_killed_run_left(tmp_path):
    paths = RootPaths.at(tmp_path / "root").make()
    whole = paths.root / "prepared" / "mnist-0123"
    left = [paths.root / "prepared" / ".mnist-0123.89abcdef", paths.tune / "smoke-0"]
    parts = paths.root / "prepared" / ".mnist-0123.parts"
    for folder in (whole, parts, *left, paths.sweep("smoke").folder):
        folder.mkdir(parents=True)
        (folder / "a file").touch()
    files = [
        paths.token,
        paths.root / ".driver.id.0.tmp",
        paths.sweep("smoke").folder / ".progress.json.1.tmp",
    ]
    for file in files:
        file.touch()
    remove_orphans(paths)
    assert not [path for path in (*left, *files) if path.exists()]
    assert (whole / "a file").exists()
    assert (parts / "a file").exists(), "an interrupted preparation goes on with what it has read"
    assert os.listdir(paths.sweep("smoke").folder) == ["a file"]


FRESH = small_sweep("fresh")


def test_a_new_sweep_is_known_by_its_name_at_once_and_one_that_is_refused_is_not(root):
    workspace = Workspace.open(FRESH, root)
    workspace.make()
    known = []

    def refuse():
        with workspace.recorded_while_checked():
            known.append(Workspace.open("fresh", root))
            raise ConfigError("refused")

    with pytest.raises(ConfigError, match="refused"):
        refuse()
    assert known[0].plan.trials_by_id.keys() == workspace.plan.trials_by_id.keys()
    with pytest.raises(ConfigError, match=rf"Unknown preset or sweep of {root} 'fresh'"):
        Workspace.open("fresh", root)
    with workspace.recorded_while_checked():
        pass
    changed = Workspace.open({**FRESH, "train_sizes": [40]}, root)
    with pytest.raises(ConfigError, match="refused"), changed.recorded_while_checked():
        raise ConfigError("refused")
    assert Workspace.open("fresh", root).plan.sweep.train_sizes == (30,)


@pytest.mark.parametrize("trained", [True, False])
def test_a_network_without_a_finished_epoch_that_is_trained_again_counts_as_trained(
    finished, trained
):
    """Both histories are empty: only the worker knows whether it trained."""
    cell = finished.plan.trials[0]
    stored = StoredResults.read(finished.results_url)
    result = (diverged() if trained else trial_result()).model_copy(
        update={"history": (), "test_history": ()}
    )
    known = trial_record(
        result, spec=cell, trial_id=cell.trial_id, started_at=100.0, finished_at=200.0
    )
    stored.save(known)
    monitor, cluster = Progress(), SimpleNamespace(object_store_bytes=1e9)
    run = RunContext(finished.plan, finished.paths, cluster, None, stored, None, monitor)
    source = SweepTrials(run, [cell], lambda *_: None)
    report = TrialReport(
        started_at=5000.0,
        finished_at=6000.0,
        outcome=result,
        trained=trained,
        data_fingerprint="new data",
    )
    source.store_result(cell, report, 1)
    record = StoredResults.read(finished.results_url).trials[cell.trial_id]
    expected = (5000.0, 6000.0, None) if trained else (100.0, 200.0, 6000.0)
    assert (record.started_at, record.finished_at, record.measured_at) == expected
