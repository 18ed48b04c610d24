"""Test trials that run under Tune: results are stored, failures have a kind and retries by kind."""

import gc
import logging
import os
import platform
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import ray
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list, _internal_kv_put
from ray.tune.experiment import Trial

from orchestrator.machine.cluster import Cluster, Resources
from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import SweepPlan, plan_sweep
from orchestrator.results.provenance import code_fingerprint
from orchestrator.results.records import FailureRecord, TrialRecord
from orchestrator.results.store import ResultStore
from orchestrator.results.stored_results import StoredResults
from orchestrator.running import backend, trial_source
from orchestrator.running.backend import TuneBackend
from orchestrator.running.messages import TrialFailedError, TrialReport
from orchestrator.running.progress import Progress
from orchestrator.running.recovery import node_health
from orchestrator.running.recovery.failures import classify
from orchestrator.running.trial_source import RunContext, SweepTrials
from orchestrator.running.trials import TrialLoop
from orchestrator.running.workers import trial_device, worker
from orchestrator.running.workers.worker import TrialTrainable
from search_spaces.errors import DataError, SetupError
from search_spaces.specs import SubsetSpec, TrialSpec
from search_spaces.sweeps import SweepSpec
from tasks.prepared.subsets import TrialData
from tasks.trials.records import TrialResult
from tests.recorded_tracker import RecordedTracker
from tests.unit.orchestrator.results.examples import diverged, trial_result

pytestmark = pytest.mark.ray


SECRETS = {"AWS_SECRET_ACCESS_KEY": "canary-of-the-store", "MY_API_TOKEN": "canary-of-a-network"}


def raise_error(error: Exception) -> None:
    raise error


def print_secrets_and_fail() -> None:
    """Print and log secrets in every possible way, and fail."""
    os.environ.update(SECRETS)
    copied = [
        name for name in ray.get_runtime_context().runtime_env.get("env_vars", {}) if "AWS" in name
    ]
    print(f"copied {copied} in print, {os.environ['AWS_SECRET_ACCESS_KEY']}")
    logging.getLogger("my.network").info("a log line of %s", os.environ["MY_API_TOKEN"])
    warnings.warn("a warning", stacklevel=1)
    print("to stderr", file=sys.stderr)
    raise ValueError(f"no access with {os.environ['MY_API_TOKEN']}")


# Actions of a trial by its train size; after an action of ONCE the second attempt has a result.
ONCE = {
    14: lambda: os.kill(os.getpid(), signal.SIGKILL),
    18: lambda: raise_error(MemoryError("too much")),
    24: lambda: raise_error(ray.exceptions.ObjectLostError("ab" * 28, "owner", "site")),
    32: lambda: time.sleep(600),
}
ALWAYS = {12: lambda: raise_error(ZeroDivisionError("a bug")), 16: print_secrets_and_fail}


class Scripted(TrialTrainable):
    """A worker that acts by the tables; with 28 images the wall clock steps back an hour."""

    def _run(self, started_at: float) -> TrialReport:
        size, real = int(self.assignment.trial_id.split("-n")[1].split("-")[0]), time.time
        first = not _internal_kv_put(f"seen {self.assignment.trial_id}", b"1", overwrite=False)
        if size in ALWAYS or (first and size in ONCE):
            (ALWAYS | ONCE)[size]()
        if size == 28:
            time.time = lambda: real() - 3600
        try:
            return _report(started_at, diverged() if size == 20 else trial_result(1 / size))
        finally:
            time.time = real


def _report(started_at: float, result: TrialResult) -> TrialReport:
    finished_at = started_at + 0.5
    return TrialReport(
        started_at=started_at, finished_at=finished_at, outcome=result, data_fingerprint="f"
    )


