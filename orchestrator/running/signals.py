"""Signals stay this process's own, whatever a library does to them when it starts."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Keep this process's signals: Ray's subreaper setting ignores SIGCHLD, and its start takes SIGTERM.

    With the first ignored, every ``subprocess`` of a driver would seem to end with 0; with the second taken,
    a polite request to stop would abort the process.
    """
    numbers = (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
