"""Convert stored results to the flat form of MLflow: tags, params, metrics and curves.

The results table is built from the same form. So the table that is built from MLflow equals
the table that is built from the result store.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from orchestrator.results.columns import (
    ATTEMPT,
    CHANNELS,
    CLASS_PAIR,
    CODE_VERSION,
    DATA_FINGERPRINT,
    DATA_MODE,
    DATASET,
    DOMAIN,
    EPOCH_PREFIX,
    GPU,
    IMAGE_SIZE,
    MICRO_BATCH,
    MODEL,
    RECIPE,
    SEED,
    SHARED_GROUP_SHARE,
    STATUS,
    STEP_PATH,
    SWEEP,
    TEST_ACCURACY,
    TEST_LOSS,
    TEST_SIZE,
    TRAIN_ACCURACY,
    TRAIN_LOSS,
    TRAIN_SIZE,
    TRIAL_ID,
    WALL_TIME_S,
)
from orchestrator.results.metrics import measure_metrics, trial_metrics
from orchestrator.results.records import MeasureRecord, ResultRecord, TrialRecord
from search_spaces.specs import TrialSpec, pair_name
from tasks.trials.records import EpochRecord, EpochScore

CURVE = "curve"
"""Value of the tag ``kind`` of a run that has a learning curve. The key of such a run begins
with the same word."""
MAX_TAG_LENGTH = 5000
"""Largest number of characters in the value of a tag. Every MLflow server accepts tags of this
length."""


class CurvePoint(NamedTuple):
    """A point of a metric's curve.

    Attributes:
        metric: Name of the metric.
        step: Epoch, train size or number of finished trials.
        value: Value of the metric.
        at_ms: Time of the point, milliseconds since 1970.
    """

    metric: str
    step: int
    value: float
    at_ms: int


@dataclass(frozen=True)
class FlatRun:
    """A stored result in the flat form of an MLflow run.

    Attributes:
        run_key: Key of the run in MLflow, stored there as a tag. The key of a trial is its id.
        tags: Texts and integers. Unlike params, MLflow can change them later.
        params: The settings that define the trained network.
        metrics: Final value of each metric. All values are finite.
        series: Points of the metrics that are curves.
        started_ms: Start of the trial, milliseconds since 1970.
        finished_ms: End of the trial, milliseconds since 1970.
        metrics_ms: Time of the newest metric, milliseconds since 1970. MLflow shows the value
            with the latest time.
    """

    run_key: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    series: tuple[CurvePoint, ...] = ()
    started_ms: int = 0
    finished_ms: int = 0
    metrics_ms: int = 0


@dataclass(frozen=True)
class LiveRun:
    """An MLflow run of a trial without a result: a running trial, or a failed attempt.

    Attributes:
        tags: Tags that describe the start or the failure. None means that MLflow already has
            the tags.
        at_ms: Time of the start or failure, milliseconds since 1970.
        points: Points of curves that MLflow does not have yet.
        failed: True if the last attempt failed.
    """

    tags: Mapping[str, str] | None = None
    at_ms: int = 0
    points: tuple[CurvePoint, ...] = ()
    failed: bool = False


def trial_tags(trial: TrialSpec, domain: str | None, status: str, attempt: int) -> dict[str, str]:
    """Return the tags of a trial's run that are known when it starts.

    Args:
        trial: The trial.
        domain: Domain of the dataset, or None if the sweep sets no domain.
        status: Status of the trial.
        attempt: Number of the attempt, from 1.
    """
    network = trial.network
    prepared = network.subset.prepared
    return {
        TRIAL_ID: trial.trial_id,
        MODEL: network.model.name,
        RECIPE: network.recipe.name,
        DATASET: network.subset.dataset,
        DOMAIN: domain or "",
        CLASS_PAIR: pair_name(network.subset.class_pair),
        TRAIN_SIZE: str(network.train_size),
        TEST_SIZE: str(network.subset.test_size),
        SEED: str(network.seed),
        DATA_MODE: prepared.data_mode,
        IMAGE_SIZE: str(prepared.image_size),
        CHANNELS: str(prepared.channels),
        STATUS: str(status),
        ATTEMPT: str(attempt),
    }


def flat_trial(record: TrialRecord, measures: Mapping[tuple[str, int], MeasureRecord]) -> FlatRun:
    """Convert a stored trial to a flat run, with the measures of its training images.

    Args:
        record: The trial.
        measures: Result of :func:`.metrics.index_measures`. A measure of another prepared
            dataset is ignored.
    """
    network = record.spec.network
    result = record.result
    # These values are tags and not params, because a later run of the sweep may add
    # measurements. MLflow cannot change a param.
    requested = {"attacks", "representation", "robustness"}
    tags = flatten_params(record.spec.model_dump(mode="json", include=requested))
    if result.step_path:
        tags[STEP_PATH] = result.step_path
    if record.gpu_name:
        tags[GPU] = record.gpu_name
    if result.micro_batch is not None:
        tags[MICRO_BATCH] = str(result.micro_batch)
    metrics = trial_metrics(result, network.train_size)
    metrics[SHARED_GROUP_SHARE] = record.shared_group_share
    newest = max(record.finished_at, record.measured_at or 0.0)
    measure = measures.get((network.subset.subset_id, network.train_size))
    if measure is not None and measure.data_fingerprint == record.data_fingerprint:
        tags["measure_id"] = measure.measure_id
        metrics.update(measure_metrics(measure, network.train_size))
        newest = max(newest, measure.finished_at)
    started_ms = milliseconds(record.started_at)
    series: list[CurvePoint] = []
    for epoch in result.history:
        series += epoch_points(epoch, None, started_ms)
    for score in result.test_history:
        series += epoch_points(None, score, started_ms)
    return flat_run(record, tags, metrics, tuple(series), newest)


def flat_run(
    record: ResultRecord,
    tags: Mapping[str, str],
    metrics: dict[str, float],
    series: tuple[CurvePoint, ...],
    newest: float,
) -> FlatRun:
    """Convert a stored result to a flat run.

    Args:
        record: The result. Its spec, times and provenance are added to the run.
        tags: Tags besides spec, times and provenance.
        metrics: Numbers of the result.
        series: Points of the result's curves.
        newest: Time of the newest metric, seconds since 1970.
    """
    common_tags = {
        **trial_tags(record.spec, record.domain, record.result.status, record.attempt),
        TRIAL_ID: record.trial_id,
        SWEEP: record.sweep,
        DATA_FINGERPRINT: record.data_fingerprint,
        CODE_VERSION: record.provenance.code_version,
    }
    return FlatRun(
        run_key=record.trial_id,
        tags={**common_tags, **tags},
        params=flatten_params(record.spec.network.model_dump(mode="json")),
        metrics=metrics | {WALL_TIME_S: record.finished_at - record.started_at},
        series=series,
        started_ms=milliseconds(record.started_at),
        finished_ms=milliseconds(record.finished_at),
        metrics_ms=milliseconds(newest),
    )


def curve_runs(trials: Iterable[FlatRun]) -> Iterator[FlatRun]:
    """Yield one run per model, recipe and dataset with its learning curve.

    Loss and accuracy at step N are means over class pairs and seeds. The tag ``curve``
    contains the losses as text. MLflow cannot delete a point. So if a mean has changed, the
    curve needs a new run. If a curve only has more train sizes than before, its points are
    added to the old run.
    """
    runs_by_curve: defaultdict[tuple[str, ...], list[FlatRun]] = defaultdict(list)
    for run in trials:
        runs_by_curve[run.tags[MODEL], run.tags[RECIPE], run.tags[DATASET]].append(run)
    for names, runs in runs_by_curve.items():
        points = _curve_points(runs)
        if not points:
            continue
        losses = [
            f"{point.step}:{point.value:.10g}" for point in points if point.metric == TEST_LOSS
        ]
        tags = dict(zip((MODEL, RECIPE, DATASET), names, strict=True))
        tags["kind"] = CURVE
        tags[CURVE] = " ".join(losses)[:MAX_TAG_LENGTH]
        times = [run.finished_ms for run in runs]
        yield FlatRun(
            run_key=" ".join((CURVE, *names)),
            tags=tags,
            params={},
            metrics={},
            series=tuple(points),
            started_ms=min(times),
            finished_ms=max(times),
        )


def _curve_points(runs: Iterable[FlatRun]) -> list[CurvePoint]:
    """Return the points of the mean loss and the mean accuracy, ordered by train size."""
    runs_by_size: defaultdict[int, list[FlatRun]] = defaultdict(list)
    for run in runs:
        runs_by_size[int(run.tags[TRAIN_SIZE])].append(run)
    points = []
    for train_size, runs_of_size in sorted(runs_by_size.items()):
        newest_ms = max(run.metrics_ms for run in runs_of_size)
        for metric in (TEST_LOSS, TEST_ACCURACY):
            values = [run.metrics[metric] for run in runs_of_size if metric in run.metrics]
            if values:
                points.append(CurvePoint(metric, train_size, fmean(values), newest_ms))
    return points


def epoch_points(
    epoch: EpochRecord | None, score: EpochScore | None, at_ms: int
) -> tuple[CurvePoint, ...]:
    """Return the points of one epoch.

    Args:
        epoch: Training loss and accuracy. If None, leave them out.
        score: Test loss and accuracy after the epoch. If None, leave them out.
        at_ms: Time of the points, milliseconds since 1970.
    """
    points = []
    if epoch is not None:
        for name in (TRAIN_LOSS, TRAIN_ACCURACY):
            value = getattr(epoch, name)
            points.append(CurvePoint(EPOCH_PREFIX + name, epoch.epoch, value, at_ms))
    if score is not None:
        for name in (TEST_LOSS, TEST_ACCURACY):
            value = getattr(score, name)
            points.append(CurvePoint(EPOCH_PREFIX + name, score.epoch, value, at_ms))
    return tuple(points)


def flatten_params(spec: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Return the fields of a spec as text by dotted names. None becomes empty text."""
    params: dict[str, str] = {}
    for name, value in spec.items():
        if isinstance(value, dict):
            params.update(flatten_params(value, f"{prefix}{name}."))
        elif value is None:
            params[f"{prefix}{name}"] = ""
        else:
            params[f"{prefix}{name}"] = str(value)
    return params


def milliseconds(seconds: float) -> int:
    """Convert seconds to whole milliseconds."""
    return round(seconds * 1000)
