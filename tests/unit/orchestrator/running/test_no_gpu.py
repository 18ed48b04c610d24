"""A cluster none of whose nodes can give a trial a GPU ends the sweep; one with a sound node does not."""

from typing import Any

import pytest
import ray
from ray.experimental.internal_kv import _internal_kv_list, _internal_kv_put

from orchestrator.planning.paths import RootPaths
from orchestrator.results.state import StoredResults
from orchestrator.results.store import CellReport, FailureKind, FailureRecord, TrialFailure
from orchestrator.running import failures, queue, worker
from orchestrator.running.failures import MOST_ON_UNFIT, Retries, classify, fit_nodes
from orchestrator.running.gpus import NO_GPU
from orchestrator.running.worker import TrialTrainable
from search_spaces.errors import SetupError
from tests.unit.orchestrator.running.test_sweep import make_plan, run  # noqa: F401

NONE = SetupError(NO_GPU, "node a: NVIDIA driver absent", "install a driver")


def test_every_node_has_its_chances_before_the_sweep_ends():
    retries, failure = Retries(), classify(NONE)
    for node in ["a"] * 10 + ["b"] * (MOST_ON_UNFIT - 1):
        retries.check_nodes(node, failure, {"a", "b"})
    last = "the last: node a: NVIDIA driver absent; install a driver; mend a node"
    with pytest.raises(SetupError, match=f"on each of 2 nodes .* {last}"):
        retries.check_nodes("b", failure, {"a", "b"})


def test_a_node_that_gave_a_result_is_sound_and_one_not_heard_of_may_be():
    retries, failure = Retries(), classify(NONE)
    for _ in range(5):
        for _ in range(MOST_ON_UNFIT - 1):
            retries.check_nodes("a", failure, {"a"})
        retries.finished("a")
    for _ in range(20):
        Retries().check_nodes("a", failure, {"a", "b"})


def test_other_failures_say_nothing_of_gpus():
    retries = Retries()
    for kind in set(FailureKind) - {FailureKind.OTHER_CODE}:
        for _ in range(MOST_ON_UNFIT):
            retries.check_nodes("a", TrialFailure(kind=kind, message="CUDA error: launch failure"), {"a"})


class WithoutGpu(TrialTrainable):
    """As a trial on a node whose torch reaches no GPU, which does not wait before it says so."""

    def setup(self, config: dict[str, Any], **shared: Any) -> None:
        super().setup(config, **shared)
        worker.gpus.rest = lambda has_run: None

    def _run(self, started_at: float) -> CellReport:
        _internal_kv_put(f"ran in vain {self.cell['trial_id']} {started_at}", b"1")
        raise NONE


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_a_sweep_of_real_trials_ends_with_what_was_missing(
    run: Any,  # noqa: F811
    root: str,
    monkeypatch: Any,
) -> None:
    assert fit_nodes(classify(NONE)) == set()
    here = ray.util.get_node_ip_address()
    monkeypatch.setattr(queue, "fit_nodes", lambda failure: {here})
    monkeypatch.setattr(failures, "MOST_ON_UNFIT", 2)
    plan = make_plan(*range(4, 40))
    stored = StoredResults.read(str(RootPaths.create(root).sweep(plan.sweep.name).folder))
    with pytest.raises(SetupError, match=r"on each of 1 nodes the last 2 trials had none"):
        run(plan, trainable=WithoutGpu, stored=stored)
    failed = stored.store.scan(FailureRecord).records
    assert 2 <= len(failed) < 10  # told of each, and most cells were never tried
    # Nor those that Tune was given already, 16 of them.
    assert 2 <= len(_internal_kv_list("ran in vain ")) < 10
    assert {record.failure.kind for record in failed.values()} == {FailureKind.SETUP}
