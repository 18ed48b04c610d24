"""The head of a Ray cluster, watched: without it Ray ends the driver, with nothing but a line of its own."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from types import TracebackType

from orchestrator.running.signals import end_main_thread
from search_spaces.errors import SetupError

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
ANSWER_TIMEOUT_S = 2.0
PRIVATE_PATIENCE_S = 10.0
"""The head of a private cluster never comes back."""
SHARED_PATIENCE_S = 120.0
"""That of a shared one may: a network heals, an operator starts it again."""
SAID_AFTER_S = 30.0


class HeadWatch:
    """Looks from a thread whether the head answers, and ends the block that it watches when it is lost.

    Args:
        address: ``host:port`` of the head.
        patience_s: How long it may be silent.
        say: Is told when it has been silent for a while, and when it is back.
    """

    def __init__(self, address: str, patience_s: float, say: Callable[[str], None] = log.warning) -> None:
        self.lost: SetupError | None = None
        self._address, self._patience_s, self._say = address, patience_s, say
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="head-watch", daemon=True)

    def __enter__(self) -> HeadWatch:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End looking.

        Raises:
            SetupError: in place of whatever ended the block, when the head was lost.
        """
        self._ended.set()
        if self.lost is not None and error is not None:
            raise self.lost from error

    def _watch(self) -> None:
        silent_s, said = 0.0, False
        # Looks are counted, not hours: a driver that was itself stopped has not looked meanwhile.
        while not self._ended.wait(LOOK_EVERY_S):
            if answers(self._address):
                if said:
                    self._say("The cluster's head answers again; going on")
                silent_s, said = 0.0, False
                continue
            silent_s += LOOK_EVERY_S
            if silent_s >= self._patience_s:
                self._give_up(silent_s)
                return
            if silent_s >= SAID_AFTER_S and not said:
                said = True
                self._say(f"The cluster's head at {self._address} does not answer; waiting for it")

    def _give_up(self, silent_s: float) -> None:
        self.lost = SetupError(
            "The head of the Ray cluster must be there",
            f"{self._address}: no answer for {silent_s:.0f} s",
            "run the same command again, on a shared cluster when its head is back: what is done is kept",
        )
        log.error("%s", self.lost)
        end_main_thread(self.lost, self._ended)


def answers(address: str) -> bool:
    """Tell whether somebody listens at ``host:port``."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_TIMEOUT_S):
            return True
    except OSError:
        return False
