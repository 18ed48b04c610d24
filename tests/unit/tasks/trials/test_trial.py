import json
import math
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import tasks.trials.trial
from search_spaces.errors import ConfigError, DataError
from search_spaces.specs import AttackSpec, RobustnessSpec
from tasks.trials.models import PixelModel, build_model
from tasks.trials.records import ComputeOptions, TrialResult
from tasks.trials.trial import run_trial
from tests.unit.tasks.trials.conftest import numbers, trial_spec

ATTACKS = ["fgsm_0.5", "fgsm_1", "fgsm_2", "fgsm_4", "fgsm_8"]


@pytest.fixture(scope="module")
def outcome(data):
    return run_trial(trial_spec(), data)


def names(result):
    return [attack.name for attack in result.attacks]


def test_a_trial_reports_all_requested_measurements(outcome):
    assert outcome.status == "done"
    assert outcome.scores.num_parameters > 0
    assert names(outcome) == ATTACKS
    assert not any(attack.reason for attack in outcome.attacks)
    assert set(outcome.d_repr) == {"mle", "twonn"}
    assert all(
        estimate.value > 0 and estimate.reason is None for estimate in outcome.d_repr.values()
    )
    assert all(seconds > 0 for name, seconds in outcome.timings if name != "robustness")
    assert [row.epoch for row in outcome.history] == list(range(1, 11))
    assert (outcome.device, outcome.num_threads, outcome.reason) == ("cpu", 1, "")
    assert outcome.seed == trial_spec().derived_seed
    assert outcome.peak_memory_bytes > 2**20
    assert outcome.scores.test_accuracy == 1.0
    assert outcome.scores.train_loss < 0.2
    record = outcome.attacks[-1]
    assert record.loss_gain == pytest.approx(record.loss - outcome.scores.test_loss, rel=1e-6)


def test_a_result_survives_json_and_pickling(outcome):
    text = outcome.text()
    assert json.loads(text) == outcome.plain()
    assert TrialResult.model_validate_json(text) == outcome
    assert pickle.loads(pickle.dumps(outcome)) == outcome


