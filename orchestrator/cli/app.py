"""From the words of a command line to a command and its exit code."""

from __future__ import annotations

import gc
import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, NoReturn

from cyclopts import App, CycloptsError, Group, Parameter
from rich.markup import escape

from orchestrator.cli import comparing, data, environment, planning, predicting, results, sweeps, tuning
from orchestrator.cli.log import command_log
from orchestrator.cli.options import Place
from orchestrator.cli.printing import stderr
from orchestrator.cli.usage import UsageError, explained
from orchestrator.planning.redaction import without_secrets
from orchestrator.running.signals import is_stop, stop_on_signals
from search_spaces.errors import SetupError, SweepError

EXIT_INTERRUPTED = 130
EXIT_BUG = 4
log = logging.getLogger(__name__)

COMMANDS: dict[str, tuple[Callable[..., int], ...]] = {
    "Sweeps": (sweeps.run, planning.plan, sweeps.status, tuning.tune, sweeps.reconcile),
    "Results": (results.results, results.fit, results.report, predicting.predict),
    "Designs": (comparing.power, comparing.compare),
    "Your data": (data.datasets, data.prepare, data.measure, data.locate),
    "Environment": (environment.doctor,),
}


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
            app.command(function, group=group, sort_key=place)
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
