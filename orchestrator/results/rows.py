"""How a stored trial becomes one flat row.

The same flat form goes to MLflow (tags, params, metrics) and comes back from it, so that the table read from
MLflow and the table read from the store are equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from orchestrator.results import table as c
from orchestrator.results.records import MeasureRecord, TrialRecord
from orchestrator.results.store import FileKind, ResultStore
from search_spaces.errors import DataError
from search_spaces.specs import TrialSpec, pair_name
from tasks.trials.records import EpochRecord, EpochScore, TrialResult

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, str | int | float]
"""One line of the results table; every key is a name that :mod:`orchestrator.results.table` describes."""

Point = tuple[str, int, float, int]
"""A point of a curve: metric, step (epoch, number of results), value, milliseconds since 1970."""

MEASURED = {"attacks", "representation", "robustness"}
"""Fields of a trial's spec of which more may be asked for later."""


CURVE = "curve"
"""Kind, and beginning of the key, of runs that hold the curve of a model on a dataset over N."""
MOST_PARAM = 500
"""Letters of a param's value that every MLflow takes."""
PREDICTED = (c.TRIAL_ID, c.MODEL, c.RECIPE, c.DATASET, c.CLASS_PAIR, c.TRAIN_SIZE, c.SEED)
"""Columns that say of which trial a prediction is."""


@dataclass(frozen=True)
class FlatRun:
    """A trial with a result as MLflow keeps it.

    Attributes:
        run_key: The trial's id: the tag by which its run is found.
        tags: What it is; everything is text.
        params: Everything that was chosen, one entry per field.
        metrics: Final numbers; all finite.
        series: Points per epoch.
        started_ms: Start, milliseconds since 1970.
        finished_ms: End, likewise.
        metrics_ms: When the newest of ``metrics`` was made; of two values MLflow shows the later one.
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
    """What MLflow shows of a run without a result.

    Attributes:
        tags: Of its start, or of its failure; None where it is open already.
        at_ms: When that was, milliseconds since 1970.
        points: Of its curves, those that are not sent yet.
        failed: Whether its latest attempt has failed; otherwise it is running.
    """

    tags: Mapping[str, str] | None = None
    at_ms: int = 0
    points: tuple[Point, ...] = ()
    failed: bool = False


MeasureIndex = Mapping[tuple[str, int], MeasureRecord]
"""Stored measure records by subset id and train size."""


def trial_tags(trial: TrialSpec, domain: str | None, status: str, attempt: int) -> dict[str, str]:
    """Return the tags of a trial's run that are known when it starts, and its status."""
    network = trial.network
    prepared = network.subset.prepared
    return {
        c.TRIAL_ID: trial.trial_id,
        c.MODEL: network.model.name,
        c.RECIPE: network.recipe.name,
        c.DATASET: prepared.dataset,
        c.DOMAIN: domain or "",
        c.CLASS_PAIR: pair_name(network.subset.class_pair),
        c.TRAIN_SIZE: str(network.train_size),
        c.SEED: str(network.seed),
        c.DATA_MODE: prepared.data_mode,
        c.IMAGE_SIZE: str(prepared.image_size),
        c.CHANNELS: str(prepared.channels),
        c.STATUS: str(status),
        c.ATTEMPT: str(attempt),
    }


def flat_trial(record: TrialRecord, measures: MeasureIndex) -> FlatRun:
    """Return a stored trial as one flat run, with the measures of its subset at its train size joined."""
    network = record.spec.network
    tags = {
        **trial_tags(record.spec, record.domain, record.result.status, record.attempt),
        c.TRIAL_ID: record.trial_id,
        c.SWEEP: record.sweep,
        c.DATA_FINGERPRINT: record.data_fingerprint,
        c.CODE_VERSION: record.provenance.code_version,
        # Tags, not params: more may be measured on the same network later, and MLflow's params never change.
        **spelled_params(record.spec.model_dump(mode="json", include=MEASURED)),
    }
    if record.result.step_path:
        tags[c.STEP_PATH] = record.result.step_path
    if record.result.micro_batch is not None:
        tags[c.MICRO_BATCH] = str(record.result.micro_batch)
    metrics = trial_metrics(record.result, network.train_size)
    metrics[c.SHARED_GROUP_SHARE] = record.shared_group_share
    metrics[c.WALL_TIME_S] = record.finished_at - record.started_at
    newest = max(record.finished_at, record.measured_at or 0.0)
    measure = measures.get((network.subset.subset_id, network.train_size))
    if measure is not None and measure.data_fingerprint == record.data_fingerprint:
        tags["measure_id"] = measure.measure_id
        metrics.update(measure_metrics(measure, network.train_size))
        newest = max(newest, measure.finished_at)
    started, result = milliseconds(record.started_at), record.result
    epochs = [point for epoch in result.history for point in epoch_points(epoch, None, started)]
    scores = [point for score in result.test_history for point in epoch_points(None, score, started)]
    return FlatRun(
        record.trial_id,
        tags,
        spelled_params(network.model_dump(mode="json")),
        metrics,
        (*epochs, *scores),
        started,
        milliseconds(record.finished_at),
        milliseconds(newest),
    )


