"""Threads that end a run if its cluster, lock or lease is lost. If the run does not end in
time, they end its process by force.
"""

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
"""Seconds that the main thread may take to end before the process is ended by force. The main
thread may hang in a call of Ray."""

Interrupt = Callable[[SetupError, threading.Event], None]
"""Function that ends the main thread with an error. The event is set when the watched block
has ended. The main thread then need not be ended by force."""

_cleanups: list[Callable[[], object]] = []
"""Functions that are called before the process is ended by force. The last function is called
first."""


@contextlib.contextmanager
def at_forced_end(cleanup: Callable[[], object]) -> Iterator[None]:
    """Call ``cleanup`` if the process is ended by force during the ``with`` block."""
    _cleanups.append(cleanup)
    try:
        yield
    finally:
        _cleanups.remove(cleanup)


class Watch:
    """A thread that repeats a check during a ``with`` block. If the check fails, the thread
    ends the block.

    Args:
        name: name of the thread.
        every_s: seconds between two checks.
        check: function that returns an error if the block must end, otherwise None.
        clock: source of the time.
        interrupt: function that ends the main thread. None means :func:`end_main_thread`.

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
        """End the checks. If a check failed and the block raised an exception, raise the
        check's error instead.
        """
        self.end()
        # If the block raised no exception, its work is complete, so the failed check came too
        # late.
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
    """Interrupt the main thread from another thread. If the main thread does not end, end the
    process.
    """
    _thread.interrupt_main()
    if ended.wait(END_WITHIN_S):
        return
    for cleanup in reversed(_cleanups):
        with contextlib.suppress(Exception):
            cleanup()
    print(f"isweep: {error}", file=sys.stderr, flush=True)  # noqa: T201  # the last word
    os._exit(error.exit_code)
