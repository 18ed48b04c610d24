"""What a store holds, compared with a plan and with the data prepared now; and what it cost, by hand."""

import pytest

from orchestrator.planning.estimate import MeasuredTrial, Price, Prices
from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import SweepPlan, Workspace, plan_sweep
from orchestrator.planning.sweep_file import parse_sweep
from orchestrator.results.records import FailureRecord, TrialRecord
from orchestrator.results.state import StoredResults, cost_of, judge, read_state
from search_spaces.specs import AttackSpec
from tests.unit.orchestrator.results.examples import (
    failure_record,
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
    return judge(Workspace(plan(epsilons, sizes), RootPaths.create(tmp_path)), stored)


@pytest.mark.parametrize("sizes", ["[40, 60]", "[20, 40]"])
def test_measures_of_other_train_sizes_count_until_those_of_the_plan_are_made(stored, tmp_path, sizes):
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
    assert (state.results, state.foreign) == ({}, frozenset())
    (trial_id,) = state.incomplete
    assert state.status(trial_id) == "pending"
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


def test_what_was_just_written_is_known_without_reading_again(tmp_path):
    stored = StoredResults.read(str(tmp_path / "store"))
    stored.save(failure_record())
    assert list(stored.failures) == [failure_record().trial_id]
    stored.save(trial_record())
    stored.save(measure_record())
    assert stored.failures == {}
    again = StoredResults.read(str(tmp_path / "store"))
    assert (again.trials, again.measures, again.failures) == (stored.trials, stored.measures, {})


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


PRICES = Prices(gpu=Price(dollars=2, watts=500), core=Price(dollars=0.1, watts=10), origin="ours")
ON_GPU = trial_result().model_copy(update={"device": "cuda"})


def record(size: int, result=None, **changes):
    spec = trial_spec(size)
    fields = {"spec": spec, "trial_id": spec.trial_id, "started_at": 0.0, "finished_at": 3600.0, **changes}
    return trial_record(result, **fields)


def state(*records):
    return state_of({one.trial_id: one for one in records})


def test_hours_money_and_power_are_time_times_share_times_rate():
    cost = cost_of(
        state(
            record(40, ON_GPU, gpu_share=0.25, finished_at=7200.0),  # half a GPU's hour
            record(50, ON_GPU, gpu_share=1.0),
            record(60, trial_result().model_copy(update={"num_threads": 4})),  # four cores' hours
        ),
        PRICES,
    )
    assert (cost.gpu_hours, cost.core_hours) == (1.5, 4.0)
    assert cost.dollars == pytest.approx(1.5 * 2 + 4 * 0.1)
    assert cost.kilowatt_hours == pytest.approx((1.5 * 500 + 4 * 10) / 1000)
    assert cost.text() == "cost so far 1.5 GPU-hours and 4 core-hours: 3.4 $, 0.79 kWh (ours)"


def test_a_network_measured_again_saves_its_training_once():
    cost = cost_of(
        state(record(40, ON_GPU, gpu_share=0.5, measured_at=9000.0), record(50, ON_GPU, gpu_share=1.0)),
        PRICES,
    )
    assert (cost.networks_used_again, cost.saved_gpu_hours, cost.gpu_hours) == (1, 0.5, 1.5)
    assert "1 kept networks measured again, not trained: 0.5 GPU-hours saved" in cost.text()


def test_nothing_costs_nothing():
    cost = cost_of(state(), PRICES)
    assert (cost.dollars, cost.kilowatt_hours) == (0, 0)
    assert cost.text() == "cost so far 0 core-hours: 0 $, 0 kWh (ours)"


def test_the_share_of_a_record_that_knows_none_is_a_whole_gpu():
    found = state(record(40, ON_GPU)).measured_trials()[0]
    assert found == MeasuredTrial(trial_spec(), True, 1.0, 3600.0, peak_bytes=1000)
