"""Arrays enter and leave the object store as trials start and end: it holds what runs, and little more.

The driver puts an array when the first trial that needs it starts, and drops it when none that is left needs
it, or when others need its room. Ray copies it to each node once. Trials ask a small actor for the reference,
because theirs is not made yet when they are planned.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import ray

from orchestrator.running.beside_driver import start_beside_driver
from search_spaces.errors import SweepError
from tasks.prepared.subsets import TrialData


class IsweepArrays:
    """The actor: hands out references, and lets those wait who come before the driver has put the array."""

    def __init__(self) -> None:
        self._references: dict[str, list[Any]] = {}
        self._there = asyncio.Condition()

    async def put(self, key: str, boxed: list[Any]) -> None:
        """Keep a reference, boxed in a list so that Ray does not fetch the array itself."""
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


class Shelf:
    """The driver's side: which arrays are in the object store, and who still needs them.

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
        except SweepError:
            ray.get(self.references.put.remote(key, []))  # or the trial would wait for ever
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
