"""What each kind of error becomes, by its type; and what that means for another attempt."""

import errno

import pytest
import ray.exceptions as rex

from orchestrator.results.records import FailureKind
from orchestrator.running.failures import (
    RETRIES,
    Retries,
    classify,
    classify_broken_fit,
    classify_lost_worker,
)
from search_spaces.errors import ConfigError, CorruptStoreError, DataError, SetupError


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


LOST_OBJECT = rex.ObjectLostError("a" * 56, "owner", "site")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ZeroDivisionError("a bug"), "code_error"),
        (MemoryError("too much"), "out_of_memory"),
        (OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "out_of_memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "out_of_memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "device_error"),
        (RuntimeError("Triton Error [CUDA]: out of memory"), "out_of_memory"),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), "device_error"),
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


def test_a_users_mistake_is_told_without_a_traceback():
    failure = classify(ConfigError("A batch needs two images", "1", "raise batch_size"))
    assert failure.message == "A batch needs two images; found: 1; raise batch_size."
    assert failure.traceback == ""


def test_a_fetch_that_failed_is_tried_again_but_not_for_ever():
    kind, retries = classify(LOST_OBJECT).kind, Retries()
    pauses = [retries.failed("a", kind).pause_s for _ in range(100)]
    assert pauses[0] is not None
    assert pauses[-1] is None


def test_what_tune_raises_is_the_clusters_failure_unless_its_type_says_more():
    assert classify_broken_fit(RuntimeError("inside Tune")).kind == "cluster_error"
    assert classify_broken_fit(rex.OutOfMemoryError("low")).kind == "out_of_memory"
    wrapped = RuntimeError("Caught unexpected exception: low")
    wrapped.__cause__ = rex.OutOfMemoryError("low")
    assert classify_broken_fit(wrapped).kind == "out_of_memory"


def test_a_preempted_node_is_lost_whatever_the_words_say():
    error = rex.RayActorError("ab", "weg", preempted=True)
    assert classify_lost_worker(error, str(error)).kind == "lost_node"


def test_a_node_that_ray_lists_as_dead_is_lost_whatever_the_words_say():
    error = rex.RayActorError("ab", "weg: 28f0c1")
    assert classify_lost_worker(error, str(error), ["77aa", "28f0c1"]).kind == "lost_node"
    assert classify_lost_worker(error, str(error), ["77aa"]).kind == "worker_crash"


def test_words_about_nodes_alone_make_no_lost_node():
    error = rex.RayActorError("ab", "the trial printed: node died, node failure, dead node")
    assert classify_lost_worker(error, str(error)).kind == "worker_crash"


def test_the_memory_killer_is_known_although_tune_keeps_only_its_text():
    text = "Failure # 1\nTask was killed due to the node running low on memory."
    assert classify_lost_worker(None, text).kind == "out_of_memory"


def test_no_error_at_all_is_a_crash():
    assert classify_lost_worker(None) == classify_lost_worker(None, "the worker is gone")
    assert classify_lost_worker(None).kind == "worker_crash"


def test_every_kind_has_a_policy():
    assert set(RETRIES) == set(FailureKind)
