"""What the benchmarks of the measures share: timing, peak memory, environment, printing."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from statistics import median
from typing import Any

PACKAGES = ("numpy", "torch", "faiss-cpu", "scikit-dimension", "scikit-learn", "ray")


def parser(description: str | None) -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    arguments.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments.add_argument("--repeats", type=int, default=3, help="runs of each side")
    arguments.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return arguments


def fastest(*sides: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each side's fastest run; sides take turns, so that a busy spell hits all of them."""
    best = [float("inf")] * len(sides)
    for _ in range(repeats):
        for number, side in enumerate(sides):
            start = time.perf_counter()
            side()
            best[number] = min(best[number], time.perf_counter() - start)
    return best


@dataclass(frozen=True)
class Timing:
    """Seconds of several sides that took turns: by the clock, and of processor time."""

    wall: list[list[float]]
    cpu: list[list[float]]

    def ratio(self, side: int, peer: int, *, of: str = "wall") -> float:
        """Median over the turns of one side's time divided by the other's, in the same turn."""
        seconds = getattr(self, of)
        return median(mine / theirs for mine, theirs in zip(seconds[side], seconds[peer], strict=True))

    def seconds(self, side: int) -> dict[str, float]:
        """Medians of one side."""
        return {"wall": median(self.wall[side]), "cpu": median(self.cpu[side])}


def take_turns(*sides: Callable[[], Any], repeats: int, warm: bool = False) -> Timing:
    """Time all sides, turn by turn.

    Unless they are ``warm``, after one turn that does not count: it loads code and starts threads.
    """
    wall: list[list[float]] = [[] for _ in sides]
    cpu: list[list[float]] = [[] for _ in sides]
    for turn in range(int(warm), repeats + 1):
        for number, side in enumerate(sides):
            start, start_cpu = time.perf_counter(), time.process_time()
            side()
            if turn:
                wall[number].append(time.perf_counter() - start)
                cpu[number].append(time.process_time() - start_cpu)
    return Timing(wall, cpu)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Hold BLAS, OpenMP and torch to ``count`` threads."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(count)
    with threadpool_limits(count):
        yield


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "machine": platform.machine(),
        "processor": _processor(),
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def report(
    as_json: bool, name: str, ours: Any, theirs: dict[str, Any], ratio: dict[str, float], **more: Any
) -> None:
    """Print the result: ``ratio`` is ours divided by each of theirs."""
    result = {
        "name": name,
        "ours": ours,
        "theirs": theirs,
        "ratio": ratio,
        **more,
        "environment": environment(),
    }
    if as_json:
        print(json.dumps(result))
        return
    print(name)
    print(f"  {'ours':42s} {_text(ours)}")
    for peer, value in theirs.items():
        print(f"  {peer:42s} {_text(value)}" + (f"   ours/theirs {ratio[peer]:.3f}" if peer in ratio else ""))
    for key, value in more.items():
        print(f"  {key:42s} {_text(value)}")
    print(f"  {'environment':42s} {result['environment']}")


def _text(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
