"""A look at a sweep reads no record twice and believes no outline of a changed file; little is held."""

import gc
import json
import os
import tracemalloc

import pytest

from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import Workspace, plan_sweep
from orchestrator.planning.sweep_file import parse_sweep
from orchestrator.results.state import Index, StoredResults, read_state
from orchestrator.results.store import ResultStore, TrialRecord
from orchestrator.results.table import flat_trial
from orchestrator.results.tracking import Tracker
from search_spaces.specs import Domain
from tasks.trials.records import EpochRecord
from tests.unit.orchestrator.results.examples import (
    diverged,
    trial_record,
    trial_result,
    trial_spec,
)

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
    first = read_state(workspace, look=True)
    assert set(reads) == planned
    reads.clear()
    second = read_state(workspace, look=True)
    assert reads == []
    assert second.results == first.results == read_state(workspace).results
    assert second.measured_trials() == first.measured_trials()
    assert len(second.measured_trials()) == len(planned) - 1


def test_what_a_run_stores_needs_no_reading_at_the_next_look(workspace, reads):
    stored = StoredResults.read(workspace.results_url, workspace.sweep_paths.index)
    trial_id, record = next(iter(stored.trials.items()))
    stored.save(record.model_copy(update={"attempt": 9, "finished_at": 2000.0}))
    reads.clear()
    assert read_state(workspace, look=True).results[trial_id].finished_at == 2000.0
    assert reads == []


def test_a_changed_file_is_read_again_and_a_damaged_one_never_believed(workspace, reads):
    read_state(workspace, look=True)
    changed, damaged, removed, *_ = workspace.plan.trials_by_id
    record = ResultStore(workspace.results_url).read(TrialRecord, changed)
    ResultStore(workspace.results_url).save(record.model_copy(update={"finished_at": 3000.0}))
    with open(path_of(workspace, damaged), "r+b") as file:
        file.truncate(100)
    os.remove(path_of(workspace, removed))
    reads.clear()
    for _ in range(2):
        state = read_state(workspace, look=True)
        assert state.results[changed].finished_at == 3000.0
        assert {damaged, removed} & set(state.results) == set()
        assert [item.path for item in state.unreadable] == [path_of(workspace, damaged)]
    assert reads == [changed]


def test_an_index_cut_at_any_byte_or_with_any_byte_flipped_changes_no_answer(workspace):
    expected, index = read_state(workspace, look=True).results, workspace.sweep_paths.index
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
    assert read_state(workspace, look=True).results == expected


def test_an_index_of_another_version_is_not_read(workspace, reads, monkeypatch):
    read_state(workspace, look=True)
    monkeypatch.setattr("orchestrator.results.state.INDEX_VERSION", 99)
    assert Index(workspace.sweep_paths.index).read() == {}


def test_no_index_can_be_kept_where_nothing_can_be_written(workspace, reads, tmp_path):
    index = workspace.sweep_paths.index
    index.mkdir()
    assert len(read_state(workspace, look=True).results) == len(workspace.plan.trials)
    elsewhere = StoredResults.read(workspace.results_url, tmp_path / "none" / "index.sqlite", look=True)
    assert len(elsewhere.trials) == len(workspace.plan.trials)
    assert not (tmp_path / "none").exists()


def test_a_pipe_in_the_place_of_the_index_is_waited_for_by_nobody(workspace):
    expected = read_state(workspace, look=True).results
    workspace.sweep_paths.index.unlink()
    os.mkfifo(workspace.sweep_paths.index)
    assert read_state(workspace, look=True).results == expected


def test_a_record_is_there_when_it_is_asked_for_after_a_look(workspace):
    read_state(workspace, look=True)
    state = read_state(workspace, look=True)
    assert state.rows() == read_state(workspace).rows()
    assert list(state.flat_runs()) == list(read_state(workspace).flat_runs())
    with pytest.raises(KeyError, match="nobody"):
        state.trials["nobody"]


# What a driver of thousands of trials holds of those that are done.


def long_record(trial_id="long", num_epochs=100):
    epochs = tuple(EpochRecord(i + 1, 1 / (i + 3), i / num_epochs, 0.1 * i) for i in range(num_epochs))
    return trial_record(trial_result().model_copy(update={"history": epochs}), trial_id=trial_id)


def test_what_comes_out_equals_what_went_in_to_the_last_bit(tmp_path):
    packed = StoredResults.read(str(tmp_path)).trials
    for record in (long_record("a"), trial_record(diverged(), trial_id="b", domain=None)):
        packed[record.trial_id] = record
        assert packed[record.trial_id] == record
        assert packed[record.trial_id].text() == record.text()
    assert isinstance(packed["a"].domain, str | Domain)
    assert (list(packed), len(packed), "a" in packed, "c" in packed) == (["a", "b"], 2, True, False)
    del packed["a"]
    with pytest.raises(KeyError, match="a"):
        packed["a"]


def test_a_run_keeps_less_than_a_fifth_of_what_its_records_would_take(tmp_path):
    stored, spec = StoredResults.read(str(tmp_path)), trial_spec()
    texts = {name: long_record(name).text() for name in (f"trial-{place}" for place in range(20))}

    def made(text):
        return TrialRecord.model_validate({**json.loads(text), "spec": spec}, strict=False)

    stored.save(long_record("first"))  # whatever is made once
    as_objects, _ = taken(lambda: [made(text) for text in texts.values()])
    packed, _ = taken(lambda: [stored.save(made(text)) for text in texts.values()])
    assert packed < as_objects / 5
    assert {name: stored.trials[name].text() for name in texts} == texts


def test_a_run_that_waits_for_mlflow_takes_a_fifth(monkeypatch):
    monkeypatch.setattr("orchestrator.results.tracking.STOP_PATIENCE_S", 0.0)

    def away():
        raise ConnectionError("no route")

    tracker = Tracker(away)
    tracker.check()
    runs = [flat_trial(long_record(f"trial-{place}"), {}) for place in range(20)]
    as_objects, _ = taken(lambda: [flat_trial(long_record(f"trial-{place}"), {}) for place in range(20)])
    waiting, _ = taken(lambda: [tracker.finish(run) for run in runs])
    tracker.close("KILLED")
    assert tracker.num_behind == 22  # with the sweep's own run and its end
    assert waiting < as_objects / 5


def taken(make):
    """Return the bytes that are kept of what ``make`` makes, and what it returns."""
    gc.collect()
    tracemalloc.start()
    try:
        made = make()
        gc.collect()
        return tracemalloc.get_traced_memory()[0], made
    finally:
        tracemalloc.stop()
