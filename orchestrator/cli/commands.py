"""What each command of ``isweep`` does with its options: call the product, print what it found.

Data go to stdout, everything else to stderr. A function here returns the exit code.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from search_spaces.errors import ConfigError

EXIT_INTERRUPTED = 130

stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False)


def run(options: argparse.Namespace) -> int:
    """Do what is left of a sweep; prints the report's path last."""
    from orchestrator.running.pipeline import run_sweep
    from orchestrator.running.progress import Progress

    progress = Progress(console=None if options.quiet else stderr)
    try:
        summary = run_sweep(options.preset, _run_options(options), progress=progress)
    except KeyboardInterrupt:
        stderr.print(
            f"[bold]Stopped.[/] {progress.done} of {progress.planned} trials are kept; "
            f"continue with: isweep run {escape(options.preset)}"
        )
        return EXIT_INTERRUPTED
    for failure in summary.failures:
        stderr.print(escape(f"failed ({failure['kind']}) {failure['trial_id']}: {failure['message']}"))
    if summary.num_behind:
        stderr.print(
            f"MLflow misses {summary.num_behind} updates; send them with: isweep reconcile {options.preset}"
        )
    stderr.print(
        f"{summary.done} of {summary.planned} trials done, {summary.failed} failed, {summary.pending} left."
    )
    report = str(summary.report) if summary.report else None
    status = {
        "planned": summary.planned,
        "done": summary.done,
        "failed": summary.failed,
        "running": 0,
        "pending": summary.pending,
        "failures": summary.failures,
        "report": report,
    }
    _print(options, status, lambda: _line(report or "no report: no trial has a result"))
    return summary.exit_code


def plan(options: argparse.Namespace) -> int:
    """Show the grid, what is done and what the rest will cost."""
    from orchestrator.planning.estimate import estimate
    from orchestrator.planning.plan import plan_rows

    workspace = _workspace(options)
    state = _state(workspace)
    planned = workspace.plan.trials_by_id
    rows = plan_rows(workspace.plan, {trial_id: state.status(trial_id) for trial_id in planned})
    measures = [
        {
            "measure_id": measure.measure_id,
            "dataset": measure.subset.prepared.dataset,
            "train_sizes": list(measure.train_sizes),
            "status": "done" if measure.measure_id in state.measures else "pending",
        }
        for measure in workspace.plan.measures
    ]
    own = {choice.name for choice in workspace.plan.sweep.datasets if choice.own}
    missing = [
        {"dataset": spec.dataset, "prepared_id": spec.prepared_id, "own": spec.dataset in own}
        for spec in workspace.plan.prepared
        if spec.prepared_id not in workspace.prepared
    ]
    left = [trial for trial_id, trial in planned.items() if trial_id not in state.results]
    cost = estimate(left, state.measured_trials(), workspace.plan.sweep.resources.num_gpus)
    plan = {
        "sweep": workspace.plan.sweep.name,
        "trials": rows,
        "measures": measures,
        "not_prepared": missing,
        "estimate": cost,
    }

    def show() -> None:
        stdout.print(_grid_table(rows))
        stdout.print(
            f"{len(rows)} trials: {sum(row['status'] == 'done' for row in rows)} done; "
            f"{len(measures)} measures: {sum(m['status'] == 'done' for m in measures)} done"
        )
        for item in missing:
            hint = "isweep run prepares it" if item["own"] else f"see: isweep datasets {item['dataset']}"
            stdout.print(f"not prepared: {item['dataset']} ({hint})")
        stdout.print(escape(cost["text"]))

    _print(options, plan, show)
    return 0


