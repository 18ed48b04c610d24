"""What a store holds, compared with a plan and with the data prepared now."""

import os

import pytest

from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import SweepPlan, Workspace, plan_sweep
from orchestrator.planning.sweep_file import parse_sweep
from orchestrator.results.records import FailureRecord, TrialRecord
from orchestrator.results.state import StoredResults, judge, read_state
from search_spaces.specs import AttackSpec
from tests.unit.orchestrator.results.examples import failure_record, measure_record, trial_record

SWEEP = """
name: mine
models: [small_mlp]
datasets: [manifold_d4]
train_sizes: [40]
test_size: 40
image_size: 16
recipe: smoke
attacks: {{epsilons: {epsilons}}}
"""


def plan(epsilons: str) -> SweepPlan:
    return plan_sweep(parse_sweep(SWEEP.format(epsilons=epsilons), origin="mine.yaml"))


@pytest.fixture
def stored(tmp_path):
    """One trial, at the study's epsilons, and its measure."""
    stored = StoredResults.read(str(tmp_path / "store"))
    (cell,) = plan("[1.0, 2.0, 4.0, 8.0]").trials
    stored.save(trial_record(spec=cell, trial_id=cell.trial_id))
    stored.save(measure_record())
    return stored


def judged(stored, tmp_path, epsilons):
    return judge(Workspace(plan(epsilons), RootPaths.create(tmp_path)), stored)


@pytest.mark.parametrize("epsilons", ["[1.0, 2.0, 4.0, 8.0]", "[2.0, 1.0]"])
def test_a_trial_with_as_much_or_more_than_asked_for_is_done(stored, tmp_path, epsilons):
    state = judged(stored, tmp_path, epsilons)
    (trial_id,) = state.results
    assert state.status(trial_id) == "done"
    assert len(state.measures) == 1


def test_a_trial_that_lacks_a_measurement_is_done_again(stored, tmp_path):
    state = judged(stored, tmp_path, "[1.0, 16.0]")
    assert (state.results, state.foreign) == ({}, frozenset())
    (trial_id,) = state.incomplete
    assert state.status(trial_id) == "pending"


def test_what_a_trial_has_is_shown_while_it_lacks_a_measurement(stored, tmp_path):
    complete = judged(stored, tmp_path, "[1.0, 2.0, 4.0, 8.0]")
    state = judged(stored, tmp_path, "[1.0, 16.0]")
    assert not state.results
    assert state.rows() == complete.rows() != []
    assert list(state.flat_runs()) == list(complete.flat_runs())


def test_a_result_of_a_default_that_changed_under_the_same_id_is_not_believed(stored, tmp_path):
    (cell,) = plan("[1.0]").trials
    measured, (planned,) = measure_record(), plan("[1.0]").measures
    recipe = cell.network.recipe.model_copy(update={"weight_decay": 0.5})
    before = cell.model_copy(update={"network": cell.network.model_copy(update={"recipe": recipe})})
    stored.save(trial_record(spec=before, trial_id=cell.trial_id))
    stored.save(measured.model_copy(update={"spec": planned.model_copy(update={"sharpness_seeds": (1, 2)})}))
    state = judged(stored, tmp_path, "[1.0]")
    assert (state.results, state.measures) == ({}, {})
    assert state.status(cell.trial_id) == "stale"


def test_asking_for_more_changes_no_id():
    (cell,), (more,) = plan("[1.0]").trials, plan("[1.0, 16.0]").trials
    assert (cell.trial_id, cell.derived_seed) == (more.trial_id, more.derived_seed)
    assert more.attacks == AttackSpec(epsilons=(1.0, 16.0))


def test_what_was_just_written_is_known_without_reading_again(tmp_path, monkeypatch):
    stored = StoredResults.read(str(tmp_path / "store"))
    stored.save(failure_record())
    assert list(stored.failures) == [failure_record().trial_id]
    stored.save(trial_record())
    stored.save(measure_record())
    assert stored.failures == {}
    again = StoredResults.read(str(tmp_path / "store"))
    assert (again.trials, again.measures, again.failures) == (stored.trials, stored.measures, {})


def test_what_could_not_be_written_is_not_known(tmp_path, monkeypatch):
    stored = StoredResults.read(str(tmp_path / "store"))

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Exception, match="No space left"):
        stored.save(trial_record())
    assert stored.trials == {}


def test_results_of_another_plan_are_foreign(tmp_path):
    stored = StoredResults.read(str(tmp_path / "store"))
    stored.save(trial_record(trial_id="other"))
    state = judged(stored, tmp_path, "[1.0]")
    assert (state.foreign, state.results) == ({"other"}, {})


def test_an_unreadable_file_is_named_and_its_cell_is_left_to_do(stored, tmp_path):
    workspace = Workspace(plan("[1.0]"), RootPaths.create(tmp_path), storage=None)
    folder = workspace.sweep_paths.folder
    stored = StoredResults.read(workspace.results_url)
    (cell,) = workspace.plan.trials
    stored.save(trial_record(spec=cell, trial_id=cell.trial_id))
    (folder / "trials" / cell.trial_id / TrialRecord.file).write_text("{}")
    (folder / "trials" / cell.trial_id / FailureRecord.file).write_text("{}")
    state = read_state(workspace)
    assert state.status(cell.trial_id) == "pending"
    assert len(state.unreadable) == 2
