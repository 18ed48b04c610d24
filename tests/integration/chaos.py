"""The long form of the fault tests: real faults of sweeps, judged by the results at the end.

Every case runs in new PID, mount and network namespaces (``tests/isolation.py``) with a new folder
for temporary files. At its end results, MLflow runs and remaining processes are checked. The script
writes date, load and figures of each case to ``benchmarks/results/chaos.json``, and keeps the cases
that did not run. It exits with 1 if a case fails."""

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

from tests.integration.faults import HOG_ID
from tests.integration.mlflow_faults import LONG_ARGUMENTS
from tests.integration.several_nodes import environment
from tests.integration.sweeps import SWEEP, write_sweep
from tests.isolation import isolated

OUT = Path(__file__).parents[2] / "benchmarks" / "results" / "chaos.json"
LIMIT_S = 3600
"""Seconds that a case may take."""
MAX_SLOWDOWN = 2.5
"""A sweep with killed workers may take this many times as long as an undisturbed one."""
Document = dict[str, Any]


def judge_trials(report: Document, kind: str = "") -> Document:
    """Judge sleeping trials: each has one right result and one run, and failures are of one kind.

    Args:
        report: The document that a case of ``tests.integration.faults`` prints.
        kind: The kind that every failure must have; any kind if empty.
    """
    planned = report["planned"]
    kinds = Counter(kind for _, kind, _, _ in report["told"])
    num_right = sum(report["results"].get(trial_id) == f"found {trial_id}" for trial_id in planned)
    all_right = num_right == len(planned) == len(report["results"])
    slowdown = 0.0
    if report.get("undisturbed_s"):
        slowdown = report["seconds"] / report["undisturbed_s"]
    verdict = {
        "holds": all_right
        and not report["failures_left"]
        and report["statuses"] == ["FINISHED"]
        and slowdown <= MAX_SLOWDOWN
        and (not kind or set(kinds) == {kind}),
        "trials": len(planned),
        "right": num_right,
        "faults": [event[0] for event in report["history"] if event[0] != "threshold"],
        "failures": dict(kinds),
        "sweep_s": round(report["seconds"], 1),
    }
    if slowdown:
        verdict["times_undisturbed"] = round(slowdown, 2)
    for name in ("same_node", "there"):
        if name in report:
            verdict[name] = report[name]
    return verdict


def judge_workers(report: Document) -> Document:
    """Judge trials with :func:`judge_trials`. There must be at least ten kills."""
    verdict = judge_trials(report, "worker_crash")
    kills = len(verdict.pop("faults"))
    return {**verdict, "holds": verdict["holds"] and kills >= 10, "kills": kills}


def judge_memory(report: Document) -> Document:
    """Judge trials with :func:`judge_trials`. Only the memory hog may have failed."""
    verdict = judge_trials(report, "out_of_memory")
    only_hog_failed = all(HOG_ID in trial_id for trial_id, *_ in report["told"])
    return {**verdict, "holds": verdict["holds"] and only_hog_failed}


def judge_partition(report: Document) -> Document:
    """Judge trials with :func:`judge_trials`. The parted host must be in the cluster again."""
    verdict = judge_trials(report)
    is_joined = report["there"] and "link up" in verdict["faults"]
    return {**verdict, "holds": verdict["holds"] and is_joined}


def judge_mlflow(report: Document) -> Document:
    """Judge a tracker: each trial has one finished run with its numbers, and no update is unsent."""
    all_finished = report["statuses"] == {"FINISHED": report["counted"] + 1}
    holds = report["right"] and all_finished and not report["running"] and not report["behind"]
    return {
        "holds": holds,
        "runs": report["counted"],
        "faults": report["faults"],
        "said": len(report["said"]),
    }


