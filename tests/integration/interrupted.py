"""Stop a sweep by signals, then let it finish; run inside namespaces.

The script prints one JSON object: the exit code of each run and the results stored after it.
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
    sweep: str, root: Path, cpus: str, *, num_results: int | None = None, sent_signal: int = 0
) -> dict[str, Any]:
    """Run the sweep until it has ``num_results`` results, then send it a signal.

    If ``num_results`` is None, the sweep runs to its end.
    """
    started = time.time()
    driver = subprocess.Popen(
        command("run", sweep, "--root", str(root), "--num-cpus", cpus, "--no-dashboard"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    if num_results is not None:
        results = root / "sweeps" / "small" / "trials"
        while driver.poll() is None and len([*results.glob("*/result.json")]) < num_results:
            time.sleep(0.01)
        os.kill(driver.pid, sent_signal)
        sent_at = time.time()
    stdout, stderr = driver.communicate()
    return {
        "exit": driver.returncode,
        "stdout": stdout,
        "stderr": stderr,
        "seconds_to_stop": time.time() - sent_at if num_results is not None else None,
        "started_at": started,
        "results": {key: record["started_at"] for key, record in stored(root).items()},
    }


def main(sweep: str, folder: str, cpus: str, *names: str) -> None:
    """Stop the sweep by each of the named signals, each after more results, then let it finish."""
    root = Path(folder)
    phases = {}
    for number, name in enumerate(names):
        phases[name] = run(
            sweep, root, cpus, num_results=2 + 4 * number, sent_signal=signal.Signals[name]
        )
    phases["finished"] = run(sweep, root, cpus)
    print(json.dumps(phases))


if __name__ == "__main__":
    main(*sys.argv[1:])
