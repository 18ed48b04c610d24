"""The table holds what the store holds, wherever its rows were read."""

from orchestrator.analysis.reporting import results_table
from orchestrator.planning.workspace import Workspace
from orchestrator.results.state import State
from tests.unit.orchestrator.results.examples import trial_record


def row(trial_id: str, train_size: int) -> dict[str, object]:
    return {
        "trial_id": trial_id,
        "dataset": "d",
        "class_pair": "",
        "model": "m",
        "train_size": train_size,
        "seed": 0,
    }


def test_tracked_rows_of_stale_results_are_left_out_and_sizes_are_in_order(root):
    """``b`` was made from other data than are prepared now, so the store no longer counts it as a result."""
    state = State(results={"a": trial_record(), "c": trial_record()})
    table = results_table(Workspace.open("smoke", root), [row("a", 120), row("b", 60), row("c", 60)], state)
    assert list(table["trial_id"]) == ["c", "a"]
    assert list(table["train_size"]) == [60, 120]


def test_no_result_is_an_empty_table(root):
    assert results_table(Workspace.open("smoke", root), [row("b", 60)], State(results={})).empty
