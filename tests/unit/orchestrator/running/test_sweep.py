"""Running cells under Tune: results stored, failures typed and retried by kind, nothing lost."""

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
from orchestrator.running import backend, trial_device, trial_source, worker
from orchestrator.running.backend import TuneBackend
from orchestrator.running.messages import TrialFailedError, TrialReport
from orchestrator.running.progress import Progress
from orchestrator.running.recovery import node_health
from orchestrator.running.recovery.failures import classify
from orchestrator.running.trial_source import RunContext, SweepTrials
from orchestrator.running.trials import TrialLoop
from orchestrator.running.worker import TrialTrainable
from search_spaces.errors import DataError, SetupError
from search_spaces.specs import SubsetSpec, TrialSpec
from search_spaces.sweeps import SweepSpec
from tasks.prepared.subsets import TrialData
from tasks.trials.records import TrialResult
from tests.recorded_tracker import RecordedTracker
from tests.unit.orchestrator.results.examples import diverged, trial_result

pytestmark = pytest.mark.ray


SECRETS = {"AWS_SECRET_ACCESS_KEY": "canary-of-the-store", "MY_API_TOKEN": "canary-of-a-network"}


def throw(error: Exception) -> None:
    raise error


def talk() -> None:
    """Say what should not be said, in every way there is, and fail."""
    os.environ.update(SECRETS)
    copied = [
        name for name in ray.get_runtime_context().runtime_env.get("env_vars", {}) if "AWS" in name
    ]
    print(f"copied {copied} in print, {os.environ['AWS_SECRET_ACCESS_KEY']}")
    logging.getLogger("my.network").info("a log line of %s", os.environ["MY_API_TOKEN"])
    warnings.warn("a warning", stacklevel=1)
    print("to stderr", file=sys.stderr)
    raise ValueError(f"no access with {os.environ['MY_API_TOKEN']}")


# What a cell does, by its train size; "once" leaves it a result at the second attempt.
ONCE = {
    14: lambda: os.kill(os.getpid(), signal.SIGKILL),
    18: lambda: throw(MemoryError("too much")),
    24: lambda: throw(ray.exceptions.ObjectLostError("ab" * 28, "owner", "site")),
    32: lambda: time.sleep(600),
}
ALWAYS = {12: lambda: throw(ZeroDivisionError("a bug")), 16: talk}


class Scripted(TrialTrainable):
    """Does what the tables say; with 28 images the wall clock steps back an hour while it runs."""

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
    made = RunContext(**{**fields, **changes})
    source = SweepTrials(made, plan.trials, load)
    TrialLoop(made, source, TuneBackend(made, source, trainable)).run()
    return made


@pytest.fixture
def run(ray_local: Cluster, root: str) -> Callable[..., RunContext]:
    return partial(run_plan, ray_local, root)


class Looks(Progress):
    """Looks at what Tune holds of trials that ended, whenever one does."""

    held: list[Trial]

    def trial_finished(self, trial_id: str, status: str) -> None:
        super().trial_finished(trial_id, status)
        self.held = [
            one for one in gc.get_objects() if type(one) is Trial and one.status == Trial.TERMINATED
        ]


@pytest.fixture(scope="module")
def scripted(ray_local: Cluster, tmp_path_factory) -> RunContext:
    """One sweep in which a cell does each thing of the tables."""
    told = trial_source.provenance().model_copy(update={"machine": "the driver's"})

    def limit(trial: TrialSpec, *_: Any) -> float:
        return 8.0 if trial.network.train_size == 32 else 600.0

    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        patch.setattr(trial_source, "time_limit", limit)
        patch.setattr(trial_source, "provenance", lambda: told)
        plan = make_plan(10, 12, 14, 16, 18, 20, 24, 28, 32)
        return run_plan(ray_local, str(tmp_path_factory.mktemp("root")), plan, monitor=Looks())


def by_size(records: dict[str, Any]) -> dict[int, Any]:
    return {
        int(trial_id.split("-n")[1].split("-")[0]): record for trial_id, record in records.items()
    }


