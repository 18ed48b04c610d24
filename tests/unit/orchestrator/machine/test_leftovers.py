"""What a killed run left is removed by the next; what a live one uses, or another program made, is
not."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.machine.ray_folders import private_folder, remove_leftovers

HOLD = """
import sys, time
from orchestrator.machine.ray_folders import private_folder
with private_folder() as folder:
    print(folder, flush=True)
    time.sleep(3600)
"""

IDLE = "import time; print(flush=True); time.sleep(3600)"


@pytest.fixture
def base(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def process_of(folder: Path, title: str = "") -> subprocess.Popen[bytes]:
    """Start what names the folder in its command line as Ray's processes do, or a title and its log
    there."""
    folder.mkdir(exist_ok=True)
    words = [title, "-c", IDLE] if title else [sys.executable, "-c", IDLE, f"{folder}/session"]
    with open(folder / "worker.out" if title else os.devnull, "wb") as out:
        idle = subprocess.Popen(
            words, executable=sys.executable, stdout=subprocess.PIPE, stderr=out
        )
    assert idle.stdout is not None
    idle.stdout.readline()  # a process that is still being started shows no command line
    return idle


def test_a_live_runs_folder_and_anothers_are_left_alone(base):
    (base / "isweep-ray-of-another-program").mkdir()
    with private_folder() as folder:
        assert remove_leftovers() == 0
        assert Path(folder).exists()
        assert stat.S_IMODE(Path(folder).parent.stat().st_mode) == 0o700  # for this user alone
    assert (base / "isweep-ray-of-another-program").exists()


def test_what_a_killed_run_left_is_removed_with_its_processes(base):
    run = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(base)},
    )
    assert run.stdout is not None
    folder = Path(run.stdout.readline().strip())
    idle = process_of(folder)
    assert remove_leftovers() == 0
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert folder.exists()
    assert remove_leftovers() == 1
    assert not folder.parent.exists()
    assert idle.wait() == -signal.SIGKILL


def test_a_worker_that_wrote_its_title_over_its_command_line_is_found_by_its_log(base, tmp_path):
    with private_folder() as folder:
        worker, named = process_of(Path(folder), "ray::IsweepKeeper"), process_of(Path(folder))
        anothers = process_of(tmp_path / "elsewhere", "ray::IsweepKeeper")
        reader = process_of(Path(folder), "a reader of the log")
    for ended in (worker, named):  # they would make the folder again
        assert ended.wait() == -signal.SIGKILL
    assert not Path(folder).parent.exists()
    for spared in (anothers, reader):
        assert spared.poll() is None
        spared.kill()
        spared.wait()
