"""Common parts of all benchmarks: options, timing in turns, the environment and printing.

A script passes its cases to `run`. A case is a function with keyword options that returns a result:
``python benchmarks/measures.py nested --side 64 --json``. A result has ``ours``, ``theirs`` and
``ratio`` (ours divided by theirs). Both sides are measured in one run. `run` adds the environment.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from cyclopts import App, Parameter

PACKAGES = (
    "numpy",
    "numkong",
    "torch",
    "ray",
    "mlflow",
    "pandas",
    "matplotlib",
    "zarr",
    "optuna",
    "faiss-cpu",
    "scikit-dimension",
)
CORES = len(os.sched_getaffinity(0))
Result = dict[str, Any]


def run(*cases: Callable[..., Result], parts: Sequence[Callable[..., Result]] = ()) -> None:
    """Run the case on the command line and print its result.

    Without a case, all cases run, except the parts.
    """
    words = [word for word in sys.argv[1:] if word != "--json"]
    help_text = f"{sys.modules['__main__'].__doc__}\nWith --json one JSON object is printed."
    app = App(help=help_text, default_parameter=Parameter(negative=(), consume_multiple=True))
    for case in (*cases, *parts):
        app.command(case)
    requests = [words] if words else [[case.__name__.replace("_", "-")] for case in cases]
    for line in requests:
        case, bound, _ = app.parse_args(line)
        result = case(*bound.args, **bound.kwargs)
        if result is None:  # the help was asked for
            return
        result = {"name": case.__name__, **result, "environment": environment()}
        print(json.dumps(result, indent=1)) if len(words) < len(sys.argv) - 1 else show(result)


def source(*paths: Path) -> str:
    """Return the names and checksums of files.

    A figure stores this text of its sources, and a test compares it with the files.
    """
    return "\n".join(f"{path.name} {sha256(path.read_bytes()).hexdigest()}" for path in paths)


def environment() -> Result:
    """Return the versions and the machine that the results depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpus": CORES,
        "load_average": os.getloadavg()[0],
        "machine": platform.machine(),
        "processor": _processor(),
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def show(result: Mapping[str, Any], indent: int = 0) -> None:
    """Print a result: one line per value, and one table per list of rows."""
    for name, value in result.items():
        head = f"{' ' * indent}{name}"
        if isinstance(value, Mapping):
            print(head)
            show(value, indent + 2)
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            print(f"{head}\n| {' | '.join(map(str, value[0]))} |\n{'|---' * len(value[0])}|")
            for row in value:
                print(f"| {' | '.join(map(_text, row.values()))} |")
        else:
            print(f"{head:<44} {_text(value)}")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)


@dataclass(frozen=True)
class Timing:
    """Wall time and processor time of several sides that took turns, in seconds.

    Attributes:
        wall: Wall times of each side, one per turn.
        cpu: Processor times of each side, one per turn.
    """

    wall: list[list[float]]
    cpu: list[list[float]]

    def ratio(self, side: int, peer: int, *, of: str = "wall") -> float:
        """Return the median over turns of one side's time divided by the other's in the same turn."""
        seconds = getattr(self, of)
        return median(
            side_seconds / peer_seconds
            for side_seconds, peer_seconds in zip(seconds[side], seconds[peer], strict=True)
        )

    def seconds(self, side: int) -> dict[str, float]:
        """Return the median times of one side."""
        return {"wall": median(self.wall[side]), "cpu": median(self.cpu[side])}

    def against(self, *peers: str) -> Result:
        """Return the times of the first side as ours, of the others as theirs, and their ratios.

        Args:
            peers: Names of the other sides.
        """
        sides = {name: number for number, name in enumerate(peers, 1)}
        return {
            "ours": self.seconds(0),
            "theirs": {name: self.seconds(side) for name, side in sides.items()},
            "ratio": {name: self.ratio(0, side) for name, side in sides.items()},
            "ratio_of_cpu_time": {
                name: self.ratio(0, side, of="cpu") for name, side in sides.items()
            },
        }


def take_turns(*sides: Callable[[], Any], repeats: int, warm: bool = False) -> Timing:
    """Time all sides in turns, so that other load on the machine affects all of them.

    Unless the sides are ``warm``, a first turn is not counted, because it loads code and starts
    threads.
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
    """Limit our products, BLAS, OpenMP and torch (if loaded) to ``count`` threads."""
    from threadpoolctl import threadpool_limits

    if torch := sys.modules.get("torch"):
        torch.set_num_threads(count)
    with threadpool_limits(count), mock.patch.dict(os.environ, OMP_NUM_THREADS=str(count)):
        yield


def peak_memory_mib() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
