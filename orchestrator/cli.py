"""The command line: parsing and printing only. Data go to stdout, everything else to stderr."""

from __future__ import annotations

import argparse
import json
import logging
import logging.handlers
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.errors import ConfigError, SweepError

EXIT_INTERRUPTED = 130

stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed cells, 2 usage, 3 environment."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _terminate_like_ctrl_c()
    try:
        _log_to_file(options)
        code: int = options.command(options)
        sys.stdout.flush()
        return code
    except SweepError as error:
        stderr.print(f"[bold red]isweep:[/] {escape(str(error))}")
        return error.exit_code
    except KeyboardInterrupt:
        stderr.print("[bold]Stopped.[/] What was finished is kept.")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`| head`): nothing is wrong, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def entry() -> NoReturn:
    """Entry point of the ``isweep`` command."""
    sys.exit(main())


def _run(options: argparse.Namespace) -> int:
    from orchestrator.display import Progress
    from orchestrator.pipeline import run_sweep

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


def _plan(options: argparse.Namespace) -> int:
    from orchestrator.estimate import estimate
    from orchestrator.plan import plan_rows

    workspace = _workspace(options)
    state = workspace.state()
    statuses = {trial_id: state.status(trial_id) for trial_id in workspace.plan.trials_by_id}
    rows = plan_rows(workspace.plan, statuses)
    measured = workspace.measures()
    measures = [
        {
            "measure_id": measure.measure_id,
            "dataset": measure.subset.prepared.dataset,
            "train_sizes": list(measure.train_sizes),
            "status": "done" if measure.measure_id in measured else "pending",
        }
        for measure in workspace.plan.measures
    ]
    missing = [
        {"dataset": spec.dataset, "prepared_id": spec.prepared_id}
        for spec in workspace.plan.prepared
        if spec.prepared_id not in workspace.prepared
    ]
    cost = estimate(workspace, state)
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
            stdout.print(f"not prepared: {item['dataset']} (see: isweep datasets {item['dataset']})")
        stdout.print(escape(cost["text"]))

    _print(options, plan, show)
    return 0


