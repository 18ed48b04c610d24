"""Faults of one process or one trial that must cost no other: broken devices, hangs."""

import os
import time
from typing import Any

import pytest
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from orchestrator.results.store import CellReport, FailureRecord, TrialRecord
from orchestrator.running import gpus
from orchestrator.running.worker import TrialTrainable
from tests.unit.orchestrator.results.examples import trial_result
from tests.unit.orchestrator.running.test_sweep import _report, by_size, make_plan, run  # noqa: F401


class Poisoned(TrialTrainable):
    """The first process to run a cell breaks at it, and fails at everything it is given from then on."""

    def _run(self, started_at: float) -> CellReport:
        plan = self.cell["trial_id"].split("-n")[0] + os.environ.get("RAY_JOB_ID", "")
        _internal_kv_put(f"poisoned {plan} {self.cell['data']}", str(os.getpid()).encode(), overwrite=False)
        if _internal_kv_get(f"poisoned {plan} {self.cell['data']}") == str(os.getpid()).encode():
            gpus.REST_S = 0.1  # of this process, which ends
            raise RuntimeError("CUDA error: device-side assert triggered")
        return _report(started_at, trial_result(0.5))


class Hanging(TrialTrainable):
    """One cell hangs the first time."""

    def _run(self, started_at: float) -> CellReport:
        if "-n12-" in self.cell["trial_id"] and not _internal_kv_put("hung once", b"1", overwrite=False):
            time.sleep(600)
        return _report(started_at, trial_result(0.5))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_a_process_that_met_a_device_error_is_not_used_again(run: Any) -> None:  # noqa: F811
    plan = make_plan(*range(4, 20))
    sweep = run(plan, trainable=Poisoned)
    records = by_size(sweep.stored.store.scan(TrialRecord).records)
    assert sorted(records) == list(range(4, 20))
    assert sum(record.attempt for record in records.values()) == 17  # one was run twice, elsewhere
    assert sweep.stored.store.scan(FailureRecord).records == {}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_a_trial_that_hangs_is_ended_and_run_again(run: Any, monkeypatch: Any) -> None:  # noqa: F811
    plan = make_plan(10, 12, 14)
    monkeypatch.setattr("orchestrator.running.trials.time_limit", lambda trial, measured: 8.0)
    sweep = run(plan, trainable=Hanging)
    records = by_size(sweep.stored.store.scan(TrialRecord).records)
    assert {size: record.attempt for size, record in records.items()} == {10: 1, 12: 2, 14: 1}
