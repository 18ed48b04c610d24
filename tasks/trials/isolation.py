"""What keeps a trial apart from its process: random state, determinism, threads, memory, and a
GPU's energy.

Everything here is scoped: what was set before a trial is restored after it, so a trial neither
depends on what ran before it in the process nor leaves anything behind.
"""

from __future__ import annotations

import ctypes
import gc
import random
import re
import resource
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from tasks.trials.records import CONTEXT_BYTES


def _flushes_denormals() -> bool:
    # Asked of the processor: torch sets it and cannot tell.
    return float(torch.full((), 1e-38, dtype=torch.float32, device="cpu") * 0.01) == 0


def _default_device() -> torch.device | None:
    found = torch.get_default_device()
    return (
        None if found.type == "cpu" else found
    )  # None costs nothing, a device a look at every call


# What somebody's own network may leave changed, and what every trial begins with.
_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], object], object], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    (torch.is_grad_enabled, torch.set_grad_enabled, True),
    (_flushes_denormals, torch.set_flush_denormal, False),
    (_default_device, torch.set_default_device, None),
)


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Run a block on freshly seeded generators; restore all of them afterwards.

    They are torch's of the CPU and of ``device``, and Python's and NumPy's global ones, which only
    somebody's own network may draw from.
    """
    device = torch.device(device)
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        ExitStack() as restore,
    ):
        restore.callback(set_states_outside_torch, *states_outside_torch())
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        yield


def states_outside_torch() -> tuple[Any, Any]:
    """Return the states of Python's and NumPy's global generators, as plain values."""
    numpy: Any = np.random.get_state()  # noqa: NPY002 (others draw from it)
    name, keys, *rest = numpy
    return random.getstate(), (name, keys.tolist(), *rest)


def set_states_outside_torch(python: Any, numpy: Any) -> None:
    """Put back what :func:`states_outside_torch` returned."""
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def contained(seed: int = 0, device: torch.device | str = "cpu") -> Iterator[None]:
    """Run a block that builds or runs somebody's own network: it begins as others do, and leaves no
    trace.
    """
    with ExitStack() as restore:
        for read, change, value in _SETTINGS:
            restore.callback(change, read())
            change(value)
        restore.callback(torch.set_num_threads, torch.get_num_threads())
        restore.enter_context(seeded(seed, device))
        yield


@contextmanager
def deterministic(device: torch.device | str = "cpu", num_threads: int = 1) -> Iterator[None]:
    """Make a block repeatable: fixed thread count, deterministic kernels; restore all settings
    afterwards.

    On the CPU the same work with the same ``num_threads`` is equal to the last bit; another thread
    count splits sums differently and may change the last digits. On CUDA cuDNN is held to
    deterministic kernels without autotuning (autotuning picks kernels by timing, so results would
    change from run to run), but kernels outside cuDNN may still add in any order: there, results
    agree to rounding only. float32 means float32: TensorFloat-32, with its 10 bits of mantissa, is
    off (cuDNN's own default is on).
    """
    device = torch.device(device)
    with ExitStack() as restore:
        if device.type == "cuda":
            flags = torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=False
            )
            restore.enter_context(flags)
            matmul = torch.backends.cuda.matmul
            restore.callback(setattr, matmul, "allow_tf32", matmul.allow_tf32)
            matmul.allow_tf32 = False
        else:
            restore.callback(
                torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled()
            )
            # Filling new tensors is a debugging aid of this mode that would write each of them
            # twice.
            mode: Any = torch.utils.deterministic
            restore.callback(
                setattr, mode, "fill_uninitialized_memory", mode.fill_uninitialized_memory
            )
            mode.fill_uninitialized_memory = False
            torch.use_deterministic_algorithms(True)
        restore.callback(torch.set_num_threads, torch.get_num_threads())
        restore.enter_context(threadpool_limits(num_threads))
        torch.set_num_threads(num_threads)
        yield


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MAP_FROM = (2**30, 32 * 2**20)
"""Sizes from which a tensor is mapped on its own; older glibc accepts no more than the second."""

_OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator|std::bad_alloc|could not create a (primitive|memory object)$"
)
"""What torch says without the machine's memory: its own allocator, C++'s, and oneDNN, which makes
kernels."""


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed pages for the next step, and return whether it does; changes no
    number.

    By default it unmaps every large tensor that is freed, so that each training step asks the
    kernel for zeroed pages again: a third to a half of a VGG step at 64 pixels.
    """
    libc = _glibc()
    if libc is None:
        return False
    mapped = any(libc.mallopt(_M_MMAP_THRESHOLD, size) == 1 for size in _MAP_FROM)
    return bool(mapped and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) == 1)


