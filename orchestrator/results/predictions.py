"""Kept predictions of a sweep as one table."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from orchestrator.results import table as c
from orchestrator.results.index import TrialOutline
from orchestrator.results.records import TrialRecord
from orchestrator.results.state import StoredResults
from orchestrator.results.store import FileKind, KeptFiles
from search_spaces.errors import DataError
from search_spaces.specs import pair_name
from tasks.trials.scores import from_parquet


def predictions_table(records: Iterable[TrialRecord], url: str) -> pd.DataFrame:
    """Return one row per trial and test image: what the trial is, ``image``, ``label`` and the logits.

    Args:
        records: Of trials; those without predictions have no rows.
        url: Where the sweep's results are kept.

    Raises:
        DataError: when no trial has predictions.
        CorruptStoreError: when a trial's are gone or damaged.
    """
    files, tables = KeptFiles(url), []
    for record in sorted(records, key=lambda record: record.trial_id):
        if record.result.predictions is not None:
            kept = files.get(FileKind.PREDICTIONS, record.trial_id, record.result.predictions)
            table = from_parquet(kept)
            tables.append(pd.concat([_trial_columns(record, len(table)), table], axis=1))
    if not tables:
        raise DataError(
            "No trial of this sweep has predictions",
            way_out="set predictions: true and run it again: where weights are kept, nothing is trained",
        )
    return pd.concat(tables, ignore_index=True)


def forget_damaged(stored: StoredResults, planned: Iterable[str]) -> tuple[int, int]:
    """Take predictions that are gone or damaged for not made, in memory, so that a run makes them again.

    A trial without kept weights is taken for not done; its stored result stays until it is replaced.

    Args:
        stored: Everything in a sweep's store.
        planned: Ids of trials that are to have predictions.

    Returns:
        How many are made from kept weights, and how many networks are trained again.
    """
    trials = stored.trials
    known = {trial_id: trials[trial_id].result for trial_id in planned if trial_id in trials}
    kept = {trial_id: result.predictions for trial_id, result in known.items() if result.predictions}
    files = KeptFiles(stored.store.url)
    damaged = files.damaged(FileKind.PREDICTIONS, kept) if kept else set()
    lost = {trial_id for trial_id in damaged if known[trial_id].weights is None}
    for trial_id in damaged - lost:
        without = known[trial_id].model_copy(update={"predictions": None})
        trials[trial_id] = record = trials[trial_id].model_copy(update={"result": without})
        stored.outlines[trial_id] = TrialOutline.of(record)
    for trial_id in lost:
        del trials[trial_id], stored.outlines[trial_id]
    return len(damaged - lost), len(lost)


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
