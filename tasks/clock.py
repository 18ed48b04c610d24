"""Time, and threads that wait for it: passed in wherever control logic waits, so that a test may own both."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, TypeVar

T = TypeVar("T")


class Condition(Protocol):
    """What :class:`threading.Condition` does."""

    def __enter__(self) -> object: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> object: ...
    def notify_all(self) -> None: ...  # noqa: D102
    def wait_for(self, predicate: Callable[[], T], timeout: float | None = None) -> T: ...  # noqa: D102


class Thread(Protocol):
    """What :class:`threading.Thread` does."""

    def start(self) -> None: ...  # noqa: D102
    def is_alive(self) -> bool: ...  # noqa: D102
    def join(self, timeout: float | None = None) -> None: ...  # noqa: D102


class Clock(Protocol):
    """A clock that can be set, one that nobody sets, and what waits by the second."""

    def time(self) -> float:
        """Return seconds since 1970, as the machine believes."""

    def monotonic(self) -> float:
        """Return seconds that only grow, since anything."""

    def sleep(self, seconds: float) -> None:
        """Wait."""

    def condition(self) -> Condition:
        """Make a condition with a lock of its own, which its holder may take again."""

    def thread(self, target: Callable[[], None], name: str) -> Thread:
        """Make a thread that ends with its process."""


class SystemClock:
    """The machine's."""

    def time(self) -> float:
        """See :class:`Clock`."""
        return time.time()

    def monotonic(self) -> float:
        """See :class:`Clock`."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """See :class:`Clock`."""
        time.sleep(seconds)

    def condition(self) -> Condition:
        """See :class:`Clock`."""
        return threading.Condition()

    def thread(self, target: Callable[[], None], name: str) -> Thread:
        """See :class:`Clock`."""
        return threading.Thread(target=target, name=name, daemon=True)


SYSTEM: Clock = SystemClock()
