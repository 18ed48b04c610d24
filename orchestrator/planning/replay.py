"""Replay of trials on GPUs that need not exist: how long a plan takes on them."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

# Replaying a plan on GPUs that need not be there: how long it takes, how far from the best.

LOOK_AHEAD = 16
"""Trials that wait for a place at the same time, at most; those behind them are not offered yet."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Job:
    """A trial's seconds on its share of a GPU, and that share: up to 1, or a whole number of
    GPUs.
    """

    name: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Replay:
    """What a replay found: seconds until the last job has ended, and when each begins, by name.

    No order can be faster than ``lower_bound``: the longest job, or all work spread evenly.
    """

    makespan: float
    lower_bound: float
    utilisation: float
    starts: Mapping[str, float]


def replay(jobs: Sequence[Job], num_gpus: int) -> Replay:
    """Run ``jobs`` in their order on ``num_gpus`` GPUs, at least 1.

    A job starts on the fullest GPU with room for its share, as Ray places fractions: no share spans
    two GPUs. One that fits nowhere waits, and those of the next ``LOOK_AHEAD`` that fit go before
    it.
    """
    free = [1.0] * max(1, min(num_gpus, len(jobs)))
    fullest_first = [(1.0, gpu) for gpu in range(len(free))]

    def change(gpu: int, by: float) -> None:
        del fullest_first[bisect_left(fullest_first, (free[gpu], gpu))]
        free[gpu] += by
        insort(fullest_first, (free[gpu], gpu))

    queue, running = deque(jobs), list[tuple[float, int, float]]()
    starts: dict[str, float] = {}
    now = 0.0
    while queue or running:
        waiting: list[Job] = []
        while queue and len(waiting) < LOOK_AHEAD:
            job = queue.popleft()
            share = min(job.share, 1.0)
            if share > fullest_first[-1][0] + _ROUNDING:
                waiting.append(job)
                continue
            _, gpu = fullest_first[bisect_left(fullest_first, (share - _ROUNDING, 0))]
            change(gpu, -share)
            starts[job.name] = now
            heappush(running, (now + job.seconds, gpu, share))
        queue.extendleft(reversed(waiting))
        now = running[0][0]
        while running and running[0][0] <= now + _ROUNDING:
            _, gpu, share = heappop(running)
            change(gpu, share)
    work = sum(job.seconds * min(job.share, 1.0) for job in jobs)
    bound = max(work / num_gpus, max((job.seconds for job in jobs), default=0.0))
    return Replay(now, bound, work / (now * num_gpus) if now else 0.0, starts)
