"""Test the state of a sweep: stored results compared with the plan and the data, and their cost."""

import gc
import json
import os
import tracemalloc

import pytest

from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import SweepPlan, plan_sweep
from orchestrator.planning.runtimes import MeasuredTrial
from orchestrator.planning.sweep_file import load_sweep, parse_sweep
from orchestrator.planning.workspace import Workspace
from orchestrator.results.flat_runs import flat_trial
from orchestrator.results.outlines import OutlineIndex
from orchestrator.results.records import FailureRecord, TrialRecord
from orchestrator.results.state import compare_with_plan, read_state
from orchestrator.results.store import ResultStore
from orchestrator.results.stored_results import StoredResults
from orchestrator.results.tracking import Tracker
from orchestrator.results.update_sender import WaitLimit
from tasks.trials.records import EpochRecord
from tests.unit.orchestrator.results.examples import (
    diverged,
    measure_record,
    state_of,
    trial_record,
    trial_result,
    trial_spec,
)

SWEEP = """
name: mine
models: [small_mlp]
datasets: [manifold_d4]
train_sizes: {sizes}
test_size: 40
image_size: 16
recipe: smoke
attacks: {{epsilons: {epsilons}}}
"""


def plan_with(epsilons: str, sizes: str = "[40]") -> SweepPlan:
    return plan_sweep(parse_sweep(SWEEP.format(epsilons=epsilons, sizes=sizes), origin="mine.yaml"))


@pytest.fixture
def stored(tmp_path):
    """Store one trial, with the epsilons of the study, and its measure."""
    stored = StoredResults.read(str(tmp_path / "store"))
    (trial,) = plan_with("[1.0, 2.0, 4.0, 8.0]").trials
    stored.save(trial_record(spec=trial, trial_id=trial.trial_id))
    stored.save(measure_record())
    return stored


def state_for(stored, tmp_path, epsilons, sizes="[40]"):
    workspace = Workspace(plan_with(epsilons, sizes), RootPaths.at(tmp_path).make())
    return compare_with_plan(workspace, stored)


@pytest.mark.parametrize("sizes", ["[40, 60]", "[20, 40]"])
def test_measures_of_other_train_sizes_count_until_the_planned_ones_are_stored(
    stored, tmp_path, sizes
):
    """A sweep file was extended, and has not run again yet."""
    (row,) = state_for(stored, tmp_path, "[1.0]").rows()
    state = state_for(stored, tmp_path, "[1.0]", sizes)
    assert state.rows() == [row]
    assert row["d_data_mle"] == 4.5
    (planned_measure,) = plan_with("[1.0]", sizes).measures
    assert planned_measure.measure_id not in state.measures
    stored.save(measure_record(measure_id=planned_measure.measure_id, spec=planned_measure))
    assert set(state_for(stored, tmp_path, "[1.0]", sizes).measures) == {planned_measure.measure_id}


@pytest.mark.parametrize("epsilons", ["[1.0, 2.0, 4.0, 8.0]", "[2.0, 1.0]"])
def test_a_trial_with_all_planned_measurements_or_more_is_done(stored, tmp_path, epsilons):
    state = state_for(stored, tmp_path, epsilons)
    (trial_id,) = state.results
    assert state.status(trial_id) == "done"
    assert len(state.measures) == 1


def test_a_trial_that_lacks_a_measurement_is_shown_and_is_pending(stored, tmp_path):
    complete = state_for(stored, tmp_path, "[1.0, 2.0, 4.0, 8.0]")
    state = state_for(stored, tmp_path, "[1.0, 16.0]")
    assert (state.results, state.unplanned) == ({}, frozenset())
    (trial_id,) = state.partial
    assert state.status(trial_id) == "pending"
    assert state.rows() == complete.rows() != []
    assert list(state.flat_runs()) == list(complete.flat_runs())


def test_a_result_with_an_outdated_spec_under_the_same_id_is_not_used(stored, tmp_path):
    (trial,) = plan_with("[1.0]").trials
    (measure,) = plan_with("[1.0]").measures
    recipe = trial.network.recipe.model_copy(update={"weight_decay": 0.5})
    network = trial.network.model_copy(update={"recipe": recipe})
    outdated_trial = trial.model_copy(update={"network": network})
    outdated_measure = measure.model_copy(update={"sharpness_seeds": (1, 2)})
    stored.save(trial_record(spec=outdated_trial, trial_id=trial.trial_id))
    stored.save(trial_record(trial_id="of another plan"))
    stored.save(measure_record().model_copy(update={"spec": outdated_measure}))
    state = state_for(stored, tmp_path, "[1.0]")
    assert (state.results, state.measures, state.unplanned) == ({}, {}, {"of another plan"})
    assert state.status(trial.trial_id) == "stale"


