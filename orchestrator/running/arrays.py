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

    An *array* is the set of images that trials with the same key train and test on. The driver
    stores an array when the first trial that needs it starts. It drops the array when no remaining
    trial needs it, or when other arrays need the space. Workers get the reference from an actor,
    because the array may not be stored yet when its trial is planned. If the actor dies, Ray starts
    it again without references, and the driver sends all of them again.

    Args:
        load: reads an array by its key.
        max_bytes: space for arrays in bytes; arrays of running trials may exceed it.
        actor: handle of :class:`~orchestrator.running.actors.IsweepArrays`.
        num_uses: number of trials by key; None if unknown, so that no array is dropped early.
        end: called after everything was dropped.
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
        self._held: dict[str, tuple[Any, int]] = {}  # reference and bytes; oldest use first
        self._errors: dict[str, SweepError] = {}
        self._check: Any = None
        self._checked_at = time.monotonic()

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays that are stored now."""
        return sum(size for _, size in self._held.values())

    def add_trial(self, trial_id: str, key: str) -> None:
        """Make the array of a starting trial available to its worker.

        Raises:
            SweepError: the array cannot be read. A DataError is not raised but sent to the workers,
                because it fails only the trials that use this array.
        """
        self._array_by_trial[trial_id] = key
        if key in self._held:
            self._held[key] = self._held.pop(key)
            return
        try:
            data = self._load(key)
        except SweepError as error:
            # The worker gets the error in place of the array; otherwise it would wait forever.
            self._errors[key] = error
            self._hand_out(key, error)
            if isinstance(error, DataError):
                return
            raise
        self._errors.pop(key, None)
        size = data.train_images.nbytes + data.test_images.nbytes
        self._make_room(size)
        reference = ray.put(data)
        self._held[key] = (reference, size)
        self._hand_out(key, reference)

    def remove_trial(self, trial_id: str, key: str, *, for_good: bool) -> None:
        """Drop the array of an ended trial if no further trial needs it.

        Args:
            trial_id: id of the ended trial.
            key: key of its array.
            for_good: False if the trial is tried again.
        """
        self._array_by_trial.pop(trial_id, None)
        if self._num_remaining is not None:
            self._num_remaining[key] -= for_good
            if self._num_remaining[key] <= 0:
                self._drop(key)

    def check_actor(self) -> None:
        """Send the actor all references that it lacks; check this about once a second.

        After the actor was killed, Ray starts it again without references. The check does not wait:
        a later call handles the answer.
        """
        if self._check is not None:
            if not ray.wait([self._check], timeout=0)[0]:
                return
            check = self._check
            self._check = None
            self._put_again(check)
        elif time.monotonic() - self._checked_at >= CHECK_INTERVAL_S:
            self._checked_at = time.monotonic()
            self._check = self.actor.missing.remote([*self._held, *self._errors])

    def _put_again(self, check: Any) -> None:
        try:
            missing: list[str] = ray.get(check)
        except ray.exceptions.RayError:
            return  # the actor died again; the next check repeats the request
        if missing:
            log.warning("The actor for images was lost. Its new process gets all references again")
        for key in missing:
            if key in self._held:
                self._hand_out(key, self._held[key][0])
            elif key in self._errors:
                self._hand_out(key, self._errors[key])

    def close(self) -> None:
        """Drop all arrays."""
        self._held.clear()
        self._end()

    def _hand_out(self, key: str, content: Any) -> None:
        # In a list, because Ray would otherwise load the array into the actor's process.
        ray.get(self.actor.put.remote(key, [content]))

    def _make_room(self, size: int) -> None:
        in_use = set(self._array_by_trial.values())
        idle = [key for key in self._held if key not in in_use]
        for key in idle:
            if self.num_bytes + size <= self._max_bytes:
                return
            self._drop(key)

    def _drop(self, key: str) -> None:
        if self._held.pop(key, None) is not None:
            self.actor.drop.remote(key)