def test_each_kind_of_failure_has_its_own_policy(scripted):
    sweep = scripted
    results = by_size(sweep.stored.store.scan(TrialRecord).records)
    failed = by_size(sweep.stored.store.scan(FailureRecord).records)
    assert {size: (r.result.status, r.attempt) for size, r in results.items()} == {
        10: ("done", 1),
        14: ("done", 2),  # its process was killed once
        18: ("done", 2),  # out of memory once
        20: ("diverged", 1),  # a result, not a failure: no second attempt
        24: ("done", 2),  # its images could not be fetched once
        28: ("done", 1),
        32: ("done", 2),  # it hung once, and was ended
    }
    kinds = {size: (f.failure.kind, f.attempt) for size, f in failed.items()}
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

    told = sweep.stored.store
    stories = {
        size: [(e.what, e.attempt) for e in told.events(r.trial_id)] for size, r in results.items()
    }
    assert stories[10] == [("started", 1), ("finished", 1)]
    assert stories[14] == [("started", 1), ("failed", 1), ("started", 2), ("finished", 2)]
    (crash,) = [event.said for event in told.events(results[14].trial_id) if event.what == "failed"]
    assert re.search(
        r"^worker_crash: .*\(retried in 1 s; worker_crash 1 of at most 3\)$",
        crash,
    )
    (bug,) = [event.said for event in told.events(failed[12].trial_id) if event.what == "failed"]
    assert re.search(r"\(given up: .*\)$", bug)


def test_tune_holds_next_to_nothing_of_trials_that_have_ended(scripted):
    held = scripted.monitor.held
    ended = {trial.config["trial_id"] for trial in held}
    assert len(ended & scripted.plan.trials_by_id.keys()) >= 2
    for trial in held:
        assert trial.config == {"trial_id": str(trial), "assignment": None}
        assert (trial.evaluated_params, trial.metric_analysis, trial.metric_n_steps) == ({}, {}, {})
        assert trial.last_result == {"trial_id": trial.trial_id}


def test_what_a_trial_says_can_be_read_afterwards_and_has_no_secrets(scripted):
    (failure,) = [one for one in scripted.stored.failures.values() if "-n16-" in one.trial_id]
    (_, failed) = scripted.stored.store.events(failure.trial_id)
    text = scripted.stored.store.attempt_log(failure.trial_id, 1)
    said = (
        "copied [] in print",
        "INFO my.network: a log line of …",
        "Warning: a warning",
        "to stderr",
    )
    assert [one for one in said if one not in text] == []
    assert failure.failure.message == "ValueError: no access with …"
    assert failed.node == ray.util.get_node_ip_address()
    everything = failure.text() + failed.text() + text
    assert not any(secret in everything for secret in SECRETS.values())


def test_a_wall_clock_that_steps_changes_no_duration_and_a_record_says_what_the_worker_was(
    scripted,
):
    record = by_size(scripted.stored.trials)[28]
    assert 0 <= record.finished_at - record.started_at < 600
    assert (record.provenance.code, record.provenance.machine) == (
        code_fingerprint(),
        platform.machine(),
    )


class Poisoned(TrialTrainable):
    """The first process to run a cell breaks at it, and fails at everything it is given from then
    on."""

    def _run(self, started_at: float) -> TrialReport:
        cell = f"poisoned {self.assignment.trial_id.split('-n')[0]} {self.assignment.array}"
        _internal_kv_put(cell, str(os.getpid()).encode(), overwrite=False)
        if _internal_kv_get(cell) == str(os.getpid()).encode():
            trial_device.FIRST_QUARANTINE_S = 0.1  # of this process, which ends
            raise RuntimeError("CUDA error: device-side assert triggered")
        return _report(started_at, trial_result(0.5))


@pytest.mark.long
def test_a_process_that_met_a_device_error_is_not_used_again(run):
    sweep = run(make_plan(*range(4, 14)), trainable=Poisoned)
    records = by_size(sweep.stored.store.scan(TrialRecord).records)
    assert sorted(records) == list(range(4, 14))
    assert sum(record.attempt for record in records.values()) == 11  # one was run twice, elsewhere
    assert sweep.stored.store.scan(FailureRecord).records == {}


