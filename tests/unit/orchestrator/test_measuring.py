"""Temporary folders of measurements."""

import fcntl
import os
import subprocess
import sys
from contextlib import suppress

from orchestrator.measuring.scratch import scratch_folder


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_scratch_folder_and_its_parts_are_removed_at_the_end(tmp_path):
    with suppress(KeyboardInterrupt), scratch_folder(tmp_path) as folder:
        folder.mkdir()
        (tmp_path / f".{folder.name}.parts").mkdir()
        raise KeyboardInterrupt
    assert names_in(tmp_path) == []


def test_the_next_measurement_removes_what_a_killed_one_left(tmp_path):
    script = f"""
import os, signal
from pathlib import Path
from orchestrator.measuring.scratch import scratch_folder
with scratch_folder(Path({str(tmp_path)!r})) as folder:
    folder.mkdir()
    (folder.parent / f".{{folder.name}}.parts").mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    ended_process = subprocess.Popen([sys.executable, "-c", ""])
    ended_process.wait()
    (tmp_path / f"..measure-{ended_process.pid}.parts").mkdir()  # as earlier versions named them
    (tmp_path / f"..measure-{os.getpid()}.parts").mkdir()
    (tmp_path / "digits-1").mkdir()
    assert len(names_in(tmp_path)) == 6
    with scratch_folder(tmp_path):
        pass
    assert names_in(tmp_path) == [f"..measure-{os.getpid()}.parts", "digits-1"]


def test_the_folder_of_a_running_measurement_stays(tmp_path):
    running = tmp_path / ".measure-x1"
    running.mkdir()
    with (tmp_path / ".measure-x1.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with scratch_folder(tmp_path):
            pass
        assert names_in(tmp_path) == [".measure-x1", ".measure-x1.lock"]
