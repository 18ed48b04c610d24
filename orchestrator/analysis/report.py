"""The report of a sweep: an HTML page with answers, figures and tables, and data files."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.analysis.experiments.records import Arm
from orchestrator.analysis.findings import (
    family,
    findings,
    next_steps,
    opening_question,
    what_was_found,
)
from orchestrator.analysis.fits import Prepared, ScalingFits, fit_scaling_laws, prepare
from orchestrator.analysis.headline import with_p_values
from orchestrator.analysis.limits import SweepFacts
from orchestrator.analysis.published import score_table, scorecard
from orchestrator.analysis.results_tables.csv_files import csv_text
from orchestrator.analysis.results_tables.dataset_summaries import DatasetSummary
from orchestrator.analysis.results_tables.points import SEED_STD, WORDS
from orchestrator.analysis.sentences.finding import LABEL_SHARPNESS_MEANS
from orchestrator.analysis.sentences.methods import methods_paragraph
from orchestrator.analysis.sentences.words import words_of
from orchestrator.analysis.tables.layout import Table, laid_out
from orchestrator.analysis.tables.of_fits import fit_tables, not_fitted
from orchestrator.analysis.tables.of_trials import best_table, pair_table, seen_table
from orchestrator.planning.sweep_file import sweep_text
from orchestrator.planning.workspace import Workspace
from orchestrator.results.columns import (
    AUC,
    CLASS_PAIR,
    CODE_VERSION,
    D_DATA_MLE,
    DATASET,
    DONE,
    LABEL_SHARPNESS,
    MODEL,
    RECIPE,
    SEED,
    STATUS,
    TEST_ACCURACY,
    TEST_LOSS,
    TRAIN_SIZE,
    TRIAL_ID,
    WALL_TIME_S,
    describe,
)
from orchestrator.results.mlflow_pages import read_run_pages
from orchestrator.results.rows import Row, measure_rows, predictions_table
from orchestrator.results.state import State, read_state
from orchestrator.results.store import ResultStore
from orchestrator.results.sweep_tracking import HEADLINE
from search_spaces.datasets import DATASETS, ORIGINS
from search_spaces.errors import CorruptStoreError, DataError, SetupError
from tasks.atomic import write_atomic

NUM_KEY_FIGURES = 2
"""Number of figures that are visible when the page opens. Further figures are folded. If there
is only one dataset, only the learning curves are visible, because the other figures compare
datasets."""
ORDER = ("dataset", "class_pair", "model", "train_size", "seed")
"""Columns by which rows are sorted."""
NOT_IN_METRIC_NAMES = re.compile(r"[^\w\-. :/]+")
"""Characters that MLflow does not accept in the name of a metric."""
DERIVED = "DERIVED: "
"""Start of the description of a dataset that is derived from another dataset."""
MAX_EXACT_INTEGER = 1e15
"""Limit for whole numbers. Below this limit, they are written without a decimal point."""


def results_table(
    workspace: Workspace, rows: list[Row] | None = None, state: State | None = None
) -> pd.DataFrame:
    """Return the results table. It has one row for each planned trial with a valid result.

    Args:
        workspace: The sweep.
        rows: Rows from MLflow. If None, the rows of the result store are used.
        state: State of the result store. If None, the state is read.
    """
    if rows is None:
        rows = (state or read_state(workspace)).rows()
    planned = [row for row in rows if row["trial_id"] in workspace.plan.trials_by_id]
    planned.sort(key=itemgetter(*ORDER))
    return pd.DataFrame(planned)


def arms_of(workspace: Workspace) -> tuple[Arm, ...]:
    """Return the datasets of the sweep's experiment; empty if the sweep has no experiment."""
    arms = []
    for arm in workspace.plan.sweep.list_experiment_datasets():
        arms.append(
            Arm(
                dataset=arm.dataset_name,
                world=arm.base_name,
                moves=arm.target,
                name=arm.condition_name,
                shows=arm.images.digit_classes,
                intervene_on=arm.intervene_on,
            )
        )
    return tuple(arms)


def facts_of(workspace: Workspace) -> SweepFacts:
    """Return the facts that limit the answers of a sweep and that no results table contains.

    The origin of images is known only for bundled datasets. It is not known for a user's
    dataset with the name of a bundled dataset.
    """
    origins = {}
    for name, spec in workspace.plan.datasets.items():
        if name in ORIGINS and spec.description == DATASETS[name].description:
            origins[name] = ORIGINS[name]
    asked = workspace.plan.sweep.asked_after_seeing
    return SweepFacts(asked_after_seeing=asked, origins=origins)


