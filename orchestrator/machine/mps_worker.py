"""Functions for a trial's process to use, avoid or abandon the MPS that the run has started.

The run puts its private folder of MPS into the variable ``ISWEEP_MPS_FOLDER``. If the run abandons
MPS, isweep creates a file in this folder. New processes that see the file compute without MPS.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from orchestrator.machine.mps_daemon import PIPES_VARIABLE, end_gpu_work

PRIVATE_FOLDER = "ISWEEP_MPS_FOLDER"
"""Environment variable with the private folder of the run's MPS, for the processes of the run."""
ABANDONED_MARK = "isweep-mps-stopped"
"""Name of a file in the private folder. If the file exists, new processes of the run do not use
MPS."""


def avoid_abandoned_mps() -> None:
    """Make this process compute without MPS if its run has abandoned MPS.

    This has an effect only before the process uses CUDA.
    """
    folder = os.environ.get(PRIVATE_FOLDER)
    if folder and Path(folder, ABANDONED_MARK).exists():
        # CUDA computes without MPS if it finds no socket in this folder.
        os.environ[PIPES_VARIABLE] = str(Path(folder, "no-socket"))


def abandon_mps_in_run() -> None:
    """Let no new process of this run use MPS, if the run itself started MPS.

    A worker with a broken GPU calls this at once. The driver learns of the failure later, and until
    then MPS would refuse new processes on every GPU.
    """
    folder = os.environ.get(PRIVATE_FOLDER)
    if folder:
        mark_abandoned(Path(folder))


def end_gpu_work_of_child(pid: int) -> None:
    """End the GPU work of a child of a worker, if it uses the MPS of the run.

    The child must be killed afterwards. If the daemon does not end the work, the run abandons MPS.
    """
    folder = os.environ.get(PRIVATE_FOLDER)
    if not folder:
        return
    # If this process avoided MPS with avoid_abandoned_mps(), its children avoid it too.
    uses_mps = os.environ.get(PIPES_VARIABLE) == socket_folder(Path(folder))
    if uses_mps and not end_gpu_work({pid}):
        abandon_mps_in_run()


def socket_folder(folder: Path) -> str:
    """Return the folder of the socket in a private folder of MPS."""
    return str(folder / "pipe")


def mark_abandoned(folder: Path) -> None:
    """Create the file that lets new processes of a run compute without MPS."""
    with contextlib.suppress(OSError):  # the folder is gone if the cluster is lost
        (folder / ABANDONED_MARK).touch()
