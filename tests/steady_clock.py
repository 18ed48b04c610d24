"""A clock that stands until a test moves it."""

from __future__ import annotations

from tasks.clock import Clock


class SteadyClock(Clock):
    """Shows :attr:`now`; sleeping moves it."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
