"""A backend without Ray: it trains a sweep's trials in this process, one after the other."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher

from orchestrator.machine.cluster import Cluster
from orchestrator.running.actors import IsweepArtifacts
from orchestrator.running.capacity import Slots
from orchestrator.running.messages import TrialAssignment, TrialReport
from orchestrator.running.queue import ASSIGNMENT
from orchestrator.running.workers import trial_device
from orchestrator.running.workers.perform import TrialTask
from orchestrator.running.workers.worker import REPORT
from tasks.remote import InlineExecutor

CLUSTER = Cluster(
    num_cpus=2, num_gpus=0, object_store_bytes=10**9, num_nodes=1, is_private=True, dashboard=""
)


class InProcessBackend:
    """A backend that trains in this process and raises the error of a failed trial.

    See :class:`orchestrator.running.backend.Backend`.
    """

    def __init__(self, run: Any, source: Any) -> None:
        self._source = source
        self._data = None
        self._files = None
        if source.store_url:
            self._files = IsweepArtifacts(source.store_url, {})
        self.arrays = SimpleNamespace(
            add_trial=self._started,
            remove_trial=lambda *_, **__: None,
            check_actor=lambda: None,
            close=lambda: None,
        )

    def _started(self, trial: str, key: str) -> None:
        self._data = self._source.load_array(key)

    def fit(self, trials: Any, feed: Any) -> None:
        while (config := feed.suggest("")) != Searcher.FINISHED:
            assert config is not None, "a trial failed, and waits for its next attempt"
            trial = SimpleNamespace(config=config, status="RUNNING")
            trials.on_trial_start(0, [trial], trial)
            trials.on_step_begin(0, [trial])
            report = self._report(config[ASSIGNMENT])
            trials.on_trial_result(0, [trial], trial, {REPORT: report.text()})
            trials.on_trial_complete(0, [trial], trial)

    def _report(self, assignment: TrialAssignment) -> TrialReport:
        started_at = time.time()
        data = self._data
        resources = assignment.resources
        device = trial_device.device_for(resources, assignment.spec.network)
        task = TrialTask(assignment, data, device, self._files, pretrained=self._source.pretrained)
        performed = self._source.perform(task)
        return TrialReport(
            started_at=started_at,
            finished_at=time.time(),
            outcome=performed.result,
            trained=performed.trained,
            data_fingerprint=data.data_fingerprint,
            shared_group_share=data.shared_group_share,
        )

    def poll(self, **_: Any) -> list[Any]:
        return []

    def publish(self, *_: Any) -> None:
        pass

    killer_of = count_failure = quarantine = publish

    def node_memory_bytes(self) -> float:
        return math.inf

    def shortage(self) -> str:
        return ""

    def worker_cpu_seconds(self) -> dict[int, float]:
        return {}

    def is_up(self) -> bool:
        return True


@contextlib.contextmanager
def train_in_process() -> Iterator[None]:
    """Let sweeps, pilots and searches of this process train in it, without Ray."""

    @contextlib.contextmanager
    def connect_in_process(*_: Any, **__: Any) -> Iterator[Cluster]:
        yield CLUSTER

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.running.stages.connect", connect_in_process)
        patch.setattr(
            "orchestrator.running.stages.SweepCommand.executor", lambda *_, **__: InlineExecutor()
        )
        patch.setattr("orchestrator.running.actors.ActorHandles", lambda url: None)
        patch.setattr("orchestrator.running.capacity.slots_for", lambda request: Slots(1, ""))
        patch.setattr("orchestrator.running.trials.TuneBackend", InProcessBackend)
        yield
