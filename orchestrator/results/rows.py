"""What is stored of a trial or measure, and how a stored trial becomes one flat row.

The same flat form goes to MLflow (tags, params, metrics) and comes back from it, so that the table read
from MLflow and the table read from the store are equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from orchestrator.results.store import Record
from search_spaces.fingerprint import fingerprint
from search_spaces.specs import DatasetSpec, MeasureSpec, TrialSpec, pair_name

TEXT_TAGS = (
    "trial_id",
    "sweep",
    "model",
    "dataset",
    "domain",
    "class_pair",
    "data_mode",
    "status",
    "data_fingerprint",
    "code_version",
)
LASTING = {
    *("d_data_mle", "d_data_mle_std_error", "d_data_twonn", "d_data_twonn_std_error", "label_sharpness"),
    *("sharpness_pixel_range", "sharpness_channels", "num_duplicates", "num_conflicts"),
    *("shared_group_share", "wall_time_s"),
}
"""Metrics that a diverged trial has too: those of its data."""
NUMBER_TAGS = ("train_size", "seed", "image_size", "channels", "attempt")


@dataclass(frozen=True)
class FlatRun:
    """A trial or measure as MLflow keeps it.

    Attributes:
        run_key: ``trial_id`` or ``measure_id``: the tag by which its run is found.
        kind: ``"trial"`` or ``"measure"``.
        tags: What it is; everything is text.
        params: Everything that was chosen, one entry per field.
        metrics: Final numbers; all finite.
        series: ``(metric, step, value, milliseconds)`` per epoch or per train size.
        content: Fingerprint of all of it: equal content need not be sent again.
        started_ms: Start, milliseconds since 1970.
        finished_ms: End, likewise.
        metrics_ms: When the newest of ``metrics`` was made; of two values MLflow shows the later one.
    """

    run_key: str
    kind: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    series: tuple[tuple[str, int, float, int], ...] = ()
    started_ms: int = 0
    finished_ms: int = 0
    metrics_ms: int = 0
    content: str = field(default="")


def trial_record(
    spec: TrialSpec,
    outcome: Record,
    *,
    sweep: str,
    dataset: DatasetSpec,
    data_fingerprint: str,
    attempt: int,
    provenance: Record,
    started_at: float,
    finished_at: float,
) -> Record:
    """Return the plain JSON that ``result.json`` seals: identity, outcome, and where it came from."""
    return {
        "trial_id": spec.trial_id,
        "sweep": sweep,
        "spec": spec.model_dump(mode="json"),
        "domain": dataset.domain,
        "data_fingerprint": data_fingerprint,
        "attempt": attempt,
        "started_at": started_at,
        "finished_at": finished_at,
        "provenance": provenance,
        **outcome,
    }


def measure_record(
    spec: MeasureSpec,
    measures: Record,
    *,
    dataset: DatasetSpec,
    data_fingerprint: str,
    provenance: Record,
    started_at: float,
    finished_at: float,
) -> Record:
    """Return the plain JSON that a measure's ``result.json`` seals."""
    return {
        "measure_id": spec.measure_id,
        "spec": spec.model_dump(mode="json"),
        "domain": dataset.domain,
        "data_fingerprint": data_fingerprint,
        "started_at": started_at,
        "finished_at": finished_at,
        "provenance": provenance,
        "measures": measures,
    }


MeasureIndex = Mapping[tuple[str, int], Record]
"""Stored measure records by subset id and train size."""


def flat_trial(record: Record, measures: MeasureIndex) -> FlatRun:
    """Return a stored trial as one flat run, with the measures of its subset at its train size joined.

    Args:
        record: A trial's stored record.
        measures: From :func:`index_measures`.
    """
    spec = TrialSpec.model_validate(record["spec"], strict=False)
    prepared = spec.subset.prepared
    tags = {
        "trial_id": spec.trial_id,
        "sweep": str(record["sweep"]),
        "model": spec.model.name,
        "dataset": prepared.dataset,
        "domain": str(record["domain"]),
        "class_pair": pair_name(spec.subset.class_pair),
        "train_size": str(spec.train_size),
        "seed": str(spec.seed),
        "data_mode": prepared.data_mode,
        "image_size": str(prepared.image_size),
        "channels": str(prepared.channels),
        "status": str(record["status"]),
        "attempt": str(record["attempt"]),
        "data_fingerprint": str(record["data_fingerprint"]),
        "code_version": str(record["provenance"].get("code_version", "unknown")),
    }
    metrics = dict(record.get("metrics", {}))
    metrics["shared_group_share"] = record.get("shared_group_share", 0.0)
    metrics["wall_time_s"] = record["finished_at"] - record["started_at"]
    newest = record["finished_at"]
    measure = measures.get((spec.subset.subset_id, spec.train_size))
    if measure is not None and measure["data_fingerprint"] == record["data_fingerprint"]:
        tags["measure_id"] = measure["measure_id"]
        metrics.update(measure_metrics(measure, spec.train_size))
        newest = max(newest, measure["finished_at"])
    series = tuple(
        (f"epoch_{name}", int(epoch["epoch"]), float(epoch[name]), _milliseconds(record["started_at"]))
        for epoch in record.get("history", ())
        for name in ("train_loss", "train_accuracy")
        if _is_finite(epoch.get(name))
    )
    return _sealed(
        FlatRun(
            spec.trial_id,
            "trial",
            tags,
            _params(record["spec"]),
            {name: float(value) for name, value in metrics.items() if _is_finite(value)},
            series,
            _milliseconds(record["started_at"]),
            _milliseconds(record["finished_at"]),
            _milliseconds(newest),
        )
    )