def make_plan(*train_sizes: int, **changes: Any) -> SweepPlan:
    fields = {
        "name": f"scripted-{time.time_ns()}",
        "models": ("small_mlp",),
        "datasets": ({"name": "mri_lesion"},),
        "train_sizes": train_sizes,
        "test_size": 4,
        "image_size": 8,
        "recipe": "smoke",
    }
    return plan_sweep(SweepSpec.model_validate(fields | changes))


def load(subset: SubsetSpec, train_size: int) -> TrialData:
    images = np.zeros((30, 1, 8, 8), np.uint8)
    labels = np.arange(30, dtype=np.int64) % 2
    return TrialData(images, labels, images[:4], labels[:4], 2, "f")


def run_plan(
    cluster: Cluster,
    root: str,
    plan: SweepPlan,
    trainable: type = Scripted,
    load: Any = load,
    **changes: Any,
) -> RunContext:
    paths = RootPaths.at(root).make()
    fields: dict[str, Any] = {
        "plan": plan,
        "cluster": cluster,
        "resources": Resources(1, 0),
        "paths": paths,
        "stored": StoredResults.read(str(paths.sweep(plan.sweep.name).folder)),
        "tracker": RecordedTracker(),
        "monitor": Progress(),
    }
    run = RunContext(**{**fields, **changes})
    source = SweepTrials(run, plan.trials, load)
    TrialLoop(run, source, TuneBackend(run, source, trainable)).run()
    return run


@pytest.fixture
def run(ray_local: Cluster, root: str) -> Callable[..., RunContext]:
    return partial(run_plan, ray_local, root)


class CollectsEndedTrials(Progress):
    """Collects the ended trials that Tune still has in memory, whenever a trial ends."""

    ended_trials: list[Trial]

    def trial_finished(self, trial_id: str, status: str) -> None:
        super().trial_finished(trial_id, status)
        self.ended_trials = [
            item
            for item in gc.get_objects()
            if type(item) is Trial and item.status == Trial.TERMINATED
        ]


@pytest.fixture(scope="module")
def scripted(ray_local: Cluster, tmp_path_factory) -> RunContext:
    """Run one sweep in which each action of the tables happens in one trial."""
    driver_provenance = trial_source.provenance().model_copy(update={"machine": "the driver's"})

    def limit(trial: TrialSpec, *_: Any) -> float:
        return 8.0 if trial.network.train_size == 32 else 600.0

    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        patch.setattr(trial_source, "time_limit", limit)
        patch.setattr(trial_source, "provenance", lambda: driver_provenance)
        plan = make_plan(10, 12, 14, 16, 18, 20, 24, 28, 32)
        return run_plan(
            ray_local, str(tmp_path_factory.mktemp("root")), plan, monitor=CollectsEndedTrials()
        )


def by_size(records: dict[str, Any]) -> dict[int, Any]:
    return {
        int(trial_id.split("-n")[1].split("-")[0]): record for trial_id, record in records.items()
    }


def test_each_kind_of_failure_has_its_own_policy(scripted):
    sweep = scripted
    results = by_size(sweep.stored.store.scan(TrialRecord).records)
    failed = by_size(sweep.stored.store.scan(FailureRecord).records)
    assert {size: (record.result.status, record.attempt) for size, record in results.items()} == {
        10: ("done", 1),
        14: ("done", 2),  # its process was killed once
        18: ("done", 2),  # out of memory once
        20: ("diverged", 1),  # a result and not a failure: no second attempt
        24: ("done", 2),  # its images could not be fetched once
        28: ("done", 1),
        32: ("done", 2),  # it hung once, and its process was ended
    }
    kinds = {size: (record.failure.kind, record.attempt) for size, record in failed.items()}
    assert kinds == {12: ("code_error", 1), 16: ("code_error", 1)}
    assert failed[12].failure.message == "ZeroDivisionError: a bug"
    assert "in _run" in failed[12].failure.traceback
    assert results[20].result.reason == "loss is nan"
    statuses = by_size(sweep.tracker.statuses)
    assert {size for size, status in statuses.items() if status == "FINISHED"} == set(results)
    assert {size for size, status in statuses.items() if status == "FAILED"} == {12, 16}
    assert sweep.monitor.done == 7
    assert len(sweep.monitor.failed) == 2
    assert os.listdir(sweep.paths.tune) == []

    store = sweep.stored.store
    events = {
        size: [(event.what, event.attempt) for event in store.events(record.trial_id)]
        for size, record in results.items()
    }
    assert events[10] == [("started", 1), ("finished", 1)]
    assert events[14] == [("started", 1), ("failed", 1), ("started", 2), ("finished", 2)]
    (crash,) = [
        event.said for event in store.events(results[14].trial_id) if event.what == "failed"
    ]
    assert re.search(
        r"^worker_crash: .*\(retried in 1 s; worker_crash 1 of at most 3\)$",
        crash,
    )
    (bug,) = [event.said for event in store.events(failed[12].trial_id) if event.what == "failed"]
    assert re.search(r"\(given up: .*\)$", bug)


