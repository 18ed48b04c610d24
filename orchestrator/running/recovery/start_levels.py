"""The start levels: the lowest memory levels at which the next attempts at a trial may start.

A trial has a start level of its own, and so has its network. A *network* here means all trials
that need the same GPU memory. Two events concern all trials of a network:

- A trial itself needed more GPU memory than it requested. The other trials will need as much,
  so the *needed level* of the network rises. If an attempt at a lower level succeeds, the
  needed level falls to the level of this attempt.
- Other processes used the memory of a whole GPU in many attempts. All trials of the network
  then start at a *raised level*, until a result shows that these processes have ended.

The second event is counted, and switches between three states:

=======  =================================  =============================
state    event                              next state
=======  =================================  =============================
NORMAL   failure by others, the 1st to 4th  NORMAL
NORMAL   failure by others, the 5th         RAISED
NORMAL   result                             NORMAL, the count starts anew
RAISED   failure by others                  RAISED, perhaps higher
RAISED   result with a raised request       RECHECK
RAISED   any other result                   NORMAL, the count starts anew
RECHECK  failure by others                  RAISED, perhaps higher
RECHECK  result with a raised request       RECHECK
RECHECK  any other result                   NORMAL, the count starts anew
=======  =================================  =============================

A failure by others is a failure for lack of memory on a whole GPU that other processes caused.
In the state RECHECK one such failure suffices, because the other processes were there shortly
before.

In the states NORMAL and RECHECK, trials start at the needed level. A *result with a raised
request* comes from an attempt at the raised level or above, while the raised level is above
the needed level. It shows only that the raised level suffices. Any other result shows that
trials do not need the raised level.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

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


class NetworkState(Enum):
    """State of a network; the module has a table of states and events."""

    NORMAL = auto()
    """The trials start at the needed level."""
    RAISED = auto()
    """The trials start at the raised level, because other processes use the memory of GPUs."""
    RECHECK = auto()
    """The trials start at the needed level, to see whether the other processes have ended."""


@dataclass
class NetworkLevels:
    """The start level of all trials of one network.

    Attributes:
        needed_level: level that one of the trials needed, without other processes.
        raised_level: level at which trials start in the state RAISED, unless the needed level
            is higher; 0 if there is no such level.
        state: the state of the network.
        num_since_result: number of failures by other processes since the last result. It is
            used only in the state NORMAL.
    """

    needed_level: int = 0
    raised_level: int = 0
    state: NetworkState = NetworkState.NORMAL
    num_since_result: int = 0

    @property
    def start_level(self) -> int:
        """Lowest level at which the next attempt at a trial of this network may start."""
        if self.state == NetworkState.RAISED:
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
        if self.needed_level < self.raised_level <= level:
            self.state = NetworkState.RECHECK
            return
        self.state = NetworkState.NORMAL
        self.raised_level = 0
        self.num_since_result = 0

    def failed_by_others(self, next_level: int | None) -> None:
        """Process a failure that other processes caused on a whole GPU.

        Args:
            next_level: next level of the failed trial; None if no level changes its request.
        """
        if self.state == NetworkState.NORMAL:
            self.num_since_result += 1
            if self.num_since_result <= MAX_REPEATS_AFTER_OTHERS:
                return
        self.state = NetworkState.RAISED
        if next_level is not None:
            self.raised_level = max(self.raised_level, next_level)
