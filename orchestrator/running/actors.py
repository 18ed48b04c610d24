"""Actors on the driver's node that send images to workers, store files and forward messages.

Each actor is a process that imports this module, so the module imports neither Ray Tune nor
torch. If an actor is killed, Ray starts it again. Ray then repeats the unfinished calls of
``IsweepArtifacts`` and ``IsweepArrays``. Ray does not repeat the calls of ``IsweepMessages``.

Ray's dashboard shows the names of the actors' classes, so these names begin with "Isweep":

===================  ============================================  =======================
actor                work                                          client
===================  ============================================  =======================
``IsweepMessages``   stores messages of workers for the driver:    :class:`MessageQueue`
                     locations, epochs and notes
``IsweepArtifacts``  stores weights, predictions and checkpoints   :class:`ArtifactStore`
``IsweepArrays``     returns references of images to workers       ``ActorHandles.arrays``
===================  ============================================  =======================
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
"""Prefixes of the environment variables that contain addresses and credentials of buckets."""
PUBLISH_INTERVAL_S = 0.5
"""Smallest number of seconds between two messages of a trial. If epochs are shorter, one
message contains several epochs."""
POLL_INTERVAL_S = 1.0
"""Seconds between two requests of the driver for new messages."""
POLL_TIMEOUT_S = 2.0
"""Seconds that the driver waits for the last messages of a worker that has just ended. If
``IsweepMessages`` does not answer in this time, later calls do not wait until
``IsweepMessages`` has answered again."""
MAX_MESSAGES = 100_000
"""Largest number of messages that ``IsweepMessages`` stores between two requests of the
driver. If there are more, ``IsweepMessages`` drops the oldest messages. No result is lost:
only live displays need the messages, and each result contains all epochs."""
STORAGE_WAIT_S = 120.0
"""Seconds during which isweep tries again to store a file if the storage is full or does not
answer. The trial waits meanwhile. This limit is shorter than the time without a message after
which a trial counts as hung."""
CALL_RETRIES = 5
"""Largest number of times that Ray repeats a call during which the actor was killed. The
number is limited, because the call itself may have killed the actor."""
NOTE_AFTER_S = 10.0
"""Seconds that a trial waits for the storage before the user gets a note."""


class ActorHandles:
    """Handles of a run's actors. The constructor starts the actors.

    Args:
        store_url: folder or URL of the result store for weights, predictions and checkpoints.
            None means that these files are not stored.
    """

    def __init__(self, store_url: str | None) -> None:
        self.messages = MessageQueue()
        self.files = None if store_url is None else ArtifactStore(store_url, self.messages)
        self.arrays = start_beside_driver(IsweepArrays, max_restarts=-1, max_task_retries=-1)

    def end(self) -> None:
        """End the actors. Each actor gets a direct call, because Ray's head may be lost."""
        actors = [self.messages.actor, self.arrays]
        if self.files is not None:
            actors.append(self.files.actor)
        for actor in actors:
            actor.__ray_terminate__.options(max_task_retries=0).remote()


