"""The start levels: the lowest memory levels at which the next attempts at a trial may start.

A trial has a start level of its own, and so has its network. A *network* here means all trials
that need the same GPU memory. Two events concern all trials of a network:

- A trial itself needed more GPU memory than it requested. The other trials will need as much,
  so the *needed level* of the network rises. If an attempt at a lower level succeeds, the
  needed level falls to the level of this attempt.
- Other processes used the memory of a whole GPU, a *failure by others*. The 5th such failure
  raises the network: all its trials start at the *raised level*.

A result ends this raise, so that later attempts start at the needed level again. The level of
the result decides what happens at the next failure by others:

- At the raised level or above, the result shows only that the raised level suffices. The next
  failure by others raises the network again, because the other processes still run.
- Below the raised level, the result shows that the other processes have ended. The failures are
  counted from 0 again. The same holds if the raised level is not above the needed level.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_REPEATS_AFTER_OTHERS = 4
"""Number of memory failures by other processes that do not raise a start level, because these
processes may end. Later failures raise it."""


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
    def keeps_start_level(self) -> bool:
        """True if the failures by other processes so far do not raise the trial's start level."""
        return self.num_failures_by_others <= MAX_REPEATS_AFTER_OTHERS


@dataclass
class NetworkLevels:
    """The start level of all trials of one network.

    Attributes:
        needed_level: level that one of the trials needed, without other processes.
        raised_level: highest level that failures by others demand; 0 if there is none.
        is_raised: True if trials start at the raised level, unless the needed level is higher.
        num_failures_by_others: number of failures by others since a result showed that the
            other processes had ended.
    """

    needed_level: int = 0
    raised_level: int = 0
    is_raised: bool = False
    num_failures_by_others: int = 0

    @property
    def start_level(self) -> int:
        """Lowest level at which the next attempt at a trial of this network may start."""
        if self.is_raised:
            return max(self.needed_level, self.raised_level)
        return self.needed_level

    def raise_needed_level(self, level: int) -> None:
        """Process a failure that the trial itself caused: it needs at least this level."""
        self.needed_level = max(self.needed_level, level)

    def finished(self, level: int) -> None:
        """Process the result of an attempt that started at this level."""
        # An attempt may have started before the needed level rose. Its result shows that the
        # lower level suffices.
        self.needed_level = min(self.needed_level, level)
        self.is_raised = False
        others_may_still_run = self.needed_level < self.raised_level <= level
        if not others_may_still_run:
            self.raised_level = 0
            self.num_failures_by_others = 0

    def failed_by_others(self, next_level: int | None) -> None:
        """Process a failure that other processes caused on a whole GPU.

        Args:
            next_level: next level of the failed trial; None if no level changes its request.
        """
        self.num_failures_by_others += 1
        if self.num_failures_by_others <= MAX_REPEATS_AFTER_OTHERS:
            return
        self.is_raised = True
        if next_level is not None:
            self.raised_level = max(self.raised_level, next_level)