def judge_postgres(report: Document) -> Document:
    """Judge a tracker like :func:`judge_mlflow`. No message may contain the password."""
    all_finished = report["statuses"] == {"FINISHED": report["keys"]} and report["values"]
    return {
        "holds": all_finished and not report["secret"] and not report["behind"],
        "runs": report["keys"],
        "said": len(report["said"]),
    }


def judge_disk(report: Document) -> Document:
    """Judge a sweep whose disk was full: the driver pauses and goes on, and every run is closed."""
    paused = report["alive"] and report["still"] == report["at_pause"]
    all_stored = len(report["results"]) == 12
    ended_well = report["exit"] == 0 and all_stored and "Traceback" not in report["stderr"]
    return {
        # 12 trials, 2 learning curves and the sweep's own run.
        "holds": paused and ended_well and report["runs"] == {"FINISHED": 12 + 2 + 1},
        "trials": len(report["results"]),
        "done_at_pause": report["at_pause"],
    }


def judge_sweep(report: Document) -> Document:
    """Judge a disturbed sweep: its numbers are those of an undisturbed one, to the bit.

    Each trial has one finished run, none was trained again after its result was stored, and no
    process or file remains.
    """
    all_finished = True
    for runs in report["mlflow"]:
        all_finished &= runs["one_each"] and set(runs["statuses"]) == {"FINISHED"}
    clean = not report["left"] and not report.get("trained_again")
    holds = report["equal"] and all_finished and clean
    return {"holds": holds, **report, "mlflow": [runs["statuses"] for runs in report["mlflow"]]}


def judge_killed_driver(report: Document) -> Document:
    """Judge a sweep with :func:`judge_sweep`, and list the moments of the kills."""
    verdict = judge_sweep(report)
    moments = verdict.pop("history")
    return {**verdict, "kills": len(moments), "moments_s": [moment for moment, _ in moments]}


def judge_store_away(report: Document) -> Document:
    """Judge a sweep with :func:`judge_sweep`. The driver must have paused with a message."""
    verdict = judge_sweep(report)
    paused = report["alive"] and report["paused"] and not report["traceback"]
    ended_well = report["exit"] == 0 and report["done_at_stop"] < report["trials"]
    return {**verdict, "holds": verdict["holds"] and paused and ended_well}


@dataclass(frozen=True)
class Case:
    """A case of the long fault tests.

    Attributes:
        judge: Returns the verdict on the document that the module prints.
        module: The module of ``tests.integration`` that runs.
        arguments: Its arguments. ``FOLDER`` stands for an empty folder, ``SWEEP`` for the path of
            the small sweep.
    """

    judge: Callable[[Document], Document]
    module: str
    arguments: tuple[str, ...] = ("FOLDER",)


WORKERS = json.dumps(
    {"num_trials": 40, "every_s": 5.0, "kills": 12, "trial_s": 2.5, "compare": True}
)
CASES = {
    "worker SIGKILL every 5 s for 60 s": Case(
        judge_workers, "faults", ("killed_workers", "FOLDER", WORKERS)
    ),
    "raylet SIGKILL, a node added": Case(
        partial(judge_trials, kind="lost_node"), "faults", ("killed_raylet", "FOLDER")
    ),
    "memory hog": Case(judge_memory, "faults", ("memory_hog", "FOLDER")),
    "memory hog alone": Case(judge_memory, "faults", ("memory_hog_alone", "FOLDER")),
    "driver SIGKILL at 20 moments": Case(
        judge_killed_driver, "sweep_faults", ("killed_driver", "FOLDER")
    ),
    "object store away 30 s": Case(judge_store_away, "sweep_faults", ("store_away", "FOLDER")),
    "disk filled and freed": Case(judge_disk, "full_disk", ("SWEEP", "FOLDER/root")),
    **{
        f"MLflow {name}": Case(judge_mlflow, "mlflow_faults", (name, "FOLDER"))
        for name in LONG_ARGUMENTS
    },
    "PostgreSQL restarted": Case(judge_postgres, "postgres_faults", ()),
    **{
        f"two hosts parted {seconds} s": Case(
            judge_partition, "partition", ("FOLDER", str(seconds))
        )
        for seconds in (5, 15, 60)
    },
}


