"""The backend: what a run asks of the system that executes its trials, and Ray Tune as that system.

A simulation of the control logic has a backend of its own (``tests/simulation``).
"""

from __future__ import annotations

import gc
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol

import ray
from ray import tune

from orchestrator.results.records import FailureKind, TrialFailure
from orchestrator.running.actors import STORAGE_PREFIXES, ActorHandles
from orchestrator.running.arrays import ArrayCache
from orchestrator.running.messages import TrialReport, WorkerLocation, WorkerMessage
from orchestrator.running.metrics import SweepMetrics
from orchestrator.running.networks import user_code
from orchestrator.running.progress import Progress
from orchestrator.running.queue import TrialGenerator, trial_id_of
from orchestrator.running.recovery.lost_workers import eligible_nodes, killed_for_memory, outcome_of
from orchestrator.running.recovery.quarantine import GpuQuarantine
from orchestrator.running.recovery.shortage import node_memory_bytes, shortage_for
from orchestrator.running.recovery.worker_processes import worker_cpu_seconds
from orchestrator.running.task_names import MAX_NAMES, trial_tasks_named
from orchestrator.running.trial_source import RunContext, TrialSource
from orchestrator.running.worker import TrialTrainable, configured


class Backend(Protocol):
    """The system that executes trials; ``arrays`` holds the images that they are trained on."""

    arrays: Any

    def fit(self, callbacks: tune.Callback, generator: TrialGenerator) -> None:
        """Run the generator's trials until it has none; report each to the callbacks."""

    def poll(self, *, wait: bool = False) -> list[WorkerMessage]:
        """Return workers' messages since the last call; with ``wait``, all until now.

        Messages that cannot be had within seconds come with a later call.
        """

    def publish(self, monitor: Progress, requests: Iterable[Mapping[str, float]]) -> None:
        """Publish metrics of the run: its progress, and what running trials ask for."""

    def count_failure(self, kind: FailureKind) -> None:
        """Count a failed attempt in the metrics."""

    def outcome_of(self, trial: Any, location: WorkerLocation | None) -> TrialReport | TrialFailure:
        """Return the report of a failed trial, or why its worker is gone without one."""

    def killer_of(self, trial: Any) -> Callable[[], object] | None:
        """Return how to kill a trial's process; None if it has none."""

    def eligible_nodes(self, failure: TrialFailure) -> set[str]:
        """Return addresses of nodes to which a trial that failed because of its node could go."""

    def quarantine(self, location: WorkerLocation, seconds: float) -> None:
        """Keep the GPU of a failed trial away from trials."""

    def killed_for_memory(self, locations: Mapping[str, WorkerLocation]) -> set[str]:
        """Return the ids of those trials whose process was killed for memory."""

    def shortage(self) -> str:
        """Return what is missing for a trial to start."""

    def node_memory_bytes(self) -> float:
        """Return the memory of the largest node."""

    def worker_cpu_seconds(self) -> Mapping[int, float]:
        """Return the CPU time of each worker process on this machine, by process id."""

    def is_up(self) -> bool:
        """Return whether there is still a cluster."""


class TuneBackend:
    """Ray Tune, whose workers run one trial after another.

    Args:
        run: what the trials share.
        source: the trials.
        trainable: class of the workers; another one is for tests and benchmarks.
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
        self._named: set[str] = set()
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
        # Actors of a loop that broke keep their CPUs as long as something refers to them, such as
        # the error that broke it.
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
                # Tune would save trials at their end, into a folder that all nodes must share.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[callbacks],
                verbose=0,
            ),
        )
        withhold_credentials()
        # A private cluster without a dashboard shows names to nobody.
        is_shown = bool(self._run.cluster.dashboard) or not self._run.cluster.local
        try:
            with trial_tasks_named(self._named, MAX_NAMES if is_shown else 0):
                tuner.fit()
        finally:
            shutil.rmtree(self._run.paths.tune / folder_name, ignore_errors=True)

    def _configured_trainable(self) -> Any:
        return configured(
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
        # Private: with a Ray that keeps it elsewhere, hung trials are waited for.
        actor = getattr(getattr(trial, "temporary_state", None), "ray_actor", None)
        return None if actor is None else partial(ray.kill, actor)

    def eligible_nodes(self, failure: TrialFailure) -> set[str]:
        """See :class:`Backend`."""
        return eligible_nodes(failure)

    def quarantine(self, location: WorkerLocation, seconds: float) -> None:
        """See :class:`Backend`; the last GPU that is left is never quarantined."""
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
    """Take credentials off the environment variables that Tune copies to its trials.

    Ray's agents would log them.
    """
    from ray.tune.execution import class_cache

    # Private: with a Ray that lacks it, nothing is copied, or `docs/security.md` must say so.
    copied: Any = getattr(class_cache, "ENV_VARS_TO_PROPAGATE", set())
    copied.difference_update({name for name in copied if name.startswith(STORAGE_PREFIXES)})
