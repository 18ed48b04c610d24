"""Stored weights, checkpoints and later measurements give the numbers of an undisturbed trial."""

import numpy as np
import pytest
import torch
from torch import nn

from search_spaces.errors import CorruptStoreError
from search_spaces.specs import AttackSpec, RobustnessSpec
from tasks.trials.checkpoints import Checkpoints
from tasks.trials.records import EpochRecord, scored_epochs
from tasks.trials.steps import make_optimizer
from tasks.trials.trial import measure_trial, run_trial
from tasks.trials.weights import load_into, to_bytes
from tests.unit.tasks.trials.conftest import Killed, Shelf, equal, killed_at, numbers, trial_spec


@pytest.mark.parametrize("architecture", ["small_cnn", "small_mlp"])
def test_a_resumed_trial_has_the_numbers_of_an_undisturbed_one(data, architecture):
    spec, shelf = trial_spec(architecture, epochs=12, dropout=0.2), Shelf()

    def every_epoch():
        return Checkpoints(shelf.read, shelf.save, interval_s=0.0)

    with pytest.raises(Killed, match="in epoch 7"):
        run_trial(spec, data, on_epoch=killed_at(7), checkpoints=every_epoch())
    assert shelf.num_saved == 6
    trained = []
    resumed = run_trial(
        spec, data, on_epoch=lambda r: trained.append(r.epoch), checkpoints=every_epoch()
    )
    assert trained == list(range(7, 13))
    assert numbers(resumed) == numbers(run_trial(spec, data))


def test_a_broken_checkpoint_is_a_fresh_start_and_a_short_trial_writes_none(data):
    shelf, spec = Shelf(), trial_spec(epochs=2)
    shelf.data = b"not a checkpoint"
    result = run_trial(spec, data, checkpoints=Checkpoints(shelf.read, shelf.save))
    assert numbers(result) == numbers(run_trial(spec, data))
    assert shelf.num_saved == 0


def test_a_training_goes_on_by_graphs_where_it_was_plain_and_begins_anew_on_another_kind_of_device():
    model, shelf, order, cpu = nn.Linear(2, 2), Shelf(), torch.Generator(), torch.device("cpu")
    plain, captured = (
        make_optimizer(model, trial_spec().network.recipe, capturable=graphs)
        for graphs in (False, True)
    )
    model(torch.ones(1, 2)).sum().backward()
    plain.step()
    checkpoints = Checkpoints(shelf.read, shelf.save, interval_s=0.0)
    checkpoints.save_if_due([EpochRecord(1, 0.5, 0.5, 1.0)], model, plain, order, cpu)
    assert checkpoints.restore(model, captured, order, torch.device("cuda")) == []
    assert not captured.state
    assert len(checkpoints.restore(model, captured, order, cpu)) == 1
    assert captured.param_groups[0]["capturable"]
    assert torch.equal(
        captured.state[model.weight]["exp_avg"], plain.state[model.weight]["exp_avg"]
    )


def test_later_measurements_equal_those_after_training_and_train_nothing(data, monkeypatch):
    spec = trial_spec(epochs=3).model_copy(update={"attacks": AttackSpec(epsilons=(1.0,))})
    attacks = AttackSpec(methods=("fgsm", "pgd"), epsilons=(1.0, 4.0))
    additions = {"attacks": attacks, "robustness": RobustnessSpec(num_images=5, num_steps=10)}
    extended_spec = spec.model_copy(update=additions)
    assert spec.trial_id == extended_spec.trial_id
    shelf = Shelf()
    first = run_trial(spec, data, store_weights=lambda content: shelf.save(content) or "kept here")
    at_once = run_trial(extended_spec, data)
    monkeypatch.setattr("tasks.trials.trial.train", None)
    later = measure_trial(extended_spec, data, shelf.data, first, spec.missing_for(extended_spec))
    assert (later.scores, later.history, later.d_repr) == (
        first.scores,
        first.history,
        first.d_repr,
    )
    assert [attack.name for attack in later.attacks] == ["fgsm_1", "fgsm_4", "pgd_1", "pgd_4"]
    assert later.attacks[0] == first.attacks[0]
    losses = {attack.name: attack.loss for attack in at_once.attacks}
    # The weights have another address in memory, so kernels may round differently.
    assert {attack.name: attack.loss for attack in later.attacks} == pytest.approx(losses, rel=1e-5)
    assert later.robustness.pred.mean == pytest.approx(at_once.robustness.pred.mean, rel=1e-3)
    assert spec.missing_for(spec) == ()


def test_weights_of_another_network_are_refused(data):
    shelf = Shelf()
    first = run_trial(
        trial_spec(epochs=0), data, store_weights=lambda content: shelf.save(content) or "in memory"
    )
    mlp_spec = trial_spec("small_mlp", epochs=0)
    with pytest.raises(
        CorruptStoreError,
        match=r"stored weights do not fit this network: Error\(s\) in loading state_dict for PixelModel:\.",
    ):
        measure_trial(mlp_spec, data, shelf.data, first, mlp_spec.requests)


def test_stored_weights_are_restored_bit_by_bit_even_if_layers_share_them():
    shared = nn.Linear(3, 3)
    first = nn.Sequential(shared, nn.BatchNorm1d(3), shared)
    second = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    first.train()(torch.randn(4, 3))
    load_into(second, to_bytes(first))
    assert equal(first.state_dict(), second.state_dict())


def test_a_full_disk_costs_the_weights_and_no_result(data):
    result = run_trial(trial_spec(epochs=1), data, store_weights=lambda content: "no room")
    assert (result.status, result.weights, result.weights_note) == ("done", None, "no room")


def test_about_ten_epochs_are_tested_and_never_the_last():
    assert scored_epochs(100) == set(range(10, 100, 10))
    assert scored_epochs(3) == {1, 2}
    assert scored_epochs(0) == scored_epochs(1) == set()


def test_scores_of_test_images_during_training_change_no_weight(data, monkeypatch):
    spec = trial_spec(epochs=4, dropout=0.3)
    scored = run_trial(spec, data)
    monkeypatch.setattr("tasks.trials.trial.scored_epochs", lambda num_epochs: frozenset())
    unscored = run_trial(spec, data)
    assert (scored.scores, len(scored.test_history)) == (unscored.scores, 3)
    best = min(scored.test_history, key=lambda score: score.test_loss)
    assert scored.best_epoch == best.epoch
    assert np.isfinite(best.test_loss)
