"""The table holds what the store holds, wherever its rows were read."""

from types import SimpleNamespace

from orchestrator.analysis.reporting import results_table


def row(trial_id: str, train_size: int) -> dict[str, object]:
    return {
        "trial_id": trial_id,
        "dataset": "d",
        "class_pair": "",
        "model": "m",
        "train_size": train_size,
        "seed": 0,
    }


def test_tracked_rows_of_stale_results_are_left_out_and_sizes_are_in_order():
    """``b`` was made from other data than are prepared now, so the store no longer counts it as a result."""
    workspace = SimpleNamespace(state=lambda: SimpleNamespace(results={"a": {}, "c": {}}))
    table = results_table(workspace, [row("a", 120), row("b", 60), row("c", 60)])
    assert list(table["trial_id"]) == ["c", "a"]
    assert list(table["train_size"]) == [60, 120]


def test_no_result_is_an_empty_table():
    workspace = SimpleNamespace(state=lambda: SimpleNamespace(results={}))
    assert results_table(workspace, [row("b", 60)]).empty
