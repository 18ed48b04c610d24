"""Actors on the driver's node that workers talk to: they hand out images, store files and pass on
messages.

Each actor is a process that imports what is imported here, so nothing of Ray Tune or torch. An
actor that is killed is started again by Ray; calls that were under way are repeated.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.results.storage import RetryWithBackoff
from orchestrator.results.store import FileKind, ResultStore
from orchestrator.running.messages import EpochReport, Note, WorkerMessage
from search_spaces.errors import SetupError
from tasks.trials.records import EpochRecord, EpochScore, TrialFile

STORAGE_PREFIXES = ("AWS_", "AZURE_STORAGE_", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_")
"""Beginnings of environment variables that name object stores and open them."""
PUBLISH_INTERVAL_S = 0.5
"""Seconds between two messages of a trial: shorter epochs are sent together."""
POLL_INTERVAL_S = 1.0
"""Seconds between two polls of the driver for messages."""
POLL_TIMEOUT_S = 2.0
"""Seconds that the driver waits for messages of a worker that has just ended. After a wait in vain
it does not wait again until the actor that keeps messages has answered."""
MAX_MESSAGES = 100_000
"""Messages kept until the driver polls. Live views lose older ones: a result has all epochs."""
STORAGE_WAIT_S = 120.0
"""Seconds that a file waits for storage that is full or away. Its trial waits, too, and must not
count as hung."""
CALL_RETRIES = 5
"""Repetitions of a call whose actor was killed under it; a call that kills its actor must end."""
NOTE_AFTER_S = 10.0
"""Seconds of such a wait after which the user gets a note."""


class ActorHandles:
    """The actors of a run, started.

    Args:
        store_url: result store for weights, predictions and checkpoints; None stores none.
    """

    def __init__(self, store_url: str | None) -> None:
        self.messages = MessageQueue()
        self.files = None if store_url is None else ArtifactStore(store_url, self.messages)
        self.arrays = start_beside_driver(IsweepArrays, max_restarts=-1, max_task_retries=-1)

    def end(self) -> None:
        """Ask each actor to end. Ray would end it through the head, which may be lost."""
        actors = [self.messages.actor, self.arrays]
        if self.files is not None:
            actors.append(self.files.actor)
        for actor in actors:
            actor.__ray_terminate__.options(max_task_retries=0).remote()


def start_beside_driver(actor_class: type, *arguments: Any, **options: Any) -> Any:
    """Start an actor on the driver's node and return its handle.

    An actor that is lost with another node would fail every trial. It asks for no CPU, since it
    must answer while trials have all of them. Its tasks are not in Ray's list, which is for trials.
    """
    on_this_node = NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    options = {
        "num_cpus": 0,
        "enable_task_events": False,
        "scheduling_strategy": on_this_node,
        **options,
    }
    return ray.remote(**options)(actor_class).remote(*arguments)


class IsweepEpochs:
    """Actor that keeps workers' messages until the driver polls; nobody waits."""

    def __init__(self) -> None:
        self._messages: list[WorkerMessage] = []

    def put(self, messages: list[WorkerMessage]) -> None:
        """Add messages; the oldest go if nobody polls."""
        self._messages = (self._messages + messages)[-MAX_MESSAGES:]

    def take(self) -> list[WorkerMessage]:
        """Return the messages since the last call."""
        messages = self._messages
        self._messages = []
        return messages


class MessageQueue:
    """Access to :class:`IsweepEpochs`: workers publish, the driver polls; it can be pickled."""

    def __init__(self) -> None:
        self.actor = start_beside_driver(IsweepEpochs, max_restarts=-1)
        self._pending: Any = None
        self._polled_at = 0.0
        self._is_silent = False

    def publish(self, message: WorkerMessage) -> None:
        """Send a message, and do not wait."""
        self.actor.put.remote([message])

    def publisher(self, trial_id: str) -> EpochPublisher:
        """Return what publishes the epochs of a trial."""
        return EpochPublisher(trial_id, self.actor.put.remote, time.monotonic)

    def poll(self, *, wait: bool = False) -> list[WorkerMessage]:
        """Return, in the driver, messages that have come since the last call.

        The actor is asked about once a second, and a later call returns its answer. With ``wait``
        it is asked now, and this call returns the answer: a worker that has just ended may have
        sent messages before. An answer takes milliseconds. An actor that is lost costs the driver
        :data:`POLL_TIMEOUT_S` once, whatever the number of workers that end before it answers
        again: while the driver waits, it starts no trials.
        """
        messages = self._answer(timeout_s=0.0)
        is_due = wait or time.monotonic() - self._polled_at >= POLL_INTERVAL_S
        if self._pending is None and is_due:
            self._pending = self.actor.take.remote()
        if wait and not self._is_silent:
            messages = messages + self._answer(timeout_s=POLL_TIMEOUT_S)
            self._is_silent = self._pending is not None
        return messages

    def _answer(self, timeout_s: float) -> list[WorkerMessage]:
        if self._pending is None or not ray.wait([self._pending], timeout=timeout_s)[0]:
            return []
        pending = self._pending
        self._pending = None
        self._is_silent = False
        self._polled_at = time.monotonic()
        try:
            messages: list[WorkerMessage] = ray.get(pending)
        except ray.exceptions.RayError:
            return []  # the actor died, and is started again
        return messages


