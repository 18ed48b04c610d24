"""A clock that functions receive as an argument, so that a test can replace time and threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Clock:
    """The time of the machine, and the threads and conditions that wait for a given time."""

    def time(self) -> float:
        """Return the seconds since 1970. The number decreases if a user sets the clock back."""
        return time.time()

    def monotonic(self) -> float:
        """Return the seconds since an arbitrary moment. The number never decreases."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait for a number of seconds."""
        time.sleep(seconds)

    def condition(self) -> threading.Condition:
        """Return a condition with a reentrant lock."""
        return threading.Condition()

    def thread(self, target: Callable[[], None], name: str) -> threading.Thread:
        """Return a daemon thread that has not been started. It ends when its process ends."""
        return threading.Thread(target=target, name=name, daemon=True)


SYSTEM = Clock()
"""The clock that programs use. Tests pass another clock."""
