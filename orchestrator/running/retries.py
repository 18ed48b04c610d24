"""Whether a cell that failed gets another attempt in this run, when, and why: a decision that is explained.

A death counts as the trial's own doing only when it dies again and again while others live. Where other
cells die too, something kills workers, and each of them gets more attempts; a lost node says nothing about
the trial at all. Every attempt waits longer than the one before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from orchestrator.results.records import FailureKind, TrialFailure
from orchestrator.running.devices import NO_CARD
from orchestrator.running.failures import RETRIES
from search_spaces.errors import SetupError

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
MOST_DEATHS = 20
"""Of one cell, whatever happens to others."""
MOST_IN_VAIN = 200
"""Failures in a row without a single result in between: then nothing works here, not even node by node."""

MOST_WITHOUT_CARD = 4
"""Trials of a node in a row that reached no card, with no result in between: then it counts as without."""

PROCESS_DEATHS = frozenset((FailureKind.WORKER_CRASH, FailureKind.OUT_OF_MEMORY))


@dataclass(frozen=True)
class Decision:
    """What becomes of a cell that failed: another attempt after ``pause_s`` seconds, or None for none."""

    pause_s: float | None
    reason: str


@dataclass
class Retries:
    """The failures of one run, by cell and kind.

    Attributes:
        failures: How often each cell failed of each kind.
        deaths: How often each cell's process died, of whatever.
        in_vain: Failures since the last result of any cell.
        without_card: By address of a node, trials in a row that were given a card there and reached none.
    """

    failures: dict[str, Counter[FailureKind]] = field(default_factory=dict)
    deaths: Counter[str] = field(default_factory=Counter)
    in_vain: int = 0
    without_card: Counter[str] = field(default_factory=Counter)

    def finished(self, trial_id: str, node: str = "") -> None:
        """A cell has its result, on ``node``: the sweep makes progress."""
        self.in_vain = 0
        self.without_card[node] = 0

    def check_cards(self, node: str, failure: TrialFailure, offered: Collection[str]) -> None:
        """End the sweep when none of the nodes that offer cards gives trials any.

        Args:
            node: Address of the one where a trial has failed.
            failure: Of the trial.
            offered: Addresses of the live nodes that offer GPUs.

        Raises:
            SetupError: saying what the last trial found.
        """
        if not failure.message.startswith(NO_CARD):
            return
        self.without_card[node] += 1
        if offered and all(self.without_card[other] >= MOST_WITHOUT_CARD for other in offered):
            last = (failure.message.partition("; found: ")[2] or failure.message).rstrip(".")
            raise SetupError(
                "Some node must give trials a card that they can reach",
                f"on each of {len(offered)} nodes with GPUs the last {MOST_WITHOUT_CARD} trials or more "
                f"reached none; the last one: {last}",
                "mend a node and run the same command again: what is done is kept. "
                "isweep doctor --address ADDRESS looks at every node; --device cpu needs no card",
            )

    def failed(self, trial_id: str, kind: FailureKind, *, died: bool = False) -> Decision:
        """Count a failure, with which the trial's process ``died`` or lived on, and decide."""
        mine = self.failures.setdefault(trial_id, Counter())
        mine[kind] += 1
        self.deaths[trial_id] += died
        self.in_vain += 1
        if self.in_vain > MOST_IN_VAIN:
            return Decision(None, f"{MOST_IN_VAIN} attempts in a row failed, of all trials")
        limit, why = self._limit(trial_id, kind)
        if limit is not None and mine[kind] > limit:
            return Decision(None, why)
        pause = min(FIRST_PAUSE_S * 2 ** (mine.total() - 1), LONGEST_PAUSE_S)
        most = "" if limit is None else f" of {limit + 1}"
        return Decision(pause, f"attempt {mine[kind] + 1}{most} in {pause:g} s: {why}")

    def _limit(self, trial_id: str, kind: FailureKind) -> tuple[int | None, str]:
        """Return how many further attempts failures of a kind allow, None for any number, and why."""
        limit = RETRIES[kind]
        if limit is None:
            return None, "a lost node says nothing about the trial"
        if kind not in PROCESS_DEATHS:
            return limit, f"{kind} is tried again {limit} times" if limit else f"{kind} would come again"
        # A trial that runs out of memory without harm to its process tells nothing of others.
        others = self.deaths.total() - self.deaths[trial_id]
        if others < 2:
            return limit, "other trials live"
        return min(MOST_DEATHS - 1, limit + others // 2), f"other trials died {others} times too"
