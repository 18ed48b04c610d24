"""The report: a self-contained HTML page that answers first, with figures, tables and fits beside
it.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.analysis import tables as tb
from orchestrator.analysis.findings import family, findings
from orchestrator.analysis.fits import Prepared, ScalingFits, fit_scaling_laws, prepare
from orchestrator.analysis.interventions import Arm
from orchestrator.analysis.published import score_table, scorecard
from orchestrator.analysis.table import SEED_STD, WORDS, csv_text
from orchestrator.planning.sweep_file import sweep_text
from orchestrator.planning.workspace import Workspace
from orchestrator.results import columns as c
from orchestrator.results.mlflow_pages import read_run_pages
from orchestrator.results.rows import Row, measure_rows, predictions_table
from orchestrator.results.state import State, read_state
from orchestrator.results.store import ResultStore
from orchestrator.results.tracking import HEADLINE
from search_spaces.errors import CorruptStoreError, DataError, SetupError
from tasks.atomic import write_atomic


def results_table(
    workspace: Workspace, rows: list[Row] | None = None, state: State | None = None
) -> pd.DataFrame:
    """Return a row per planned trial with a result that holds: MLflow's ``rows``, or the result
    store's.
    """
    rows = (state or read_state(workspace)).rows() if rows is None else rows
    kept = [row for row in rows if row["trial_id"] in workspace.plan.trials_by_id]
    kept.sort(
        key=lambda row: [row[k] for k in ("dataset", "class_pair", "model", "train_size", "seed")]
    )
    return pd.DataFrame(kept)


def arms_of(workspace: Workspace) -> tuple[Arm, ...]:
    """Return the datasets of the sweep's experiment for the analysis; none where it has no
    worlds.
    """
    arms = workspace.plan.sweep.experiment
    return tuple(
        Arm(
            arm.prepared_name,
            arm.base_name,
            arm.moves,
            arm.condition_name,
            arm.images.digit_classes,
            arm.intervene_on,
        )
        for arm in arms
    )


def stored_predictions(
    workspace: Workspace, state: State, table: pd.DataFrame
) -> pd.DataFrame | None:
    """Return the predictions of each test image of a sweep of one dataset, None if none are stored.

    With several datasets nothing compares them image by image, so they are not read.

    Args:
        workspace: The sweep.
        state: What its result store holds.
        table: Its results table.
    """
    if table[c.DATASET].nunique() != 1:
        return None
    try:
        return predictions_table(state.records, ResultStore(workspace.results_url))
    except (DataError, CorruptStoreError):
        return None


def report_sweep(workspace: Workspace, state: State, formats: Sequence[str] = ()) -> Path | None:
    """Fit and write the report of what the result store has; return the page, None without a
    result.
    """
    table = results_table(workspace, state=state)
    if table.empty:
        return None
    fits = fit_scaling_laws(
        table,
        arms=arms_of(workspace),
        explore=True,
        predictions=stored_predictions(workspace, state, table),
    )
    summary = report_summary(workspace, state)
    folder, name = workspace.sweep_paths.report, workspace.plan.sweep.name
    path = write_report(table, fits, folder, sweep=name, summary=summary, formats=formats)
    numbers = {name: value for name, value in headline(table, fits).items() if math.isfinite(value)}
    write_atomic(folder / HEADLINE, json.dumps(numbers, indent=1).encode(), durable=False)
    return path


def report_summary(workspace: Workspace, state: State) -> dict[str, Any]:
    """Return what the report says about the sweep besides its numbers."""
    sweep = workspace.plan.sweep
    records = state.records
    pages = read_run_pages(workspace.sweep_paths.run_pages)
    newest = max((record.finished_at for record in records), default=0.0)
    return {
        "description": sweep.description,
        **state.counts(workspace.plan),
        "cut": sum(record.result.micro_batch is not None for record in records),
        "failures": state.failure_rows(),
        "tracebacks": {
            i: text for i, one in state.failures.items() if (text := one.failure.traceback)
        },
        "measures": [row for record in state.measures.values() for row in measure_rows(record)],
        "unreadable": [vars(item) for item in state.unreadable],
        "code_versions": dict(Counter(record.provenance.code_version for record in records)),
        "packages": records[0].provenance.packages if records else {},
        "newest": f"{datetime.fromtimestamp(newest, UTC):%d %B %Y, %H:%M UTC}" if newest else "",
        "trial_devices": {record.trial_id: record.result.device for record in records},
        "cost": state.cost()["text"] if records else "",
        "devices": dict(Counter(record.result.device for record in records)),
        "datasets": {
            name: {"title": spec.title, "description": spec.description}
            for name, spec in workspace.plan.datasets.items()
        },
        "preset": sweep_text(sweep),
        "runs": pages.runs,
        "run_pages": pages.prefix,
    }


def headline(table: pd.DataFrame, fits: ScalingFits) -> dict[str, float]:
    """Return, for a tracker, each dataset's best test loss and the p-values of the headline
    questions.
    """
    best = (
        table.reindex(columns=[c.DATASET, c.TEST_LOSS])
        .dropna()
        .groupby(c.DATASET)[c.TEST_LOSS]
        .min()
    )
    # What MLflow takes in a metric's name.
    names = best.index.map(lambda name: re.sub(r"[^\w\-. :/]+", " ", f"best_test_loss/{name}"))
    losses = dict(zip(names, best.astype(float).tolist(), strict=True))
    p_values = {f"claim/{claim.key}/p": claim.p_value for claim in fits.claims}
    return (
        losses
        | p_values
        | {f"claim/{claim.key}/adjusted_p": claim.adjusted_p for claim in fits.claims}
    )


def write_sweep_report(
    workspace: Workspace, state: State, figures: Sequence[str] = ()
) -> Path | None:
    """Write a sweep's report and return its page, None without a result; SetupError where it may
    not.
    """
    try:
        return report_sweep(workspace, state, figures)
    except OSError as error:
        rule, found = (
            "The report must be written below the root",
            f"{error.filename}: {error.strerror}",
        )
        hint = "copy the root, or ask for the results and the fits alone, which write nothing"
        raise SetupError(rule, found, hint) from None


def write_report(
    table: pd.DataFrame,
    fits: ScalingFits,
    directory: Path,
    *,
    sweep: str,
    summary: Mapping[str, Any],
    formats: Sequence[str] = (),
) -> Path:
    """Write ``report.html``, whose path is returned, figures (in ``formats`` too), results and
    ``fits.json``. The same input gives the same bytes, and every file is replaced whole. All of
    ``summary`` is optional.
    """
    from orchestrator.analysis.figures import write_figures

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    ready = prepare(table, sharpness_policy=fits.sharpness_scale.policy)
    # Only columns that the caller had: a column added as missing would pretend to have been
    # measured.
    data = ready.full[list(table.columns)]
    write_atomic(directory / "results.csv", csv_text(data).encode(), durable=False)
    write_atomic(directory / "results.parquet", data.to_parquet(index=False), durable=False)
    text = json.dumps(fits.to_json(), indent=1, allow_nan=False, ensure_ascii=False)
    write_atomic(directory / "fits.json", f"{text}\n".encode(), durable=False)
    figures = write_figures(ready.points, fits, directory / "figures", formats)
    scores = scorecard(ready.full)
    page = _template().render(
        sweep=sweep,
        summary=summary,
        fits=fits,
        findings=findings(fits),
        family=family(fits),
        seen=tb.seen_table(fits),
        key_figures=figures[:2],
        figures=figures[2:],
        datasets=_dataset_table(fits, summary.get("datasets", {})),
        fit_tables=tb.fit_tables(fits),
        not_fitted=tb.not_fitted(fits),
        published=score_table(scores) if any(score.num_compared for score in scores) else None,
        best=tb.best_table(ready.full),
        columns=[*c.describe(table.columns)],
        **_of_trials(ready, summary),
    )
    path = directory / "report.html"
    write_atomic(path, page.encode(), durable=False)
    return path


def _of_trials(ready: Prepared, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of single trials, and what only the caller knows."""
    from markupsafe import Markup

    full = ready.full
    devices, runs = summary.get("trial_devices", {}), summary.get("runs", {})
    trials = trial_data(full, devices, runs, str(summary.get("run_pages", "")))
    versions = full.loc[full[c.CODE_VERSION] != "", c.CODE_VERSION].value_counts().sort_index()
    counted = {"planned": len(full), "done": len(full), "failed": len(summary.get("failures", ()))}
    counted["diverged"] = int((full[c.STATUS] != c.DONE).sum())
    points = {"columns": [*map(str, ready.points)], "data": _rows(ready.points)}
    return {
        "counts": {name: int(summary.get(name, count)) for name, count in counted.items()},
        "trials": Markup(script_json(trials)),
        "points": Markup(script_json(points)),
        "code_versions": versions.to_dict() or summary.get("code_versions", {}),
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
    named = re.compile(r"`([^`]+)`")
    environment.filters["words"] = lambda text: Markup(
        named.sub(r"<code>\1</code>", str(escape(text)))
    )
    environment.filters["flat"] = flat_table
    return environment.get_template("report.html")


def _dataset_table(fits: ScalingFits, about: Mapping[str, Mapping[str, str]]) -> tb.Table:
    def describe(name: str) -> str:
        title, description = (about.get(name, {}).get(key, "") for key in ("title", "description"))
        description = description.removeprefix("DERIVED: ") if "(derived)" in title else description
        return ". ".join(text.rstrip(".") for text in (title, description) if text)

    return tb.laid_out(
        "datasets",
        "Datasets",
        "",
        fits.datasets,
        {
            "dataset": "dataset",
            "domain": "domain",
            "what it is": lambda d: describe(d.dataset),
            "trials": "num_trials",
            "train sizes": lambda d: ", ".join(f"{n:,}" for n in d.train_sizes),
            "side² × channels": lambda d: (
                f"{d.image_size}² × {d.channels}"
                if d.image_size and d.channels
                else "not recorded"
                if None in (d.image_size, d.channels)
                else "mixed"
            ),
        },
        numeric_from=3,
    )


def flat_table(records: Sequence[Mapping[str, Any]], numeric_from: int | None = None) -> tb.Table:
    """Lay out flat records under the union of their keys; numbers start at ``numeric_from``."""
    names = {name: name for record in records for name in record}
    return tb.laid_out("", "", "", records, names, numeric_from=numeric_from or len(names))


TEXT_COLUMNS = (c.MODEL, c.RECIPE, c.DATASET, c.CLASS_PAIR, c.STATUS)
NUMBER_COLUMNS = (
    c.TRAIN_SIZE,
    c.SEED,
    c.TEST_LOSS,
    c.TEST_ACCURACY,
    c.AUC,
    SEED_STD,
    c.D_DATA_MLE,
    c.LABEL_SHARPNESS,
    c.WALL_TIME_S,
)
_CELL = [c.MODEL, c.RECIPE, c.DATASET, c.CLASS_PAIR, c.TRAIN_SIZE]


def trial_data(
    full: pd.DataFrame,
    devices: Mapping[str, str],
    runs: Mapping[str, str] | None = None,
    pages: str = "",
) -> dict[str, Any]:
    """Return all trials for JSON, with what they ran on and their runs (by trial id) below
    ``pages``.
    """
    keys = [name for name in _CELL if name in full]
    rows = full.sort_values([*keys, *({c.SEED} & {*full})], kind="stable")
    if c.RECIPE in keys and rows[c.RECIPE].nunique() < 2:
        rows = rows.drop(columns=c.RECIPE)
        keys.remove(c.RECIPE)
    if len(rows):
        rows[SEED_STD] = rows.groupby(keys, dropna=False)[c.TEST_LOSS].transform("std")
    rows["device"] = [devices.get(str(name), "") for name in rows[c.TRIAL_ID]]
    titles = {name: WORDS[name] for name in (*TEXT_COLUMNS, *NUMBER_COLUMNS)}
    titles |= {"device": "device", c.TRIAL_ID: "trial"}
    blank = rows.isna().all() | (rows == "").all() if len(rows) else pd.Series(False, rows.columns)
    shown = [name for name in titles if name in rows and not blank[name]]
    return {
        "header": [titles[name] for name in shown],
        "numeric": [name in NUMBER_COLUMNS for name in shown],
        "rows": _rows(rows[shown]),
        "pages": pages,
        "runs": [runs.get(str(name), "") for name in rows[c.TRIAL_ID]] if runs else [],
    }


def _rows(table: pd.DataFrame) -> list[list[str | int | float | None]]:
    return [[_plain(value) for value in row] for row in table.itertuples(index=False, name=None)]


def script_json(document: object) -> str:
    """Return JSON that may stand inside a ``script`` element, whatever users named things."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _plain(value: Any) -> str | int | float | None:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return None
    found = float(value)
    if not math.isfinite(found):
        return "∞" if found > 0 else "−∞"
    return int(found) if found.is_integer() and abs(found) < 1e15 else float(f"{found:.6g}")
