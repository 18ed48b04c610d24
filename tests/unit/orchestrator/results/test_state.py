"""What a store holds, compared with a plan and with the data prepared now; and what it cost, by
hand."""

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


def plan(epsilons: str, sizes: str = "[40]") -> SweepPlan:
    return plan_sweep(parse_sweep(SWEEP.format(epsilons=epsilons, sizes=sizes), origin="mine.yaml"))


@pytest.fixture
def stored(tmp_path):
    """One trial, at the study's epsilons, and its measure."""
    stored = StoredResults.read(str(tmp_path / "store"))
    (cell,) = plan("[1.0, 2.0, 4.0, 8.0]").trials
    stored.save(trial_record(spec=cell, trial_id=cell.trial_id))
    stored.save(measure_record())
    return stored


def judged(stored, tmp_path, epsilons, sizes="[40]"):
    return compare_with_plan(
        Workspace(plan(epsilons, sizes), RootPaths.at(tmp_path).make()), stored
    )


@pytest.mark.parametrize("sizes", ["[40, 60]", "[20, 40]"])
def test_measures_of_other_train_sizes_count_until_those_of_the_plan_are_made(
    stored, tmp_path, sizes
):
    """A sweep file that was extended, before it is run again."""
    (before,) = judged(stored, tmp_path, "[1.0]").rows()
    state = judged(stored, tmp_path, "[1.0]", sizes)
    assert state.rows() == [before]
    assert before["d_data_mle"] == 4.5
    (wanted,) = plan("[1.0]", sizes).measures
    assert wanted.measure_id not in state.measures
    stored.save(measure_record(measure_id=wanted.measure_id, spec=wanted))
    assert set(judged(stored, tmp_path, "[1.0]", sizes).measures) == {wanted.measure_id}


@pytest.mark.parametrize("epsilons", ["[1.0, 2.0, 4.0, 8.0]", "[2.0, 1.0]"])
def test_a_trial_with_as_much_or_more_than_asked_for_is_done(stored, tmp_path, epsilons):
    state = judged(stored, tmp_path, epsilons)
    (trial_id,) = state.results
    assert state.status(trial_id) == "done"
    assert len(state.measures) == 1


def test_what_a_trial_has_is_shown_while_it_lacks_a_measurement_and_is_done_again(stored, tmp_path):
    complete = judged(stored, tmp_path, "[1.0, 2.0, 4.0, 8.0]")
    state = judged(stored, tmp_path, "[1.0, 16.0]")
    assert (state.results, state.unplanned) == ({}, frozenset())
    (trial_id,) = state.partial
    assert state.status(trial_id) == "pending"
    assert state.rows() == complete.rows() != []
    assert list(state.flat_runs()) == list(complete.flat_runs())


def test_a_result_of_a_default_that_changed_under_the_same_id_is_not_believed(stored, tmp_path):
    (cell,) = plan("[1.0]").trials
    measured, (planned,) = measure_record(), plan("[1.0]").measures
    recipe = cell.network.recipe.model_copy(update={"weight_decay": 0.5})
    before = cell.model_copy(update={"network": cell.network.model_copy(update={"recipe": recipe})})
    stored.save(trial_record(spec=before, trial_id=cell.trial_id))
    stored.save(trial_record(trial_id="of another plan"))
    stored.save(
        measured.model_copy(update={"spec": planned.model_copy(update={"sharpness_seeds": (1, 2)})})
    )
    state = judged(stored, tmp_path, "[1.0]")
    assert (state.results, state.measures, state.unplanned) == ({}, {}, {"of another plan"})
    assert state.status(cell.trial_id) == "stale"


def test_an_unreadable_file_is_named_and_its_cell_is_left_to_do(tmp_path):
    workspace = Workspace(plan("[1.0]"), RootPaths.at(tmp_path).make(), storage=None)
    folder = workspace.sweep_paths.folder
    stored = StoredResults.read(workspace.results_url)
    (cell,) = workspace.plan.trials
    stored.save(trial_record(spec=cell, trial_id=cell.trial_id))
    (folder / "trials" / cell.trial_id / TrialRecord.file).write_text("{}")
    (folder / "trials" / cell.trial_id / FailureRecord.file).write_text("{}")
    state = read_state(workspace)
    assert state.status(cell.trial_id) == "pending"
    assert len(state.unreadable) == 2
    StoredResults.read(
        workspace.results_url
    ).check_writable()  # other damage than a newer version's


ON_GPU = trial_result().model_copy(update={"device": "cuda"})


def record(size: int, result=None, **changes):
    spec = trial_spec(size)
    fields = {
        "spec": spec,
        "trial_id": spec.trial_id,
        "started_at": 0.0,
        "finished_at": 3600.0,
        **changes,
    }
    return trial_record(result, **fields)


def state(*records):
    return state_of({one.trial_id: one for one in records})


