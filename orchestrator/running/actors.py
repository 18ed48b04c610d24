"""The actors on the driver's node that trials speak with: they hand out arrays, keep files and hear
epochs.

Each is a process, which imports what is imported here: nothing of Ray Tune or torch.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.results.storage import RetryWithBackoff
from orchestrator.results.store import FileKind, ResultStore
from orchestrator.running.failures import Place
from search_spaces.errors import SetupError
from tasks.trials.records import EpochRecord, EpochScore, KeptFile

STORAGE_PREFIXES = ("AWS_", "AZURE_STORAGE_", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_")
"""Of the variables that name object stores and open them."""
TELL_INTERVAL_S = 0.5
ASK_INTERVAL_S = 1.0
ANSWER_TIMEOUT_S = 2.0
MOST_KEPT = 100_000
"""Of what trials say, until the driver asks. Live views alone lose the rest: a result has all its
epochs."""
PATIENCE_S = 120.0
"""How long a file waits for storage that is full or away. Its trial waits too, and must not seem to
hang."""
SAID_AFTER_S = 10.0


class Desk:
    """The actors of a run, started; no files are kept where ``keep_url`` is None."""

    def __init__(self, keep_url: str | None) -> None:
        self.board = EpochBoard()
        self.keeper = None if keep_url is None else Keeper(keep_url, self.board)
        self.arrays = start_beside_driver(IsweepArrays)

    def end(self) -> None:
        """End them by a word to each: a head that is lost, over which Ray kills, is not waited
        for.
        """
        for actor in (self.board.actor, self.keeper and self.keeper.actor, self.arrays):
            actor and actor.__ray_terminate__.options(max_task_retries=0).remote()


def start_beside_driver(kind: type, *arguments: Any, **options: Any) -> Any:
    """Start an actor on this driver's node, since one lost with another node would fail every
    trial.

    It asks for no CPU, for it must answer while trials have all of them; Ray's list of tasks is for
    trials.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "enable_task_events": False, "scheduling_strategy": here, **options}
    return ray.remote(**options)(kind).remote(*arguments)


class EpochReport(NamedTuple):
    """An epoch of a trial has ended; ``score`` is what the test images gave after it, if they were
    passed.
    """

    trial_id: str
    epoch: EpochRecord
    score: EpochScore | None


class Note(NamedTuple):
    """Something that a person should know of a running trial."""

    trial_id: str
    text: str


Said = EpochReport | Place | Note


class IsweepEpochs:
    """The actor that keeps what running trials say until the driver asks; nobody waits."""

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
    """The way to the actor, of trials, to which it may be sent, and of the driver."""

    def __init__(self) -> None:
        self.actor = start_beside_driver(IsweepEpochs, max_restarts=-1)
        self._asked: Any = None
        self._heard_at = 0.0

    def say(self, said: Said) -> None:
        """Say something, and go on."""
        self.actor.tell.remote([said])

    def teller(self, trial_id: str) -> EpochTeller:
        """Return what tells the epochs of a trial."""
        return EpochTeller(trial_id, self.actor.tell.remote, time.monotonic)

    def heard(self, *, wait: bool = False) -> list[Said]:
        """Return, in the driver, what was said since the last call; asks about once a second.

        With ``wait`` it asks now and waits: a process has ended that may just have said something.
        """
        said = self._answer(0.0)
        if self._asked is None and (wait or time.monotonic() - self._heard_at >= ASK_INTERVAL_S):
            self._asked = self.actor.take.remote()
        return said + (self._answer(ANSWER_TIMEOUT_S) if wait else [])

    def _answer(self, timeout_s: float) -> list[Said]:
        if self._asked is None or not ray.wait([self._asked], timeout=timeout_s)[0]:
            return []
        asked, self._asked, self._heard_at = self._asked, None, time.monotonic()
        try:
            said: list[Said] = ray.get(asked)
        except ray.exceptions.RayError:
            return []  # the actor died, and is started again
        return said


class EpochTeller:
    """Tells the epochs of a trial; those that are shorter than a moment are told together."""

    def __init__(
        self, trial_id: str, send: Callable[[list[EpochReport]], Any], clock: Callable[[], float]
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


class IsweepKeeper:
    """The one actor that writes weights, predictions and checkpoints; it may be started again at
    any time.
    """

    def __init__(self, url: str, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        self._files = ResultStore(url)
        self._patience = RetryWithBackoff(limit_s=PATIENCE_S)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of :class:`ResultStore`; of a file that could not be kept, return why."""
        work = partial(getattr(self._files, method), *arguments)
        if method != "put":
            return self._patience.until_done(work)
        try:
            # A checkpoint does not wait: another follows.
            return (
                work() if arguments[0] == FileKind.CHECKPOINT else self._patience.until_done(work)
            )
        except SetupError as error:
            return str(error)


class Keeper:
    """A worker's way to the actor, with the methods of :class:`ResultStore`; may be sent
    anywhere.
    """

    def __init__(self, url: str, board: EpochBoard) -> None:
        self._board = board
        credentials = {
            name: value for name, value in os.environ.items() if name.startswith(STORAGE_PREFIXES)
        }
        self.actor = start_beside_driver(
            IsweepKeeper, url, credentials, max_restarts=-1, max_task_retries=1
        )
        self.actor.__ray_ready__.remote()  # so that the driver knows its address, to end it

    def put(self, kind: FileKind, trial_id: str, data: bytes) -> KeptFile | str:
        """Keep a file; text says why it could not be kept, which costs no result."""
        asked = self.actor.call.remote("put", kind, trial_id, data)
        if not ray.wait([asked], timeout=SAID_AFTER_S)[0]:
            told = f"its {kind} wait for storage that is full or away, {PATIENCE_S:.0f} s at most"
            self._board.say(Note(trial_id, told))
        return cast("KeptFile | str", ray.get(asked))

    def get(self, kind: FileKind, trial_id: str, kept: KeptFile) -> bytes:
        """See :meth:`ResultStore.get`, whose errors Ray passes on."""
        return cast("bytes", ray.get(self.actor.call.remote("get", kind, trial_id, kept)))

    def checkpoint(self, trial_id: str) -> bytes | None:
        """See :meth:`ResultStore.checkpoint`."""
        return cast("bytes | None", ray.get(self.actor.call.remote("checkpoint", trial_id)))


class IsweepArrays:
    """The actor that hands out references; who comes before the driver has put the array waits."""

    def __init__(self) -> None:
        self._references: dict[str, list[Any]] = {}
        self._there = asyncio.Condition()

    async def put(self, key: str, boxed: list[Any]) -> None:
        """Keep a reference, boxed so that Ray does not fetch the array itself, or why there is
        none.
        """
        async with self._there:
            self._references[key] = boxed
            self._there.notify_all()

    async def drop(self, key: str) -> None:
        """Forget a reference."""
        self._references.pop(key, None)

    async def take(self, key: str) -> list[Any]:
        """Return the boxed reference as soon as it is there."""
        async with self._there:
            await self._there.wait_for(lambda: key in self._references)
            return self._references[key]
