"""The start levels: the memory levels at which the next attempts at a trial may start.

A trial has a start level of its own, and so has its network. A *network* here means all trials
that need the same GPU memory. Two events concern all trials of a network:

- A trial itself needed more GPU memory than it requested. The other trials will need as much,
  so the *needed level* of the network rises.
- Other processes used the memory of a whole GPU in many attempts. All trials of the network
  then start at a *raised level*, until a result shows that these processes have ended.

The second event is counted, and switches between three states:

=======  ===================================  =============================
state    event                                next state
=======  ===================================  =============================
NORMAL   failure by others, the 1st to 4th    NORMAL
NORMAL   failure by others, the 5th           RAISED
NORMAL   result                               NORMAL, the count starts anew
RAISED   failure by others                    RAISED, perhaps higher
RAISED   result at the raised level           RECHECK
RAISED   result below the raised level        NORMAL, the count starts anew
RECHECK  failure by others                    RAISED, perhaps higher
RECHECK  result at the raised level           RECHECK
RECHECK  result below the raised level        NORMAL, the count starts anew
=======  ===================================  =============================

A failure by others is a failure for lack of memory on a whole GPU that other processes caused.
In the states NORMAL and RECHECK, trials start at the needed level. A result at the raised
level shows only that this level suffices. A result below it shows that the other processes
have ended. If the needed level has risen to the raised level, every result leads to NORMAL.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

MAX_REPEATS_AFTER_OTHERS = 4
"""After each of the first 4 memory failures by other processes, the same request is repeated,
because these processes may end. Each later failure raises the level."""


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
    def gets_same_request(self) -> bool:
        """True if the last failure by other processes does not change the next request."""
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
        raised_level: start level in the state RAISED, if it is above the needed level; 0 in
            the state NORMAL, and if no higher level is known.
        state: the state of the network.
        num_failures_by_others: number of failures by other processes since the last result. It
            is used only in the state NORMAL.
    """

    needed_level: int = 0
    raised_level: int = 0
    state: NetworkState = NetworkState.NORMAL
    num_failures_by_others: int = 0

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
        # An attempt that started before the needed level rose shows that this was not
        # necessary.
        self.needed_level = min(self.needed_level, level)
        if self.needed_level < self.raised_level <= level:
            self.state = NetworkState.RECHECK
            return
        self.state = NetworkState.NORMAL
        self.raised_level = 0
        self.num_failures_by_others = 0

    def failed_by_others(self, next_level: int | None) -> None:
        """Process a failure that other processes caused on a whole GPU.

        Args:
            next_level: next level of the failed trial; None if no level changes its request.
        """
        if self.state == NetworkState.NORMAL:
            self.num_failures_by_others += 1
            if self.num_failures_by_others <= MAX_REPEATS_AFTER_OTHERS:
                return
        self.state = NetworkState.RAISED
        if next_level is not None:
            self.raised_level = max(self.raised_level, next_level)
