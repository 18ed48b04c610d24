"""The start levels. A start level is the lowest memory level at which the next attempt may
start.

Each trial has a start level, and each network has a start level. In this module, a *network*
means all trials that need the same GPU memory. The start level of a network is the higher of
two levels:

- The *needed level* is enough on a GPU without other processes. It rises if a trial needs more
  GPU memory than it requested, because the other trials of the network will need as much. If
  an attempt at a lower level succeeds, the needed level falls to the level of this attempt.
- The *crowded level* is for GPUs on which other processes use memory. It counts only while the
  network is *crowded*. A network becomes crowded at its 5th *failure by others*, and stays
  crowded until its next result. A failure by others is a memory failure on a whole GPU that
  other processes caused.

The result that ends the crowded state is one of two kinds:

- A result at the crowded level or above does not show whether the other processes have ended. The
  network is crowded again after one more failure by others.
- A result below the crowded level shows that the other processes have ended. Failures by
  others are then counted from 0 again. If the crowded level is not above the needed level, it
  changes nothing. In this case too, failures by others are counted from 0 again.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_IGNORED_FAILURES_BY_OTHERS = 4
"""Number of failures by others that do not change a start level, because the other processes
may end. Each further failure by others may raise the start level of a trial or of its
network."""


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
        """True if the trial has had so few failures by others that its start level does not
        rise.
        """
        return self.num_failures_by_others <= MAX_IGNORED_FAILURES_BY_OTHERS


@dataclass
class NetworkLevels:
    """The start level that all trials of one network share.

    Attributes:
        needed_level: level that is enough on a GPU without other processes.
        crowded_level: level for GPUs on which other processes use memory. The 5th and every
            later failure by others can raise it. It is 0 until then.
        is_crowded: True if the crowded level counts now.
        num_failures_by_others: number of failures by others since they were last counted from
            0.
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
        """Process a failure that the trial itself caused. The network needs at least this
        level.
        """
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
            next_level: next memory level of the failed trial, or None if no higher level
                changes its request.
        """
        self.num_failures_by_others += 1
        if self.num_failures_by_others <= MAX_IGNORED_FAILURES_BY_OTHERS:
            return
        self.is_crowded = True
        if next_level is not None:
            self.crowded_level = max(self.crowded_level, next_level)
