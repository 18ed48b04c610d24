"""Watches, which end a run if its cluster, lock or lease is lost, and the end by force."""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

from search_spaces.errors import SetupError
from tasks.clock import SYSTEM, Clock

log = logging.getLogger(__name__)

END_WITHIN_S = 5.0
"""Seconds that the main thread may take to end without force. It may hang in a call of Ray."""

Interrupt = Callable[[SetupError, threading.Event], None]
"""Function that ends the main thread with an error. If the event is set, the function does nothing,
because the watched block has ended."""

_cleanups: list[Callable[[], object]] = []
"""Functions to call before the process is ended by force, the last one first."""


@contextlib.contextmanager
def at_forced_end(cleanup: Callable[[], object]) -> Iterator[None]:
    """Call ``cleanup`` if the process must be ended by force during the block."""
    _cleanups.append(cleanup)
    try:
        yield
    finally:
        _cleanups.remove(cleanup)


class Watch:
    """A thread that repeats a check during a ``with`` block, and ends the block if the check fails.

    Args:
        name: name of the thread.
        every_s: seconds between two checks.
        check: function that returns an error if the block must end, otherwise None.
        clock: source of the time.
        interrupt: function that ends the main thread, by default :func:`end_main_thread`.

    Attributes:
        failure: the error that ended the block, or None if there was none.
        ended: event that is set when the block ends.
    """

    def __init__(
        self,
        name: str,
        every_s: float,
        check: Callable[[], SetupError | None],
        clock: Clock = SYSTEM,
        interrupt: Interrupt | None = None,
    ) -> None:
        self.failure: SetupError | None = None
        self.ended = threading.Event()
        self._every_s = every_s
        self._check = check
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
        """End the checks. If a check failed, raise its error in place of the block's exception."""
        self.end()
        # If the block raised no exception, its work is complete, so the failed check came too late.
        if self.failure is not None and error is not None:
            raise self.failure from error

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
            failure = self._check()
            if failure is not None and not self.ended.is_set():
                self.failure = failure
                log.error("%s", failure)
                self._interrupt(failure, self.ended)
                return


def end_main_thread(error: SetupError, ended: threading.Event) -> None:
    """Interrupt the main thread from another thread. If it does not end, end the process."""
    _thread.interrupt_main()
    if ended.wait(END_WITHIN_S):
        return
    for cleanup in reversed(_cleanups):
        with contextlib.suppress(Exception):
            cleanup()
    print(f"isweep: {error}", file=sys.stderr, flush=True)  # noqa: T201  # the last word
    os._exit(error.exit_code)
