"""Waiting times of a new user: the demo, the help, and the status of a sweep.

``python benchmarks/front.py demo`` takes minutes. ``looks --root ROOT`` needs a root in which the
demo has run.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import Result, median, run

MOST_DEMO_S, MOST_HELP_S, MOST_STATUS_S = 90, 0.5, 0.8
ISWEEP = (sys.executable, "-m", "orchestrator.cli")


def demo() -> Result:
    """Measure the wall time of `isweep run demo` in a new root, and of a second run."""
    with tempfile.TemporaryDirectory(prefix="isweep-demo-") as root:
        first, again = (
            seconds(*ISWEEP, "run", "demo", "--quiet", "--root", root)["wall"] for _ in range(2)
        )
        assert Path(root, "sweeps", "demo", "report", "report.html").stat().st_size > 0
    ours = {"first_s": round(first, 1), "again_s": round(again, 1)}
    return {"ours": ours, "theirs": {"first_s": MOST_DEMO_S}, "ratio": first / MOST_DEMO_S}


def looks(*, root: str = "isweep-root", repeats: int = 9) -> Result:
    """Measure the processor time of `isweep --help` and `isweep status`.

    The help of other commands is measured in turns with them.
    """
    sides = {
        "isweep --help": (*ISWEEP, "--help"),
        "isweep status demo": (*ISWEEP, "status", "demo", "--root", root),
    }
    sides |= {
        f"{name} --help": (str(Path(sys.executable).parent / name), "--help")
        for name in ("mlflow", "ray")
    }
    turns = [
        {name: seconds(*command)["cpu"] for name, command in sides.items()} for _ in range(repeats)
    ]
    result = {name: round(median(turn[name] for turn in turns), 3) for name in sides}
    ours = {name: result.pop(name) for name in [*result][:2]}
    theirs = {
        **result,
        "isweep --help at most": MOST_HELP_S,
        "isweep status at most": MOST_STATUS_S,
    }
    ratio = {
        "help": ours["isweep --help"] / MOST_HELP_S,
        "status": ours["isweep status demo"] / MOST_STATUS_S,
    }
    return {"ours": ours, "theirs": theirs, "ratio": ratio}


def seconds(*command: str) -> dict[str, float]:
    """Return the wall time and the processor time of a command, in seconds."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"COLUMNS": "80"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.perf_counter() - began, "cpu": cpu}


if __name__ == "__main__":
    run(looks, parts=[demo])
