"""How a driver ends: by a signal, for want of what it needs, or killed; and what it leaves then.

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
from typing import TYPE_CHECKING, NoReturn

from search_spaces.errors import SetupError
from tasks.clock import SYSTEM, Clock

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
END_WITHIN_S = 5.0
"""How long the driver's main thread may take to end by itself; it may hang in a call of Ray's."""

Interrupt = Callable[[SetupError, threading.Event], None]

_asked = threading.Event()
_at_forced_end: list[Callable[[], object]] = []


def stop_on_signals() -> None:
    """Answer Ctrl-C, ``kill`` and a closed terminal with :class:`KeyboardInterrupt` from now on.

    In a finaliser or a callback from C Python prints and forgets it; :func:`raise_if_asked` then
    raises it again, until :func:`stop_heard`.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        _asked.set()
        raise KeyboardInterrupt

    _asked.clear()
    if threading.current_thread() is threading.main_thread():
        for number in STOPS:
            # `nohup` has one ignored, a shell's background jobs another, and it stays so.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, stop)


def raise_if_asked() -> None:
    """Raise ``KeyboardInterrupt`` when somebody has asked to stop and nobody has heard."""
    if _asked.is_set():
        raise KeyboardInterrupt


def stop_heard() -> None:
    """Say that the stop has arrived where it is answered."""
    _asked.clear()


def is_stop(error: BaseException | None) -> bool:
    """Tell whether an error came up while a stop was on its way out, and so is a part of it.

    Also where code in C lost the stop and told an error of its own in its place.
    """
    if _asked.is_set():
        return True
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def stop_held() -> Iterator[None]:
    """Let a stop wait for the end of the block: an import that is cut off leaves half a module
    behind.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    before = {number: handler for number in STOPS if callable(handler := signal.getsignal(number))}
    for number in before:
        signal.signal(number, lambda number, frame: asked.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        signal.raise_signal(asked[0])


@contextlib.contextmanager
def own_signals(undo: Callable[[], object]) -> Iterator[None]:
    """Keep this process's signals: Ray's subreaper setting ignores SIGCHLD, and its start takes
    SIGTERM.

    With the first ignored, every ``subprocess`` of a driver would seem to end with 0; with the
    second taken, a polite request to stop would abort the process. ``undo`` ends what a stop left
    half started, which blocks the next start.
    """
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        undo()
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def at_forced_end(tidy: Callable[[], object]) -> Iterator[None]:
    """Have ``tidy`` called if the process has to be ended while the block lasts."""
    _at_forced_end.append(tidy)
    try:
        yield
    finally:
        _at_forced_end.remove(tidy)


class Watch:
    """Looks from a thread, during a ``with`` block, whether what the block needs is there, and else
    ends it.

    ``look`` returns why the block must end, which is then ``lost``, and None while it need not.
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
        self._every_s, self._look, self._changed = every_s, look, clock.condition()
        self._interrupt = interrupt or end_main_thread
        self._thread = clock.thread(self._watch, name)

    def __enter__(self) -> Watch:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End looking; raise ``lost`` in place of whatever ended the block then."""
        self.end()
        if self.lost is not None and error is not None:
            raise self.lost from error

    def end(self) -> None:
        """Look no more."""
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
    """Interrupt the main thread from another one, and end the process with ``error`` unless it has
    heard.
    """
    _thread.interrupt_main()
    if not ended.wait(END_WITHIN_S):
        for tidy in reversed(_at_forced_end):
            with contextlib.suppress(Exception):
                tidy()
        print(f"isweep: {error}", file=sys.stderr, flush=True)  # noqa: T201  # the last word
        os._exit(error.exit_code)