def curve_runs(trials: Iterable[FlatRun]) -> Iterator[FlatRun]:
    """Yield a run per model, recipe and dataset with the curve over N that their trials make.

    Its loss and accuracy at step N are means over class pairs and seeds. They are its param too, so that a
    curve that came to look otherwise is another run.
    """
    groups: dict[tuple[str, ...], dict[int, list[FlatRun]]] = {}
    for run in trials:
        sizes = groups.setdefault(tuple(run.tags[name] for name in (c.MODEL, c.RECIPE, c.DATASET)), {})
        sizes.setdefault(int(run.tags[c.TRAIN_SIZE]), []).append(run)
    for whose, sizes in groups.items():
        points = [
            (name, size, fmean(values), max(run.metrics_ms for run in runs))
            for size, runs in sorted(sizes.items())
            for name in (c.TEST_LOSS, c.TEST_ACCURACY)
            if (values := [run.metrics[name] for run in runs if name in run.metrics])
        ]
        tags = dict(zip((c.MODEL, c.RECIPE, c.DATASET), whose, strict=True)) | {"kind": CURVE}
        shown = " ".join(f"{size}:{value:.4g}" for name, size, value, _ in points if name == c.TEST_LOSS)
        times = [run.finished_ms for runs in sizes.values() for run in runs]
        if points:
            key = " ".join((CURVE, *whose))
            yield FlatRun(key, tags, {CURVE: shown[:MOST_PARAM]}, {}, (*points,), min(times), max(times))


def epoch_points(epoch: EpochRecord | None, score: EpochScore | None, at_ms: int) -> tuple[Point, ...]:
    """Return the points of one epoch: what training saw of it, and what the test images gave after it."""
    seen = ((epoch, (c.TRAIN_LOSS, c.TRAIN_ACCURACY)), (score, (c.TEST_LOSS, c.TEST_ACCURACY)))
    return tuple(
        (c.EPOCH_PREFIX + name, record.epoch, getattr(record, name), at_ms)
        for record, names in seen
        if record is not None
        for name in names
    )


def trial_metrics(result: TrialResult, train_size: int = 0) -> dict[str, float]:
    """Return a trial's numbers under their column names; undefined ones are absent, the result says why."""
    found: dict[str, float | None] = {c.ENERGY_J: result.energy_j}
    if (scores := result.scores) is not None:
        found.update({name: float(value) for name, value in scores if name != "classification"})
        if scores.classification is not None:
            for name in (c.AUC, c.BALANCED_ACCURACY, c.CALIBRATION_ERROR):
                found[name] = getattr(scores.classification, name)
        found[c.BEST_EPOCH] = result.best_epoch
    seconds = sum(epoch.seconds for epoch in result.history)
    if seconds > 0 and train_size:
        found[c.IMAGES_PER_SECOND] = train_size * len(result.history) / seconds
    if result.peak_memory_bytes:
        found[c.PEAK_MEMORY_BYTES] = result.peak_memory_bytes
    if (robustness := result.robustness) is not None:
        found[c.R_HAT_NOT_FOUND] = robustness.num_not_found
        if robustness.true is not None:
            found[c.R_HAT_TRUE] = robustness.true.mean
        if (pred := robustness.pred) is not None:
            found[c.R_HAT_PRED], found[c.R_HAT_PRED_PER_PIXEL] = pred.mean, pred.mean_per_pixel
            for name in ("std_error", "median", "geometric_mean"):
                found[f"{c.R_HAT_PRED}_{name}"] = getattr(pred, name)
    found.update({f"d_repr_{name}": estimate.value for name, estimate in result.d_repr.items()})
    for place, stage in enumerate(result.d_repr_stages, start=1):
        found.update({f"d_repr_{name}_stage{place}": e.value for name, e in stage.d_repr.items()})
    for attack in result.attacks:
        found.update({f"{attack.name}_{name}": getattr(attack, name) for name in c.ATTACK_QUANTITIES})
    return _finite(found)


