"""A tracker that records what a sweep reports, for tests of sweeps."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.results.flat_runs import FlatRun
from orchestrator.results.records import FailureRecord
from orchestrator.results.tracking import Tracker


class RecordedTracker(Tracker):
    """A tracker that stores the latest status of every trial, and all failures."""

    def __init__(self) -> None:
        super().__init__()
        self.statuses: dict[str, str] = {}
        self.failures: list[FailureRecord] = []

    def start_trial(self, trial_id: str, tags: Mapping[str, str]) -> None:
        self.statuses[trial_id] = "RUNNING"

    def finish(self, run: FlatRun) -> None:
        self.statuses[run.run_key] = "FINISHED"

    def fail_trial(self, failure: FailureRecord) -> None:
        self.statuses[failure.trial_id] = "FAILED"
        self.failures.append(failure)
