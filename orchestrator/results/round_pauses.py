"""The pauses between rounds of updates to MLflow. The pauses become longer while MLflow fails."""

from __future__ import annotations

from dataclasses import dataclass

GATHER_S = 1.0
"""Pause after a round if MLflow answers, in seconds. Updates that arrive in this time are sent
together in the next round."""
FIRST_PAUSE_S = 0.05
"""Pause before the first retry, in seconds. It is short: if only one reply was lost, the retry
succeeds."""
MAX_PAUSE_S = 15.0
"""Longest pause between two retries, in seconds."""
PAUSE_GROWTH = 1.6
"""Factor by which each pause is longer than the previous pause. So a server that is down gets
fewer requests."""


@dataclass
class RoundPauses:
    """The pause before the next round of updates.

    Attributes:
        next_pause_s: Length of the pause before the next round, in seconds.
        starts_at_once: True if the next round starts at once, because another thread waits for
        it.
        failing_since: Monotonic time of MLflow's first failure after the last progress, in
            seconds. None if MLflow answers.
    """

    next_pause_s: float = 0.0
    starts_at_once: bool = False
    failing_since: float | None = None

    def skip(self) -> None:
        """Let the next round start at once, without a pause.

        If the round fails, the next pause is short again, and the pauses after it become
        longer.
        """
        self.starts_at_once = True
        self.next_pause_s = FIRST_PAUSE_S

    def start_round(self) -> None:
        """Start a round. If MLflow answers, the pause after it is GATHER_S."""
        self.starts_at_once = False
        if self.failing_since is None:
            self.next_pause_s = GATHER_S

    def note_failure(self, now: float) -> None:
        """Set the next pause after an update failed at the monotonic time ``now``."""
        if self.failing_since is None:
            self.failing_since = now
            self.next_pause_s = FIRST_PAUSE_S
        else:
            self.next_pause_s = min(PAUSE_GROWTH * self.next_pause_s, MAX_PAUSE_S)

    def note_progress(self) -> None:
        """Record that MLflow answers."""
        self.failing_since = None

    def failing_s(self, now: float) -> float:
        """Return the number of seconds since MLflow's first failure, or 0 if MLflow answers."""
        if self.failing_since is None:
            return 0.0
        return now - self.failing_since
