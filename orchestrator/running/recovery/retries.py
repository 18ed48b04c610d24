"""Retries: which failed trial gets another attempt in this run, after which pause, and why.

A death counts as the trial's own doing only if it dies again and again while others live. If other
trials die too, something else kills workers, and each trial gets more attempts.
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
    FailureKind.LOST_NODE: None,  # says nothing about the trial: MAX_CONSECUTIVE_FAILURES ends it
    FailureKind.WORKER_CRASH: 2,  # the third crash while others live is the trial's own doing
    FailureKind.OUT_OF_MEMORY: 19,  # each with more, or after a wait; ResourcePolicy may end it
    FailureKind.CLUSTER_ERROR: 5,  # follows lost nodes, but may also be a cluster that never works
    FailureKind.DEVICE_ERROR: 3,  # in another process, as a rule on another device
    FailureKind.HUNG: 1,
    FailureKind.SETUP: 3,  # another node may be set up well
    FailureKind.OTHER_CODE: 3,  # another node may run the driver's code
    FailureKind.DISK_FULL: 0,
    FailureKind.BAD_CONFIG: 0,
    FailureKind.BAD_DATA: 0,
    FailureKind.CODE_ERROR: 0,
}
"""Further attempts, within one ``isweep run``, of a trial that fails alone; None is no limit.

