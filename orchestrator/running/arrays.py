"""Images of trials in Ray's object store, stored once and shared by all workers of a node."""

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
"""Seconds between two checks whether the actor for images still has all references."""


class ArrayCache:
    """The images that the driver has put into the object store, by key.

    An *array* contains the images that trials with the same key train and test on. The driver
    stores an array when the first trial that needs the array starts. The driver drops an array
    when no remaining trial needs it, or when other arrays need the space.

    Workers get the reference of an array from an actor. When a trial is assigned to its worker, the
    array may not be stored yet. If the actor dies, Ray starts the actor again without references.
    The driver then sends all references again.

    Args:
        load: reads an array by its key.
        max_bytes: space for arrays in bytes. The arrays of running trials may exceed this space.
        actor: handle of :class:`~orchestrator.running.actors.IsweepArrays`.
        num_uses: number of trials by key, or None if it is unknown. If it is None, no array is
            dropped early.
        end: function that is called after all arrays were dropped.
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
        # The size of each stored array in bytes, by key. The array that was used last is at the
        # end.
        self._sizes: dict[str, int] = {}
        # Each value is the reference of a stored array, or the error of an unreadable array, by
        # key.
        self._contents: dict[str, Any] = {}
        # Ray's reference of the answer to the last request, or None if the answer has arrived.
        self._pending_request: Any = None
        self._checked_at = time.monotonic()

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays that are stored now."""
        return sum(self._sizes.values())

    def add_trial(self, trial_id: str, key: str) -> None:
        """Make the array of a starting trial available to its worker.

        If the array is not stored yet, this call reads it, which takes up to 10 s for 1 GB on
        busy cores. No other trial starts or ends meanwhile. A thread that reads in the
        background would need locks: other trials start, end and fail while it makes room and
        stores the array.

        Raises:
            SweepError: the array cannot be read. A DataError is not raised but sent to the
                workers, because it fails only the trials that use this array.
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
        """Drop the array of an ended trial if no further trial needs it.

        Args:
            trial_id: id of the ended trial.
            key: key of its array.
            for_good: False if the trial is tried again.
        """
        self._array_by_trial.pop(trial_id, None)
        if self._num_remaining is not None:
            if for_good:
                self._num_remaining[key] -= 1
            if self._num_remaining[key] <= 0:
                self._drop(key)

    def check_actor(self) -> None:
        """Check about once a second which references the actor lacks, and send them.

        The actor lacks references after it was killed and started again. This call does not
        wait for the actor's answer, which a later call processes.
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
        """Send the actor the reference of an array, or the error of an unreadable array."""
        self._contents[key] = content
        # The content is in a list, because Ray would load the array into the actor's process.
        ray.get(self.actor.put.remote(key, [content]))

    def _make_room(self, size: int) -> None:
        """Drop arrays that no trial uses now, until an array of ``size`` bytes fits."""
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
