"""A trial's memory: what the C library does with freed pages, what the peak was, what a GPU share allows.

By default glibc maps every large tensor anew and unmaps it when it is freed, so that each training step asks
the kernel for zeroed pages again: a third to a half of a VGG step at 64 pixels. A worker that trains network
after network keeps such pages, and gives them back when a trial ends.
"""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MAP_FROM = (2**30, 32 * 2**20)
"""Sizes from which a tensor is mapped on its own; older glibc accepts no more than the second."""

_OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator|std::bad_alloc|could not create a (primitive|memory object)$"
)
"""What torch says without the machine's memory: its own allocator, C++'s, and oneDNN, which makes kernels."""


def keep_freed_memory() -> bool:
    """Tell the allocator to keep freed pages for the next step; changes no number.

    Returns:
        Whether it is now so: False where the C library is not glibc, which is only slower.
    """
    libc = _glibc()
    if libc is None:
        return False
    mapped = any(libc.mallopt(_M_MMAP_THRESHOLD, size) == 1 for size in _MAP_FROM)
    return bool(mapped and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) == 1)


@contextmanager
def trial_memory(device: torch.device, gpu_fraction: float | None = None) -> Iterator[None]:
    """Give a trial its share of memory, and what it leaves behind back: a worker may be used again.

    Args:
        device: where the trial runs.
        gpu_fraction: share of the card that this process may allocate within the block; None sets no limit.

    Raises:
        MemoryError: when the machine's memory is used up. ``torch.OutOfMemoryError`` passes as it is. Before
            either, what the trial held is freed.
    """
    reset_peak(device)
    if device.type == "cuda" and gpu_fraction is not None:
        _limit(min(float(gpu_fraction), 1.0), device)
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        # The frames of the traceback hold the tensors; without this the next trial would meet a full device.
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        if _OUT_OF_MEMORY.search(str(error)):
            raise MemoryError(str(error)) from error
        raise
    finally:
        _give_back(device)


def reset_peak(device: torch.device) -> None:
    """Begin a new measurement of peak memory; on a CPU only where the kernel is Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_bytes(device: torch.device) -> int:
    """Return peak memory since :func:`reset_peak`.

    On CUDA what the process reserved on the card for tensors; on a CPU its resident memory, libraries and
    arrays included (where the kernel is not Linux: since the process started).
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return 1024 * int(found[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _give_back(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        # Pinned memory too, which features pass through: a gigabyte of a ResNet-50's. Older torch keeps it.
        getattr(torch.accelerator, "empty_host_cache", lambda: None)()
        _limit(1.0, device)
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _limit(fraction: float, device: torch.device) -> None:
    # Alone among its like it refuses a device without an index, which is the current one: None stands for it.
    torch.cuda.set_per_process_memory_fraction(fraction, device.index)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    wanted = ("mallopt", "malloc_trim", "gnu_get_libc_version")
    return libc if all(hasattr(libc, name) for name in wanted) else None
