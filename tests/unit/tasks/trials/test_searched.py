"""One trial of a search: judged on validation images after every epoch, stopped or diverged as a result."""

import math

import numpy as np
import pytest
import torch.nn.functional as F
from pydantic import ValidationError

from search_spaces.specs import ModelSpec, NetworkSpec, PreparedSpec, RecipeSpec, SubsetSpec, TrialSpec
from tasks.prepared.subsets import TrialData
from tasks.trials.records import SearchResult, SearchStatus, capped
from tasks.trials.trial import run_search_trial, run_trial


def network(**changes) -> NetworkSpec:
    recipe = {"name": "test", "epochs": 4, "batch_size": 16, "learning_rate": 5e-3, "input_scale": 1 / 255}
    prepared = PreparedSpec(dataset="made_up", image_size=12, channels=1)
    return NetworkSpec(
        model=ModelSpec(name="small_mlp", library="isweep", architecture="small_mlp"),
        subset=SubsetSpec(prepared=prepared, test_size=20),
        train_size=48,
        recipe=RecipeSpec(**recipe | changes),
    )


@pytest.fixture(scope="module")
def data() -> TrialData:
    rng = np.random.default_rng(0)
    labels = np.arange(68) % 2
    images = rng.integers(0, 100, (68, 1, 12, 12)) + 100 * labels[:, None, None, None]
    images = images.astype(np.uint8)
    return TrialData(images[:48], labels[:48], images[48:], labels[48:], 2, "f")


def test_the_loss_is_that_of_the_sweeps_own_trial_on_the_held_out_images(data):
    """Same network, same images: the search's validation loss is what a sweep would call test loss."""
    found = run_search_trial(network(), data)
    swept = run_trial(TrialSpec(network=network()), data)
    assert found.status == SearchStatus.COMPLETE
    assert found.loss == pytest.approx(swept.scores.test_loss, rel=1e-6)
    assert [score.epoch for score in found.curve] == [1, 2, 3, 4]
    assert (found.num_train, found.num_validation, found.epochs) == (48, 20, 4)
    assert found.chance_loss == pytest.approx(math.log(2))


def test_every_epoch_is_told(data):
    told = []
    run_search_trial(network(), data, on_epoch=lambda record: told.append(record.epoch))
    assert told == [1, 2, 3, 4]


def test_a_trial_that_diverges_is_a_result_with_a_finite_number(data, monkeypatch):
    loss = F.cross_entropy
    monkeypatch.setattr("tasks.trials.training.F.cross_entropy", lambda *a, **k: loss(*a, **k) * float("nan"))
    found = run_search_trial(network(), data)
    assert found.status == SearchStatus.DIVERGED
    assert "training loss was nan in epoch 1" in found.reason
    assert found.loss is None
    assert found.capped_loss == pytest.approx(2 * math.log(2))
    assert found.epochs == 1


@pytest.mark.parametrize("loss", [1e14, math.inf, math.nan, None, 1.5])
def test_losses_worse_than_twice_chance_count_the_same(loss):
    assert capped(loss, math.log(2)) == pytest.approx(2 * math.log(2))


def test_a_huge_but_finite_loss_is_capped_and_kept(data):
    found = run_search_trial(network(optimizer="sgd", learning_rate=10.0, epochs=2), data)
    assert found.capped_loss <= 2 * math.log(2)
    if found.status == SearchStatus.COMPLETE:
        assert found.loss >= found.capped_loss


def test_results_that_contradict_themselves_are_refused():
    with pytest.raises(ValidationError, match="a trial that did not diverge has validation losses"):
        SearchResult(
            status="complete",
            epochs=1,
            curve=(),
            num_train=1,
            num_validation=1,
            num_classes=2,
            chance_loss=0.7,
        )
