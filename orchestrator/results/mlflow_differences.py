"""Compare MLflow's results with the result store, and describe the differences."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.planning.workspace import Workspace
from orchestrator.results.columns import TRIAL_ID, describe
from orchestrator.results.mlflow_connection import SQLITE, connect, mlflow_uri
from orchestrator.results.rows import Row
from search_spaces.errors import plural

MAX_VALUES = 3
"""Largest number of different values that a sentence about differences lists."""


def tracked_rows(workspace: Workspace, uri: str | None, storage: str | None) -> list[Row]:
    """Return the rows of a sweep's finished trials from MLflow without creating anything there.

    Args:
        workspace: The sweep.
        uri: URI of the MLflow store. None means the default URI.
        storage: Id of the result store. Runs of other stores are left out.
    """
    from orchestrator.results.mlflow_runs import read_rows

    resolved = mlflow_uri(workspace.paths, uri)
    # MLflow would create the missing file.
    if resolved.startswith(SQLITE) and not Path(resolved.removeprefix(SQLITE)).exists():
        return []
    return read_rows(connect(resolved), workspace.plan.sweep.name, storage)


@dataclass(frozen=True)
class _Difference:
    """A column of a trial with different values in MLflow and in the result store."""

    trial_id: str
    column: str
    tracked: str
    stored: str

    def __str__(self) -> str:
        return (
            f"{self.column} of {self.trial_id} is {self.tracked} in MLflow, but {self.stored} in "
            "the result store"
        )


def differences(stored: Iterable[Row], tracked: Iterable[Row], command: str) -> list[str]:
    """Return sentences about differences between rows of MLflow and of the result store.

    A column that only MLflow or only the result store has is a difference. The exception is a
    column that only MLflow has and that isweep does not define.

    Args:
        stored: Rows of the result store.
        tracked: Rows of MLflow.
        command: The command that corrects MLflow.
    """
    stored_rows = {str(row[TRIAL_ID]): row for row in stored}
    tracked_by_id = {str(row[TRIAL_ID]): row for row in tracked}
    values: list[_Difference] = []
    for trial_id in sorted(stored_rows.keys() & tracked_by_id.keys()):
        values += _row_differences(trial_id, stored_rows[trial_id], tracked_by_id[trial_id])
    missing = stored_rows.keys() - tracked_by_id.keys()
    unplanned = tracked_by_id.keys() - stored_rows.keys()
    sentences = []
    if values:
        examples = [str(value) for value in values[:MAX_VALUES]]
        if len(values) > MAX_VALUES:
            examples.append(f"and {len(values) - MAX_VALUES} more")
        num_trials = len({value.trial_id for value in values})
        sentences.append(
            f"MLflow differs from the result store in {plural(len(values), 'value')} of "
            f"{plural(num_trials, 'trial')} ({'; '.join(examples)}). isweep uses the values of the "
            f"result store. To correct MLflow, run `{command}`."
        )
    if missing:
        sentences.append(
            f"MLflow lacks {plural(len(missing), 'result')} of the result store. To send the "
            f"missing results to MLflow, run `{command}`."
        )
    if unplanned:
        sentences.append(
            f"isweep ignores rows of {plural(len(unplanned), 'trial')} in MLflow, because these "
            "trials have no result in this sweep."
        )
    return sentences


def _row_differences(trial_id: str, stored: Row, tracked: Row) -> list[_Difference]:
    """Return the differences between a trial's row in MLflow and its row in the result store."""
    unknown_columns = {column.name for column in describe(tracked) if column.origin is None}
    row_differences = []
    for name in {**stored, **tracked}:
        if stored.get(name) == tracked.get(name):
            continue
        if name not in stored and name in unknown_columns:
            continue
        tracked_value = _value_of(tracked, name)
        stored_value = _value_of(stored, name)
        row_differences.append(_Difference(trial_id, name, tracked_value, stored_value))
    return row_differences


def _value_of(row: Row, name: str) -> str:
    if name not in row:
        return "nothing"
    return repr(row[name])
