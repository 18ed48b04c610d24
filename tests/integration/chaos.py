"""The long form of the fault tests: whatever may break a sweep, judged by what is stored at the
end.

Every case runs in PID, mount and network namespaces of its own (``tests/isolation.py``), with a
folder of its own for temporary files, and ends with a look at what is there: results, MLflow, what
was left. Writes date, load and figures of each case to ``benchmarks/results/chaos.json``, beside
those that were not run this time; exits with 1 when a case does not hold."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.integration.faults import HOG
from tests.integration.mlflow_faults import LONG
from tests.integration.several_nodes import environment
from tests.integration.sweeps import SWEEP, write_sweep
from tests.isolation import isolated

OUT = Path(__file__).parents[2] / "benchmarks" / "results" / "chaos.json"
LIMIT_S = 3600
Found = dict[str, Any]


def trials_judged(found: Found, kind: str = "") -> Found:
    """Of trials that sleep: each stored once and right, each tracked once; what failed is of the
    ``kind``."""
    kinds = Counter(kind for _, kind, _, _ in found["told"])
    right = sum(found["results"].get(trial) == f"found {trial}" for trial in found["planned"])
    slower = found["seconds"] / found["undisturbed_s"] if found.get("undisturbed_s") else None
    whole = right == len(found["planned"]) == len(found["results"]) and not found["failures_left"]
    return {
        "holds": whole
        and found["statuses"] == ["FINISHED"]
        and (slower or 0) <= 2.5
        and (not kind or set(kinds) == {kind}),
        "trials": len(found["planned"]),
        "right": right,
        "faults": [event[0] for event in found["history"] if event[0] != "threshold"],
        "failures": dict(kinds),
        "sweep_s": round(found["seconds"], 1),
        **({"times_undisturbed": round(slower, 2)} if slower else {}),
        **{name: found[name] for name in ("same_node", "there") if name in found},
    }


def workers_judged(found: Found) -> Found:
    """As :func:`trials_judged`, with at least ten kills."""
    judged = trials_judged(found, "worker_crash")
    kills = len(judged.pop("faults"))
    return {**judged, "holds": judged["holds"] and kills >= 10, "kills": kills}


def memory_judged(found: Found) -> Found:
    """As :func:`trials_judged`: the hog alone was killed, which costs the others nothing."""
    judged = trials_judged(found, "out_of_memory")
    return {**judged, "holds": judged["holds"] and all(HOG in trial for trial, *_ in found["told"])}


def partition_judged(found: Found) -> Found:
    """As :func:`trials_judged`: the hosts were parted, and the other one is of the cluster again."""
    judged = trials_judged(found)
    return {**judged, "holds": judged["holds"] and found["there"] and "link up" in judged["faults"]}


def mlflow_judged(found: Found) -> Found:
    """One finished run for each trial, with its numbers; nothing left to tell."""
    clean = found["statuses"] == {"FINISHED": found["counted"] + 1}
    holds = found["right"] and clean and not found["running"] and not found["behind"]
    return {
        "holds": holds,
        "runs": found["counted"],
        "faults": found["faults"],
        "said": len(found["said"]),
    }


def postgres_judged(found: Found) -> Found:
    """As :func:`mlflow_judged`, and the password in no message."""
    clean = found["statuses"] == {"FINISHED": found["keys"]} and found["values"]
    return {
        "holds": clean and not found["secret"] and not found["behind"],
        "runs": found["keys"],
        "said": len(found["said"]),
    }


def disk_judged(found: Found) -> Found:
    """The driver waits, says for what, and goes on; each trial is stored, each run closed."""
    waited = found["alive"] and found["still"] == found["at_pause"]
    ended = (
        found["exit"] == 0 and len(found["results"]) == 12 and "Traceback" not in found["stderr"]
    )
    return {
        "holds": waited and ended and found["runs"] == {"FINISHED": 12 + 2 + 1},
        "trials": len(found["results"]),
        "done_at_pause": found["at_pause"],
    }


def sweep_judged(found: Found) -> Found:
    """Bit-equal to an undisturbed sweep, one finished run each, nothing trained again, nothing
    left."""
    clean = all(m["one_each"] and set(m["statuses"]) == {"FINISHED"} for m in found["mlflow"])
    holds = found["equal"] and clean and not found["left"] and not found.get("trained_again")
    return {"holds": holds, **found, "mlflow": [m["statuses"] for m in found["mlflow"]]}


def killed_judged(found: Found) -> Found:
    """As :func:`sweep_judged`."""
    judged = sweep_judged(found)
    moments = judged.pop("history")
    return {**judged, "kills": len(moments), "moments_s": [moment for moment, _ in moments]}


def away_judged(found: Found) -> Found:
    """As :func:`sweep_judged`: the driver waits and says so, without a traceback."""
    judged = sweep_judged(found)
    waited = found["alive"] and found["paused"] and not found["traceback"] and found["exit"] == 0
    return {
        **judged,
        "holds": judged["holds"] and waited and found["done_at_stop"] < found["trials"],
    }


@dataclass(frozen=True)
class Case:
    """What is run, as a module of ``tests.integration`` with words after it, and how it is judged.

    ``FOLDER`` stands for an empty folder, ``SWEEP`` for the path of the small sweep.
    """

    judge: Callable[[Found], Found]
    module: str
    words: tuple[str, ...] = ("FOLDER",)


WORKERS = json.dumps(
    {"num_trials": 40, "every_s": 5.0, "kills": 12, "trial_s": 2.5, "compare": True}
)
CASES = {
    "worker SIGKILL every 5 s for 60 s": Case(
        workers_judged, "faults", ("killed_workers", "FOLDER", WORKERS)
    ),
    "raylet SIGKILL, a node added": Case(
        partial(trials_judged, kind="lost_node"), "faults", ("killed_raylet", "FOLDER")
    ),
    "memory hog": Case(memory_judged, "faults", ("memory_hog", "FOLDER")),
    "memory hog alone": Case(memory_judged, "faults", ("memory_hog_alone", "FOLDER")),
    "driver SIGKILL at 20 moments": Case(
        killed_judged, "sweep_faults", ("killed_driver", "FOLDER")
    ),
    "object store away 30 s": Case(away_judged, "sweep_faults", ("store_away", "FOLDER")),
    "disk filled and freed": Case(disk_judged, "full_disk", ("SWEEP", "FOLDER/root")),
    **{f"MLflow {name}": Case(mlflow_judged, "mlflow_faults", (name, "FOLDER")) for name in LONG},
    "PostgreSQL restarted": Case(postgres_judged, "postgres_faults", ()),
    **{
        f"two hosts parted {seconds} s": Case(
            partition_judged, "partition", ("FOLDER", str(seconds))
        )
        for seconds in (5, 15, 60)
    },
}


def run_case(case: Case) -> Found:
    """Run one case once and judge it; what it printed last stands for a case that ended
    otherwise."""
    with tempfile.TemporaryDirectory(prefix="isweep-chaos-", dir="/var/tmp") as folder:
        sweep = write_sweep(Path(folder), SWEEP)
        (Path(folder) / "case").mkdir()
        words = [w.replace("FOLDER", f"{folder}/case").replace("SWEEP", sweep) for w in case.words]
        # Whatever is left in the folder for temporary files is seen there, and goes with the
        # namespace.
        own_tmp = 'mount -t tmpfs -o mode=1777 none /tmp && exec "$@"'
        module = (sys.executable, "-m", f"tests.integration.{case.module}", *words)
        done = subprocess.run(
            isolated("sh", "-c", own_tmp, "sh", *module),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            env=environment(os.urandom(32).hex()),
        )
    try:
        start = done.stdout.index("{")  # one document, on one line or on many
        return case.judge(json.loads(done.stdout[start:]))
    except ValueError:
        return {"holds": False, "ended": done.returncode, "said": done.stderr[-3000:]}


SHOWN = {
    "trials": "{} trials",
    "runs": "{} runs",
    "kills": "{} kills",
    "times_undisturbed": "{} times the undisturbed sweep",
    "sweep_s": "sweep {} s",
    "undisturbed_s": "undisturbed sweep {} s",
    "done_at_pause": "paused after {} trials",
    "done_at_stop": "unreachable after {} trials",
}
"""Results of a case that the table of docs/failures.md shows, as text of their number."""


def table(known: Found) -> str:
    """Return the cases as the Markdown table of docs/failures.md."""
    rows = ["| case | passed | result |", "|---|---|---|"]
    for name in CASES:
        if (found := known.get(name)) is None:
            rows.append(f"| {name} | not run | |")
            continue
        figures = [text.format(found[key]) for key, text in SHOWN.items() if key in found]
        faults = found.get("faults", {})
        counted = faults.items() if isinstance(faults, dict) else ()
        said = ", ".join([*figures, *(f"{number} times: {what}" for what, number in counted)])
        holds = "yes" if found["holds"] else "**no**"
        rows.append(f"| {name} | {holds} | {said} |")
    return "\n".join(rows) + "\n"


def main() -> int:
    """Run cases, and write each as soon as it has ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", action="store_true", help="run nothing; print what --out holds")
    arguments = parser.parse_args()
    known = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    if arguments.table:
        print(table(known), end="")
        return 0
    ended = {}
    for name in arguments.cases:
        began, load = time.monotonic(), os.getloadavg()[0]
        found = ended[name] = run_case(CASES[name])
        about = {
            "date": time.strftime("%F %H:%M"),
            "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        }
        known[name] = {**found, **about, "seconds": round(time.monotonic() - began)}
        print(json.dumps({name: known[name]}), flush=True)
        write(arguments.out, known)
    return int(not all(found["holds"] for found in ended.values()))


def write(out: Path, known: Found) -> None:
    """Write all cases in their order, with the machine they ran on."""
    versions = {name: metadata.version(name) for name in ("ray", "mlflow", "torch")}
    machine = {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    cases = {name: known[name] for name in CASES if name in known}
    document = {"environment": {**machine, **versions}, **cases}
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
