"""Retries: which failed trial gets another attempt in this run, after which pause, and why.

If one trial crashes repeatedly while other trials do not, the trial itself counts as the cause. If
other trials crash too, the cause is elsewhere, and each trial gets more attempts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from orchestrator.results.records import FailureKind, TrialFailure
from orchestrator.running.trial_device import REST_S
from search_spaces.errors import SetupError, plural

MAX_RETRIES: dict[FailureKind, int | None] = {
    FailureKind.LOST_NODE: None,  # not the trial's fault; only MAX_CONSECUTIVE_FAILURES limits it
    FailureKind.WORKER_CRASH: 2,  # if only this trial crashes three times, it is the cause
    FailureKind.OUT_OF_MEMORY: 19,  # with more memory or after a wait; ResourcePolicy may stop it
    FailureKind.CLUSTER_ERROR: 5,  # mostly lost nodes, but perhaps a cluster that never works
    FailureKind.DEVICE_ERROR: 3,  # in a new process, usually on another device
    FailureKind.HUNG: 1,
    FailureKind.SETUP: 3,  # another node may be set up correctly
    FailureKind.OTHER_CODE: 3,  # another node may have the driver's source code
    FailureKind.DISK_FULL: 0,
    FailureKind.BAD_CONFIG: 0,
    FailureKind.BAD_DATA: 0,
    FailureKind.CODE_ERROR: 0,
}
"""Largest number of retries in one ``isweep run`` if only one trial fails; None is no limit.

