"""More asked of a finished sweep: measured on kept networks in the driver, without a cluster and training."""

import shutil
from functools import partial

import pytest
from scipy.special import softmax
from sklearn.metrics import log_loss, roc_auc_score

import isweep
from orchestrator.planning.plan import Workspace
from orchestrator.results.predictions import forget_damaged
from orchestrator.results.records import TrialRecord
from orchestrator.results.state import StoredResults
from orchestrator.results.store import WeightStore
from orchestrator.running.options import RunOptions
from orchestrator.running.progress import Progress
from orchestrator.running.run import prepare_missing, run_sweep
from search_spaces.errors import CorruptStoreError, DataError
from tasks.prepared.subsets import load_subset
from tasks.remote import InlineExecutor
from tasks.trials.trial import run_trial
from tests.unit.orchestrator.results.examples import measure_record, trial_record

SWEEP = {
    "name": "kept",
    "models": ["small_mlp"],
    "datasets": ["manifold_d4"],
    "train_sizes": [30, 40],
    "test_size": 20,
    "image_size": 16,
    "recipe": "smoke",
    "num_neighbors": 10,
}
MORE = {"attacks.epsilons": [1.0, 2.0, 4.0, 8.0, 16.0]}


class NoCluster(Exception):
    pass


@pytest.fixture
def trained(root: str, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A sweep whose networks are trained and kept, and neither Ray, a second training nor a report."""
    workspace = Workspace.open(SWEEP, root)
    workspace.paths.make()
    options = RunOptions(root=root)
    prepare_missing(workspace, list(workspace.plan.prepared), options, InlineExecutor(), Progress())
    workspace.look_again()
    stored, weights = StoredResults.read(workspace.results_url), WeightStore(workspace.results_url)
    for cell in workspace.plan.trials:
        network = cell.network
        prepared = workspace.prepared[network.subset.prepared.prepared_id]
        data = load_subset(prepared, network.subset, max_train_size=40)
        result = run_trial(cell, data, keep=partial(weights.save, cell.trial_id))
        stored.save(
            trial_record(
                result, spec=cell, trial_id=cell.trial_id, data_fingerprint=data.data_fingerprint, attempt=2
            )
        )
    (spec,) = workspace.plan.measures
    stored.save(measure_record(spec=spec, measure_id=spec.measure_id, data_fingerprint=data.data_fingerprint))

    def refuse(*_: object, **__: object) -> None:
        raise NoCluster("a cluster was asked for")

    monkeypatch.setattr("orchestrator.running.run.connect", refuse)
    monkeypatch.setattr("orchestrator.running.run.report_sweep", lambda *_: None)
    monkeypatch.setattr("tasks.trials.trial.train", refuse)
    return workspace


def records(workspace: Workspace) -> dict[str, TrialRecord]:
    return StoredResults.read(workspace.results_url).trials


def test_another_strength_starts_no_cluster_and_changes_no_number(trained: Workspace, root: str) -> None:
    before = records(trained)
    summary = run_sweep(SWEEP, RunOptions(root=root, tracking=False), changes=MORE)
    assert (summary.done, summary.planned, summary.exit_code) == (2, 2, 0)
    for trial_id, record in records(trained).items():
        old = before[trial_id]
        assert [attack.epsilon for attack in record.result.attacks] == MORE["attacks.epsilons"]
        assert record.result.attacks[:4] == old.result.attacks
        for field in ("scores", "history", "test_history", "d_repr", "seed", "weights"):
            assert getattr(record.result, field) == getattr(old.result, field)
        assert (record.attempt, record.started_at) == (2, old.started_at)
        assert record.measured_at is not None


def test_predictions_asked_for_later_train_nothing_and_give_the_recorded_scores(
    trained: Workspace, root: str
) -> None:
    before = records(trained)
    sweep = isweep.open(SWEEP, root=root)
    with pytest.raises(DataError, match="No trial of this sweep has predictions; set predictions: true"):
        _ = sweep.predictions
    changes = {"predictions": True}
    assert run_sweep(SWEEP, RunOptions(root=root, tracking=False), changes=changes).exit_code == 0
    table = sweep.refresh().predictions
    assert set(table["trial_id"]) == set(before)
    for trial_id, rows in table.groupby("trial_id"):
        scores = before[trial_id].result.scores
        auc = roc_auc_score(rows["label"], rows["logit_1"] - rows["logit_0"])
        # Later passes may round differently where weights lie elsewhere in memory; ties of ranks do not.
        assert auc == pytest.approx(scores.classification.auc, abs=1e-9)
        assert log_loss(rows["label"], softmax(rows[["logit_0", "logit_1"]].to_numpy(), axis=1)) == (
            pytest.approx(scores.test_loss, rel=1e-5)
        )
        (prepared,) = trained.prepared.values()
        assert prepared.labels[rows["image"]].tolist() == rows["label"].tolist()


def test_predictions_without_room_cost_no_result_and_are_made_by_the_next_run(
    trained: Workspace, root: str
) -> None:
    blocked = trained.sweep_paths.folder / "predictions"
    blocked.write_text("a file where the folder should be")
    asked = {**MORE, "predictions": True}
    summary = run_sweep(SWEEP, RunOptions(root=root, tracking=False), changes=asked)
    assert (summary.pending, summary.exit_code) == (2, 1)
    for record in records(trained).values():
        assert "predictions" in record.result.predictions_note
        assert len(record.result.attacks) == 5  # what was found beside them is kept
    blocked.unlink()
    assert run_sweep(SWEEP, RunOptions(root=root, tracking=False), changes=asked).exit_code == 0
    assert {record.result.predictions_note for record in records(trained).values()} == {""}


def test_damaged_predictions_are_never_shown_and_made_again_from_kept_weights(
    trained: Workspace, root: str
) -> None:
    options, asked = RunOptions(root=root, tracking=False), {"predictions": True}
    run_sweep(SWEEP, options, changes=asked)
    damaged, gone = sorted(trained.sweep_paths.folder.glob("predictions/*.parquet"))
    whole, before = {path: path.read_bytes() for path in (damaged, gone)}, records(trained)
    damaged.write_bytes(whole[damaged][:-1] + b"x")
    with pytest.raises(
        CorruptStoreError, match=r"must be whole.*checksum does not match.*run the sweep again"
    ):
        _ = isweep.open(SWEEP, root=root).predictions
    gone.unlink()
    progress = Progress()
    notes: list[str] = []
    progress.note = notes.append  # type: ignore[method-assign]
    assert run_sweep(SWEEP, options, progress=progress, changes=asked).exit_code == 0
    assert "Predictions gone or damaged: 2; made again from kept weights" in notes
    assert {path: path.read_bytes() for path in whole} == whole
    after = records(trained)
    assert {key: record.result.scores for key, record in after.items()} == (
        {key: record.result.scores for key, record in before.items()}
    )


def test_damaged_predictions_of_a_network_that_was_not_kept_count_as_not_done(
    trained: Workspace, root: str
) -> None:
    run_sweep(SWEEP, RunOptions(root=root, tracking=False), changes={"predictions": True})
    for path in trained.sweep_paths.folder.glob("predictions/*.parquet"):
        path.unlink()
    stored = StoredResults.read(trained.results_url)
    first, second = sorted(stored.trials)
    result = stored.trials[first].result.model_copy(update={"weights": None})
    stored.trials[first] = stored.trials[first].model_copy(update={"result": result})
    assert forget_damaged(stored, [first, second, "not trained"]) == (1, 1)
    assert set(stored.trials) == {second}
    assert stored.trials[second].result.predictions is None


def test_damaged_weights_are_left_to_the_cluster(trained: Workspace, root: str) -> None:
    first, second = sorted(records(trained))
    path = next(trained.sweep_paths.folder.rglob(f"{first}.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(NoCluster, match="asked for"):
        run_sweep(SWEEP, RunOptions(root=root, tracking=False), changes=MORE)
    assert {i: len(record.result.attacks) for i, record in records(trained).items()} == {first: 4, second: 5}


def test_networks_that_must_be_trained_bring_the_cluster_at_once(trained: Workspace, root: str) -> None:
    shutil.rmtree(trained.sweep_paths.folder / "trials" / sorted(records(trained))[0])
    with pytest.raises(NoCluster, match="asked for"):
        run_sweep(SWEEP, RunOptions(root=root, tracking=False), changes=MORE)
    assert [len(record.result.attacks) for record in records(trained).values()] == [4]


@pytest.mark.parametrize("change", [{"device": "cuda"}, {"long": True}])
def test_networks_of_cards_and_long_trainings_are_left_to_the_cluster(
    trained: Workspace, root: str, change: dict[str, object]
) -> None:
    stored = StoredResults.read(trained.results_url)
    for record in list(stored.trials.values()):
        timings = record.result.timings.model_copy(update={"train": 1e4 if "long" in change else 1.0})
        result = record.result.model_copy(update={"timings": timings, **change})
        stored.save(record.model_copy(update={"result": result}))
    with pytest.raises(NoCluster, match="asked for"):
        run_sweep(SWEEP, RunOptions(root=root, tracking=False), changes=MORE)
