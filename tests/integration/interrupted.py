"""Stops a sweep by signals, then lets it finish; run inside namespaces of its own.

Prints one JSON object: the exit code of each run and what was stored after it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.integration.sweeps import command, stored


def run(
    sweep: str, root: Path, cpus: str, *, until: int | None = None, send: int = 0
) -> dict[str, Any]:
    """Run until ``until`` results exist, then send ``send`` to the recorded process; None lets it
    end."""
    started = time.time()
    driver = subprocess.Popen(
        command("run", sweep, "--root", str(root), "--num-cpus", cpus, "--no-dashboard"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    if until is not None:
        results = root / "sweeps" / "small" / "trials"
        while driver.poll() is None and len([*results.glob("*/result.json")]) < until:
            time.sleep(0.01)
        os.kill(driver.pid, send)
        sent = time.time()
    out, err = driver.communicate()
    return {
        "exit": driver.returncode,
        "stdout": out,
        "stderr": err,
        "seconds_to_stop": time.time() - sent if until is not None else None,
        "started_at": started,
        "results": {key: record["started_at"] for key, record in stored(root).items()},
    }


def main(sweep: str, folder: str, cpus: str, *names: str) -> None:
    """Stop it by each of the named signals when so many results more are there, then let it
    finish."""
    root, phases = Path(folder), {}
    for number, name in enumerate(names):
        phases[name] = run(sweep, root, cpus, until=2 + 4 * number, send=signal.Signals[name])
    phases["finished"] = run(sweep, root, cpus)
    print(json.dumps(phases))


if __name__ == "__main__":
    main(*sys.argv[1:])
