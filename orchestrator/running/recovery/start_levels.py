"""The start levels: the lowest memory levels at which the next attempts at a trial may start.

A trial has a start level of its own, and so has its network. A *network* here means all trials
that need the same GPU memory. Two events concern all trials of a network:

- A trial itself needed more GPU memory than it requested. The other trials will need as much,
  so the *needed level* of the network rises. If an attempt at a lower level succeeds, the
  needed level falls to the level of this attempt.
- Other processes used the memory of a whole GPU, a *failure by others*. After the 5th such
  failure, all trials of the network start at the *crowded level*, unless the needed level is
  higher.

A result switches the crowded level off, so later attempts start at the needed level. The next
failure by others depends on the level of the result:

- The result came from the crowded level or above. It does not show whether the other processes
  have ended, so one more failure by others switches the crowded level on again.
- The result came from below the crowded level. The other processes have ended, so failures by
  others are counted from 0 again.

If the crowded level is not above the needed level, the crowded level changes nothing. Failures by
others are then also counted from 0 after a result.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_IGNORED_FAILURES_BY_OTHERS = 4
"""Number of failures by others that change no start level, because the other processes may end.
Each later failure by others may raise a start level."""


@dataclass
class TrialLevels:
    """The start level of one trial.

    Attributes:
        start_level: lowest level at which the trial's next attempt may start.
        num_failures_by_others: number of memory failures that other processes caused in this
            run.
    """

    start_level: int = 0
    num_failures_by_others: int = 0

    @property
    def ignores_failures_by_others(self) -> bool:
        """True if the failures by others so far do not raise the trial's start level."""
        return self.num_failures_by_others <= MAX_IGNORED_FAILURES_BY_OTHERS


@dataclass
class NetworkLevels:
    """The start level that all trials of one network share.

    Attributes:
        needed_level: level that one of the trials needed, without other processes.
        crowded_level: highest next level of the trials that failed by others, from the 5th such
            failure on; 0 if there is none.
        is_crowded: True if trials start at the crowded level, unless the needed level is higher.
        num_failures_by_others: number of failures by others since a result showed that the
            other processes had ended.
    """

    needed_level: int = 0
    crowded_level: int = 0
    is_crowded: bool = False
    num_failures_by_others: int = 0

    @property
    def start_level(self) -> int:
        """Lowest level at which the next attempt at a trial of this network may start."""
        if self.is_crowded:
            return max(self.needed_level, self.crowded_level)
        return self.needed_level

    def raise_needed_level(self, level: int) -> None:
        """Process a failure that the trial itself caused: it needs at least this level."""
        self.needed_level = max(self.needed_level, level)

    def finished(self, level: int) -> None:
        """Process the result of an attempt that started at this level."""
        crowded_level_had_effect = self.crowded_level > self.needed_level
        ran_at_crowded_level = level >= self.crowded_level
        others_may_still_run = crowded_level_had_effect and ran_at_crowded_level
        if not others_may_still_run:
            self.crowded_level = 0
            self.num_failures_by_others = 0
        self.is_crowded = False
        # An attempt may have started before the needed level rose. Its result shows that the
        # lower level suffices.
        self.needed_level = min(self.needed_level, level)

    def failed_by_others(self, next_level: int | None) -> None:
        """Process a failure that other processes caused on a whole GPU.

        Args:
            next_level: next level of the failed trial; None if no level changes its request.
        """
        self.num_failures_by_others += 1
        if self.num_failures_by_others <= MAX_IGNORED_FAILURES_BY_OTHERS:
            return
        self.is_crowded = True
        if next_level is not None:
            self.crowded_level = max(self.crowded_level, next_level)
