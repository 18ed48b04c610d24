"""A clock whose time changes only when a test changes it."""

from __future__ import annotations

from tasks.clock import Clock


class SteadyClock(Clock):
    """A clock that shows :attr:`now`. Sleeping increases it."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
