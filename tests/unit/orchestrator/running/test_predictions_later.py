"""Test predictions that are requested after training: made from stored weights, and made again
if they are damaged."""

import pytest
from scipy.special import softmax
from sklearn.metrics import log_loss, roc_auc_score

import isweep
from orchestrator.machine.cluster import RunOptions
from orchestrator.planning.workspace import Workspace
from orchestrator.results.stored_results import StoredResults
from orchestrator.running.progress import Progress
from orchestrator.running.run import run_sweep
from search_spaces.errors import CorruptStoreError, DataError
from tests.small_sweep import small_sweep

pytestmark = pytest.mark.usefixtures("in_process")

RESOURCES = {"num_cpus": 2, "num_gpus": 0}
SWEEP = small_sweep("kept", train_sizes=[30, 40], num_neighbors=10, resources=RESOURCES)
MORE_MEASUREMENTS = {"predictions": True, "attacks.epsilons": [1.0, 2.0, 4.0, 8.0, 16.0]}


def test_predictions_requested_later_train_nothing_and_are_made_again_if_damaged(root, monkeypatch):
    monkeypatch.setattr("orchestrator.analysis.report.report_sweep", lambda *_: None)
    options = RunOptions(root=root, tracking=False)
    workspace = Workspace.open(SWEEP, root)
    workspace.make()
    blocked = workspace.sweep_paths.folder / "predictions"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where the folder should be")
    summary = run_sweep(SWEEP, options, changes={"predictions": True})
    assert (summary.pending, summary.exit_code) == (2, 1)
    before = StoredResults.read(workspace.results_url).trials
    for record in before.values():
        assert "predictions" in record.result.predictions_note  # all other results are stored
    sweep = isweep.open(SWEEP, root=root)
    with pytest.raises(
        DataError, match=r"No trial of this sweep has predictions. Add `predictions: true`"
    ):
        _ = sweep.predictions
    blocked.unlink()

    assert run_sweep(SWEEP, options, changes=MORE_MEASUREMENTS).exit_code == 0
    after = StoredResults.read(workspace.results_url).trials
    for trial_id, record in after.items():
        old_record = before[trial_id]
        assert record.result.attacks[:4] == old_record.result.attacks
        for field in ("scores", "history", "test_history", "d_repr", "seed", "weights"):
            assert getattr(record.result, field) == getattr(old_record.result, field)
        assert (record.attempt, record.started_at) == (1, old_record.started_at)
        assert record.measured_at is not None
    for trial_id, rows in isweep.open(
        sweep.workspace.plan.sweep, root=sweep.workspace.paths.root
    ).predictions.groupby("trial_id"):
        scores = before[trial_id].result.scores
        auc = roc_auc_score(rows["label"], rows["logit_1"] - rows["logit_0"])
        # Later passes may round differently if weights have another place in memory. Ranks do not
        # change.
        assert auc == pytest.approx(scores.classification.auc, abs=1e-9)
        assert log_loss(
            rows["label"], softmax(rows[["logit_0", "logit_1"]].to_numpy(), axis=1)
        ) == (pytest.approx(scores.test_loss, rel=1e-5))

    damaged, removed = sorted(workspace.sweep_paths.folder.glob("predictions/*.parquet"))
    content = {path: path.read_bytes() for path in (damaged, removed)}
    damaged.write_bytes(content[damaged][:-1] + b"x")
    with pytest.raises(
        CorruptStoreError,
        match=r"does not have the checksum in the trial's record.*\. Run the sweep again",
    ):
        _ = isweep.open(SWEEP, root=root).predictions
    removed.unlink()
    notes: list[str] = []
    progress = Progress()
    progress.note = notes.append  # type: ignore[method-assign]
    assert run_sweep(SWEEP, options, progress=progress, changes=MORE_MEASUREMENTS).exit_code == 0
    assert any(
        note.endswith("For 2 trials, isweep computes the predictions again from stored weights")
        for note in notes
    )
    assert {path: path.read_bytes() for path in content} == content

    for path in content:
        path.unlink()
    stored = StoredResults.read(workspace.results_url)
    first, second = sorted(stored.trials)
    result = stored.trials[first].result.model_copy(update={"weights": None})
    stored.trials[first] = stored.trials[first].model_copy(update={"result": result})
    assert stored.drop_damaged_predictions([first, second, "not trained"]) == (1, 1)
    assert set(stored.trials) == {second}
    assert stored.trials[second].result.predictions is None


@pytest.mark.long
def test_a_trial_with_damaged_predictions_and_damaged_weights_counts_as_trained_again(root, caplog):
    run_sweep(SWEEP, RunOptions(root=root, tracking=False), changes={"predictions": True})
    workspace = Workspace.open(SWEEP, root)
    stored = StoredResults.read(workspace.results_url)
    trial_id, other_id = sorted(stored.trials)
    predictions = workspace.sweep_paths.folder / "predictions" / f"{trial_id}.parquet"
    predictions.unlink()
    (weights,) = workspace.sweep_paths.folder.glob(f"weights/{trial_id}*")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert stored.drop_damaged_predictions([trial_id, other_id]) == (0, 1)
    assert set(stored.trials) == {other_id}
    for path in (predictions, weights):
        assert f"The stored file {path} is missing or damaged" in caplog.text
