"""Cells of a sweep in this process, one after the other: where what a run does counts, and not
Ray."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher

from orchestrator.machine.cluster import Cluster
from orchestrator.results.records import CellReport
from orchestrator.running import trial_device
from orchestrator.running.actors import IsweepKeeper
from orchestrator.running.worker import REPORT
from tasks.remote import InlineExecutor

CLUSTER = Cluster(
    num_cpus=2, num_gpus=0, object_store_bytes=10**9, num_nodes=1, local=True, dashboard=""
)


class HereExecution:
    """See :class:`orchestrator.running.queue.Execution`; a cell that fails raises."""

    def __init__(self, run: Any, work: Any) -> None:
        self._work, self._data, self._keeper = work, None, None
        if work.keep_url:
            call = IsweepKeeper(work.keep_url, {}).call
            self._keeper = SimpleNamespace(
                **{name: partial(call, name) for name in ("put", "get", "checkpoint")}
            )
        self.arrays = SimpleNamespace(
            trial_started=self._started, trial_ended=lambda *_, **__: None, close=lambda: None
        )

    def _started(self, trial: str, key: str) -> None:
        self._data = self._work.load(key)

    def fit(self, trials: Any, feed: Any) -> None:
        while (config := feed.suggest("")) != Searcher.FINISHED:
            assert config is not None, "a cell failed, and waits"
            trial = SimpleNamespace(config=config, status="RUNNING")
            trials.on_trial_start(0, [trial], trial)
            trials.on_step_begin(0, [trial])
            trials.on_trial_result(0, [trial], trial, {REPORT: self._report(config["cell"]).text()})
            trials.on_trial_complete(0, [trial], trial)

    def _report(self, cell: dict[str, Any]) -> CellReport:
        started_at, data = time.time(), self._data
        worker = SimpleNamespace(
            cell=cell, keeper=self._keeper, epochs=None, pretrained=self._work.pretrained
        )
        found, trained = self._work.perform(worker, data, trial_device.trial_options(cell)[0])
        return CellReport(
            started_at=started_at,
            finished_at=time.time(),
            outcome=found,
            trained=trained,
            data_fingerprint=data.data_fingerprint,
            shared_group_share=data.shared_group_share,
        )

    def heard(self, **_: Any) -> list[Any]:
        return []

    def show(self, *_: Any) -> None:
        pass

    process = count_failure = gpu_failed = show

    def node_memory_bytes(self) -> float:
        return math.inf

    def why_nothing_starts(self) -> str:
        return ""

    def is_up(self) -> bool:
        return True


@contextlib.contextmanager
def trained_here() -> Iterator[None]:
    """Let sweeps, pilots and searches of this process run in it, without Ray."""

    @contextlib.contextmanager
    def connected(*_: Any, **__: Any) -> Iterator[Cluster]:
        yield CLUSTER

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.running.run.connect", connected)
        patch.setattr("orchestrator.running.run.Stages.executor", lambda *_, **__: InlineExecutor())
        patch.setattr("orchestrator.running.actors.Desk", lambda url: None)
        patch.setattr("orchestrator.running.requests.places", lambda request: (1.0, ""))
        patch.setattr("orchestrator.running.trials.TuneExecution", HereExecution)
        yield
