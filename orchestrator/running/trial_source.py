"""The sources of a run's trials, and the context that all its trials share.

A sweep's trials are known from the start (:class:`SweepTrials`). A search makes each of its trials
when a worker is free (:class:`orchestrator.tuning.search_trials.SearchTrials`). Both are a
:class:`TrialSource`, and one loop runs either.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from orchestrator.machine.cluster import Cluster, Resources
from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import SweepPlan
from orchestrator.planning.runtimes import RuntimeModel, expected_seconds, time_limit
from orchestrator.planning.trial_order import array_key, order_trials
from orchestrator.results.flat_runs import CurvePoint, FlatRun, epoch_points, flat_trial
from orchestrator.results.metrics import index_measures
from orchestrator.results.provenance import provenance
from orchestrator.results.records import TrialRecord
from orchestrator.results.state import State
from orchestrator.results.store import ResultStore
from orchestrator.results.stored_results import StoredResults
from orchestrator.results.tracking import Tracker
from orchestrator.running.actors import ActorHandles
from orchestrator.running.messages import TrialAssignment, TrialReport
from orchestrator.running.perform import Perform, perform_trial
from orchestrator.running.progress import Progress
from orchestrator.running.queue import TrialQueue
from search_spaces.specs import Domain, NetworkSpec, SubsetSpec, TrialSpec
from tasks.prepared.subsets import TrialData
from tasks.trials.records import EpochRecord, EpochScore, TrialResult

OBJECT_STORE_SHARE = 0.6
"""Share of the smallest object store that arrays may fill; the rest is for measures and Ray."""


@dataclass
class RunContext:
    """The context that all trials of one run share.

    Attributes:
        plan: the sweep's plan.
        paths: the root's folders.
        cluster: the connected cluster.
        resources: what the sweep asks for every trial.
        stored: results, read at the start and written by this run alone.
        tracker: shows trials in MLflow.
        monitor: shows trials in the terminal.
        expectation: predicts the seconds and the share of each trial.
        actors: actors that were started early; None lets the backend start them.
    """

    plan: SweepPlan
    paths: RootPaths
    cluster: Cluster
    resources: Resources
    stored: StoredResults
    tracker: Tracker
    monitor: Progress
    expectation: RuntimeModel = field(default_factory=RuntimeModel)
    actors: ActorHandles | None = None

    @property
    def array_bytes(self) -> float:
        """Bytes of the object store that arrays may fill."""
        return self.cluster.object_store_bytes * OBJECT_STORE_SHARE


class TrialSource:
    """The trials of a run, and what is specific to a sweep or to a search.

    Args:
        run: what the trials share.
        queue: the trials that wait.
        trials: every trial that was taken from the queue, or may be, by its id.

    Attributes:
        perform: performs a trial, in a worker.
        store_url: where workers store weights, predictions and checkpoints; None stores none.
        num_uses: trials that need each array; None if nobody knows.
        pretrained: weights that networks start from, by :attr:`ModelSpec.pretrained_key`.
        earlier_attempts: attempts at each trial in earlier runs.
    """

    perform: Perform
    store_url: str | None = None
    num_uses: Counter[str] | None = None
    pretrained: Mapping[str, bytes] = {}

    def __init__(self, run: RunContext, queue: TrialQueue, trials: dict[str, TrialSpec]) -> None:
        self.run = run
        self.queue = queue
        self.trials = trials
        self.earlier_attempts: dict[str, int] = {}

    def load_array(self, key: str) -> TrialData:
        """Read an array.

        Raises:
            DataError: it cannot be read; only the trials that use it fail.
        """
        raise NotImplementedError

    def store_result(self, trial: TrialSpec, report: TrialReport, attempt: int) -> FlatRun:
        """Store the result of a trial, and return what a tracker shows of it."""
        raise NotImplementedError

    def array_of(self, trial: TrialSpec) -> str:
        """Return the key of the array that a trial is trained on."""
        return array_key(self.run.plan, trial)

    def assignment(self, trial: TrialSpec, resources: Resources) -> TrialAssignment:
        """Return what a trial's worker is given, for these resources."""
        return TrialAssignment(trial, self.array_of(trial), resources, provenance().code)

    def record_fields(self, trial: TrialSpec, report: TrialReport, attempt: int) -> dict[str, Any]:
        """Return the fields that records of a sweep's and of a search's trials have in common."""
        return {
            "trial_id": trial.trial_id,
            "sweep": self.run.plan.sweep.name,
            "spec": trial,
            "domain": self.domain_of(trial),
            "attempt": attempt,
            "result": report.outcome,
            "data_fingerprint": report.data_fingerprint,
            "gpu_share": report.gpu_share,
            "started_at": report.started_at,
            "finished_at": report.finished_at,
            "provenance": report.provenance,
        }

    def domain_of(self, trial: TrialSpec) -> Domain | None:
        """Return the domain of a trial's images."""
        return self.run.plan.datasets[trial.network.subset.dataset].domain

    def give_up(self, trial_id: str) -> None:
        """Take note that a trial failed and is not tried again in this run."""

    def trained_network(self, trial: TrialSpec) -> NetworkSpec:
        """Return a trial's network, with the number of images that it is trained on."""
        return trial.network

    def curve_points(
        self, epoch: EpochRecord, score: EpochScore | None, at_ms: int
    ) -> tuple[CurvePoint, ...]:
        """Return what the tracker shows of an epoch while its trial runs."""
        return epoch_points(epoch, score, at_ms)

    def time_limit_s(self, trial: TrialSpec) -> float:
        """Return the seconds of silence after which a trial counts as hung."""
        return time_limit(trial, (), self.run.expectation)