def status(options: argparse.Namespace) -> int:
    """Show counts, and failures with their reasons."""
    from orchestrator.running.pipeline import failure_rows

    workspace = _workspace(options)
    state = _state(workspace)
    planned = workspace.plan.trials_by_id
    statuses = [state.status(trial_id) for trial_id in planned]
    status = {
        "planned": len(planned),
        **{name: statuses.count(name) for name in ("done", "failed", "running")},
        "pending": statuses.count("pending") + statuses.count("stale"),
        "stale": statuses.count("stale"),
        "diverged": sum(record.result.status == "diverged" for record in state.results.values()),
        "failures": failure_rows(state.failures),
        "unreadable": [vars(item) for item in state.unreadable],
        "foreign": sorted(state.foreign),
    }

    def show() -> None:
        names = ("planned", "done", "failed", "running", "pending", "diverged")
        stdout.print("  ".join(f"{name} {status[name]}" for name in names))
        for failure in status["failures"]:
            stdout.print(escape(f"failed ({failure['kind']}) {failure['trial_id']}: {failure['message']}"))
        if status["stale"]:
            stdout.print(f"{status['stale']} results were made from other data and will be made anew")
        for item in status["unreadable"]:
            stdout.print(escape(f"not believed: {item['path']}: {item['reason']}"))
        if status["foreign"]:
            stdout.print(f"{len(status['foreign'])} results belong to no planned trial; kept, not used")

    _print(options, status, show)
    return 0


def results(options: argparse.Namespace) -> int:
    """Print or write the tidy table."""
    workspace = _workspace(options)
    table = _table(workspace, options)
    from orchestrator.analysis import write_csv

    for path, write in (
        (options.csv, lambda p: write_csv(table, p)),
        (options.parquet, lambda p: table.to_parquet(p, index=False)),
    ):
        if path:
            try:
                write(Path(path))
            except OSError as error:
                raise ConfigError("The file must be one that can be written", f"{path}: {error}") from None
            stderr.print(f"wrote {len(table)} rows to {escape(path)}")
    rows = json.loads(table.to_json(orient="records", double_precision=15))
    shown = {
        "model": "model",
        "dataset": "dataset",
        "class_pair": "pair",
        "train_size": "N",
        "seed": "seed",
        "test_loss": "loss",
        "d_data_mle": "d_data",
        "label_sharpness": "K_F",
    }

    def show() -> None:
        grid = Table(*shown.values())
        for row in rows:
            grid.add_row(*(_cell(row.get(name)) for name in shown))
        stdout.print(grid)

    if options.json or not (options.csv or options.parquet):
        _print(options, rows, show)
    return 0


def fit(options: argparse.Namespace) -> int:
    """Print the fits."""
    from orchestrator.analysis import fit_scaling_laws

    fits = fit_scaling_laws(_table(_workspace(options), options))
    document = fits.to_json()
    _print(options, document, lambda: stdout.print_json(data=document))
    return 0


def report(options: argparse.Namespace) -> int:
    """Write the report and print its path."""
    from orchestrator.analysis.reporting import report_sweep
    from orchestrator.results.state import read_state

    workspace = _workspace(options)
    state = read_state(workspace)
    rows = None if options.from_store else _tracked_rows(workspace, options, state)
    path = report_sweep(workspace, rows, state)
    if path is None:
        raise _no_results(options.preset)
    _print(options, {"report": str(path)}, lambda: _line(str(path)))
    return 0


def predict(options: argparse.Namespace) -> int:
    """Print a prediction from the fits."""
    from orchestrator.analysis import fit_scaling_laws, predict

    prediction = predict(
        fit_scaling_laws(_table(_workspace(options), options)),
        model=options.model,
        domain=options.domain,
        d_data=options.d_data,
        label_sharpness=options.label_sharpness,
        train_size=options.train_size,
        target_loss=options.target_loss,
    )
    document = prediction.to_json()
    _print(options, document, lambda: stdout.print_json(data=document))
    return 0


def datasets(options: argparse.Namespace) -> int:
    """Print what each dataset is, needs, and whether it is prepared."""
    from orchestrator.running.catalogue import dataset_rows

    rows = dataset_rows(options.root, options.name)

    def show() -> None:
        for row in rows:
            prepared = ", ".join(row["prepared"]) or "not prepared"
            stdout.print(
                f"[bold]{row['name']}[/]  {escape(row['title'])} ({row['domain']}, {row['modality']})"
            )
            stdout.print(f"  {escape(row['description'])}", soft_wrap=True)
            stdout.print(f"  terms: {escape(row['terms'])}", soft_wrap=True)
            stdout.print(f"  files: {escape(row['raw_layout'])}", soft_wrap=True)
            stdout.print(f"  groups: {escape(row['groups'])}; {escape(prepared)}", soft_wrap=True)

    _print(options, rows, show)
    return 0


