"""Images of trials in Ray's object store: put there once, and shared by all workers of a node."""

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
"""Seconds between two checks whether the actor that hands out arrays still has all of them."""


class ArrayCache:
    """The arrays that the driver holds in the object store, and the trials that need them.

    The driver puts an array there when the first trial that needs it starts. The array is dropped
    when no remaining trial needs it, or when others need its room. Workers ask an actor for the
    reference, since an array may not be there yet when its trial is planned. If the actor dies, Ray
    starts it again, empty; the driver then hands it every reference once more.

    Args:
        load: reads an array by its key.
        max_bytes: room for arrays; those of running trials may exceed it.
        actor: handle of :class:`~orchestrator.running.actors.IsweepArrays`.
        num_uses: trials that need each array; None if that is unknown, so none is dropped early.
        end: is called when everything is dropped.
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
        """Bytes of the arrays that are held now."""
        return sum(size for _, size in self._held.values())

    def trial_started(self, trial_id: str, key: str) -> None:
        """Make the array of a trial that starts available to its worker.

        Raises:
            SweepError: it cannot be read. A DataError is not raised: it fails only the trials that
                use this array, whose workers are handed the error.
        """
        self._array_by_trial[trial_id] = key
        if key in self._held:
            self._held[key] = self._held.pop(key)
            return
        try:
            data = self._load(key)
        except SweepError as error:
            # Handed out in place of the array, or the worker would wait for ever.
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

    def trial_ended(self, trial_id: str, key: str, *, for_good: bool) -> None:
        """Drop the array with the last trial that needs it.

        Args:
            trial_id: the trial whose process has ended.
            key: its array.
            for_good: False for a trial that is tried again.
        """
        self._array_by_trial.pop(trial_id, None)
        if self._num_remaining is not None:
            self._num_remaining[key] -= for_good
            if self._num_remaining[key] <= 0:
                self._drop(key)

    def check_actor(self) -> None:
        """Ask about once a second, without waiting, which arrays the actor lacks; put them again.

        An actor that was killed is started again by Ray, without what it knew.
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
            return  # the actor died again; it is asked again
        if missing:
            log.warning("the actor that hands out images was lost; it is given them again")
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
        # In a list, or Ray would fetch the array itself for the actor.
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
