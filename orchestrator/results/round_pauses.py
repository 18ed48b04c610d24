"""The pauses between rounds of updates to MLflow, which grow while MLflow fails."""

from __future__ import annotations

from dataclasses import dataclass

GATHER_S = 1.0
"""Seconds during which updates are collected, so that many trials cause only few requests."""
FIRST_PAUSE_S = 0.05
"""Seconds before the first retry. If only one reply was lost, the retry succeeds."""
MAX_PAUSE_S = 15.0
"""Seconds of the longest pause between two retries."""
PAUSE_GROWTH = 1.6
"""Length of a pause divided by the length of the pause before: a server that is down gets
fewer requests."""


@dataclass
class RoundPauses:
    """The pause before the next round of updates.

    Attributes:
        next_pause_s: Length of the pause before the next round, in seconds.
        starts_at_once: True if the next round starts at once, because another thread waits for it.
        failing_since: Monotonic time of the first failure since the last progress, in seconds. The
            value is None if MLflow answers.
    """

    next_pause_s: float = 0.0
    starts_at_once: bool = False
    failing_since: float | None = None

    def skip(self) -> None:
        """Let the next round start at once, without a pause.

        If the round fails, the pauses after it are short again and grow.
        """
        self.starts_at_once = True
        self.next_pause_s = FIRST_PAUSE_S

    def start_round(self) -> None:
        """Start a round. If MLflow answers, the pause after it is GATHER_S."""
        self.starts_at_once = False
        if self.failing_since is None:
            self.next_pause_s = GATHER_S

    def note_failure(self, now: float) -> None:
        """Plan a longer pause, because an update failed at the monotonic time ``now``."""
        if self.failing_since is None:
            self.failing_since = now
            self.next_pause_s = FIRST_PAUSE_S
        else:
            self.next_pause_s = min(PAUSE_GROWTH * self.next_pause_s, MAX_PAUSE_S)

    def note_progress(self) -> None:
        """Note that MLflow answers."""
        self.failing_since = None

    def failing_s(self, now: float) -> float:
        """Return for how many seconds MLflow has failed, or 0 if it answers."""
        if self.failing_since is None:
            return 0.0
        return now - self.failing_since
