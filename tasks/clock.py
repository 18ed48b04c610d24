"""A clock and threads as an argument, so that a test of control logic can replace both."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Clock:
    """The machine's clocks, and the threads and conditions that wait by them."""

    def time(self) -> float:
        """Return seconds since 1970 by the machine's clock, which may be set back."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds since an arbitrary moment; they never go back."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def condition(self) -> threading.Condition:
        """Return a condition whose lock its holder may take again."""
        return threading.Condition()

    def thread(self, target: Callable[[], None], name: str) -> threading.Thread:
        """Return a thread that ends with its process."""
        return threading.Thread(target=target, name=name, daemon=True)


SYSTEM = Clock()
"""The machine's own clock."""
