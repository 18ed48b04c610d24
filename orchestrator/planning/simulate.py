"""Replaying a plan on cards that need not be there: how long it takes, what it costs, how far from the best.

Cards take jobs in order; a job starts on the first card with room for its share, as Ray places fractions: no
share spans two cards. A share is chosen so that jobs beside each other do not slow each other down.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

LOOK_AHEAD = 16
"""Trials that wait for a place at the same time, at most; those behind them are not offered yet."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Job:
    """One trial.

    Attributes:
        name: its id.
        seconds: how long it takes on its share of a card.
        share: of one card, above 0 and up to 1; or a whole number of cards.
    """

    name: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Replay:
    """What a replay found.

    Attributes:
        makespan: seconds until the last job has ended.
        lower_bound: no order can be faster: the longest job, or all work spread evenly.
        utilisation: share of the cards' time that was given to jobs.
        most_at_once: jobs running at the same time, at most.
        starts: when each job begins, in seconds, by name.
    """

    makespan: float
    lower_bound: float
    utilisation: float
    most_at_once: int
    starts: Mapping[str, float]

    @property
    def over_lower_bound(self) -> float:
        """Makespan as a multiple of the lower bound."""
        return self.makespan / self.lower_bound if self.lower_bound else 1.0


def longest_first(jobs: Iterable[Job]) -> list[Job]:
    """Return jobs with the longest first, so that none is begun when all others have ended; ties by name."""
    return sorted(jobs, key=lambda job: (-job.seconds, job.name))


def replay(jobs: Sequence[Job], num_cards: int) -> Replay:
    """Run ``jobs`` in their order on ``num_cards`` cards.

    A job that fits nowhere waits, and those of the next ``LOOK_AHEAD`` that fit go before it, as Ray does.

    Args:
        jobs: in the order in which they are offered.
        num_cards: at least 1.
    """
    free = [1.0] * max(1, min(num_cards, len(jobs)))
    running: list[tuple[float, int, float]] = []
    waiting = list(jobs)
    now, most = 0.0, 0
    starts: dict[str, float] = {}
    while waiting or running:
        waiting = _start(waiting, free, running, now, starts)
        most = max(most, len(running))
        if not running:
            break
        now, card, share = heapq.heappop(running)
        free[card] += share
        while running and running[0][0] <= now + _ROUNDING:
            _, card, share = heapq.heappop(running)
            free[card] += share
    work = sum(job.seconds * min(job.share, 1.0) for job in jobs)
    bound = max(work / num_cards, max((job.seconds for job in jobs), default=0.0))
    return Replay(now, bound, work / (now * num_cards) if now else 0.0, most, starts)


def replay_in_waves(waves: Iterable[Sequence[Job]], num_cards: int) -> Replay:
    """Run groups of jobs one after another, each waiting for the last job of the group before."""
    groups = list(waves)
    parts = [replay(group, num_cards) for group in groups]
    whole = replay([job for group in groups for job in group], num_cards)
    makespan = 0.0
    starts: dict[str, float] = {}
    for part in parts:
        starts |= {name: makespan + start for name, start in part.starts.items()}
        makespan += part.makespan
    work = whole.utilisation * whole.makespan
    return Replay(
        makespan, whole.lower_bound, work / makespan if makespan else 0.0, whole.most_at_once, starts
    )


def _start(
    waiting: list[Job],
    free: list[float],
    running: list[tuple[float, int, float]],
    now: float,
    starts: dict[str, float],
) -> list[Job]:
    """Start what fits now, noted in ``starts``; return what still waits."""
    left: list[Job] = []
    room = max(free)
    for place, job in enumerate(waiting):
        if len(left) == LOOK_AHEAD:
            return left + waiting[place:]
        share = min(job.share, 1.0)
        if share > room + _ROUNDING:
            left.append(job)
            continue
        # The fullest card with room, as Ray packs.
        card = min((c for c in range(len(free)) if free[c] + _ROUNDING >= share), key=lambda c: free[c])
        free[card] -= share
        starts[job.name] = now
        heapq.heappush(running, (now + job.seconds, card, share))
        room = max(free)
    return left
