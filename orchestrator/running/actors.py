"""The driver's own actors, on its node: they hold arrays, keep files and hear what trials say."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.results.storage import Patience
from orchestrator.results.store import FileKind, ResultStore
from orchestrator.running.failures import Place
from search_spaces.errors import CorruptStoreError, DataError, SetupError, SweepError
from tasks.prepared.subsets import TrialData
from tasks.trials.records import EpochRecord, EpochScore, KeptFile

STORAGE_PREFIXES = ("AWS_", "AZURE_STORAGE_", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_")
"""Of the variables that name object stores and open them."""
TELL_INTERVAL_S = 0.5
ASK_INTERVAL_S = 1.0
ANSWER_TIMEOUT_S = 2.0
MOST_KEPT = 100_000
"""Of what trials say, until the driver asks. Live views alone lose the rest: a result has all its epochs."""
PATIENCE_S = 120.0
"""How long a file waits for storage that is full or away. Its trial waits too, and must not seem to hang."""
SAID_AFTER_S = 10.0


def keep_out_of_runtime_environments() -> None:
    """Take credentials off the list of variables that Tune copies to its trials.

    Ray's agents would log them in clear, and trials need none: files go through :class:`Keeper`.
    """
    from ray.tune.execution import class_cache

    # Private: with a Ray that has it no more, nothing is copied, or `docs/security.md` has to say so.
    copied: Any = getattr(class_cache, "ENV_VARS_TO_PROPAGATE", set())
    copied.difference_update({name for name in copied if name.startswith(STORAGE_PREFIXES)})


def start_beside_driver(kind: type, *arguments: Any, **options: Any) -> Any:
    """Start an actor on this driver's node and return its handle; ``options`` are Ray's.

    It asks for no CPU, since it must answer while trials have all of them. Lost with another node, it would
    fail every trial that asks it. Its calls stay out of Ray's list of tasks, where people look for trials.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "enable_task_events": False, "scheduling_strategy": here, **options}
    return ray.remote(**options)(kind).remote(*arguments)


class EpochReport(NamedTuple):
    """An epoch of a trial has ended; ``score`` is what the test images gave after it, if they were passed."""

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
    """A trial's way to the actor; may be sent anywhere."""

    def __init__(self) -> None:
        self.actor = start_beside_driver(IsweepEpochs, max_restarts=-1)

    def arrived(self, trial_id: str) -> None:
        """Say, in the process of a trial, that it runs here."""
        self.actor.tell.remote([Place.here(trial_id)])

    def note(self, trial_id: str, text: str) -> None:
        """Say something that a person should know."""
        self.actor.tell.remote([Note(trial_id, text)])

    def teller(self, trial_id: str) -> EpochTeller:
        """Return what tells the epochs of a trial."""
        return EpochTeller(trial_id, self.actor.tell.remote)


class EpochTeller:
    """Tells the epochs of a trial; those that are shorter than a moment are told together."""

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
    """The driver's way to the actor."""

    def __init__(self, board: EpochBoard) -> None:
        self._actor = board.actor
        self._asked: Any = None
        self._heard = time.monotonic()

    def heard(self, *, wait: bool = False) -> list[Said]:
        """Return what was said since the last call; asks about once a second.

        With ``wait`` it asks now and waits: a process has ended that may just have said something.
        """
        said = self._answer(0.0)
        if self._asked is None and (wait or time.monotonic() - self._heard >= ASK_INTERVAL_S):
            self._asked = self._actor.take.remote()
        return said + (self._answer(ANSWER_TIMEOUT_S) if wait else [])

    def _answer(self, timeout_s: float) -> list[Said]:
        """Return the answer to the last question, once it is here."""
        if self._asked is None or not ray.wait([self._asked], timeout=timeout_s)[0]:
            return []
        asked, self._asked, self._heard = self._asked, None, time.monotonic()
        try:
            said: list[Said] = ray.get(asked)
        except ray.exceptions.RayError:
            return []  # the actor died, and is started again
        return said


