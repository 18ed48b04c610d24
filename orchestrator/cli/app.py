"""From the words of a command line to a command and its exit code."""

from __future__ import annotations

import logging
import logging.handlers
import os
import re
import shlex
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from importlib import metadata
from inspect import signature
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError, Group, Parameter, UnknownCommandError, UnusedCliTokensError
from rich.markup import escape

from orchestrator.cli import data, environment, results, sweeps
from orchestrator.cli.options import Place
from orchestrator.cli.printing import stderr, waiting
from orchestrator.machine.ending import is_stop, stop_on_signals
from orchestrator.planning.paths import RootPaths
from orchestrator.planning.redaction import without_secrets
from search_spaces.errors import ConfigError, SetupError, SweepError
from tasks.atomic import without_waiting

log = logging.getLogger(__name__)

EXIT_INTERRUPTED, EXIT_BUG = 130, 4

COMMANDS: dict[str, dict[Callable[..., int | None], tuple[str, ...]]] = {
    "Start": {
        data.init: (
            "looking at the images",
            "isweep init ./my-images",
            "isweep init a.csv --out mine.yaml",
        ),
        data.presets: ("reading presets", "isweep presets"),
        data.models: ("", "isweep models"),
        data.recipes: ("", "isweep recipes"),
    },
    "Sweeps": {
        sweeps.run: (
            "reading the sweep",
            "isweep run demo",
            "isweep run ./mine.yaml --set recipe.epochs=3",
        ),
        sweeps.plan: ("planning", "isweep plan ./mine.yaml"),
        sweeps.status: ("looking at the root", "isweep status", "isweep status demo --watch"),
        sweeps.tune: ("reading the sweep", "isweep tune demo"),
        sweeps.reconcile: ("sending to MLflow", "isweep reconcile demo"),
    },
    "Results": {
        results.results: (
            "reading results",
            "isweep results demo --best",
            "isweep results demo --where dataset=digits --mean --sort loss",
            "isweep results demo --csv table.csv",
        ),
        results.fit: (
            "fitting",
            "isweep fit demo",
            "isweep fit a.csv --response loss --on d --groups set",
        ),
        results.report: ("fitting and drawing", "isweep report demo"),
        results.compare: ("comparing", "isweep compare demo demo-tuned"),
        results.claims: ("fitting", "isweep claims demo", "isweep claims --published"),
    },
    "Ahead": {
        results.predict: (
            "measuring and fitting",
            "isweep predict demo --model small_cnn --measured ./my-images --train-size 200",
        ),
        results.power: ("simulating sweeps", "isweep power paper"),
    },
    "Your data": {
        data.datasets: ("looking at the root", "isweep datasets mnist"),
        data.prepare: ("looking for the data", "isweep prepare mnist --raw /data/mnist"),
        data.measure: (
            "reading and measuring images",
            "isweep measure ./my-images --image-size 32",
            "isweep measure images.npz --train-sizes 500 1000 --json",
        ),
        data.locate: ("looking for the file", "isweep locate 0123456789abcdef --raw ./my-images"),
    },
    "Environment": {
        environment.ls: ("looking at the root", "isweep ls"),
        environment.rm: ("", "isweep rm demo"),
        environment.ui: ("MLflow's page starts; half a minute", "isweep ui demo"),
        environment.doctor: ("checking", "isweep doctor", "isweep doctor --launch cluster.yaml"),
        environment.gpu_check: ("", "isweep gpu-check --into .", "isweep gpu-check --device cpu"),
    },
}
"""By group: what a command says while one waits ("" where it shows its own progress), and its
examples."""
SLOW = {
    results.fit,
    results.report,
    results.compare,
    results.claims,
    results.predict,
    results.power,
}
SLOW |= {data.measure, environment.ui, environment.doctor}
"""They take seconds whatever they find, and say that into a pipe or file too."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed cells, 2 usage, 3 environment, 4 a
    bug.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    stop_on_signals()
    try:
        command = parse(words)
    except ConfigError as error:
        return _failed(error)
    given = (*command.args, *command.keywords.values())
    place = next((value for value in given if isinstance(value, Place)), Place())
    with root_log(place.root):
        log.info("isweep %s starts: %s", metadata.version("isweep"), shlex.join(["isweep", *words]))
        code = _run(command)
        log.info("ends with exit code %d", code)
    return code


def parse(arguments: Sequence[str]) -> partial[int | None]:
    """Read a command line: the command with its options, ready to be called.

    Raises:
        ConfigError: when it is none.
    """
    if not arguments:
        raise ConfigError("A command is required", way_out="see: isweep --help")
    try:
        function, bound, _ = application().parse_args(
            arguments, print_error=False, exit_on_error=False
        )
    except CycloptsError as error:
        raise explained(error, arguments) from None
    return partial(function, *bound.args, **bound.kwargs)


def explained(error: CycloptsError, words: Sequence[str]) -> ConfigError:
    """Say what is wrong with a command line and where its help is."""
    error.verbose = False
    if dash := next((word for word in words if re.match("[‐-―−]", word)), ""):
        return ConfigError(
            "Options begin with plain hyphens", dash, "type it: pages write other dashes"
        )
    said = " ".join(str(error).split())
    if isinstance(error, UnknownCommandError):
        if words[0].startswith("-"):
            return ConfigError(
                f"Unknown option: {words[0]}", way_out="options stand after the command"
            )
        if words[0] in ("resume", "continue"):
            return ConfigError(
                f"Unknown command: {words[0]}", way_out="isweep run SWEEP does what is left"
            )
        said = said.partition(" Available commands")[0]
    elif isinstance(error, UnusedCliTokensError):
        said = f"unrecognized arguments: {' '.join(error.unused_tokens or ())}"
    elif error.argument is None and error.__cause__ is not None:
        said = str(error.__cause__)
    elif error.argument is not None and error.argument.name not in said:
        said = f"Invalid value for {error.argument.name}: {said}"
    return ConfigError(
        said, way_out=f"see: {' '.join(['isweep', *(error.command_chain or ())])} --help"
    )


def application() -> App:
    """Return the parser of all commands."""
    app = _App(
        name="isweep",
        help="Explain how a dataset's intrinsic properties decide what networks learn from it.",
        help_format="plaintext",
        version=lambda: f"isweep {metadata.version('isweep')}",
        default_parameter=Parameter(negative=(), show_default=False, allow_repeating=True),
    )
    for order, (name, functions) in enumerate(COMMANDS.items()):
        group = Group(name, sort_key=order)
        for place, (function, (_, *examples)) in enumerate(functions.items()):
            epilogue = "\n  ".join(["For example:", *examples])
            app.command(
                function,
                group=group,
                sort_key=place,
                help_epilogue=epilogue,
                usage=_usage(function),
            )
    app.register_install_completion_command(group=Group("Shell", sort_key=len(COMMANDS)))
    return app


def _usage(function: Callable[..., int | None]) -> str | None:
    """Return the line of usage where the library's would be ``[ARGS]``, for a name that may be left
    out.
    """
    first = next(iter(signature(function).parameters.values()))
    if first.kind != first.POSITIONAL_ONLY or first.default is first.empty:
        return None
    return f"Usage: isweep {function.__name__} [OPTIONS] [{first.name.upper()}]"


class _App(App):
    """In bash, completes names of files where there is nothing else to offer, as the library does
    not.
    """

    def generate_completion(self, **how: Any) -> str:
        """Return the script that teaches a shell to complete the commands."""
        return super().generate_completion(**how).replace("complete -F ", "complete -o default -F ")


def _run(command: partial[int | None]) -> int:
    waits = {function: said[0] for group in COMMANDS.values() for function, said in group.items()}
    try:
        with (
            waiting(wait, slow=command.func in SLOW)
            if (wait := waits.get(command.func))
            else nullcontext()
        ):
            code = command() or 0
        sys.stdout.flush()
        return code
    except SweepError as error:
        return _failed(error)
    except KeyboardInterrupt as stop:
        return _stopped(str(stop))
    except BrokenPipeError:
        # The reader went away (`| head`): nothing is wrong, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        log.exception("the machine did not do what was asked")
        where = f" ({error.filename})" if error.filename else ""
        reason = (error.strerror or str(error) or type(error).__name__) + where
        way_out = "mend that (free some space on a full disk), and run the same command again"
        return _failed(SetupError("The machine must do what is asked of it", reason, way_out))
    except Exception as error:
        if is_stop(error):
            log.exception("on the way out of a stop")
            return _stopped("")
        log.exception("a bug")
        what = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        way_out = "the log below the root has its traceback; what was done is kept"
        _failed(SweepError("This is a bug", what, way_out))
        return EXIT_BUG


def _stopped(kept: str) -> int:
    text = escape(kept or "Nothing that was kept is lost; run the same command again.")
    stderr.print(f"[bold]Stopped.[/] {text}", soft_wrap=True)
    return EXIT_INTERRUPTED


def _failed(error: SweepError) -> int:
    # Not folded: a command or path in it can be copied.
    stderr.print(f"[bold red]isweep:[/] {escape(without_secrets(str(error)))}", soft_wrap=True)
    return error.exit_code


MAX_BYTES, MAX_WAITING = 5_000_000, 1000


@contextmanager
def root_log(root: str | None) -> Iterator[None]:
    """Send all logs and warnings of a block to the root's log, once there is a root."""
    handler: logging.Handler = logging.NullHandler()
    with suppress(SweepError):  # the command says what is wrong with the root
        handler = _RootLog(RootPaths.at(root).log)
    handler.setFormatter(_Discreet("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
    top = logging.getLogger()
    before = top.level
    top.addHandler(handler)
    top.setLevel(logging.INFO)
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        top.removeHandler(handler)
        with suppress(OSError):  # of the same full disk
            handler.close()
        top.setLevel(before)


class _Discreet(logging.Formatter):
    """Leaves secrets out of every line, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


class _RootLog(logging.handlers.RotatingFileHandler):
    """Writes once its folder exists; a log that cannot be written stops no command."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=MAX_BYTES, backupCount=3, delay=True, encoding="utf-8")
        self.folder = path.parent
        self.waiting: deque[logging.LogRecord] = deque(maxlen=MAX_WAITING)

    def emit(self, record: logging.LogRecord) -> None:
        self.waiting.append(record)
        while self.waiting and self.folder.is_dir():
            super().emit(self.waiting.popleft())

    def _open(self) -> TextIOWrapper:
        """Open the file; a pipe in its place is an error, where opening it would wait for a
        reader.
        """
        return open(self.baseFilename, "a", encoding=self.encoding, opener=without_waiting)

    def handleError(self, record: logging.LogRecord) -> None:
        """Stay silent: the file is on a full disk or another's, and the terminal is for the
        user.
        """
