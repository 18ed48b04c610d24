"""The health of nodes and GPUs. This module decides how long a GPU is quarantined, and whether
any node can still run trials.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from orchestrator.results.records import FailureKind, TrialFailure
from orchestrator.running.workers.trial_device import FIRST_QUARANTINE_S
from search_spaces.errors import SetupError, plural

NODE_UNFIT_AFTER = 4
"""Lowest score at which a node is unfit. Each trial that fails because of the node adds 1.
Trials that cannot compute on their GPU are counted separately for each GPU. The reason is the
start of a run: the self-tests of all GPUs of a node may take too long, and each GPU then needs
a second self-test. If trials share a GPU and fail together, they count once
(:class:`GpuFailures`)."""
DEVICE_ERROR_WEIGHT = 0.1
"""Amount that one device error adds to the score of a node. It is less than 1, because the
trial itself may have caused the error."""
MAX_QUARANTINE_DOUBLINGS = 3
"""Largest number of times that the quarantine of a GPU is doubled."""


@dataclass
class GpuFailures:
    """The failures of one GPU. Several failures with a common cause count once.

    If a GPU fails, all trials that share this GPU fail, one shortly after the other. A failure
    therefore does not count if its attempt started before the last counted failure.

    Attributes:
        number: number of counted failures.
        last_s: monotonic time of the last counted failure, in seconds.
    """

    number: int = 0
    last_s: float = -math.inf

    def add(self, started_s: float, now_s: float) -> None:
        """Add a failure that happened at ``now_s``. Its attempt had started at ``started_s``."""
        if started_s >= self.last_s:
            self.number += 1
            self.last_s = now_s


def _no_failures() -> defaultdict[str, GpuFailures]:
    return defaultdict(GpuFailures)


@dataclass
class NodeHealth:
    """The failures of nodes and GPUs in one run.

    Attributes:
        gpu_failures: failures of each GPU since its last result. The key is the node and the
            value of ``CUDA_VISIBLE_DEVICES``. Ray assigns GPUs by these numbers, so no UUID is
            needed.
        unfit_gpus: number of trials that could not compute on each GPU since the last epoch on
            its node. The first key is the node's address, and the second key is
            ``CUDA_VISIBLE_DEVICES``.
        device_errors: number of device errors of each GPU since the last epoch on its node,
            with the same two keys.
        code_scores: number of trials that failed since the node's last result because the node
            has different source code, by the node's address.
        monotonic: function that returns the monotonic time in seconds.
    """

    gpu_failures: dict[tuple[str, str], GpuFailures] = field(
        default_factory=lambda: defaultdict(GpuFailures)
    )
    unfit_gpus: dict[str, dict[str, GpuFailures]] = field(
        default_factory=lambda: defaultdict(_no_failures)
    )
    device_errors: dict[str, dict[str, GpuFailures]] = field(
        default_factory=lambda: defaultdict(_no_failures)
    )
    code_scores: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    monotonic: Callable[[], float] = time.monotonic

    def finished(self, node: str, gpus: str) -> None:
        """Process a result. It shows that the node and its GPUs ``gpus`` work."""
        self.code_scores[node] = 0
        self.gpu_failures[node, gpus].number = 0
        self.epoch_ended(node)

    def epoch_ended(self, node: str) -> None:
        """Process the end of an epoch. It shows that a GPU of the node works."""
        self.unfit_gpus[node].clear()
        self.device_errors[node].clear()

    def count_gpu_failure(self, node: str, gpus: str, started_s: float = math.inf) -> float:
        """Count a failure of a GPU, and return the seconds of its quarantine.

        After each further failure without a result in between, the quarantine lasts twice as
        long, up to a limit.

        Args:
            node: address of the GPU's node.
            gpus: value of ``CUDA_VISIBLE_DEVICES`` of the failed trial.
            started_s: monotonic time in seconds at which the attempt started. If it is
                unknown, it is infinite, so that the failure counts.
        """
        failures = self.gpu_failures[node, gpus]
        failures.add(started_s, self.monotonic())
        num_doublings = min(max(failures.number - 1, 0), MAX_QUARANTINE_DOUBLINGS)
        return FIRST_QUARANTINE_S * 2.0**num_doublings

    def count_node_failure(
        self,
        node: str,
        failure: TrialFailure,
        eligible: Collection[str],
        gpus: str = "",
        started_s: float = math.inf,
    ) -> None:
        """Count a failure if the node caused it. End the run if all nodes are unfit.

        Args:
            node: address of the node on which the trial failed.
            failure: description of the failed attempt.
            eligible: addresses of all nodes that could run the trial.
            gpus: value of ``CUDA_VISIBLE_DEVICES`` of the failed trial, or an empty text if it
                is unknown.
            started_s: monotonic time in seconds at which the attempt started, or infinity if
                it is unknown.

        Raises:
            SetupError: every node that could run the trial is unfit.
        """
        if failure.kind == FailureKind.OTHER_CODE:
            self.code_scores[node] += 1
            scores = {address: self.code_scores[address] for address in eligible}
            problem = "No node has the same source code as the driver"
            hint = ""  # The failure's message has the hint.
        elif failure.unfit_node or failure.device_lost:
            failures = self.unfit_gpus if failure.unfit_node else self.device_errors
            failures[node][gpus].add(started_s, self.monotonic())
            scores = {address: self._gpu_score(address) for address in eligible}
            problem = "No node has a GPU on which trials can compute"
            hint = "Repair a node, or use `--device cpu`. "
        else:
            return
        if not eligible or any(scores[address] < NODE_UNFIT_AFTER for address in eligible):
            return
        raise SetupError(
            f"{problem} ({plural(len(eligible), 'node')} tried). The last trial failed with: "
            f"{failure.message.rstrip('.')}",
            hint="Check every node with `isweep doctor --address ADDRESS`. "
            f"{hint}Then run the same command again. Finished trials are kept",
        )

    def _gpu_score(self, node: str) -> float:
        """Return the score of a node with GPUs: the failures of its worst GPU, plus its
        weighted device errors.
        """
        worst = max((gpu.number for gpu in self.unfit_gpus[node].values()), default=0)
        num_device_errors = sum(gpu.number for gpu in self.device_errors[node].values())
        return worst + DEVICE_ERROR_WEIGHT * num_device_errors
