"""The command line: parsing only; :mod:`orchestrator.cli.commands` has what each command does."""

from __future__ import annotations

import argparse
import logging
import logging.handlers
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn, TypeVar

from rich.markup import escape

from orchestrator.cli import commands
from orchestrator.cli.commands import EXIT_INTERRUPTED, stderr
from search_spaces.errors import SweepError

Number = TypeVar("Number", int, float)


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


def _log_to_file(options: argparse.Namespace) -> None:
    """Send all logs to one file below the root: the terminal is for the user, the file for whoever digs."""
    from orchestrator.planning.paths import RootPaths

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
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
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
    reading = argparse.ArgumentParser(add_help=False)
    reading.add_argument(
        "--max-skipped-share",
        type=_share,
        default=0.001,
        metavar="SHARE",
        help="largest share of a dataset's files that may be unusable (default 0.001)",
    )
    table = argparse.ArgumentParser(add_help=False)
    table.add_argument("--from-store", action="store_true", help="read the result files instead of MLflow")

    def command(
        name: str, function: Callable[[argparse.Namespace], int], text: str, *parents: argparse.ArgumentParser
    ) -> argparse.ArgumentParser:
        made = subparsers.add_parser(name, help=text, description=text, parents=[common, *parents])
        made.set_defaults(command=function)
        return made

    def with_preset(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
        made.add_argument("preset", metavar="PRESET", help="name of a preset, or path of a sweep file")
        return made

    run = with_preset(
        command("run", commands.run, "do what is left: prepare, measure, train, report", cluster, reading)
    )
    run.add_argument(
        "--raw",
        dest="raw_folders",
        metavar="NAME=DIR",
        action="append",
        default=[],
        help="raw download of a dataset",
    )
    with_preset(command("plan", commands.plan, "show the grid, what is done and what it will cost"))
    with_preset(command("status", commands.status, "show progress, and failures with their reasons"))
    results = with_preset(command("results", commands.results, "tidy table, one row per trial", table))
    results.add_argument("--csv", metavar="FILE", help="write it as CSV")
    results.add_argument("--parquet", metavar="FILE", help="write it as Parquet")
    with_preset(command("fit", commands.fit, "fit the scaling laws", table))
    with_preset(command("report", commands.report, "write the report with its figures", table))
    predict = with_preset(command("predict", commands.predict, "loss at a size, or size for a loss", table))
    predict.add_argument("--model", required=True)
    predict.add_argument("--domain", choices=("natural", "medical"))
    predict.add_argument(
        "--d-data", type=float, required=True, help="intrinsic dimension of your training set"
    )
    predict.add_argument("--label-sharpness", type=float, required=True, help="K_F of your training set")
    goal = predict.add_mutually_exclusive_group(required=True)
    goal.add_argument("--train-size", type=_positive)
    goal.add_argument("--target-loss", type=float)
    datasets = command("datasets", commands.datasets, "what each dataset is and needs")
    datasets.add_argument("name", nargs="?", metavar="NAME")
    prepare = command(
        "prepare", commands.prepare, "prepare one dataset from its raw download", cluster, reading
    )
    prepare.add_argument("name", metavar="NAME")
    prepare.add_argument("--raw", metavar="DIR", help="folder of the raw download")
    prepare.add_argument("--montage", metavar="FILE", help="draw examples of each label (shows images)")
    prepare.add_argument("--preset", metavar="PRESET", default="paper", help="take image size etc. from here")
    measure = command("measure", commands.measure, "d_data and label sharpness of your own images", reading)
    measure.add_argument(
        "source",
        metavar="SOURCE",
        help="folder of class folders, .csv, .npz, .npy, prepared folder, dataset name",
    )
    measure.add_argument(
        "--labels", metavar="FILE", help="labels for a .npy: .npy, or text with one per image"
    )
    measure.add_argument("--raw", metavar="DIR", help="raw download, for a dataset's name")
    measure.add_argument("--class-pair", nargs=2, metavar=("A", "B"), help="only these two classes, by name")
    measure.add_argument(
        "--train-sizes", type=_positive, nargs="+", metavar="N", help="nested sizes to measure too"
    )
    measure.add_argument("--image-size", type=_side, help="resize to this side (image files: 224)")
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
    measure.add_argument("--seed", type=_not_negative, default=0)
    measure.add_argument(
        "--show-pair", metavar="FILE", help="draw the pair that attains K_F (shows your images)"
    )
    measure.add_argument("--address", metavar="HOST:PORT", help="running Ray cluster")
    measure.add_argument("--num-workers", type=_positive, default=1, help="Ray workers; 1 runs without Ray")
    locate = command("locate", commands.locate, "find the file behind a hash in a message")
    locate.add_argument("hash", metavar="HASH")
    locate.add_argument("--raw", metavar="DIR", required=True, help="folder that was read")
    with_preset(command("reconcile", commands.reconcile, "replay the result store to MLflow, close ghosts"))
    doctor = command("doctor", commands.doctor, "check machine, cluster, storage, MLflow, versions, security")
    doctor.add_argument("--address", metavar="HOST:PORT", help="also check this Ray cluster")
    return parser


def _number(text: str, make: Callable[[str], Number], kind: str) -> Number:
    try:
        return make(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {kind}, got {text!r}") from None


def _share(text: str) -> float:
    value = _number(text, float, "a number")
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, got {value:g}")
    return value


def _positive(text: str) -> int:
    value = _number(text, int, "a whole number")
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _not_negative(text: str) -> int:
    value = _number(text, int, "a whole number")
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 2^63, got {value}")
    return value


def _side(text: str) -> int:
    value = _positive(text)
    if not 4 <= value <= 1024:
        raise argparse.ArgumentTypeError(f"must be from 4 to 1024 pixels, got {value}")
    return value
