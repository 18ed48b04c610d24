"""Test which kind of failure an error becomes by its type, and whether an attempt may follow."""

import errno

import pytest
import ray.exceptions as rex
import torch

from orchestrator.machine.gpu_errors import LIBRARY_ERRORS, LOST_WORKER, library_error
from orchestrator.results.records import FailureKind
from orchestrator.running.recovery.failures import (
    WORKER_GONE,
    classify,
    classify_broken_loop,
    classify_lost_worker,
)
from orchestrator.running.recovery.retries import RETRY_POLICIES, Retries
from search_spaces.errors import ConfigError, CorruptStoreError, DataError, SetupError
from tasks.trials.cuda_graphs import CaptureError

LOST_OBJECT = rex.ObjectLostError("a" * 56, "owner", "site")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ZeroDivisionError("a bug"), "code_error"),
        (MemoryError("too much"), "out_of_memory"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "code_error"),
        (rex.OutOfMemoryError("low"), "out_of_memory"),
        (rex.ObjectStoreFullError("full"), "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (rex.OutOfDiskError("full"), "disk_full"),
        (DataError("Pixels must be finite"), "bad_data"),
        (CorruptStoreError("A shard must be whole"), "bad_data"),
        (ConfigError("A network needs at least one output per class"), "bad_config"),
        (SetupError("MLflow must answer"), "setup"),
        (LOST_OBJECT, "cluster_error"),
        (rex.OwnerDiedError("a" * 56, "owner", "site"), "cluster_error"),
        (rex.ObjectFetchTimedOutError("a" * 56, "owner", "site"), "cluster_error"),
        (rex.GetTimeoutError("slow"), "cluster_error"),
        (rex.RaySystemError("broken"), "cluster_error"),
        (rex.NodeDiedError("gone"), "lost_node"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_an_error_inside_a_trial_is_classified_by_its_type(error, kind):
    assert classify(error).kind == kind


Accelerator = torch.AcceleratorError
Cuda = RuntimeError
# Errors as libraries raise them, by kind of failure and whether the process must end.
BY_KIND = {
    ("out_of_memory", False): [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        Cuda("GET was unable to find an engine to execute this computation"),
        Cuda("FIND was unable to find an engine to execute this computation"),
        Cuda(
            "NVML_SUCCESS == r INTERNAL ASSERT FAILED at "
            '"/pytorch/c10/cuda/CUDACachingAllocator.cpp":1154'
        ),
        Cuda("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        Cuda("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        Cuda("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ("out_of_memory", True): [
        Cuda("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        Cuda("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
        Accelerator("CUDA error: out of memory\nCUDA kernel errors might be"),
        Cuda("CUDA driver error: out of memory"),
        Accelerator("HIP error: out of memory"),
    ],
    ("device_error", True): [
        Cuda(
            "CUDA unknown error - this may be due to an incorrectly set up environment. Setting the"
        ),
        Cuda("No CUDA GPUs are available"),
        Cuda("Unexpected error from cudaGetDeviceCount(). Error 805: MPS client failed to"),
        Cuda("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"),
        torch.cuda.DeferredCudaCallError(
            "CUDA call failed lazily at initialization with error: device >="
        ),
        CaptureError("a step could not be captured: RuntimeError: unsupported"),
        Accelerator("CUDA error: MPS server is not ready to accept new MPS client requests"),
        Accelerator("CUDA error: the MPS client has been terminated by the server"),
        Accelerator("CUDA error: uncorrectable ECC error encountered"),
        Accelerator("CUDA error: an illegal memory access was encountered"),
        Accelerator("CUDA error: no kernel image is available for execution"),
        Accelerator("CUDA error: CUDA-capable device(s) is/are busy"),
        Cuda("CUDA error: unspecified launch failure"),
        Cuda("CUDA error: device-side assert triggered"),
        Accelerator("CUDA error: device-side assert triggered"),
        Cuda("CUDA driver error: unknown error"),
        Cuda("HIP error: invalid device function"),
        Cuda("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        Cuda("CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb)`"),
        Cuda("CUDNN_STATUS_MAPPING_ERROR"),
        Cuda("NCCL error in: ProcessGroupNCCL.cpp"),
    ],
}
GPU_ERRORS = [(error, *kind) for kind, errors in BY_KIND.items() for error in errors]


@pytest.mark.parametrize(
    ("error", "kind", "ends_process"), GPU_ERRORS, ids=lambda value: str(value)[:60]
)
def test_an_error_of_a_gpu_has_the_kind_of_the_table_and_may_end_the_process(
    error, kind, ends_process
):
    failure = classify(error)
    assert (failure.kind, failure.ends_process) == (kind, ends_process)


def test_every_row_of_the_table_has_an_error_here():
    rows_of_lost_workers = {row for row in LIBRARY_ERRORS if row.type_name == LOST_WORKER}
    rows_with_an_error = {library_error(error) for error, *_ in GPU_ERRORS}
    assert rows_with_an_error | rows_of_lost_workers == set(LIBRARY_ERRORS)


RAY_MESSAGE = """Task was killed due to the node running low on memory.
Memory on the node (IP: 10.0.0.1, ID: 28f0c1) was 23.50GB used / 24.00GB limit (0.979167)
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
410\t18.25\tpython other.py
411\t0.75\tray::IsweepTrial
412\t0.50\tbash
"""


@pytest.mark.parametrize(
    ("pid", "gb_of_trial", "share_of_others"),
    [(410, 18.25, 0.21875), (411, 0.75, 22.75 / 24), (999, 0.5, 23 / 24)],
)
def test_a_memory_kill_has_the_share_of_memory_that_other_processes_used(
    pid, gb_of_trial, share_of_others
):
    """A process that is not among the ten largest used at most as much as the smallest of them."""
    for error in (None, rex.OutOfMemoryError(RAY_MESSAGE)):
        failure = classify_lost_worker(error, "" if error else RAY_MESSAGE, pid=pid)
        assert (failure.kind, failure.memory) == ("out_of_memory", "machine")
        assert failure.held_by_others == pytest.approx(share_of_others)
        assert f"at most {gb_of_trial:.1f} GB" in failure.message


def test_a_memory_kill_of_an_unknown_process_has_no_share_of_others():
    for text, pid in ((RAY_MESSAGE, 0), (RAY_MESSAGE.splitlines()[0], 411)):
        failure = classify_lost_worker(None, text, pid=pid)
        assert (failure.memory, failure.held_by_others) == ("machine", None)
        assert failure.message == RAY_MESSAGE.splitlines()[0]


def test_a_mistake_of_a_user_has_no_traceback_and_a_failed_fetch_a_limited_number_of_retries():
    mistake = classify(ConfigError("A batch has one image", hint="Raise batch_size"))
    assert mistake.message == "A batch has one image. Raise batch_size."
    assert mistake.traceback == ""
    failed_fetch = classify(LOST_OBJECT)
    assert failed_fetch.kind == "cluster_error"
    retries = Retries()
    pauses = [retries.failed("a", failed_fetch).pause_s for _ in range(100)]
    assert pauses[0] is not None
    assert pauses[-1] is None


def test_an_error_of_tune_is_a_cluster_error_unless_its_type_is_known():
    assert classify_broken_loop(RuntimeError("inside Tune")).kind == "cluster_error"
    assert classify_broken_loop(rex.OutOfMemoryError("low")).kind == "out_of_memory"
    wrapped = RuntimeError("Caught unexpected exception: low")
    wrapped.__cause__ = rex.OutOfMemoryError("low")
    assert classify_broken_loop(wrapped).kind == "out_of_memory"


@pytest.mark.parametrize(
    ("error", "text", "kind"),
    [
        (rex.RayActorError("ab", "weg", preempted=True), "weg", "lost_node"),
        # An id of a dead node in the text decides. Words about nodes do not.
        (rex.RayActorError("ab", "weg"), "weg: 28f0c1", "lost_node"),
        (
            rex.RayActorError("ab", "weg"),
            "the trial printed: node died, node failure",
            "worker_crash",
        ),
        # A kill for lack of memory, of which Tune keeps only the text.
        (
            None,
            "Failure # 1\nTask was killed due to the node running low on memory.",
            "out_of_memory",
        ),
    ],
)
def test_a_lost_worker_is_classified_by_the_type_and_the_node_ids_of_ray(error, text, kind):
    assert classify_lost_worker(error, text, dead_ids=["77aa", "28f0c1"]).kind == kind


def test_a_lost_worker_without_an_error_is_a_crash():
    assert classify_lost_worker(None) == classify_lost_worker(None, WORKER_GONE)
    assert classify_lost_worker(None).kind == "worker_crash"


def test_every_kind_has_a_policy():
    assert set(RETRY_POLICIES) == set(FailureKind), "each kind needs a row of RETRY_POLICIES"
