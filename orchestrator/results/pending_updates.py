"""The table of updates that MLflow lacks: at most one for each run, in the order of sending."""

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
"""Key of the update with the sweep's report; no run has this key."""
END_KEY = "sweep end"
"""Key of the update that ends runs; no run has this key."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, compressed to 2 kB, because 10,000 runs wait if MLflow is down for a night.

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
        folder: Folder of the report. None without a report.
    """

    numbers: Mapping[str, float]
    folder: Path | None


@dataclass(frozen=True)
class EndTrials:
    """The request to end all runs in MLflow whose trials are not running any more."""


@dataclass(frozen=True)
class EndSweep:
    """The request to end all runs in MLflow, also the sweep's run.

    Attributes:
        status: Status of the sweep's run.
    """

    status: Ending


Update = LiveRun | FinishedRun | SweepReport | EndTrials | EndSweep


class PendingUpdates:
    """The table of updates that MLflow lacks.

    MLflow may refuse an update. The update then stays in the table, because MLflow still lacks it,
    but it is not sent again. A newer update of the same run replaces it and is sent.

    The table is not thread-safe, so the caller must hold a lock.
    """

    def __init__(self) -> None:
        self._updates: dict[str, Update] = {}
        self._refused_keys = set[str]()

    def __len__(self) -> int:
        """Return the number of updates, also of refused ones."""
        return len(self._updates)

    def __contains__(self, key: str) -> bool:
        """Return whether the table has an update with this key, refused or not."""
        return key in self._updates

    @property
    def has_refused(self) -> bool:
        """True if MLflow refused an update of the table."""
        return bool(self._refused_keys)

    @property
    def has_sendable(self) -> bool:
        """True if the table has an update that was not refused."""
        return len(self._updates) > len(self._refused_keys)

    @property
    def sendable_keys(self) -> set[str]:
        """Keys of the updates that were not refused."""
        return self._updates.keys() - self._refused_keys

    def is_sendable(self, key: str, update: Update) -> bool:
        """Return whether an update is still in the table and was not refused."""
        return self._updates.get(key) is update and key not in self._refused_keys

    def in_sending_order(self) -> list[tuple[str, Update]]:
        """Return all updates with their keys: the report after all runs, and the end last.

        The report has final numbers, which must be sent after the points of the curves.
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
        self._refused_keys.discard(key)

    def remove(self, key: str, update: Update) -> None:
        """Remove an update that was sent, unless a newer update has replaced it."""
        if self._updates.get(key) is update:
            del self._updates[key]
            self._refused_keys.discard(key)

    def postpone(self, key: str, update: Update) -> None:
        """Move an update behind all others, unless a newer update has replaced it."""
        if self._updates.get(key) is update:
            self._updates[key] = self._updates.pop(key)

    def refuse(self, key: str, update: Update) -> None:
        """Mark an update as refused, unless a newer update has replaced it."""
        if self._updates.get(key) is update:
            self._refused_keys.add(key)

    def refuse_all(self) -> None:
        """Mark all updates as refused."""
        self._refused_keys.update(self._updates)
