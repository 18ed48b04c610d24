"""The report: one self-contained HTML page that answers first, with figures, tables and fits as files beside
it.

From a sweep's results to its table, fits and page; no Ray, torch or MLflow.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.analysis.findings import family, findings, seen
from orchestrator.analysis.fit_records import ScalingFits
from orchestrator.analysis.fits import Prepared, fit_scaling_laws, prepare
from orchestrator.analysis.interventions import Arm
from orchestrator.analysis.published import side_by_side
from orchestrator.analysis.table import csv_text, interval, number
from orchestrator.analysis.tables import Table, best_table, fit_tables, not_fitted, seen_table, write_latex
from orchestrator.planning.estimate import read_prices
from orchestrator.planning.plan import Workspace
from orchestrator.planning.sweep_file import sweep_text
from orchestrator.results import table as c
from orchestrator.results.mlflow_pages import read_run_pages
from orchestrator.results.rows import Row, measure_rows
from orchestrator.results.state import State, cost_of, read_state
from orchestrator.results.tracking import Tracker
from search_spaces.errors import SetupError
from tasks.atomic import read_whole, write_atomic
from tasks.trials.records import TrialStatus

log = logging.getLogger(__name__)

HEADLINE = "headline.json"
"""Of a report: best losses and the headline claims by name, as MLflow shows them."""
ROW_ORDER = ("dataset", "class_pair", "model", "train_size", "seed")


def results_table(
    workspace: Workspace, rows: list[Row] | None = None, state: State | None = None
) -> pd.DataFrame:
    """Return the tidy table of a sweep: one row per planned trial with a result that holds, measures joined.

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
    state = state or read_state(workspace)
    table = results_table(workspace, state=state)
    if table.empty:
        return None
    fits = fit_scaling_laws(table, arms=arms_of(workspace), explore=True)
    summary = report_summary(workspace, state)
    folder, name = workspace.sweep_paths.report, workspace.plan.sweep.name
    path = write_report(table, fits, folder, sweep=name, summary=summary)
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
        "cut": sum(record.result.micro_batch is not None for record in records),
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


def headline(table: pd.DataFrame, fits: ScalingFits) -> dict[str, float]:
    """Return what a sweep found as plain numbers by name, for a tracker.

    These are the best test loss of each dataset, and of every headline question its p-value, alone and
    adjusted.
    """
    found: dict[str, float] = {}
    if c.TEST_LOSS in table:
        best = table.dropna(subset=[c.TEST_LOSS]).groupby(c.DATASET)[c.TEST_LOSS].min()
        # What MLflow takes in a metric's name.
        found |= {
            re.sub(r"[^\w\-. :/]+", " ", f"best_test_loss/{name}"): float(v) for name, v in best.items()
        }
    for claim in fits.claims:
        found |= {f"claim/{claim.key}/p": claim.p_value, f"claim/{claim.key}/adjusted_p": claim.adjusted_p}
    return found


def write_report(
    table: pd.DataFrame, fits: ScalingFits, directory: Path, *, sweep: str, summary: Mapping[str, Any]
) -> Path:
    """Write ``report.html``, ``figures/*.png|pdf``, ``results.csv``, ``results.parquet``, ``fits.json`` and
    ``tables/*.tex``.

    The same input gives the same bytes: no time, host or path is written. Every file is replaced whole, so
    that a report that is stopped leaves each as it was or as it will be.

    Args:
        table: the results table that ``fits`` came from.
        fits: what :func:`~orchestrator.analysis.fits.fit_scaling_laws` returned for it.
        directory: where to write; made if absent.
        sweep: name of the sweep, the page's title.
        summary: what only the caller knows; every key is optional. ``description``: one sentence.
            ``planned``, ``done``, ``failed``, ``diverged``: counts. ``failures``: list of ``{"trial_id",
            "kind", "message"}``. ``unreadable``, ``measures``: lists of flat records. ``datasets``: dataset →
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
    from orchestrator.analysis.figures import write_figures

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    policy, left_out = fits.sharpness_scale.policy, fits.at_guessing.left_out
    ready = prepare(table, sharpness_policy=policy, leave_out_chance=left_out)
    _write_data(table, ready.full, fits, directory)
    figures = write_figures(ready.points, fits, directory / "figures")
    page = _template().render(
        sweep=sweep,
        summary=summary,
        fits=fits,
        findings=findings(fits),
        family=family(fits),
        seen=seen_table(fits),
        seen_words=seen(fits),
        descriptions=_synthetic(fits, summary),
        key_figures=figures[:2],
        figures=figures[2:],
        tables=_tables(ready.full, fits, summary),
        not_fitted=not_fitted(fits),
        columns=[*c.describe(table.columns)],
        **_of_trials(ready, summary),
    )
    write_latex([seen_table(fits), *fit_tables(fits)], directory / "tables")
    path = directory / "report.html"
    write_atomic(path, page.encode(), durable=False)
    return path


def _of_trials(ready: Prepared, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of single trials, and what only the caller knows."""
    from markupsafe import Markup

    full = ready.full
    devices, runs = summary.get("trial_devices", {}), summary.get("runs", {})
    trials = trial_data(full, devices, runs, str(summary.get("run_pages", "")))
    versions = full.loc[full[c.CODE_VERSION] != "", c.CODE_VERSION].value_counts()
    codes = {str(name): int(num) for name, num in versions.items()} or dict(summary.get("code_versions", {}))
    preset = summary.get("preset", "")
    known = {
        "planned": len(full),
        "done": len(full),
        "failed": len(summary.get("failures", ())),
        "diverged": int((full[c.STATUS] != c.DONE).sum()),
    }
    return {
        "counts": [(name, int(summary.get(name, count))) for name, count in known.items()],
        "best": best_table(full),
        "trials": Markup(script_json(trials)),
        "pages": summary.get("run_pages", "") if runs else "",
        "points": Markup(script_json(point_data(ready.points))),
        "code_versions": dict(sorted(codes.items())),
        "preset": preset
        if isinstance(preset, str)
        else json.dumps(preset, indent=2, ensure_ascii=False, default=str),
    }


