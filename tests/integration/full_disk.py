"""Fill the disk under a running sweep and free it again; run inside namespaces.

The root is a small file system in memory. The script prints one JSON object: the sweep's output,
and the number of results before, during and after the pause."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.integration.sweeps import command, stored


def fill(path: Path) -> None:
    """Write a file that takes all free space of its disk."""
    with path.open("wb", buffering=0) as file:
        try:
            for size in (2**20, 2**12, 1):
                while file.write(bytes(size)) == size:
                    pass
        except OSError:
            return


def wait_for(lines: list[str], word: str) -> None:
    """Wait until a line with ``word`` was printed."""
    while not any(word in line for line in lines):
        time.sleep(0.05)


def main(sweep: str, root: Path) -> dict[str, Any]:
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(root)], check=True)
    driver = subprocess.Popen(
        command("run", sweep, "--root", str(root), "--no-dashboard"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(driver.stderr or ()))
    reader.start()
    while driver.poll() is None and len(stored(root)) < 3:
        time.sleep(0.01)
    fill(root / "ballast")
    wait_for(lines, "Paused")
    num_at_pause = len(stored(root))
    time.sleep(4)
    outcome = {"alive": driver.poll() is None, "at_pause": num_at_pause, "still": len(stored(root))}
    (root / "ballast").unlink()
    driver.wait()
    reader.join()
    end_state = {
        "exit": driver.returncode,
        "stderr": "".join(lines),
        "results": sorted(stored(root)),
    }
    runs = subprocess.run(
        [sys.executable, "-c", RUNS, f"sqlite:///{root}/mlflow.db"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {**outcome, **end_state, "runs": json.loads(runs.stdout.splitlines()[-1])}


RUNS = """
import json, sys
from collections import Counter
from mlflow.tracking import MlflowClient
client = MlflowClient(sys.argv[1])
experiment = client.get_experiment_by_name("isweep/small").experiment_id
print(json.dumps(Counter(run.info.status for run in client.search_runs([experiment], max_results=1000))))
"""

if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
