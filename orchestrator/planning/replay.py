"""Replay of trials on GPUs that need not exist: how long a plan takes on them."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

LOOK_AHEAD = 16
"""Trials that may wait for a GPU at the same time; those behind them are not offered yet."""
ROUNDING = 1e-9
"""Tolerance in comparisons of shares and of seconds."""


@dataclass(frozen=True)
class Job:
    """A trial to replay.

    ``seconds`` are on its ``share`` of a GPU: up to 1, or a whole number of GPUs.
    """

    name: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Replay:
    """Result of a replay.

    Attributes:
        makespan: Seconds until the last job has ended.
        lower_bound: No order is faster: the longest job, or all work spread evenly.
        utilisation: Part of the GPUs' time that jobs take.
        starts: When each job begins, seconds, by its name.
    """

    makespan: float
    lower_bound: float
    utilisation: float
    starts: Mapping[str, float]


class _Running(NamedTuple):
    """A job that runs; a tuple, so that a heap orders jobs by their end."""

    end: float
    gpu: int
    share: float


class _Gpus:
    """Free shares of GPUs, and the GPUs ordered by them: the fullest first."""

    def __init__(self, num_gpus: int) -> None:
        self._free = [1.0] * num_gpus
        self._by_free = [(1.0, gpu) for gpu in range(num_gpus)]

    def has_room(self, share: float) -> bool:
        """Return whether a share fits on a GPU."""
        return share <= self._by_free[-1][0] + ROUNDING

    def take(self, share: float) -> int:
        """Take a share of the fullest GPU that has room for it, and return the GPU."""
        place = bisect_left(self._by_free, (share - ROUNDING, 0))
        gpu = self._by_free[place][1]
        self._change(gpu, -share)
        return gpu

    def give_back(self, gpu: int, share: float) -> None:
        """Free a share of a GPU."""
        self._change(gpu, share)

    def _change(self, gpu: int, by: float) -> None:
        del self._by_free[bisect_left(self._by_free, (self._free[gpu], gpu))]
        self._free[gpu] += by
        insort(self._by_free, (self._free[gpu], gpu))


def replay(jobs: Sequence[Job], num_gpus: int) -> Replay:
    """Run jobs in their order on GPUs.

    A job starts on the fullest GPU with room for its share, as Ray places fractions: no share is
    put together from two GPUs. A job that fits nowhere waits. Of the next :data:`LOOK_AHEAD` jobs,
    those that fit go before it.

    Args:
        jobs: The jobs in the order in which they are offered.
        num_gpus: Number of GPUs, at least 1.
    """
    gpus = _Gpus(max(1, min(num_gpus, len(jobs))))
    queue = deque(jobs)
    running: list[_Running] = []
    starts: dict[str, float] = {}
    now = 0.0
    while queue or running:
        waiting: list[Job] = []
        while queue and len(waiting) < LOOK_AHEAD:
            job = queue.popleft()
            share = min(job.share, 1.0)
            if gpus.has_room(share):
                starts[job.name] = now
                heappush(running, _Running(now + job.seconds, gpus.take(share), share))
            else:
                waiting.append(job)
        queue.extendleft(reversed(waiting))
        now = running[0].end
        while running and running[0].end <= now + ROUNDING:
            ended = heappop(running)
            gpus.give_back(ended.gpu, ended.share)
    work = sum(job.seconds * min(job.share, 1.0) for job in jobs)
    longest = max((job.seconds for job in jobs), default=0.0)
    utilisation = work / (now * num_gpus) if now else 0.0
    return Replay(now, max(work / num_gpus, longest), utilisation, starts)
