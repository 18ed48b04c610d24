"""The start levels: the lowest memory levels at which the next attempts at a trial may start.

A trial has a start level of its own, and so has its network. A *network* here means all trials
that need the same GPU memory. Its start level is the higher of two levels:

- The *needed level* is enough on a GPU without other processes. It rises if a trial itself needed
  more GPU memory than it requested, because the other trials will need as much. If an attempt at
  a lower level succeeds, the needed level falls to the level of this attempt.
- The *crowded level* is for GPUs on which other processes use memory. It counts while the network
  is *crowded*: from the 5th *failure by others* until the next result. A failure by others is a
  memory failure on a whole GPU that other processes caused.

The result that ends the crowded state shows one of two things:

- A result at the crowded level or above does not show whether the other processes have ended. The
  network is crowded again after one more failure by others.
- A result below the crowded level shows that the other processes have ended. Failures by others
  are counted from 0 again. They are also counted from 0 if the crowded level is not above the
  needed level, because it then changes nothing.
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
        needed_level: level that is enough on a GPU without other processes.
        crowded_level: highest next level of the trials that failed by others, without the first 4
            such failures. It is 0 if there is no such level.
        is_crowded: True if the crowded level counts.
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
        others_may_still_run = self.needed_level < self.crowded_level <= level
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
            next_level: next level of the failed trial, or None if no level changes its request.
        """
        self.num_failures_by_others += 1
        if self.num_failures_by_others <= MAX_IGNORED_FAILURES_BY_OTHERS:
            return
        self.is_crowded = True
        if next_level is not None:
            self.crowded_level = max(self.crowded_level, next_level)