def prepare(options: argparse.Namespace) -> int:
    """Prepare one dataset and print its record."""
    from orchestrator.running.catalogue import prepare_one
    from orchestrator.running.progress import Progress

    progress = Progress(console=None if options.quiet else stderr)
    options.raw_folders = [f"{options.name}={options.raw}"] if options.raw else []
    record = prepare_one(
        options.name,
        preset=options.preset,
        run_options=_run_options(options),
        progress=progress,
        montage=Path(options.montage) if options.montage else None,
    )

    def show() -> None:
        for name, value in record.items():
            stdout.print(escape(f"{name}: {value}"), soft_wrap=True)

    _print(options, record, show)
    return 0


def reconcile(options: argparse.Namespace) -> int:
    """Replay the store to MLflow and print the counts."""
    from orchestrator.results.state import read_state
    from orchestrator.running.lock import exclusive
    from orchestrator.running.pipeline import flat_runs, mlflow_tracker

    workspace = _workspace(options)
    with exclusive(workspace.paths.lock, "isweep reconcile"):
        tracker = mlflow_tracker(workspace, options.mlflow_uri)
        counts = tracker.reconcile(flat_runs(read_state(workspace)))
        tracker.close(completed=True)

    def show() -> None:
        stdout.print("  ".join(f"{name} {count}" for name, count in counts.items()))

    _print(options, counts, show)
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Print all checks; exit code 3 when one fails."""
    from orchestrator.running.doctor import run_checks

    checks = run_checks(options.root, options.mlflow_uri, options.address)

    def show() -> None:
        for check in checks:
            mark = "[green]ok[/]  " if check["ok"] else "[red]no[/]  "
            stdout.print(f"{mark}{check['name']}: {escape(check['detail'])}", soft_wrap=True)
            if not check["ok"]:
                stdout.print(f"    fix: {escape(check['fix'])}", soft_wrap=True)

    _print(options, checks, show)
    return 0 if all(check["ok"] for check in checks) else 3


def measure(options: argparse.Namespace) -> int:
    """Measure a source and print both numbers."""
    from contextlib import ExitStack

    from orchestrator.analysis.placement import describe, save_pair
    from orchestrator.planning.paths import RootPaths
    from orchestrator.running.cluster import connect
    from orchestrator.running.own_data import MeasureRequest, measure_source
    from tasks.measures.measure import MeasureSettings
    from tasks.remote import Executor, InlineExecutor, RayExecutor

    request = MeasureRequest(
        source=options.source,
        labels=Path(options.labels) if options.labels else None,
        raw=Path(options.raw) if options.raw else None,
        class_pair=tuple(options.class_pair) if options.class_pair else None,
        max_skipped_share=options.max_skipped_share,
        train_sizes=tuple(options.train_sizes or ()),
        image_size=options.image_size,
        channels=options.channels,
        settings=MeasureSettings(
            num_neighbors=options.num_neighbors,
            sharpness_sample=options.sharpness_sample or None,
            pixel_range=tuple(options.pixel_range) if options.pixel_range else None,
            dtype=options.dtype,
            device=options.device,
            calibrate=options.calibrate,
            seed=options.seed,
        ),
    )
    paths = RootPaths.create(options.root)
    with ExitStack() as stack:
        executor: Executor = InlineExecutor()
        if options.address or options.num_workers > 1:
            cluster = stack.enter_context(
                connect(options.address, num_cpus=options.num_workers, dashboard=False)
            )
            # The source and the prepared images lie on this node.
            executor = RayExecutor(driver_node_only=not cluster.local)
        measured = measure_source(request, executor, paths)
    if options.show_pair:
        save_pair(measured, Path(options.show_pair))
        stderr.print(f"wrote {escape(options.show_pair)}")

    def show() -> None:
        stdout.print(_measure_table(measured.record))
        for line in describe(measured):
            stdout.print(escape(line), soft_wrap=True)

    _print(options, measured.to_json(), show)
    return 0


def locate(options: argparse.Namespace) -> int:
    """Print the file behind a hash of a message, for who holds the root's key."""
    from orchestrator.planning.paths import RootPaths
    from tasks.sources.privacy import locate as find

    raw = Path(options.raw)
    if not raw.exists():
        raise ConfigError("--raw must be the folder that was read", options.raw)
    name = find(raw, RootPaths.create(options.root).root / "prepared", options.hash)
    if name is None:
        raise ConfigError("The hash must be of a file below --raw, made with this root's key", options.hash)
    _print(options, {"file": name}, lambda: _line(name))
    return 0


