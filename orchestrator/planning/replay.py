"""Simulate how trials run on GPUs one after the other, to estimate the time of a plan."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

LOOK_AHEAD = 16
"""Largest number of trials that wait for a GPU at the same time. Later trials are not
considered yet."""
ROUNDING = 1e-9
"""Tolerance in comparisons of shares and of seconds."""


@dataclass(frozen=True)
class Job:
    """A trial to simulate.

    Attributes:
        name: Unique name of the job.
        seconds: Run time of the job on its share.
        share: Share of one GPU, at most 1, or a whole number of GPUs.
    """

    name: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Replay:
    """Result of a simulation.

    Attributes:
        makespan: Seconds until the last job has ended.
        lower_bound: Seconds that every order of the jobs needs. They are the larger of two
            numbers: the seconds of the longest job, and the work of all jobs divided by the
                number of GPUs.
        utilisation: Fraction of the GPUs' time that jobs use.
        starts: Seconds at which each job starts, by the name of the job.
    """

    makespan: float
    lower_bound: float
    utilisation: float
    starts: Mapping[str, float]


class _Running(NamedTuple):
    """A running job. It is a tuple, so that a heap sorts jobs by their end."""

    end: float
    gpu: int
    share: float


class _Gpus:
    """Free shares of GPUs, and a list of the GPUs in order of their free share."""

    def __init__(self, num_gpus: int) -> None:
        self._free = [1.0] * num_gpus
        self._by_free = [(1.0, gpu) for gpu in range(num_gpus)]

    def has_room(self, share: float) -> bool:
        """Return whether a share fits on a GPU."""
        return share <= self._by_free[-1][0] + ROUNDING

    def take(self, share: float) -> int:
        """Reserve a share on the fullest GPU with enough room, and return the GPU's index."""
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
    """Simulate jobs that start on GPUs in the given order.

    A job starts on the fullest GPU with room for its share. As in Ray, a share is never split
    between two GPUs. A job that fits on no GPU waits. Meanwhile, later jobs that fit may
    start. At most :data:`LOOK_AHEAD` jobs wait at the same time.

    Args:
        jobs: The jobs, in the order in which they should start.
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
