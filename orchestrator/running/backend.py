"""The interface of a system that executes trials, and its implementation with Ray Tune.

The simulation in ``tests/simulation`` implements the same interface without Ray.
"""

from __future__ import annotations

import gc
import shutil
import signal
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol

import ray
from ray import tune

from orchestrator.results.records import FailureKind, TrialFailure
from orchestrator.running.actors import STORAGE_PREFIXES, ActorHandles
from orchestrator.running.arrays import ArrayCache
from orchestrator.running.capacity import node_memory_bytes
from orchestrator.running.messages import TrialReport, WorkerLocation, WorkerMessage
from orchestrator.running.metrics import SweepMetrics
from orchestrator.running.networks import user_code
from orchestrator.running.progress import Progress
from orchestrator.running.queue import TrialGenerator, trial_id_of
from orchestrator.running.recovery.lost_workers import eligible_nodes, killed_for_memory, outcome_of
from orchestrator.running.recovery.quarantine import GpuQuarantine
from orchestrator.running.recovery.shortage import shortage_for
from orchestrator.running.recovery.worker_processes import worker_cpu_seconds
from orchestrator.running.task_names import MAX_NAMES, trial_tasks_named
from orchestrator.running.trial_source import RunContext, TrialSource
from orchestrator.running.workers.worker import TrialTrainable, configured_trainable


class Backend(Protocol):
    """The system that executes trials.

    Attributes:
        arrays: the images of the trials, as an
            :class:`~orchestrator.running.arrays.ArrayCache`.
    """

    arrays: Any

    def fit(self, callbacks: tune.Callback, generator: TrialGenerator) -> None:
        """Run all trials of the generator. Report the start and the end of each trial to the
        callbacks.
        """

    def poll(self, *, wait: bool = False) -> list[WorkerMessage]:
        """Return the messages of workers since the last call.

        With ``wait``, the result includes all messages that workers sent before this call. If
        these messages do not arrive within a few seconds, a later call returns them.
        """

    def publish(self, monitor: Progress, requests: Iterable[Mapping[str, float]]) -> None:
        """Publish the run's progress and the requests of its running trials as metrics."""

    def count_failure(self, kind: FailureKind) -> None:
        """Count a failed attempt in the metrics."""

    def outcome_of(self, trial: Any, location: WorkerLocation | None) -> TrialReport | TrialFailure:
        """Return the report of a failed trial. If its worker died without a report, return the
        cause.
        """

    def killer_of(self, trial: Any) -> Callable[[], object] | None:
        """Return a function that kills a trial's process, or None if the trial has no process."""

    def eligible_nodes(self, failure: TrialFailure) -> set[str]:
        """Return the addresses of the nodes that could run a trial after this failure of its
        node.
        """

    def quarantine(self, location: WorkerLocation, seconds: float) -> None:
        """Prevent trials from using the GPU of a failed trial for some seconds."""

    def killed_for_memory(self, locations: Mapping[str, WorkerLocation]) -> set[str]:
        """Return the ids of the trials whose process was killed because memory ran out."""

    def shortage(self) -> str:
        """Return a text about the missing resources for which a trial waits."""

    def node_memory_bytes(self) -> float:
        """Return the memory in bytes that trials may use on the largest node."""

    def worker_cpu_seconds(self) -> Mapping[int, float]:
        """Return the CPU seconds of each worker process on this machine, by process id."""

    def is_up(self) -> bool:
        """Return whether the cluster is still connected."""