def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup, escape

    environment = Environment(
        loader=PackageLoader("orchestrator.analysis", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # What stands in backticks is set on the page as names are.
    environment.filters["words"] = lambda text: Markup(
        re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    )
    return environment.get_template("report.html")


def _write_data(table: pd.DataFrame, full: pd.DataFrame, fits: ScalingFits, directory: Path) -> None:
    # Only columns that the caller had: a column added as missing would pretend to have been measured.
    data = full[list(table.columns)]
    write_atomic(directory / "results.csv", csv_text(data).encode(), durable=False)
    write_atomic(directory / "results.parquet", data.to_parquet(index=False), durable=False)
    text = json.dumps(fits.to_json(), indent=1, allow_nan=False, ensure_ascii=False)
    write_atomic(directory / "fits.json", f"{text}\n".encode(), durable=False)


MEASURES_NOTE = (
    "d_data by every estimator: mle is maximum likelihood, twonn from two nearest neighbours, gride from up "
    "to sixteen. label_sharpness is K_F, label_sharpness_p99 what 99 % of the images stay below."
)


def _tables(full: pd.DataFrame, fits: ScalingFits, summary: Mapping[str, Any]) -> dict[str, list[Table]]:
    """Return all tables that have rows, by section of the report."""
    sections = {
        "datasets": [_datasets(fits, summary)],
        "fits": fit_tables(fits),
        "published": [_published(full)],
        "measures": [_records("measures", "Measures", summary.get("measures", ()), MEASURES_NOTE, 2)],
        "unreadable": [
            _records("unreadable", "Stored results that cannot be read", summary.get("unreadable", ()))
        ],
        "failures": [_records("failures", "Failed trials", summary.get("failures", ()))],
    }
    return {name: [table for table in tables if table.rows] for name, tables in sections.items()}


def _datasets(fits: ScalingFits, summary: Mapping[str, Any]) -> Table:
    about = summary.get("datasets", {})
    rows = tuple(
        (
            d.dataset,
            d.domain,
            _describe(about.get(d.dataset)),
            f"{d.num_trials:,}",
            ", ".join(f"{n:,}" for n in d.train_sizes),
            _with_range(d.d_data, d.d_data_range),
            _with_range(d.label_sharpness, d.label_sharpness_range),
            "mixed" if d.image_size is None or d.channels is None else f"{d.image_size}² × {d.channels}",
        )
        for d in fits.datasets
    )
    return Table(
        "datasets",
        "Datasets",
        "d_data by maximum likelihood; ranges are over train sizes and class pairs.",
        ("dataset", "domain", "what it is", "trials", "train sizes", "d_data", "K_F", "side² × channels"),
        rows,
        numeric_from=3,
    )


def _with_range(value: float | None, bounds: tuple[float, float] | None) -> str:
    even = bounds is None or bounds[0] == bounds[1]
    return number(value) if even else f"{number(value)} ({interval(bounds)})"


def _describe(entry: object) -> str:
    if isinstance(entry, Mapping):
        return ". ".join(str(entry[key]).rstrip(".") for key in ("title", "description") if entry.get(key))
    return "" if entry is None else str(entry)


def _synthetic(fits: ScalingFits, summary: Mapping[str, Any]) -> list[str]:
    """Return one sentence per dataset that is described as synthetic in any degree."""
    about = {d.dataset: _describe(summary.get("datasets", {}).get(d.dataset)) for d in fits.datasets}
    return [f"{name}: {text.rstrip('.')}." for name, text in about.items() if "synthetic" in text.lower()]


def _published(full: pd.DataFrame) -> Table:
    both = side_by_side(full)
    rows = tuple(
        (
            str(row["dataset"]),
            f"{row['train_size']:,.0f}",
            *(
                number(row[name + twin])
                for name in ("d_data", "label_sharpness", "test_loss")
                for twin in ("", "_published")
            ),
        )
        for _, row in both.iterrows()
    )
    return Table(
        "published",
        "Side by side with the published numbers",
        "At equal dataset and train size; losses are geometric means over the models that both have. The "
        "published data mode, class pairs, channels and image size differ from the corrected ones.",
        ("dataset", "train size", "d_data", "published", "K_F", "published", "test loss", "published"),
        rows,
    )


def _records(
    key: str,
    title: str,
    records: Iterable[Mapping[str, Any]],
    note: str = "",
    numeric_from: int | None = None,
) -> Table:
    """Lay out flat records under the union of their keys, in order of first appearance; as text throughout
    unless ``numeric_from`` says where numbers start.
    """
    found = list(records)
    names = tuple(dict.fromkeys(name for record in found for name in record))
    cells = tuple(tuple(_cell(record.get(name)) for name in names) for record in found)
    return Table(key, title, note, names, cells, len(names) if numeric_from is None else numeric_from)


def _cell(value: object) -> str:
    return number(value) if isinstance(value, float) else "" if value is None else str(value)


TEXT_COLUMNS = {
    c.MODEL: "model",
    c.RECIPE: "recipe",
    c.DATASET: "dataset",
    c.CLASS_PAIR: "pair",
    c.STATUS: "status",
}
NUMBER_COLUMNS = {
    c.TRAIN_SIZE: "N",
    c.SEED: "seed",
    c.TEST_LOSS: "test loss",
    c.TEST_ACCURACY: "accuracy",
    c.AUC: "AUC",
    "seed_std": "seed spread",
    c.D_DATA_MLE: "d_data",
    c.LABEL_SHARPNESS: "K_F",
    c.WALL_TIME_S: "time (s)",
}
"""Columns with their headings; those that a sweep does not have, or that are empty, are left out."""

_CELL = [c.MODEL, c.RECIPE, c.DATASET, c.CLASS_PAIR, c.TRAIN_SIZE]


def trial_data(
    full: pd.DataFrame, devices: Mapping[str, str], runs: Mapping[str, str] | None = None, pages: str = ""
) -> dict[str, Any]:
    """Return header and rows of all trials, ready for JSON; numbers stay numbers.

    Rows are ordered by model, dataset, class pair, N and seed.

    Args:
        full: The results table.
        devices: What each trial ran on, by its id, as far as is known.
        runs: What the tracker calls each trial's run, by trial id, as far as is known.
        pages: What stands before that in the address of its page.
    """
    order = [name for name in (*_CELL, c.SEED) if name in full]
    rows = full.sort_values(order, kind="stable") if order else full.copy()
    if c.RECIPE in rows and rows[c.RECIPE].nunique() < 2:
        rows = rows.drop(columns=c.RECIPE)
    keys = [name for name in _CELL if name in rows]
    if len(rows):
        rows["seed_std"] = rows.groupby(keys, dropna=False)[c.TEST_LOSS].transform("std")
    rows["device"] = [devices.get(str(name), "") for name in rows[c.TRIAL_ID]]
    text = {name: title for name, title in TEXT_COLUMNS.items() if name in rows}
    numbers = {name: title for name, title in NUMBER_COLUMNS.items() if name in rows}
    ends = {"device": "device", c.TRIAL_ID: "trial"}
    columns = {name: title for name, title in (text | numbers | ends).items() if not _is_empty(rows[name])}
    cells = [[_plain(value) for value in row] for row in rows[[*columns]].itertuples(index=False, name=None)]
    numeric = [name in numbers for name in columns]
    known = runs or {}
    return {
        "header": [*columns.values()],
        "numeric": numeric,
        "rows": cells,
        "pages": pages,
        "runs": [known.get(str(name), "") for name in rows[c.TRIAL_ID]] if known else [],
    }


def script_json(document: object) -> str:
    """Return JSON that may stand inside a ``script`` element, whatever users named things."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def point_data(points: pd.DataFrame) -> dict[str, Any]:
    """Return the points that figures draw, one row per cell, averaged over seeds."""
    cells = [[_plain(value) for value in row] for row in points.itertuples(index=False, name=None)]
    return {"columns": [str(name) for name in points.columns], "data": cells}


def _is_empty(column: pd.Series) -> bool:
    return len(column) > 0 and bool((column.isna() | (column == "")).all())


def _plain(value: Any) -> str | int | float | None:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return None
    found = float(value)
    if not math.isfinite(found):
        return "∞" if found > 0 else "−∞"
    return int(found) if found.is_integer() and abs(found) < 1e15 else float(f"{found:.6g}")
