"""Test the results table: rows come from the store, or from MLflow without the store."""

from orchestrator.analysis.report import results_table
from orchestrator.planning.workspace import Workspace
from tests.unit.orchestrator.results.examples import (
    state_of,
    trial_record,
)


def test_rows_come_from_the_store_and_sizes_are_in_order(root):
    workspace = Workspace.open("smoke", root)
    planned = workspace.plan.trials_by_id
    assert len({trial.network.train_size for trial in planned.values()}) > 1
    records = {
        trial_id: trial_record(spec=trial, trial_id=trial_id) for trial_id, trial in planned.items()
    }
    table = results_table(workspace, state=state_of(records))
    assert set(table["trial_id"]) == set(planned)
    for _, group in table.groupby(["dataset", "class_pair", "model"]):
        assert list(group["train_size"]) == sorted(group["train_size"])


def test_rows_from_mlflow_are_limited_to_planned_trials(root):
    workspace = Workspace.open("smoke", root)
    trial_id = next(iter(workspace.plan.trials_by_id))
    fields = {"dataset": "d", "class_pair": "", "model": "m", "train_size": 9, "seed": 0}
    rows = [{"trial_id": name, **fields} for name in (trial_id, "another sweep's")]
    table = results_table(workspace, rows)
    assert list(table["trial_id"]) == [trial_id]


def test_a_sweep_without_results_has_an_empty_table(root):
    assert results_table(Workspace.open("smoke", root), state=state_of({})).empty