class EpochPublisher:
    """Publishes the epochs of one trial; short ones are sent together.

    Args:
        trial_id: the trial.
        send: sends reports to the driver.
        clock: returns seconds.
    """

    def __init__(
        self, trial_id: str, send: Callable[[list[EpochReport]], Any], clock: Callable[[], float]
    ) -> None:
        self._trial_id = trial_id
        self._send = send
        self._clock = clock
        self._unsent: list[EpochReport] = []
        self._score: EpochScore | None = None
        self._sent_at = clock()

    def score_evaluated(self, score: EpochScore) -> None:
        """Take the scores on the test images after the epoch that ends next."""
        self._score = score

    def epoch_ended(self, epoch: EpochRecord) -> None:
        """Publish an epoch, now or together with the next ones."""
        self._unsent.append(EpochReport(self._trial_id, epoch, self._score))
        self._score = None
        if self._clock() - self._sent_at >= PUBLISH_INTERVAL_S:
            self._send(self._unsent)
            self._unsent = []
            self._sent_at = self._clock()


class IsweepKeeper:
    """Actor that reads and writes weights, predictions and checkpoints, and no other process does.

    Args:
        url: the result store.
        environment: variables that open the store, of the driver's environment.
    """

    def __init__(self, url: str, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        self._store = ResultStore(url)
        self._retry = RetryWithBackoff(limit_s=STORAGE_WAIT_S)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of :class:`ResultStore`, again until storage is there.

        Returns:
            What the method returns; for ``put`` a text if the file could not be stored.
        """
        work = partial(getattr(self._store, method), *arguments)
        if method != "put":
            return self._retry.until_done(work)
        is_checkpoint = arguments[0] == FileKind.CHECKPOINT
        try:
            # A checkpoint does not wait: another one follows.
            return work() if is_checkpoint else self._retry.until_done(work)
        except SetupError as error:
            return str(error)


class ArtifactStore:
    """Access to :class:`IsweepKeeper`, with methods of :class:`ResultStore`. It may be sent to
    workers.

    Args:
        url: the result store.
        messages: tells the driver if a file has to wait.
    """

    def __init__(self, url: str, messages: MessageQueue) -> None:
        self._messages = messages
        environment = {
            name: value for name, value in os.environ.items() if name.startswith(STORAGE_PREFIXES)
        }
        self.actor = start_beside_driver(
            IsweepKeeper, url, environment, max_restarts=-1, max_task_retries=CALL_RETRIES
        )
        self.actor.__ray_ready__.remote()  # so that the driver knows its address, to end it

    def put(self, kind: FileKind, trial_id: str, content: bytes) -> TrialFile | str:
        """Store a file; a text says why that was not possible, which costs no result."""
        call = self.actor.call.remote("put", kind, trial_id, content)
        if not ray.wait([call], timeout=NOTE_AFTER_S)[0]:
            text = (
                f"the {kind} wait at most {STORAGE_WAIT_S:.0f} s for storage that is full or does "
                "not answer"
            )
            self._messages.publish(Note(trial_id, text))
        return cast("TrialFile | str", ray.get(call))

    def get(self, kind: FileKind, trial_id: str, file: TrialFile) -> bytes:
        """See :meth:`ResultStore.get`, whose errors Ray passes on."""
        return cast("bytes", ray.get(self.actor.call.remote("get", kind, trial_id, file)))

    def checkpoint(self, trial_id: str) -> bytes | None:
        """See :meth:`ResultStore.checkpoint`."""
        return cast("bytes | None", ray.get(self.actor.call.remote("checkpoint", trial_id)))


class IsweepArrays:
    """Actor that hands out references of arrays; a worker that comes too early waits.

    A reference is kept in a list of one, so that Ray does not fetch the array itself. The list may
    hold an error instead: why there is no array.
    """

    def __init__(self) -> None:
        self._references: dict[str, list[Any]] = {}
        self._changed = asyncio.Condition()

    async def put(self, key: str, boxed: list[Any]) -> None:
        """Keep a reference, in a list, for the workers that ask for it."""
        async with self._changed:
            self._references[key] = boxed
            self._changed.notify_all()

    async def drop(self, key: str) -> None:
        """Forget a reference."""
        self._references.pop(key, None)

    async def take(self, key: str) -> list[Any]:
        """Wait for the reference of a key, and return the list that holds it."""
        async with self._changed:
            await self._changed.wait_for(lambda: key in self._references)
            return self._references[key]

    async def missing(self, keys: list[str]) -> list[str]:
        """Return those of the keys that have no reference here."""
        return [key for key in keys if key not in self._references]
