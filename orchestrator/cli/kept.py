"""What is kept of trained networks beside their results, written for people."""

from __future__ import annotations

from pathlib import Path

from orchestrator.cli.options import Place
from orchestrator.cli.printing import emit, written


def write_predictions(preset: str, path: Path, place: Place) -> int:
    """Write every network's logits of the test images as one Parquet file.

    Raises:
        DataError: when no trial has any.
        CorruptStoreError: when a trial's are gone or damaged.
    """
    from orchestrator.planning.workspace import Workspace
    from orchestrator.results.predictions import predictions_table
    from orchestrator.results.state import read_state

    workspace = Workspace.open(preset, place.root, place.storage, as_run=True)
    results = read_state(workspace).records
    table = predictions_table(results, workspace.results_url)
    num_trials = table["trial_id"].nunique()
    what = f"{len(table):,} predictions of {num_trials} of {len(results)} trials to "
    written(path, lambda path: table.to_parquet(path, index=False), what)
    if place.json:
        emit(place, {"predictions": str(path), "rows": len(table), "trials": num_trials}, lambda: None)
    return 0
