"""Stored results in the flat form in which MLflow keeps them: tags, params, metrics and curves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from orchestrator.results.records import MeasureRecord, ResultRecord, TrialRecord
from search_spaces.specs import TrialSpec, pair_name
from tasks.trials.records import EpochRecord, EpochScore

if TYPE_CHECKING:
    pass
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
    TRAIN_ACCURACY,
    TRAIN_LOSS,
    TRAIN_SIZE,
    TRIAL_ID,
    WALL_TIME_S,
)
from orchestrator.results.metrics import measure_metrics, trial_metrics

Point = tuple[str, int, float, int]
"""A point of a curve: metric, step (epoch, number of results), value, milliseconds since 1970."""

CURVE = "curve"
"""Kind, and beginning of the key, of runs that hold the curve of a model on a dataset over N."""

MOST_TAG = 5000
"""Letters of a tag's value that every MLflow takes."""


@dataclass(frozen=True)
class FlatRun:
    """A trial with a result as MLflow keeps it; times are in milliseconds since 1970.

    ``run_key``, the trial's id, is the tag by which its run is found. ``params`` are choices,
    ``metrics`` final finite numbers, the newest made at ``metrics_ms``: of two values MLflow shows
    the later one.
    """

    run_key: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    series: tuple[Point, ...] = ()
    started_ms: int = 0
    finished_ms: int = 0
    metrics_ms: int = 0


@dataclass(frozen=True)
class Live:
    """What MLflow shows of a run without a result: it is running, or its latest attempt has failed.

    ``tags`` are of its start or failure, None where it is open already; ``points`` are not sent
    yet.
    """

    tags: Mapping[str, str] | None = None
    at_ms: int = 0
    points: tuple[Point, ...] = ()
    failed: bool = False


def trial_tags(trial: TrialSpec, domain: str | None, status: str, attempt: int) -> dict[str, str]:
    """Return the tags of a trial's run that are known when it starts, and its status."""
    network, prepared = trial.network, trial.network.subset.prepared
    return {
        TRIAL_ID: trial.trial_id,
        MODEL: network.model.name,
        RECIPE: network.recipe.name,
        DATASET: network.subset.dataset,
        DOMAIN: domain or "",
        CLASS_PAIR: pair_name(network.subset.class_pair),
        TRAIN_SIZE: str(network.train_size),
        SEED: str(network.seed),
        DATA_MODE: prepared.data_mode,
        IMAGE_SIZE: str(prepared.image_size),
        CHANNELS: str(prepared.channels),
        STATUS: str(status),
        ATTEMPT: str(attempt),
    }


def flat_trial(record: TrialRecord, measures: Mapping[tuple[str, int], MeasureRecord]) -> FlatRun:
    """Return a stored trial as one flat run; its measures are joined from
    :func:`index_measures`.
    """
    network, result = record.spec.network, record.result
    # Tags, not params: more may be measured on the same network later, and MLflow's params never
    # change.
    measured = record.spec.model_dump(
        mode="json", include={"attacks", "representation", "robustness"}
    )
    tags = spelled_params(measured)
    if result.step_path:
        tags[STEP_PATH] = result.step_path
    if result.micro_batch is not None:
        tags[MICRO_BATCH] = str(result.micro_batch)
    metrics = trial_metrics(result, network.train_size) | {
        SHARED_GROUP_SHARE: record.shared_group_share
    }
    newest = max(record.finished_at, record.measured_at or 0.0)
    measure = measures.get((network.subset.subset_id, network.train_size))
    if measure is not None and measure.data_fingerprint == record.data_fingerprint:
        tags["measure_id"] = measure.measure_id
        metrics.update(measure_metrics(measure, network.train_size))
        newest = max(newest, measure.finished_at)
    started = milliseconds(record.started_at)
    epochs = [point for epoch in result.history for point in epoch_points(epoch, None, started)]
    scores = [
        point for score in result.test_history for point in epoch_points(None, score, started)
    ]
    return flat_run(record, tags, metrics, (*epochs, *scores), newest)


def flat_run(
    record: ResultRecord,
    tags: Mapping[str, str],
    metrics: dict[str, float],
    series: tuple[Point, ...],
    newest: float,
) -> FlatRun:
    """Return a stored result as one flat run: what all say, and these; ``newest`` metric in s since
    1970.
    """
    said = {
        **trial_tags(record.spec, record.domain, record.result.status, record.attempt),
        TRIAL_ID: record.trial_id,
        SWEEP: record.sweep,
        DATA_FINGERPRINT: record.data_fingerprint,
        CODE_VERSION: record.provenance.code_version,
    }
    return FlatRun(
        record.trial_id,
        {**said, **tags},
        spelled_params(record.spec.network.model_dump(mode="json")),
        metrics | {WALL_TIME_S: record.finished_at - record.started_at},
        series,
        milliseconds(record.started_at),
        milliseconds(record.finished_at),
        milliseconds(newest),
    )


def curve_runs(trials: Iterable[FlatRun]) -> Iterator[FlatRun]:
    """Yield a run per model, recipe and dataset with the curve over N that their trials make.

    Its loss and accuracy at step N are means over class pairs and seeds. Its tag has them too:
    MLflow forgets no point, so a curve with other means needs another run, and one with more N does
    not.
    """
    groups: dict[tuple[str, ...], dict[int, list[FlatRun]]] = {}
    for run in trials:
        sizes = groups.setdefault(tuple(run.tags[name] for name in (MODEL, RECIPE, DATASET)), {})
        sizes.setdefault(int(run.tags[TRAIN_SIZE]), []).append(run)
    for whose, sizes in groups.items():
        points = [
            (name, size, fmean(values), max(run.metrics_ms for run in runs))
            for size, runs in sorted(sizes.items())
            for name in (TEST_LOSS, TEST_ACCURACY)
            if (values := [run.metrics[name] for run in runs if name in run.metrics])
        ]
        tags = dict(zip((MODEL, RECIPE, DATASET), whose, strict=True)) | {"kind": CURVE}
        shown = " ".join(
            f"{size}:{value:.10g}" for name, size, value, _ in points if name == TEST_LOSS
        )
        tags[CURVE] = shown[:MOST_TAG]
        times = [run.finished_ms for runs in sizes.values() for run in runs]
        if points:
            key = " ".join((CURVE, *whose))
            yield FlatRun(key, tags, {}, {}, (*points,), min(times), max(times))


def epoch_points(
    epoch: EpochRecord | None, score: EpochScore | None, at_ms: int
) -> tuple[Point, ...]:
    """Return the points of one epoch: what training saw of it, and what the test images gave after
    it.
    """
    seen = ((epoch, (TRAIN_LOSS, TRAIN_ACCURACY)), (score, (TEST_LOSS, TEST_ACCURACY)))
    return tuple(
        (EPOCH_PREFIX + name, record.epoch, getattr(record, name), at_ms)
        for record, names in seen
        if record is not None
        for name in names
    )


def spelled_params(spec: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Return one entry of text per field of a spec, by its dotted name."""
    flat: dict[str, str] = {}
    for name, value in spec.items():
        if isinstance(value, dict):
            flat.update(spelled_params(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = "" if value is None else str(value)
    return flat


def milliseconds(seconds: float) -> int:
    """Return whole milliseconds."""
    return round(seconds * 1000)