def start_beside_driver(actor_class: type, *arguments: Any, **options: Any) -> Any:
    """Start an actor on the driver's node and return its handle.

    If the actor ran on another node and that node was lost, every trial would fail. The actor
    requests no CPU, because it must answer while trials use all CPUs. Ray's list of tasks does
    not show the actor's calls, because this list is for the trials.
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


class IsweepMessages:
    """Actor that stores all messages of workers until the driver polls them.

    Most messages report the end of an epoch. The other messages are locations of workers, and
    notes to the user.
    """

    def __init__(self) -> None:
        self._messages: list[WorkerMessage] = []

    def put(self, messages: list[WorkerMessage]) -> None:
        """Add messages. If there are more than :data:`MAX_MESSAGES`, drop the oldest messages."""
        self._messages = (self._messages + messages)[-MAX_MESSAGES:]

    def take(self) -> list[WorkerMessage]:
        """Return and remove the messages since the last call."""
        messages = self._messages
        self._messages = []
        return messages


class MessageQueue:
    """Client of :class:`IsweepMessages`. Workers publish messages with it, and the driver
    polls them.

    The driver sends this client to the workers, so the client can be pickled.
    """

    def __init__(self) -> None:
        self.actor = start_beside_driver(IsweepMessages, max_restarts=-1)
        # Ray's reference of the answer to the last request, or None if the answer has arrived.
        self._pending_request: Any = None
        # Monotonic time of the last answer, in seconds.
        self._last_answer_s = 0.0
        # True after a wait without an answer, until the actor answers again.
        self._has_timed_out = False

    def publish(self, message: WorkerMessage) -> None:
        """Send a message without waiting."""
        self.actor.put.remote([message])

    def publisher(self, trial_id: str) -> EpochPublisher:
        """Return a publisher for the epochs of a trial."""
        return EpochPublisher(trial_id, self.actor.put.remote, time.monotonic)

    def poll(self, *, wait: bool = False) -> list[WorkerMessage]:
        """Return the messages that the driver received since the last call.

        Without ``wait``, this method does not wait for the actor. About once a second, it
        sends the actor a request. A later call returns the answer to this request.

        With ``wait``, this method sends the request and waits for the answer, usually for
        milliseconds. The driver uses ``wait`` for the last messages of a worker that has just
        ended. If the actor is lost, only one call waits for :data:`POLL_TIMEOUT_S`. The limit
        is needed because the driver starts no trials while it waits.
        """
        messages = self._receive_answer(timeout_s=0.0)
        is_due = time.monotonic() - self._last_answer_s >= POLL_INTERVAL_S
        if self._pending_request is None and (wait or is_due):
            self._pending_request = self.actor.take.remote()
        if wait and not self._has_timed_out:
            messages = messages + self._receive_answer(timeout_s=POLL_TIMEOUT_S)
            self._has_timed_out = self._pending_request is not None
        return messages

    def _receive_answer(self, timeout_s: float) -> list[WorkerMessage]:
        """Return the messages in the answer to the pending request.

        The list is empty if no request is pending, or if the actor does not answer in time.
        """
        request = self._pending_request
        if request is None or not ray.wait([request], timeout=timeout_s)[0]:
            return []
        self._pending_request = None
        self._has_timed_out = False
        self._last_answer_s = time.monotonic()
        try:
            messages: list[WorkerMessage] = ray.get(request)
        except ray.exceptions.RayError:
            return []  # The actor died. Ray starts it again.
        return messages


class EpochPublisher:
    """Publisher of one trial's epochs. It sends several short epochs in one message.

    Args:
        trial_id: id of the trial.
        send: function that sends a list of reports to the driver.
        clock: function that returns the time in seconds.
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
        """Save the test scores of the present epoch. :meth:`epoch_ended` publishes them."""
        self._score = score

    def epoch_ended(self, epoch: EpochRecord) -> None:
        """Publish an epoch. If the last message was sent less than :data:`PUBLISH_INTERVAL_S`
        ago, publish the epoch together with later epochs.
        """
        self._unsent.append(EpochReport(self._trial_id, epoch, self._score))
        self._score = None
        if self._clock() - self._sent_at >= PUBLISH_INTERVAL_S:
            self._send(self._unsent)
            self._unsent = []
            self._sent_at = self._clock()


