"""A process of the driver's own cluster dies or stops: exit 3 with the way on, and nothing is
left."""

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
        found: dict[str, object] = json.loads((root / "sweeps/lost/progress.json").read_text())[
            "running"
        ]
    except (OSError, ValueError):
        return {}
    return found


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("victim", "told", "sent"),
    [
        ("gcs_server", "The head", signal.SIGKILL),
        ("gcs_server", "The head", signal.SIGSTOP),
        ("raylet", "The raylet", signal.SIGKILL),
        ("raylet", "The raylet", signal.SIGSTOP),
    ],
)
def test_a_lost_process_of_ray_ends_the_run_with_the_way_on_and_leaves_nothing(
    tmp_path, victim, told, sent
):
    root, sweep = tmp_path / "root", tmp_path / "lost.yaml"
    scratch = Path(tempfile.mkdtemp(prefix="lost-", dir="/tmp"))  # short: sockets lie below it
    sweep.write_text(SWEEP)
    command = [sys.executable, "-m", "orchestrator.cli", "run", str(sweep), "--root", str(root)]
    if (
        AVAILABLE
    ):  # a child of process 1, as behind `nohup` or in a container: Ray takes it for an orphan
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
        family = psutil.Process(driver.pid).children(recursive=True)
        (lost,) = [one for one in family if one.name() == victim]
        os.kill(lost.pid, sent)
        out, _ = driver.communicate()
    finally:
        driver.kill()
    assert driver.returncode == 3, out
    last = out.strip().splitlines()[-1]
    assert told in out
    assert "Run the same command again" in last
    assert "Traceback" not in out
    _, alive = psutil.wait_procs(family, timeout=400)
    assert not alive
    assert list(scratch.iterdir()) == []
    scratch.rmdir()
    assert not (root / "ray-token").exists()