@contextmanager
def trial_memory(device: torch.device, gpu_fraction: float | None = None) -> Iterator[None]:
    """Give a trial its share of memory, and what it leaves behind back: a worker may be used again.

    ``gpu_fraction`` is the share of the GPU's memory that this process may take within the block,
    its context included; None sets no limit. PyTorch checks it after it has allocated
    (pytorch#69688), so a process may be above it for a moment.

    Raises:
        MemoryError: when the machine's memory is used up. ``torch.OutOfMemoryError`` passes as it
            is. Before either, what the trial held is freed.
    """
    reset_peak(device)
    if device.type == "cuda" and gpu_fraction is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        _limit(min(1.0, max(0.0, float(gpu_fraction) - CONTEXT_BYTES / total)), device)
    try:
        yield
    except BaseException as error:
        # The frames of the traceback hold the tensors; without this the next trial would meet a
        # full device.
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        with suppress(RuntimeError):  # of a GPU that fails, which must not hide what failed first
            _give_back(device)
        if isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)):
            raise MemoryError(str(error)) from error
        raise
    _give_back(device)


def reset_peak(device: torch.device) -> None:
    """Begin a new measurement of peak memory; on a CPU only where the kernel is Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Return peak memory since :func:`reset_peak`.

    On CUDA what the process reserved on the GPU for tensors; on a CPU its resident memory,
    libraries and arrays included (where the kernel is not Linux: since the process started).
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    try:
        found = re.search(
            r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE
        )
    except OSError:
        found = None
    if found:
        return 1024 * int(found[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _give_back(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        # Pinned memory too, which features pass through: a gigabyte of a ResNet-50's. Older torch
        # keeps it.
        getattr(torch.accelerator, "empty_host_cache", lambda: None)()
        # cuBLAS keeps scratch for every handle and stream. Private: a torch that lacks it keeps the
        # scratch.
        getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)()
        _limit(1.0, device)
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _limit(fraction: float, device: torch.device) -> None:
    # Alone among its like it refuses a device without an index, which is the current one: None
    # stands for it.
    torch.cuda.set_per_process_memory_fraction(fraction, device.index)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    wanted = ("mallopt", "malloc_trim", "gnu_get_libc_version")
    return libc if all(hasattr(libc, name) for name in wanted) else None


class EnergyMeter:
    """Counts a GPU's joules from when it is made, by its own counter (NVML, of NVIDIA's driver).

    Attributes:
        note: why nothing is counted; empty where it is.
    """

    def __init__(self, device: torch.device) -> None:
        self.note = ""
        self._start: int | None = None
        if device.type != "cuda":
            self.note = "no GPU: the energy of a CPU is not counted"
            return
        try:
            uuid = torch.cuda.get_device_properties(device).uuid
            self._gpu = NvmlGpu(f"GPU-{uuid}")
            self._start = self._gpu.millijoules()
        except (OSError, AttributeError) as error:  # no NVML, or one without this
            self.note = f"the GPU's energy cannot be read: {error}"

    def joules(self) -> float | None:
        """Return what was used since; None where it is not counted."""
        if self._start is None:
            return None
        try:
            return (self._gpu.millijoules() - self._start) / 1000
        except OSError as error:
            self.note = f"the GPU's energy cannot be read: {error}"
            return None


class NvmlGpu:
    """NVML's view of one GPU or slice, by UUID: torch's numbers and the driver's need not agree."""

    def __init__(self, uuid: str) -> None:
        self._nvml = ctypes.CDLL("libnvidia-ml.so.1")
        self._handle = ctypes.c_void_p()
        _checked(self._nvml.nvmlInit_v2())
        _checked(self._nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(self._handle)))

    def millijoules(self) -> int:
        """Return the GPU's counter, which starts when the driver is loaded."""
        found = ctypes.c_ulonglong()
        _checked(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(found)))
        return int(found.value)

    def held_bytes(self) -> int:
        """Return what is used of its memory, by whomever."""
        found = (ctypes.c_ulonglong * 3)()  # nvmlMemory_t: total, free, used
        _checked(self._nvml.nvmlDeviceGetMemoryInfo(self._handle, found))
        return int(found[2])


def _checked(code: int) -> None:
    if code:
        raise OSError(f"NVML gave error {code}")
