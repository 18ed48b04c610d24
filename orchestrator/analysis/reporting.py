"""From rows to table, fits and report: where tracking or the store meets analysis."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.planning.workspace import Workspace
from orchestrator.results.rows import measure_rows, rows_of

ROW_ORDER = ("dataset", "class_pair", "model", "train_size", "seed")


def results_table(workspace: Workspace, rows: list[dict[str, Any]] | None = None) -> pd.DataFrame:
    """Return the tidy table of a sweep: one row per planned trial with a result that holds, measures
    joined.

    Args:
        workspace: The sweep.
        rows: Rows read from MLflow; None reads the result store instead. Either way the store says which
            results hold: not those made from other data than are prepared now.
    """
    results = workspace.state().results
    if rows is None:
        rows = rows_of(results.values(), workspace.measures().values())
    kept = sorted(
        (row for row in rows if row["trial_id"] in results), key=lambda row: [row[name] for name in ROW_ORDER]
    )
    return pd.DataFrame(kept)


def report_sweep(workspace: Workspace, rows: list[dict[str, Any]] | None = None) -> Path | None:
    """Fit and write the report; None when there is no result yet."""
    from orchestrator.analysis import fit_scaling_laws, write_report

    table = results_table(workspace, rows)
    if table.empty:
        return None
    fits = fit_scaling_laws(table)
    sweep = workspace.plan.sweep
    return Path(
        write_report(
            table, fits, workspace.sweep_paths.report, sweep=sweep.name, summary=report_summary(workspace)
        )
    )


def report_summary(workspace: Workspace) -> dict[str, Any]:
    """Return what the report says about the sweep besides its numbers."""
    state = workspace.state()
    sweep = workspace.plan.sweep
    records = list(state.results.values())
    return {
        "description": sweep.description,
        "planned": len(workspace.plan.trials),
        "done": len(records),
        "failed": len(state.failures),
        "diverged": sum(record["status"] == "diverged" for record in records),
        "failures": [
            {"trial_id": trial_id, "kind": record["kind"], "message": record["message"]}
            for trial_id, record in sorted(state.failures.items())
        ],
        "measures": [row for record in workspace.measures().values() for row in measure_rows(record)],
        "unreadable": [vars(item) for item in state.unreadable],
        "code_versions": dict(Counter(r["provenance"].get("code_version", "unknown") for r in records)),
        "packages": records[0]["provenance"].get("packages", {}) if records else {},
        "devices": dict(Counter(record["device"] for record in records)),
        "datasets": {
            name: {
                "title": spec.title,
                "domain": spec.domain,
                "modality": spec.modality,
                "description": spec.description,
            }
            for name, spec in workspace.plan.datasets.items()
        },
        "preset": sweep.model_dump(mode="json"),
    }
