"""Kept weights, predictions and interval checkpoints of a sweep: files beside the results, checked when read.

``weights/<trial_id>.safetensors`` and ``predictions/<trial_id>.parquet`` are written before the result that
names their checksums, so what a result names is there; ``checkpoints/<trial_id>.pt`` lives while its trial
does. None goes to MLflow.
"""

from __future__ import annotations

import hashlib
import logging
import posixpath
from collections.abc import Mapping

from orchestrator.results.storage import Found, open_storage
from search_spaces.errors import CorruptStoreError, SetupError
from tasks.trials.measured import KeptFile

log = logging.getLogger(__name__)


class WeightStore:
    """Files of one sweep below ``url``, a local path or the URL of an object store."""

    def __init__(self, url: str) -> None:
        self._files = open_storage(url)

    def save(self, trial_id: str, data: bytes) -> KeptFile:
        """Keep a network's weights, whole or not at all.

        Raises:
            SetupError: when there is no room or no permission.
        """
        return self._keep(self._weights(trial_id), data)

    def read(self, trial_id: str, kept: KeptFile) -> bytes:
        """Return kept weights.

        Raises:
            CorruptStoreError: when they are gone or not those that were kept.
        """
        way_out = "the network is trained again"
        return self._whole(self._weights(trial_id), kept, "Kept weights must be whole", way_out)

    def save_predictions(self, trial_id: str, data: bytes) -> KeptFile:
        """Keep a network's predictions, whole or not at all.

        Raises:
            SetupError: when there is no room or no permission.
        """
        return self._keep(self._predictions(trial_id), data)

    def read_predictions(self, trial_id: str, kept: KeptFile) -> bytes:
        """Return kept predictions.

        Raises:
            CorruptStoreError: when they are gone or not those that were kept.
        """
        way_out = "run the sweep again: they are made anew, from kept weights where there are some"
        return self._whole(self._predictions(trial_id), kept, "Kept predictions must be whole", way_out)

    def damaged_predictions(self, kept: Mapping[str, KeptFile]) -> set[str]:
        """Return of which trials kept predictions are gone, or not those that were kept.

        Args:
            kept: what was kept, by trial id.
        """
        whole = set()
        ids = {self._predictions(trial_id): trial_id for trial_id in kept}
        for found, content in self._files.read_many(Found(path, "") for path in ids):
            trial_id = ids[found.path]
            if isinstance(content, bytes) and hashlib.sha256(content).hexdigest() == kept[trial_id].sha256:
                whole.add(trial_id)
        return kept.keys() - whole

    def save_checkpoint(self, trial_id: str, data: bytes) -> None:
        """Replace a running trial's checkpoint.

        Raises:
            SetupError: when there is no room or no permission.
        """
        self._write(self._checkpoint(trial_id), hashlib.sha256(data).digest() + data)

    def read_checkpoint(self, trial_id: str) -> bytes | None:
        """Return a trial's checkpoint; None where there is none that is whole."""
        sealed = self._read(self._checkpoint(trial_id))
        if sealed is None or hashlib.sha256(sealed[32:]).digest() != sealed[:32]:
            return None
        return sealed[32:]

    def forget_checkpoint(self, trial_id: str) -> None:
        """Remove a trial's checkpoint: it has a result. One that stays costs room alone."""
        try:
            self._files.remove(self._checkpoint(trial_id))
        except (SetupError, OSError) as error:
            log.warning("the checkpoint of %s stays: %s", trial_id, error)

    def _weights(self, trial_id: str) -> str:
        return posixpath.join(self._files.base, "weights", f"{trial_id}.safetensors")

    def _predictions(self, trial_id: str) -> str:
        return posixpath.join(self._files.base, "predictions", f"{trial_id}.parquet")

    def _checkpoint(self, trial_id: str) -> str:
        return posixpath.join(self._files.base, "checkpoints", f"{trial_id}.pt")

    def _read(self, path: str) -> bytes | None:
        try:
            return self._files.read(path)
        except FileNotFoundError:
            return None

    def _keep(self, path: str, data: bytes) -> KeptFile:
        self._write(path, data)
        return KeptFile(sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data))

    def _whole(self, path: str, kept: KeptFile, rule: str, way_out: str) -> bytes:
        data = self._read(path)
        if data is None or hashlib.sha256(data).hexdigest() != kept.sha256:
            found = f"{path}: {'gone' if data is None else 'checksum does not match'}"
            raise CorruptStoreError(rule, found, way_out)
        return data

    def _write(self, path: str, data: bytes) -> None:
        rule = "Weights, predictions and checkpoints must have room where results are kept"
        self._files.write(path, data, rule, "free space, or set keep_weights to last or none")