def run_case(case: Case) -> Document:
    """Run a case once and judge it. The verdict on a case without a document has its last output."""
    with tempfile.TemporaryDirectory(prefix="isweep-chaos-", dir="/var/tmp") as folder:
        sweep = write_sweep(Path(folder), SWEEP)
        (Path(folder) / "case").mkdir()
        arguments = []
        for argument in case.arguments:
            argument = argument.replace("FOLDER", f"{folder}/case").replace("SWEEP", sweep)
            arguments.append(argument)
        # The case checks a new folder for temporary files. The folder ends with the namespace.
        new_tmp = 'mount -t tmpfs -o mode=1777 none /tmp && exec "$@"'
        module = (sys.executable, "-m", f"tests.integration.{case.module}", *arguments)
        process = subprocess.run(
            isolated("sh", "-c", new_tmp, "sh", *module),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            env=environment(os.urandom(32).hex()),
        )
    try:
        start_of_json = process.stdout.index("{")  # the document has one line or many
        return case.judge(json.loads(process.stdout[start_of_json:]))
    except ValueError:
        return {"holds": False, "ended": process.returncode, "said": process.stderr[-3000:]}


TABLE_FIGURES = {
    "trials": "{} trials",
    "runs": "{} runs",
    "kills": "{} kills",
    "times_undisturbed": "{} times the undisturbed sweep",
    "sweep_s": "sweep {} s",
    "undisturbed_s": "undisturbed sweep {} s",
    "done_at_pause": "paused after {} trials",
    "done_at_stop": "unreachable after {} trials",
}
"""Results of a case that the table of docs/fault-tests.md shows, as text of their number."""


def table(verdicts: Document) -> str:
    """Return the cases as the Markdown table of docs/fault-tests.md."""
    rows = ["| case | passed | result |", "|---|---|---|"]
    for name in CASES:
        verdict = verdicts.get(name)
        if verdict is None:
            rows.append(f"| {name} | not run | |")
            continue
        figures = [
            text.format(verdict[key]) for key, text in TABLE_FIGURES.items() if key in verdict
        ]
        faults = verdict.get("faults", {})
        if isinstance(faults, dict):
            figures += [f"{number} times: {fault}" for fault, number in faults.items()]
        holds = "yes" if verdict["holds"] else "**no**"
        rows.append(f"| {name} | {holds} | {', '.join(figures)} |")
    return "\n".join(rows) + "\n"


def main() -> int:
    """Run the requested cases, and write the verdict on each as soon as it has ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", action="store_true", help="run nothing; print what --out holds")
    arguments = parser.parse_args()
    verdicts = {}
    if arguments.out.exists():
        verdicts = json.loads(arguments.out.read_text(encoding="utf-8"))
    if arguments.table:
        print(table(verdicts), end="")
        return 0
    run_verdicts = {}
    for name in arguments.cases:
        started = time.monotonic()
        load = os.getloadavg()[0]
        verdict = run_case(CASES[name])
        run_verdicts[name] = verdict
        circumstances = {
            "date": time.strftime("%F %H:%M"),
            "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        }
        verdicts[name] = {**verdict, **circumstances, "seconds": round(time.monotonic() - started)}
        print(json.dumps({name: verdicts[name]}), flush=True)
        write(arguments.out, verdicts)
    return int(not all(verdict["holds"] for verdict in run_verdicts.values()))


def write(out: Path, verdicts: Document) -> None:
    """Write all verdicts in the order of the cases, with the machine and the versions."""
    versions = {name: metadata.version(name) for name in ("ray", "mlflow", "torch")}
    machine = {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    cases = {name: verdicts[name] for name in CASES if name in verdicts}
    document = {"environment": {**machine, **versions}, **cases}
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
