"""Write the report: one self-contained HTML page, with its figures, table and fits as files beside it."""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.text import Text

from orchestrator.analysis import figures
from orchestrator.analysis import table as t
from orchestrator.analysis import tables as html_tables
from orchestrator.analysis.figures import DRAWINGS
from orchestrator.analysis.findings import Finding, family, findings
from orchestrator.analysis.fit_records import Arm, ScalingFits
from orchestrator.analysis.laws import apply_policy
from orchestrator.analysis.table import csv_text
from orchestrator.analysis.tables import (
    best_table,
    fit_tables,
    intervention_finding,
    point_data,
    script_json,
    trial_data,
    write_latex,
)
from orchestrator.planning.estimate import read_prices
from orchestrator.planning.plan import Workspace
from orchestrator.planning.sweep_file import sweep_text
from orchestrator.results import table as c
from orchestrator.results.rows import Row, measure_rows
from orchestrator.results.state import State, cost_of, read_state
from orchestrator.results.tracking import Tracker, read_run_pages
from search_spaces.errors import SetupError
from tasks.atomic import read_whole, write_atomic
from tasks.trials.records import TrialStatus

log = logging.getLogger(__name__)

#: More points than this make SVG too large to open at once; the figure is then a picture.
MAX_SVG_POINTS = 2000

#: Fine enough for print at the size the page shows, small enough to embed.
PNG_DPI = 150


def write_report(
    table: pd.DataFrame, fits: ScalingFits, directory: Path, *, sweep: str, summary: Mapping[str, Any]
) -> Path:
    """Write ``report.html``, ``figures/*.png|pdf``, ``results.csv``, ``results.parquet``, ``fits.json``
    and ``tables/*.tex``.

    The same input gives the same bytes: no time, host or path is written. Every file is replaced whole, so
    that a report that is stopped leaves each as it was or as it will be.

    Args:
        table: the results table that ``fits`` came from.
        fits: what :func:`~orchestrator.analysis.fits.fit_scaling_laws` returned for it.
        directory: where to write; made if absent.
        sweep: name of the sweep, the page's title.
        summary: what only the caller knows; every key is optional. ``description``: one sentence.
            ``planned``,
            ``done``, ``failed``, ``diverged``: counts. ``failures``: list of ``{"trial_id", "kind",
            "message"}``. ``unreadable``, ``measures``: lists of flat records. ``datasets``: dataset →
            ``{"title", "description", ...}``. ``packages``: name → version. ``code_versions``, ``devices``:
            name → number of trials. ``trial_devices``: trial id → device. ``newest``: date of the newest
            result. ``cost``: of the results, in words. ``preset``: the sweep file, as text or as data.
            ``runs``, ``run_pages``: trial id → the tracker's run, and what stands before it in its address.

    Returns:
        The path of ``report.html``.

    Raises:
        DataError: if the table contradicts itself.
        OSError: if the directory cannot be written.
    """
    directory = Path(directory)
    (directory / "figures").mkdir(parents=True, exist_ok=True)
    full, _ = t.normalise(table)
    _write_data(table, full, fits, directory)
    scaled, _ = apply_policy(full, fits.sharpness_scale.policy)
    points = t.fitted_points(t.usable_trials(scaled, leave_out_chance=fits.at_chance.left_out)[0])
    page = _template().render(
        sweep=sweep,
        summary=summary,
        counts=_counts(full, summary),
        findings=_findings(fits),
        family=family(fits),
        fits=fits,
        descriptions=html_tables.synthetic_data(fits, summary),
        figures=_write_figures(points, fits, directory / "figures"),
        tables=html_tables.all_tables(full, fits, summary),
        best=best_table(full),
        trials=Markup(script_json(_trials(full, summary))),
        pages=summary.get("run_pages", "") if summary.get("runs") else "",
        points=Markup(script_json(point_data(points))),
        code_versions=_code_versions(full, summary),
        preset=_preset(summary),
        columns=[*c.describe(table.columns)],
    )
    write_latex(fit_tables(fits), directory / "tables")
    path = directory / "report.html"
    write_atomic(path, page.encode(), durable=False)
    return path


def _trials(full: pd.DataFrame, summary: Mapping[str, Any]) -> dict[str, Any]:
    devices, runs = summary.get("trial_devices", {}), summary.get("runs", {})
    return trial_data(full, devices, runs, str(summary.get("run_pages", "")))