def test_results_of_a_spec_are_equal_bit_by_bit_whatever_ran_before(data, outcome):
    torch.manual_seed(12345)
    np.random.seed(7)  # noqa: NPY002 (other people's code does)
    torch.randn(100) @ torch.randn(100, 100)
    run_trial(trial_spec(train_size=30), data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.randn(8, 8) @ torch.randn(8, 8)
    assert numbers(run_trial(trial_spec(), data)) == numbers(outcome)


def test_only_the_first_rows_are_trained_on(data, outcome):
    images, labels = data.train_images.copy(), data.train_labels.copy()
    images[48:], labels[48:] = 0, 0
    changed = replace(data, train_images=images, train_labels=labels)
    assert numbers(run_trial(trial_spec(), changed)) == numbers(outcome)


def test_bytes_and_floats_of_the_same_pixels_give_the_same_numbers(data, outcome):
    train, test = (images.astype(np.float32) for images in (data.train_images, data.test_images))
    floats = replace(data, train_images=train, test_images=test)
    assert numbers(run_trial(trial_spec(), floats)) == numbers(outcome)


def test_no_epochs_leave_an_untrained_network_measured_and_attacked_without_a_warning(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as of read-only arrays
        untrained = run_trial(trial_spec(epochs=0), data)
    assert untrained.history == ()
    assert (set(untrained.d_repr), names(untrained)) == ({"mle", "twonn"}, ATTACKS)


def test_a_diverged_training_is_a_result_with_its_reason(data):
    # Pixels times 1e36 overflow float32 in the first layer's gradients.
    result = run_trial(
        trial_spec("small_mlp", input_scale=1e36, optimizer="sgd", learning_rate=10.0), data
    )
    assert (result.status, result.scores, result.d_repr, result.attacks) == (
        "diverged",
        None,
        {},
        (),
    )
    assert "loss" in result.reason
    assert all(math.isfinite(row.train_loss) for row in result.history)
    assert TrialResult.model_validate_json(result.text()) == result


def test_d_repr_of_too_few_images_is_absent_with_its_reason(data):
    result = run_trial(trial_spec(train_size=6, num_neighbors=10, epochs=1), data)
    assert result.status == "done"
    assert result.d_repr["mle"].value is None
    assert result.d_repr["mle"].reason


def test_d_repr_of_a_network_that_maps_all_images_to_one_point_is_absent(data, monkeypatch):
    def constant(*arguments, **options):
        model = build_model(*arguments, **options)
        for parameter in model.parameters():
            parameter.data.zero_()
        return model

    monkeypatch.setattr(tasks.trials.trial, "build_model", constant)
    result = run_trial(trial_spec(epochs=0), data)
    assert result.status == "done"
    assert set(result.d_repr) == {"mle", "twonn"}
    assert all(estimate.value is None and estimate.reason for estimate in result.d_repr.values())
    assert result.scores.test_loss == pytest.approx(math.log(2))
    assert [attack.num_unchanged for attack in result.attacks] == [20] * 5


def test_the_released_head_of_1000_logits_is_used_if_the_recipe_requests_it(data):
    result = run_trial(trial_spec("small_mlp", num_outputs=1000, epochs=0), data)
    assert result.scores.test_loss == pytest.approx(math.log(1000), rel=0.1)


def with_pixel(value):
    images = np.zeros((60, 1, 12, 12), np.float32)
    images[0, 0, 0, 0] = value
    return {"train_images": images}


REFUSED = {
    ("fewer logits than classes"): (
        {"num_outputs": 2},
        {"num_classes": 3},
        ("num_outputs is 2, but the data have 3 classes"),
    ),
    "more images than there are": (
        {"train_size": 61},
        {},
        "train_size is 61, but there are only 60 training images",
    ),
    "a pixel too bright": (
        {},
        with_pixel(300.0),
        (
            r"The pixels of the training images are between 0\.0 and 300\.0, but must be between 0 and 255"
        ),
    ),
    "a pixel that is none": (
        {},
        with_pixel(np.nan),
        (
            "The pixels of the training images are between nan and nan, but must be between 0 and 255"
        ),
    ),
    "labels from 1": (
        {},
        {"test_labels": np.arange(20) % 2 + 1},
        "The labels of the test images are between 1 and 2, but the classes are numbered from 0 to 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_refused(data, name):
    spec, changes, message = REFUSED[name]
    with pytest.raises((ConfigError, DataError), match=message):
        run_trial(trial_spec(**spec), replace(data, **changes))


@pytest.mark.parametrize(
    ("kind", "message", "size"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory", 0),
        (MemoryError, "DefaultCPUAllocator", 2**60),
    ],
)
def test_running_out_of_memory_escapes_with_its_own_type(data, monkeypatch, kind, message, size):
    def exhausted(*arguments, **options):
        torch.empty(size)
        raise kind(message)

    monkeypatch.setattr(tasks.trials.trial, "train", exhausted)
    with pytest.raises(kind, match=message):
        run_trial(trial_spec(), data)


KINDS_OF_PASS = (True, False), (False, False), (False, True)
"""Passes of training, an evaluation and an attack: whether the model trains, and whether pixels
have a gradient."""


def test_no_pass_is_larger_than_predicted_or_than_the_micro_batch(data, monkeypatch):
    """Training has batches of 16, an evaluation 16 and an attack 8. A micro-batch of 4 needs a
    quarter of each."""
    forward, passes = PixelModel.forward, []

    def count(model, pixels):
        passes.append((model.training, pixels.requires_grad, len(pixels)))
        return forward(model, pixels)

    monkeypatch.setattr(PixelModel, "forward", count)
    robustness = RobustnessSpec(num_images=20, num_steps=2, num_bisections=1)
    measurements = {
        "attacks": AttackSpec(methods=("fgsm", "pgd"), epsilons=(1.0,)),
        "robustness": robustness,
    }
    spec = trial_spec("small_mlp", epochs=4, test_loss="mean_of_batch_means").model_copy(
        update=measurements
    )
    runs = {}
    for micro_batch in (None, 4):
        passes.clear()
        result = run_trial(spec, data, ComputeOptions(micro_batch=micro_batch))
        largest = {
            kind: max(size for *modes, size in passes if tuple(modes) == kind)
            for kind in KINDS_OF_PASS
        }
        runs[micro_batch] = (largest, result)
        assert (names(result), len(result.robustness.radii)) == (["fgsm_1", "pgd_1"], 20)
    assert [list(largest.values()) for largest, _ in runs.values()] == [[16, 16, 8], [4, 4, 2]]
    scores, split_scores = (result.scores for _, result in runs.values())
    assert (split_scores.train_loss, split_scores.test_loss) == pytest.approx(
        (scores.train_loss, scores.test_loss), rel=1e-4
    )
