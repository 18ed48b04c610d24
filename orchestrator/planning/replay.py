"""Simulate when trials start and end on GPUs, to estimate the time of a plan."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

LOOK_AHEAD = 16
"""Largest number of trials that wait for a GPU at the same time. While so many trials wait, no
later trial can start."""
ROUNDING = 1e-9
"""Tolerance with which shares and seconds are compared."""


@dataclass(frozen=True)
class Job:
    """A trial to simulate.

    Attributes:
        name: Unique name of the job.
        seconds: Run time of the job on its share of the GPUs.
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
        lower_bound: Seconds that the jobs need at least, in any order. This is the larger of
            two numbers: the seconds of the longest job, and the work of all jobs divided by
            the number of GPUs.
        utilisation: Fraction of the GPUs' time during which jobs use the GPUs.
        starts: Seconds at which each job starts, by the name of the job.
    """

    makespan: float
    lower_bound: float
    utilisation: float
    starts: Mapping[str, float]


class _Running(NamedTuple):
    """A running job. The class is a tuple so that a heap can sort jobs by the time of their end."""

    end: float
    gpu: int
    share: float


class _Gpus:
    """The free share of each GPU, and a list of the GPUs in order of their free share."""

    def __init__(self, num_gpus: int) -> None:
        self._free = [1.0] * num_gpus
        self._by_free = [(1.0, gpu) for gpu in range(num_gpus)]

    def has_room(self, share: float) -> bool:
        """Return whether a GPU has enough room for a share."""
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
    between two GPUs. If no GPU has enough room for a job, the job waits. In the meantime,
    later jobs that fit on a GPU may start. At most :data:`LOOK_AHEAD` jobs wait at the same
    time.

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
