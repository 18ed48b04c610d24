"""Whether a cell that failed gets another attempt in this run, when, and why: a decision that is explained.

A death counts as the trial's own doing only when it dies again and again while others live. Where other
cells die too, something kills workers, and each of them gets more attempts; a lost node says nothing about
the trial at all. Every attempt waits twice as long as the one before, up to a minute.
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
"""Of one cell's process, whatever happens to others; those with a lost node do not count."""
MOST_IN_VAIN = 200
"""Failures in a row without a single result in between: then nothing works here, not even node by node."""

MOST_ON_UNFIT = 4
"""Trials of a node in a row that could not run there, with no result in between: then it counts as unfit."""

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
        unfit: By address of a node, trials in a row that reached no card there, or found other code.
    """

    failures: dict[str, Counter[FailureKind]] = field(default_factory=dict)
    deaths: Counter[str] = field(default_factory=Counter)
    in_vain: int = 0
    unfit: Counter[str] = field(default_factory=Counter)

    def finished(self, trial_id: str, node: str = "") -> None:
        """A cell has its result, on ``node``: the sweep makes progress."""
        self.in_vain = 0
        self.unfit[node] = 0

    def check_nodes(self, node: str, failure: TrialFailure, offered: Collection[str]) -> None:
        """End the sweep when no node is left that can run its trials.

        Args:
            node: Address of the one where a trial has failed.
            failure: Of the trial.
            offered: Addresses of the live nodes that could be given it.

        Raises:
            SetupError: saying what the last trial found.
        """
        if not (failure.kind == FailureKind.OTHER_CODE or failure.message.startswith(NO_CARD)):
            return
        self.unfit[node] += 1
        if not offered or any(self.unfit[other] < MOST_ON_UNFIT for other in offered):
            return
        last = (failure.message.partition("; found: ")[2] or failure.message).rstrip(".")
        tried = f"on each of {len(offered)} nodes{{}} the last {MOST_ON_UNFIT} trials or more {{}}: {last}"
        if failure.kind == FailureKind.OTHER_CODE:
            raise SetupError(
                "Some node must run the code of the driver",
                tried.format("", "found other code; the last one"),
                "install the same everywhere, leave it as it is while a sweep runs, and run the same command "
                "again: what is done is kept",
            )
        raise SetupError(
            "Some node must give trials a card that they can reach",
            tried.format(" with GPUs", "reached none; the last one"),
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
        if sum(mine[death] for death in PROCESS_DEATHS) >= MOST_DEATHS:
            return Decision(None, f"it died {MOST_DEATHS} times")
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
        return limit + others // 2, f"other trials died {others} times too"
