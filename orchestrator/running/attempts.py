"""The attempts at a run's trials: their numbers, their locations and the trials' event logs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.planning.redaction import without_secrets
from orchestrator.results.store import Event, EventKind, ResultStore
from orchestrator.running.messages import WorkerLocation
from tasks.clock import SYSTEM, Clock


@dataclass
class Attempt:
    """The present attempt at a trial, or its last one.

    Attributes:
        number: number of attempts at the trial so far, in all runs.
        location: the place where the attempt runs. It is None until the worker has reported
            it.
        node: address of the attempt's node, or an empty text if it is unknown. The report of
            an attempt also sets this address, so the address may be known while ``location``
            is None.
        started_s: monotonic time at which Tune started the attempt, in seconds. It is infinite
            until Tune starts the attempt.
    """

    number: int
    location: WorkerLocation | None = None
    node: str = ""
    started_s: float = math.inf

    @property
    def gpus(self) -> str:
        """The worker's value of ``CUDA_VISIBLE_DEVICES``, for example ``"0"``. It is empty if
        the worker has not reported its location yet.
        """
        return "" if self.location is None else self.location.gpus


class Attempts:
    """The present or last attempt at each trial of a run, and the trials' event logs.

    Args:
        num_earlier: number of attempts in earlier runs, by trial id.
        store: store of the event logs.
        clock: source of the time.
    """

    def __init__(
        self, num_earlier: Mapping[str, int], store: ResultStore, clock: Clock = SYSTEM
    ) -> None:
        self._num_earlier = num_earlier
        self._store = store
        self._clock = clock
        self._attempts: dict[str, Attempt] = {}

    def of(self, trial_id: str) -> Attempt:
        """Return the present attempt at a trial, or its last one."""
        if trial_id not in self._attempts:
            self._attempts[trial_id] = Attempt(self._num_earlier.get(trial_id, 0))
        return self._attempts[trial_id]

    def begin(self, trial_id: str) -> None:
        """Count a new attempt at a trial. The attempt has no location yet."""
        self._attempts[trial_id] = Attempt(self.of(trial_id).number + 1)

    def log_event(self, trial_id: str, kind: EventKind, text: str = "", log_text: str = "") -> None:
        """Add an event to a trial's event log. Store the log of the attempt with it.

        Args:
            trial_id: id of the trial.
            kind: kind of the event.
            text: text about the event for users.
            log_text: log messages and output of the attempt, or an empty text.
        """
        attempt = self.of(trial_id)
        event = Event(
            at=self._clock.time(),
            what=kind,
            attempt=attempt.number,
            # When an attempt starts, its node is not known yet.
            node="" if kind == "started" else attempt.node,
            said=text,
        )
        self._store.log_event(trial_id, event, without_secrets(log_text))
