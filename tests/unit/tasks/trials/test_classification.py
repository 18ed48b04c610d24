import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from tasks.trials.scores import area_under_curve, calibration_error, classification_scores


def example(num_classes, num_outputs=None, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, 200)
    logits = generator.normal(size=(200, num_outputs or num_classes)).astype(np.float32)
    logits[np.arange(200), labels] += 1
    return logits, labels


def softmax(logits):
    exponents = np.exp(logits.astype(np.float64))
    return exponents / exponents.sum(axis=1, keepdims=True)


def test_binary_scores_are_scikit_learns():
    logits, labels = example(2)
    scores = classification_scores(logits, labels, 2)
    assert scores.auc == pytest.approx(roc_auc_score(labels, softmax(logits)[:, 1]))
    assert scores.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)))
    assert scores.per_class_accuracy[1] == pytest.approx((logits.argmax(1) == labels)[labels == 1].mean())


def test_scores_of_several_classes_are_scikit_learns():
    logits, labels = example(4)
    scores = classification_scores(logits, labels, 4)
    assert scores.auc == pytest.approx(roc_auc_score(labels, softmax(logits), multi_class="ovr"))
    assert scores.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)))


def test_outputs_beyond_the_classes_are_wrong_answers():
    logits, labels = example(2, num_outputs=5)
    logits[:, 4] = 99
    scores = classification_scores(logits, labels, 2)
    assert (scores.balanced_accuracy, scores.per_class_accuracy) == (0.0, (0.0, 0.0))
    assert scores.auc > 0.5


def test_a_saturated_network_still_has_an_area():
    labels = np.array([0, 0, 1, 1])
    logits = np.array([[0, -900.0], [0, -800.0], [0, -850.0], [0, 900.0]])
    assert classification_scores(logits, labels, 2).auc == 0.75  # probabilities are 0, 0, 0 and 1


def test_ties_count_half_and_a_missing_class_has_no_area():
    assert area_under_curve(np.array([1.0, 1.0, 2.0]), np.array([True, False, True])) == 0.75
    assert area_under_curve(np.array([1.0, 2.0]), np.array([True, True])) is None
    assert classification_scores(np.eye(2)[[0, 0]], np.array([0, 0]), 2).per_class_accuracy == (1.0, None)


def test_calibration_error_by_hand():
    confidences, hits = np.array([0.61, 0.65, 0.95, 0.99]), np.array([True, False, True, True])
    # 15 bins: 0.61 and 0.65 share the tenth, 0.95 and 0.99 the last.
    assert calibration_error(confidences, hits) == pytest.approx(0.5 * (0.63 - 0.5) + 0.5 * (1 - 0.97))
