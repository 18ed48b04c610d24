"""Time, and threads that wait for it: passed in wherever control logic waits, so that a test may
own both.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Clock:
    """The machine's clocks, one that can be set and one that nobody sets, and what waits by the
    second.
    """

    def time(self) -> float:
        """Return seconds since 1970, as the machine believes."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds that only grow, since anything."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def condition(self) -> threading.Condition:
        """Make a condition with a lock of its own, which its holder may take again."""
        return threading.Condition()

    def thread(self, target: Callable[[], None], name: str) -> threading.Thread:
        """Make a thread that ends with its process."""
        return threading.Thread(target=target, name=name, daemon=True)


SYSTEM = Clock()