class IsweepKeeper:
    """The one actor that writes weights, predictions and checkpoints, so that workers need no shared disk.

    Everything is a file, so it may be started again at any time.
    """

    def __init__(self, url: str, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        self._files = ResultStore(url)
        self._patience = Patience(limit_s=PATIENCE_S)

    def put(self, kind: FileKind, trial_id: str, data: bytes) -> KeptFile | str:
        """See :meth:`ResultStore.put`; a failure in words. A checkpoint does not wait: another follows."""
        try:
            if kind == FileKind.CHECKPOINT:
                return self._files.put(kind, trial_id, data)
            return self._patience.until_done(lambda: self._files.put(kind, trial_id, data))
        except SetupError as error:
            return str(error)

    def get(self, kind: FileKind, trial_id: str, kept: KeptFile) -> bytes | str:
        """See :meth:`ResultStore.get`; a failure in words."""
        try:
            return self._patience.until_done(lambda: self._files.get(kind, trial_id, kept))
        except CorruptStoreError as error:
            return str(error)

    def checkpoint(self, trial_id: str) -> bytes | None:
        """See :meth:`ResultStore.checkpoint`."""
        return self._patience.until_done(lambda: self._files.checkpoint(trial_id))


class Keeper:
    """A worker's way to the actor, with the methods of :class:`ResultStore`; may be sent anywhere."""

    def __init__(self, url: str, board: EpochBoard) -> None:
        self._board = board
        credentials = {name: value for name, value in os.environ.items() if name.startswith(STORAGE_PREFIXES)}
        self._actor = start_beside_driver(IsweepKeeper, url, credentials, max_restarts=-1, max_task_retries=1)

    def put(self, kind: FileKind, trial_id: str, data: bytes) -> KeptFile | str:
        """Keep a file; text says why it could not be kept, which costs no result."""
        asked = self._actor.put.remote(kind, trial_id, data)
        if not ray.wait([asked], timeout=SAID_AFTER_S)[0]:
            told = f"its {kind} wait for storage that is full or away, {PATIENCE_S:.0f} s at most"
            self._board.note(trial_id, told)
        kept: KeptFile | str = ray.get(asked)
        return kept

    def get(self, kind: FileKind, trial_id: str, kept: KeptFile) -> bytes:
        """Return a file that was kept.

        Raises:
            CorruptStoreError: when it is gone or damaged.
        """
        data = ray.get(self._actor.get.remote(kind, trial_id, kept))
        if isinstance(data, str):
            raise CorruptStoreError(data)
        return bytes(data)

    def checkpoint(self, trial_id: str) -> bytes | None:
        """Return a checkpoint, where there is one that is whole."""
        data: bytes | None = ray.get(self._actor.checkpoint.remote(trial_id))
        return data


class IsweepArrays:
    """The actor that hands out references; who comes before the driver has put the array waits."""

    def __init__(self) -> None:
        self._references: dict[str, list[Any]] = {}
        self._there = asyncio.Condition()

    async def put(self, key: str, boxed: list[Any]) -> None:
        """Keep a reference, boxed so that Ray does not fetch the array itself, or why there is none."""
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


class ArrayCache:
    """Which arrays are in the object store, and who still needs them: it holds what runs, and little more.

    The driver puts an array when the first trial that needs it starts, and drops it when none that is left
    needs it, or when others need its room. Ray copies it to each node once. Trials ask an actor for the
    reference, because theirs is not made yet when they are planned.

    Args:
        load: reads an array.
        budget: bytes that may be in the store at once; running trials may exceed it.
        num_uses: how many cells that are left need each array; None where nobody knows.
    """

    def __init__(
        self, load: Callable[[str], TrialData], budget: float, num_uses: Counter[str] | None = None
    ) -> None:
        self._left = None if num_uses is None else Counter(num_uses)
        self._running: dict[str, str] = {}  # array by trial
        self._held: dict[str, tuple[Any, int]] = {}  # in the order of last use
        self._load, self._budget = load, budget
        self.num_loads = 0
        self.references = start_beside_driver(IsweepArrays)

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays that are held now."""
        return sum(size for _, size in self._held.values())

    def trial_started(self, trial: str, key: str) -> None:
        """Make sure that the array of a trial that starts is there."""
        self._running[trial] = key
        if key in self._held:
            self._held[key] = self._held.pop(key)
            return
        try:
            data = self._load(key)
        except SweepError as error:
            # Or the trial would wait for ever. Of bad data its own cells die, each with this message.
            ray.get(self.references.put.remote(key, [error]))
            if isinstance(error, DataError):
                return
            raise
        size = data.train_images.nbytes + data.test_images.nbytes
        self._make_room(size)
        reference = ray.put(data)
        self.num_loads += 1
        self._held[key] = (reference, size)
        ray.get(self.references.put.remote(key, [reference]))

    def trial_ended(self, trial: str, key: str, *, for_good: bool) -> None:
        """Let the array go with the last trial that needs it; not ``for_good`` is one that is tried again."""
        self._running.pop(trial, None)
        if self._left is not None:
            self._left[key] -= for_good
            if self._left[key] <= 0:
                self._drop(key)

    def close(self) -> None:
        """Let everything go."""
        self._held.clear()
        ray.kill(self.references)

    def _make_room(self, size: int) -> None:
        in_use = set(self._running.values())
        for key in [key for key in self._held if key not in in_use]:
            if self.num_bytes + size <= self._budget:
                return
            self._drop(key)

    def _drop(self, key: str) -> None:
        if self._held.pop(key, None) is not None:
            self.references.drop.remote(key)