def stored_predictions(
    workspace: Workspace, state: State, table: pd.DataFrame
) -> pd.DataFrame | None:
    """Return the stored predictions for each test image; None if there are none.

    If the table has several datasets, None is returned too, because networks are compared
    image by image only in sweeps of one dataset.

    Args:
        workspace: The sweep.
        state: State of the result store of the sweep.
        table: The results table of the sweep.
    """
    if table[DATASET].nunique() != 1:
        return None
    try:
        return predictions_table(state.records, ResultStore(workspace.results_url))
    except (DataError, CorruptStoreError):
        return None


def report_sweep(workspace: Workspace, state: State, formats: Sequence[str] = ()) -> Path | None:
    """Fit the stored results and write the report.

    Args:
        workspace: The sweep.
        state: State of the result store of the sweep.
        formats: Further formats of figure files: ``pdf`` or ``png``.

    Returns:
        Path of the page; None if there is no result.
    """
    table = results_table(workspace, state=state)
    if table.empty:
        return None
    fits = fit_scaling_laws(
        table,
        arms=arms_of(workspace),
        explore=True,
        predictions=stored_predictions(workspace, state, table),
        facts=facts_of(workspace),
    )
    folder = workspace.sweep_paths.report
    path = write_report(
        table,
        fits,
        folder,
        sweep=workspace.plan.sweep.name,
        summary=report_summary(workspace, state),
        formats=formats,
    )
    numbers = {}
    for name, value in headline(table, fits).items():
        if math.isfinite(value):
            numbers[name] = value
    write_atomic(folder / HEADLINE, json.dumps(numbers, indent=1).encode(), durable=False)
    return path


def report_summary(workspace: Workspace, state: State) -> dict[str, Any]:
    """Return the facts about the sweep that the page shows: counts, failures, versions, cost."""
    sweep = workspace.plan.sweep
    records = state.records
    pages = read_run_pages(workspace.sweep_paths.run_pages)
    newest = ""
    if records:
        finished_at = max(record.finished_at for record in records)
        newest = f"{datetime.fromtimestamp(finished_at, UTC):%d %B %Y, %H:%M UTC}"
    tracebacks = {}
    for trial_id, failed in state.failures.items():
        if failed.failure.traceback:
            tracebacks[trial_id] = failed.failure.traceback
    measures = []
    for record in state.measures.values():
        measures += measure_rows(record)
    datasets = {}
    for name, spec in workspace.plan.datasets.items():
        datasets[name] = {"title": spec.title, "description": spec.description}
    has_groups = False
    for prepared in workspace.prepared.values():
        has_groups |= prepared.record.num_groups < prepared.record.num_images
    return {
        "description": sweep.description,
        **state.counts(workspace.plan),
        "cut": sum(record.result.micro_batch is not None for record in records),
        "failures": state.failure_rows(),
        "tracebacks": tracebacks,
        "measures": measures,
        "unreadable": [vars(item) for item in state.unreadable],
        "code_versions": dict(Counter(record.provenance.code_version for record in records)),
        "packages": records[0].provenance.packages if records else {},
        "newest": newest,
        "trial_devices": {record.trial_id: record.result.device for record in records},
        "cost": state.cost()["text"] if records else "",
        "devices": dict(Counter(record.result.device for record in records)),
        "datasets": datasets,
        "preset": sweep_text(sweep),
        "methods": methods_paragraph(workspace.plan, state.trials, has_groups=has_groups),
        "runs": pages.runs,
        "run_pages": pages.prefix,
    }


def headline(table: pd.DataFrame, fits: ScalingFits) -> dict[str, float]:
    """Return metrics for MLflow: the lowest loss of each dataset, and the p-values of questions."""
    rows_with_loss = table.reindex(columns=[DATASET, TEST_LOSS]).dropna()
    metrics: dict[str, float] = {}
    for dataset, loss in rows_with_loss.groupby(DATASET)[TEST_LOSS].min().items():
        name = NOT_IN_METRIC_NAMES.sub(" ", f"best_test_loss/{dataset}")
        metrics[name] = float(loss)
    for answer in with_p_values(fits.answers):
        key = answer.question.key
        if answer.p_value is not None and answer.adjusted_p is not None:
            metrics[f"claim/{key}/p"] = answer.p_value
            metrics[f"claim/{key}/adjusted_p"] = answer.adjusted_p
    return metrics


def write_sweep_report(
    workspace: Workspace, state: State, figures: Sequence[str] = ()
) -> Path | None:
    """Write the report of a sweep, and return the path of its page; None if there is no result.

    Raises:
        SetupError: If a file of the report cannot be written.
    """
    try:
        return report_sweep(workspace, state, figures)
    except OSError as error:
        raise SetupError(
            f"The report {error.filename} cannot be written: {error.strerror}",
            hint="Copy the root to a folder in which you may create files, or use `isweep "
            "fit`, which creates no files",
        ) from None


