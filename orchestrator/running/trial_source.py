"""The source of a run's trials, and the context that all these trials share.

:class:`~orchestrator.running.trials.TrialLoop` runs the trials of a :class:`TrialSource`.
There are two kinds of sources. :class:`SweepTrials` contains all trials of a sweep from the
start. A search chooses each trial when a worker is free
(:class:`orchestrator.tuning.search_trials.SearchTrials`).
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
from orchestrator.running.progress import Progress
from orchestrator.running.queue import TrialQueue
from orchestrator.running.workers.perform import TrialFunction, perform_trial
from search_spaces.specs import Domain, NetworkSpec, SubsetSpec, TrialSpec
from tasks.prepared.subsets import TrialData
from tasks.trials.records import EpochRecord, EpochScore, TrialResult

OBJECT_STORE_SHARE = 0.6
"""Share of the cluster's smallest object store that images may fill. The remaining share is
for measures and for Ray itself."""


@dataclass
class RunContext:
    """The context that all trials of one run share.

    Attributes:
        plan: the sweep's plan.
        paths: the root's folders.
        cluster: the connected cluster.
        resources: resources that the sweep requests for every trial.
        stored: stored results. The run reads them once, at its start. Only this run changes
            them.
        tracker: connection that shows trials in MLflow.
        monitor: display of the trials in the terminal.
        runtime_model: model that predicts the seconds and the GPU share of each trial.
        actors: actors that were started earlier. None means that the backend starts the
            actors.
        small_gpus: names of the GPUs that have less memory than the cluster's largest GPU.
    """

    plan: SweepPlan
    paths: RootPaths
    cluster: Cluster
    resources: Resources
    stored: StoredResults
    tracker: Tracker
    monitor: Progress
    runtime_model: RuntimeModel = field(default_factory=RuntimeModel)
    actors: ActorHandles | None = None
    small_gpus: frozenset[str] = frozenset()

    @property
    def array_bytes(self) -> float:
        """Space for images in the object store, in bytes."""
        return self.cluster.object_store_bytes * OBJECT_STORE_SHARE


class TrialSource:
    """The trials of a run, and everything that differs between a sweep and a search.

    A subclass must set :attr:`perform` and define :meth:`load_array` and :meth:`store_result`.
    It may override the other methods.

    Several trials may use the same images. Such images are called an *array*, and are in
    memory only once. The key of an array is a text.

    Args:
        run: context that the trials share.
        queue: the waiting trials.
        trials: every trial that is or was in the queue, by trial id.

    Attributes:
        perform: function that runs a trial in a worker.
        store_url: folder or URL of the result store for weights, predictions and checkpoints.
            An actor on the driver's node writes them. None means that nothing is stored.
        num_uses: number of trials that use each array, by the array's key, or None if these
            numbers are unknown.
        pretrained: pretrained weights from which networks start, by
            :attr:`ModelSpec.pretrained_key`.
        earlier_attempts: number of attempts in earlier runs, by trial id.
    """

    perform: TrialFunction

    def __init__(self, run: RunContext, queue: TrialQueue, trials: dict[str, TrialSpec]) -> None:
        self.run = run
        self.queue = queue
        self.trials = trials
        self.store_url: str | None = None
        self.num_uses: Counter[str] | None = None
        self.pretrained: Mapping[str, bytes] = {}
        self.earlier_attempts: dict[str, int] = {}

    def load_array(self, key: str) -> TrialData:
        """Read the images of the array with this key.

        Raises:
            DataError: the images cannot be read. Only the trials that use these images fail.
        """
        raise NotImplementedError

    def store_result(self, trial: TrialSpec, report: TrialReport, attempt: int) -> FlatRun:
        """Store the result of a trial. Return the row that the tracker shows for this trial."""
        raise NotImplementedError

    def array_of(self, trial: TrialSpec) -> str:
        """Return the key of a trial's array."""
        return array_key(self.run.plan, trial)

    def assignment(self, trial: TrialSpec, resources: Resources) -> TrialAssignment:
        """Return the assignment for the worker that runs a trial with these resources."""
        return TrialAssignment(trial, self.array_of(trial), resources, provenance().code)

    def record_fields(self, trial: TrialSpec, report: TrialReport, attempt: int) -> dict[str, Any]:
        """Return the fields that a trial's record has in sweeps and in searches."""
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
        """Return the domain of a trial's images, natural or medical, or None if it is unknown."""
        return self.run.plan.datasets[trial.network.subset.dataset].domain

    def give_up(self, trial_id: str) -> None:
        """Handle a trial that failed and gets no further attempt in this run."""

    def trained_network(self, trial: TrialSpec) -> NetworkSpec:
        """Return a trial's network. Its ``train_size`` is the number of images that really
        train it.

        In a search, a trial is trained on fewer images than its spec says, because some of
        these images are used for validation.
        """
        return trial.network

    def curve_points(
        self, epoch: EpochRecord, score: EpochScore | None, at_ms: int
    ) -> tuple[CurvePoint, ...]:
        """Return the points of the learning curves that the tracker shows after this epoch."""
        return epoch_points(epoch, score, at_ms)

    def time_limit_s(self, trial: TrialSpec) -> float:
        """Return the seconds without a message after which a trial counts as hung."""
        return time_limit(trial, (), self.run.runtime_model)