def _status(options: argparse.Namespace) -> int:
    from orchestrator.pipeline import failure_rows

    workspace = _workspace(options)
    state = workspace.state()
    planned = workspace.plan.trials_by_id
    statuses = [state.status(trial_id) for trial_id in planned]
    status = {
        "planned": len(planned),
        **{name: statuses.count(name) for name in ("done", "failed", "running")},
        "pending": statuses.count("pending") + statuses.count("stale"),
        "stale": statuses.count("stale"),
        "diverged": sum(record["status"] == "diverged" for record in state.results.values()),
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


def _results(options: argparse.Namespace) -> int:
    workspace = _workspace(options)
    table = _table(workspace, options)
    from orchestrator.analysis import write_csv

    for path, write in (
        (options.csv, lambda p: write_csv(table, p)),
        (options.parquet, lambda p: table.to_parquet(p, index=False)),
    ):
        if path:
            write(Path(path))
            stderr.print(f"wrote {len(table)} rows to {escape(path)}")
    rows = json.loads(table.to_json(orient="records", double_precision=15))
    shown = (
        "model",
        "dataset",
        "class_pair",
        "train_size",
        "seed",
        "test_loss",
        "d_data_mle",
        "label_sharpness",
    )

    def show() -> None:
        grid = Table()
        for name in shown:
            grid.add_column(name)
        for row in rows:
            grid.add_row(*(_cell(row.get(name)) for name in shown))
        stdout.print(grid)

    if options.json or not (options.csv or options.parquet):
        _print(options, rows, show)
    return 0


def _fit(options: argparse.Namespace) -> int:
    from orchestrator.analysis import fit_scaling_laws

    fits = fit_scaling_laws(_table(_workspace(options), options))
    document = fits.to_json()
    _print(options, document, lambda: stdout.print_json(data=document))
    return 0


def _report(options: argparse.Namespace) -> int:
    from orchestrator.reporting import report_sweep

    workspace = _workspace(options)
    rows = None if options.from_store else _tracked_rows(workspace, options)
    path = report_sweep(workspace, rows)
    if path is None:
        raise _no_results(options.preset)
    _print(options, {"report": str(path)}, lambda: _line(str(path)))
    return 0


def _predict(options: argparse.Namespace) -> int:
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


def _datasets(options: argparse.Namespace) -> int:
    from orchestrator.catalogue import dataset_rows

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


def _prepare(options: argparse.Namespace) -> int:
    from orchestrator.catalogue import prepare_one
    from orchestrator.display import Progress

    progress = Progress(console=None if options.quiet else stderr)
    record = prepare_one(
        options.name,
        raw=Path(options.raw) if options.raw else None,
        preset=options.preset,
        run_options=_run_options(options),
        progress=progress,
    )

    def show() -> None:
        for name, value in record.items():
            stdout.print(escape(f"{name}: {value}"), soft_wrap=True)

    _print(options, record, show)
    return 0


def _reconcile(options: argparse.Namespace) -> int:
    from orchestrator.lock import exclusive
    from orchestrator.pipeline import mlflow_tracker, stored_runs

    workspace = _workspace(options)
    with exclusive(workspace.paths.lock, "isweep reconcile"):
        tracker = mlflow_tracker(workspace, options.mlflow_uri)
        counts = tracker.reconcile(stored_runs(workspace))
        tracker.close(completed=True)

    def show() -> None:
        stdout.print("  ".join(f"{name} {count}" for name, count in counts.items()))

    _print(options, counts, show)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from orchestrator.doctor import run_checks

    checks = run_checks(options.root, options.mlflow_uri, options.address)

    def show() -> None:
        for check in checks:
            mark = "[green]ok[/]  " if check["ok"] else "[red]no[/]  "
            stdout.print(f"{mark}{check['name']}: {escape(check['detail'])}", soft_wrap=True)
            if not check["ok"]:
                stdout.print(f"    fix: {escape(check['fix'])}", soft_wrap=True)

    _print(options, checks, show)
    return 0 if all(check["ok"] for check in checks) else 3


def _measure(options: argparse.Namespace) -> int:
    from contextlib import ExitStack

    from orchestrator.cluster import connect
    from orchestrator.measure_source import MeasureRequest, describe, measure_source, save_pair
    from orchestrator.paths import RootPaths
    from tasks.measures import MeasureSettings
    from tasks.remote import Executor, InlineExecutor, RayExecutor

    request = MeasureRequest(
        source=options.source,
        labels=Path(options.labels) if options.labels else None,
        raw=Path(options.raw) if options.raw else None,
        class_pair=_class_pair(options.class_pair),
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
    scratch = RootPaths.create(options.root).root
    with ExitStack() as stack:
        executor: Executor = InlineExecutor()
        if options.address or options.num_workers > 1:
            stack.enter_context(connect(options.address, num_cpus=options.num_workers, dashboard=False))
            executor = RayExecutor()
        measured = measure_source(request, executor, scratch)
    if options.show_pair:
        save_pair(measured, Path(options.show_pair))
        stderr.print(f"wrote {escape(options.show_pair)}")

    def show() -> None:
        stdout.print(_measure_table(measured.record))
        for line in describe(measured):
            stdout.print(escape(line), soft_wrap=True)

    _print(options, measured.to_json(), show)
    return 0


def _measure_table(record: Any) -> Table:
    table = Table(
        "images", "estimator", "intrinsic dimension", "std error", "label sharpness K_F", "duplicates"
    )
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


def _class_pair(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, second = text.partition("-")
    if not (first.isdigit() and second.isdigit()) or first == second:
        raise ConfigError("--class-pair must be two different class numbers", text, "e.g. --class-pair 3-8")
    return int(first), int(second)


def _workspace(options: argparse.Namespace) -> Any:
    from orchestrator.workspace import Workspace

    return Workspace.open(options.preset, options.root, options.storage)


def _table(workspace: Any, options: argparse.Namespace) -> Any:
    from orchestrator.reporting import results_table

    rows = None if options.from_store else _tracked_rows(workspace, options)
    table = results_table(workspace, rows)
    if table.empty:
        raise _no_results(options.preset)
    return table


def _tracked_rows(workspace: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    from orchestrator.pipeline import mlflow_uri
    from orchestrator.tracking.mlflow import connect, read_rows

    return read_rows(connect(mlflow_uri(workspace, options.mlflow_uri)), workspace.plan.sweep.name)


def _no_results(preset: str) -> ConfigError:
    return ConfigError(f"Sweep {preset!r} has no results yet", way_out=f"run it: isweep run {preset}")


def _run_options(options: argparse.Namespace) -> Any:
    from orchestrator.pipeline import RunOptions

    return RunOptions(
        root=options.root,
        storage=options.storage,
        address=options.address,
        num_cpus=options.num_cpus,
        device=options.device,
        dashboard=options.dashboard,
        mlflow_uri=options.mlflow_uri,
        tracking=options.tracking,
        raw=_raw_folders(getattr(options, "raw_folders", [])),
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


def _log_to_file(options: argparse.Namespace) -> None:
    """Send all logs to one file below the root: the terminal is for the user, the file for whoever digs."""
    from orchestrator.paths import RootPaths

    warnings.simplefilter("ignore")
    paths = RootPaths.create(options.root)
    handler = logging.handlers.RotatingFileHandler(paths.log, maxBytes=5_000_000, backupCount=3, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("fontTools").setLevel(logging.WARNING)


def _terminate_like_ctrl_c() -> None:
    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="isweep",
        description="Explain how a dataset's intrinsic properties decide what networks learn from it.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--root", metavar="DIR", help="folder of everything (default: $ISWEEP_ROOT or ./isweep-root)"
    )
    common.add_argument("--json", action="store_true", help="print data as JSON on stdout")
    common.add_argument(
        "--storage", metavar="URL", help="fsspec URL of the result store (default: below the root)"
    )
    common.add_argument("--mlflow-uri", metavar="URI", help="MLflow store (default: SQLite below the root)")
    cluster = argparse.ArgumentParser(add_help=False)
    cluster.add_argument("--address", metavar="HOST:PORT", help="running Ray cluster, or 'auto' on its head")
    cluster.add_argument("--num-cpus", type=_positive, metavar="N", help="CPUs of the private Ray cluster")
    cluster.add_argument(
        "--device",
        choices=("auto", "cpu", "gpu"),
        default="auto",
        help="auto uses GPUs when the cluster has some now; gpu waits for an autoscaled one",
    )
    cluster.add_argument(
        "--no-dashboard", dest="dashboard", action="store_false", help="serve no Ray dashboard"
    )
    cluster.add_argument("--no-tracking", dest="tracking", action="store_false", help="do not use MLflow")
    cluster.add_argument("--quiet", action="store_true", help="show no progress")
    table = argparse.ArgumentParser(add_help=False)
    table.add_argument("--from-store", action="store_true", help="read the result files instead of MLflow")

    def command(
        name: str, function: Callable[[argparse.Namespace], int], text: str, *parents: argparse.ArgumentParser
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text, parents=[common, *parents])
        made.set_defaults(command=function)
        return made

    def with_preset(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
        made.add_argument("preset", metavar="PRESET", help="name of a preset, or path of a sweep file")
        return made

    run = with_preset(command("run", _run, "do what is left: prepare, measure, train, fit, report", cluster))
    run.add_argument(
        "--raw",
        dest="raw_folders",
        metavar="NAME=DIR",
        action="append",
        default=[],
        help="raw download of a dataset",
    )
    with_preset(command("plan", _plan, "show the grid, what is done and what it will cost"))
    with_preset(command("status", _status, "show progress, and failures with their reasons"))
    results = with_preset(command("results", _results, "tidy table, one row per trial", table))
    results.add_argument("--csv", metavar="FILE", help="write it as CSV")
    results.add_argument("--parquet", metavar="FILE", help="write it as Parquet")
    with_preset(command("fit", _fit, "fit the scaling laws", table))
    with_preset(command("report", _report, "write the report with its figures", table))
    predict = with_preset(command("predict", _predict, "loss at a train size, or size for a loss", table))
    predict.add_argument("--model", required=True)
    predict.add_argument("--domain", choices=("natural", "medical"))
    predict.add_argument(
        "--d-data", type=float, required=True, help="intrinsic dimension of your training set"
    )
    predict.add_argument("--label-sharpness", type=float, required=True, help="K_F of your training set")
    goal = predict.add_mutually_exclusive_group(required=True)
    goal.add_argument("--train-size", type=_positive)
    goal.add_argument("--target-loss", type=float)
    datasets = command("datasets", _datasets, "what each dataset is, needs, and whether it is prepared")
    datasets.add_argument("name", nargs="?", metavar="NAME")
    prepare = command("prepare", _prepare, "prepare one dataset from its raw download", cluster)
    prepare.add_argument("name", metavar="NAME")
    prepare.add_argument("--raw", metavar="DIR", help="folder of the raw download")
    prepare.add_argument("--preset", metavar="PRESET", default="paper", help="take image size etc. from here")
    measure = command("measure", _measure, "intrinsic dimension and label sharpness of your own images")
    measure.add_argument(
        "source",
        metavar="SOURCE",
        help="folder of class folders, .csv, .npz, .npy, prepared folder, dataset name",
    )
    measure.add_argument(
        "--labels", metavar="FILE", help="labels for a .npy: .npy, or text with one per image"
    )
    measure.add_argument("--raw", metavar="DIR", help="raw download, for a dataset's name")
    measure.add_argument("--class-pair", metavar="A-B", help="only these two classes")
    measure.add_argument(
        "--train-sizes", type=_positive, nargs="+", metavar="N", help="nested sizes to measure too"
    )
    measure.add_argument("--image-size", type=_positive, help="resize to this side (image files: 224)")
    measure.add_argument("--channels", type=int, choices=(1, 3), default=1)
    measure.add_argument("--num-neighbors", type=_positive, default=20, help="k of the MLE (default 20)")
    measure.add_argument(
        "--sharpness-sample",
        type=int,
        default=1000,
        help="images per sample for K_F (default 1000; 0 for all)",
    )
    measure.add_argument(
        "--pixel-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="of float arrays"
    )
    measure.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    measure.add_argument("--device", default="cpu", help="cpu, or a torch device for the matrix products")
    measure.add_argument(
        "--calibrate", action="store_true", help="correct the dimension's bias by simulation"
    )
    measure.add_argument("--seed", type=int, default=0)
    measure.add_argument(
        "--show-pair", metavar="FILE", help="draw the pair that attains K_F (shows your images)"
    )
    measure.add_argument("--address", metavar="HOST:PORT", help="running Ray cluster")
    measure.add_argument("--num-workers", type=_positive, default=1, help="Ray workers; 1 runs without Ray")
    with_preset(command("reconcile", _reconcile, "replay the result store to MLflow, close ghosts"))
    doctor = command("doctor", _doctor, "check machine, cluster, storage, MLflow, versions, security")
    doctor.add_argument("--address", metavar="HOST:PORT", help="also check this Ray cluster")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    entry()
