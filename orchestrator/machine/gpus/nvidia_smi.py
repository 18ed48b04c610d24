"""Facts about this machine's GPUs, from ``nvidia-smi`` and from files of the kernel.

``nvidia-smi`` answers faster than torch, and reports the GPU memory that all processes use.
"""

from __future__ import annotations

import re
import shutil
import sys
import threading
from contextlib import suppress
from pathlib import Path

from orchestrator.machine.processes import STUCK_PROGRAMS, ProgramOutput, run_program

DEVICES = Path("/dev")
"""Folder of the kernel's device files."""
DRIVER = Path("/proc/driver/nvidia/version")
"""File of the kernel that contains the version of NVIDIA's driver."""
WSL = Path("/usr/lib/wsl/lib")
"""Folder with NVIDIA's library and nvidia-smi if Linux runs inside Windows (WSL). This folder
is often not on PATH. WSL has no device files of GPUs."""
WARN_AFTER_S = 10.0
"""Seconds without an answer from nvidia-smi after which a message is printed."""
MIB = 2**20


def run(*options: str) -> ProgramOutput:
    """Run ``nvidia-smi`` and return its output. If it hangs once, it is never run again."""
    tool = shutil.which("nvidia-smi") or str(WSL / "nvidia-smi")
    warning = threading.Timer(WARN_AFTER_S, _print_that_we_wait)
    warning.daemon = True
    warning.start()
    answer = run_program(tool, *options)
    warning.cancel()
    if answer.timed_out:
        STUCK_PROGRAMS.add(tool)
    return answer


def _print_that_we_wait() -> None:
    """Print that isweep waits for ``nvidia-smi``."""
    print("Waiting for nvidia-smi", file=sys.stderr, flush=True)  # noqa: T201


def query(fields: str, *options: str) -> list[list[str]]:
    """Return one row of values for each GPU, or an empty list if there is no GPU.

    Args:
        fields: names of fields from ``nvidia-smi --help-query-gpu``, separated by commas.
        options: further options of ``nvidia-smi``.
    """
    answer = run(*options, f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    num_fields = fields.count(",") + 1
    rows = []
    for line in answer.output.splitlines():
        row = [word.strip() for word in line.split(",")]
        # Other lines are warnings of nvidia-smi.
        if len(row) == num_fields:
            rows.append(row)
    return rows


def has_devices() -> bool:
    """Return whether this machine has NVIDIA GPUs. The answer comes from the kernel, or in WSL
    from Windows.
    """
    return any(DEVICES.glob("nvidia[0-9]*")) or is_wsl_with_gpu()


def is_wsl_with_gpu() -> bool:
    """Return whether Linux runs inside Windows (WSL) and Windows has an NVIDIA GPU."""
    return (WSL / "libcuda.so.1").exists()


def driver_version() -> str:
    """Return the version of this machine's NVIDIA driver, or an empty text if there is no
    driver.
    """
    texts = []
    for row in query("driver_version"):
        texts += row
    # The kernel's file exists even if nvidia-smi fails.
    with suppress(OSError):
        texts.append(DRIVER.read_text(encoding="utf-8"))
    version = re.search(r"(?<!\S)\d+(\.\d+)+(?!\S)", "\n".join(texts))
    return version[0] if version else ""


def slices_and_whole_gpus() -> list[str]:
    """Return the UUIDs of all MIG slices, and of all GPUs that are not divided into slices.

    If the machine has no slices, the list is empty.
    """
    uuids = slice_uuids()
    if not uuids:
        return []
    for uuid, mig_mode in query("uuid,mig.mode.current"):
        if mig_mode != "Enabled":
            uuids.append(uuid)
    return uuids


def slice_uuids() -> list[str]:
    """Return the UUIDs of all MIG slices."""
    line = r"MIG \S+\s+Device\s+\d+: \(UUID: (MIG-[^)]+)\)"
    return re.findall(line, run("-L").output)
