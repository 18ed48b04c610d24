"""What each kind of error becomes, by its type; and what that means for another attempt."""

import errno
import traceback

import pytest
import ray.exceptions as rex
import torch

from orchestrator.machine.gpu_errors import GPU_ERRORS, gpu_error
from orchestrator.results.records import FailureKind
from orchestrator.running.failures import (
    RETRIES,
    DeviceError,
    Retries,
    classify,
    classify_broken_fit,
    classify_lost_worker,
    ends_process,
    gpu_named,
)
from search_spaces.errors import ConfigError, CorruptStoreError, DataError, SetupError
from tasks.trials.records import CAPTURE_FAILED
from tasks.trials.training import CaptureError

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
def test_an_error_inside_a_trial_is_known_by_its_type(error, kind):
    assert classify(error).kind == kind


Accelerator, Cuda = torch.AcceleratorError, RuntimeError
# As libraries raise them, by torch's own classes: each error's kind, and whether its process ends.
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
        CaptureError(f"{CAPTURE_FAILED}: RuntimeError: unsupported"),
        Accelerator("CUDA error: uncorrectable ECC error encountered"),
        Accelerator("CUDA error: an illegal memory access was encountered"),
        Accelerator("CUDA error: no kernel image is available for execution"),
        Accelerator("CUDA error: CUDA-capable device(s) is/are busy"),
        Cuda("CUDA error: device-side assert triggered"),
        Cuda("CUDA driver error: unknown error"),
        Cuda("HIP error: invalid device function"),
        Cuda("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        Cuda("CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb)`"),
        Cuda("CUDNN_STATUS_MAPPING_ERROR"),
        Cuda("NCCL error in: ProcessGroupNCCL.cpp"),
    ],
}
OF_GPUS = [(error, *kind) for kind, errors in BY_KIND.items() for error in errors]


@pytest.mark.parametrize(("error", "kind", "ends"), OF_GPUS, ids=lambda value: str(value)[:60])
def test_errors_of_gpus_have_the_kind_of_the_table_and_end_a_process_or_not(error, kind, ends):
    assert (classify(error).kind, ends_process(error)) == (kind, ends)


def test_every_row_of_the_table_is_met_by_an_error():
    assert {gpu_error(error) for error, *_ in OF_GPUS} == set(GPU_ERRORS)


def test_a_process_that_ended_for_its_gpu_has_the_kind_and_words_it_died_with():
    dead = DeviceError("out_of_memory: CUDA error: out of memory (GPU-3f of node a)")
    text = "".join(traceback.format_exception(dead))
    failure = classify_lost_worker(None, text)
    assert (failure.kind, failure.message) == tuple(str(dead).split(": ", 1))
    assert gpu_named(failure.message) == "GPU-3f of node a"
    assert ends_process(dead)
    assert classify_lost_worker(None, "x.DeviceError: bad").message == "bad"


def test_a_users_mistake_is_told_without_a_traceback_and_a_failed_fetch_tried_again_not_for_ever():
    failure = classify(ConfigError("A batch needs two images", "1", "raise batch_size"))
    assert failure.message == "A batch needs two images; found: 1; raise batch_size."
    assert failure.traceback == ""
    kind, retries = classify(LOST_OBJECT).kind, Retries()
    pauses = [retries.failed("a", kind).pause_s for _ in range(100)]
    assert (pauses[0] is None, pauses[-1]) == (False, None)


def test_what_tune_raises_is_the_clusters_failure_unless_its_type_says_more():
    assert classify_broken_fit(RuntimeError("inside Tune")).kind == "cluster_error"
    assert classify_broken_fit(rex.OutOfMemoryError("low")).kind == "out_of_memory"
    wrapped = RuntimeError("Caught unexpected exception: low")
    wrapped.__cause__ = rex.OutOfMemoryError("low")
    assert classify_broken_fit(wrapped).kind == "out_of_memory"


@pytest.mark.parametrize(
    ("error", "text", "kind"),
    [
        (rex.RayActorError("ab", "weg", preempted=True), "weg", "lost_node"),
        # Ids of dead nodes in it count, words about nodes alone do not.
        (rex.RayActorError("ab", "weg"), "weg: 28f0c1", "lost_node"),
        (
            rex.RayActorError("ab", "weg"),
            "the trial printed: node died, node failure",
            "worker_crash",
        ),
        # The memory killer: Tune keeps only its text.
        (
            None,
            "Failure # 1\nTask was killed due to the node running low on memory.",
            "out_of_memory",
        ),
    ],
)
def test_of_what_a_worker_went_is_told_by_rays_own_words_and_ids(error, text, kind):
    assert classify_lost_worker(error, text, ["77aa", "28f0c1"]).kind == kind


def test_no_error_at_all_is_a_crash():
    assert classify_lost_worker(None) == classify_lost_worker(None, "the worker is gone")
    assert classify_lost_worker(None).kind == "worker_crash"


def test_every_kind_has_a_policy():
    assert set(RETRIES) == set(FailureKind)
