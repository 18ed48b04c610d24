"""Points of curves on their way to a tracker, put together so that many trials cost few calls.

However fast points come, an update with all of them is sent every few seconds at most, and none while one
waits: a slow server gets fewer and larger ones.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from orchestrator.results.rows import Point

INTERVAL_S = 2.0


class Curves:
    """Collects points by run, in the thread that tells them.

    Args:
        write: Sends points of one run; may be repeated with the same ones.
        put: Takes an update into the outbox.
        clock: Tells the time, in seconds.
    """

    def __init__(
        self,
        write: Callable[[str, list[Point]], None],
        put: Callable[[Callable[[], None]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write, self._put, self._clock = write, put, clock
        self._points: dict[str, list[Point]] = {}
        self._arrived = threading.Event()
        self._arrived.set()
        self._sent = clock() - INTERVAL_S

    def add(self, run_key: str, points: Iterable[Point]) -> None:
        """Take points, and send all there are unless some were sent a moment ago or still wait."""
        self._points.setdefault(run_key, []).extend(points)
        if self._arrived.is_set() and self._clock() - self._sent >= INTERVAL_S:
            self.send()

    def send(self) -> None:
        """Send all there are in their turn: before whatever is put into the outbox next."""
        if not self._points:
            return
        batch, self._points = self._points, {}
        self._sent = self._clock()
        self._arrived = arrived = threading.Event()

        def write() -> None:
            for run_key, points in batch.items():
                self._write(run_key, points)
            arrived.set()

        self._put(write)
