"""A look at a sweep reads no record twice, believes no outline of a changed file, and can do without any."""

import os

import pytest

from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import Workspace, plan_sweep
from orchestrator.planning.sweep_file import parse_sweep
from orchestrator.results.records import TrialRecord
from orchestrator.results.state import Index, StoredResults, TrialOutline, look_at_state, read_state
from orchestrator.results.store import ResultStore
from tests.unit.orchestrator.results.examples import diverged, failure_record, trial_record, trial_result

SWEEP = """
name: mine
models: [small_mlp, small_cnn]
datasets: [manifold_d4]
train_sizes: [40, 60]
seeds: [0, 1]
test_size: 40
image_size: 16
recipe: smoke
"""


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    """A sweep whose eight cells are done; one diverged."""
    made = Workspace(plan_sweep(parse_sweep(SWEEP, origin="mine")), RootPaths.create(tmp_path / "root"))
    made.record()
    for number, (trial_id, spec) in enumerate(made.plan.trials_by_id.items()):
        result = diverged() if number == 3 else trial_result()
        record = trial_record(result, trial_id=trial_id, spec=spec, attempt=number + 1)
        ResultStore(made.results_url).save(record)
    return made


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Ids of the trials whose records are read."""
    seen: list[str] = []
    validate = TrialRecord.model_validate.__func__

    def counted(cls, data, **settings):
        seen.append(data["trial_id"])
        return validate(cls, data, **settings)

    monkeypatch.setattr(TrialRecord, "model_validate", classmethod(counted))
    return seen


def path_of(workspace, trial_id):
    return ResultStore(workspace.results_url)._path("trials", trial_id, "result.json")


def test_a_second_look_reads_no_result_and_finds_the_same(workspace, reads):
    planned = set(workspace.plan.trials_by_id)
    first = look_at_state(workspace)
    assert set(reads) == planned
    reads.clear()
    second = look_at_state(workspace)
    assert reads == []
    assert second.results == first.results == read_state(workspace).results
    assert second.measured_trials() == first.measured_trials()
    assert len(second.measured_trials()) == len(planned) - 1


def test_an_outline_has_every_field_as_its_record_has_it(workspace):
    records = StoredResults.read(workspace.results_url, workspace.sweep_paths.index).trials
    known = Index(workspace.sweep_paths.index).read()
    assert {name: outline for name, (_, outline) in known.items()} == {
        name: TrialOutline.of(record) for name, record in records.items()
    }
    assert all(outline.spec == records[name].spec for name, (_, outline) in known.items())
    assert all(outline.spec.trial_id == name for name, (_, outline) in known.items())


def test_what_a_run_stores_needs_no_reading_at_the_next_look(workspace, reads):
    stored = StoredResults.read(workspace.results_url, workspace.sweep_paths.index)
    trial_id, record = next(iter(stored.trials.items()))
    stored.save(record.model_copy(update={"attempt": 9, "finished_at": 2000.0}))
    reads.clear()
    assert look_at_state(workspace).results[trial_id].finished_at == 2000.0
    assert reads == []


def test_a_changed_file_is_read_again_and_a_damaged_one_never_believed(workspace, reads):
    look_at_state(workspace)
    changed, damaged, removed, *_ = workspace.plan.trials_by_id
    record = ResultStore(workspace.results_url).read(TrialRecord, changed)
    ResultStore(workspace.results_url).save(record.model_copy(update={"finished_at": 3000.0}))
    with open(path_of(workspace, damaged), "r+b") as file:
        file.truncate(100)
    os.remove(path_of(workspace, removed))
    reads.clear()
    for _ in range(2):
        state = look_at_state(workspace)
        assert state.results[changed].finished_at == 3000.0
        assert {damaged, removed} & set(state.results) == set()
        assert [item.path for item in state.unreadable] == [path_of(workspace, damaged)]
    assert reads == [changed]


def test_an_index_cut_at_any_byte_or_with_any_byte_flipped_changes_no_answer(workspace):
    expected, index = look_at_state(workspace).results, workspace.sweep_paths.index
    whole = index.read_bytes()
    files = {
        name: file.stamp for name, file in ResultStore(workspace.results_url).listing(TrialRecord).items()
    }
    for position in range(0, len(whole), 199):
        flipped = whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]
        for damaged in (whole[:position], flipped):
            index.write_bytes(damaged)
            for name, (stamp, outline) in Index(index).read().items():
                assert stamp == files[name]
                assert outline == expected[name]
    index.write_bytes(whole[:2000])
    assert look_at_state(workspace).results == expected


def test_an_index_of_another_version_is_not_read(workspace, reads, monkeypatch):
    look_at_state(workspace)
    monkeypatch.setattr("orchestrator.results.state.INDEX_VERSION", 99)
    assert Index(workspace.sweep_paths.index).read() == {}


def test_no_index_can_be_kept_where_nothing_can_be_written(workspace, reads, tmp_path):
    index = workspace.sweep_paths.index
    index.mkdir()
    assert len(look_at_state(workspace).results) == len(workspace.plan.trials)
    elsewhere = StoredResults.read(workspace.results_url, tmp_path / "none" / "index.sqlite", look=True)
    assert len(elsewhere.outlines) == len(workspace.plan.trials)
    assert not (tmp_path / "none").exists()


def test_a_pipe_in_the_place_of_the_index_is_waited_for_by_nobody(workspace):
    look_at_state(workspace)
    index = workspace.sweep_paths.index
    expected = look_at_state(workspace).results
    index.unlink()
    os.mkfifo(index)
    assert look_at_state(workspace).results == expected


def test_a_record_is_there_when_it_is_asked_for_after_a_look(workspace):
    look_at_state(workspace)
    state = look_at_state(workspace)
    assert state.rows() == read_state(workspace).rows()
    assert list(state.flat_runs()) == list(read_state(workspace).flat_runs())
    with pytest.raises(KeyError, match="nobody"):
        state.trials["nobody"]


def test_failures_are_seen_beside_outlines(workspace):
    look_at_state(workspace)
    trial_id, spec = next(iter(workspace.plan.trials_by_id.items()))
    os.remove(path_of(workspace, trial_id))
    failed = failure_record().model_copy(update={"trial_id": trial_id, "spec": spec})
    ResultStore(workspace.results_url).save(failed)
    assert look_at_state(workspace).status(trial_id) == "failed"


def test_a_stored_result_of_another_default_is_stale_by_its_outline_too(workspace):
    trial_id, spec = next(iter(workspace.plan.trials_by_id.items()))
    recipe = spec.network.recipe.model_copy(update={"weight_decay": 0.5})
    other = spec.model_copy(update={"network": spec.network.model_copy(update={"recipe": recipe})})
    ResultStore(workspace.results_url).save(trial_record(spec=other, trial_id=trial_id))
    assert [look_at_state(workspace).status(trial_id) for _ in range(2)] == ["stale", "stale"]
