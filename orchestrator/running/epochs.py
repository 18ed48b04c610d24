"""What running trials say: kept by a small actor until the driver asks, and nobody waits.

What is lost on the way is lost to live views alone: a trial's result has all its epochs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import ray

from orchestrator.running.beside_driver import start_beside_driver
from orchestrator.running.lost_workers import Place
from tasks.trials.measured import EpochScore
from tasks.trials.result import EpochRecord

TELL_INTERVAL_S = 0.5
ASK_INTERVAL_S = 1.0
ANSWER_TIMEOUT_S = 2.0
MOST_KEPT = 100_000


class EpochReport(NamedTuple):
    """An epoch of a trial has ended; ``score`` is what the test images gave after it, if they were passed."""

    trial_id: str
    epoch: EpochRecord
    score: EpochScore | None


Said = EpochReport | Place


class IsweepEpochs:
    """The actor."""

    def __init__(self) -> None:
        self._said: list[Said] = []

    def tell(self, said: list[Said]) -> None:
        """Keep what a trial says; the oldest goes when nobody asks."""
        self._said = (self._said + said)[-MOST_KEPT:]

    def take(self) -> list[Said]:
        """Return what was said since the last call."""
        said, self._said = self._said, []
        return said


class EpochBoard:
    """The way to the actor; may be sent anywhere."""

    def __init__(self) -> None:
        self.actor = start_beside_driver(IsweepEpochs, max_restarts=-1)

    def arrived(self, trial_id: str) -> None:
        """Say, in the process of a trial, that it runs here."""
        self.actor.tell.remote([Place.here(trial_id)])

    def teller(self, trial_id: str) -> EpochTeller:
        """Return the side of a trial."""
        return EpochTeller(trial_id, self.actor.tell.remote)


class EpochTeller:
    """A trial's side: epochs that are shorter than a moment are told together.

    Args:
        trial_id: Whose epochs.
        send: Sends them.
        clock: Tells the time, in seconds.
    """

    def __init__(
        self,
        trial_id: str,
        send: Callable[[list[EpochReport]], Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trial_id, self._send, self._clock = trial_id, send, clock
        self._kept: list[EpochReport] = []
        self._score: EpochScore | None = None
        self._sent = clock()

    def scored(self, score: EpochScore) -> None:
        """Take what the test images gave after the epoch that is told next."""
        self._score = score

    def ended(self, epoch: EpochRecord) -> None:
        """Tell an epoch, now or together with the next ones."""
        self._kept.append(EpochReport(self._trial_id, epoch, self._score))
        self._score = None
        if self._clock() - self._sent >= TELL_INTERVAL_S:
            self._send(self._kept)
            self._kept, self._sent = [], self._clock()


class EpochListener:
    """The driver's side.

    Args:
        board: Where trials tell.
    """

    def __init__(self, board: EpochBoard) -> None:
        self._actor = board.actor
        self._asked: Any = None
        self._heard = time.monotonic()

    def heard(self, *, wait: bool = False) -> list[Said]:
        """Return what was said since the last call; asks about once a second.

        Args:
            wait: Ask now and wait for the answer: a process has ended that may just have said something.
        """
        if self._asked is None:
            if not wait and time.monotonic() - self._heard < ASK_INTERVAL_S:
                return []
            self._asked = self._actor.take.remote()
        if not ray.wait([self._asked], timeout=ANSWER_TIMEOUT_S if wait else 0)[0]:
            return []
        asked, self._asked, self._heard = self._asked, None, time.monotonic()
        try:
            said: list[Said] = ray.get(asked)
        except ray.exceptions.RayError:
            return []  # the actor died, and is started again
        return said