class SweepTrials(TrialSource):
    """The trials of a plan that lack a result.

    Args:
        run: what the trials share.
        trials: the trials to run.
        load: reads a subset's arrays, given how many training images are needed.
        state: what is stored; None for a store that is empty.
        store_url: where workers store weights, predictions and checkpoints; None stores none.
        pretrained: weights that networks start from.
    """

    perform = staticmethod(perform_trial)

    def __init__(
        self,
        run: RunContext,
        trials: Iterable[TrialSpec],
        load: Callable[[SubsetSpec, int], TrialData],
        *,
        state: State | None = None,
        store_url: str | None = None,
        pretrained: Mapping[str, bytes] | None = None,
    ) -> None:
        trials = list(trials)
        seconds = expected_seconds(trials, run.expectation)
        run.monitor.expected = seconds
        in_order = order_trials(run.plan, trials, run.array_bytes, seconds)
        by_id = {trial.trial_id: trial for trial in in_order}
        super().__init__(run, TrialQueue(deque(by_id)), by_id)
        self.store_url = store_url
        self.pretrained = pretrained or {}
        self.num_uses = Counter(self.array_of(trial) for trial in trials)
        self._load = load
        self._network_by_array = {self.array_of(trial): trial.network for trial in trials}
        self._incomplete: frozenset[str] = frozenset()
        self._measured = []
        self._measures = index_measures(())
        if state is not None:
            self._incomplete = frozenset(state.partial)
            self._measured = state.measured_trials()
            self._measures = index_measures(state.measures.values())
            self.earlier_attempts = {
                trial_id: record.attempt for trial_id, record in state.failures.items()
            }

    def load_array(self, key: str) -> TrialData:
        """See :class:`TrialSource`."""
        network = self._network_by_array[key]
        num_images = self.run.plan.load_size(network.subset, network.train_size)
        return self._load(network.subset, num_images)

    def assignment(self, trial: TrialSpec, resources: Resources) -> TrialAssignment:
        """Return what a worker is given.

        An earlier result of the same network and images comes along if only measurements are
        missing from it.
        """
        earlier = None
        if trial.trial_id in self._incomplete:
            earlier = self.run.stored.trials.get(trial.trial_id)
        return TrialAssignment(
            trial,
            self.array_of(trial),
            resources,
            provenance().code,
            earlier=earlier,
            keep_weights=self.run.plan.keeps_weights(trial),
        )

    def store_result(self, trial: TrialSpec, report: TrialReport, attempt: int) -> FlatRun:
        """See :class:`TrialSource`."""
        result = cast("TrialResult", report.outcome)
        fields = self.record_fields(trial, report, attempt)
        fields["shared_group_share"] = report.shared_group_share
        fields["gpu_name"] = report.gpu_name
        earlier = self.run.stored.trials.get(trial.trial_id)
        if earlier is not None and not report.trained:
            # Nothing was trained: times and GPU stay those of the training.
            fields["gpu_share"] = earlier.gpu_share
            fields["gpu_name"] = earlier.gpu_name
            fields["started_at"] = earlier.started_at
            fields["finished_at"] = earlier.finished_at
            fields["measured_at"] = report.finished_at
        record = TrialRecord(**fields)
        self.run.stored.save(record)
        self._note_files(trial.trial_id, "weights", result.weights_note)
        self._note_files(trial.trial_id, "predictions", result.predictions_note)
        if self.store_url is not None:
            ResultStore(self.store_url).remove_checkpoint(trial.trial_id)
        return flat_trial(record, self._measures)

    def _note_files(self, trial_id: str, kind: str, reason: str) -> None:
        if reason:
            self.run.monitor.note(f"{trial_id}: the {kind} are not kept: {reason}")

    def time_limit_s(self, trial: TrialSpec) -> float:
        """See :class:`TrialSource`."""
        return time_limit(trial, self._measured, self.run.expectation)
