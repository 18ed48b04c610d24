"""Measuring every subset of a plan once, as Ray tasks, at all its train sizes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.results.records import MeasureRecord
from orchestrator.results.tracking.provenance import provenance
from search_spaces.specs import DatasetSpec, MeasureSpec

if TYPE_CHECKING:
    from tasks.prepared.subsets import TrialData
    from tasks.remote import Executor

PIXEL_RANGE = (0.0, 255.0)
"""Of all prepared images, also of those stored as float32."""


def measure_subset(
    spec: MeasureSpec, data: TrialData, dataset: DatasetSpec, executor: Executor
) -> MeasureRecord:
    """Return the stored record of one subset's intrinsic dimension and label sharpness.

    Args:
        spec: What to measure.
        data: The subset's arrays; the train images in nested order are measured, the test images are not.
        dataset: What the images are.
        executor: Runs the block tasks.

    Raises:
        DataError: for images that cannot be measured (not finite, one class only).
    """
    from tasks.measures.measure import MeasureSettings, measure_nested

    started_at = time.time()
    num_rows = max(spec.train_sizes)
    settings = MeasureSettings(
        num_neighbors=spec.num_neighbors,
        estimators=spec.estimators,
        sharpness_sample=spec.sharpness_sample,
        sharpness_seeds=spec.sharpness_seeds,
        pixel_range=PIXEL_RANGE,
        calibrate=spec.calibrate,
        discard_fraction=spec.subset.twonn_discard_fraction,
        seed=spec.derived_seed % 2**32,
    )
    measured = measure_nested(
        np.asarray(data.train_images[:num_rows]),
        np.asarray(data.train_labels[:num_rows]),
        spec.train_sizes,
        executor=executor,
        settings=settings,
    )
    return MeasureRecord(
        measure_id=spec.measure_id,
        spec=spec,
        result=measured,
        domain=dataset.domain,
        data_fingerprint=data.data_fingerprint,
        provenance=provenance(),
        started_at=started_at,
        finished_at=time.time(),
    )
