"""MLflow beside the store: the store's numbers are used, and whatever MLflow shows otherwise is said."""

import pytest

from orchestrator.results.tracking import Difference, compare


def row(trial_id: str, **values: object) -> dict[str, object]:
    return {"trial_id": trial_id, "model": "m", "test_loss": 0.5, **values}


def test_equal_rows_say_nothing():
    comparison = compare([row("a"), row("b")], [row("b"), row("a")])
    assert comparison.sentences("mend") == []


@pytest.mark.parametrize(
    ("shown", "column", "tracked"),
    [
        ({"test_loss": 0.4}, "test_loss", 0.4),
        ({"model": "other"}, "model", "other"),
        ({"data_fingerprint": "x"}, "data_fingerprint", "x"),
    ],
)
def test_every_cell_that_differs_is_found(shown, column, tracked):
    comparison = compare([row("a"), row("b")], [row("a"), row("b", **shown)])
    stored = row("b").get(column)
    assert comparison.differences == (Difference("b", column, stored, tracked),)
    (said,) = comparison.sentences("isweep reconcile mine")
    assert "MLflow differs from the result store in 1 values of 1 trials" in said
    assert f"b {column}: {tracked!r}, stored {'nothing' if stored is None else repr(stored)}" in said
    assert "the store's are used. Mend MLflow with `isweep reconcile mine`" in said


def test_a_value_that_mlflow_lacks_is_a_difference():
    lacking = {"trial_id": "a", "model": "m"}
    assert compare([row("a")], [lacking]).differences == (Difference("a", "test_loss", 0.5, None),)


def test_somebodys_own_column_in_mlflow_is_none():
    assert compare([row("a")], [row("a", my_note=1.0)]).differences == ()


def test_trials_on_one_side_only_are_counted():
    said = " ".join(compare([row("a"), row("b")], [row("b"), row("c")]).sentences("mend"))
    assert "MLflow lacks 1 results that the store has: send them with `mend`" in said
    assert "MLflow shows 1 trials of which the sweep, as it is planned now, has no result; left out" in said
