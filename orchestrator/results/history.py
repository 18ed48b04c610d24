"""The story of each cell: when its attempts started, where, how they ended, and what they logged.

``trials/<trial_id>/history.json`` and one ``attempt-<n>.log`` per attempt lie beside the result. They are for
people: nothing is decided by them, and a story that cannot be written is worth no result.
"""

from __future__ import annotations

import logging
import posixpath
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from orchestrator.results.records import TrialRecord
from orchestrator.results.storage import open_storage
from search_spaces.errors import CorruptStoreError, SweepError
from tasks.finding import Finding

log = logging.getLogger(__name__)

MOST_EVENTS = 200
"""Of one cell; lost nodes are tried again without limit. The oldest go."""


What = Literal["started", "finished", "failed", "stopped"]


class Event(Finding):
    """Something that happened to a cell.

    Attributes:
        at: Seconds since 1970, by the driver's clock.
        what: What happened.
        attempt: To which attempt, from 1 over all runs.
        node: Address of the node where it ran, where that is known.
        said: Of a failure: its kind and reason, and whether there is another attempt; of an end: how.
    """

    at: float
    what: What
    attempt: int
    node: str = ""
    said: str = ""


_EVENTS = TypeAdapter(list[Event])


class History:
    """Stories and logs of the cells of one sweep, beside its results below ``url``."""

    def __init__(self, url: str) -> None:
        self._files = open_storage(url)
        self._open: dict[str, list[Event]] = {}

    def tell(self, trial_id: str, event: Event, log_text: str = "") -> None:
        """Add an event to a cell's story; ``log_text`` is what its attempt logged, which has ended then."""
        try:
            events = self._open.setdefault(trial_id, []) or self.story(trial_id)
        except SweepError as error:
            log.warning("the story of %s begins anew: %s", trial_id, error)
            events = []
        self._open[trial_id] = events = [*events, event][-MOST_EVENTS:]
        self._write(trial_id, "history.json", _EVENTS.dump_json(events, indent=1))
        if log_text:
            self._write(trial_id, f"attempt-{event.attempt}.log", log_text.encode())
        if event.what == "finished":
            del self._open[trial_id]

    def story(self, trial_id: str) -> list[Event]:
        """Return what happened to a cell, oldest first.

        Raises:
            CorruptStoreError: when the file is damaged.
            SetupError: when the store does not answer.
        """
        path = self._path(trial_id, "history.json")
        try:
            return _EVENTS.validate_json(self._files.read(path))
        except FileNotFoundError:
            return []
        except (OSError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            way_out = "delete it: nothing is decided by it"
            raise CorruptStoreError("A cell's story must be whole", f"{path}: {reason}", way_out) from None

    def log_path(self, trial_id: str, attempt: int) -> str:
        """Return where an attempt's log is, if it left one."""
        return self._path(trial_id, f"attempt-{attempt}.log")

    def log(self, trial_id: str, attempt: int) -> str | None:
        """Return what an attempt logged; None where it left nothing."""
        try:
            return self._files.read(self.log_path(trial_id, attempt)).decode(errors="replace")
        except OSError:
            return None

    def _path(self, trial_id: str, name: str) -> str:
        return posixpath.join(self._files.base, TrialRecord.folder, trial_id, name)

    def _write(self, trial_id: str, name: str, data: bytes) -> None:
        try:
            self._files.write(self._path(trial_id, name), data, durable=False)
        except SweepError as error:
            log.warning("the story of %s is not kept: %s", trial_id, error)
