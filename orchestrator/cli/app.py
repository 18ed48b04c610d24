"""Parse a command line, run its command, and return the exit code."""

from __future__ import annotations

import errno
import logging
import logging.handlers
import os
import re
import shlex
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache, partial
from importlib import metadata
from inspect import signature
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import (
    App,
    CoercionError,
    CycloptsError,
    Group,
    MissingArgumentError,
    Parameter,
    RepeatArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)
from rich.markup import escape

from orchestrator.cli import data, environment, looking_ahead, results, status, sweeps
from orchestrator.cli.file_names import with_file_names
from orchestrator.cli.options import Place
from orchestrator.cli.printing import stderr, waiting
from orchestrator.machine.hidden_modules import check_libraries
from orchestrator.machine.signals import (
    caused_by_stop,
    remember_command,
    stop_on_signals,
)
from orchestrator.planning.paths import RootPaths
from orchestrator.planning.redaction import without_secrets
from search_spaces.errors import ConfigError, SetupError, SweepError
from tasks.atomic import without_waiting

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel
    from rich.console import Console, ConsoleOptions

log = logging.getLogger(__name__)

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C or another signal that stops the command. Shells use the same
number."""
EXIT_BUG = 4
"""Exit code if isweep itself has a bug, so neither the command line nor the machine is the
cause."""
OWN_PACKAGES = ("search_spaces", "tasks", "orchestrator", "isweep")
"""Names of the Python packages of isweep."""
MAX_COMPLETED = 3
"""Largest number of options that the message about an abbreviated option lists."""

COMMANDS: dict[str, dict[Callable[..., int | None], tuple[str, ...]]] = {
    "Start": {
        data.init: (
            "listing images",
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
        sweeps.plan: ("planning the sweep", "isweep plan ./mine.yaml"),
        status.status: ("reading the root", "isweep status", "isweep status demo --watch"),
        sweeps.tune: ("reading the sweep", "isweep tune demo"),
        sweeps.reconcile: ("sending results to MLflow", "isweep reconcile demo"),
    },
    "Results": {
        results.results: (
            "reading results",
            "isweep results demo --best",
            "isweep results demo --where dataset=digits --mean --sort loss",
            "isweep results demo --csv table.csv",
        ),
        results.fit: (
            "fitting the results",
            "isweep fit demo",
            "isweep fit a.csv --response loss --on d --groups set",
        ),
        results.report: ("fitting the results and drawing figures", "isweep report demo"),
        results.compare: ("comparing the sweeps", "isweep compare demo demo-tuned"),
        results.claims: ("fitting the results", "isweep claims demo", "isweep claims --published"),
    },
    "Predictions": {
        looking_ahead.predict: (
            "",
            "isweep predict demo --model small_cnn --measured ./my-images --train-size 200",
        ),
        looking_ahead.power: ("simulating sweeps", "isweep power paper"),
    },
    "Your data": {
        data.datasets: ("reading the root", "isweep datasets mnist"),
        data.prepare: ("listing the raw files", "isweep prepare mnist --raw /data/mnist"),
        data.measure: (
            "reading and measuring images",
            "isweep measure ./my-images --image-size 32",
            "isweep measure images.npz --train-sizes 500 1000 --json",
        ),
        data.locate: ("searching for the file", "isweep locate 0123456789abcdef --raw ./my-images"),
    },
    "Environment": {
        environment.ls: ("reading the root", "isweep ls"),
        environment.rm: ("", "isweep rm demo"),
        environment.ui: (
            "starting MLflow's page, which can take 30 s",
            "isweep ui demo",
        ),
        environment.doctor: (
            "checking the machine",
            "isweep doctor",
            "isweep doctor --launch cluster.yaml",
        ),
        environment.gpu_check: ("", "isweep gpu-check --into .", "isweep gpu-check --device cpu"),
    },
}
"""Commands by group. Each command has a text, which is shown while the user waits, and
examples. If the text is empty, the command shows its progress itself.
"""
SLOW = {
    results.fit,
    results.report,
    results.compare,
    results.claims,
    looking_ahead.power,
}
SLOW |= {data.measure, environment.ui, environment.doctor}
"""Commands that take seconds. When they start, they print a line, even if stderr is a pipe or
a file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words after ``isweep``. None uses the arguments of this process.

    Returns:
        The exit code. 0 means that there was no error, 1 that trials failed, and 2 that the
        command or a file of the user has a mistake. 3 means that the machine or a server has a
        problem, 4 that isweep has a bug, and 130 that the user stopped the command.
    """
    if arguments is None:
        arguments = sys.argv[1:]
    words = list(arguments)
    stop_on_signals()
    # A message may show the command, so passwords are removed from it. For example, an address
    # of MLflow may contain a password.
    remember_command(["isweep", *map(without_secrets, words)])
    try:
        command = parse(words)
    except ConfigError as error:
        return _print_error(error)
    place = place_of(command)
    with root_log(place.root):
        log.info("isweep %s starts: %s", metadata.version("isweep"), shlex.join(["isweep", *words]))
        code = _run(command)
        log.info("isweep ends with exit code %d", code)
    return code


def place_of(command: partial[int | None]) -> Place:
    """Return a command's options for the root, the result store and MLflow."""
    for value in (*command.args, *command.keywords.values()):
        if isinstance(value, Place):
            return value
    return Place()


