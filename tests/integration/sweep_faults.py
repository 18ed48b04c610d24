"""Sweeps of the command whose driver or storage fails, compared with an undisturbed sweep.

``killed_driver``: SIGKILL to the driver at seeded moments. ``store_away``: results, weights and
predictions go to an object store that is away for a while in the middle. The script runs inside
namespaces and prints one JSON object. Its ``equal`` is true if every number, weight and prediction
equals that of the undisturbed sweep to the bit.

    unshare ... python -m tests.integration.sweep_faults CASE FOLDER
"""

from __future__ import annotations

import json
import os
import posixpath
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from orchestrator.machine.locks import LEASE_FILE as LEASE
from orchestrator.results.records import TrialRecord
from orchestrator.results.storage import StoredFile
from orchestrator.results.store import ResultStore
from tests.integration.sweeps import SWEEP, command, mlflow_runs, stored, write_sweep
from tests.object_store import object_store

LONG = SWEEP.replace("[0, 1, 2]", "[0, 1, 2, 3, 4]")
LONG = LONG.replace("recipe: smoke", "recipe: {from: smoke, epochs: 60}\npredictions: true")
LONGER = LONG.replace("[0, 1, 2, 3, 4]", "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]")
NOT_REPRODUCIBLE = ("seconds", "timings", "peak_memory_bytes", "energy_j")
"""Keys of a result whose values differ from run to run."""
TIMEOUT_S = 600.0
"""Seconds that a sweep may take, and that its processes may take to end."""


def start(sweep: str, root: Path, *options: str) -> subprocess.Popen[str]:
    """Start the driver."""
    log = (root.parent / f"{root.name}.log").open("a", encoding="utf-8")
    arguments = command("run", sweep, "--root", str(root), "--no-dashboard", *options)
    return subprocess.Popen(arguments, stdout=log, stderr=log, text=True)


def reproducible_part(result: Any) -> Any:
    """Return the part of a result that is equal in every run."""
    if isinstance(result, dict):
        return {
            key: reproducible_part(value)
            for key, value in result.items()
            if key not in NOT_REPRODUCIBLE
        }
    return [reproducible_part(value) for value in result] if isinstance(result, list) else result


def run_undisturbed(sweep: str, root: Path) -> tuple[dict[str, Any], float]:
    """Run the sweep without faults. Return its results by trial, and its seconds."""
    started = time.monotonic()
    if start(sweep, root).wait(TIMEOUT_S) != 0:
        raise RuntimeError((root.parent / f"{root.name}.log").read_text(encoding="utf-8")[-3000:])
    return {
        trial_id: reproducible_part(record["result"]) for trial_id, record in stored(root).items()
    }, time.monotonic() - started


def remaining_parts() -> list[str]:
    """Return processes, ports and folders of the sweep that remain some time after its end."""
    deadline = time.monotonic() + TIMEOUT_S
    remaining = ["?"]
    while remaining and time.monotonic() < deadline:
        # `attrs` makes psutil skip a process that ends in the meantime.
        processes = (
            item for item in psutil.process_iter(["cmdline"]) if item.pid not in (os.getpid(), 1)
        )
        lines = [" ".join(item.info["cmdline"] or ()) for item in processes]
        remaining = [
            line[:80] for line in lines if "ray" in line or "isweep" in line or "mlflow" in line
        ]
        remaining += [
            f"port {connection.laddr.port}"
            for connection in psutil.net_connections()
            if connection.status == psutil.CONN_LISTEN
        ]
        remaining += [
            item.name for item in Path(tempfile.gettempdir()).iterdir() if "ray" in item.name
        ]
        time.sleep(1)
    return remaining


def tracked(root: Path, trial_ids: set[str]) -> dict[str, Any]:
    """Return the number of MLflow runs by status, and whether each trial has exactly one run."""
    runs = mlflow_runs(root)
    trials = runs[runs["tags.kind"] == "trial"]
    one_each = sorted(trials["tags.trial_id"]) == sorted(trial_ids)
    return {"statuses": runs["status"].value_counts().to_dict(), "one_each": one_each}