def write_report(
    table: pd.DataFrame,
    fits: ScalingFits,
    directory: Path,
    *,
    sweep: str,
    summary: Mapping[str, Any],
    formats: Sequence[str] = (),
) -> Path:
    """Write the page, figures, results and ``fits.json``.

    The same input always gives the same bytes. Every file is replaced atomically.

    Args:
        table: A results table with one row per trial.
        fits: The fits of the table.
        directory: Folder to write to.
        sweep: Name of the sweep.
        summary: Facts about the sweep, as :func:`report_summary` returns them. Every entry is
            optional.
        formats: Further formats of figure files: ``pdf`` or ``png``.

    Returns:
        Path of ``report.html``.
    """
    from orchestrator.analysis.figures.files import write_figures

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    prepared = prepare(table, sharpness_policy=fits.sharpness_scale.policy)
    # Only columns of the given table are written. An empty column that was added would look as
    # if it had been measured.
    data = prepared.full[list(table.columns)]
    write_atomic(directory / "results.csv", csv_text(data).encode(), durable=False)
    write_atomic(directory / "results.parquet", data.to_parquet(index=False), durable=False)
    text = json.dumps(fits.to_json(), indent=1, allow_nan=False, ensure_ascii=False)
    write_atomic(directory / "fits.json", f"{text}\n".encode(), durable=False)
    figures = write_figures(prepared.points, fits, directory / "figures", formats)
    scores = scorecard(prepared.full)
    is_compared = any(score.num_compared for score in scores)
    num_key_figures = 1 if fits.one_dataset is not None else NUM_KEY_FIGURES
    page = _template().render(
        sweep=sweep,
        summary=summary,
        opening=opening_question(fits),
        fits=fits,
        found=what_was_found(fits),
        findings=findings(fits),
        family=family(fits),
        label_sharpness_means=LABEL_SHARPNESS_MEANS,
        next_steps=next_steps(fits, shlex.join(["isweep", "predict", sweep])),
        words=[*words_of(fits)],
        seen=seen_table(fits),
        pairs=pair_table(prepared.points, fits),
        key_figures=figures[:num_key_figures],
        figures=figures[num_key_figures:],
        datasets=_dataset_table(fits, summary.get("datasets", {})),
        fit_tables=fit_tables(fits),
        not_fitted=not_fitted(fits),
        published=score_table(scores) if is_compared else None,
        best=best_table(prepared.full),
        columns=[*describe(table.columns)],
        **_of_trials(prepared, summary),
    )
    path = directory / "report.html"
    write_atomic(path, page.encode(), durable=False)
    return path