def flat_measure(record: Record) -> FlatRun:
    """Return a stored measure as one flat run; its numbers per train size are a series with step N."""
    spec = MeasureSpec.model_validate(record["spec"], strict=False)
    tags = {
        "measure_id": spec.measure_id,
        "dataset": spec.subset.prepared.dataset,
        "domain": str(record["domain"]),
        "class_pair": pair_name(spec.subset.class_pair),
        "data_mode": spec.subset.prepared.data_mode,
        "data_fingerprint": str(record["data_fingerprint"]),
        "code_version": str(record["provenance"].get("code_version", "unknown")),
    }
    series = tuple(
        (name, size, value, _milliseconds(record["finished_at"]))
        for size in spec.train_sizes
        for name, value in measure_metrics(record, size).items()
    )
    return _sealed(
        FlatRun(
            spec.measure_id,
            "measure",
            tags,
            _params(record["spec"]),
            {},
            series,
            _milliseconds(record["started_at"]),
            _milliseconds(record["finished_at"]),
        )
    )


def measure_metrics(record: Record, train_size: int) -> dict[str, float]:
    """Return a measure's numbers at one train size under their column names; undefined ones are absent."""
    for entry in record["measures"]["by_train_size"]:
        if entry["train_size"] == train_size:
            break
    else:
        return {}
    sharpness = entry["label_sharpness"] or {}
    low, high = sharpness.get("pixel_range") or (None, None)
    found = {
        "label_sharpness": sharpness.get("value"),
        "sharpness_pixel_range": None if high is None else high - low,
        "sharpness_channels": sharpness.get("channels"),
        "num_duplicates": entry.get("duplicates"),
        "num_conflicts": entry.get("conflicts"),
    }
    for estimator in ("mle", "twonn"):
        estimate = entry["d_data"].get(estimator, {})
        found[f"d_data_{estimator}"] = estimate.get("value")
        found[f"d_data_{estimator}_std_error"] = estimate.get("std_error")
    return {name: float(value) for name, value in found.items() if _is_finite(value)}


def measure_rows(record: Record) -> list[Record]:
    """Return a stored measure as the rows of a table for people: one per train size, every estimator."""
    spec = MeasureSpec.model_validate(record["spec"], strict=False)
    rows = []
    for entry in record["measures"]["by_train_size"]:
        sharpness = entry["label_sharpness"] or {}
        row: Record = {
            "dataset": spec.subset.prepared.dataset,
            "class pair": pair_name(spec.subset.class_pair),
            "N": entry["train_size"],
            **{f"d_data {name}": estimate["value"] for name, estimate in entry["d_data"].items()},
            "K_F": sharpness.get("value"),
            "K_F, 99 % of images below": (sharpness.get("percentiles") or {}).get("99"),
            "duplicates": entry["duplicates"],
            "conflicts": entry["conflicts"],
        }
        rows.append(row)
    calibration = record["measures"].get("calibration") or {}
    if calibration.get("value") is not None:
        low, high = calibration["interval"]
        rows[-1]["d_data calibrated"] = f"{calibration['value']:.3g} ({low:.3g} to {high:.3g})"
    return rows


def row_of(tags: Mapping[str, str], metrics: Mapping[str, float]) -> Record:
    """Return one row of the results table from a trial's tags and metrics."""
    row: Record = {name: tags.get(name, "") for name in TEXT_TAGS}
    row.update({name: int(tags[name]) for name in NUMBER_TAGS if name in tags})
    # MLflow cannot forget a metric: one of an earlier, stale attempt must not stand beside "diverged".
    kept = metrics if row["status"] != "diverged" else {n: v for n, v in metrics.items() if n in LASTING}
    row.update({name: value for name, value in kept.items() if not name.startswith("epoch_")})
    return row


def rows_of(trials: Iterable[Record], measures: Iterable[Record]) -> list[Record]:
    """Return the rows of stored trials, ordered by trial id."""
    index = index_measures(measures)
    flat = (flat_trial(record, index) for record in trials)
    return sorted((row_of(run.tags, run.metrics) for run in flat), key=lambda row: str(row["trial_id"]))


def index_measures(measures: Iterable[Record]) -> dict[tuple[str, int], Record]:
    """Index measure records by subset id and train size; of two for one cell, the newer."""
    index: dict[tuple[str, int], Record] = {}
    for record in sorted(measures, key=lambda record: float(record["finished_at"])):
        spec = MeasureSpec.model_validate(record["spec"], strict=False)
        index.update({(spec.subset.subset_id, size): record for size in spec.train_sizes})
    return index


def _sealed(run: FlatRun) -> FlatRun:
    body = [run.tags, run.params, run.metrics, run.series, run.started_ms, run.finished_ms, run.metrics_ms]
    return FlatRun(**{**vars(run), "content": fingerprint(body)})


def _params(spec: Record, prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in spec.items():
        if isinstance(value, dict):
            flat.update(_params(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = "" if value is None else str(value)
    return flat


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