def killed_driver(folder: Path, kills: int = 20) -> dict[str, Any]:
    """Kill the driver at seeded moments, and run the same command again each time.

    If a sweep is done before the last kill, the next command gets a new root.
    """
    sweep = write_sweep(folder, LONG)
    random_moments = random.Random(13)
    expected, seconds = run_undisturbed(sweep, folder / "undisturbed")
    history = list[Any]()
    roots = [folder / "root-1"]
    trained_again = 0
    while len(history) < kills or not _done(roots[-1], expected):
        root = roots[-1]
        before = {trial_id: record["started_at"] for trial_id, record in stored(root).items()}
        # Moments lie between the start of Python and the end of an undisturbed sweep's report.
        moment = random_moments.uniform(0, seconds) if len(history) < kills else None
        driver = start(sweep, root)
        try:
            code = driver.wait(moment or TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.kill(driver.pid, signal.SIGKILL)
            code = driver.wait()
            history.append([round(moment or 0, 1), len(stored(root)) if root.is_dir() else 0])
        after = {trial_id: record["started_at"] for trial_id, record in stored(root).items()}
        trained_again += sum(
            after.get(trial_id) != started_at for trial_id, started_at in before.items()
        )
        if code == 0 and len(history) < kills:
            roots.append(folder / f"root-{len(roots) + 1}")
        elif code not in (0, -signal.SIGKILL):
            raise RuntimeError(
                (root.parent / f"{root.name}.log").read_text(encoding="utf-8")[-3000:]
            )
    results_by_root = [
        {name: reproducible_part(record["result"]) for name, record in stored(root).items()}
        for root in roots
    ]
    return {
        "trials": len(expected),
        "equal": all(results == expected for results in results_by_root),
        "history": history,
        "sweeps": len(roots),
        "trained_again": trained_again,
        "undisturbed_s": round(seconds, 1),
        "mlflow": [tracked(root, set(expected)) for root in roots],
        "left": remaining_parts(),
    }


def _done(root: Path, expected: dict[str, Any]) -> bool:
    report = root / "sweeps" / "small" / "report" / "report.html"
    return report.is_file() and stored(root).keys() == expected.keys()


def store_away(folder: Path, seconds: float = 30.0) -> dict[str, Any]:
    """Stop the object store for ``seconds`` while trials end and store weights and predictions."""
    sweep = write_sweep(folder, LONGER)
    expected, _ = run_undisturbed(sweep, folder / "undisturbed")
    with object_store() as bucket:
        root = folder / "root"
        store = ResultStore(f"{bucket.url}/small")
        driver = start(sweep, root, "--storage", bucket.url)
        before_stop: dict[str, Any] = {}
        while driver.poll() is None and len(before_stop) < 5:
            time.sleep(0.5)
            before_stop = store.listing(TrialRecord)
        bucket.stop()
        time.sleep(seconds)
        alive = driver.poll() is None
        bucket.start()
        after_return = store.listing(TrialRecord)
        code = driver.wait(TIMEOUT_S)
        results = {
            name: reproducible_part(record.plain()["result"])
            for name, record in store.scan(TrialRecord).records.items()
        }
        lease = StoredFile(posixpath.join(store._files.base, LEASE), "")
        leases = [results.path for results, _ in store._files.read_many([lease])]
    log = (folder / "root.log").read_text(encoding="utf-8")
    return {
        "trials": len(expected),
        "equal": results == expected,
        "done_at_stop": len(before_stop),
        "done_when_back": len(after_return),
        "alive": alive,
        "exit": code,
        "paused": "Paused: s3://" in log or "The storage does not answer: s3://" in log,
        "traceback": "Traceback" in log,
        "mlflow": [tracked(root, set(expected))],
        "left": [*remaining_parts(), *leases],
    }


CASES = {"killed_driver": killed_driver, "store_away": store_away}

if __name__ == "__main__":
    print(
        json.dumps(
            CASES[sys.argv[1]](Path(sys.argv[2]), **json.loads("".join(sys.argv[3:]) or "{}"))
        )
    )
