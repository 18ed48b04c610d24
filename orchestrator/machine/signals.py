"""How a driver is stopped: by a signal, or because something that it needs is gone.

A request to stop is never lost, and signals stay this process's own, whatever a library does to
them.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import NoReturn

from search_spaces.errors import SetupError
from tasks.clock import SYSTEM, Clock

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
END_WITHIN_S = 5.0
"""Seconds that the main thread may take to end by itself; it may hang in a call of Ray's."""

Interrupt = Callable[[SetupError, threading.Event], None]
"""Ends the main thread with an error, unless the event says that it has ended."""

_stop_requested = threading.Event()
_cleanups: list[Callable[[], object]] = []
"""Called before the process is ended by force, the last one first."""


def stop_on_signals() -> None:
    """Answer Ctrl-C, ``kill`` and a closed terminal with :class:`KeyboardInterrupt` from now on.

    In a finaliser or a callback from C, Python prints an exception and forgets it. Then
    :func:`raise_if_asked` raises it again, until :func:`stop_heard`.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        _stop_requested.set()
        raise KeyboardInterrupt

    _stop_requested.clear()
    if threading.current_thread() is not threading.main_thread():
        return
    for number in STOP_SIGNALS:
        # `nohup` ignores one, background jobs of a shell another, and that stays so.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def raise_if_asked() -> None:
    """Raise ``KeyboardInterrupt`` if a stop was requested and not answered yet."""
    if _stop_requested.is_set():
        raise KeyboardInterrupt


def stop_heard() -> None:
    """Record that the requested stop was answered."""
    _stop_requested.clear()


def is_stop(error: BaseException | None) -> bool:
    """Return whether an error is part of a stop.

    So is every error while a stop is on its way: C code may lose the stop and raise its own error.
    """
    if _stop_requested.is_set():
        return True
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def stop_held() -> Iterator[None]:
    """Delay a stop to the end of a block. An interrupted import leaves half a module behind."""
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
def own_signals(undo: Callable[[], object]) -> Iterator[None]:
    """Restore this process's signal handlers after a block that starts Ray.

    Ray's subreaper setting ignores SIGCHLD, after which every ``subprocess`` of a driver seems to
    end with 0. Its start takes SIGTERM, after which a polite request to stop would abort the
    process.

    Args:
        undo: ends what a stop left half started, which would block the next start.
    """
    numbers = (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        undo()
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def at_forced_end(cleanup: Callable[[], object]) -> Iterator[None]:
    """Have ``cleanup`` called if the process must be ended by force during the block."""
    _cleanups.append(cleanup)
    try:
        yield
    finally:
        _cleanups.remove(cleanup)


class Watch:
    """A watchdog for a ``with`` block: a thread that ends the block if what it needs is gone.

    Args:
        name: of the thread.
        every_s: seconds between two checks.
        look: returns why the block must end, or None.
        clock: of the waits.
        interrupt: ends the main thread; :func:`end_main_thread` by default.

    Attributes:
        lost: why the block was ended; None if it was not.
        ended: set once the block is over.
    """

    def __init__(
        self,
        name: str,
        every_s: float,
        look: Callable[[], SetupError | None],
        clock: Clock = SYSTEM,
        interrupt: Interrupt | None = None,
    ) -> None:
        self.lost: SetupError | None = None
        self.ended = threading.Event()
        self._every_s = every_s
        self._look = look
        self._changed = clock.condition()
        self._interrupt = interrupt or end_main_thread
        self._thread = clock.thread(self._watch, name)

    def __enter__(self) -> Watch:
        """Start the checks."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the checks; raise ``lost`` in place of the exception that ended the block."""
        self.end()
        if self.lost is not None and error is not None:
            raise self.lost from error

    def end(self) -> None:
        """End the checks."""
        self.ended.set()
        with self._changed:
            self._changed.notify_all()

    def _watch(self) -> None:
        while True:
            with self._changed:
                if self._changed.wait_for(self.ended.is_set, self._every_s):
                    return
            lost = self._look()
            if lost is not None and not self.ended.is_set():
                self.lost = lost
                log.error("%s", lost)
                self._interrupt(lost, self.ended)
                return


def end_main_thread(error: SetupError, ended: threading.Event) -> None:
    """Interrupt the main thread from another one; end the process if it does not react."""
    _thread.interrupt_main()
    if ended.wait(END_WITHIN_S):
        return
    for cleanup in reversed(_cleanups):
        with contextlib.suppress(Exception):
            cleanup()
    print(f"isweep: {error}", file=sys.stderr, flush=True)  # noqa: T201  # the last word
    os._exit(error.exit_code)
