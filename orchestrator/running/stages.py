"""The stages that ``isweep run`` and ``isweep tune`` share: locking, cluster, checks and
preparation.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from orchestrator.machine.cluster import (
    Cluster,
    RunOptions,
    check_process,
    connect,
    cpu_cluster_here,
    resolve_head,
    trial_resources,
)
from orchestrator.machine.gpu_problems import check_gpus_fit, describe_gpus
from orchestrator.machine.gpus.records import NodeGpus
from orchestrator.machine.gpus.this_machine import gpus_here
from orchestrator.machine.gpus.visible import gpus_are_simulated
from orchestrator.machine.locks import lock_root_and_store
from orchestrator.machine.mps import PrivateMps
from orchestrator.machine.mps_choice import why_no_mps
from orchestrator.machine.ray_folders import remove_files_of_killed_runs
from orchestrator.machine.silent_end import explained_silent_end
from orchestrator.planning.costs.gpu_checks import gpu_check_folders, read_checks
from orchestrator.planning.plan import SweepPlan
from orchestrator.planning.runtimes import MeasuredTrial
from orchestrator.planning.workspace import Workspace
from orchestrator.results.mlflow_connection import mlflow_uri
from orchestrator.results.provenance import provenance
from orchestrator.results.stored_results import StoredResults
from orchestrator.results.tracking import Tracker
from orchestrator.running import preparation
from orchestrator.running.progress import Progress
from search_spaces.errors import plural
from search_spaces.specs import PreparedSpec, TrialSpec
from tasks.remote import Executor, RayExecutor

if TYPE_CHECKING:
    from orchestrator.running.trial_source import RunContext


log = logging.getLogger(__name__)


@dataclass
class SweepCommand:
    """A command that runs a sweep or a search. Its methods are the stages that both have.

    Attributes:
        purpose: name of the command for people, for example ``isweep run paper``.
        workspace: the sweep's plan and folders.
        options: options that decide where and how the command runs.
        monitor: display of the progress.
        stack: stack of context managers, which are closed when the command ends.
        local_gpus: the GPUs of this machine, if the command starts a private cluster. The list
            is empty until :meth:`check_machine` is called. It stays empty if trials run on
            CPUs or on a cluster that already runs.
    """

    purpose: str
    workspace: Workspace
    options: RunOptions
    monitor: Progress
    stack: ExitStack
    local_gpus: list[NodeGpus] = field(default_factory=list, init=False)
    _cluster: Cluster | None = field(default=None, init=False)

    @property
    def trials_to_train(self) -> Sequence[TrialSpec]:
        """The trials that the command may train."""
        return self.workspace.plan.trials

    def lock_root(self) -> None:
        """Lock the root, and remove the files of killed runs."""
        if self.options.tracking:
            # This call raises an error for a wrong address, before MLflow starts.
            mlflow_uri(self.workspace.paths, self.options.mlflow_uri)
        self.workspace.make()
        # The hash of the source code is cached now, because the code may change while trials
        # run.
        provenance()
        self.monitor.path = self.workspace.sweep_paths.progress
        self.stack.enter_context(explained_silent_end())
        self.stack.enter_context(
            lock_root_and_store(self.workspace, self.purpose, self.monitor.note)
        )
        self.stack.enter_context(self.monitor.shown())
        self.monitor.stage("start", "MLflow" if self.options.tracking else "")
        remove_files_of_killed_runs(self.workspace.paths)

    def start_cluster(self) -> Cluster:
        """Return the cluster. The first call starts Ray, or connects to a running cluster."""
        if self._cluster is not None:
            return self._cluster
        plan = self.workspace.plan
        paths = self.workspace.paths
        self.monitor.stage("start", "Ray")
        connection = connect(
            self.options.address,
            num_cpus=self.options.num_cpus,
            dashboard=self.options.dashboard,
            token_file=paths.token,
            job={
                "job_name": self.purpose,
                "isweep grid": f"{plural(len(plan.trials), 'trial')}, "
                f"{plural(len(plan.measures), 'measure')}",
                "isweep root": str(paths.root),
            },
            mps=self._private_mps(),
        )
        self._cluster = self.stack.enter_context(connection)
        self._show_cluster(self._cluster)
        return self._cluster

    def _private_mps(self) -> PrivateMps | None:
        """Return the NVIDIA MPS to start for a private cluster, or None if MPS must not be
        started.
        """
        if not self.local_gpus:
            return None
        resources = self.workspace.plan.sweep.resources
        checks = read_checks(gpu_check_folders(self.workspace.paths.root))
        reason = why_no_mps(self.local_gpus, resources, self.trials_to_train, checks)
        if reason:
            log.info("NVIDIA's MPS is not started: %s", reason)
            return None
        uuids = tuple(gpu.uuid for node in self.local_gpus for gpu in node.gpus)
        return PrivateMps(uuids, self.monitor.note)

    def _show_cluster(self, cluster: Cluster) -> None:
        """Print the size of the cluster and the address of its dashboard."""
        note = self.monitor.note
        place = "this machine"
        if not cluster.is_private:
            place = f"a cluster of {plural(cluster.num_nodes, 'node')}"
        size = plural(cluster.num_cpus, "CPU")
        if cluster.num_gpus:
            size = f"{size}, {plural(cluster.num_gpus, 'GPU')}"
        note(f"Running on {place}: {size}")
        if cluster.dashboard:
            note(
                f"Ray dashboard: {cluster.dashboard} (access token in {self.workspace.paths.token})"
            )
            # A private cluster has only one job, which has this number.
            jobs = f"{cluster.dashboard}/#/jobs/01000000"
            note(f"To see the trials, open {jobs} and filter the Task Table by IsweepTrial.train")

    @cached_property
    def nodes(self) -> list[NodeGpus]:
        """The cluster's nodes with GPUs, or an empty list if trials run on CPUs. The first
        access starts Ray.
        """
        if self.options.device == "cpu":
            return []
        cluster = self.start_cluster()
        if not cluster.num_gpus:
            return []
        if self.local_gpus:
            # The cluster may have started MPS after these GPUs were listed.
            has_mps = cluster.mps is not None and cluster.mps.folder is not None
            return [replace(node, mps=node.mps or has_mps) for node in self.local_gpus]
        return describe_gpus(cluster.num_gpus, is_private=cluster.is_private)

    def check_machine(self) -> None:
        """Check that trials can run on this machine or cluster. Call this method before Ray
        starts.

        Raises:
            SweepError: the cluster does not answer, this machine is too small, or its GPUs
                cannot be used.
        """
        check_process()
        options = self.options
        if options.address is not None:
            resolve_head(options.address)
            return
        num_gpus = 0 if options.device == "cpu" else len(gpus_here())
        # The GPUs are checked below, so only the CPUs and the memory are checked here. This
        # call raises an error if a trial requests more than this machine has.
        device = "cpu" if num_gpus or gpus_are_simulated() else options.device
        trial_resources(
            self.workspace.plan.sweep.resources, cpu_cluster_here(options.num_cpus), device
        )
        if num_gpus:
            self.local_gpus = describe_gpus(num_gpus, is_private=True)
            self.check_gpus(self.local_gpus)

    def check_gpus(self, nodes: list[NodeGpus]) -> None:
        """Check that the sweep's trials can run on the GPUs of these nodes.

        Raises:
            SweepError: the trials cannot run on these GPUs.
        """
        plan = self.workspace.plan
        share = plan.sweep.resources.num_gpus
        if share is None:
            # This check only asks whether trials share a GPU. By default they do so under MPS.
            share = 0.5 if any(node.mps for node in nodes) else 1.0
        if share:
            check_gpus_fit(nodes, plan.trials, share=share, alone=self.options.address is None)

    def executor(self, *, reads_files: bool = False) -> Executor:
        """Return an executor for tasks on the cluster.

        Args:
            reads_files: True if the tasks read raw files or prepared data. They then run on
                the driver's node, because other nodes may lack these files.
        """
        cluster = self.start_cluster()
        return RayExecutor(
            driver_node_only=reads_files and not cluster.is_private, note=self.monitor.note
        )

    def check_stored(self, stored: StoredResults) -> None:
        """Check that this version of isweep may write to the store. Print how many stored
        files cannot be used.

        Raises:
            NewerRecordError: a newer version of isweep wrote to the store.
        """
        stored.check_writable()
        damaged = stored.unreadable
        if damaged:
            self.monitor.note(
                f"{plural(len(damaged), 'stored file')} cannot be used. For example, "
                f"{damaged[0].path}: {damaged[0].reason}. This run computes their results "
                f"again. {self.workspace.paths.log} lists all files that cannot be used"
            )

    @property
    def unprepared(self) -> list[PreparedSpec]:
        """The datasets that are not prepared yet."""
        prepared = self.workspace.prepared
        return [spec for spec in self.workspace.plan.prepared if spec.prepared_id not in prepared]

    def prepare_datasets(self) -> None:
        """Prepare the datasets that are not prepared yet."""
        unprepared = self.unprepared
        if not unprepared:
            return
        executor = self.executor(reads_files=True)
        preparation.prepare_missing(
            self.workspace, unprepared, self.options, executor, self.monitor
        )
        self.workspace.forget_prepared()

    def run_context(
        self,
        plan: SweepPlan,
        stored: StoredResults,
        tracker: Tracker,
        trials: Collection[TrialSpec],
        measured: Collection[MeasuredTrial] = (),
    ) -> RunContext:
        """Return the context that a plan's trials share. Also set ``monitor.slots`` to the
        number of trials that run at once.

        Args:
            plan: the plan of the sweep or the search.
            stored: results of the plan.
            tracker: connection that shows the plan's trials in MLflow.
            trials: the trials to run, at least one. Their mean request decides how many trials
                run at once.
            measured: finished trials. Their times and memory correct the predictions.
        """
        from orchestrator.running.capacity import slots_for
        from orchestrator.running.gpu_sharing import names_of_small_gpus, runtime_model_for
        from orchestrator.running.recovery.resource_policy import ResourcePolicy
        from orchestrator.running.trial_source import RunContext

        cluster = self.start_cluster()
        requested = plan.sweep.resources
        folders = gpu_check_folders(self.workspace.paths.root)
        resources = trial_resources(requested, cluster, self.options.device)
        runtime_model = runtime_model_for(self.nodes, requested, measured, folders)
        slots = slots_for(ResourcePolicy(resources, runtime_model).request_with_mean_share(trials))
        self.monitor.slots = slots.num_trials
        if slots.note:
            self.monitor.note(slots.note)
        return RunContext(
            plan=plan,
            paths=self.workspace.paths,
            cluster=cluster,
            resources=resources,
            stored=stored,
            tracker=tracker,
            monitor=self.monitor,
            runtime_model=runtime_model,
            small_gpus=names_of_small_gpus(self.nodes),
        )
