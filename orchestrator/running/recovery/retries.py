"""Decisions about retries: whether a failed trial is tried again in this run, after which
pause, and why.

If a trial crashes repeatedly and no other trial crashes, the trial is the cause. If other
trials crash too, the machine or the cluster is the cause, and each trial gets more attempts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from orchestrator.results.records import FailureKind, TrialFailure


@dataclass(frozen=True)
class RetryPolicy:
    """The number of retries of a trial after failures of one kind, and the pauses before them.

    Attributes:
        num_retries: number of retries. None means that there is no limit.
        first_pause_s: pause in seconds after a trial's first failure. After each further
            failure of the trial, of any kind, the pause is twice as long.
        max_pause_s: longest pause in seconds. It is at least ``first_pause_s``.
    """

    num_retries: int | None
    first_pause_s: float = 1.0
    max_pause_s: float = 60.0

    def __post_init__(self) -> None:
        if self.first_pause_s > self.max_pause_s:
            raise ValueError(
                f"A row of RETRY_POLICIES has first_pause_s={self.first_pause_s:g}, which is more "
                f"than max_pause_s={self.max_pause_s:g}. Set max_pause_s of this row too"
            )

    def pause_s(self, num_failures: int) -> float:
        """Return the pause in seconds before the next attempt at a trial that has failed
        ``num_failures`` times.
        """
        # The number of failures is limited here: lost nodes may fail a trial very often, and a
        # float cannot hold 2**1024.
        num_doublings = min(num_failures - 1, 100)
        return min(self.first_pause_s * 2.0**num_doublings, self.max_pause_s)


RETRY_POLICIES: dict[FailureKind, RetryPolicy] = {
    FailureKind.LOST_NODE: RetryPolicy(None),  # MAX_FAILED_RETRIES_IN_A_ROW limits it
    FailureKind.WORKER_CRASH: RetryPolicy(2),  # after three crashes alone, it is the cause
    FailureKind.OUT_OF_MEMORY: RetryPolicy(19),  # each may request more memory; see ResourcePolicy
    FailureKind.CLUSTER_ERROR: RetryPolicy(5),  # mostly lost nodes; perhaps it never works
    FailureKind.DEVICE_ERROR: RetryPolicy(3),  # in a new process, usually on another device
    FailureKind.HUNG: RetryPolicy(1),
    FailureKind.SETUP: RetryPolicy(3),  # another node may be set up correctly
    FailureKind.OTHER_CODE: RetryPolicy(3),  # another node may have the driver's source code
    FailureKind.DISK_FULL: RetryPolicy(0),
    FailureKind.BAD_CONFIG: RetryPolicy(0),
    FailureKind.BAD_DATA: RetryPolicy(0),
    FailureKind.CODE_ERROR: RetryPolicy(0),
}
"""Number of retries of a trial in one ``isweep run``, by failure kind.

