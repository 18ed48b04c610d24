"""Isolation of a trial within its process: random state, determinism, threads, memory, energy.

Everything here is scoped. Settings from before a trial are restored after it, so a trial does not
depend on what ran before it in the process and leaves nothing behind.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from tasks.trials.records import CONTEXT_BYTES


def _flushes_denormals() -> bool:
    # Tried out: torch can set this and has no function that reads it.
    return float(torch.full((), 1e-38, dtype=torch.float32, device="cpu") * 0.01) == 0


def _default_device() -> torch.device | None:
    device = torch.get_default_device()
    # None for a CPU: with a device set, torch looks at it in every call.
    return None if device.type == "cpu" else device


@dataclass(frozen=True)
class _Setting:
    """A setting of torch that a user's own network may change.

    Attributes:
        read: returns the current value.
        change: sets a value.
        initial: the value that every trial begins with.
    """

    read: Callable[[], Any]
    change: Callable[[Any], object]
    initial: object


_SETTINGS = (
    _Setting(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    _Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    _Setting(torch.is_grad_enabled, torch.set_grad_enabled, True),
    _Setting(_flushes_denormals, torch.set_flush_denormal, False),
    _Setting(_default_device, torch.set_default_device, None),
)


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Run a block on freshly seeded generators; restore all of them afterwards.

    They are torch's generators of the CPU and of ``device``, and the global ones of Python and
    NumPy, from which only a user's own network may draw.
    """
    device = torch.device(device)
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), ExitStack() as restore:
        restore.callback(set_states_outside_torch, *states_outside_torch())
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        yield


def states_outside_torch() -> tuple[Any, Any]:
    """Return the states of Python's and NumPy's global generators, as plain values."""
    numpy: Any = np.random.get_state()  # noqa: NPY002 (others draw from it)
    name, keys, *counters = numpy
    return random.getstate(), (name, keys.tolist(), *counters)


def set_states_outside_torch(python: Any, numpy: Any) -> None:
    """Restore the states that :func:`states_outside_torch` returned."""
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def contained(seed: int = 0, device: torch.device | str = "cpu") -> Iterator[None]:
    """Run a block that builds or runs a user's own network, which may change settings of torch.

    The block begins with the same settings and seed as every other one. What it changes is restored
    afterwards.
    """
    with ExitStack() as restore:
        for setting in _SETTINGS:
            restore.callback(setting.change, setting.read())
            setting.change(setting.initial)
        restore.callback(torch.set_num_threads, torch.get_num_threads())
        restore.enter_context(seeded(seed, device))
        yield


@contextmanager
def deterministic(device: torch.device | str = "cpu", num_threads: int = 1) -> Iterator[None]:
    """Make a block repeatable: fixed number of threads, deterministic kernels.

    All settings are restored afterwards. On a CPU the same work with the same ``num_threads`` is
    equal to the last bit. Another number of threads splits sums differently and may change the last
    digits.

    On CUDA, cuDNN uses deterministic kernels without autotuning, which would choose kernels by
    their time and so change results from run to run. Kernels outside cuDNN may still add in any
    order, so results agree to rounding only. TensorFloat-32, with its 10 bits of mantissa, is off,
    although it is cuDNN's default: float32 means float32.
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
            # This mode fills new tensors as a debugging aid, and would write each of them twice.
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


_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
"""Parameters of glibc's ``mallopt``, from ``malloc.h``."""
_MAP_FROM_BYTES = (2**30, 32 * 2**20)
"""Sizes from which glibc maps a tensor on its own, in the order in which they are tried: an older
glibc accepts the second at most."""
_KEEP_UP_TO_BYTES = 2**31 - 1
"""Freed memory that glibc keeps: the largest value that ``mallopt`` takes."""

_OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator|std::bad_alloc|could not create a (primitive|memory object)$"
)
"""Messages of torch when the machine's memory is used up: from its own allocator, C++'s, and
oneDNN, which creates kernels. These errors have no type of their own."""


