"""The table of updates that MLflow lacks. It has at most one update for each run."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.results.flat_runs import FlatRun, LiveRun

Ending = Literal["FINISHED", "FAILED", "KILLED"]
"""MLflow's status of a sweep that ended: normally, with an error, or by Ctrl-C."""

REPORT_KEY = "sweep report"
"""Key of the update that contains the sweep's report. No run has this key."""
END_KEY = "sweep end"
"""Key of the update that ends runs. No run has this key."""


@dataclass(frozen=True)
class FinishedRun:
    """The update of a finished run, compressed to about 2 kB.

    The compression saves memory: if MLflow is down for a night, the table may contain 10,000
    such updates.

    Attributes:
        compressed: The compressed run.
    """

    compressed: bytes

    @classmethod
    def of(cls, run: FlatRun) -> FinishedRun:
        """Compress a run."""
        return cls(zlib.compress(pickle.dumps(run), level=1))

    def run(self) -> FlatRun:
        """Decompress the run."""
        run: FlatRun = pickle.loads(zlib.decompress(self.compressed))  # noqa: S301 (our own bytes)
        return run


@dataclass(frozen=True)
class SweepReport:
    """The final numbers of the sweep, and its report.

    Attributes:
        numbers: Final numbers of the sweep, by name.
        folder: Folder of the report, or None if there is no report.
    """

    numbers: Mapping[str, float]
    folder: Path | None


@dataclass(frozen=True)
class EndTrials:
    """The request to end all runs in MLflow whose trials are not running any more.

    EndTrials and EndSweep have the same key, END_KEY. So the table contains only the newer of
    the two.
    """


@dataclass(frozen=True)
class EndSweep:
    """The request to end all runs in MLflow, including the sweep's run.

    Attributes:
        status: Status of the sweep's run.
    """

    status: Ending


Update = LiveRun | FinishedRun | SweepReport | EndTrials | EndSweep


class PendingUpdates:
    """The table of updates that MLflow lacks.

    The sender may hold back an update, for example if MLflow refuses it. The sender does not
    send this update again. The update stays in the table, because MLflow still lacks it. A
    newer update of the same run replaces it and is sent.

    The table is not thread-safe, so the caller must hold a lock.
    """

    def __init__(self) -> None:
        self._updates: dict[str, Update] = {}
        self._held_back_keys = set[str]()

    def __len__(self) -> int:
        """Return the number of all updates. Updates that are held back count too."""
        return len(self._updates)

    def __contains__(self, key: str) -> bool:
        """Return whether the table has an update with this key.

        Updates that are held back count too.
        """
        return key in self._updates

    @property
    def has_held_back(self) -> bool:
        """True if an update of the table is held back."""
        return bool(self._held_back_keys)

    @property
    def has_sendable(self) -> bool:
        """True if the table has an update that is not held back."""
        return len(self._updates) > len(self._held_back_keys)

    @property
    def sendable_keys(self) -> set[str]:
        """Keys of the updates that are not held back."""
        return self._updates.keys() - self._held_back_keys

    def is_sendable(self, key: str, update: Update) -> bool:
        """Return whether an update is still in the table and is not held back."""
        return self._updates.get(key) is update and key not in self._held_back_keys

    def in_sending_order(self) -> list[tuple[str, Update]]:
        """Return all updates with their keys: first runs, then the report, then the end of runs.

        The report contains final numbers. They must be sent after the points of the curves.
        """
        return sorted(
            self._updates.items(), key=lambda item: (item[0] == END_KEY, item[0] == REPORT_KEY)
        )

    def live_run(self, key: str) -> LiveRun:
        """Return the pending update of a live run, or an empty update if none is pending."""
        update = self._updates.get(key)
        return update if isinstance(update, LiveRun) else LiveRun()

    def put(self, key: str, update: Update) -> None:
        """Add an update, in place of an older update with the same key."""
        self._updates[key] = update
        self._held_back_keys.discard(key)

    def remove(self, key: str, update: Update) -> None:
        """Remove an update that was sent, unless a newer update has replaced it."""
        if self._updates.get(key) is update:
            del self._updates[key]
            self._held_back_keys.discard(key)

    def postpone(self, key: str, update: Update) -> None:
        """Move an update behind all others, unless a newer update has replaced it."""
        if self._updates.get(key) is update:
            self._updates[key] = self._updates.pop(key)

    def hold_back(self, key: str, update: Update) -> None:
        """Hold back an update, unless a newer update has replaced it."""
        if self._updates.get(key) is update:
            self._held_back_keys.add(key)

    def hold_back_all(self) -> None:
        """Hold back all updates."""
        self._held_back_keys.update(self._updates)