def test_tune_keeps_next_to_nothing_of_ended_trials(scripted):
    ended_trials = scripted.monitor.ended_trials
    trial_ids = {trial.config["trial_id"] for trial in ended_trials}
    assert len(trial_ids & scripted.plan.trials_by_id.keys()) >= 2
    for trial in ended_trials:
        assert trial.config == {"trial_id": str(trial), "assignment": None}
        assert (trial.evaluated_params, trial.metric_analysis, trial.metric_n_steps) == ({}, {}, {})
        assert trial.last_result == {"trial_id": trial.trial_id}


def test_the_output_of_a_trial_is_stored_without_secrets(scripted):
    (failure,) = [
        candidate
        for candidate in scripted.stored.failures.values()
        if "-n16-" in candidate.trial_id
    ]
    (_, failed_event) = scripted.stored.store.events(failure.trial_id)
    text = scripted.stored.store.attempt_log(failure.trial_id, 1)
    parts = (
        "copied [] in print",
        "INFO my.network: a log line of …",
        "Warning: a warning",
        "to stderr",
    )
    assert [part for part in parts if part not in text] == []
    assert failure.failure.message == "ValueError: no access with …"
    assert failed_event.node == ray.util.get_node_ip_address()
    everything = failure.text() + failed_event.text() + text
    assert not any(secret in everything for secret in SECRETS.values())


def test_a_step_of_the_wall_clock_changes_no_duration_and_a_record_has_the_machine(
    scripted,
):
    record = by_size(scripted.stored.trials)[28]
    assert 0 <= record.finished_at - record.started_at < 600
    assert (record.provenance.code, record.provenance.machine) == (
        code_fingerprint(),
        platform.machine(),
    )


class Poisoned(TrialTrainable):
    """A worker of which the first process for an array fails at each of its trials."""

    def _run(self, started_at: float) -> TrialReport:
        cell = f"poisoned {self.assignment.trial_id.split('-n')[0]} {self.assignment.array}"
        _internal_kv_put(cell, str(os.getpid()).encode(), overwrite=False)
        if _internal_kv_get(cell) == str(os.getpid()).encode():
            trial_device.FIRST_QUARANTINE_S = 0.1  # of this process, which ends
            raise RuntimeError("CUDA error: device-side assert triggered")
        return _report(started_at, trial_result(0.5))


@pytest.mark.long
def test_a_process_with_a_device_error_is_not_used_again(run):
    sweep = run(make_plan(*range(4, 14)), trainable=Poisoned)
    records = by_size(sweep.stored.store.scan(TrialRecord).records)
    assert sorted(records) == list(range(4, 14))
    # One trial had a second attempt, in another process.
    assert sum(record.attempt for record in records.values()) == 11
    assert sweep.stored.store.scan(FailureRecord).records == {}


