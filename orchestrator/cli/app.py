"""From the words of a command line to a command and its exit code."""

from __future__ import annotations

import difflib
import gc
import inspect
import logging
import logging.handlers
import os
import shlex
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import metadata
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, get_args

from cyclopts import (
    App,
    Argument,
    CoercionError,
    CycloptsError,
    Group,
    MissingArgumentError,
    Parameter,
    UnknownCommandError,
    UnknownOptionError,
)
from rich.markup import escape

from orchestrator.cli import data, environment, predicting, results, start, sweeps
from orchestrator.cli.options import Place
from orchestrator.cli.printing import stderr, waiting
from orchestrator.planning.paths import RootPaths, without_secrets
from orchestrator.running.ending import is_stop, stop_on_signals
from search_spaces.errors import ConfigError, SetupError, SweepError
from tasks.atomic import without_waiting

# A command line that is none, explained in one message that names the flags people type.


class UsageError(ConfigError):
    """Words that are no command of ``isweep``."""


def explained(error: CycloptsError, words: Sequence[str], app: App) -> UsageError:
    """Say what is wrong with a command line and where its help is."""
    chain = " ".join(["isweep", *(error.command_chain or ())])
    if isinstance(error, UnknownCommandError):
        return _unknown_command(words, app)
    return UsageError(_rule(error, words, app), way_out=f"see: {chain} --help")


