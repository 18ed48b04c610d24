"""Stored predictions: scikit-learn computes the scores of the record from them."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    log_loss,
    recall_score,
    roc_auc_score,
)

from search_spaces.errors import CorruptStoreError
from tasks.prepared.subsets import TrialData
from tasks.trials.records import TrialFile
from tasks.trials.scores import area_under_curve, classification_scores, from_parquet, to_parquet
from tasks.trials.trial import run_trial
from tests.unit.tasks.trials.conftest import trial_spec


def synthetic_data(num_classes):
    """Noise with a bright column by class, so weak that no network is right everywhere."""
    generator = np.random.default_rng(1)
    images = generator.integers(0, 120, (108, 1, 12, 12), dtype=np.uint8)
    labels = (np.arange(108) % num_classes).astype(np.int64)
    for image, label in zip(images, labels, strict=True):
        image[0, :, 4 * label : 4 * label + 2] += 18
    return TrialData(images[:48], labels[:48], images[48:], labels[48:], num_classes, "f")


def guo_calibration_error(probabilities, labels):
    """Guo et al. (ICML 2017), equation 3, with their 15 bins, image by image."""
    bins = {}
    for row, label in zip(probabilities, labels, strict=True):
        bins.setdefault(min(int(row.max() * 15), 14), []).append((row.max(), row.argmax() == label))
    gaps = [
        abs(
            sum(confidence for confidence, _ in bin_rows)
            - sum(is_correct for _, is_correct in bin_rows)
        )
        / len(labels)
        for bin_rows in bins.values()
    ]
    return sum(gaps)


@pytest.mark.parametrize("num_classes", [pytest.param(2, marks=pytest.mark.long), 3])
def test_all_scores_can_be_computed_from_the_predictions(num_classes):
    data, files, stored = synthetic_data(num_classes), [], TrialFile(sha256="0" * 64, num_bytes=1)
    spec = trial_spec(epochs=40)
    for is_requested in (False, True):
        requested_spec = spec.model_copy(update={"predictions": is_requested})
        result = run_trial(
            requested_spec, data, store_predictions=lambda content: files.append(content) or stored
        )
        assert (result.predictions, len(files)) == ((stored, 1) if is_requested else (None, 0))
    table = from_parquet(files[0])
    names = [f"logit_{place}" for place in range(num_classes)]
    assert list(table) == ["image", "label", *names]
    labels, logits = table["label"], table[names].to_numpy()
    assert logits.dtype == np.float32
    predicted_labels = logits.argmax(axis=1)
    scores, classification = result.scores, result.scores.classification
    assert 0.4 < scores.test_accuracy < 1.0  # otherwise the scores below would check nothing
    assert scores.test_accuracy == pytest.approx(
        accuracy_score(labels, predicted_labels), abs=1e-12
    )
    probabilities = softmax(logits.astype(float), axis=1)
    assert scores.test_loss == pytest.approx(log_loss(labels, probabilities), rel=1e-6)
    assert classification.balanced_accuracy == pytest.approx(
        balanced_accuracy_score(labels, predicted_labels), abs=1e-12
    )
    assert classification.per_class_accuracy == pytest.approx(
        recall_score(labels, predicted_labels, average=None), abs=1e-12
    )
    expected = (
        roc_auc_score(labels, logits[:, 1] - logits[:, 0])
        if num_classes == 2
        else roc_auc_score(labels, probabilities, multi_class="ovr")
    )
    assert classification.auc == pytest.approx(expected, abs=1e-9)
    assert classification.calibration_error == pytest.approx(
        guo_calibration_error(probabilities, labels), abs=1e-9
    )


def test_images_are_named_by_their_rows_where_these_are_known():
    logits = np.zeros((3, 2), np.float32)
    labels = np.array([0, 1, 1])
    assert from_parquet(to_parquet(logits, labels, np.array([7, 3, 9])))["image"].tolist() == [
        7,
        3,
        9,
    ]
    assert from_parquet(to_parquet(logits, labels, None))["image"].tolist() == [0, 1, 2]


def test_logits_come_back_to_the_last_bit_even_where_they_are_no_numbers():
    logits = np.array([[np.nan, -0.0], [np.inf, 1e-45]], np.float32)
    back = from_parquet(to_parquet(logits, np.array([0, 1]), None))[
        ["logit_0", "logit_1"]
    ].to_numpy()
    assert back.view(np.uint32).tolist() == logits.view(np.uint32).tolist()


def test_what_is_no_parquet_file_is_refused():
    with pytest.raises(
        CorruptStoreError,
        match="are not a Parquet file: Could not open Parquet input source '<Buffer>': Parquet magic",
    ):
        from_parquet(b"PAR1 or not")


def test_outputs_beyond_the_classes_are_wrong_answers():
    logits = np.array([[1.0, 0, 9], [0, 1.0, 9], [2.0, 0, 9], [0, 2.0, 9]])
    scores = classification_scores(logits, np.array([0, 1, 0, 1]), 2)
    assert (scores.balanced_accuracy, scores.per_class_accuracy, scores.auc) == (
        0.0,
        (0.0, 0.0),
        1.0,
    )


def test_a_saturated_network_still_has_an_area():
    labels = np.array([0, 0, 1, 1])
    logits = np.array([[0, -900.0], [0, -800.0], [0, -850.0], [0, 900.0]])
    assert classification_scores(logits, labels, 2).auc == 0.75  # probabilities are 0, 0, 0 and 1


def test_ties_count_half_and_a_missing_class_has_no_area():
    assert area_under_curve(np.array([1.0, 1.0, 2.0]), np.array([True, False, True])) == 0.75
    assert area_under_curve(np.array([1.0, 2.0]), np.array([True, True])) is None
    assert classification_scores(np.eye(2)[[0, 0]], np.array([0, 0]), 2).per_class_accuracy == (
        1.0,
        None,
    )
