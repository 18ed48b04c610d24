"""Isolate a trial within its process: random state, determinism, threads, memory and energy.

Every setting is restored after the trial. So a trial does not depend on earlier trials of the
process, and does not change the results of later trials.
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
from typing import Any, NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from tasks.trials.records import CONTEXT_BYTES


def _flushes_denormals() -> bool:
    # torch has no function that returns this setting. So a multiplication tests whether a very
    # small number becomes 0.
    return float(torch.full((), 1e-38, dtype=torch.float32, device="cpu") * 0.01) == 0


def _default_device() -> torch.device | None:
    device = torch.get_default_device()
    # For a CPU, return None. If a default device is set, torch checks it in every call, which
    # takes time.
    return None if device.type == "cpu" else device


@dataclass(frozen=True)
class _Setting:
    """A setting of torch that a user's network may change.

    Attributes:
        read: Function that returns the current value.
        change: Function that sets a value.
        initial: Value at the start of every trial.
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
    """Seed the random generators for a ``with`` block, and restore their states afterwards.

    The generators are torch's generators for the CPU and for ``device``, and the global
    generators of Python and NumPy. The code of isweep does not use the global generators, but
    a user's network may use them.
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
    """Return the states of Python's and NumPy's global random generators, as plain values."""
    numpy: Any = np.random.get_state()  # noqa: NPY002 (a user's network may use it)
    name, keys, *counters = numpy
    return random.getstate(), (name, keys.tolist(), *counters)


def set_states_outside_torch(python: Any, numpy: Any) -> None:
    """Restore the states that :func:`states_outside_torch` returned."""
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def fixed_torch_state(seed: int = 0, device: torch.device | str = "cpu") -> Iterator[None]:
    """Fix torch's settings and the seed for a ``with`` block, and restore both afterwards.

    The block may build or run a user's network, and this network may change settings of torch.
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
    """Fix the number of threads and use deterministic kernels in a ``with`` block.

    All settings are restored after the block. On a CPU, the same computation with the same
    ``num_threads`` has the same results to the last bit. With another number of threads, sums
    are computed in another order, so the last digits may change.

    On a GPU, cuDNN uses deterministic kernels. Its autotuning is switched off, because it may
    choose other kernels in every run. Kernels outside cuDNN may still add numbers in any
    order, so two results may differ by rounding errors. By default, cuDNN uses TensorFloat-32,
    which rounds to 10 bits of mantissa. It is switched off too.
    """
    device = torch.device(device)
    with ExitStack() as restore:
        if device.type == "cuda":
            flags = torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=False
            )
            restore.enter_context(flags)
            restore.enter_context(_attribute(torch.backends.cuda.matmul, "allow_tf32", False))
        else:
            was_enabled = torch.are_deterministic_algorithms_enabled()
            restore.callback(torch.use_deterministic_algorithms, was_enabled)
            torch.use_deterministic_algorithms(True)
            # By default, the deterministic mode fills every new tensor with a value, which
            # takes time and only helps debugging.
            restore.enter_context(
                _attribute(torch.utils.deterministic, "fill_uninitialized_memory", False)
            )
        restore.callback(torch.set_num_threads, torch.get_num_threads())
        restore.enter_context(threadpool_limits(num_threads))
        torch.set_num_threads(num_threads)
        yield


@contextmanager
def _attribute(owner: Any, name: str, value: object) -> Iterator[None]:
    """Set an attribute to ``value`` for a ``with`` block, and restore it afterwards."""
    value_before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, value_before)


_M_TRIM_THRESHOLD = -1
"""Parameter ``M_TRIM_THRESHOLD`` of glibc's ``mallopt``, from ``malloc.h``."""
_M_MMAP_THRESHOLD = -3
"""Parameter ``M_MMAP_THRESHOLD`` of glibc's ``mallopt``, from ``malloc.h``."""
_MAP_FROM_BYTES = (2**30, 32 * 2**20)
"""Sizes in bytes above which glibc requests the memory of a tensor directly from the system.
The first size that glibc accepts is used. An older glibc accepts only the second size."""
_KEEP_UP_TO_BYTES = 2**31 - 1
"""Number of bytes of freed memory that glibc may keep instead of returning them to the system.
It is the largest value that ``mallopt`` accepts."""

_OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator|std::bad_alloc|could not create a (primitive|memory object)$"
)
"""Pattern of the error messages that torch raises if the machine has too little memory. The
messages come from torch's allocator, from C++, and from oneDNN, a library of CPU kernels. Only
the message identifies these errors, because their type is RuntimeError."""


def keep_freed_memory() -> bool:
    """Configure glibc to reuse freed memory for the next training step.

    By default, glibc returns the memory of every large tensor to the system. Each step then
    requests new memory, which the system fills with zeros. For a VGG and images of 64 x 64
    pixels, this takes a third to a half of the time of a step. The results are the same with
    and without this configuration.

    Returns:
        True if glibc has accepted the configuration.
    """
    libc = _glibc()
    if libc is None:
        return False
    accepted = any(libc.mallopt(_M_MMAP_THRESHOLD, size) == 1 for size in _MAP_FROM_BYTES)
    if not accepted:
        return False
    return bool(libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_UP_TO_BYTES) == 1)