class IsweepArtifacts:
    """Actor that reads and writes weights, predictions and checkpoints in the result store.

    All workers use this actor, so only the driver's node needs access to the store.

    Args:
        url: folder or URL of the result store.
        environment: the driver's environment variables that contain the credentials of the
            store.
    """

    def __init__(self, url: str, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        self._store = ResultStore(url)
        self._retry = RetryWithBackoff(limit_s=STORAGE_WAIT_S)

    def put(self, kind: FileKind, trial_id: str, content: bytes) -> TrialFile | str:
        """Store a file and return its checksum. If the file cannot be stored, return the
        reason as text.

        A failed checkpoint is not repeated, because the next checkpoint follows soon.
        """
        work = partial(self._store.put, kind, trial_id, content)
        try:
            return work() if kind == FileKind.CHECKPOINT else self._retry.until_done(work)
        except SetupError as error:
            return error.problem

    def get(self, kind: FileKind, trial_id: str, file: TrialFile) -> bytes:
        """Return a file (:meth:`ResultStore.get`). If the storage does not answer, try again."""
        return self._retry.until_done(partial(self._store.get, kind, trial_id, file))

    def checkpoint(self, trial_id: str) -> bytes | None:
        """Return a trial's checkpoint (:meth:`ResultStore.checkpoint`). If the storage does
        not answer, try again.
        """
        return self._retry.until_done(partial(self._store.checkpoint, trial_id))


class ArtifactStore:
    """Client of :class:`IsweepArtifacts`. The driver and the workers access files with it.

    Args:
        url: folder or URL of the result store.
        messages: queue for a note to the user if storing a file takes long.
    """

    def __init__(self, url: str, messages: MessageQueue) -> None:
        self._messages = messages
        environment = {
            name: value for name, value in os.environ.items() if name.startswith(STORAGE_PREFIXES)
        }
        self.actor = start_beside_driver(
            IsweepArtifacts, url, environment, max_restarts=-1, max_task_retries=CALL_RETRIES
        )
        # With this call the driver gets the actor's address, which `ActorHandles.end` needs.
        self.actor.__ray_ready__.remote()

    def put(self, kind: FileKind, trial_id: str, content: bytes) -> TrialFile | str:
        """Store a file and return its checksum. If the file cannot be stored, return the
        reason as text.
        """
        call = self.actor.put.remote(kind, trial_id, content)
        if not ray.wait([call], timeout=NOTE_AFTER_S)[0]:
            text = (
                f"the storage is full or does not answer. isweep tries to store the {kind} for at "
                f"most {STORAGE_WAIT_S:.0f} s"
            )
            self._messages.publish(Note(trial_id, text))
        return cast("TrialFile | str", ray.get(call))

    def get(self, kind: FileKind, trial_id: str, file: TrialFile) -> bytes:
        """Return a file. :meth:`ResultStore.get` describes the arguments and the errors."""
        return cast("bytes", ray.get(self.actor.get.remote(kind, trial_id, file)))

    def checkpoint(self, trial_id: str) -> bytes | None:
        """Return a trial's checkpoint. :meth:`ResultStore.checkpoint` describes the result."""
        return cast("bytes | None", ray.get(self.actor.checkpoint.remote(trial_id)))


class IsweepArrays:
    """Actor that returns references of images to workers. If the actor has no reference for a
    key yet, the worker waits.

    Each reference is sent inside a list, because Ray replaces a bare reference by the images
    themselves. The images would then fill the memory of this process. If the images cannot be
    read, the list contains the error instead of a reference.
    """

    def __init__(self) -> None:
        self._references: dict[str, list[Any]] = {}
        self._changed = asyncio.Condition()

    async def put(self, key: str, reference_list: list[Any]) -> None:
        """Store the list that contains the reference for a key. Answer the workers that wait
        for this key.
        """
        async with self._changed:
            self._references[key] = reference_list
            self._changed.notify_all()

    async def drop(self, key: str) -> None:
        """Remove the reference for a key, if the actor has one."""
        self._references.pop(key, None)

    async def take(self, key: str) -> list[Any]:
        """Wait until there is a reference for a key. Return the list that contains the
        reference.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: key in self._references)
            return self._references[key]

    async def missing(self, keys: list[str]) -> list[str]:
        """Return the keys for which this actor has no reference."""
        return [key for key in keys if key not in self._references]
