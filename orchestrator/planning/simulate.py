"""Replaying a plan on cards that need not be there: how long it takes, what it costs, how far from the best.

Cards take jobs in order; a job starts on the first card with room for its share, as Ray places fractions: no
share spans two cards. A share is chosen so that jobs beside each other do not slow each other down.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

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
    cards = _Cards(max(1, min(num_cards, len(jobs))))
    running: list[tuple[float, int, float]] = []
    offered, waiting = iter(jobs), list[Job]()
    now, most = 0.0, 0
    starts: dict[str, float] = {}
    while True:
        for job in _startable(waiting, offered, cards):
            share = min(job.share, 1.0)
            starts[job.name] = now
            heapq.heappush(running, (now + job.seconds, cards.take(share), share))
        most = max(most, len(running))
        if not running:
            break
        now = running[0][0]
        while running and running[0][0] <= now + _ROUNDING:
            _, card, share = heapq.heappop(running)
            cards.give(card, share)
    work = sum(job.seconds * min(job.share, 1.0) for job in jobs)
    bound = max(work / num_cards, max((job.seconds for job in jobs), default=0.0))
    return Replay(now, bound, work / (now * num_cards) if now else 0.0, most, starts)


class _Cards:
    """How much of each card is free; the fullest comes first, and of equal ones the first."""

    def __init__(self, number: int) -> None:
        self._free = [1.0] * number
        self._fullest_first = [(1.0, card) for card in range(number)]

    def fit(self, share: float) -> bool:
        return share <= self._fullest_first[-1][0] + _ROUNDING

    def take(self, share: float) -> int:
        """Take a share of the fullest card with room for it, as Ray packs; return which."""
        place = bisect_left(self._fullest_first, (share - _ROUNDING, 0))
        _, card = self._fullest_first.pop(place)
        self._free[card] -= share
        insort(self._fullest_first, (self._free[card], card))
        return card

    def give(self, card: int, share: float) -> None:
        del self._fullest_first[bisect_left(self._fullest_first, (self._free[card], card))]
        self._free[card] += share
        insort(self._fullest_first, (self._free[card], card))


def _startable(waiting: list[Job], offered: Iterator[Job], cards: _Cards) -> Iterator[Job]:
    """Yield what fits now, each placed before the next is asked for; ``waiting`` keeps what fits nowhere."""
    queue = chain(tuple(waiting), offered)
    waiting.clear()
    while len(waiting) < LOOK_AHEAD:
        job = next(queue, None)
        if job is None:
            return
        if cards.fit(min(job.share, 1.0)):
            yield job
        else:
            waiting.append(job)