def keep_freed_memory() -> bool:
    """Make glibc keep freed pages for the next training step, and return whether it will.

    By default it unmaps every large tensor that is freed, and each step asks the kernel for zeroed
    pages again. That is a third to a half of a VGG's step at 64 pixels. No result changes.
    """
    libc = _glibc()
    if libc is None:
        return False
    accepted = any(libc.mallopt(_M_MMAP_THRESHOLD, size) == 1 for size in _MAP_FROM_BYTES)
    if not accepted:
        return False
    return bool(libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_UP_TO_BYTES) == 1)


@contextmanager
def trial_memory(device: torch.device, gpu_fraction: float | None = None) -> Iterator[None]:
    """Limit a trial's memory, and free it afterwards, so that the worker can be used again.

    Args:
        device: where the trial runs.
        gpu_fraction: share of the GPU's memory that this process may take within the block, its
            CUDA context included; None sets no limit. PyTorch's allocator checks it before it
            allocates. The context, and what libraries allocate by themselves, it does not count.

    Raises:
        MemoryError: the machine's memory is used up. ``torch.OutOfMemoryError`` is raised
            unchanged. The trial's memory is freed before either.
    """
    reset_peak(device)
    if device.type == "cuda" and gpu_fraction is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        tensor_fraction = float(gpu_fraction) - CONTEXT_BYTES / total
        _limit(min(1.0, max(0.0, tensor_fraction)), device)
    try:
        yield
    except BaseException as error:
        # The traceback's frames hold the tensors: without this the next trial meets a full device.
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        with suppress(RuntimeError):  # of a failing GPU; it must not hide the first error
            _free_cached(device)
        if isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)):
            raise MemoryError(str(error)) from error
        raise
    _free_cached(device)


def reset_peak(device: torch.device) -> None:
    """Start a new measurement of peak memory; on a CPU only Linux can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory in bytes since :func:`reset_peak`.

    On CUDA it is what the process reserved on the GPU for tensors. On a CPU it is its resident
    memory, libraries and arrays included; outside Linux, since the process started.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    with suppress(OSError):
        status = Path("/proc/self/status").read_text()
        match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        if match:
            return 1024 * int(match[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In bytes on macOS, in KiB elsewhere.
    return peak if sys.platform == "darwin" else 1024 * peak


def _free_cached(device: torch.device) -> None:
    """Return cached memory to the GPU and the machine, and lift the limit of a share."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        # cuBLAS keeps a workspace for every handle and stream. This function is private; a torch
        # without it keeps the workspaces.
        getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)()
        _limit(1.0, device)
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _limit(fraction: float, device: torch.device) -> None:
    # Unlike similar functions, this one refuses a device without an index. None is the current one.
    torch.cuda.set_per_process_memory_fraction(fraction, device.index)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    functions = ("mallopt", "malloc_trim", "gnu_get_libc_version")
    return libc if all(hasattr(libc, name) for name in functions) else None


class EnergyMeter:
    """A meter of a GPU's energy since it was created, by the GPU's own counter.

    The counter is read through NVML, a library of NVIDIA's driver.

    Attributes:
        note: why the energy is not measured; empty if it is.
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
        """Return the joules used so far; None if they are not measured."""
        if self._start is None:
            return None
        try:
            return (self._gpu.millijoules() - self._start) / 1000
        except OSError as error:
            self.note = f"the GPU's energy cannot be read: {error}"
            return None


class NvmlGpu:
    """One GPU, or slice of one, as NVML reports it.

    It is looked up by UUID, because torch and the driver may number GPUs differently.
    """

    def __init__(self, uuid: str) -> None:
        self._nvml = ctypes.CDLL("libnvidia-ml.so.1")
        self._handle = ctypes.c_void_p()
        _check(self._nvml.nvmlInit_v2())
        _check(self._nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(self._handle)))

    def millijoules(self) -> int:
        """Return the energy used since the driver was loaded."""
        energy = ctypes.c_ulonglong()
        _check(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(energy)))
        return int(energy.value)

    def held_bytes(self) -> int:
        """Return the bytes of the GPU's memory that all processes use together."""
        memory = (ctypes.c_ulonglong * 3)()  # nvmlMemory_t: total, free, used
        _check(self._nvml.nvmlDeviceGetMemoryInfo(self._handle, memory))
        return int(memory[2])


def _check(code: int) -> None:
    """Raise an OSError unless an NVML function returned 0."""
    if code != 0:
        raise OSError(f"NVML gave error {code}")