def _measure_table(record: Any) -> Table:
    table = Table("images", "estimator", "d_data", "std error", "K_F", "duplicates")
    for size in record.sizes:
        sharpness = size.label_sharpness
        shown = "" if sharpness is None else _cell(sharpness.value) or f"undefined: {sharpness.reason}"
        for index, (name, estimate) in enumerate(size.d_data.items()):
            value = _cell(estimate.value) or f"undefined: {estimate.reason}"
            head = (str(size.train_size), shown, str(size.num_duplicates)) if index == 0 else ("", "", "")
            table.add_row(head[0], name, value, _cell(estimate.std_error), head[1], head[2])
    if record.calibration is not None:
        document = record.calibration.to_json()
        interval = document.get("interval")
        spread = f"{interval[0]:.3g} to {interval[1]:.3g}" if interval else ""
        table.add_row("", "calibrated", _cell(document.get("value")), spread, "", "")
    return table


def _workspace(options: argparse.Namespace) -> Any:
    from orchestrator.planning.workspace import Workspace

    return Workspace.open(options.preset, options.root, options.storage)


def _state(workspace: Any) -> Any:
    from orchestrator.results.state import read_state
    from orchestrator.running.progress import running_trials

    return read_state(workspace, running_trials(workspace))


def _table(workspace: Any, options: argparse.Namespace) -> Any:
    from orchestrator.analysis.reporting import results_table
    from orchestrator.results.state import read_state

    state = read_state(workspace)
    rows = None if options.from_store else _tracked_rows(workspace, options, state)
    table = results_table(workspace, rows, state)
    if table.empty:
        raise _no_results(options.preset)
    return table


def _tracked_rows(workspace: Any, options: argparse.Namespace, state: Any) -> list[dict[str, Any]]:
    from orchestrator.results.tracking.mlflow import connect, read_rows
    from orchestrator.running.pipeline import mlflow_uri

    rows = read_rows(connect(mlflow_uri(workspace, options.mlflow_uri)), workspace.plan.sweep.name)
    tracked = {row["trial_id"] for row in rows}
    missing = len(set(state.results) - tracked)
    if missing:
        stderr.print(
            f"MLflow lacks {missing} results that the store has: send them with "
            f"`isweep reconcile {escape(options.preset)}`, or read the store with --from-store"
        )
    return rows


def _no_results(preset: str) -> ConfigError:
    return ConfigError(f"Sweep {preset!r} has no results yet", way_out=f"run it: isweep run {preset}")


def _run_options(options: argparse.Namespace) -> Any:
    from orchestrator.running.pipeline import RunOptions

    return RunOptions(
        root=options.root,
        storage=options.storage,
        address=options.address,
        num_cpus=options.num_cpus,
        device=options.device,
        dashboard=options.dashboard,
        mlflow_uri=options.mlflow_uri,
        tracking=options.tracking,
        raw=_raw_folders(options.raw_folders),
        max_skipped_share=options.max_skipped_share,
    )


def _raw_folders(values: list[str]) -> dict[str, Path]:
    folders = {}
    for value in values:
        name, equals, folder = value.partition("=")
        if not equals or not name or not folder:
            raise ConfigError("--raw must be NAME=DIR", value, "e.g. --raw mnist=/data/mnist")
        folders[name] = Path(folder)
    return folders


def _print(options: argparse.Namespace, document: Any, show: Callable[[], None]) -> None:
    if options.json:
        _line(json.dumps(document, indent=1, allow_nan=False))
    else:
        show()


def _line(text: str) -> None:
    # Not through rich, which would fold a long path or JSON string at the terminal's width.
    sys.stdout.write(f"{text}\n")


def _grid_table(rows: list[dict[str, Any]]) -> Table:
    table = Table()
    names = ("model", "dataset", "class_pair", "train_size", "seed", "status")
    for name in names:
        table.add_column(name)
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in names))
    return table


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else escape("" if value is None else str(value))
