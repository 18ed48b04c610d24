"""From rows to table, fits and report: where tracking or the store meets analysis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.analysis.intervention_records import Arm
from orchestrator.planning.prices import read_prices
from orchestrator.planning.sweep_file import sweep_text
from orchestrator.planning.workspace import Workspace
from orchestrator.results.cost import cost_of
from orchestrator.results.rows import Row, measure_rows
from orchestrator.results.state import State, read_state
from orchestrator.results.tracking.run_pages import read_run_pages
from search_spaces.errors import SetupError
from tasks.trials.result import TrialStatus

ROW_ORDER = ("dataset", "class_pair", "model", "train_size", "seed")


def results_table(
    workspace: Workspace, rows: list[Row] | None = None, state: State | None = None
) -> pd.DataFrame:
    """Return the tidy table of a sweep: one row per planned trial with a result that holds, measures
    joined.

    Args:
        workspace: The sweep.
        rows: Rows read from MLflow, for where nothing but MLflow can be reached; None takes the result
            store's, whose numbers are the ones that count.
        state: What the store holds; None reads it.
    """
    if rows is None:
        rows = (state or read_state(workspace)).rows()
    planned = workspace.plan.trials_by_id
    kept = sorted(
        (row for row in rows if row["trial_id"] in planned), key=lambda row: [row[name] for name in ROW_ORDER]
    )
    return pd.DataFrame(kept)


def arms_of(workspace: Workspace) -> tuple[Arm, ...]:
    """Return the datasets of the sweep's experiment for the analysis; none where it has no worlds."""
    return tuple(Arm(arm.dataset, arm.world, arm.moves, arm.name) for arm in workspace.plan.sweep.experiment)


@dataclass(frozen=True)
class Written:
    """A report that was written.

    Attributes:
        path: ``report.html``; everything else lies beside it.
        found: See :func:`orchestrator.analysis.headline.headline`.
    """

    path: Path
    found: dict[str, float]


def report_sweep(workspace: Workspace, state: State | None = None) -> Written | None:
    """Fit and write the report from the result store; None when there is no result yet.

    Args:
        workspace: The sweep.
        state: What the store holds; None reads it.
    """
    from orchestrator.analysis import fit_scaling_laws
    from orchestrator.analysis.headline import headline
    from orchestrator.analysis.report import write_report

    state = state or read_state(workspace)
    table = results_table(workspace, state=state)
    if table.empty:
        return None
    fits = fit_scaling_laws(table, arms=arms_of(workspace))
    summary = report_summary(workspace, state)
    folder, name = workspace.sweep_paths.report, workspace.plan.sweep.name
    path = Path(write_report(table, fits, folder, sweep=name, summary=summary))
    return Written(path, headline(table, fits))


@contextmanager
def report_can_be_written() -> Iterator[None]:
    """Say what to do where the root is another's or may only be read.

    Raises:
        SetupError: in place of what the file system says.
    """
    try:
        yield
    except OSError as error:
        rule, found = "The report must be written below the root", f"{error.filename}: {error.strerror}"
        hint = "copy the root, or ask for the results and the fits alone, which write nothing"
        raise SetupError(rule, found, hint) from None


def report_summary(workspace: Workspace, state: State) -> dict[str, Any]:
    """Return what the report says about the sweep besides its numbers."""
    sweep = workspace.plan.sweep
    records = state.records
    pages = read_run_pages(workspace.sweep_paths.run_pages)
    return {
        "description": sweep.description,
        "planned": len(workspace.plan.trials),
        "done": len(state.results),
        "failed": len(state.failures),
        "diverged": sum(record.result.status == TrialStatus.DIVERGED for record in records),
        "failures": state.failure_rows(),
        "measures": [row for record in state.measures.values() for row in measure_rows(record)],
        "unreadable": [vars(item) for item in state.unreadable],
        "code_versions": dict(Counter(record.provenance.code_version for record in records)),
        "packages": records[0].provenance.packages if records else {},
        "newest": _date(max((record.finished_at for record in records), default=0.0)),
        "trial_devices": {record.trial_id: record.result.device for record in records},
        "cost": cost_of(state, read_prices(workspace.paths.prices)).text() if records else "",
        "devices": dict(Counter(record.result.device for record in records)),
        "datasets": {
            name: {
                "title": spec.title,
                "domain": spec.domain,
                "modality": spec.modality,
                "description": spec.description,
            }
            for name, spec in workspace.plan.datasets.items()
        },
        "preset": sweep_text(sweep),
        "runs": pages.runs,
        "run_pages": pages.prefix,
    }


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%d %B %Y, %H:%M UTC") if seconds else ""