class _StopSignal(tune.Callback):  # type: ignore[misc]
    """Callback that restores isweep's handler of SIGUSR1 after Tune has replaced it.

    SLURM can send this signal before a job's time limit. Tune's handler would end the loop
    without an error. Waiting trials would then look as if their workers had died.
    """

    def __init__(self) -> None:
        self._handler = signal.getsignal(signal.SIGUSR1)

    def __getstate__(self) -> dict[str, Any]:
        """Return an empty state. Tune saves this state, but isweep never restores it."""
        return {}

    def setup(self, **info: Any) -> None:
        """Restore the handler. Tune calls this method before it starts the first trial."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, self._handler)


class TuneBackend:
    """Backend that executes trials with Ray Tune. Each worker runs one trial after another.

    Args:
        run: context that the trials share.
        source: the trials.
        trainable: class of the workers. Tests and benchmarks set other classes.
    """

    def __init__(
        self,
        run: RunContext,
        source: TrialSource,
        trainable: type[TrialTrainable] = TrialTrainable,
    ) -> None:
        self._run = run
        self._source = source
        self._trainable = trainable
        self._trials_with_names: set[str] = set()
        self._actors = run.actors or ActorHandles(source.store_url)
        self._metrics = SweepMetrics(run.plan.sweep.name, run.cluster.num_gpus)
        self._quarantine = GpuQuarantine(run.cluster.num_gpus)
        self.arrays = ArrayCache(
            source.load_array,
            run.array_bytes,
            self._actors.arrays,
            source.num_uses,
            self._actors.end,
        )

    def fit(self, callbacks: tune.Callback, generator: TrialGenerator) -> None:
        """See :class:`Backend`."""
        # After a failed loop, its error still refers to the loop's actors. Ray frees their
        # CPUs only when nothing refers to them.
        gc.collect()
        folder_name = f"{self._run.plan.sweep.name}-{uuid.uuid4().hex[:8]}"
        tuner = tune.Tuner(
            self._configured_trainable(),
            tune_config=tune.TuneConfig(
                search_alg=generator,
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=trial_id_of,
                trial_dirname_creator=trial_id_of,
            ),
            run_config=tune.RunConfig(
                name=folder_name,
                storage_path=str(self._run.paths.tune),
                # Otherwise Tune saves ended trials in a folder that all nodes must share.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[callbacks, _StopSignal()],
                verbose=0,
            ),
        )
        withhold_credentials()
        # The names of a private cluster's tasks appear only on its dashboard.
        is_shown = bool(self._run.cluster.dashboard) or not self._run.cluster.is_private
        try:
            with trial_tasks_named(self._trials_with_names, MAX_NAMES if is_shown else 0):
                tuner.fit()
        finally:
            shutil.rmtree(self._run.paths.tune / folder_name, ignore_errors=True)

    def _configured_trainable(self) -> Any:
        """Return the class of the workers, with everything that all trials share."""
        return configured_trainable(
            self._trainable,
            perform=self._source.perform,
            arrays=self.arrays.actor,
            files=self._actors.files,
            messages=self._actors.messages,
            code=user_code(self._source.trials.values()),
            pretrained=dict(self._source.pretrained),
        )

    def poll(self, *, wait: bool = False) -> list[WorkerMessage]:
        """See :class:`Backend`."""
        return self._actors.messages.poll(wait=wait)

    def publish(self, monitor: Progress, requests: Iterable[Mapping[str, float]]) -> None:
        """See :class:`Backend`."""
        self._metrics.publish(monitor, requests)

    def count_failure(self, kind: FailureKind) -> None:
        """See :class:`Backend`."""
        self._metrics.count_failure(kind)

    def outcome_of(self, trial: Any, location: WorkerLocation | None) -> TrialReport | TrialFailure:
        """See :class:`Backend`."""
        return outcome_of(trial, location)

    def killer_of(self, trial: Any) -> Callable[[], object] | None:
        """See :class:`Backend`."""
        # This attribute is private. If a version of Ray lacks it, the run waits for trials
        # that hang.
        actor = getattr(getattr(trial, "temporary_state", None), "ray_actor", None)
        return None if actor is None else partial(ray.kill, actor)

    def eligible_nodes(self, failure: TrialFailure) -> set[str]:
        """See :class:`Backend`."""
        return eligible_nodes(failure)

    def quarantine(self, location: WorkerLocation, seconds: float) -> None:
        """See :class:`Backend`. The last usable GPU is never quarantined."""
        self._quarantine.add(location, seconds)

    def killed_for_memory(self, locations: Mapping[str, WorkerLocation]) -> set[str]:
        """See :class:`Backend`."""
        return killed_for_memory(locations)

    def shortage(self) -> str:
        """See :class:`Backend`."""
        return shortage_for(self._run.resources)

    def node_memory_bytes(self) -> float:
        """See :class:`Backend`."""
        return node_memory_bytes()

    def worker_cpu_seconds(self) -> Mapping[int, float]:
        """See :class:`Backend`."""
        return worker_cpu_seconds()

    def is_up(self) -> bool:
        """See :class:`Backend`."""
        return bool(ray.is_initialized())


def withhold_credentials() -> None:
    """Stop Tune from copying credentials in environment variables to its trials.

    Ray's agents would otherwise log these credentials.
    """
    from ray.tune.execution import class_cache

    # This attribute is private. If a version of Ray copies variables in another way, this
    # function and docs/security.md must change.
    copied: Any = getattr(class_cache, "ENV_VARS_TO_PROPAGATE", set())
    copied.difference_update({name for name in copied if name.startswith(STORAGE_PREFIXES)})
