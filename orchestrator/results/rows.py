"""Build rows of the results table from the store or from MLflow, and the table of predictions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

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
from orchestrator.results.records import MeasureRecord, TrialRecord
from orchestrator.results.store import FileKind, ResultStore
from search_spaces.errors import DataError
from search_spaces.specs import pair_name

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, str | int | float]
"""One row of the results table, by column."""
MeasureRow = dict[str, str | int | float | None]
"""One row of the table of measures, by column. A number is None if it is undefined."""


def row_of(tags: Mapping[str, str], metrics: Mapping[str, float]) -> Row:
    """Return a row of the results table from the tags and metrics of a trial's run."""
    row: Row = {}
    for column in COLUMNS:
        if column.kind == "text":
            row[column.name] = tags.get(column.name, "")
        elif column.kind == "integer" and column.name in tags:
            row[column.name] = int(tags[column.name])
    for name, value in metrics.items():
        if not name.startswith(EPOCH_PREFIX):
            row[name] = value
    return row


def rows_of(trials: Iterable[TrialRecord], measures: Iterable[MeasureRecord]) -> list[Row]:
    """Return the rows of stored trials, sorted by trial id."""
    index = index_measures(measures)
    rows = []
    for record in trials:
        run = flat_trial(record, index)
        rows.append(row_of(run.tags, run.metrics))
    return sorted(rows, key=lambda row: str(row[TRIAL_ID]))


def json_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as JSON values with all digits of the numbers.

    Missing and infinite numbers become None. pandas' ``to_json`` would round numbers to 15
    decimals.
    """
    is_defined = table.notna() & ~table.isin([math.inf, -math.inf])
    objects = table.astype(object).where(is_defined, None)
    return [
        {str(name): value for name, value in row.items()}
        for row in objects.to_dict(orient="records")
    ]


def measure_rows(record: MeasureRecord) -> list[MeasureRow]:
    """Return a stored measure as table rows. Each train size has one row with all estimators."""
    subset = record.spec.subset
    rows: list[MeasureRow] = []
    for size in record.result.sizes:
        row: MeasureRow = {
            DATASET: subset.dataset,
            CLASS_PAIR: pair_name(subset.class_pair),
            TRAIN_SIZE: size.train_size,
        }
        for estimator, estimate in size.d_data.items():
            row[f"d_data_{estimator}"] = estimate.value
        row[LABEL_SHARPNESS] = None
        row[LABEL_SHARPNESS_P99] = None
        if size.label_sharpness is not None:
            row[LABEL_SHARPNESS] = size.label_sharpness.value
            row[LABEL_SHARPNESS_P99] = (size.label_sharpness.percentiles or {}).get("99")
        row[NUM_DUPLICATES] = size.num_duplicates
        row[NUM_CONFLICTS] = size.num_conflicts
        rows.append(row)
    calibration = record.result.calibration
    if (
        calibration is not None
        and calibration.value is not None
        and calibration.interval is not None
    ):
        low, high = calibration.interval
        rows[-1][D_DATA_CALIBRATED] = f"{calibration.value:.3g} ({low:.3g} to {high:.3g})"
    return rows


def predictions_table(records: Iterable[TrialRecord], store: ResultStore) -> pd.DataFrame:
    """Return a table with one row per trial and test image.

    Args:
        records: Trials. The table does not contain trials without predictions.
        store: Result store that contains the predictions.

    Returns:
        A table whose columns are the trial's settings, ``image``, ``label`` and the logits.

    Raises:
        DataError: No trial has predictions.
        CorruptStoreError: The predictions of a trial are missing or damaged.
    """
    import pandas as pd

    from tasks.trials.scores import from_parquet

    choices = (TRIAL_ID, MODEL, RECIPE, DATASET, CLASS_PAIR, TRAIN_SIZE, SEED)
    tables = []
    for record in sorted(records, key=lambda record: record.trial_id):
        if record.result.predictions is None:
            continue
        data = store.get(FileKind.PREDICTIONS, record.trial_id, record.result.predictions)
        predictions = from_parquet(data)
        row = rows_of([record], measures=())[0]
        repeated = pd.DataFrame({name: [row[name]] * len(predictions) for name in choices})
        tables.append(pd.concat([repeated, predictions], axis=1))
    if not tables:
        raise DataError(
            "No trial of this sweep has predictions",
            hint="Add `predictions: true` to the sweep file, and run the sweep again. If the "
            "weights of a network are stored, isweep does not train it again",
        )
    return pd.concat(tables, ignore_index=True)
