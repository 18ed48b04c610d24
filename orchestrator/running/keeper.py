"""Who keeps weights and checkpoints: one actor on the driver's node, so that workers need no shared disk."""

from __future__ import annotations

import os

import ray

from orchestrator.results.patience import Patience
from orchestrator.results.weights import WeightStore
from orchestrator.running.beside_driver import start_beside_driver
from orchestrator.running.credentials import for_storage
from search_spaces.errors import CorruptStoreError, SetupError
from tasks.trials.measured import KeptFile

PATIENCE_S = 120.0
"""How long a file waits for storage that is full or away. Its trial waits too, and must not seem to hang."""


class IsweepKeeper:
    """The actor: everything is a file, so it may be started again at any time."""

    def __init__(self, url: str, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        self._store = WeightStore(url)
        self._patience = Patience(limit_s=PATIENCE_S)

    def save(self, trial_id: str, data: bytes) -> KeptFile | str:
        """See :meth:`WeightStore.save`; a failure in words."""
        try:
            return self._patience.until_done(lambda: self._store.save(trial_id, data))
        except SetupError as error:
            return str(error)

    def save_predictions(self, trial_id: str, data: bytes) -> KeptFile | str:
        """See :meth:`WeightStore.save_predictions`; a failure in words."""
        try:
            return self._patience.until_done(lambda: self._store.save_predictions(trial_id, data))
        except SetupError as error:
            return str(error)

    def read(self, trial_id: str, kept: KeptFile) -> bytes | str:
        """See :meth:`WeightStore.read`; a failure in words."""
        try:
            return self._patience.until_done(lambda: self._store.read(trial_id, kept))
        except CorruptStoreError as error:
            return str(error)

    def save_checkpoint(self, trial_id: str, data: bytes) -> str:
        """Save it; a failure in words, else nothing."""
        try:
            self._store.save_checkpoint(trial_id, data)
        except SetupError as error:
            return str(error)
        return ""

    def read_checkpoint(self, trial_id: str) -> bytes | None:
        """Return it, if there is one."""
        return self._patience.until_done(lambda: self._store.read_checkpoint(trial_id))


class Keeper:
    """A worker's way to the actor; may be sent anywhere."""

    def __init__(self, url: str) -> None:
        self._actor = start_beside_driver(
            IsweepKeeper, url, for_storage(), max_restarts=-1, max_task_retries=1
        )

    def save(self, trial_id: str, data: bytes) -> KeptFile | str:
        """Keep weights; text says why they could not be kept, which costs no result."""
        kept: KeptFile | str = ray.get(self._actor.save.remote(trial_id, data))
        return kept

    def save_predictions(self, trial_id: str, data: bytes) -> KeptFile | str:
        """Keep predictions; text says why they could not be kept, which costs no result."""
        kept: KeptFile | str = ray.get(self._actor.save_predictions.remote(trial_id, data))
        return kept

    def read(self, trial_id: str, kept: KeptFile) -> bytes:
        """Return kept weights.

        Raises:
            CorruptStoreError: when they are gone or damaged.
        """
        data = ray.get(self._actor.read.remote(trial_id, kept))
        if isinstance(data, str):
            raise CorruptStoreError(data)
        return bytes(data)

    def save_checkpoint(self, trial_id: str, data: bytes) -> str:
        """Replace a checkpoint; text says why that was not possible."""
        return str(ray.get(self._actor.save_checkpoint.remote(trial_id, data)))

    def read_checkpoint(self, trial_id: str) -> bytes | None:
        """Return a checkpoint, where there is one that is whole."""
        data: bytes | None = ray.get(self._actor.read_checkpoint.remote(trial_id))
        return data
