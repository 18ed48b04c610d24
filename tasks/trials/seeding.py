"""The only place that touches global random state, determinism switches and thread counts.

Everything here is scoped: what was set before a trial is restored after it, so a trial neither depends on
what ran before it in the process nor leaves anything behind.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits


def _flushes_denormals() -> bool:
    # Asked of the processor: torch sets it and cannot tell.
    return float(torch.full((), 1e-38, dtype=torch.float32, device="cpu") * 0.01) == 0


def _default_device() -> torch.device | None:
    found = torch.get_default_device()
    return None if found.type == "cpu" else found  # None costs nothing, a device a look at every call


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

    They are torch's of the CPU and of ``device``, and Python's and NumPy's global ones, which only somebody's
    own network may draw from.
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), ExitStack() as restore:
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
    """Run a block that builds or runs somebody's own network: it begins as others do, and leaves no trace.

    Args:
        seed: Of all generators.
        device: Whose generator too.
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
    """Make a block repeatable: fixed thread count, deterministic kernels; restore all settings afterwards.

    On the CPU the same work with the same ``num_threads`` is equal to the last bit; another thread count
    splits sums differently and may change the last digits. On CUDA cuDNN is held to deterministic kernels
    without autotuning (autotuning picks kernels by timing, so results would change from run to run), but
    kernels outside cuDNN may still add in any order: there, results agree to rounding only. float32 means
    float32: TensorFloat-32, with its 10 bits of mantissa, is off (cuDNN's own default is on).
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
            restore.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled())
            restore.enter_context(_unset_memory_left_alone())
            torch.use_deterministic_algorithms(True)
        restore.callback(torch.set_num_threads, torch.get_num_threads())
        restore.enter_context(threadpool_limits(num_threads))
        torch.set_num_threads(num_threads)
        yield


@contextmanager
def _unset_memory_left_alone() -> Iterator[None]:
    # Filling new tensors is a debugging aid of deterministic mode that would write each of them twice.
    settings: Any = torch.utils.deterministic
    before = settings.fill_uninitialized_memory
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        settings.fill_uninitialized_memory = before
