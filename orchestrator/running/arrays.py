"""The images of trials in Ray's object store. All workers of a node share one copy."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import ray

from search_spaces.errors import DataError, SweepError
from tasks.prepared.subsets import TrialData

log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0
"""Seconds between two checks that ``IsweepArrays`` still has the references of all arrays."""


class ArrayCache:
    """The images that the driver has put into the object store, by key.

    An *array* contains training and test images. Trials with the same key use the same array.
    The driver stores an array when the first trial that needs the array starts. The driver
    drops an array when no remaining trial needs it, or when other arrays need the space.

    Workers get the reference of an array from an actor. If the array is not stored yet when a
    worker gets its trial, the worker waits. If the actor dies, Ray starts it again without
    references. The driver then sends all references again.

    Args:
        load: function that reads the array with a given key.
        max_bytes: space for arrays in bytes. If the arrays of running trials need more, they
            get more.
        actor: handle of :class:`~orchestrator.running.actors.IsweepArrays`.
        num_uses: number of trials that use each array, by key. None means that these numbers
            are unknown. An array is then dropped only when other arrays need the space.
        end: function that :meth:`close` calls after it has dropped all arrays.
    """

    def __init__(
        self,
        load: Callable[[str], TrialData],
        max_bytes: float,
        actor: Any,
        num_uses: Counter[str] | None = None,
        end: Callable[[], object] = lambda: None,
    ) -> None:
        self.actor = actor
        self._load = load
        self._max_bytes = max_bytes
        self._num_remaining = None if num_uses is None else Counter(num_uses)
        self._end = end
        self._array_by_trial: dict[str, str] = {}
        # The size of each stored array in bytes, by key. The array that was used last is at
        # the end.
        self._sizes: dict[str, int] = {}
        # Each value is the reference of a stored array, or the error of an unreadable array,
        # by key.
        self._contents: dict[str, Any] = {}
        # Ray's reference of the answer to the last request, or None if the answer has arrived.
        self._pending_request: Any = None
        self._checked_at = time.monotonic()

    @property
    def num_bytes(self) -> int:
        """Total size of the stored arrays in bytes."""
        return sum(self._sizes.values())

    def add_trial(self, trial_id: str, key: str) -> None:
        """Make the array of a starting trial available to its worker.

        If the array is not stored yet, this method reads it. Reading 1 GB takes up to 10 s on
        busy cores, and no other trial starts or ends meanwhile. Reading in a background thread
        would avoid this pause, but it would need locks: other trials would start, end and fail
        while the thread drops and stores arrays.

        Raises:
            SweepError: the array cannot be read. A DataError is not raised. It is sent to the
                workers, so that only the trials that use this array fail.
        """
        self._array_by_trial[trial_id] = key
        if key in self._sizes:
            self._sizes[key] = self._sizes.pop(key)  # now the last key
            return
        try:
            data = self._load(key)
        except SweepError as error:
            # The worker gets the error instead of the array, because it would wait forever.
            self._send(key, error)
            if isinstance(error, DataError):
                return
            raise
        size = data.train_images.nbytes + data.test_images.nbytes
        self._make_room(size)
        reference = ray.put(data)
        self._sizes[key] = size
        self._send(key, reference)

    def remove_trial(self, trial_id: str, key: str, *, for_good: bool) -> None:
        """Drop the array of an ended trial if no remaining trial needs it.

        Args:
            trial_id: id of the ended trial.
            key: key of the trial's array.
            for_good: True if the trial gets no further attempt in this run.
        """
        self._array_by_trial.pop(trial_id, None)
        if self._num_remaining is not None:
            if for_good:
                self._num_remaining[key] -= 1
            if self._num_remaining[key] <= 0:
                self._drop(key)

    def check_actor(self) -> None:
        """Send the actor all references that it lacks. This is checked about once a second.

        The actor lacks references if it was killed and Ray started it again. This method does
        not wait for the actor's answer. A later call processes the answer.
        """
        if self._pending_request is not None:
            if not ray.wait([self._pending_request], timeout=0)[0]:
                return
            answer = self._pending_request
            self._pending_request = None
            self._send_missing(answer)
        elif time.monotonic() - self._checked_at >= CHECK_INTERVAL_S:
            self._checked_at = time.monotonic()
            self._pending_request = self.actor.missing.remote(list(self._contents))

    def _send_missing(self, answer: Any) -> None:
        """Send the references that the actor lacks according to its answer."""
        try:
            missing: list[str] = ray.get(answer)
        except ray.exceptions.RayError:
            return  # The actor died again. The next check repeats the request.
        if missing:
            log.warning(
                "The Ray actor that distributes the images was lost. A new actor replaces it"
            )
        for key in missing:
            if key in self._contents:
                self._send(key, self._contents[key])

    def close(self) -> None:
        """Drop all arrays."""
        self._sizes.clear()
        self._contents.clear()
        self._end()

    def _send(self, key: str, content: Any) -> None:
        """Send the actor the reference of an array. If the array cannot be read, send the
        error instead.
        """
        self._contents[key] = content
        # The content is in a list, because Ray would load the array into the actor's process.
        ray.get(self.actor.put.remote(key, [content]))

    def _make_room(self, size: int) -> None:
        """Drop arrays that no running trial uses, until there is space for ``size`` more bytes."""
        in_use = set(self._array_by_trial.values())
        idle = [key for key in self._sizes if key not in in_use]
        for key in idle:
            if self.num_bytes + size <= self._max_bytes:
                return
            self._drop(key)

    def _drop(self, key: str) -> None:
        """Drop a stored array, in the driver and in the actor."""
        if self._sizes.pop(key, None) is not None:
            del self._contents[key]
            self.actor.drop.remote(key)