class Patched(TrialTrainable):
    """Finds that its checkout has changed since the driver started, and does not wait before it
    says so."""

    def setup(self, config: dict[str, Any], **shared: Any) -> None:
        super().setup(config, **shared)
        trial_device.FIRST_QUARANTINE_S = 0.0  # of this process, which ends
        worker.code_fingerprint = lambda: "0123456789abcdef"

    def _run(self, started_at: float) -> TrialReport:
        _internal_kv_put(f"ran in vain {self.assignment.trial_id} {started_at}", b"1")
        return _report(started_at, trial_result(0.5))


@pytest.mark.long
def test_where_no_node_is_fit_the_sweep_ends_with_the_way_on(run, root, monkeypatch):
    """What other code found is never sealed as the driver's, and most cells are never tried."""
    monkeypatch.setattr(backend, "eligible_nodes", lambda failure: {ray.util.get_node_ip_address()})
    monkeypatch.setattr(node_health, "NODE_UNFIT_AFTER", 2)
    before, plan = len(_internal_kv_list("ran in vain ")), make_plan(*range(4, 40))
    url = str(RootPaths.at(root).make().sweep(plan.sweep.name).folder)
    message = (
        r"No node has the same source code as the driver \(1 node tried\)\. .*0123456789abcdef"
    )
    with pytest.raises(SetupError, match=message) as caught:
        run(plan, trainable=Patched, stored=StoredResults.read(url))
    assert caught.value.exit_code == 3
    store = ResultStore(url)
    failed = store.scan(FailureRecord).records.values()
    assert 2 <= len(failed) < 10
    assert {record.failure.kind for record in failed} == {"other_code"}
    assert store.scan(TrialRecord).records == {}
    # Nor those that Tune was given already, 16 of them.
    assert len(_internal_kv_list("ran in vain ")) - before < 10


def test_it_is_said_what_is_missing_when_nothing_can_start(run, monkeypatch):
    class Impatient(Progress):
        def note(self, message: str) -> None:
            raise KeyboardInterrupt(message)

    monkeypatch.setattr("orchestrator.running.recovery.start_wait.WARN_AFTER_S", 1.0)
    with pytest.raises(
        KeyboardInterrupt, match=r"each trial requests 64 CPU \(the cluster has 2, \S+ free\)"
    ):
        run(make_plan(10), resources=Resources(64, 0), monitor=Impatient())


@pytest.mark.long
def test_a_dataset_that_cannot_be_read_costs_its_own_cells_and_no_other(run):
    pairs = {"name": "mnist5k", "class_pairs": ((0, 1), (2, 3))}
    plan = make_plan(10, datasets=(pairs,))
    gone = plan.trials[0].network.subset.subset_id

    def vanished(subset: SubsetSpec, train_size: int) -> TrialData:
        if subset.subset_id == gone:
            raise DataError("The prepared dataset was removed", hint="Run again")
        return load(subset, train_size)

    class Loads(TrialTrainable):
        def _run(self, started_at: float) -> TrialReport:
            self._images()
            return _report(started_at, trial_result(0.5))

    sweep = run(plan, trainable=Loads, load=vanished)
    failed = sweep.stored.failures
    of_it = {trial.trial_id for trial in plan.trials if trial.network.subset.subset_id == gone}
    assert set(failed) == of_it
    assert {record.failure.kind for record in failed.values()} == {"bad_data"}
    assert all(
        "The prepared dataset was removed. Run again" in one.failure.message
        for one in failed.values()
    )
    assert set(sweep.stored.trials) == plan.trials_by_id.keys() - of_it


def test_the_error_that_ray_shows_is_the_message_and_has_the_whole_report():
    report = TrialReport(
        started_at=1.0, finished_at=2.0, outcome=classify(ZeroDivisionError("a bug"))
    )
    error = TrialFailedError("code_error: ZeroDivisionError: a bug", report.text())
    again = ray.cloudpickle.loads(ray.cloudpickle.dumps(error))
    assert str(again) == "code_error: ZeroDivisionError: a bug"
    assert TrialReport.model_validate_json(again.report) == report
