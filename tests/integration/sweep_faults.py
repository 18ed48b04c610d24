"""Whole sweeps of the command as a user runs it, beside an undisturbed one; run inside namespaces
of its own.

``killed_driver``: SIGKILL to the driver at seeded moments. ``store_away``: results, weights and
predictions go to an object store that is away for a while in the middle. Prints one JSON object,
whose ``equal`` says whether every number, weight and prediction is that of the undisturbed sweep,
to the bit.

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
CLOCKED = ("seconds", "timings", "peak_memory_bytes", "energy_j")
"""Of a result, what no two runs have in common."""
PATIENCE_S = 600.0


def start(sweep: str, root: Path, *more: str) -> subprocess.Popen[str]:
    """Start the driver."""
    log = (root.parent / f"{root.name}.log").open("a", encoding="utf-8")
    words = command("run", sweep, "--root", str(root), "--no-dashboard", *more)
    return subprocess.Popen(words, stdout=log, stderr=log, text=True)


def numbers(result: Any) -> Any:
    """Return a result without what a clock told."""
    if isinstance(result, dict):
        return {key: numbers(value) for key, value in result.items() if key not in CLOCKED}
    return [numbers(value) for value in result] if isinstance(result, list) else result


def undisturbed(sweep: str, root: Path) -> tuple[dict[str, Any], float]:
    """Run the sweep; returns its results by trial, and seconds."""
    began = time.monotonic()
    if start(sweep, root).wait(PATIENCE_S) != 0:
        raise RuntimeError((root.parent / f"{root.name}.log").read_text(encoding="utf-8")[-3000:])
    return {
        trial_id: numbers(r["result"]) for trial_id, r in stored(root).items()
    }, time.monotonic() - began


def left_over() -> list[str]:
    """Return processes, ports and folders that are still there, a while after all has ended."""
    end, found = time.monotonic() + PATIENCE_S, ["?"]
    while found and time.monotonic() < end:
        # Asked for this way, what ends in the meantime is passed over.
        others = (p for p in psutil.process_iter(["cmdline"]) if p.pid not in (os.getpid(), 1))
        lines = [" ".join(p.info["cmdline"] or ()) for p in others]
        found = [
            line[:80] for line in lines if "ray" in line or "isweep" in line or "mlflow" in line
        ]
        found += [
            f"port {c.laddr.port}"
            for c in psutil.net_connections()
            if c.status == psutil.CONN_LISTEN
        ]
        found += [p.name for p in Path(tempfile.gettempdir()).iterdir() if "ray" in p.name]
        time.sleep(1)
    return found


def tracked(root: Path, trial_ids: set[str]) -> dict[str, Any]:
    """Return what MLflow shows: runs by state, and whether each trial has one that counts."""
    runs = mlflow_runs(root)
    trials = runs[runs["tags.kind"] == "trial"]
    one_each = sorted(trials["tags.trial_id"]) == sorted(trial_ids)
    return {"statuses": runs["status"].value_counts().to_dict(), "one_each": one_each}


def killed_driver(folder: Path, kills: int = 20) -> dict[str, Any]:
    """SIGKILL at seeded moments, each time the same command again; a new root when a sweep is done
    before."""
    sweep, chance = write_sweep(folder, LONG), random.Random(13)
    expected, seconds = undisturbed(sweep, folder / "undisturbed")
    history, roots, trained_again = list[Any](), [folder / "root-1"], 0
    while len(history) < kills or not _done(roots[-1], expected):
        root = roots[-1]
        before = {trial_id: record["started_at"] for trial_id, record in stored(root).items()}
        # From the start of Python to the end of the report; what is left takes less each time.
        moment = chance.uniform(0, seconds) if len(history) < kills else None
        driver = start(sweep, root)
        try:
            code = driver.wait(moment or PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.kill(driver.pid, signal.SIGKILL)
            code = driver.wait()
            history.append([round(moment or 0, 1), len(stored(root)) if root.is_dir() else 0])
        after = {trial_id: record["started_at"] for trial_id, record in stored(root).items()}
        trained_again += sum(after.get(trial_id) != then for trial_id, then in before.items())
        if code == 0 and len(history) < kills:
            roots.append(folder / f"root-{len(roots) + 1}")
        elif code not in (0, -signal.SIGKILL):
            raise RuntimeError(
                (root.parent / f"{root.name}.log").read_text(encoding="utf-8")[-3000:]
            )
    found = [{c: numbers(r["result"]) for c, r in stored(root).items()} for root in roots]
    return {
        "trials": len(expected),
        "equal": all(results == expected for results in found),
        "history": history,
        "sweeps": len(roots),
        "trained_again": trained_again,
        "undisturbed_s": round(seconds, 1),
        "mlflow": [tracked(root, set(expected)) for root in roots],
        "left": left_over(),
    }


def _done(root: Path, expected: dict[str, Any]) -> bool:
    report = root / "sweeps" / "small" / "report" / "report.html"
    return report.is_file() and stored(root).keys() == expected.keys()


def store_away(folder: Path, seconds: float = 30.0) -> dict[str, Any]:
    """The object store does not answer for ``seconds`` while trials end, weights and predictions
    included."""
    sweep = write_sweep(folder, LONGER)
    expected, _ = undisturbed(sweep, folder / "undisturbed")
    with object_store() as bucket:
        root, store = folder / "root", ResultStore(f"{bucket.url}/small")
        driver = start(sweep, root, "--storage", bucket.url)
        at_stop: dict[str, Any] = {}
        while driver.poll() is None and len(at_stop) < 5:
            time.sleep(0.5)
            at_stop = store.listing(TrialRecord)
        bucket.stop()
        time.sleep(seconds)
        alive = driver.poll() is None
        bucket.start()
        again = store.listing(TrialRecord)
        code = driver.wait(PATIENCE_S)
        found = {
            name: numbers(r.plain()["result"])
            for name, r in store.scan(TrialRecord).records.items()
        }
        lease = StoredFile(posixpath.join(store._files.base, LEASE), "")
        leases = [found.path for found, _ in store._files.read_many([lease])]
    log = (folder / "root.log").read_text(encoding="utf-8")
    return {
        "trials": len(expected),
        "equal": found == expected,
        "done_at_stop": len(at_stop),
        "done_when_back": len(again),
        "alive": alive,
        "exit": code,
        "paused": "Paused: s3://" in log or "The storage does not answer: s3://" in log,
        "traceback": "Traceback" in log,
        "mlflow": [tracked(root, set(expected))],
        "left": [*left_over(), *leases],
    }


CASES = {"killed_driver": killed_driver, "store_away": store_away}

if __name__ == "__main__":
    print(
        json.dumps(
            CASES[sys.argv[1]](Path(sys.argv[2]), **json.loads("".join(sys.argv[3:]) or "{}"))
        )
    )
