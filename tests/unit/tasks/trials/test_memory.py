"""The memory of a trial is measured, limited and released."""

import mmap
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from tasks.trials.cuda_graphs import CaptureError
from tasks.trials.isolation import peak_bytes, reset_peak, trial_memory
from tasks.trials.records import CONTEXT_BYTES

CPU = torch.device("cpu")
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")


def use_pages(num_bytes):
    """Use pages and release them, without the allocator: it may reuse pages of an earlier test."""
    with mmap.mmap(-1, num_bytes) as pages:
        for offset in range(0, num_bytes, mmap.PAGESIZE):
            pages[offset] = 1


@LINUX
def test_the_peak_is_that_of_the_block_not_of_the_process():
    use_pages(256 * 2**20)
    reset_peak(CPU)
    before = peak_bytes(CPU)
    use_pages(64 * 2**20)
    assert 60 * 2**20 < peak_bytes(CPU) - before < 130 * 2**20


def raise_error(message):
    raise RuntimeError(message)


PRIMITIVE = "could not create a primitive"
FAILURES = {
    "memory that cannot be had": (lambda: torch.empty(2**60), MemoryError, "DefaultCPUAllocator"),
    # Observed with a ResNet under a limit of address space, besides errors of torch's allocator.
    **{
        message: (partial(raise_error, message), MemoryError, message)
        for message in ("std::bad_alloc", PRIMITIVE)
    },
    "a kernel that a library does not have": (
        partial(raise_error, f"{PRIMITIVE} descriptor for the convolution"),
        RuntimeError,
        "descriptor",
    ),
    "another error": (
        lambda: torch.ones(2) @ torch.ones(3, 2),
        RuntimeError,
        "size mismatch|shape",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_lack_of_memory_is_distinguished_from_other_failures(name):
    function, kind, message = FAILURES[name]
    with pytest.raises(kind, match=message), trial_memory(CPU):
        function()


@pytest.fixture
def gpu(monkeypatch):
    """Replace the functions below torch's Python code for a GPU. Return the recorded limits."""
    limits = []
    replaced_functions = {
        "_cuda_setMemoryFraction": lambda fraction, index: limits.append((fraction, index)),
        "_cuda_clearCublasWorkspaces": lambda: limits.append("cuBLAS"),
        "_cuda_resetPeakMemoryStats": lambda index: None,
        "_cuda_memoryStats": lambda index: {"reserved_bytes": {"all": {"peak": 7 * (index + 1)}}},
    }
    for name, function in replaced_functions.items():
        monkeypatch.setattr(torch._C, name, function, raising=False)
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda.memory, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: limits.append("emptied"))
    properties = SimpleNamespace(total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch._utils, "_get_current_device_index", lambda: 0)
    return limits


@pytest.mark.parametrize(("device", "index"), [("cuda", 0), ("cuda:1", 1)])
def test_a_share_of_a_gpu_is_a_limit_for_the_trial_and_gone_after_it(gpu, device, index):
    limit = 0.25 - CONTEXT_BYTES / (24 * 2**30)
    with trial_memory(torch.device(device), 0.25):
        assert gpu == [(limit, index)]
        assert peak_bytes(torch.device(device)) == 7 * (index + 1)
    with pytest.raises(ZeroDivisionError, match="division"), trial_memory(torch.device(device), 2):
        _ = 1 / 0
    release_calls = ["emptied", "cuBLAS", (1.0, index)]
    assert gpu == [(limit, index), *release_calls, (1.0, index), *release_calls]


def test_a_larger_context_leaves_less_of_a_share_for_tensors(gpu):
    with trial_memory(torch.device("cuda"), 0.25, context_bytes=2**30):
        assert gpu == [(0.25 - 1 / 24, 0)]


def test_a_share_smaller_than_the_context_leaves_nothing(gpu):
    with trial_memory(torch.device("cuda"), 0.01):
        assert gpu == [(0.0, 0)]


def test_a_gpu_that_cannot_release_memory_hides_no_failure(gpu, monkeypatch):
    """CUDA may refuse after a failed capture. The first error decides on the next attempt."""

    def refuses():
        raise torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "empty_cache", refuses)
    with (
        pytest.raises(CaptureError, match="could not be captured"),
        trial_memory(torch.device("cuda")),
    ):
        raise CaptureError("a step could not be captured")
    with (
        pytest.raises(torch.AcceleratorError, match="not permitted"),
        trial_memory(torch.device("cuda")),
    ):
        pass


@pytest.mark.long
@LINUX
def test_a_worker_that_reuses_pages_has_fewer_page_faults_and_releases_them_after_a_trial():
    # One process measures both, because it imports torch: without reused pages, then with them.
    script = """
import resource, torch
from tasks.trials.isolation import keep_freed_memory, trial_memory, peak_bytes, reset_peak

def faults_and_peak():
    torch.ones(2**24)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    cpu = torch.device("cpu")
    with trial_memory(cpu):
        for _ in range(10):
            torch.ones(2**24)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    reset_peak(cpu)
    return faults, peak_bytes(cpu)

print(*faults_and_peak(), keep_freed_memory(), *faults_and_peak())
"""
    command = [sys.executable, "-c", script]
    numbers = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    faults, peak, is_glibc, faults_kept, peak_kept = numbers
    if is_glibc != "True":
        pytest.skip("the C library is not glibc")
    assert int(faults_kept) < int(faults) / 3
    # 64 MiB were used repeatedly, and are released at the end.
    assert int(peak_kept) - int(peak) < 32 * 2**20
