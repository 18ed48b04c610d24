"""Updates for a server that may be slow, away or cutting connections: sent in order, each until it is taken.

One background thread sends; whoever tells something never waits. An update must be repeatable: when its reply
was lost it is sent again. Nothing is kept on disk, because the result store has it all: what a killed driver
did not send is found by comparing when the next one starts.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 15.0
SAID_AFTER_S = 2.0
"""A lost reply now and then is the log's business; a server that is away is a person's."""
GROWTH = 1.6
"""Of pauses: a lost reply is asked for again at once, and a server that is down not hammered."""

Update = Callable[[], None]


class Outbox:
    """Sends updates in the background.

    Args:
        connect: Makes the other side ready; called before the first update, again until it works.
        is_final: Tells whether an error will be the same however often the update is sent.
        say: Is told once when the other side is away for a while, and once when it is back.
        name: Of the other side, for people.
        describe: Says in a line what an error means.
    """

    def __init__(
        self,
        connect: Update,
        is_final: Callable[[Exception], bool],
        say: Callable[[str], None],
        name: str,
        describe: Callable[[Exception], str] = str,
    ) -> None:
        self.num_refused = 0
        self.error: Exception | None = None
        self.last_error: Exception | None = None
        self._connect, self._is_final, self._say, self._name = connect, is_final, say, name
        self._describe = describe
        self._connected = False
        self._troubled_since: float | None = None
        self._said = False
        self._updates: queue.Queue[Update | None] = queue.Queue()
        self._first_try = threading.Event()
        self._stopping = threading.Event()
        self._progress = 0
        self._thread = threading.Thread(target=self._drain, name=f"{name}-outbox", daemon=True)
        self._thread.start()

    @property
    def num_behind(self) -> int:
        """Updates that were refused or have not been sent."""
        return self.num_refused + self._updates.unfinished_tasks

    def put(self, update: Update) -> None:
        """Send ``update`` after all earlier ones."""
        self._updates.put(update)

    def wait_for_first_try(self, timeout: float) -> None:
        """Wait until the other side was asked once, for at most ``timeout`` seconds.

        Raises:
            Exception: the other side's, when it will never be another.
        """
        self._first_try.wait(timeout)
        if self.error is not None:
            raise self.error

    def flush(self, patience: float) -> bool:
        """Wait until everything was sent; False after ``patience`` seconds without any progress."""
        since, seen = time.monotonic(), self._progress
        while self._updates.unfinished_tasks and self._thread.is_alive():
            if self._progress != seen:
                since, seen = time.monotonic(), self._progress
            if time.monotonic() - since > patience:
                return False
            time.sleep(0.02)
        return not self._updates.unfinished_tasks

    def trouble(self) -> float:
        """Return for how many seconds the other side has not answered; 0 when it does."""
        since = self._troubled_since
        return 0.0 if since is None else time.monotonic() - since

    def moved(self) -> None:
        """Say that a long update is getting on."""
        self._progress += 1

    def stop(self, timeout: float = 1.0) -> None:
        """Send no more; the thread is left alone when the other side does not let go of it."""
        self._stopping.set()
        self._updates.put(None)
        self._thread.join(timeout)

    def _drain(self) -> None:
        self._send(lambda: None)
        self._first_try.set()
        while (update := self._updates.get()) is not None:
            if not self._stopping.is_set() and self._send(update):
                self._updates.task_done()
                self._progress += 1
        self._updates.task_done()

    def _send(self, update: Update) -> bool:
        """Try until the update was taken or refused for good; False when stopped before."""
        pause = FIRST_PAUSE_S
        while not self._stopping.is_set():
            try:
                if not self._connected:
                    self._connect()
                    self._connected = True
                update()
            except Exception as error:
                if self._is_final(error):
                    return self._refused(error)
                self._away(error)
                self._stopping.wait(pause)
                pause = min(GROWTH * pause, LONGEST_PAUSE_S)
                continue
            self._back()
            return True
        return False

    def _refused(self, error: Exception) -> bool:
        if not self._connected and self.error is None:
            self.error = error
        self.num_refused += 1
        log.warning(
            "%s refused an update (%d so far): %s", self._name, self.num_refused, self._describe(error)
        )
        return True

    def _away(self, error: Exception) -> None:
        self.last_error = error
        self._first_try.set()
        log.warning("%s did not take an update, which is sent again: %s", self._name, self._describe(error))
        if self._troubled_since is None:
            self._troubled_since = time.monotonic()
        if not self._said and self.trouble() >= SAID_AFTER_S:
            self._said = True
            self._say(
                f"{self._name} does not answer ({self._describe(error)}); "
                "the sweep goes on, and it is told later"
            )

    def _back(self) -> None:
        self._troubled_since = None
        if self._said:
            self._said = False
            self._say(f"{self._name} answers again")