def _findings(fits: ScalingFits) -> tuple[Finding, ...]:
    moved = (intervention_finding(fits.interventions),) if fits.interventions else ()
    return (*moved, *findings(fits))


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("orchestrator.analysis", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["words"] = _words
    return environment.get_template("report.html")


def _words(text: str) -> Markup:
    """Return a sentence with what stands in backticks as names are set on the page."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _write_data(table: pd.DataFrame, full: pd.DataFrame, fits: ScalingFits, directory: Path) -> None:
    # Only columns that the caller had: a column added as missing would pretend to have been measured.
    data = full[list(table.columns)]
    write_atomic(directory / "results.csv", csv_text(data).encode(), durable=False)
    write_atomic(directory / "results.parquet", data.to_parquet(index=False), durable=False)
    text = json.dumps(fits.to_json(), indent=1, allow_nan=False, ensure_ascii=False)
    write_atomic(directory / "fits.json", f"{text}\n".encode(), durable=False)


def _write_figures(points: pd.DataFrame, fits: ScalingFits, folder: Path) -> list[dict[str, Any]]:
    """Draw every figure that has data; return names, captions and embedded images."""
    shown = []
    with figures.styled():
        for drawing in DRAWINGS:
            figure = drawing.draw(points, fits)
            if figure is None:
                for stale in (folder / f"{drawing.name}.png", folder / f"{drawing.name}.pdf"):
                    stale.unlink(missing_ok=True)
                continue
            drawn = _save(figure, folder / drawing.name, as_svg=len(points) <= MAX_SVG_POINTS)
            shown.append(
                {
                    "name": drawing.name,
                    "caption": drawing.describe(points, fits),
                    "drawing": drawn,
                }
            )
    return shown


def _save(figure: Figure, stem: Path, *, as_svg: bool) -> Markup:
    """Save as PNG and PDF without dates or versions, so that equal figures are equal bytes.

    Returns:
        What the page embeds: SVG, whose points tell what they are, or the PNG where there are too many.
    """
    # A name with dollars is a name, not a formula; no text of ours has one before it is drawn.
    for words in figure.findobj(Text):
        words.set_parse_math("$" not in words.get_text())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PNG_DPI, metadata={"Software": None})
    write_atomic(stem.with_suffix(".png"), buffer.getvalue(), durable=False)
    # The first save has laid everything out; doing it again would double the time and change nothing.
    figure.set_layout_engine(None)
    pages = io.BytesIO()
    nameless = {"CreationDate": None, "Producer": None, "Creator": None}
    figure.savefig(pages, format="pdf", metadata=nameless)
    write_atomic(stem.with_suffix(".pdf"), pages.getvalue(), durable=False)
    if not as_svg:
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        return Markup(f'<img alt="" src="data:image/png;base64,{data}">')  # of our own making
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    # All figures share one page, and matplotlib counts its ids from 1 in each.
    drawing = text.getvalue()[text.getvalue().index("<svg") :]
    ids = r'(id=")(figure|axes|patch|line2d|text|matplotlib|xtick|ytick)'
    return Markup(re.sub(ids, rf"\1{stem.name}-\2", drawing))


def _counts(full: pd.DataFrame, summary: Mapping[str, Any]) -> list[tuple[str, int]]:
    diverged = int((full[c.STATUS] != c.DONE).sum())
    known = {
        "planned": len(full),
        "done": len(full),
        "failed": len(summary.get("failures", ())),
        "diverged": diverged,
    }
    return [(name, int(summary.get(name, default))) for name, default in known.items()]


def _code_versions(full: pd.DataFrame, summary: Mapping[str, Any]) -> dict[str, int]:
    """Return code versions with their number of trials: several commits must not pass for one."""
    counts = full.loc[full[c.CODE_VERSION] != "", c.CODE_VERSION].value_counts()
    found = {str(name): int(count) for name, count in counts.items()}
    return dict(sorted((found or dict(summary.get("code_versions", {}))).items()))


def _preset(summary: Mapping[str, Any]) -> str:
    preset = summary.get("preset", "")
    return (
        preset if isinstance(preset, str) else json.dumps(preset, indent=2, ensure_ascii=False, default=str)
    )


# From rows to table, fits and report: where tracking or the store meets analysis.

HEADLINE = "headline.json"
"""Of a report: best losses and every fitted coefficient by name, as MLflow shows them."""
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


def report_sweep(workspace: Workspace, state: State | None = None) -> Path | None:
    """Fit and write the report from the result store; returns the page, None when there is no result yet.

    Everything else lies beside it.

    Args:
        workspace: The sweep.
        state: What the store holds; None reads it.
    """
    from orchestrator.analysis import fit_scaling_laws
    from orchestrator.analysis.findings import headline

    state = state or read_state(workspace)
    table = results_table(workspace, state=state)
    if table.empty:
        return None
    fits = fit_scaling_laws(table, arms=arms_of(workspace))
    summary = report_summary(workspace, state)
    folder, name = workspace.sweep_paths.report, workspace.plan.sweep.name
    path = Path(write_report(table, fits, folder, sweep=name, summary=summary))
    numbers = {name: value for name, value in headline(table, fits).items() if math.isfinite(value)}
    write_atomic(folder / HEADLINE, json.dumps(numbers, indent=1).encode(), durable=False)
    return path


def log_report(tracker: Tracker, workspace: Workspace, state: State) -> None:
    """Show in the sweep's own run in MLflow what the store has, and the latest report with its numbers.

    Args:
        tracker: Of the sweep.
        workspace: The sweep.
        state: What the store holds.
    """
    folder, numbers = workspace.sweep_paths.report, dict[str, float]()
    try:
        numbers = json.loads(read_whole(folder / HEADLINE))
    except (OSError, ValueError) as error:
        log.info("the numbers of the latest report cannot be read: %s", error)
    diverged = [one for one in state.results.values() if one.status == TrialStatus.DIVERGED]
    counts = {
        "trials_planned": len(workspace.plan.trials),
        "trials_done": len(state.results),
        "trials_failed": len(state.failures),
        "trials_diverged": len(diverged),
    }
    tracker.log_report({**numbers, **counts}, folder if folder.is_dir() else None)


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
        "tracebacks": {i: text for i, one in state.failures.items() if (text := one.failure.traceback)},
        "measures": [row for record in state.measures.values() for row in measure_rows(record)],
        "unreadable": [vars(item) for item in state.unreadable],
        "code_versions": dict(Counter(record.provenance.code_version for record in records)),
        "packages": records[0].provenance.packages if records else {},
        "newest": _date(max((record.finished_at for record in records), default=0.0)),
        "trial_devices": {record.trial_id: record.result.device for record in records},
        "cost": cost_of(state, read_prices(workspace.paths.prices)).text() if records else "",
        "devices": dict(Counter(record.result.device for record in records)),
        "cut": sum(record.result.micro_batch is not None for record in records),
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