def parse(arguments: Sequence[str]) -> partial[int | None]:
    """Return the command of a command line as a function that is called without arguments.

    Raises:
        ConfigError: The words are not a valid command.
    """
    if not arguments:
        raise ConfigError(
            "There is no command after `isweep`", hint="List the commands with `isweep --help`"
        )
    try:
        function, bound, _ = application().parse_args(
            arguments, print_error=False, exit_on_error=False
        )
    except CycloptsError as error:
        raise parse_error(error, arguments) from None
    return partial(function, *bound.args, **bound.kwargs)


def parse_error(error: CycloptsError, words: Sequence[str]) -> ConfigError:
    """Return the error for a command line that cannot be parsed, with a hint."""
    error.verbose = False
    for word in words:
        # Some web pages replace a hyphen by a longer dash.
        if re.match("[‐-―−]", word):
            hint = "Type the option with plain hyphens (-)"
            return ConfigError(
                f"The option {word} begins with a long dash instead of a hyphen. Commands "
                "that were copied from web pages often have long dashes",
                hint=hint,
            )
    hint = f"See `{' '.join(['isweep', *(error.command_chain or ()), '--help'])}`"
    message = " ".join(str(error).split())
    if isinstance(error, UnknownCommandError):
        if words[0].startswith("-"):
            hint = "Write the option after the command, for example `isweep status --json`"
            return ConfigError(f"The option {words[0]} is before the command", hint=hint)
        if words[0] in ("resume", "continue"):
            hint = (
                "To continue a sweep, type `isweep run SWEEP`, which runs only the trials without "
                "a result"
            )
            return ConfigError(f"There is no command {words[0]}", hint=hint)
        message = message.partition(" Available commands")[0]
    elif isinstance(error, UnusedCliTokensError):
        unknown = " ".join(error.unused_tokens or ())
        message = (
            f"`{' '.join(['isweep', *(error.command_chain or ())])}` does not accept {unknown}"
        )
        if error.command_chain == ("predict",):
            hint = (
                "Without an option, you can write only the sweep. Write images of a new dataset as "
                f"`--measured IMAGES`. Write a file of results as `--curve FILE`. {hint}"
            )
        else:
            hint = f"If a path contains spaces, put the path in quotes. {hint}"
    elif isinstance(error, MissingArgumentError):
        message = _missing_values(error)
    elif isinstance(error, RepeatArgumentError):
        message = f"The option {error.token.keyword} is given more than once"
        return ConfigError(message, hint="Give the option only once")
    elif isinstance(error, CoercionError) and error.argument is not None and error.msg is not None:
        message = f"{error.argument.name} {error.msg}"
    elif error.argument is None and error.__cause__ is not None:
        message = str(error.__cause__)
    elif error.argument is not None and error.argument.name not in message:
        message = f"{error.argument.name} {message}"
    message, did_you_mean, name = message.partition(". Did you mean ")
    completed = _completed_options(error)
    if completed:
        hint = f"Did you mean {' or '.join(completed)}? {hint}"
    elif did_you_mean:
        hint = f"Did you mean {name} {hint}"
    return ConfigError(message, hint=hint)


