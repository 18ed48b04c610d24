"""Sentences that say how MLflow's results differ from those of the store."""

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
"""Different values that a sentence lists."""


def tracked_rows(workspace: Workspace, uri: str | None, storage: str | None) -> list[Row]:
    """Return the rows of a sweep's finished trials from MLflow; nothing is created there.

    Args:
        workspace: the sweep.
        uri: of the MLflow store; None for the default.
        storage: id of the result store whose runs are wanted.
    """
    from orchestrator.results.mlflow_runs import read_rows

    resolved = mlflow_uri(workspace.paths, uri)
    # MLflow would create the file.
    if resolved.startswith(SQLITE) and not Path(resolved.removeprefix(SQLITE)).exists():
        return []
    return read_rows(connect(resolved), workspace.plan.sweep.name, storage)


@dataclass(frozen=True)
class _Difference:
    """A column of a trial with another value in MLflow than in the store."""

    trial_id: str
    column: str
    tracked: str
    stored: str

    def __str__(self) -> str:
        return (
            f"{self.column} of {self.trial_id} is {self.tracked} in MLflow and {self.stored} in "
            "the store"
        )


def differences(stored: Iterable[Row], tracked: Iterable[Row], command: str) -> list[str]:
    """Return sentences that say how MLflow's rows differ from the store's; none if they do not.

    A column that is absent on one side is a difference too, unless this program does not define it.

    Args:
        stored: rows from the store.
        tracked: rows from MLflow.
        command: the command that corrects MLflow.
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
            f"{plural(num_trials, 'trial')} ({'; '.join(examples)}). The values of the result "
            f"store are used. Correct MLflow with `{command}`."
        )
    if missing:
        sentences.append(
            f"MLflow lacks {plural(len(missing), 'result')} of the result store. Send them to "
            f"MLflow with `{command}`."
        )
    if unplanned:
        sentences.append(
            f"MLflow shows {plural(len(unplanned), 'trial')} without a result in the planned "
            "sweep. These rows are left out."
        )
    return sentences


def _row_differences(trial_id: str, stored: Row, tracked: Row) -> list[_Difference]:
    """Return the columns of a trial that differ."""
    foreign_columns = {column.name for column in describe(tracked) if column.origin is None}
    row_differences = []
    for name in {**stored, **tracked}:
        if stored.get(name) == tracked.get(name):
            continue
        if name not in stored and name in foreign_columns:
            continue
        tracked_value = _value_of(tracked, name)
        stored_value = _value_of(stored, name)
        row_differences.append(_Difference(trial_id, name, tracked_value, stored_value))
    return row_differences


def _value_of(row: Row, name: str) -> str:
    if name not in row:
        return "nothing"
    return repr(row[name])