@contextmanager
def trial_memory(
    device: torch.device, gpu_fraction: float | None = None, context_bytes: int = CONTEXT_BYTES
) -> Iterator[None]:
    """Limit the memory of a trial, and free it afterwards for the next trial of the worker.

    Args:
        device: Device of the trial.
        gpu_fraction: Share of the GPU's memory that this process may use in the block,
            including its CUDA context; None sets no limit. PyTorch's allocator checks the
            limit before it allocates memory for tensors. The limit does not apply to memory
            that other libraries allocate.
        context_bytes: Bytes of this share that are reserved for the CUDA context.

    Raises:
        MemoryError: The machine has too little memory. If the GPU has too little memory,
            torch's ``OutOfMemoryError`` is raised unchanged. The memory of the trial is freed
            before either error is raised.
    """
    reset_peak(device)
    if device.type == "cuda" and gpu_fraction is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        tensor_fraction = float(gpu_fraction) - context_bytes / total
        _limit_gpu_memory(device, min(1.0, max(0.0, tensor_fraction)))
    try:
        yield
    except BaseException as error:
        # The frames of the traceback refer to the tensors of the trial. The frames are
        # cleared, because otherwise the tensors would use the device's memory in the next
        # trial too.
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        with suppress(RuntimeError):  # a failing GPU must not replace the original error
            _free_cached(device)
        if isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)):
            raise MemoryError(str(error)) from error
        raise
    _free_cached(device)


def reset_peak(device: torch.device) -> None:
    """Start a new measurement of peak memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory in bytes since :func:`reset_peak`.

    For a GPU, this is the memory that the process reserved for tensors. For a CPU, it is the
    resident memory of the process, including libraries and arrays. If the system does not
    report this number, the function returns the peak since the process started.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    with suppress(OSError):
        status = Path("/proc/self/status").read_text()
        match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        if match:
            return 1024 * int(match[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _free_cached(device: torch.device) -> None:
    """Free cached memory of the GPU and of the machine, and remove the limit of GPU memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        # cuBLAS allocates a workspace for every handle and stream. A private function of torch
        # frees the workspaces. If a version of torch does not have this function, the
        # workspaces stay allocated.
        getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)()
        _limit_gpu_memory(device, 1.0)
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _limit_gpu_memory(device: torch.device, fraction: float) -> None:
    # torch's function takes the index of a device. None means the current device.
    torch.cuda.set_per_process_memory_fraction(fraction, device.index)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    functions = ("mallopt", "malloc_trim", "gnu_get_libc_version")
    return libc if all(hasattr(libc, name) for name in functions) else None


class Energy(NamedTuple):
    """The energy that a GPU used in a trial.

    Attributes:
        joules: The energy in joules; None if it is unknown.
        missing_reason: Reason why the energy is unknown; empty if it is known.
    """

    joules: float | None
    missing_reason: str = ""


class EnergyMeter:
    """A meter that measures the energy that a GPU uses after the meter was created.

    It reads the energy counter of the GPU through NVML, a library of NVIDIA's driver.
    """

    def __init__(self, device: torch.device) -> None:
        self._missing_reason = ""
        if device.type != "cuda":
            self._missing_reason = "the trial ran on a CPU, whose energy isweep does not measure"
            return
        try:
            uuid = torch.cuda.get_device_properties(device).uuid
            self._gpu = NvmlGpu(f"GPU-{uuid}")
            self._start = self._gpu.millijoules()
        except (OSError, AttributeError) as error:  # NVML or one of its functions is missing
            self._missing_reason = f"the GPU's energy cannot be read: {error}"

    def read(self) -> Energy:
        """Return the energy that the GPU has used since the meter was created."""
        if self._missing_reason:
            return Energy(None, self._missing_reason)
        try:
            return Energy((self._gpu.millijoules() - self._start) / 1000)
        except OSError as error:
            return Energy(None, f"the GPU's energy cannot be read: {error}")


class NvmlGpu:
    """A GPU, or a MIG slice of a GPU, as NVML reports it.

    Its UUID identifies the GPU, because torch and the driver may number GPUs differently.
    """

    def __init__(self, uuid: str) -> None:
        self._nvml = ctypes.CDLL("libnvidia-ml.so.1")
        self._handle = ctypes.c_void_p()
        _check_nvml(self._nvml.nvmlInit_v2())
        _check_nvml(self._nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(self._handle)))

    def millijoules(self) -> int:
        """Return the energy that the GPU has used since the driver was loaded."""
        energy = ctypes.c_ulonglong()
        pointer = ctypes.byref(energy)
        _check_nvml(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle, pointer))
        return int(energy.value)

    def held_bytes(self) -> int:
        """Return the bytes of GPU memory that all processes together use."""
        memory = (ctypes.c_ulonglong * 3)()  # nvmlMemory_t: total, free, used
        _check_nvml(self._nvml.nvmlDeviceGetMemoryInfo(self._handle, memory))
        return int(memory[2])


def _check_nvml(code: int) -> None:
    """Raise an OSError unless an NVML function returned 0."""
    if code != 0:
        raise OSError(f"NVML returned the error code {code}")