def _missing_values(error: MissingArgumentError) -> str:
    """Return the message about an argument or an option that has no value or too few values."""
    if error.argument is None:
        return str(error)
    command = f"`{' '.join(['isweep', *(error.command_chain or ())])}`"
    num_values, _ = error.argument.token_count()
    name = error.keyword or error.argument.name
    if num_values > 1:
        num_given = len(error.tokens_so_far) % num_values
        return f"{name} needs {num_values} values, but has {num_given}"
    if name.startswith("-"):
        return f"The option {name} has no value"
    return f"{command} needs {name}, which is missing"


def _completed_options(error: CycloptsError) -> list[str]:
    """Return the options whose names begin with an unknown option.

    If there are many, return none.
    """
    if not isinstance(error, UnknownOptionError):
        return []
    typed = (error.token.keyword or error.token.value).partition("=")[0]
    names = {name for argument in error.argument_collection for name in argument.names}
    completed = sorted(name for name in names if name.startswith(typed))
    return completed if len(completed) <= MAX_COMPLETED else []


@cache
def application() -> App:
    """Return the parser of all commands. It is created only once."""
    app = _App(
        name="isweep",
        help="Measure how networks learn from a dataset, and how this depends on its intrinsic "
        "properties.",
        help_format="plaintext",
        help_formatter=_print_panel,
        version=lambda: f"isweep {metadata.version('isweep')}",
        default_parameter=Parameter(negative=(), show_default=False),
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


def _print_panel(console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
    """Print a panel of the help text. Its lines are as long as the terminal is wide.

    By default, cyclopts also keeps the line breaks of docstrings, so a terminal would show
    many short lines.
    """
    # The import of these modules takes 50 ms, and only the help text needs them.
    from cyclopts.help import DefaultFormatter
    from rich.text import Text

    for entry in panel.entries:
        text = getattr(entry.description, "primary_renderable", None)
        if isinstance(text, Text):
            entry.description.primary_renderable = Text(" ".join(text.plain.split()))
    DefaultFormatter()(console, options, panel)


def _usage(function: Callable[..., int | None]) -> str | None:
    """Return the usage line of a command whose first argument is optional. Otherwise return None.

    By default, cyclopts prints ``[ARGS]`` instead of the name of an optional argument.
    """
    first = next(iter(signature(function).parameters.values()))
    if first.kind != first.POSITIONAL_ONLY or first.default is first.empty:
        return None
    return f"Usage: isweep {function.__name__} [OPTIONS] [{first.name.upper()}]"


class _App(App):
    """The parser of all commands. It also lets bash complete names of files."""

    def generate_completion(self, **options: Any) -> str:
        """Return the script that lets a shell complete isweep commands."""
        script = super().generate_completion(**options)
        return script.replace("complete -F ", "complete -o default -F ")


def _wait_text(function: Callable[..., int | None]) -> str:
    """Return the text to show during a command.

    It is empty if the command shows its progress itself.
    """
    for functions in COMMANDS.values():
        if function in functions:
            return functions[function][0]
    return ""


def _display(function: Callable[..., int | None]) -> AbstractContextManager[None]:
    """Return the display to show during a command."""
    text = _wait_text(function)
    if not text:
        return nullcontext()
    return waiting(text, slow=function in SLOW)


def _run(command: partial[int | None]) -> int:
    """Run a command and return its exit code. If there is an error, print it as one message."""
    try:
        with _display(command.func):
            code = command() or 0
        sys.stdout.flush()
        return code
    except SweepError as error:
        return _print_error(error, command)
    except KeyboardInterrupt as stop:
        return _print_stop(str(stop))
    except BrokenPipeError:
        # The reader of the pipe has ended, as in `isweep results demo | head`. This is not an
        # error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        log.exception("the operating system reported an error")
        return _print_error(_machine_error(error, place_of(command)))
    except Exception as error:
        if caused_by_stop(error):
            log.exception("an error while isweep stopped")
            return _print_stop("")
        log.exception("a bug in isweep")
        try:
            check_libraries()
        except SetupError as hidden_library:
            return _print_error(hidden_library)
        _print_error(_bug(error))
        return EXIT_BUG


def _bug(error: Exception) -> SweepError:
    """Return the message about an error that no user can cause."""
    first_line = (str(error).splitlines() or [""])[0]
    text = f"{type(error).__name__}: {first_line}"
    root = Path(__file__).parents[2]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        # When Python loads a file, it runs the top level of the file, which creates the file's
        # tables.
        path = Path(frame.filename)
        if frame.name == "<module>" and path.is_relative_to(root):
            place = path.relative_to(root)
            if place.parts[0] in OWN_PACKAGES:
                return SweepError(
                    f"{place.as_posix()} line {frame.lineno} cannot be loaded ({text})",
                    hint="If you changed this file, for example a row of a table, correct the "
                    "line. If you did not change this file, install isweep again",
                )
    return SweepError(
        f"A bug in isweep ended the command ({text})",
        hint="Report the traceback, which is in the file isweep.log of the root. "
        "Finished trials are kept",
    )


def _machine_error(error: OSError, place: Place) -> SetupError:
    """Return an error of the operating system as a message with the file and a hint."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        # If the error has no file name, isweep may have written to its output, for example to
        # `> FILE`.
        disk = error.filename or f"{place.root or 'the root'} or the output of the command"
        return SetupError(
            f"The disk that contains {disk} is full ({reason})",
            hint="Free some space and run the same command again. Finished trials are kept",
        )
    subject = error.filename or "an operation"
    return SetupError(
        f"The operating system reports an error for {subject}: {reason}",
        hint="Solve this problem, and run the same command again. Finished trials are kept",
    )


def _print_stop(message: str) -> int:
    """Print that a command was stopped and that its results are kept. Return the exit code."""
    if not message:
        message = "All stored results are kept. Run the same command again to continue."
    stderr.print(f"[bold]Stopped.[/] {escape(message)}", soft_wrap=True)
    return EXIT_INTERRUPTED


def _print_error(error: SweepError, command: partial[int | None] | None = None) -> int:
    """Print an error as one message and return its exit code.

    Lines are not wrapped, because users copy commands and paths from messages.
    """
    text = without_secrets(str(error))
    if command is not None and stderr.is_terminal:
        text = with_file_names(text, command.args, place_of(command))
    stderr.print(f"[bold red]isweep:[/] {escape(text)}", soft_wrap=True)
    return error.exit_code


MAX_BYTES = 5_000_000
"""Size at which the root's log is rotated, bytes."""
MAX_WAITING = 1000
"""Number of log records that isweep keeps in memory until the root exists."""


@contextmanager
def root_log(root: str | None) -> Iterator[None]:
    """Write all logs and warnings of a block to the root's log, as soon as the root exists."""
    handler: logging.Handler = logging.NullHandler()
    with suppress(SweepError):  # the command itself reports a wrong root
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
        with suppress(OSError):  # the disk may be full
            handler.close()
        top.setLevel(before)


class _Discreet(logging.Formatter):
    """A log formatter that removes secrets from every line, also from the lines of tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


class _RootLog(logging.handlers.RotatingFileHandler):
    """A log that is written as soon as its folder exists.

    An error of the log never stops a command.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=MAX_BYTES, backupCount=3, delay=True, encoding="utf-8")
        self.folder = path.parent
        self.waiting: deque[logging.LogRecord] = deque(maxlen=MAX_WAITING)
        self.has_warned = False

    def emit(self, record: logging.LogRecord) -> None:
        self.waiting.append(record)
        while self.waiting and self.folder.is_dir():
            super().emit(self.waiting.popleft())

    def _open(self) -> TextIOWrapper:
        """Open the file. If it is a named pipe, do not wait for a reader."""
        return open(self.baseFilename, "a", encoding=self.encoding, opener=without_waiting)

    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore an error such as a full disk, because a traceback on the terminal would not help.

        If the path of the log is not a file, but for example a folder or a pipe, print one
        warning.
        """
        path = self.baseFilename
        if os.path.lexists(path) and not os.path.isfile(path) and not self.has_warned:
            self.has_warned = True
            stderr.print(
                f"[bold]Warning:[/] {escape(path)} is not a file, so isweep writes no log. Remove "
                f"{escape(path)}.",
                soft_wrap=True,
            )