A new run tries every failed trial again."""
FIRST_PAUSE_S = 1.0
"""Seconds before the first retry of a trial; each further pause is twice as long."""
MAX_PAUSE_S = 60.0
"""Seconds of the longest pause before a retry."""
MAX_CRASHES_AND_MEMORY_FAILURES = 20
"""Crashes and memory failures of one trial before it is given up, even if others crash too. Lost
nodes do not count."""
MAX_CONSECUTIVE_FAILURES = 200
"""Retries of any trials that may fail in a row before no trial is retried any more."""
NODE_UNFIT_AFTER = 4
"""Number of trials in a row that failed because of their node, after which the node is unfit."""
DEVICE_ERRORS_PER_UNFIT = 10
"""Number of device errors that count as much as one trial without a usable GPU. A device error
counts less, because the trial itself may have caused it."""
AMBIGUOUS_KINDS = frozenset((FailureKind.WORKER_CRASH, FailureKind.OUT_OF_MEMORY))
"""Failures that either the trial or its machine may cause. If the machine is the cause, other
trials fail too."""


class Decision(NamedTuple):
    """The decision about a failed trial.

    Attributes:
        pause_s: seconds until the next attempt; None gives the trial up.
        reason: text for the user: the pause and the number of failures, or why the trial is given
            up.
    """

    pause_s: float | None
    reason: str


@dataclass
class Retries:
    """The failures of one run so far, from which it decides about retries.

    Attributes:
        failures: number of failures by trial id and kind.
        process_ends: number of worker processes that a trial's failures ended, by trial id.
        consecutive_failures: failed retries of all trials since the last result. A trial's first
            failure does not count, because 250 trials may lose their nodes at once.
        trials_by_gpu: ids of the trials that failed on each GPU, by its UUID and node.
        gpu_failures: failures since the last result, by node and ``CUDA_VISIBLE_DEVICES``. Ray
            assigns GPUs by these numbers, so a quarantine needs no UUID.
        unfit_score: by the node's address, 1 for each trial without a usable GPU and 1/10 for each
            device error, since the last epoch on the node. The node is unfit from 4 on.
        other_code: trials in a row that found different source code, by the node's address.
    """

    failures: dict[str, Counter[FailureKind]] = field(
        default_factory=lambda: defaultdict(Counter[FailureKind])
    )
    process_ends: Counter[str] = field(default_factory=Counter)
    consecutive_failures: int = 0
    trials_by_gpu: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    gpu_failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    unfit_score: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    other_code: Counter[str] = field(default_factory=Counter)

    def finished(self, node: str = "", gpus: str = "") -> None:
        """Count a result, which shows that the GPUs ``gpus`` of ``node`` work."""
        self.consecutive_failures = 0
        self.other_code[node] = 0
        self.gpu_failures[node, gpus] = 0
        self.epoch_ended(node)

    def epoch_ended(self, node: str) -> None:
        """Count an epoch on a node, which shows that a GPU of the node works."""
        self.unfit_score[node] = 0

    def quarantine_s(self, node: str, gpus: str) -> float:
        """Count a failure of a GPU, and return the seconds to quarantine the GPU.

        They double at each further failure without a result, up to 8 times ``REST_S``.
        """
        num_before = self.gpu_failures[node, gpus]
        self.gpu_failures[node, gpus] += 1
        return REST_S * 2.0 ** min(num_before, 3)

    def check_nodes(self, node: str, failure: TrialFailure, eligible: Collection[str]) -> None:
        """Count a failure that its node caused; end the sweep if all nodes are unfit.

        Args:
            node: address of the node on which the trial failed.
            failure: why the trial failed.
            eligible: addresses of all nodes that could run the trial.

        Raises:
            SetupError: the last trials on each eligible node failed because of the node.
        """
        count: dict[str, float] | Counter[str]
        if failure.kind == FailureKind.OTHER_CODE:
            count = self.other_code
            count[node] += 1
            problem = "No node has the same source code as the driver"
            hint = ""  # the failure's message says what to do
        elif failure.unfit_node or failure.device_lost:
            count = self.unfit_score
            count[node] += 1 if failure.unfit_node else 1 / DEVICE_ERRORS_PER_UNFIT
            problem = "No node has a GPU on which trials can compute"
            hint = "Repair a node, or use --device cpu. "
        else:
            return
        if not eligible or any(count[address] < NODE_UNFIT_AFTER for address in eligible):
            return
        raise SetupError(
            f"{problem} ({plural(len(eligible), 'node')} tried). The last trial failed with: "
            f"{failure.message.rstrip('.')}",
            hint=f"{hint}Then run the same command again. Finished trials are kept. Check "
            "every node with `isweep doctor --address ADDRESS`",
        )

    def failed(
        self,
        trial_id: str,
        failure: TrialFailure,
        *,
        process_ended: bool = False,
        hopeless: bool = False,
    ) -> Decision:
        """Count a failed attempt and decide whether and when its trial is retried.

        Args:
            trial_id: id of the trial.
            failure: why the attempt failed.
            process_ended: the worker's process has died, or must not be used again.
            hopeless: every further attempt would fail for the same reason.
        """
        kind = failure.kind
        of_trial = self.failures[trial_id]
        of_trial[kind] += 1
        self.process_ends[trial_id] += process_ended
        if failure.gpu:
            self.trials_by_gpu[failure.gpu].add(trial_id)
        is_retry = of_trial.total() > 1
        self.consecutive_failures += is_retry
        if is_retry and self.consecutive_failures > MAX_CONSECUTIVE_FAILURES:
            return Decision(None, f"{MAX_CONSECUTIVE_FAILURES} retries of trials failed in a row")
        if hopeless:
            return Decision(None, "every further attempt would fail as well")
        num_ambiguous = sum(of_trial[ambiguous] for ambiguous in AMBIGUOUS_KINDS)
        if num_ambiguous >= MAX_CRASHES_AND_MEMORY_FAILURES:
            return Decision(None, f"the trial crashed or ran out of memory {num_ambiguous} times")
        limit, reason = self._limit(trial_id, failure)
        if limit is not None and of_trial[kind] > limit:
            return Decision(None, reason)
        pause_s = min(FIRST_PAUSE_S * 2 ** (of_trial.total() - 1), MAX_PAUSE_S)
        count = f"{kind} {of_trial[kind]}"
        if limit is not None:
            count = f"{count} of at most {limit + 1}"
        return Decision(pause_s, f"retried in {pause_s:g} s; {count}")

    def _limit(self, trial_id: str, failure: TrialFailure) -> tuple[int | None, str]:
        """Return the largest number of retries after this kind of failure, and why it ends there.

        The number is None if there is no limit.
        """
        kind = failure.kind
        if failure.gpu and len(self.trials_by_gpu[failure.gpu]) > 1:
            # The GPU is the cause, so the limit of this kind of failure does not apply.
            most = MAX_CRASHES_AND_MEMORY_FAILURES - 1
            return most, f"it was retried {most} times, since others failed on {failure.gpu} too"
        limit = MAX_RETRIES[kind]
        if limit is None:
            return None, "a lost node is not the trial's fault"
        if limit == 0:
            return limit, f"a retry would fail with {kind} again"
        if kind not in AMBIGUOUS_KINDS:
            return limit, f"a trial with {kind} is retried at most {limit} times"
        # Only ended processes count. If memory runs out and the process survives, this shows
        # nothing about other trials.
        num_other_ends = self.process_ends.total() - self.process_ends[trial_id]
        if num_other_ends < 2:
            return limit, "other trials have not crashed, so this trial is the cause"
        # One more retry for every two crashes of other trials: the machine is a likely cause.
        limit += num_other_ends // 2
        return (
            limit,
            f"it was retried {limit} times, and other trials crashed {num_other_ends} times",
        )