If other trials crash too, or fail on the same GPU, a trial gets more retries. A new run tries
every failed trial again."""
MAX_CRASHES_AND_MEMORY_FAILURES = 20
"""Largest number of crashes and memory failures of one trial. A trial that reaches this number
gets no further attempt, even if other trials crash too. Failures because of lost nodes do not
count."""
MAX_FAILED_RETRIES_IN_A_ROW = 200
"""Largest number of failed retries in a row, over all trials. After more failures, no trial is
retried, because nothing works on this cluster."""
CRASH_AND_MEMORY_KINDS = frozenset((FailureKind.WORKER_CRASH, FailureKind.OUT_OF_MEMORY))
"""Failure kinds whose cause may be the trial or its machine. If the machine is the cause,
other trials fail too."""


class Decision(NamedTuple):
    """The decision about a failed trial.

    Attributes:
        pause_s: seconds until the next attempt. None means that the trial gets no further
        attempt.
        reason: text for the user. It contains the pause and the number of failures, or the
            reason why the trial gets no further attempt.
    """

    pause_s: float | None
    reason: str


class RetryLimit(NamedTuple):
    """The number of retries that a trial gets after a kind of failure.

    Attributes:
        num_retries: number of retries. None means that there is no limit.
        reason: text that says why there are no more retries than this number, or an empty text
            if there is no limit.
    """

    num_retries: int | None
    reason: str


@dataclass
class TrialFailures:
    """The failures of one trial since the run began.

    Attributes:
        by_kind: number of failures, by failure kind.
        num_lost_processes: number of worker processes that died in these failures or must not
            be used again.
    """

    by_kind: Counter[FailureKind] = field(default_factory=Counter)
    num_lost_processes: int = 0

    @property
    def num_crashes_and_memory_failures(self) -> int:
        """Number of failures whose cause may be the trial or its machine."""
        return sum(self.by_kind[kind] for kind in CRASH_AND_MEMORY_KINDS)


@dataclass
class Retries:
    """The failures of a run's trials so far. Its methods decide about retries.

    Attributes:
        trials: failures of each trial, by trial id.
        num_failed_retries_in_a_row: number of failed retries of all trials since the last
            result. The first failure of a trial does not count, because one lost node can make
            many trials fail.
        trials_by_gpu: ids of the trials that failed on each GPU, by its UUID and node.
    """

    trials: dict[str, TrialFailures] = field(default_factory=lambda: defaultdict(TrialFailures))
    num_failed_retries_in_a_row: int = 0
    trials_by_gpu: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def finished(self) -> None:
        """Process a result of any trial. It shows that the cluster works."""
        self.num_failed_retries_in_a_row = 0

    def failed(
        self,
        trial_id: str,
        failure: TrialFailure,
        *,
        process_ended: bool = False,
        is_final: bool = False,
    ) -> Decision:
        """Count a failed attempt. Decide whether and when its trial is tried again.

        Args:
            trial_id: id of the trial.
            failure: description of the failed attempt.
            process_ended: True if the worker's process has died, or must not be used again.
            is_final: True if every further attempt would fail for the same reason.
        """
        trial = self.trials[trial_id]
        trial.by_kind[failure.kind] += 1
        trial.num_lost_processes += process_ended
        if failure.gpu:
            self.trials_by_gpu[failure.gpu].add(trial_id)
        num_failures = trial.by_kind.total()
        if num_failures > 1:
            self.num_failed_retries_in_a_row += 1
            if self.num_failed_retries_in_a_row > MAX_FAILED_RETRIES_IN_A_ROW:
                return Decision(
                    None,
                    f"the last {MAX_FAILED_RETRIES_IN_A_ROW} retries of all trials failed",
                )
        if is_final:
            return Decision(None, "every further attempt would fail as well")
        num_crash_or_memory = trial.num_crashes_and_memory_failures
        if num_crash_or_memory >= MAX_CRASHES_AND_MEMORY_FAILURES:
            return Decision(
                None, f"the trial crashed or ran out of memory {num_crash_or_memory} times"
            )
        num_of_kind = trial.by_kind[failure.kind]
        limit = self._limit(trial_id, failure)
        if limit.num_retries is not None and num_of_kind > limit.num_retries:
            return Decision(None, limit.reason)
        pause_s = RETRY_POLICIES[failure.kind].pause_s(num_failures)
        count = f"{failure.kind} {num_of_kind}"
        if limit.num_retries is not None:
            count = f"{count} of at most {limit.num_retries + 1}"
        return Decision(pause_s, f"retried in {pause_s:g} s; {count}")

    def _limit(self, trial_id: str, failure: TrialFailure) -> RetryLimit:
        """Return how often a trial is tried again after failures of this kind."""
        kind = failure.kind
        max_retries = MAX_CRASHES_AND_MEMORY_FAILURES - 1
        if failure.gpu and len(self.trials_by_gpu[failure.gpu]) > 1:
            # The GPU is the cause, so the trial gets the largest number of retries.
            return RetryLimit(
                max_retries,
                f"the trial was retried {max_retries} times, because other trials failed too on "
                f"{failure.gpu}",
            )
        num_retries = RETRY_POLICIES[kind].num_retries
        if num_retries is None:
            return RetryLimit(None, "")
        if num_retries == 0:
            return RetryLimit(0, f"a retry would fail with {kind} again")
        if kind not in CRASH_AND_MEMORY_KINDS:
            return RetryLimit(
                num_retries, f"after {kind}, a trial is retried at most {num_retries} times"
            )
        num_lost_by_others = self._num_processes_lost_by_others(trial_id)
        if num_lost_by_others < 2:
            return RetryLimit(
                num_retries,
                "other trials crashed at most once, so this trial is the cause",
            )
        # One more retry for every two lost processes of others: the machine is a likely cause.
        num_retries = min(num_retries + num_lost_by_others // 2, max_retries)
        return RetryLimit(
            num_retries,
            f"the trial was retried {num_retries} times, and other trials crashed "
            f"{num_lost_by_others} times",
        )

    def _num_processes_lost_by_others(self, trial_id: str) -> int:
        """Return the number of worker processes that were lost when other trials failed.

        If a trial ran out of memory but its process survived, it does not count. Such a trial
        may simply be too large, so it says nothing about the machine.
        """
        num_lost = sum(trial.num_lost_processes for trial in self.trials.values())
        return num_lost - self.trials[trial_id].num_lost_processes
