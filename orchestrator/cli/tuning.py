"""The command that searches learning rates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape

from orchestrator.cli.options import (
    Changes,
    ClusterOptions,
    Place,
    RawFolders,
    ReadingOptions,
    Sweep,
    raw_folders,
    run_options,
)
from orchestrator.cli.printing import emit, line, stderr, stdout, text_table
from search_spaces.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

SEARCH_SHOWN = {
    "model": "model",
    "dataset": "dataset",
    "learning_rate": "rate",
    "weight_decay": "decay",
    "batch_size": "batch",
    "status": "status",
    "epochs": "epochs",
    "validation_loss": "loss",
}
"""Columns that ``isweep results --search`` prints for people, with their short names."""


def tune(
    preset: Sweep,
    /,
    *,
    raw: RawFolders = (),
    changes: Changes = (),
    reading: ReadingOptions = ReadingOptions(),
    cluster: ClusterOptions = ClusterOptions(),
    place: Place = Place(),
) -> int:
    """Search learning rates, weight decays and batch sizes; prints the path of the recipe last.

    Args:
        preset: Name of a preset or of a sweep of the root, or path of a sweep file.
        raw: Raw download of a dataset; may be given for several.
        changes: Change one value for this run, e.g. tune.budget=0.4; may be given for several.
        reading: How to read raw files.
        cluster: Where to compute.
        place: Where everything lies.
    """
    from orchestrator.planning.sweep_file import read_changes
    from orchestrator.running.progress import Progress
    from orchestrator.tuning.report import brief_table, document
    from orchestrator.tuning.run import tune_sweep

    progress = Progress(console=None if cluster.quiet else stderr)
    options = run_options(place, cluster, reading, raw_folders(raw))
    again = place.hint("tune", preset, *(word for change in changes for word in ("--set", change)))
    try:
        summary = tune_sweep(preset, options, progress=progress, changes=read_changes(changes))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Finished trials are kept; continue with: {again}") from None
    for problem in summary.problems:
        stderr.print(escape(problem), soft_wrap=True)
    if summary.num_behind:
        behind = f"MLflow misses {summary.num_behind} updates; send them with: {again}"
        stderr.print(escape(behind), soft_wrap=True)
    found: dict[str, Any] = document(summary)

    def show() -> None:
        stdout.print(text_table(brief_table(summary.cells)))
        if summary.report is not None:
            line(str(summary.report))
        line(str(summary.recipe))

    emit(place, found, show)
    return summary.exit_code


def read_search(preset: str, place: Place) -> pd.DataFrame:
    """Return the stored trials of a sweep's search.

    Raises:
        ConfigError: when there are none.
    """
    import pandas as pd

    from orchestrator.planning.plan import Workspace
    from orchestrator.tuning.standing import search_rows

    rows = search_rows(Workspace.open(preset, place.root, place.storage, as_run=True))
    if not rows:
        raise ConfigError(
            "Results of a search need one", f"{preset}: none stored", f"run: {place.hint('tune', preset)}"
        )
    return pd.DataFrame(rows)