class ChangedCode(TrialTrainable):
    """A worker whose code has changed since the driver started, and that reports it at once."""

    def setup(self, config: dict[str, Any], **shared: Any) -> None:
        super().setup(config, **shared)
        worker.code_fingerprint = lambda: "0123456789abcdef"

    def _run(self, started_at: float) -> TrialReport:
        _internal_kv_put(f"ran in vain {self.assignment.trial_id} {started_at}", b"1")
        return _report(started_at, trial_result(0.5))


@pytest.mark.long
def test_a_sweep_ends_with_a_hint_if_no_node_has_the_code_of_the_driver(run, root, monkeypatch):
    """A result of other code is never stored as that of the driver, and most trials never start."""
    monkeypatch.setattr(backend, "eligible_nodes", lambda failure: {ray.util.get_node_ip_address()})
    monkeypatch.setattr(node_health, "NODE_UNFIT_AFTER", 2)
    before, plan = len(_internal_kv_list("ran in vain ")), make_plan(*range(4, 40))
    url = str(RootPaths.at(root).make().sweep(plan.sweep.name).folder)
    message = (
        r"No node has the same source code as the driver \(1 node tried\)\. .*0123456789abcdef"
    )
    with pytest.raises(SetupError, match=message) as caught:
        run(plan, trainable=ChangedCode, stored=StoredResults.read(url))
    assert caught.value.exit_code == 3
    store = ResultStore(url)
    failed = store.scan(FailureRecord).records.values()
    assert 2 <= len(failed) < 10
    assert {record.failure.kind for record in failed} == {"other_code"}
    assert store.scan(TrialRecord).records == {}
    # Most of the 16 trials that Tune already had never start either.
    assert len(_internal_kv_list("ran in vain ")) - before < 10


def test_missing_resources_are_reported_if_no_trial_can_start(run, monkeypatch):
    class StopsAtFirstNote(Progress):
        def note(self, message: str) -> None:
            raise KeyboardInterrupt(message)

    monkeypatch.setattr("orchestrator.running.recovery.start_wait.WARN_AFTER_S", 1.0)
    with pytest.raises(
        KeyboardInterrupt, match=r"each trial requests 64 CPU \(the cluster has 2, \S+ free\)"
    ):
        run(make_plan(10), resources=Resources(64, 0), monitor=StopsAtFirstNote())


@pytest.mark.long
def test_a_dataset_that_cannot_be_read_fails_its_trials_and_no_other(run):
    pairs = {"name": "mnist5k", "class_pairs": ((0, 1), (2, 3))}
    plan = make_plan(10, datasets=(pairs,))
    removed_subset = plan.trials[0].network.subset.subset_id

    def load_or_fail(subset: SubsetSpec, train_size: int) -> TrialData:
        if subset.subset_id == removed_subset:
            raise DataError("The prepared dataset was removed", hint="Run again")
        return load(subset, train_size)

    class Loads(TrialTrainable):
        def _run(self, started_at: float) -> TrialReport:
            self._images()
            return _report(started_at, trial_result(0.5))

    sweep = run(plan, trainable=Loads, load=load_or_fail)
    failed = sweep.stored.failures
    trials_of_subset = {
        trial.trial_id for trial in plan.trials if trial.network.subset.subset_id == removed_subset
    }
    assert set(failed) == trials_of_subset
    assert {record.failure.kind for record in failed.values()} == {"bad_data"}
    assert all(
        "The prepared dataset was removed. Run again" in record.failure.message
        for record in failed.values()
    )
    assert set(sweep.stored.trials) == plan.trials_by_id.keys() - trials_of_subset


def test_the_error_of_a_failed_trial_has_the_message_and_the_complete_report():
    report = TrialReport(
        started_at=1.0, finished_at=2.0, outcome=classify(ZeroDivisionError("a bug"))
    )
    error = TrialFailedError("code_error: ZeroDivisionError: a bug", report.text())
    restored = ray.cloudpickle.loads(ray.cloudpickle.dumps(error))
    assert str(restored) == "code_error: ZeroDivisionError: a bug"
    assert TrialReport.model_validate_json(restored.report) == report
