"""A finished sweep run again: no Ray, nothing trained, the store read once."""

import contextlib
import json

import pytest

from orchestrator.planning.plan import Workspace
from orchestrator.results.state import StoredResults, read_state
from orchestrator.results.store import ResultStore, TrialRecord
from orchestrator.running.cluster import Cluster, RunOptions
from orchestrator.running.preparation import prepare_missing
from orchestrator.running.progress import Progress
from orchestrator.running.run import run_sweep
from search_spaces.errors import ConfigError, NewerRecordError
from search_spaces.fingerprint import fingerprint
from tasks.remote import InlineExecutor
from tests.unit.orchestrator.results.examples import measure_record, trial_record


@pytest.fixture
def finished(root: str) -> Workspace:
    """The smoke sweep, prepared for real, with results made by hand."""
    workspace = Workspace.open("smoke", root)
    workspace.paths.make()
    prepare_missing(
        workspace, list(workspace.plan.prepared), RunOptions(root=root), InlineExecutor(), Progress()
    )
    workspace.look_again()
    stored = StoredResults.read(workspace.results_url)
    data = {spec.dataset: workspace.prepared[spec.prepared_id] for spec in workspace.plan.prepared}
    for cell in workspace.plan.trials:
        made_from = data[cell.network.subset.prepared.dataset].fingerprint
        stored.save(trial_record(spec=cell, trial_id=cell.trial_id, data_fingerprint=made_from))
    for spec in workspace.plan.measures:
        made_from = data[spec.subset.prepared.dataset].fingerprint
        stored.save(measure_record(spec=spec, measure_id=spec.measure_id, data_fingerprint=made_from))
    return workspace


def test_a_run_reads_each_kind_of_record_once(finished, root, monkeypatch):
    read = []
    scan = ResultStore.scan

    def counting(self, kind, files=None):
        read.append(kind)
        return scan(self, kind, files)

    monkeypatch.setattr(ResultStore, "scan", counting)
    monkeypatch.setattr("orchestrator.analysis.report.report_sweep", lambda *_: None)
    summary = run_sweep("smoke", RunOptions(root=root, tracking=False))
    assert (summary.done, summary.planned, summary.exit_code) == (8, 8, 0)
    assert sorted(kind.__name__ for kind in read) == ["FailureRecord", "MeasureRecord", "TrialRecord"]


def test_a_gpu_that_is_not_there_is_told_before_anything_is_prepared(root, monkeypatch):
    @contextlib.contextmanager
    def connected(*_, **__):
        yield Cluster(2, 0, 1, 10**9, dashboard="", local=True)

    monkeypatch.setattr("orchestrator.running.run.connect", connected)
    monkeypatch.setattr("tasks.prepared.prepare.prepare_dataset", None)
    with pytest.raises(ConfigError, match=r"resources.num_gpus must fit the machine; found: 0.1, it has 0"):
        run_sweep("smoke", RunOptions(root=root, device="gpu", tracking=False))


def test_what_is_prepared_is_looked_for_again_when_asked(root):
    workspace = Workspace.open("smoke", root)
    workspace.paths.make()
    assert workspace.prepared == {}
    prepare_missing(
        workspace, list(workspace.plan.prepared), RunOptions(root=root), InlineExecutor(), Progress()
    )
    assert workspace.prepared == {}
    workspace.look_again()
    assert set(workspace.prepared) == {spec.prepared_id for spec in workspace.plan.prepared}


def test_results_of_other_data_than_are_prepared_now_are_stale(finished):
    stored = StoredResults.read(finished.results_url)
    (trial_id, record), *_ = stored.trials.items()
    stored.save(TrialRecord.model_validate({**dict(record), "data_fingerprint": "other"}))

    state = read_state(finished)
    assert (state.stale, state.status(trial_id)) == ({trial_id}, "stale")


def test_a_run_leaves_what_a_newer_version_made_as_it_is(finished, root):
    """It would take the cell for not done, train it again and write over the newer result."""
    path = next((finished.paths.root).rglob("trials/*/result.json"))
    record = {**json.loads(path.read_text())["record"], "schema_version": 99}
    path.write_text(json.dumps({"sha256": fingerprint(record), "record": record}))
    before = path.read_bytes()
    with pytest.raises(NewerRecordError, match="made by a newer isweep"):
        run_sweep("smoke", RunOptions(root=root, tracking=False))
    assert path.read_bytes() == before