def _unknown_command(words: Sequence[str], app: App) -> UsageError:
    known = [name for name in app if not name.startswith("-")]
    if words[0].startswith("-"):
        return UsageError(f"unrecognized arguments: {words[0]}", way_out="options stand after the command")
    near = difflib.get_close_matches(words[0], known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UsageError(f"invalid choice: {words[0]!r}", way_out=f"{hint}commands: {', '.join(known)}")


def _rule(error: CycloptsError, words: Sequence[str], app: App) -> str:
    argument = error.argument
    if isinstance(error, MissingArgumentError) and argument is not None:
        given = any(word.partition("=")[0] in argument.names for word in words)
        if not given:
            return f"the following arguments are required: {', '.join(_missing(argument, error, words, app))}"
        count = argument.token_count()[0]
        wanted = "at least one argument" if argument.token_count()[1] else f"{count} arguments"
        return f"argument {argument.name}: expected {'one argument' if wanted == '1 arguments' else wanted}"
    if isinstance(error, UnknownOptionError):
        # A word of its own has no keyword where a command takes a word in that place.
        unknown = error.token.keyword or error.token.value
        near = difflib.get_close_matches(unknown, _flags(error, app), n=1)
        return f"unrecognized arguments: {unknown}" + (f" (did you mean {near[0]}?)" if near else "")
    if isinstance(error, CoercionError) and argument is not None and error.token is not None:
        if error.__cause__ is not None or error.msg is not None:
            return f"argument {argument.name}: {error.__cause__ or error.msg}"
        choices = ", ".join(map(str, get_args(error.target_type)))
        return f"argument {argument.name}: invalid choice: {error.token.value!r} (choose from {choices})"
    if error.__cause__ is not None:
        return (f"argument {argument.name}: " if argument is not None else "") + str(error.__cause__)
    if error.unused_tokens:
        return f"unrecognized arguments: {' '.join(error.unused_tokens)}"
    error.verbose = False
    return " ".join(str(error).split())


def _missing(first: Argument, error: CycloptsError, words: Sequence[str], app: App) -> list[str]:
    """Name all options that a command needs and does not have, not the first alone."""
    given = {word.partition("=")[0] for word in words}
    return [first.name] + [
        argument.name
        for argument in _arguments(error, app)
        if argument.required and argument.name.startswith("-") and argument.name != first.name
        if given.isdisjoint(argument.names)
    ]


def _flags(error: CycloptsError, app: App) -> list[str]:
    return [name for argument in _arguments(error, app) for name in argument.names if name.startswith("-")]


def _arguments(error: CycloptsError, app: App) -> list[Argument]:
    chain = error.command_chain or ()
    # With the parser's own defaults, without which it would know flags such as --no-quiet.
    default = app.default_parameter
    return list(app[chain[0]].assemble_argument_collection(default_parameter=default)) if chain else []


# The log of all commands, below the root: the terminal is for the user, the file for whoever digs.

log = logging.getLogger(__name__)

MAX_BYTES = 5_000_000
MAX_WAITING = 1000


@dataclass
class Ending:
    """How a command ended; None for a bug, whose traceback is in the log."""

    exit_code: int | None = None


@contextmanager
def command_log(root: str | None, words: Sequence[str]) -> Iterator[Ending]:
    """Send all logs and warnings of a command to the root's log, with its start and how it ended.

    A root that does not exist is not made; when the command makes it, what was logged before is kept.
    """
    handler = _handler(root)
    handler.setFormatter(_Discreet("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
    top, fonts = logging.getLogger(), logging.getLogger("fontTools")
    levels = (top.level, fonts.level)
    top.addHandler(handler)
    top.setLevel(logging.INFO)
    fonts.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    ending = Ending()
    try:
        log.info("isweep %s starts: %s", metadata.version("isweep"), shlex.join(["isweep", *words]))
        yield ending
    except BaseException:
        log.exception("ends with a bug")
        raise
    finally:
        if ending.exit_code is not None:
            log.info("ends with exit code %d", ending.exit_code)
        logging.captureWarnings(False)
        top.removeHandler(handler)
        handler.close()
        top.setLevel(levels[0])
        fonts.setLevel(levels[1])


def _handler(root: str | None) -> logging.Handler:
    try:
        return _RootLog(RootPaths.at(root).log)
    except SweepError:
        return logging.NullHandler()  # The command says what is wrong with the root.


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
        """Open the file; a pipe in its place is an error, where opening it would wait for a reader."""
        return open(self.baseFilename, "a", encoding=self.encoding, opener=without_waiting)

    def handleError(self, record: logging.LogRecord) -> None:
        """Stay silent: the file is on a full disk or another's, and the terminal is for the user."""


EXIT_INTERRUPTED = 130
EXIT_BUG = 4

COMMANDS: dict[str, tuple[Callable[..., int], ...]] = {
    "Start": (start.init, start.presets, start.models, start.recipes),
    "Sweeps": (sweeps.run, sweeps.plan, sweeps.status, sweeps.tune, sweeps.reconcile),
    "Results": (results.results, results.fit, results.report, predicting.predict),
    "Designs": (results.power, results.compare),
    "Your data": (data.datasets, data.prepare, data.measure, data.locate),
    "Environment": (start.ls, start.rm, start.ui, environment.doctor, environment.gpu_check),
}


EXAMPLES = {
    "init": ("isweep init ./my-images", "isweep init labels.csv --domain medical --out mine.yaml"),
    "presets": ("isweep presets",),
    "models": ("isweep models",),
    "recipes": ("isweep recipes",),
    "run": ("isweep run demo", "isweep run ./mine.yaml --set recipe.epochs=3"),
    "plan": ("isweep plan ./mine.yaml",),
    "status": ("isweep status", "isweep status demo --watch"),
    "tune": ("isweep tune demo",),
    "reconcile": ("isweep reconcile demo",),
    "results": (
        "isweep results demo --best",
        "isweep results demo --where dataset=digits --mean --sort loss",
        "isweep results demo --csv table.csv",
    ),
    "fit": ("isweep fit demo",),
    "report": ("isweep report demo",),
    "predict": ("isweep predict demo --model small_cnn --measured ./my-images --train-size 1000",),
    "power": ("isweep power paper",),
    "compare": ("isweep compare demo demo-tuned",),
    "datasets": ("isweep datasets mnist",),
    "prepare": ("isweep prepare mnist --raw /data/mnist",),
    "measure": (
        "isweep measure ./my-images --image-size 32",
        "isweep measure images.npz --train-sizes 500 1000 --json",
    ),
    "locate": ("isweep locate 0123456789abcdef --raw ./my-images",),
    "ls": ("isweep ls",),
    "rm": ("isweep rm demo",),
    "ui": ("isweep ui demo",),
    "doctor": ("isweep doctor", "isweep doctor --launch cluster.yaml"),
    "gpu_check": (
        "isweep gpu-check",
        "isweep gpu-check --device 0 --into .",
        "isweep gpu-check --device cpu",
    ),
}
"""What ends the help of each command."""


WAITS = {
    "init": "looking at the images",
    "presets": "reading presets",
    "plan": "planning",
    "reconcile": "sending to MLflow",
    "results": "reading results",
    "fit": "fitting",
    "report": "fitting and drawing",
    "predict": "measuring and fitting",
    "power": "simulating sweeps",
    "compare": "comparing",
    "measure": "reading and measuring images",
    "locate": "looking for the file",
    "ls": "looking at the root",
    "ui": "MLflow's page starts; half a minute",
    "doctor": "checking",
}
"""What commands do that show no progress of their own while one waits for their answer."""


@dataclass(frozen=True)
class Command:
    """A command with its options, ready to be run."""

    function: Callable[..., int | None]
    bound: inspect.BoundArguments

    @property
    def root(self) -> str | None:
        """The root that the options name."""
        places = (value for value in self.bound.arguments.values() if isinstance(value, Place))
        return next(places, Place()).root

    def run(self) -> int:
        """Run it and return its exit code."""
        wait = WAITS.get(self.function.__name__)
        with waiting(wait) if wait else nullcontext():
            code = self.function(*self.bound.args, **self.bound.kwargs) or 0
        sys.stdout.flush()
        return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed cells, 2 usage, 3 environment, 4 a bug."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    stop_on_signals()
    try:
        command = parse(words)
    except UsageError as error:
        return _failed(error)
    with command_log(command.root, words) as ending:
        ending.exit_code = _run(command)
        return ending.exit_code


def entry() -> NoReturn:
    """Entry point of the ``isweep`` command."""
    # A sweep of 50,000 cells is millions of objects that live to the end: by its default, the collector goes
    # through all of them again and again, a third of the time of a look (benchmarks/running.py looks).
    gc.set_threshold(100_000, 20, 20)
    sys.exit(main())


def parse(arguments: Sequence[str]) -> Command:
    """Read a command line without running it.

    Raises:
        UsageError: when it is none.
    """
    app = application()
    if not arguments:
        raise UsageError("the following arguments are required: COMMAND", way_out="see: isweep --help")
    try:
        function, bound, _ = app.parse_args(list(arguments), print_error=False, exit_on_error=False)
    except CycloptsError as error:
        raise explained(error, arguments, app) from None
    return Command(function, bound)


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
        for place, function in enumerate(functions):
            example = "\n  ".join(EXAMPLES[function.__name__])
            app.command(function, group=group, sort_key=place, help_epilogue=f"For example:\n  {example}")
    app.register_install_completion_command(group=Group("Shell", sort_key=len(COMMANDS)))
    return app


class _App(App):
    """In bash, completes names of files where there is nothing else to offer, as the library does not."""

    def generate_completion(self, **how: Any) -> str:
        """Return the script that teaches a shell to complete the commands."""
        return super().generate_completion(**how).replace("complete -F ", "complete -o default -F ")


def _run(command: Command) -> int:
    try:
        return command.run()
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
        return _failed(SetupError("The machine must do what is asked of it", reason, "mend it and try again"))
    except Exception as error:
        if is_stop(error):
            log.exception("on the way out of a stop")
            return _stopped("")
        log.exception("a bug")
        what = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        bug = SweepError(
            "This is a bug", what, "the log below the root has its traceback; what was done is kept"
        )
        _failed(bug)
        return EXIT_BUG


def _stopped(kept: str) -> int:
    text = escape(kept or "What was finished is kept; the same command goes on.")
    stderr.print(f"[bold]Stopped.[/] {text}", soft_wrap=True)
    return EXIT_INTERRUPTED


def _failed(error: SweepError) -> int:
    # Not folded: a command or path in it can be copied.
    stderr.print(f"[bold red]isweep:[/] {escape(without_secrets(str(error)))}", soft_wrap=True)
    return error.exit_code


# What is kept of trained networks beside their results, written for people.
