"""Return the numbers of a stored trial or measure by column of the results table.

An undefined number has no entry. The stored result says why the number is undefined.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from orchestrator.results.columns import (
    ATTACK_QUANTITIES,
    AUC,
    BALANCED_ACCURACY,
    BEST_EPOCH,
    CALIBRATION_ERROR,
    ENERGY_J,
    ESTIMATORS_WITHOUT_COLUMNS,
    FURTHER_TEST_QUANTITIES,
    IMAGES_PER_SECOND,
    LABEL_SHARPNESS,
    LABEL_SHARPNESS_MEAN,
    LABEL_SHARPNESS_PERMUTED,
    MEAN_UNLIKE_DISTANCE,
    NUM_CLASSES,
    NUM_CONFLICTS,
    NUM_DUPLICATES,
    NUM_EPOCHS,
    OTHER_NUM_NEIGHBORS,
    PEAK_MEMORY_BYTES,
    R_HAT_NOT_FOUND,
    R_HAT_PRED,
    R_HAT_PRED_PER_PIXEL,
    R_HAT_TRUE,
    SHARPNESS_CHANNELS,
    SHARPNESS_PIXEL_RANGE,
    columns_of_estimator,
    d_data_at,
    further_test_column,
)
from orchestrator.results.records import MeasureRecord
from tasks.measures.records import SizeRecord
from tasks.trials.records import TrialResult

Numbers = dict[str, float | None]
"""Numbers by column. None if a number is undefined."""


def trial_metrics(result: TrialResult, train_size: int = 0) -> dict[str, float]:
    """Return the metrics of a trial's result by column.

    Args:
        result: Result of the trial.
        train_size: Number of training images, from which the training speed is computed. If it
            is 0, the metrics do not contain the speed.
    """
    numbers: Numbers = {ENERGY_J: result.energy_j}
    numbers.update(_score_numbers(result))
    seconds = sum(epoch.seconds for epoch in result.history)
    if seconds > 0 and train_size:
        numbers[IMAGES_PER_SECOND] = train_size * len(result.history) / seconds
    if result.peak_memory_bytes:
        numbers[PEAK_MEMORY_BYTES] = result.peak_memory_bytes
    numbers.update(_robustness_numbers(result))
    numbers.update(_dimension_numbers(result))
    numbers.update(_further_test_numbers(result))
    for attack in result.attacks:
        for quantity in ATTACK_QUANTITIES:
            numbers[f"{attack.name}_{quantity}"] = getattr(attack, quantity)
    return _finite(numbers)


def _score_numbers(result: TrialResult) -> Numbers:
    """Return the losses, accuracies and other scores of the trained network."""
    scores = result.scores
    if scores is None:
        return {}
    numbers: Numbers = {name: float(value) for name, value in scores if name != "classification"}
    classification = scores.classification
    if classification is not None:
        for name in (AUC, BALANCED_ACCURACY, CALIBRATION_ERROR):
            numbers[name] = getattr(classification, name)
        numbers[NUM_CLASSES] = len(classification.per_class_accuracy)
    numbers[NUM_EPOCHS] = len(result.history)
    numbers[BEST_EPOCH] = result.best_epoch
    return numbers


def _robustness_numbers(result: TrialResult) -> Numbers:
    """Return the distances to the decision boundary."""
    robustness = result.robustness
    if robustness is None:
        return {}
    numbers: Numbers = {R_HAT_NOT_FOUND: robustness.num_not_found}
    if robustness.true is not None:
        numbers[R_HAT_TRUE] = robustness.true.mean
    predicted = robustness.pred
    if predicted is not None:
        numbers[R_HAT_PRED] = predicted.mean
        numbers[R_HAT_PRED_PER_PIXEL] = predicted.mean_per_pixel
        for statistic in ("std_error", "median", "geometric_mean"):
            numbers[f"{R_HAT_PRED}_{statistic}"] = getattr(predicted, statistic)
    return numbers


def _dimension_numbers(result: TrialResult) -> Numbers:
    """Return the intrinsic dimensions of the representations."""
    numbers: Numbers = {}
    for estimator, estimate in result.d_repr.items():
        numbers[f"d_repr_{estimator}"] = estimate.value
    for stage_number, stage in enumerate(result.d_repr_stages, start=1):
        for estimator, estimate in stage.d_repr.items():
            numbers[f"d_repr_{estimator}_stage{stage_number}"] = estimate.value
    return numbers


def _further_test_numbers(result: TrialResult) -> Numbers:
    """Return the scores on further test sets."""
    numbers: Numbers = {}
    for test in result.further_tests:
        for quantity in FURTHER_TEST_QUANTITIES:
            numbers[further_test_column(test.name, quantity)] = getattr(test, quantity, None)
        if test.robustness is not None and test.robustness.pred is not None:
            column = further_test_column(test.name, R_HAT_PRED)
            numbers[column] = test.robustness.pred.mean
    return numbers


def measure_metrics(record: MeasureRecord, train_size: int) -> dict[str, float]:
    """Return the numbers of a measure at one train size, or no numbers if it lacks this size."""
    for size in record.result.sizes:
        if size.train_size == train_size:
            numbers: Numbers = {
                NUM_DUPLICATES: size.num_duplicates,
                NUM_CONFLICTS: size.num_conflicts,
            }
            numbers.update(_sharpness_numbers(size))
            numbers.update(_data_dimension_numbers(size))
            return _finite(numbers)
    return {}


def _sharpness_numbers(size: SizeRecord) -> Numbers:
    sharpness = size.label_sharpness
    if sharpness is None:
        return {}
    largest_pixel = None
    if sharpness.convention.pixel_range is not None:
        low, high = sharpness.convention.pixel_range
        largest_pixel = high - low
    return {
        LABEL_SHARPNESS: sharpness.value,
        SHARPNESS_PIXEL_RANGE: largest_pixel,
        SHARPNESS_CHANNELS: sharpness.convention.channels,
        LABEL_SHARPNESS_MEAN: (sharpness.percentiles or {}).get("mean"),
        LABEL_SHARPNESS_PERMUTED: sharpness.permuted,
        MEAN_UNLIKE_DISTANCE: sharpness.mean_unlike_distance,
    }


def _data_dimension_numbers(size: SizeRecord) -> Numbers:
    numbers: Numbers = {}
    for estimator, estimate in size.d_data.items():
        if estimator not in ESTIMATORS_WITHOUT_COLUMNS:
            value, std_error = columns_of_estimator(estimator)
            numbers[value.name] = estimate.value
            numbers[std_error.name] = estimate.std_error
    if "mle" in size.d_data:
        points = size.d_data["mle"].details.get("curve", ())
        by_neighbors = {point["num_neighbors"]: point["value"] for point in points}
        for num_neighbors in OTHER_NUM_NEIGHBORS:
            numbers[d_data_at(num_neighbors)] = by_neighbors.get(num_neighbors)
    return numbers


def index_measures(measures: Iterable[MeasureRecord]) -> dict[tuple[str, int], MeasureRecord]:
    """Return the newest measure record of each subset id and train size."""
    index: dict[tuple[str, int], MeasureRecord] = {}
    for record in sorted(measures, key=lambda record: record.finished_at):
        for train_size in record.spec.train_sizes:
            index[record.spec.subset.subset_id, train_size] = record
    return index


def _finite(numbers: Mapping[str, float | None]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in numbers.items()
        if value is not None and math.isfinite(value)
    }
