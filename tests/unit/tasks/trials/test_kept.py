"""Kept weights, checkpoints, and what is measured later: the numbers of an undisturbed trial."""

import numpy as np
import pytest
import torch

from search_spaces.errors import CorruptStoreError
from search_spaces.specs import AttackSpec, RobustnessSpec
from tasks.trials.records import epochs_to_look_at
from tasks.trials.training import Checkpoints
from tasks.trials.trial import measure_trial, run_trial
from tasks.trials.weights import load_into, to_bytes
from tests.unit.tasks.trials.test_trial import data, trial_spec  # noqa: F401


class Shelf:
    """Keeps the latest bytes it was given."""

    def __init__(self):
        self.data = None
        self.num_saved = 0

    def read(self):
        return self.data

    def save(self, content):
        self.data, self.num_saved = content, self.num_saved + 1


def numbers(result):
    history = [(row.epoch, row.train_loss, row.train_accuracy) for row in result.history]
    return result.scores, result.d_repr, result.attacks, history, result.test_history, result.best_epoch


class Killed(Exception):
    pass


@pytest.mark.parametrize("architecture", ["small_cnn", "small_mlp"])
def test_a_killed_trial_goes_on_with_the_numbers_of_an_undisturbed_one(data, architecture):  # noqa: F811
    spec, shelf = trial_spec(architecture, epochs=12, dropout=0.2), Shelf()

    def every_epoch():
        return Checkpoints(shelf.read, shelf.save, interval_s=0.0)

    def kill(record):
        if record.epoch == 7:
            raise Killed("in epoch 7")

    with pytest.raises(Killed, match="in epoch 7"):
        run_trial(spec, data, on_epoch=kill, checkpoints=every_epoch())
    assert shelf.num_saved == 6
    trained = []
    resumed = run_trial(spec, data, on_epoch=lambda r: trained.append(r.epoch), checkpoints=every_epoch())
    assert trained == list(range(7, 13))
    assert numbers(resumed) == numbers(run_trial(spec, data))


def test_short_trials_write_no_checkpoint(data):  # noqa: F811
    shelf = Shelf()
    run_trial(trial_spec(epochs=3), data, checkpoints=Checkpoints(shelf.read, shelf.save))
    assert shelf.num_saved == 0


def test_a_broken_checkpoint_is_a_fresh_start(data):  # noqa: F811
    shelf = Shelf()
    shelf.data = b"not a checkpoint"
    spec = trial_spec(epochs=2)
    result = run_trial(spec, data, checkpoints=Checkpoints(shelf.read, shelf.save))
    assert numbers(result) == numbers(run_trial(spec, data))


def test_what_is_measured_later_equals_what_is_measured_at_once_and_trains_nothing(data, monkeypatch):  # noqa: F811
    few = trial_spec(epochs=3).model_copy(update={"attacks": AttackSpec(epsilons=(1.0,))})
    robustness = RobustnessSpec(num_images=5, num_steps=10)
    many = few.model_copy(
        update={
            "attacks": AttackSpec(methods=("fgsm", "pgd"), epsilons=(1.0, 4.0)),
            "robustness": robustness,
        }
    )
    assert few.trial_id == many.trial_id
    shelf = Shelf()
    first = run_trial(few, data, keep=lambda content: shelf.save(content) or "kept here")
    at_once = run_trial(many, data)
    monkeypatch.setattr("tasks.trials.trial.train", None)
    later = measure_trial(many, data, shelf.data, first, few.lacks(many))
    assert (later.scores, later.history, later.d_repr) == (first.scores, first.history, first.d_repr)
    assert [attack.name for attack in later.attacks] == ["fgsm_1", "fgsm_4", "pgd_1", "pgd_4"]
    assert later.attacks[0] == first.attacks[0]
    losses = {attack.name: attack.loss for attack in at_once.attacks}
    # Weights lie elsewhere in memory, where kernels may round differently.
    assert {attack.name: attack.loss for attack in later.attacks} == pytest.approx(losses, rel=1e-5)
    assert later.robustness.pred.mean == pytest.approx(at_once.robustness.pred.mean, rel=1e-3)
    assert few.lacks(few) == ()


def test_weights_of_another_network_are_refused(data):  # noqa: F811
    shelf = Shelf()
    first = run_trial(trial_spec(epochs=0), data, keep=shelf.save)
    other = trial_spec("small_mlp", epochs=0)
    with pytest.raises(CorruptStoreError, match="must be those of the network"):
        measure_trial(other, data, shelf.data, first, other.measurements)


def test_weights_come_back_to_the_last_bit():
    first, second = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    first.train()(torch.randn(4, 3, 2, 2))
    load_into(second, to_bytes(first))
    assert all(torch.equal(a, second.state_dict()[n]) for n, a in first.state_dict().items())


def test_layers_may_share_weights():
    shared = torch.nn.Linear(3, 3)
    first = torch.nn.Sequential(shared, torch.nn.ReLU(), shared)
    second = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU(), torch.nn.Linear(3, 3))
    load_into(second, to_bytes(first))
    assert torch.equal(second[0].weight, shared.weight)
    assert torch.equal(second[2].weight, shared.weight)


def test_a_full_disk_costs_the_weights_and_no_result(data):  # noqa: F811
    result = run_trial(trial_spec(epochs=1), data, keep=lambda content: "no room")
    assert (result.status, result.weights, result.weights_note) == ("done", None, "no room")


def test_about_ten_epochs_are_tested_and_never_the_last():
    assert epochs_to_look_at(100) == set(range(10, 100, 10))
    assert epochs_to_look_at(3) == {1, 2}
    assert epochs_to_look_at(0) == epochs_to_look_at(1) == set()


def test_looking_at_the_test_images_changes_no_weight(data, monkeypatch):  # noqa: F811
    spec = trial_spec(epochs=4, dropout=0.3)
    looked = run_trial(spec, data)
    monkeypatch.setattr("tasks.trials.trial.epochs_to_look_at", lambda num_epochs: frozenset())
    blind = run_trial(spec, data)
    assert (looked.scores, len(looked.test_history)) == (blind.scores, 3)
    best = min(looked.test_history, key=lambda score: score.test_loss)
    assert looked.best_epoch == best.epoch
    assert np.isfinite(best.test_loss)