def measure_metrics(record: MeasureRecord, train_size: int) -> dict[str, float]:
    """Return a measure's numbers at one train size under their column names; undefined ones are absent."""
    size = next((size for size in record.result.sizes if size.train_size == train_size), None)
    if size is None:
        return {}
    found: dict[str, float | None] = {
        c.NUM_DUPLICATES: size.num_duplicates,
        c.NUM_CONFLICTS: size.num_conflicts,
    }
    sharpness = size.label_sharpness
    if sharpness is not None:
        pixel_range = sharpness.convention.pixel_range
        found[c.LABEL_SHARPNESS] = sharpness.value
        found[c.SHARPNESS_PIXEL_RANGE] = None if pixel_range is None else pixel_range[1] - pixel_range[0]
        found[c.SHARPNESS_CHANNELS] = sharpness.convention.channels
        found[c.LABEL_SHARPNESS_MEAN] = (sharpness.percentiles or {}).get("mean")
        found[c.LABEL_SHARPNESS_PERMUTED] = sharpness.permuted
    for name in c.TABLE_ESTIMATORS:
        if name in size.d_data:
            found[f"d_data_{name}"] = size.d_data[name].value
            found[f"d_data_{name}_std_error"] = size.d_data[name].std_error
    if "mle" in size.d_data:
        curve = {
            point["num_neighbors"]: point["value"] for point in size.d_data["mle"].details.get("curve", ())
        }
        found.update({c.d_data_at(k): curve.get(k) for k in c.NEIGHBORS_TOO})
    return _finite(found)


def measure_rows(record: MeasureRecord) -> list[dict[str, str | int | float | None]]:
    """Return a stored measure as the rows of a table for people: one per train size, every estimator."""
    subset = record.spec.subset
    about = {c.DATASET: subset.prepared.dataset, c.CLASS_PAIR: pair_name(subset.class_pair)}
    rows: list[dict[str, str | int | float | None]] = []
    for size in record.result.sizes:
        sharpness = size.label_sharpness
        rows.append(
            {
                **about,
                c.TRAIN_SIZE: size.train_size,
                **{f"d_data_{name}": estimate.value for name, estimate in size.d_data.items()},
                c.LABEL_SHARPNESS: sharpness.value if sharpness else None,
                c.LABEL_SHARPNESS_P99: (sharpness.percentiles or {}).get("99") if sharpness else None,
                c.NUM_DUPLICATES: size.num_duplicates,
                c.NUM_CONFLICTS: size.num_conflicts,
            }
        )
    calibration = record.result.calibration
    if calibration is not None and calibration.value is not None and calibration.interval is not None:
        low, high = calibration.interval
        rows[-1][c.D_DATA_CALIBRATED] = f"{calibration.value:.3g} ({low:.3g} to {high:.3g})"
    return rows


def row_of(tags: Mapping[str, str], metrics: Mapping[str, float]) -> Row:
    """Return one row of the results table from a trial's tags and metrics."""
    row: Row = {}
    for column in c.COLUMNS:
        if column.kind == "text":
            row[column.name] = tags.get(column.name, "")
        elif column.kind == "integer" and column.name in tags:
            row[column.name] = int(tags[column.name])
    row.update({name: value for name, value in metrics.items() if not name.startswith(c.EPOCH_PREFIX)})
    return row


def rows_of(trials: Iterable[TrialRecord], measures: Iterable[MeasureRecord]) -> list[Row]:
    """Return the rows of stored trials, ordered by trial id."""
    index = index_measures(measures)
    flat = (flat_trial(record, index) for record in trials)
    return sorted((row_of(run.tags, run.metrics) for run in flat), key=lambda row: str(row[c.TRIAL_ID]))


def predictions_table(records: Iterable[TrialRecord], store: ResultStore) -> pd.DataFrame:
    """Return one row per trial and test image: what the trial is, ``image``, ``label`` and the logits.

    Args:
        records: Of trials; those without predictions have no rows.
        store: Where they are kept.

    Raises:
        DataError: when no trial has predictions.
        CorruptStoreError: when a trial's are gone or damaged.
    """
    import pandas as pd

    from tasks.trials.scores import from_parquet

    tables = []
    for record in sorted(records, key=lambda record: record.trial_id):
        if record.result.predictions is not None:
            kept = store.get(FileKind.PREDICTIONS, record.trial_id, record.result.predictions)
            (row,), table = rows_of([record], ()), from_parquet(kept)
            about = {name: [row[name]] * len(table) for name in PREDICTED}
            tables.append(pd.concat([pd.DataFrame(about), table], axis=1))
    if not tables:
        raise DataError(
            "No trial of this sweep has predictions",
            way_out="set predictions: true and run it again: where weights are kept, nothing is trained",
        )
    return pd.concat(tables, ignore_index=True)


def index_measures(measures: Iterable[MeasureRecord]) -> dict[tuple[str, int], MeasureRecord]:
    """Index measure records by subset id and train size; of two for one cell, the newer."""
    index: dict[tuple[str, int], MeasureRecord] = {}
    for record in sorted(measures, key=lambda record: record.finished_at):
        index.update({(record.spec.subset.subset_id, size): record for size in record.spec.train_sizes})
    return index


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


def _finite(found: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}
