"""Waiting times of a new user: the demos, the help, and the status of a sweep.

``python benchmarks/front.py demo`` and ``digits-demo`` take minutes. ``looks --root ROOT`` needs a
root in which the demo has run.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import Result, median, run

import isweep
from orchestrator.analysis.class_pairs import DROP_ON_DELTA

MOST_DEMO_S = 90
"""Longest acceptable wall time of the demo on two idle cores, in seconds."""
MOST_HELP_S = 0.5
"""Longest acceptable processor time of ``isweep --help``, in seconds."""
MOST_STATUS_S = 0.8
"""Longest acceptable processor time of ``isweep status``, in seconds."""
ISWEEP = (sys.executable, "-m", "orchestrator.cli")
"""The command ``isweep`` of this checkout."""
DIGITS_DEMO = Path(__file__).with_name("results") / "digits_demo.json"
"""Numbers of the digits demo that README shows."""


def demo() -> Result:
    """Measure the wall time of `isweep run demo` in a new root, and of a second run."""
    with tempfile.TemporaryDirectory(prefix="isweep-demo-") as root:
        first, again = (
            seconds(*ISWEEP, "run", "demo", "--quiet", "--root", root)["wall"] for _ in range(2)
        )
        assert Path(root, "sweeps", "demo", "report", "report.html").stat().st_size > 0
    ours = {"first_s": round(first, 1), "again_s": round(again, 1)}
    return {"ours": ours, "theirs": {"first_s": MOST_DEMO_S}, "ratio": first / MOST_DEMO_S}


def digits_demo(*, root: Path | None = None, into: Path = DIGITS_DEMO) -> Result:
    """Write the finding of `isweep run digits-demo`, and its wall time, to a JSON file.

    Args:
        root: Root of a finished run. Its time is unknown, so the file keeps the time that it has.
            If empty, the demo runs in a new root and is timed.
        into: The JSON file.
    """
    if root is not None:
        wall_s = json.loads(into.read_text(encoding="utf-8"))["seconds_on_two_cores"]
        result = finding_of_digits(root, wall_s)
    else:
        with tempfile.TemporaryDirectory(prefix="isweep-digits-demo-") as folder:
            new_root = Path(folder)
            command = (*ISWEEP, "run", "digits-demo", "--quiet", "--root", folder)
            result = finding_of_digits(new_root, round(seconds(*command)["wall"]))
    into.write_text(f"{json.dumps(result, indent=1, ensure_ascii=False)}\n", encoding="utf-8")
    return result


def finding_of_digits(root: Path, wall_s: int) -> Result:
    """Return the slope of accuracy lost on log δ in the digits demo, with its verdict.

    Args:
        root: Root in which the digits demo has run.
        wall_s: Wall time of the run, in seconds.
    """
    fits = isweep.open("digits-demo", root=root).fits.records
    (slope,) = [slope for slope in fits.class_pairs if slope.on == DROP_ON_DELTA]
    return {
        "sweep": "digits-demo",
        "num_trials": fits.num_trials,
        "seconds_on_two_cores": wall_s,
        "on": slope.on,
        "value": slope.value,
        "interval": slope.interval,
        "adjusted_p": slope.adjusted_p,
        "verdict": fits.pair_answer(slope).verdict,
    }


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
    run(looks, parts=[demo, digits_demo])