A new run tries every failed trial again."""
FIRST_PAUSE_S = 1.0
"""Seconds before the first retry of a trial; each further pause is twice as long."""
MAX_PAUSE_S = 60.0
"""Seconds of the longest pause before a retry."""
MAX_DEATHS = 20
"""Crashes and memory failures of one trial, whatever happens to others. Lost nodes do not count."""
MAX_CONSECUTIVE_FAILURES = 200
"""Retries that may fail in a row, over all trials, before no trial is retried: nothing works."""
MAX_ON_UNFIT_NODE = 4
"""Trials in a row that a node may be unfit for before no further one is expected to work there."""
DEVICE_ERRORS_PER_UNFIT = 10
"""Lost devices that count as much as one trial without a usable GPU: the trial may be to blame."""
OWN_DEATHS = frozenset((FailureKind.WORKER_CRASH, FailureKind.OUT_OF_MEMORY))
"""Failures that a trial may cause by itself, and that others suffer, too, if the machine does."""


class Decision(NamedTuple):
    """The decision about a failed trial.

    Attributes:
        pause_s: seconds until it may be tried again; None gives it up.
        reason: why, for the user.
    """

    pause_s: float | None
    reason: str


@dataclass
class Retries:
    """The failures of one run so far, and the decisions that follow from them.

    Attributes:
        failures: failures of each trial by kind.
        deaths: processes of each trial that died, for any reason.
        consecutive_failures: failed retries, of all trials, since the last result. A trial's first
            failure is not one: 250 trials may be on nodes that are lost at once.
        trials_by_gpu: trials that each GPU failed, by its UUID and node.
        gpu_failures: failures of the part of a node that a trial had, since the last result there.
        without_gpu: trials in a row that a node gave no usable GPU, by its address.
        other_code: trials in a row that found other code on a node.
    """

    failures: dict[str, Counter[FailureKind]] = field(
        default_factory=lambda: defaultdict(Counter[FailureKind])
    )
    deaths: Counter[str] = field(default_factory=Counter)
    consecutive_failures: int = 0
    trials_by_gpu: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    gpu_failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    without_gpu: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    other_code: Counter[str] = field(default_factory=Counter)

    def finished(self, node: str = "", gpus: str = "") -> None:
        """Count a result: the sweep makes progress, and ``gpus`` of ``node`` work."""
        self.consecutive_failures = 0
        self.other_code[node] = 0
        self.gpu_failures[node, gpus] = 0
        self.epoch_ended(node)

    def epoch_ended(self, node: str) -> None:
        """Count an epoch on a node: it has at least one GPU that works."""
        self.without_gpu[node] = 0

    def quarantine_s(self, node: str, gpus: str) -> float:
        """Return the seconds for which a GPU that failed is quarantined: more every time."""
        num_before = self.gpu_failures[node, gpus]
        self.gpu_failures[node, gpus] += 1
        return REST_S * 2.0 ** min(num_before, 3)

    def check_nodes(self, node: str, failure: TrialFailure, eligible: Collection[str]) -> None:
        """Count a failure that its node is to blame for; end the sweep if no node is fit.

        Args:
            node: address of the node on which the trial failed.
            failure: why it failed.
            eligible: addresses of all nodes to which the trial could go.

        Raises:
            SetupError: on each eligible node the last trials failed for the node.
        """
        count: dict[str, float] | Counter[str]
        if failure.kind == FailureKind.OTHER_CODE:
            count = self.other_code
            count[node] += 1
            problem = "No node runs the code of the driver"
            hint = "Install the same isweep on every node, and do not change it while a sweep runs"
        elif failure.unfit_node or failure.device_lost:
            count = self.without_gpu
            count[node] += 1 if failure.unfit_node else 1 / DEVICE_ERRORS_PER_UNFIT
            problem = "No node gives trials a GPU on which they can compute"
            hint = "Repair a node, or use --device cpu"
        else:
            return
        if not eligible or any(count[address] < MAX_ON_UNFIT_NODE for address in eligible):
            return
        raise SetupError(
            f"{problem} ({plural(len(eligible), 'node')} tried). The last trial failed with: "
            f"{failure.message.rstrip('.')}",
            hint=f"{hint}. Then run the same command again; finished trials are kept. Check every "
            "node with `isweep doctor --address ADDRESS`",
        )

    def failed(
        self, trial_id: str, failure: TrialFailure, *, died: bool = False, hopeless: bool = False
    ) -> Decision:
        """Count a failed attempt and decide what becomes of its trial.

        Args:
            trial_id: the trial.
            failure: why the attempt failed.
            died: the worker's process is gone.
            hopeless: no attempt can get more memory than this one had.
        """
        kind = failure.kind
        of_trial = self.failures[trial_id]
        of_trial[kind] += 1
        self.deaths[trial_id] += died
        if failure.gpu:
            self.trials_by_gpu[failure.gpu].add(trial_id)
        is_retry = of_trial.total() > 1
        self.consecutive_failures += is_retry
        if is_retry and self.consecutive_failures > MAX_CONSECUTIVE_FAILURES:
            return Decision(None, f"{MAX_CONSECUTIVE_FAILURES} retries of trials failed in a row")
        if hopeless:
            return Decision(None, "no attempt can get more memory")
        if sum(of_trial[death] for death in OWN_DEATHS) >= MAX_DEATHS:
            return Decision(None, f"the trial crashed or ran out of memory {MAX_DEATHS} times")
        limit, reason = self._limit(trial_id, failure)
        if limit is not None and of_trial[kind] > limit:
            return Decision(None, reason)
        pause_s = min(FIRST_PAUSE_S * 2 ** (of_trial.total() - 1), MAX_PAUSE_S)
        count = f"{kind} {of_trial[kind]}"
        if limit is not None:
            count = f"{count} of at most {limit + 1}"
        return Decision(pause_s, f"retried in {pause_s:g} s, because {reason}; {count}")

    def _limit(self, trial_id: str, failure: TrialFailure) -> tuple[int | None, str]:
        """Return how many retries a failure is worth (None: no limit), and why."""
        kind = failure.kind
        if failure.gpu and len(self.trials_by_gpu[failure.gpu]) > 1:
            return MAX_DEATHS - 1, f"other trials failed on {failure.gpu} too"
        limit = MAX_RETRIES[kind]
        if limit is None:
            return None, "a lost node is not the trial's fault"
        if limit == 0:
            return limit, f"a retry would fail with {kind} again"
        if kind not in OWN_DEATHS:
            return limit, f"a trial with {kind} is retried at most {limit} times"
        # Only processes that died count: a trial that runs out of memory, and whose process goes
        # on, says nothing about other trials.
        other_deaths = self.deaths.total() - self.deaths[trial_id]
        if other_deaths < 2:
            return limit, "other trials have not crashed"
        return limit + other_deaths // 2, f"other trials crashed {other_deaths} times too"
