"""One trial of a search: validation scores after every epoch, and stopped or diverged results."""

import math
from dataclasses import replace

import pytest
import torch.nn.functional as F
from pydantic import ValidationError

from search_spaces.specs import TrialSpec
from tasks.trials.records import SearchResult, SearchStatus, capped
from tasks.trials.trial import run_search_trial, run_trial
from tests.unit.tasks.trials.conftest import network_spec


def network(**changes):
    return network_spec("small_mlp", epochs=4, **changes)


def test_the_loss_is_that_of_the_sweeps_own_trial_on_the_held_out_images(data):
    """Same network, same images: the search's validation loss is what a sweep would call test
    loss."""
    epochs, images, labels = [], data.train_images[:48], data.train_labels[:48]
    data = replace(data, train_images=images, train_labels=labels)
    result = run_search_trial(network(), data, on_epoch=lambda record: epochs.append(record.epoch))
    sweep_result = run_trial(TrialSpec(network=network()), data)
    assert result.status == SearchStatus.COMPLETE
    assert result.loss == pytest.approx(sweep_result.scores.test_loss, rel=1e-6)
    assert [score.epoch for score in result.curve] == epochs == [1, 2, 3, 4]
    assert (result.num_train, result.num_validation, result.epochs) == (48, 20, 4)
    assert result.chance_loss == pytest.approx(math.log(2))


def test_a_trial_that_diverges_is_a_result_with_a_finite_number(data, monkeypatch):
    loss = F.cross_entropy
    monkeypatch.setattr(
        "torch.nn.functional.cross_entropy", lambda *a, **k: loss(*a, **k) * float("nan")
    )
    result = run_search_trial(network(), data)
    assert result.status == SearchStatus.DIVERGED
    assert "training loss was nan in epoch 1" in result.reason
    assert result.loss is None
    assert result.capped_loss == pytest.approx(2 * math.log(2))
    assert result.epochs == 1


@pytest.mark.parametrize(
    ("loss_factor", "status"), [(1.0, SearchStatus.COMPLETE), (math.inf, SearchStatus.DIVERGED)]
)
def test_a_recipe_without_epochs_has_trained_no_epoch(data, monkeypatch, loss_factor, status):
    loss = F.cross_entropy
    monkeypatch.setattr(
        "torch.nn.functional.cross_entropy", lambda *a, **k: loss(*a, **k) * loss_factor
    )
    result = run_search_trial(network_spec("small_mlp", epochs=0), data)
    assert result.status == status
    assert result.epochs == 0


@pytest.mark.parametrize("loss", [1e14, math.inf, math.nan, None, 1.5])
def test_losses_worse_than_twice_chance_count_the_same(loss):
    assert capped(loss, math.log(2)) == pytest.approx(2 * math.log(2))


def test_results_that_contradict_themselves_are_refused():
    counts = {"epochs": 1, "num_train": 1, "num_validation": 1, "num_classes": 2}
    with pytest.raises(
        ValidationError, match="a trial that did not diverge must have validation losses"
    ):
        SearchResult(status="complete", curve=(), chance_loss=0.7, **counts)
