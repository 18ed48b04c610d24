"""The checks before Ray starts name what is missing, instead of a start that waits for minutes."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import sys
from collections import namedtuple

import pytest

from orchestrator.machine.ray_folders import parent_folder
from orchestrator.machine.ray_requirements import check_ray_requirements
from search_spaces.errors import SetupError

CHECK = "from orchestrator.machine import ray_requirements as r; r.check_ray_requirements()"


def test_this_machine_meets_the_requirements():
    check_ray_requirements()


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("-n 64", "64 open files (ulimit -n), but Ray needs 128. Raise the limit with `ulimit -n`"),
        ("-v 8000000", "8,192,000,000 bytes of address space (ulimit -v), but Ray needs 17,179"),
        ("-f 2000", "2,048,000 bytes in a file (ulimit -f), but Ray needs"),
    ],
)
def test_a_limit_under_which_ray_does_not_start_is_named(limit, message):
    command = f"ulimit {limit}; exec {sys.executable} -c '{CHECK}'"
    process = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert f"SetupError: This process may have at most {message}" in process.stderr


def test_a_limit_of_processes_is_named_except_for_root(monkeypatch):
    limits = {resource.RLIMIT_NPROC: (512, 512)}
    of_process = resource.getrlimit
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits.get(kind) or of_process(kind))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    check_ray_requirements()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    message = r"may have at most 512 processes and threads \(ulimit -u\), but Ray needs 600"
    with pytest.raises(SetupError, match=message):
        check_ray_requirements()


def test_a_full_temporary_folder_is_named(monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10 * 2**20))
    with pytest.raises(SetupError, match=r"has 10 MiB free, but Ray needs .*Set TMPDIR"):
        check_ray_requirements()


def test_a_temporary_folder_without_write_permission_is_named(monkeypatch):
    access = os.access
    folder = parent_folder()
    monkeypatch.setattr(os, "access", lambda path, mode: path != folder and access(path, mode))
    message = r"for Ray's sockets cannot be written. Set TMPDIR to a folder whose path has"
    with pytest.raises(SetupError, match=message):
        check_ray_requirements()


def test_a_machine_that_cannot_connect_to_itself_is_named(monkeypatch):
    def refuse(*_, **__):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(SetupError, match=r"connect to each other at 127\.0\.0\.1: .* unreachable"):
        check_ray_requirements()


def test_a_missing_bash_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/absent")
    with pytest.raises(SetupError, match="Ray starts its workers with bash, but no folder on PATH"):
        check_ray_requirements()
