"""Signals stay this process's own, whatever a library does to them, and a request to stop is never lost."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from search_spaces.errors import SetupError

END_WITHIN_S = 5.0
"""How long the driver's main thread may take to end by itself; it may hang in a call of Ray's."""

_asked = threading.Event()
_at_forced_end: list[Callable[[], object]] = []


def stop_on_signals() -> None:
    """Answer Ctrl-C, ``kill`` and a closed terminal with :class:`KeyboardInterrupt` from now on.

    Python raises it wherever the main thread is. In a finaliser or a callback from C it is printed and
    forgotten; :func:`raise_if_asked` then raises it again, until :func:`stop_heard`.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        _asked.set()
        raise KeyboardInterrupt

    _asked.clear()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # `nohup` has one ignored, a shell's background jobs another, and it stays so.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, stop)


def raise_if_asked() -> None:
    """Stop if that was asked for and got lost.

    Raises:
        KeyboardInterrupt: when somebody has asked and nobody has heard.
    """
    if _asked.is_set():
        raise KeyboardInterrupt


def stop_heard() -> None:
    """Say that the stop has arrived where it is answered: what follows must run."""
    _asked.clear()


@contextlib.contextmanager
def stop_held() -> Iterator[None]:
    """Let a stop wait for the end of the block: an import that is cut off leaves half a module behind.

    Raises:
        KeyboardInterrupt: at the end, when a stop was asked for meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, lambda number, frame: asked.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)
    if asked:
        signal.raise_signal(asked[0])


def is_stop(error: BaseException | None) -> bool:
    """Tell whether an error came up while a stop was on its way out, and so is a part of it."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def end_main_thread(error: SetupError, ended: threading.Event) -> None:
    """Interrupt the main thread from another one, and end the process when that does not help.

    Args:
        error: Why; the last word when the main thread has none.
        ended: Set when the main thread has heard.
    """
    _thread.interrupt_main()
    if not ended.wait(END_WITHIN_S):
        for tidy in reversed(_at_forced_end):
            with contextlib.suppress(Exception):
                tidy()
        print(f"isweep: {error}", file=sys.stderr, flush=True)  # noqa: T201  # the last word
        os._exit(error.exit_code)


@contextlib.contextmanager
def at_forced_end(tidy: Callable[[], object]) -> Iterator[None]:
    """Have ``tidy`` called if the process has to be ended while the block lasts, which then never ends."""
    _at_forced_end.append(tidy)
    try:
        yield
    finally:
        _at_forced_end.remove(tidy)


@contextlib.contextmanager
def own_signals(undo: Callable[[], object]) -> Iterator[None]:
    """Keep this process's signals: Ray's subreaper setting ignores SIGCHLD, and its start takes SIGTERM.

    With the first ignored, every ``subprocess`` of a driver would seem to end with 0; with the second taken,
    a polite request to stop would abort the process.

    Args:
        undo: Ends what a stop left half started, which blocks the next start and can crash the process.

    Raises:
        KeyboardInterrupt: when a stop was asked for, also where Ray's own answer to SIGTERM came through.
    """
    numbers = (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        undo()
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
