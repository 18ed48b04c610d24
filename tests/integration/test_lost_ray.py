"""The run ends with exit code 3 if a process of the driver's private cluster dies or stops.

The last message says how to continue, and no process or file remains.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from tests.isolation import AVAILABLE, isolated

SWEEP = """
name: lost
models: [small_mlp]
datasets: [manifold_d4]
train_sizes: [40, 60]
seeds: [0, 1, 2]
test_size: 20
image_size: 16
recipe: {from: smoke, epochs: 20000}
keep_weights: none
"""


def running_trials(root: Path) -> dict[str, object]:
    try:
        running: dict[str, object] = json.loads((root / "sweeps/lost/progress.json").read_text())[
            "running"
        ]
    except (OSError, ValueError):
        return {}
    return running


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("victim", "message", "sent_signal"),
    [
        ("gcs_server", "The head", signal.SIGKILL),
        ("gcs_server", "The head", signal.SIGSTOP),
        ("raylet", "The raylet", signal.SIGKILL),
        ("raylet", "The raylet", signal.SIGSTOP),
    ],
)
def test_a_lost_process_of_ray_ends_the_run_with_a_hint_and_leaves_nothing(
    tmp_path, victim, message, sent_signal
):
    root = tmp_path / "root"
    sweep = tmp_path / "lost.yaml"
    # A short path: Ray's sockets lie below it, and the path of a socket has at most 107 characters.
    scratch = Path(tempfile.mkdtemp(prefix="lost-", dir="/tmp"))
    sweep.write_text(SWEEP)
    command = [sys.executable, "-m", "orchestrator.cli", "run", str(sweep), "--root", str(root)]
    if AVAILABLE:
        # A child of process 1, as behind `nohup` or in a container: Ray takes it for an orphan.
        command = isolated("sh", "-c", '"$@"; exit $?', "sh", *command)
    driver = subprocess.Popen(
        [*command, "--no-tracking", "--no-dashboard", "--num-cpus", "2"],
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        while not running_trials(root) and driver.poll() is None:
            time.sleep(0.5)
        assert driver.poll() is None, driver.communicate()[0]
        processes = psutil.Process(driver.pid).children(recursive=True)
        (victim_process,) = [process for process in processes if process.name() == victim]
        os.kill(victim_process.pid, sent_signal)
        output, _ = driver.communicate()
    finally:
        driver.kill()
    assert driver.returncode == 3, output
    last_line = output.strip().splitlines()[-1]
    assert message in output
    assert "Run the same command again" in last_line
    assert "Traceback" not in output
    _, alive = psutil.wait_procs(processes, timeout=400)
    assert not alive
    assert list(scratch.iterdir()) == []
    scratch.rmdir()
    assert not (root / "ray-token").exists()
