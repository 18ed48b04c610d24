"""Rows of the results table, from the store or from MLflow, and the table of predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from orchestrator.results.records import MeasureRecord, TrialRecord
from orchestrator.results.store import FileKind, ResultStore
from search_spaces.errors import DataError
from search_spaces.specs import pair_name

if TYPE_CHECKING:
    import pandas as pd
from orchestrator.results.columns import (
    CLASS_PAIR,
    COLUMNS,
    D_DATA_CALIBRATED,
    DATASET,
    EPOCH_PREFIX,
    LABEL_SHARPNESS,
    LABEL_SHARPNESS_P99,
    MODEL,
    NUM_CONFLICTS,
    NUM_DUPLICATES,
    RECIPE,
    SEED,
    TRAIN_SIZE,
    TRIAL_ID,
)
from orchestrator.results.flat_runs import flat_trial
from orchestrator.results.metrics import index_measures

Row = dict[str, str | int | float]
"""One line of the results table, by column."""


def measure_rows(record: MeasureRecord) -> list[dict[str, str | int | float | None]]:
    """Return a stored measure as the rows of a table for people: one per train size, every
    estimator.
    """
    subset = record.spec.subset
    about = {DATASET: subset.dataset, CLASS_PAIR: pair_name(subset.class_pair)}
    rows: list[dict[str, str | int | float | None]] = [
        {
            **about,
            TRAIN_SIZE: size.train_size,
            **{f"d_data_{name}": estimate.value for name, estimate in size.d_data.items()},
            LABEL_SHARPNESS: sharpness.value if (sharpness := size.label_sharpness) else None,
            LABEL_SHARPNESS_P99: (sharpness.percentiles or {}).get("99") if sharpness else None,
            NUM_DUPLICATES: size.num_duplicates,
            NUM_CONFLICTS: size.num_conflicts,
        }
        for size in record.result.sizes
    ]
    calibration = record.result.calibration
    if (
        calibration is not None
        and calibration.value is not None
        and calibration.interval is not None
    ):
        low, high = calibration.interval
        rows[-1][D_DATA_CALIBRATED] = f"{calibration.value:.3g} ({low:.3g} to {high:.3g})"
    return rows


def row_of(tags: Mapping[str, str], metrics: Mapping[str, float]) -> Row:
    """Return one row of the results table from a trial's tags and metrics."""
    row: Row = {}
    for column in COLUMNS:
        if column.kind == "text":
            row[column.name] = tags.get(column.name, "")
        elif column.kind == "integer" and column.name in tags:
            row[column.name] = int(tags[column.name])
    row.update(
        {name: value for name, value in metrics.items() if not name.startswith(EPOCH_PREFIX)}
    )
    return row


def rows_of(trials: Iterable[TrialRecord], measures: Iterable[MeasureRecord]) -> list[Row]:
    """Return the rows of stored trials, ordered by trial id."""
    index = index_measures(measures)
    flat = (flat_trial(record, index) for record in trials)
    return sorted(
        (row_of(run.tags, run.metrics) for run in flat), key=lambda row: str(row[TRIAL_ID])
    )


def predictions_table(records: Iterable[TrialRecord], store: ResultStore) -> pd.DataFrame:
    """Return one row per trial with predictions and test image: what it is, ``image``, ``label``,
    logits.

    DataError when no trial has predictions, CorruptStoreError when a trial's are gone or damaged.
    """
    import pandas as pd

    from tasks.trials.scores import from_parquet

    columns = (TRIAL_ID, MODEL, RECIPE, DATASET, CLASS_PAIR, TRAIN_SIZE, SEED)
    tables = []
    for record in sorted(records, key=lambda record: record.trial_id):
        if record.result.predictions is not None:
            kept = store.get(FileKind.PREDICTIONS, record.trial_id, record.result.predictions)
            (row,), table = rows_of([record], ()), from_parquet(kept)
            about = {name: [row[name]] * len(table) for name in columns}
            tables.append(pd.concat([pd.DataFrame(about), table], axis=1))
    if not tables:
        raise DataError(
            "No trial of this sweep has predictions",
            hint=(
                "set predictions: true and run it again: where weights are kept, nothing is trained"
            ),
        )
    return pd.concat(tables, ignore_index=True)
