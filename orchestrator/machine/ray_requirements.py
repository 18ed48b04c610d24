"""Checks of this machine before a private Ray cluster starts: bash, limits, disk and loopback.

Without these checks, Ray would wait for minutes or end without giving a reason.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket

from orchestrator.machine.ray_folders import MAX_PARENT_BYTES, parent_folder
from search_spaces.errors import SetupError

MIN_OPEN_FILES = 128
"""Smallest limit of open files with which Ray starts. It starts with 128, but not with 64."""
MIN_PROCESSES = 600
"""Smallest limit of the processes and threads of a user. On a machine with two CPUs, trials
run with a limit of 640, but not with 512."""
MIN_ADDRESS_SPACE = 16 * 2**30
"""Smallest limit of a process's address space with which Ray starts, in bytes. Ray maps its
object store into the address space. On a machine with 24 GiB of memory, Ray starts with a
limit of 17 GB, but not with 12 GB."""
OBJECT_STORE_SHARE = 0.3
"""Share of the machine's memory that Ray uses for its object store by default."""
MIN_FREE_BYTES = 100 * 2**20
"""Free space that the temporary folder needs for Ray's sockets and logs, in bytes."""
LOOPBACK = "127.0.0.1"
LOOPBACK_TIMEOUT_S = 5.0
AGAIN = "and run the same command again"
SHORT_TMPDIR = (
    f"Set TMPDIR to a folder whose path has at most {MAX_PARENT_BYTES} characters, {AGAIN}"
)


def check_ray_requirements() -> None:
    """Check that Ray's processes can start on this machine.

    Raises:
        SetupError: Ray cannot start, because bash is missing, a limit of this process is too
            small, the disk of the temporary folder is full, or the loopback interface does not
            work.
    """
    _check_bash()
    _check_limits()
    _check_temporary_folder()
    _check_loopback()


def _check_bash() -> None:
    if shutil.which("bash") is None:
        raise SetupError(
            "Ray starts its workers with bash, but no folder on PATH contains bash",
            hint="Install bash, or add its folder to PATH",
        )


def _check_limits() -> None:
    """Check the limits that a shell or a batch system sets for each process."""
    # Ray itself raises the soft limit of open files to the hard limit.
    _, open_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    _check_limit("open files", "ulimit -n", open_files, MIN_OPEN_FILES)
    if os.geteuid() != 0:  # the kernel does not count the processes of root
        processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
        _check_limit("processes and threads", "ulimit -u", processes, MIN_PROCESSES)
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    _check_limit("bytes of address space", "ulimit -v", address_space, MIN_ADDRESS_SPACE)
    # Ray's object store is one file.
    file_size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    object_store = int(OBJECT_STORE_SHARE * memory)
    _check_limit("bytes in a file", "ulimit -f", file_size, object_store)


def _check_limit(counted: str, command: str, limit: int, smallest: int) -> None:
    """Raise a SetupError if a limit is smaller than ``smallest``.

    Args:
        counted: noun in the plural for what the limit counts, for example "open files".
        command: shell command that sets the limit.
        limit: the limit of this process.
        smallest: smallest limit with which Ray starts.
    """
    if limit != resource.RLIM_INFINITY and limit < smallest:
        raise SetupError(
            f"This process may have at most {limit:,} {counted} ({command}), but Ray needs "
            f"{smallest:,}",
            hint=f"Raise the limit with `{command}`, {AGAIN}",
        )


def _check_temporary_folder() -> None:
    """Check the folder for Ray's sockets and logs."""
    folder = parent_folder()
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SetupError(
            f"The temporary folder {folder} for Ray's sockets cannot be written",
            hint=SHORT_TMPDIR,
        )
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise SetupError(
            f"The temporary folder {folder} has {free / 2**20:.0f} MiB free, but Ray needs "
            f"{MIN_FREE_BYTES / 2**20:.0f} MiB",
            hint=f"Free some space, {AGAIN}. Or: {SHORT_TMPDIR}",
        )


def _check_loopback() -> None:
    """Check that processes of this machine can connect to each other."""
    try:
        with (
            socket.create_server((LOOPBACK, 0)) as server,
            socket.create_connection(server.getsockname(), timeout=LOOPBACK_TIMEOUT_S),
        ):
            pass
    except OSError as error:
        raise SetupError(
            f"Processes of this machine cannot connect to each other at {LOOPBACK}: {error}",
            hint=f"Enable the loopback interface, for example with `ip link set lo up`, {AGAIN}",
        ) from error
