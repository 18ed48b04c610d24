"""A run removes what a killed run left, but nothing of a live run or another program."""

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.machine import ray_folders
from orchestrator.machine.ray_folders import (
    PREFIX,
    parent_folder,
    private_folder,
    remove_abandoned_folders,
)

RUN_SCRIPT = """
import os, pathlib, sys, time
from orchestrator.machine import ray_folders
ray_folders.SHORT_PARENT = pathlib.Path(os.environ["TMPDIR"])
with ray_folders.private_folder() as folder:
    print(folder, flush=True)
    time.sleep(3600)
"""

IDLE_SCRIPT = "import time; print(flush=True); time.sleep(3600)"


@pytest.fixture
def temp_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(ray_folders, "SHORT_PARENT", tmp_path)
    return tmp_path


def start_process_of(folder: Path, title: str = "") -> subprocess.Popen[bytes]:
    """Start a process whose command line contains the folder, as those of Ray do.

    With a title, its command line starts with the title and its log is in the folder."""
    folder.mkdir(exist_ok=True)
    command = (
        [title, "-c", IDLE_SCRIPT]
        if title
        else [sys.executable, "-c", IDLE_SCRIPT, f"{folder}/session"]
    )
    with open(folder / "worker.out" if title else os.devnull, "wb") as log:
        process = subprocess.Popen(
            command, executable=sys.executable, stdout=subprocess.PIPE, stderr=log
        )
    assert process.stdout is not None
    process.stdout.readline()  # a process that is still being started shows no command line
    return process


def test_a_long_path_of_the_temporary_folder_is_replaced_by_tmp(monkeypatch):
    longest_socket = (
        f"/{PREFIX}abcdefgh/r/session_2026-12-03_09-19-15_638147_{os.getpid()}/sockets/"
        "dash_MetricsHead"
    )
    for length in range(4, 40):
        temporary = "/" + (length - 1) * "t"
        monkeypatch.setattr("tempfile.tempdir", temporary)
        fits = len(temporary + longest_socket) <= ray_folders.MAX_SOCKET_PATH
        assert parent_folder() == Path(temporary if fits else "/tmp")


def test_folders_of_a_live_run_and_of_another_program_stay(temp_folder):
    (temp_folder / "isweep-ray-of-another-program").mkdir()
    with private_folder() as folder:
        assert remove_abandoned_folders() == 0
        assert Path(folder).exists()
        assert stat.S_IMODE(Path(folder).parent.stat().st_mode) == 0o700  # for this user alone
    assert (temp_folder / "isweep-ray-of-another-program").exists()


def test_folders_and_processes_of_a_killed_run_are_removed(temp_folder):
    run = subprocess.Popen(
        [sys.executable, "-c", RUN_SCRIPT],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temp_folder)},
    )
    assert run.stdout is not None
    folder = Path(run.stdout.readline().strip())
    process = start_process_of(folder)
    assert remove_abandoned_folders() == 0
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert folder.exists()
    assert remove_abandoned_folders() == 1
    assert not folder.parent.exists()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("num_removals", range(5))
def test_a_removal_that_was_interrupted_is_completed_by_the_next_run(
    temp_folder, monkeypatch, num_removals
):
    folder = temp_folder / "isweep-ray-killed"
    for part in ("mps", "r"):
        (folder / part).mkdir(parents=True)
        (folder / part / "log").touch()
    (folder / "owner").touch()
    steps = iter(range(num_removals))

    def interrupted(remove):
        def remove_or_stop(*arguments, **options):
            if next(steps, None) is None:
                raise KeyboardInterrupt
            remove(*arguments, **options)

        return remove_or_stop

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", interrupted(os.unlink))
        patch.setattr(os, "rmdir", interrupted(os.rmdir))
        with pytest.raises(KeyboardInterrupt, match=r"^$"):
            remove_abandoned_folders()
    assert remove_abandoned_folders() == 1
    assert not folder.exists()


def test_a_worker_whose_command_line_is_only_a_title_is_found_by_its_log(temp_folder, tmp_path):
    with private_folder() as folder:
        worker = start_process_of(Path(folder), "ray::IsweepArtifacts")
        other_process = start_process_of(Path(folder))
        foreign_worker = start_process_of(tmp_path / "elsewhere", "ray::IsweepArtifacts")
        log_reader = start_process_of(Path(folder), "a reader of the log")
    for process in (worker, other_process):  # they would make the folder again
        assert process.wait() == -signal.SIGKILL
    assert not Path(folder).parent.exists()
    for process in (foreign_worker, log_reader):
        assert process.poll() is None
        process.kill()
        process.wait()


def test_a_worker_that_starts_during_the_search_is_killed_too(temp_folder, monkeypatch):
    kill = os.kill
    late_workers = []

    def start_worker_and_kill(process_id, number):
        if not late_workers:  # a raylet may start a worker until it is dead
            late_workers.append(start_process_of(Path(folder)))
        kill(process_id, number)

    with private_folder() as folder:
        raylet = start_process_of(Path(folder))
        monkeypatch.setattr(os, "kill", start_worker_and_kill)
    for process in (raylet, *late_workers):
        assert process.wait(timeout=10) == -signal.SIGKILL
    assert len(late_workers) == 1
    assert not Path(folder).parent.exists()


@pytest.fixture
def default_ctrl_c():
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("default_ctrl_c")
def test_a_second_ctrl_c_does_not_interrupt_the_removal(temp_folder, monkeypatch):
    remove_tree = shutil.rmtree

    def press_ctrl_c_and_remove(path, **options):
        signal.raise_signal(signal.SIGINT)
        remove_tree(path, **options)

    stack = contextlib.ExitStack()
    folder = Path(stack.enter_context(private_folder()))
    monkeypatch.setattr(shutil, "rmtree", press_ctrl_c_and_remove)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        stack.close()
    assert not folder.exists()
    assert not list(temp_folder.iterdir())
