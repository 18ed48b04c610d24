"""Further test sets: a measurement on a trained network, or on its stored weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from orchestrator.results.columns import describe
from orchestrator.results.metrics import trial_metrics
from search_spaces.errors import DataError
from search_spaces.specs import FurtherTest, RobustnessSpec
from tasks.prepared.subsets import FurtherTestImages
from tasks.trials.models import build_model
from tasks.trials.records import TrialResult
from tasks.trials.trial import measure_trial, run_trial
from tasks.trials.weights import load_into
from tests.unit.tasks.trials.conftest import Shelf, numbers, trial_spec

NEAR = FurtherTest(name="near", parameters=(("blend", 0.4), ("reach", 0.05)))
NULL = FurtherTest(name="null", parameters=(("blend", 0.0),))


@pytest.fixture(scope="module")
def further_data(data):
    """Return data with two further test sets: three test images are inverted in one, none in the other."""
    images = data.test_images.copy()
    is_blended = np.zeros(len(images), dtype=bool)
    is_blended[[1, 4, 5]] = True
    images[is_blended] = 255 - images[is_blended]
    near_images = FurtherTestImages("near", images, is_blended)
    unchanged_images = FurtherTestImages(
        "null", data.test_images, np.zeros(len(images), dtype=bool)
    )
    return replace(data, further_tests=(near_images, unchanged_images))


@pytest.mark.long
def test_losses_of_moved_and_unmoved_images_are_those_of_a_forward_pass(further_data):
    spec = trial_spec(epochs=3).model_copy(
        update={"further_tests": (NEAR, NULL), "robustness": RobustnessSpec(num_images=5)}
    )
    shelf = Shelf()
    result = run_trial(
        spec, further_data, store_weights=lambda content: shelf.save(content) or "kept here"
    )
    network = spec.network
    model = build_model(
        network.model,
        num_outputs=2,
        in_channels=further_data.test_images.shape[1],
        image_size=further_data.test_images.shape[2],
        input_scale=network.recipe.input_scale,
        dropout=None,
        seed=0,
    )
    load_into(model, shelf.data)
    model.eval()
    near_images = further_data.further_tests[0]
    with torch.no_grad():
        logits = model(torch.from_numpy(near_images.images).float())
    labels = torch.from_numpy(further_data.test_labels)
    losses = functional.cross_entropy(logits, labels, reduction="none").numpy()
    correct = (logits.argmax(1) == labels).numpy()
    record, null = result.further_tests
    for rows, loss, accuracy in (
        (slice(None), record.loss, record.accuracy),
        (near_images.is_blended, record.moved_loss, record.moved_accuracy),
        (~near_images.is_blended, record.unmoved_loss, record.unmoved_accuracy),
    ):
        assert loss == pytest.approx(losses[rows].mean(), rel=1e-4)
        assert accuracy == pytest.approx(correct[rows].mean())
    assert record.num_moved == 3
    assert (null.num_moved, null.moved_loss, null.moved_accuracy) == (0, None, None)
    assert null.loss == pytest.approx(result.scores.test_loss, rel=1e-6)
    assert null.robustness == result.robustness
    assert record.robustness.rows == result.robustness.rows
    assert TrialResult.model_validate_json(result.text()) == result


def test_further_tests_are_measured_on_stored_weights_and_change_nothing_else(
    further_data, monkeypatch
):
    first_spec = trial_spec(epochs=3)
    second_spec = first_spec.model_copy(update={"further_tests": (NEAR,)})
    third_spec = first_spec.model_copy(update={"further_tests": (NEAR, NULL)})
    assert first_spec.trial_id == third_spec.trial_id
    shelf = Shelf()
    first = run_trial(
        first_spec, further_data, store_weights=lambda content: shelf.save(content) or "kept here"
    )
    at_once = run_trial(third_spec, further_data)
    assert first.further_tests == ()
    assert numbers(first.model_copy(update={"further_tests": at_once.further_tests})) == numbers(
        at_once
    )
    monkeypatch.setattr("tasks.trials.trial.train", None)
    second = measure_trial(
        second_spec, further_data, shelf.data, first, first_spec.missing_for(second_spec)
    )
    third = measure_trial(
        third_spec, further_data, shelf.data, second, second_spec.missing_for(third_spec)
    )
    assert [test.name for test in third.further_tests] == ["near", "null"]
    for actual, expected in zip(third.further_tests, at_once.further_tests, strict=True):
        assert actual.loss == pytest.approx(expected.loss, rel=1e-5)
    assert third.model_copy(update={"further_tests": ()}) == first


def test_columns_are_named_after_the_condition_and_described(further_data):
    spec = trial_spec(epochs=1).model_copy(
        update={"further_tests": (NEAR,), "robustness": RobustnessSpec(num_images=3)}
    )
    metrics = trial_metrics(run_trial(spec, further_data))
    further_metrics = {
        name: value for name, value in metrics.items() if name.startswith("test_on_")
    }
    assert further_metrics["test_on_near_num_moved"] == 3
    assert {
        "test_on_near_loss",
        "test_on_near_moved_accuracy",
        "test_on_near_unmoved_loss",
        "test_on_near_r_hat_pred",
    } <= set(further_metrics)
    for column in describe(further_metrics):
        assert column.origin == "network"
        assert "`near`" in column.meaning


def test_a_further_test_set_without_images_is_refused(data):
    spec = trial_spec(epochs=0).model_copy(update={"further_tests": (NEAR,)})
    with pytest.raises(
        DataError, match=r"no images for the further test set 'near'\. Remove the request"
    ):
        run_trial(spec, data)