class SweepTrials(TrialSource):
    """The trials of a plan that have no complete result.

    Args:
        run: context that the trials share.
        trials: the trials to run.
        load: function that reads the images of a subset. Its second argument is the number of
            training images.
        state: state of the sweep in the store. None means that the store is empty.
        store_url: folder or URL of the result store for weights, predictions and checkpoints.
            An actor on the driver's node writes them. None means that nothing is stored.
        pretrained: pretrained weights from which networks start, by
            :attr:`ModelSpec.pretrained_key`.
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
        seconds = expected_seconds(trials, run.runtime_model)
        run.monitor.expected = seconds
        in_order = order_trials(run.plan, trials, run.array_bytes, seconds)
        by_id = {trial.trial_id: trial for trial in in_order}
        super().__init__(run, TrialQueue(deque(by_id)), by_id)
        self.store_url = store_url
        self.pretrained = pretrained or {}
        self.num_uses = Counter(self.array_of(trial) for trial in trials)
        self._load = load
        self._network_by_array = {self.array_of(trial): trial.network for trial in trials}
        state = state or State(results={})
        self.earlier_attempts = {
            trial_id: record.attempt for trial_id, record in state.failures.items()
        }
        self._incomplete = frozenset(state.partial)
        self._measured = state.measured_trials()
        self._measures = index_measures(state.measures.values())

    def load_array(self, key: str) -> TrialData:
        """See :class:`TrialSource`."""
        network = self._network_by_array[key]
        num_images = self.run.plan.load_size(network.subset, network.train_size)
        return self._load(network.subset, num_images)

    def assignment(self, trial: TrialSpec, resources: Resources) -> TrialAssignment:
        """Return the assignment for a trial's worker.

        If a stored result of the trial lacks only measurements, the assignment contains this
        result.
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
        record = TrialRecord(
            **self.record_fields(trial, report, attempt),
            shared_group_share=report.shared_group_share,
            gpu_name=report.gpu_name,
        )
        earlier = self.run.stored.trials.get(trial.trial_id)
        if earlier is not None and not report.trained:
            # The stored network was only measured, so the record keeps the times and the GPU
            # of its training.
            changes = {
                "gpu_share": earlier.gpu_share,
                "gpu_name": earlier.gpu_name,
                "started_at": earlier.started_at,
                "finished_at": earlier.finished_at,
                "measured_at": report.finished_at,
            }
            record = record.model_copy(update=changes)
        self.run.stored.save(record)
        self._note_files(trial.trial_id, "weights", result.weights_note)
        self._note_files(trial.trial_id, "predictions", result.predictions_note)
        if self.store_url is not None:
            ResultStore(self.store_url).remove_checkpoint(trial.trial_id)
        return flat_trial(record, self._measures)

    def _note_files(self, trial_id: str, kind: str, reason: str) -> None:
        """Print a note if a trial's weights or predictions could not be stored."""
        if reason:
            self.run.monitor.note(f"{trial_id}: the {kind} were not stored: {reason}")

    def time_limit_s(self, trial: TrialSpec) -> float:
        """See :class:`TrialSource`."""
        return time_limit(trial, self._measured, self.run.runtime_model)