def test_an_unreadable_file_is_named_and_its_trial_is_pending(tmp_path):
    workspace = Workspace(plan_with("[1.0]"), RootPaths.at(tmp_path).make(), storage=None)
    folder = workspace.sweep_paths.folder
    stored = StoredResults.read(workspace.results_url)
    (trial,) = workspace.plan.trials
    stored.save(trial_record(spec=trial, trial_id=trial.trial_id))
    (folder / "trials" / trial.trial_id / TrialRecord.file).write_text("{}")
    (folder / "trials" / trial.trial_id / FailureRecord.file).write_text("{}")
    state = read_state(workspace)
    assert state.status(trial.trial_id) == "pending"
    assert len(state.unreadable) == 2
    # The store may be written: only a record of a newer version forbids that.
    StoredResults.read(workspace.results_url).check_writable()


ON_GPU = trial_result().model_copy(update={"device": "cuda"})


def record_of_size(size: int, result=None, **changes):
    spec = trial_spec(size)
    fields = {
        "spec": spec,
        "trial_id": spec.trial_id,
        "started_at": 0.0,
        "finished_at": 3600.0,
        **changes,
    }
    return trial_record(result, **fields)


def state_with(*records):
    return state_of({record.trial_id: record for record in records})


def test_hours_are_time_times_share():
    # Attacks were measured again later, which does not count as time of the trial.
    quarter_gpu = record_of_size(40, ON_GPU, gpu_share=0.25, finished_at=7200.0, measured_at=9000.0)
    full_gpu = record_of_size(50, ON_GPU)
    four_threads = record_of_size(60, trial_result().model_copy(update={"num_threads": 4}))
    # A record without a share used a full GPU.
    assert state_with(full_gpu).measured_trials() == [
        MeasuredTrial(full_gpu.spec, True, 1.0, 3600.0, peak_bytes=1000),
    ]
    text = "cost so far: 1.5 GPU-hours and 4 core-hours"
    cost = state_with(quarter_gpu, full_gpu, four_threads).cost()
    assert cost == {"gpu_hours": 1.5, "core_hours": 4.0, "text": text}
    assert state_with().cost()["text"] == "cost so far: 0 core-hours"


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    """Return the workspace of a sweep whose eight trials are done; one diverged."""
    changes = {"models": ["small_mlp", "small_cnn"], "train_sizes": [40, 60], "seeds": [0, 1]}
    sweep = load_sweep(plan_with("[1.0]").sweep, changes)
    workspace = Workspace(plan_sweep(sweep), RootPaths.at(tmp_path / "root").make())
    workspace.write_sweep_file()
    for number, (trial_id, spec) in enumerate(workspace.plan.trials_by_id.items()):
        result = diverged() if number == 3 else trial_result()
        record = trial_record(result, trial_id=trial_id, spec=spec, attempt=number + 1)
        ResultStore(workspace.results_url).save(record)
    return workspace


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Return a list that receives the id of every trial whose record is read."""
    trial_ids: list[str] = []
    validate = TrialRecord.model_validate.__func__

    def count_and_validate(cls, data, **settings):
        trial_ids.append(data["trial_id"])
        return validate(cls, data, **settings)

    monkeypatch.setattr(TrialRecord, "model_validate", classmethod(count_and_validate))
    return trial_ids


def path_of(workspace, trial_id):
    return ResultStore(workspace.results_url)._path("trials", trial_id, "result.json")


def test_a_second_read_of_the_state_opens_no_result_and_gives_the_same(workspace, reads):
    planned = set(workspace.plan.trials_by_id)
    first = read_state(workspace, quick=True)
    assert set(reads) == planned
    reads.clear()
    second = read_state(workspace, quick=True)
    assert reads == []
    assert second.results == first.results == read_state(workspace).results
    assert second.measured_trials() == first.measured_trials()
    assert len(second.measured_trials()) == len(planned) - 1
    stored = StoredResults.read(workspace.results_url, workspace.sweep_paths.index)
    trial_id, record = next(iter(stored.trials.items()))
    stored.save(record.model_copy(update={"attempt": 9, "finished_at": 2000.0}))
    reads.clear()  # a result that a run stored is in the index, too
    assert read_state(workspace, quick=True).results[trial_id].finished_at == 2000.0
    assert reads == []


def test_a_changed_file_is_read_again_and_a_damaged_file_is_never_used(workspace, reads):
    read_state(workspace, quick=True)
    changed, damaged, removed, *_ = workspace.plan.trials_by_id
    record = ResultStore(workspace.results_url).read(TrialRecord, changed)
    ResultStore(workspace.results_url).save(record.model_copy(update={"finished_at": 3000.0}))
    with open(path_of(workspace, damaged), "r+b") as file:
        file.truncate(100)
    os.remove(path_of(workspace, removed))
    reads.clear()
    for _ in range(2):
        state = read_state(workspace, quick=True)
        assert state.results[changed].finished_at == 3000.0
        assert {damaged, removed} & set(state.results) == set()
        assert [item.path for item in state.unreadable] == [path_of(workspace, damaged)]
    assert reads == [changed]


def test_an_index_that_is_cut_or_has_a_flipped_byte_changes_no_result(workspace, monkeypatch):
    expected = read_state(workspace, quick=True).results
    index = workspace.sweep_paths.index
    content = index.read_bytes()
    files = ResultStore(workspace.results_url).listing(TrialRecord)
    for position in range(0, len(content), 199):
        flipped = content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
        for damaged in (content[:position], flipped):
            index.write_bytes(damaged)
            for name, entry in OutlineIndex(index).read().items():
                assert (entry.stamp, entry.outline) == (files[name].stamp, expected[name])
    index.write_bytes(content[:2000])
    assert read_state(workspace, quick=True).results == expected
    assert OutlineIndex(index).read().keys() == expected.keys()
    monkeypatch.setattr("orchestrator.results.outlines.INDEX_VERSION", 99)
    assert OutlineIndex(index).read() == {}


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_folder_or_pipe_in_the_place_of_the_index_is_left_there(workspace, tmp_path, make):
    expected = read_state(workspace).results
    make(workspace.sweep_paths.index)
    assert read_state(workspace, quick=True).results == expected
    elsewhere = StoredResults.read(
        workspace.results_url, tmp_path / "none" / "index.sqlite", quick=True
    )
    assert len(elsewhere.trials) == len(expected)
    assert not (tmp_path / "none").exists()


def test_records_can_be_read_after_a_read_from_the_index(workspace):
    state = read_state(workspace, quick=True)
    assert state.rows() == read_state(workspace).rows()
    assert list(state.flat_runs()) == list(read_state(workspace).flat_runs())


# Memory of a driver for thousands of done trials


def long_record(trial_id="long", num_epochs=100):
    epochs = tuple(
        EpochRecord(epoch + 1, 1 / (epoch + 3), epoch / num_epochs, 0.1 * epoch)
        for epoch in range(num_epochs)
    )
    return trial_record(trial_result().model_copy(update={"history": epochs}), trial_id=trial_id)


@pytest.mark.long
def test_stored_results_need_less_than_a_fifth_of_the_memory_of_their_records(tmp_path):
    stored = StoredResults.read(str(tmp_path))
    spec = trial_spec()
    names = [f"trial-{number}" for number in range(20)]
    texts = {name: long_record(name).text() for name in names}

    def record_from(text):
        return TrialRecord.model_validate({**json.loads(text), "spec": spec}, strict=False)

    stored.save(long_record("first"))  # the first record also allocates what all share
    bytes_of_records, _ = memory_of(lambda: [record_from(text) for text in texts.values()])
    bytes_of_store, _ = memory_of(
        lambda: [stored.save(record_from(text)) for text in texts.values()]
    )
    assert bytes_of_store < bytes_of_records / 5
    # Records that are read back are equal to the last bit.
    assert {name: stored.trials[name].text() for name in texts} == texts
    without_domain = trial_record(diverged(), trial_id="a", domain=None)
    stored.save(without_domain)
    assert stored.trials["a"] == without_domain
    del stored.trials["a"]
    with pytest.raises(KeyError, match="a"):
        stored.trials["a"]


@pytest.mark.long
def test_runs_that_wait_for_mlflow_need_less_than_a_fifth_of_their_memory(monkeypatch):
    monkeypatch.setattr("orchestrator.results.tracking.STOPPED_SWEEP", WaitLimit(idle_s=0.0))

    def fail_to_connect():
        raise ConnectionError("no route")

    def twenty_runs():
        return [flat_trial(long_record(f"trial-{number}"), {}) for number in range(20)]

    tracker = Tracker(fail_to_connect)
    tracker.check()
    runs = twenty_runs()
    bytes_of_runs, _ = memory_of(twenty_runs)
    bytes_of_queue, _ = memory_of(lambda: [tracker.finish(run) for run in runs])
    tracker.close("KILLED")
    assert tracker.num_unsent_updates == 22  # with the start and the end of the run of the sweep
    assert bytes_of_queue < bytes_of_runs / 5


def memory_of(make):
    """Return the bytes that stay allocated after a call of ``make``, and its result."""
    gc.collect()
    tracemalloc.start()
    try:
        result = make()
        gc.collect()
        return tracemalloc.get_traced_memory()[0], result
    finally:
        tracemalloc.stop()
