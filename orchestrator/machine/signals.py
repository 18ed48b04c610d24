"""Functions that stop a driver after a signal.

They ensure that no request to stop is lost, and that libraries do not replace this process's
signal handlers.
"""

from __future__ import annotations

import contextlib
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

_stop_requested = threading.Event()
_typed_command: list[str] = []
"""The words of the command that the user typed. The list is empty if isweep is used as a
library."""


def stop_on_signals() -> None:
    """From now on, raise :class:`KeyboardInterrupt` after Ctrl-C, ``kill`` or a closed
    terminal.

    If an exception is raised in a finalizer or in a callback from C, Python only prints it. To
    stop the program in this case too, :func:`raise_if_stop_requested` raises KeyboardInterrupt
    again until the program calls :func:`clear_stop_request`.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        _stop_requested.set()
        raise KeyboardInterrupt

    _stop_requested.clear()
    if threading.current_thread() is not threading.main_thread():
        return
    for number in STOP_SIGNALS:
        # `nohup` and background jobs of a shell ignore some of these signals on purpose.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def remember_command(words: Sequence[str]) -> None:
    """Save the words of the command line. Messages that ask the user to run the command again
    quote them.
    """
    _typed_command[:] = words


def run_again_hint() -> str:
    """Return a sentence that asks the user to run the same command again. It quotes the
    command.
    """
    if not _typed_command:
        return "Run the same command again"
    return f"Run the same command again: `{shlex.join(_typed_command)}`"


def raise_if_stop_requested() -> None:
    """Raise ``KeyboardInterrupt`` if a stop was requested and not cleared since then."""
    if _stop_requested.is_set():
        raise KeyboardInterrupt


def clear_stop_request() -> None:
    """Clear the request to stop, because the program is already stopping. Later checks then do
    not raise.
    """
    _stop_requested.clear()


def caused_by_stop(error: BaseException | None) -> bool:
    """Return whether a request to stop caused an error.

    As long as a stop is requested, the result is True for every error, because C code may
    replace the ``KeyboardInterrupt`` by another error.
    """
    if _stop_requested.is_set():
        return True
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def delay_stop() -> Iterator[None]:
    """Delay a stop until the end of a short ``with`` block that must not be interrupted, for
    example an import: it would leave an incomplete module.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)

    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    replaced = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in replaced:
        signal.signal(number, remember)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])


@contextlib.contextmanager
def restore_signal_handlers(end_ray: Callable[[], object]) -> Iterator[None]:
    """Restore this process's signal handlers after a ``with`` block that starts Ray.

    Ray's subreaper setting makes a driver ignore SIGCHLD. Every child process then seems to
    end with exit code 0. Ray also replaces the handler of SIGTERM. With Ray's handler, SIGTERM
    would abort the process at once.

    Args:
        end_ray: function that ends Ray if a stop interrupts its start. A partly started Ray
            would block the next start.
    """
    numbers = (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        end_ray()
        # A SystemExit comes from Ray's handler of SIGTERM. The program treats it like Ctrl-C.
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