def _of_trials(prepared: Prepared, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the trials, points, counts and code versions that the page shows."""
    from markupsafe import Markup

    full = prepared.full
    devices = summary.get("trial_devices", {})
    runs = summary.get("runs", {})
    trials = trial_data(full, devices, runs, str(summary.get("run_pages", "")))
    counts = {
        "planned": len(full),
        "done": len(full),
        "failed": len(summary.get("failures", ())),
        "diverged": int((full[STATUS] != DONE).sum()),
    }
    for name in counts:
        counts[name] = int(summary.get(name, counts[name]))
    versions = full.loc[full[CODE_VERSION] != "", CODE_VERSION].value_counts().sort_index()
    points = {"columns": [str(name) for name in prepared.points], "data": _rows(prepared.points)}
    return {
        "counts": counts,
        "trials": Markup(script_json(trials)),
        "points": Markup(script_json(points)),
        "code_versions": versions.to_dict() or summary.get("code_versions", {}),
    }


def _template() -> Any:
    """Return the template of the page, with its filters."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup, escape

    environment = Environment(
        loader=PackageLoader("orchestrator.analysis", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    in_backticks = re.compile(r"`([^`]+)`")

    def with_code(text: str) -> Markup:
        """Return HTML in which text between backticks is marked as code."""
        return Markup(in_backticks.sub(r"<code>\1</code>", str(escape(text))))

    environment.filters["words"] = with_code
    environment.filters["flat"] = flat_table
    return environment.get_template("report.html")


def _dataset_table(fits: ScalingFits, about: Mapping[str, Mapping[str, str]]) -> Table:
    """Return the table of datasets: description, train sizes and image shape."""

    def description_of(dataset: DatasetSummary) -> str:
        texts = about.get(dataset.dataset, {})
        title = texts.get("title", "")
        description = texts.get("description", "")
        if "(derived)" in title:
            description = description.removeprefix(DERIVED)
        return ". ".join(text.rstrip(".") for text in (title, description) if text)

    return laid_out(
        "datasets",
        "Datasets",
        "",
        fits.datasets,
        {
            "dataset": "dataset",
            "domain": "domain",
            "what it is": description_of,
            "trials": "num_trials",
            "train sizes": _train_sizes,
            "side² × channels": _shape,
        },
        numeric_from=3,
    )


def _train_sizes(dataset: DatasetSummary) -> str:
    return ", ".join(f"{size:,}" for size in dataset.train_sizes)


def _shape(dataset: DatasetSummary) -> str:
    """Return image size and number of channels as text."""
    if dataset.image_size is None or dataset.channels is None:
        return "not recorded"
    if not (dataset.image_size and dataset.channels):
        return "mixed"
    return f"{dataset.image_size}² × {dataset.channels}"


def flat_table(records: Sequence[Mapping[str, Any]], numeric_from: int | None = None) -> Table:
    """Return records as a table with one column per key.

    The columns from ``numeric_from`` on contain numbers.
    """
    names: dict[str, str] = {}
    for record in records:
        names.update(zip(record, record, strict=True))
    return laid_out("", "", "", records, names, numeric_from=numeric_from or len(names))


TEXT_COLUMNS = (MODEL, RECIPE, DATASET, CLASS_PAIR, STATUS)
NUMBER_COLUMNS = (
    TRAIN_SIZE,
    SEED,
    TEST_LOSS,
    TEST_ACCURACY,
    AUC,
    SEED_STD,
    D_DATA_MLE,
    LABEL_SHARPNESS,
    WALL_TIME_S,
)
SEEDS_SHARE = (MODEL, RECIPE, DATASET, CLASS_PAIR, TRAIN_SIZE)
"""Columns whose values are equal in trials that differ only in their seed."""


def trial_data(
    full: pd.DataFrame,
    devices: Mapping[str, str],
    runs: Mapping[str, str] | None = None,
    pages: str = "",
) -> dict[str, Any]:
    """Return all trials in a form that can be written as JSON.

    Args:
        full: A results table with one row per trial.
        devices: GPU or CPU of each training, by trial id.
        runs: Id of the MLflow run of each trial, by trial id.
        pages: Beginning of the address of a run's page.
    """
    keys = [name for name in SEEDS_SHARE if name in full]
    order = [*keys, SEED] if SEED in full else keys
    rows = full.sort_values(order, kind="stable")
    if RECIPE in keys and rows[RECIPE].nunique() < 2:
        rows = rows.drop(columns=RECIPE)
        keys.remove(RECIPE)
    if len(rows):
        rows[SEED_STD] = rows.groupby(keys, dropna=False)[TEST_LOSS].transform("std")
    trial_ids = [str(trial_id) for trial_id in rows[TRIAL_ID]]
    rows["device"] = [devices.get(trial_id, "") for trial_id in trial_ids]
    titles = {name: WORDS.get(name, name) for name in (*TEXT_COLUMNS, *NUMBER_COLUMNS)}
    titles |= {"device": "device", TRIAL_ID: "trial"}
    shown_columns = []
    for name in titles:
        if name in rows and not (len(rows) and _is_blank(rows[name])):
            shown_columns.append(name)
    return {
        "header": [titles[name] for name in shown_columns],
        "numeric": [name in NUMBER_COLUMNS for name in shown_columns],
        "rows": _rows(rows[shown_columns]),
        "pages": pages,
        "runs": [runs.get(trial_id, "") for trial_id in trial_ids] if runs else [],
    }


def _is_blank(values: pd.Series) -> bool:
    """Return whether all values of a column are missing or empty."""
    return bool(values.isna().all() or (values == "").all())


def _rows(table: pd.DataFrame) -> list[list[str | int | float | None]]:
    """Return the rows of a table in a form that can be written as JSON."""
    rows = []
    for row in table.itertuples(index=False, name=None):
        rows.append([_plain(value) for value in row])
    return rows


def script_json(document: object) -> str:
    """Return JSON that is safe inside an HTML ``script`` element, whatever names it contains."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _plain(value: Any) -> str | int | float | None:
    """Convert a value for JSON. Numbers get six significant figures, and infinity becomes text."""
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return None
    as_float = float(value)
    if not math.isfinite(as_float):
        return "∞" if as_float > 0 else "−∞"
    if as_float.is_integer() and abs(as_float) < MAX_EXACT_INTEGER:
        return int(as_float)
    return float(f"{as_float:.6g}")
