"""Where MLflow shows other results than the store, in sentences."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from orchestrator.planning.workspace import Workspace
from orchestrator.results import columns as c
from orchestrator.results.mlflow_connection import connect, mlflow_uri
from orchestrator.results.rows import Row
from search_spaces.errors import plural


def tracked_rows(workspace: Workspace, uri: str | None, storage: str | None) -> list[Row]:
    """Return what :func:`read_rows` does of a sweep's MLflow; nothing is made there."""
    from orchestrator.results.mlflow_runs import read_rows

    resolved = mlflow_uri(workspace.paths, uri)
    # MLflow would make the file, and the reader is only asking.
    if resolved.startswith("sqlite:///") and not Path(resolved.removeprefix("sqlite:///")).exists():
        return []
    return read_rows(connect(resolved), workspace.plan.sweep.name, storage)


def differences(stored: Iterable[Row], tracked: Iterable[Row], mend: str) -> list[str]:
    """Say in sentences what MLflow shows otherwise than the store, if anything; ``mend`` is the way
    out.

    A column that is absent on one side is a difference too, unless it is none of ours.
    """
    ours, theirs = ({str(row[c.TRIAL_ID]): row for row in rows} for rows in (stored, tracked))
    values, trials = [], set()
    for trial_id in sorted(ours.keys() & theirs.keys()):
        row, shown = ours[trial_id], theirs[trial_id]
        strangers = {column.name for column in c.describe(shown) if column.origin is None}
        for name in {**row, **shown}:
            if row.get(name) != shown.get(name) and (name in row or name not in strangers):
                there, here = (
                    repr(one[name]) if name in one else "nothing" for one in (shown, row)
                )
                values.append(f"{trial_id} {name}: {there}, stored {here}")
                trials.add(trial_id)
    missing, strange = ours.keys() - theirs.keys(), theirs.keys() - ours.keys()
    more = [f"and {len(values) - 3} more"] * (len(values) > 3)
    sentences = {
        f"MLflow differs from the result store in {plural(len(values), 'value')} of "
        f"{plural(len(trials), 'trial')} ({'; '.join([*values[:3], *more])}); the store's are "
        "used. "
        f"Mend MLflow with `{mend}`": values,
        (
            f"MLflow lacks {plural(len(missing), 'result')} that the store has: send them with "
            f"`{mend}`"
        ): missing,
        f"MLflow shows {plural(len(strange), 'trial')} of which the sweep, as it is planned now, "
        "has no "
        "result; left out": strange,
    }
    return [sentence for sentence, found in sentences.items() if found]
