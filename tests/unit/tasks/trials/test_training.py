import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from search_spaces.errors import ConfigError
from search_spaces.fingerprint import derive_seed
from search_spaces.specs import RecipeSpec
from tasks.trials.evaluation import evaluate, evaluation_mode
from tasks.trials.image_tensors import to_device
from tasks.trials.steps import split_batches
from tasks.trials.training import train


def recipe(**changes):
    fields = {
        "name": "test",
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "weight_decay": 0.0,
    }
    return RecipeSpec(**fields | changes)


def linear(num_features=9, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(num_features, 2))


def blobs(num_images=40, seed=0):
    """Dark images of class 0 and bright ones of class 1, as bytes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % 2
    noise = torch.randint(0, 60, (num_images, 1, 3, 3), generator=generator)
    return (noise + 150 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels


def normed(*, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3, 2)
    )


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_sgd_training_equals_a_plain_loop_written_by_hand(decay):
    images, labels = blobs(10)
    images = images // 64
    model, weights = linear(), None
    settings = recipe(optimizer="sgd", learning_rate=0.01, weight_decay=decay, epochs=3)

    reference = linear().double()
    weights = [parameter.detach().clone() for parameter in reference.parameters()]
    velocity = [torch.zeros_like(weight) for weight in weights]
    order = torch.Generator().manual_seed(derive_seed("batch order", 7))
    expected = []
    for _ in range(3):
        total = num_correct = 0.0
        permutation = torch.randperm(10, generator=order).tolist()
        for start in range(0, 10, 4):
            rows = permutation[start : start + 4]
            x = images[rows].flatten(1).double()
            logits = x @ weights[0].T + weights[1]
            probabilities = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
            onehot = F.one_hot(labels[rows], 2).double()
            total += -(probabilities.log() * onehot).sum().item()
            num_correct += (logits.argmax(1) == labels[rows]).sum().item()
            error = (probabilities - onehot) / len(rows)
            for index, gradient in enumerate((error.T @ x, error.sum(0))):
                velocity[index] = 0.9 * velocity[index] + gradient + decay * weights[index]
                weights[index] = weights[index] - 0.01 * velocity[index]
        expected.append((total / 10, num_correct / 10))

    history = train(model, images, labels, settings, seed=7)
    assert [record.epoch for record in history] == [1, 2, 3]
    for record, (loss, accuracy) in zip(history, expected, strict=True):
        assert record.train_loss == pytest.approx(loss, rel=1e-5)
        assert record.train_accuracy == accuracy
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(parameter.double(), weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16_unscaled"])
def test_a_separable_set_is_learned(optimizer, precision):
    images, labels = blobs()
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(9), nn.Linear(9, 2))
    settings = {"epochs": 8, "learning_rate": 1e-2 if optimizer == "sgd" else 5e-2}
    train(
        model, images, labels, recipe(optimizer=optimizer, precision=precision, **settings), seed=0
    )
    assert evaluate(model, images, labels).accuracy == 1.0


def test_evaluation_is_float32_whatever_training_was():
    images, labels = blobs()
    model = linear()
    train(model, images, labels, recipe(precision="bfloat16"), seed=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    expected = F.cross_entropy(model(images.float()), labels).item()
    assert evaluate(model, images, labels).loss == pytest.approx(expected, rel=1e-6)


def test_every_image_is_in_exactly_one_batch_and_a_lone_last_image_joins_the_batch_before():
    for num_images in range(2, 30):
        for batch_size in range(1, 12):
            batches = split_batches(torch.arange(num_images), batch_size)
            assert torch.cat(batches).tolist() == list(range(num_images))
            sizes = [len(batch) for batch in batches]
            assert set(sizes[:-1]) <= {batch_size}
            assert sizes[-1] <= batch_size + 1
            assert batch_size == 1 or min(sizes) >= 2


def test_batch_norm_with_a_batch_size_of_one_is_refused():
    images, labels = blobs(4)
    with pytest.raises(
        ConfigError,
        match="`batch_size` is 1, but the network has batch norm, which needs two images per",
    ):
        train(normed(), images, labels, recipe(batch_size=1), seed=0)
    assert len(train(linear(), images, labels, recipe(batch_size=1), seed=0)) == 2


def test_loss_is_the_mean_over_examples_or_the_released_mean_of_batch_means():
    images, labels = blobs(66)
    model = linear()
    losses = (
        F.cross_entropy(model(images.float()), labels, reduction="none").detach().double().numpy()
    )
    by_example = sum(losses) / 66
    by_batch = (sum(losses[:64]) / 64 + sum(losses[64:]) / 2) / 2
    assert evaluate(model, images, labels).loss == pytest.approx(by_example, rel=1e-6)
    released = evaluate(model, images, labels, loss_rule="mean_of_batch_means")
    assert released.loss == pytest.approx(by_batch, rel=1e-6)
    assert abs(by_batch - by_example) > 1e-4 * by_example


def test_a_loss_that_is_no_number_ends_training_with_a_diverged_record():
    images, labels = blobs()
    model, calls = linear(), []
    model[1].weight.data.fill_(math.inf)
    history = train(model, images, labels, recipe(epochs=5), seed=0, on_epoch=calls.append)
    assert [record.diverged for record in history] == [True]
    assert not math.isfinite(history[0].train_loss)
    assert calls == []


def test_evaluation_restores_the_mode_of_every_module():
    model = normed()
    model[1].eval()
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [model.training, model[0].training, model[1].training] == [True, True, False]


def test_a_read_only_array_is_shared_without_a_warning_and_never_written():
    array = np.arange(2 * 9, dtype=np.uint8).reshape(2, 1, 3, 3)
    array.setflags(write=False)
    tensor = to_device(array)
    assert tensor.data_ptr() == array.ctypes.data
    labels = torch.tensor([0, 1])
    before = array.copy()
    train(linear(), tensor, labels, recipe(), seed=0)
    evaluate(linear(), tensor, labels)
    assert np.array_equal(array, before)