def test_hours_are_time_times_share():
    half = record(
        40, ON_GPU, gpu_share=0.25, finished_at=7200.0, measured_at=9000.0
    )  # measured again later
    whole, four = (
        record(50, ON_GPU),
        record(60, trial_result().model_copy(update={"num_threads": 4})),
    )
    # The share of a record that knows none is a whole GPU.
    assert state(whole).measured_trials() == [
        MeasuredTrial(whole.spec, True, 1.0, 3600.0, peak_bytes=1000),
    ]
    text = "cost so far: 1.5 GPU-hours and 4 core-hours"
    assert state(half, whole, four).cost() == {"gpu_hours": 1.5, "core_hours": 4.0, "text": text}
    assert state().cost()["text"] == "cost so far: 0 core-hours"


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    """A sweep whose eight cells are done; one diverged."""
    eight = {"models": ["small_mlp", "small_cnn"], "train_sizes": [40, 60], "seeds": [0, 1]}
    sweep = load_sweep(plan("[1.0]").sweep, eight)
    made = Workspace(plan_sweep(sweep), RootPaths.at(tmp_path / "root").make())
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
    reads.clear()  # what a run stores needs no reading either
    assert read_state(workspace, quick=True).results[trial_id].finished_at == 2000.0
    assert reads == []


def test_a_changed_file_is_read_again_and_a_damaged_one_never_believed(workspace, reads):
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


def test_an_index_cut_at_any_byte_or_with_any_byte_flipped_changes_no_answer(
    workspace, monkeypatch
):
    expected, index = read_state(workspace, quick=True).results, workspace.sweep_paths.index
    whole = index.read_bytes()
    files = ResultStore(workspace.results_url).listing(TrialRecord)
    for position in range(0, len(whole), 199):
        flipped = whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]
        for damaged in (whole[:position], flipped):
            index.write_bytes(damaged)
            for name, entry in OutlineIndex(index).read().items():
                assert (entry.stamp, entry.outline) == (files[name].stamp, expected[name])
    index.write_bytes(whole[:2000])
    assert read_state(workspace, quick=True).results == expected
    assert OutlineIndex(index).read().keys() == expected.keys()
    monkeypatch.setattr("orchestrator.results.outlines.INDEX_VERSION", 99)
    assert OutlineIndex(index).read() == {}


@pytest.mark.parametrize("stand_in", [os.mkdir, os.mkfifo])
def test_what_stands_in_the_place_of_the_index_is_left_alone(workspace, tmp_path, stand_in):
    expected = read_state(workspace).results
    stand_in(workspace.sweep_paths.index)
    assert read_state(workspace, quick=True).results == expected
    elsewhere = StoredResults.read(
        workspace.results_url, tmp_path / "none" / "index.sqlite", quick=True
    )
    assert len(elsewhere.trials) == len(expected)
    assert not (tmp_path / "none").exists()


def test_a_record_is_there_when_it_is_asked_for_after_a_look(workspace):
    state = read_state(workspace, quick=True)
    assert state.rows() == read_state(workspace).rows()
    assert list(state.flat_runs()) == list(read_state(workspace).flat_runs())


# What a driver of thousands of trials holds of those that are done.


def long_record(trial_id="long", num_epochs=100):
    epochs = tuple(
        EpochRecord(i + 1, 1 / (i + 3), i / num_epochs, 0.1 * i) for i in range(num_epochs)
    )
    return trial_record(trial_result().model_copy(update={"history": epochs}), trial_id=trial_id)


def test_a_run_keeps_less_than_a_fifth_of_what_its_records_would_take(tmp_path):
    stored, spec = StoredResults.read(str(tmp_path)), trial_spec()
    texts = {name: long_record(name).text() for name in (f"trial-{place}" for place in range(20))}

    def made(text):
        return TrialRecord.model_validate({**json.loads(text), "spec": spec}, strict=False)

    stored.save(long_record("first"))  # whatever is made once
    as_objects, _ = taken(lambda: [made(text) for text in texts.values()])
    packed, _ = taken(lambda: [stored.save(made(text)) for text in texts.values()])
    assert packed < as_objects / 5
    # What comes out equals what went in to the last bit.
    assert {name: stored.trials[name].text() for name in texts} == texts
    stored.save(without := trial_record(diverged(), trial_id="a", domain=None))
    assert stored.trials["a"] == without
    del stored.trials["a"]
    with pytest.raises(KeyError, match="a"):
        stored.trials["a"]


def test_a_run_that_waits_for_mlflow_takes_a_fifth(monkeypatch):
    monkeypatch.setattr("orchestrator.results.tracking.STOP_FLUSH_S", 0.0)

    def away():
        raise ConnectionError("no route")

    tracker = Tracker(away)
    tracker.check()
    runs = [flat_trial(long_record(f"trial-{place}"), {}) for place in range(20)]
    as_objects, _ = taken(
        lambda: [flat_trial(long_record(f"trial-{place}"), {}) for place in range(20)]
    )
    waiting, _ = taken(lambda: [tracker.finish(run) for run in runs])
    tracker.close("KILLED")
    assert tracker.num_unsent_updates == 22  # with the sweep's own run and its end
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
