"""Scratch folders of measures."""

import fcntl
import os
import subprocess
import sys
from contextlib import suppress

from orchestrator.measuring.scratch import scratch_folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_scratch_folder_and_its_parts_are_removed_when_the_measure_ends(tmp_path):
    with suppress(KeyboardInterrupt), scratch_folder(tmp_path) as folder:
        folder.mkdir()
        (tmp_path / f".{folder.name}.parts").mkdir()
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_what_a_killed_measure_left_is_removed_by_the_next_one(tmp_path):
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
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f"..measure-{ended.pid}.parts").mkdir()  # as earlier versions named them
    (tmp_path / f"..measure-{os.getpid()}.parts").mkdir()
    (tmp_path / "digits-1").mkdir()
    assert len(names(tmp_path)) == 6
    with scratch_folder(tmp_path):
        pass
    assert names(tmp_path) == [f"..measure-{os.getpid()}.parts", "digits-1"]


def test_the_folder_of_a_measure_that_still_runs_stays(tmp_path):
    running = tmp_path / ".measure-x1"
    running.mkdir()
    with (tmp_path / ".measure-x1.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with scratch_folder(tmp_path):
            pass
        assert names(tmp_path) == [".measure-x1", ".measure-x1.lock"]
