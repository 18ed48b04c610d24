"""A worker says which code it runs; what other code found is never sealed as the driver's."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.planning.paths import RootPaths
from orchestrator.results.state import StoredResults
from orchestrator.results.store import CellReport, FailureKind, FailureRecord, TrialRecord, code_fingerprint
from orchestrator.running import failures, trials, worker
from orchestrator.running.worker import TrialTrainable
from search_spaces.errors import SetupError
from tests.unit.orchestrator.results.examples import trial_result
from tests.unit.orchestrator.running.test_sweep import _report, make_plan, run  # noqa: F401

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]


class Patched(TrialTrainable):
    """Finds that its checkout has changed since the driver started, and does not wait before it says so."""

    def setup(self, config: dict[str, Any], **shared: Any) -> None:
        super().setup(config, **shared)
        worker.gpus.rest = lambda has_run: None
        worker.code_fingerprint = lambda: "0123456789abcdef"

    def _run(self, started_at: float) -> CellReport:
        return _report(started_at, trial_result(0.5))


class Honest(TrialTrainable):
    """Reports at once."""

    def _run(self, started_at: float) -> CellReport:
        return _report(started_at, trial_result(0.5))


def test_cells_of_other_code_are_never_sealed_and_end_the_sweep_with_the_way_on(
    run: Any,  # noqa: F811
    root: str,
    monkeypatch: Any,
) -> None:
    monkeypatch.setattr(failures, "MOST_ON_UNFIT", 2)
    plan = make_plan(*range(4, 16))
    url = str(RootPaths.create(root).sweep(plan.sweep.name).folder)
    with pytest.raises(
        SetupError, match=r"must run the code of the driver; found: on each of 1 nodes .*0123456789abcdef"
    ) as caught:
        run(plan, trainable=Patched, stored=StoredResults.read(url))
    assert caught.value.exit_code == 3
    again = StoredResults.read(url)
    assert again.store.scan(TrialRecord).records == {}
    failed = again.store.scan(FailureRecord).records.values()
    assert {record.failure.kind for record in failed} == {FailureKind.OTHER_CODE}


def test_a_record_says_what_the_worker_was(run: Any, monkeypatch: Any) -> None:  # noqa: F811
    told = trials.provenance().model_copy(update={"machine": "the driver's"})
    monkeypatch.setattr(trials, "provenance", lambda: told)
    sweep = run(make_plan(10), trainable=Honest)
    (record,) = sweep.stored.store.scan(TrialRecord).records.values()
    assert record.provenance.code == code_fingerprint()
    assert record.provenance.machine != "the driver's"
