"""Kept predictions of a sweep as one table."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from orchestrator.results import columns as c
from orchestrator.results.records import TrialRecord
from orchestrator.results.weights import WeightStore
from search_spaces.errors import DataError
from search_spaces.specs import pair_name
from tasks.trials.predictions import from_parquet


def predictions_table(records: Iterable[TrialRecord], url: str) -> pd.DataFrame:
    """Return one row per trial and test image: what the trial is, ``image``, ``label`` and the logits.

    Args:
        records: Of trials; those without predictions have no rows.
        url: Where the sweep's results are kept.

    Raises:
        DataError: when no trial has predictions.
        CorruptStoreError: when a trial's are gone or damaged.
    """
    files, tables = WeightStore(url), []
    for record in sorted(records, key=lambda record: record.trial_id):
        if record.result.predictions is not None:
            table = from_parquet(files.read_predictions(record.trial_id, record.result.predictions))
            tables.append(pd.concat([_trial_columns(record, len(table)), table], axis=1))
    if not tables:
        raise DataError(
            "No trial of this sweep has predictions",
            way_out="set predictions: true and run it again: where weights are kept, nothing is trained",
        )
    return pd.concat(tables, ignore_index=True)


def _trial_columns(record: TrialRecord, num_rows: int) -> pd.DataFrame:
    network = record.spec.network
    row = {
        c.TRIAL_ID: record.trial_id,
        c.MODEL: network.model.name,
        c.RECIPE: network.recipe.name,
        c.DATASET: network.subset.prepared.dataset,
        c.CLASS_PAIR: pair_name(network.subset.class_pair),
        c.TRAIN_SIZE: network.train_size,
        c.SEED: network.seed,
    }
    return pd.DataFrame({name: [value] * num_rows for name, value in row.items()})
