"""Functions with which a trial's process avoids or abandons the MPS that its run has started.

The environment variable ``ISWEEP_MPS_FOLDER`` contains the run's private folder for MPS. If
the run abandons MPS, isweep creates a file in this folder. If a new process sees this file, it
computes without MPS.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from orchestrator.machine.mps_daemon import PIPES_VARIABLE, end_gpu_work

PRIVATE_FOLDER = "ISWEEP_MPS_FOLDER"
"""Name of the environment variable that contains the private folder of the run's MPS."""
ABANDONED_MARK = "isweep-mps-stopped"
"""Name of a file in the private folder. If this file exists, new processes of the run do not
use MPS."""


def avoid_abandoned_mps() -> None:
    """Make this process compute without MPS if its run has abandoned MPS.

    Call this function before the process uses CUDA. Later it has no effect.
    """
    folder = os.environ.get(PRIVATE_FOLDER)
    if folder and Path(folder, ABANDONED_MARK).exists():
        # CUDA computes without MPS if it finds no socket in this folder.
        os.environ[PIPES_VARIABLE] = str(Path(folder, "no-socket"))


def abandon_mps_in_run() -> None:
    """Stop new processes of this run from using MPS, if the run itself started MPS.

    A worker with a broken GPU calls this function at once. The driver gets the failure later.
    Until then, MPS would refuse new processes on every GPU.
    """
    folder = os.environ.get(PRIVATE_FOLDER)
    if folder:
        mark_abandoned(Path(folder))


def end_gpu_work_of_child(pid: int) -> None:
    """End the GPU work of a worker's child process, if this process uses the MPS of the run.

    The caller must kill the child process afterwards. If the daemon does not end the work, the
    run abandons MPS.
    """
    folder = os.environ.get(PRIVATE_FOLDER)
    if not folder:
        return
    # If this process avoided MPS with avoid_abandoned_mps(), its children avoid it too.
    uses_mps = os.environ.get(PIPES_VARIABLE) == socket_folder(Path(folder))
    if uses_mps and not end_gpu_work({pid}):
        abandon_mps_in_run()


def socket_folder(folder: Path) -> str:
    """Return the folder of the socket. It is inside a private folder of MPS."""
    return str(folder / "pipe")


def mark_abandoned(folder: Path) -> None:
    """Create the file that makes new processes of a run compute without MPS."""
    with contextlib.suppress(OSError):  # the folder is gone if the cluster is lost
        (folder / ABANDONED_MARK).touch()
