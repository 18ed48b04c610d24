"""A clock that is passed as an argument, so that a test can replace time and threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Clock:
    """The clocks of the machine, and threads and conditions that wait for a time."""

    def time(self) -> float:
        """Return seconds since 1970. The clock of the machine may be set back."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds since an arbitrary moment. They never decrease."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait for a number of seconds."""
        time.sleep(seconds)

    def condition(self) -> threading.Condition:
        """Return a condition with a reentrant lock."""
        return threading.Condition()

    def thread(self, target: Callable[[], None], name: str) -> threading.Thread:
        """Return a daemon thread, which ends when its process ends."""
        return threading.Thread(target=target, name=name, daemon=True)


SYSTEM = Clock()
"""The clock of the machine."""
