"""The table holds what the store holds; MLflow's rows are for where nothing else can be reached."""

from orchestrator.analysis.report import results_table
from orchestrator.planning.workspace import Workspace
from tests.unit.orchestrator.results.examples import (
    state_of,
    trial_record,
)


def test_rows_come_from_the_store_and_sizes_are_in_order(root):
    workspace = Workspace.open("smoke", root)
    planned = workspace.plan.trials_by_id
    assert len({cell.network.train_size for cell in planned.values()}) > 1
    records = {i: trial_record(spec=cell, trial_id=i) for i, cell in planned.items()}
    table = results_table(workspace, state=state_of(records))
    assert set(table["trial_id"]) == set(planned)
    for _, group in table.groupby(["dataset", "class_pair", "model"]):
        assert list(group["train_size"]) == sorted(group["train_size"])


def test_rows_of_mlflow_alone_are_those_of_planned_trials(root):
    workspace = Workspace.open("smoke", root)
    trial_id = next(iter(workspace.plan.trials_by_id))
    fields = {"dataset": "d", "class_pair": "", "model": "m", "train_size": 9, "seed": 0}
    rows = [{"trial_id": name, **fields} for name in (trial_id, "another sweep's")]
    assert list(results_table(workspace, rows)["trial_id"]) == [trial_id]


def test_no_result_is_an_empty_table(root):
    assert results_table(Workspace.open("smoke", root), state=state_of({})).empty
