"""The numbers of a stored trial or measure, under the names of their columns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from orchestrator.results.records import MeasureRecord
from tasks.trials.records import TrialResult

if TYPE_CHECKING:
    pass
from orchestrator.results.columns import (
    ATTACK_QUANTITIES,
    AUC,
    BALANCED_ACCURACY,
    BEST_EPOCH,
    CALIBRATION_ERROR,
    ENERGY_J,
    FURTHER_TEST_QUANTITIES,
    IMAGES_PER_SECOND,
    LABEL_SHARPNESS,
    LABEL_SHARPNESS_MEAN,
    LABEL_SHARPNESS_PERMUTED,
    MEAN_UNLIKE_DISTANCE,
    NEIGHBORS_TOO,
    NUM_CLASSES,
    NUM_CONFLICTS,
    NUM_DUPLICATES,
    PEAK_MEMORY_BYTES,
    R_HAT_NOT_FOUND,
    R_HAT_PRED,
    R_HAT_PRED_PER_PIXEL,
    R_HAT_TRUE,
    SHARPNESS_CHANNELS,
    SHARPNESS_PIXEL_RANGE,
    d_data_at,
    further_test_column,
)


def trial_metrics(result: TrialResult, train_size: int = 0) -> dict[str, float]:
    """Return a trial's numbers under their column names; undefined ones are absent, the result says
    why.
    """
    found: dict[str, float | None] = {ENERGY_J: result.energy_j}
    if (scores := result.scores) is not None:
        found.update({name: float(value) for name, value in scores if name != "classification"})
        if scores.classification is not None:
            for name in (AUC, BALANCED_ACCURACY, CALIBRATION_ERROR):
                found[name] = getattr(scores.classification, name)
            found[NUM_CLASSES] = len(scores.classification.per_class_accuracy)
        found[BEST_EPOCH] = result.best_epoch
    seconds = sum(epoch.seconds for epoch in result.history)
    if seconds > 0 and train_size:
        found[IMAGES_PER_SECOND] = train_size * len(result.history) / seconds
    if result.peak_memory_bytes:
        found[PEAK_MEMORY_BYTES] = result.peak_memory_bytes
    if (robustness := result.robustness) is not None:
        found[R_HAT_NOT_FOUND] = robustness.num_not_found
        if robustness.true is not None:
            found[R_HAT_TRUE] = robustness.true.mean
        if (pred := robustness.pred) is not None:
            found[R_HAT_PRED], found[R_HAT_PRED_PER_PIXEL] = pred.mean, pred.mean_per_pixel
            for name in ("std_error", "median", "geometric_mean"):
                found[f"{R_HAT_PRED}_{name}"] = getattr(pred, name)
    found.update({f"d_repr_{name}": estimate.value for name, estimate in result.d_repr.items()})
    for place, stage in enumerate(result.d_repr_stages, start=1):
        found.update({f"d_repr_{name}_stage{place}": e.value for name, e in stage.d_repr.items()})
    for test in result.further_tests:
        for name in FURTHER_TEST_QUANTITIES:
            found[further_test_column(test.name, name)] = getattr(test, name, None)
        if test.robustness is not None and test.robustness.pred is not None:
            found[further_test_column(test.name, R_HAT_PRED)] = test.robustness.pred.mean
    for attack in result.attacks:
        found.update({f"{attack.name}_{name}": getattr(attack, name) for name in ATTACK_QUANTITIES})
    return _finite(found)


def measure_metrics(record: MeasureRecord, train_size: int) -> dict[str, float]:
    """Return a measure's numbers at one train size under their column names; undefined ones are
    absent.
    """
    size = next((size for size in record.result.sizes if size.train_size == train_size), None)
    if size is None:
        return {}
    found: dict[str, float | None]
    found = {NUM_DUPLICATES: size.num_duplicates, NUM_CONFLICTS: size.num_conflicts}
    sharpness = size.label_sharpness
    if sharpness is not None:
        pixel_range = sharpness.convention.pixel_range
        found[LABEL_SHARPNESS] = sharpness.value
        found[SHARPNESS_PIXEL_RANGE] = (
            None if pixel_range is None else pixel_range[1] - pixel_range[0]
        )
        found[SHARPNESS_CHANNELS] = sharpness.convention.channels
        found[LABEL_SHARPNESS_MEAN] = (sharpness.percentiles or {}).get("mean")
        found[LABEL_SHARPNESS_PERMUTED] = sharpness.permuted
        found[MEAN_UNLIKE_DISTANCE] = sharpness.mean_unlike_distance
    for name in ("mle", "twonn"):
        if name in size.d_data:
            found[f"d_data_{name}"] = size.d_data[name].value
            found[f"d_data_{name}_std_error"] = size.d_data[name].std_error
    if "mle" in size.d_data:
        points = size.d_data["mle"].details.get("curve", ())
        curve = {point["num_neighbors"]: point["value"] for point in points}
        found.update({d_data_at(k): curve.get(k) for k in NEIGHBORS_TOO})
    return _finite(found)


def index_measures(measures: Iterable[MeasureRecord]) -> dict[tuple[str, int], MeasureRecord]:
    """Index measure records by subset id and train size; of two for one cell, the newer."""
    index: dict[tuple[str, int], MeasureRecord] = {}
    for record in sorted(measures, key=lambda record: record.finished_at):
        index.update(
            {(record.spec.subset.subset_id, size): record for size in record.spec.train_sizes}
        )
    return index


def _finite(found: Mapping[str, float | None]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in found.items()
        if value is not None and math.isfinite(value)
    }
