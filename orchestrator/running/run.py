"""The stages of ``isweep run``, in order: prepare, measure, train, reconcile, fit, report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.analysis.report import log_report, report_sweep
from orchestrator.planning.checks import check_feasible
from orchestrator.planning.estimate import read_prices, time_limit
from orchestrator.planning.plan import Workspace
from orchestrator.planning.sweep_file import SweepSource
from orchestrator.results.predictions import forget_damaged
from orchestrator.results.records import MeasureRecord, provenance
from orchestrator.results.state import State, StoredResults, judge
from orchestrator.results.storage import Patience
from orchestrator.results.table import flat_measure, index_measures
from orchestrator.results.tracking import Tracker, keep_run_pages, open_tracker
from orchestrator.running.cluster import Cluster, Resources, connect, this_machine, trial_resources
from orchestrator.running.gpus import NodeGpus, gpu_check_folders, gpus_here, refuse, survey
from orchestrator.running.locks import locked
from orchestrator.running.networks import check_models, check_pretrained, check_same_start, fetch_pretrained
from orchestrator.running.options import RunOptions
from orchestrator.running.progress import Monitor, Progress
from orchestrator.running.signals import stop_heard
from search_spaces.errors import DataError, SweepError, collect, unknown_name
from search_spaces.specs import DatasetSpec, MeasureSpec, PreparedSpec, SubsetSpec, TrialSpec, pair_name
from tasks.prepared.subsets import TrialData, load_subset
from tasks.remote import Executor

if TYPE_CHECKING:
    from tasks.prepared.subsets import TrialData


# Data before anything is trained: what is missing is prepared, and every subset is found to be possible.


def prepare_missing(
    workspace: Workspace,
    missing: list[PreparedSpec],
    options: RunOptions,
    executor: Executor,
    monitor: Monitor,
) -> None:
    """Prepare datasets one after another, each in parallel; all that cannot be prepared are reported at once.

    Raises:
        DataError: naming every dataset that could not be prepared and what to do.
    """
    from tasks.prepared.prepare import prepare_dataset

    problems: list[SweepError] = []
    own = {choice.name: choice.own for choice in workspace.plan.sweep.datasets if choice.own}
    for spec in missing:
        monitor.stage("prepare", spec.dataset)
        folder = options.raw.get(spec.dataset)
        if folder is None and spec.dataset in own:
            folder = Path(own[spec.dataset].path)
        folder = folder.expanduser().absolute() if folder is not None else None
        named = executor.labelled(f"prepare {spec.dataset}")
        try:
            prepare_dataset(
                spec,
                workspace.plan.datasets[spec.dataset],
                raw=folder,
                destination=workspace.paths.prepared(spec),
                executor=named,
                max_skipped_share=options.max_skipped_share,
                on_progress=_progress(monitor, spec.dataset),
                readers=_readers(spec.dataset, folder, named, monitor),
            )
        except SweepError as error:
            problems.append(error)
    collect(problems, DataError)


def _readers(name: str, raw: Path | None, executor: Executor, monitor: Monitor) -> Executor | None:
    """Return what reads on every node of a shared cluster that has the raw download too; None without any."""
    from tasks.remote import RayExecutor, nodes_that_see

    if raw is None or not isinstance(executor, RayExecutor) or not executor.driver_node_only:
        return None
    nodes = nodes_that_see(raw)
    readers = RayExecutor(nodes=nodes, note=monitor.note) if nodes else None
    if readers is None or readers.num_workers <= executor.num_workers:
        return None
    monitor.note(
        f"{name} is read on {len(nodes)} nodes, {readers.num_workers} CPUs, that see its raw download"
    )
    return readers.labelled(f"prepare {name}")


def check_raw(workspace: Workspace, raw: Mapping[str, Path]) -> None:
    """Refuse raw folders of datasets that the sweep does not have, and find all that are missing.

    Preparing the first of several datasets can take hours, in which nobody learns that the last has no files.

    Raises:
        ConfigError: naming the nearest dataset.
        DataError: naming every dataset that is read from a download which is not there.
    """
    from tasks.sources import FROM_RAW, RawRequest

    datasets, problems = workspace.plan.datasets, list[SweepError]()
    for name in raw:
        if name not in datasets:
            raise unknown_name("dataset of this sweep", name, datasets)
    for spec in workspace.plan.prepared:
        dataset = datasets[spec.dataset]
        folder = raw.get(spec.dataset)
        needed = dataset.source in FROM_RAW and spec.prepared_id not in workspace.prepared
        if needed or folder is not None:
            try:
                RawRequest(dataset, spec, None if folder is None else folder.expanduser()).root()
            except SweepError as error:
                problems.append(error)
    collect(problems, DataError)


def _progress(monitor: Monitor, name: str) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        monitor.advance(f"{name} {done:,}/{total:,} items")

    return show


# Measuring every subset of a plan once, as Ray tasks, at all its train sizes.

PIXEL_RANGE = (0.0, 255.0)
"""Of all prepared images, also of those stored as float32."""


def measure_subset(
    spec: MeasureSpec, data: TrialData, dataset: DatasetSpec, executor: Executor
) -> MeasureRecord:
    """Return the stored record of one subset's intrinsic dimension and label sharpness.

    Args:
        spec: What to measure.
        data: The subset's arrays; the train images in nested order are measured, the test images are not.
        dataset: What the images are.
        executor: Runs the block tasks.

    Raises:
        DataError: for images that cannot be measured (not finite, one class only).
    """
    from tasks.measures.measure import measure_nested
    from tasks.measures.records import MeasureSettings

    started_at = time.time()
    num_rows = max(spec.train_sizes)
    settings = MeasureSettings(
        num_neighbors=spec.num_neighbors,
        estimators=spec.estimators,
        sharpness_sample=spec.sharpness_sample,
        sharpness_seeds=spec.sharpness_seeds,
        pixel_range=PIXEL_RANGE,
        calibrate=spec.calibrate,
        discard_fraction=spec.subset.twonn_discard_fraction,
        seed=spec.derived_seed % 2**32,
    )
    measured = measure_nested(
        np.asarray(data.train_images[:num_rows]),
        np.asarray(data.train_labels[:num_rows]),
        spec.train_sizes,
        executor=executor,
        settings=settings,
    )
    return MeasureRecord(
        measure_id=spec.measure_id,
        spec=spec,
        result=measured,
        domain=dataset.domain,
        data_fingerprint=data.data_fingerprint,
        provenance=provenance(),
        started_at=started_at,
        finished_at=time.time(),
    )


@dataclass(frozen=True)
class RunSummary:
    """How a run ended: counts over the whole plan, and the report's path."""

    planned: int
    done: int
    failed: int
    pending: int
    failures: list[dict[str, str]]
    report: Path | None
    num_behind: int = 0

    @property
    def exit_code(self) -> int:
        """0 when every cell is done, 1 otherwise."""
        return 0 if self.done == self.planned else 1


def run_sweep(
    source: SweepSource,
    options: RunOptions | None = None,
    *,
    progress: Progress | None = None,
    changes: Mapping[str, object] | None = None,
) -> RunSummary:
    """Do what is left of a sweep, then fit and report; calling it again resumes, extends or repairs.

    Args:
        source: A preset's name, a sweep file's path or content, or the name of a sweep of the root.
        options: Where and how.
        progress: Shows what happens; None shows nothing.
        changes: Values by dotted key that hold over what the sweep says.

    Raises:
        SweepError: for a user's mistake or an unusable environment; whatever finished is kept.
        KeyboardInterrupt: on Ctrl-C, after tracked runs were closed; whatever finished is kept.
    """
    options = options or RunOptions()
    workspace = Workspace.open(source, options.root, options.storage, changes=changes)
    workspace.make()
    read_prices(workspace.paths.prices)  # a mistake in it must not wait for the report
    progress = progress or Progress()
    progress.path = workspace.sweep_paths.progress
    with ExitStack() as stack:
        stack.enter_context(locked(workspace, f"isweep run {workspace.plan.sweep.name}", progress.note))
        stack.enter_context(progress.shown())
        progress.stage("start", "MLflow" if options.tracking else "")
        stored = StoredResults.read(workspace.results_url, workspace.sweep_paths.index)
        stored.check_writable()
        _say_damaged(workspace, stored, progress)
        _check(workspace, options, stored)
        workspace.record()
        stored.patience = patience = Patience(progress.note)
        with open_tracker(
            workspace, stored, options.mlflow_uri, used=options.tracking, say=progress.note
        ) as tracker:
            try:
                summary = _Run(workspace, options, stored, tracker, progress, stack, patience).all_stages()
            except KeyboardInterrupt:
                stop_heard()
                progress.stage("stop", "trials end, runs are closed; what is done is kept")
                raise
        return replace(summary, num_behind=tracker.num_behind)


def _say_damaged(workspace: Workspace, stored: StoredResults, progress: Progress) -> None:
    """Have predictions that are gone or damaged made again, and say so."""
    if workspace.plan.sweep.predictions:
        remade, retrained = forget_damaged(stored, workspace.plan.trials_by_id)
        if remade:
            progress.note(f"Predictions gone or damaged: {remade}; made again from kept weights")
        if retrained:
            progress.note(f"Predictions gone or damaged: {retrained}; without weights, so trained again")


def _check(workspace: Workspace, options: RunOptions, stored: StoredResults) -> None:
    """Refuse what cannot run before anything expensive starts, and before a run is opened or marked."""
    check_raw(workspace, options.raw)
    check_feasible(workspace, options.raw)
    check_models(workspace.plan, stored.trials)
    done = judge(workspace, stored).results
    if options.address is None and len(done) < len(workspace.plan.trials):
        trial_resources(workspace.plan.sweep.resources, this_machine(options.num_cpus), "cpu")
        if options.device != "cpu" and (there := len(gpus_here())):
            check_gpus(workspace, options, survey(there, local=True))


def check_gpus(workspace: Workspace, options: RunOptions, nodes: list[NodeGpus]) -> None:
    """Refuse GPUs on which no trial of the sweep could run; see :func:`~orchestrator.running.gpus.refuse`."""
    asked, plan = workspace.plan.sweep.resources.num_gpus, workspace.plan
    shared = any(node.mps for node in nodes)
    share = (0.5 if shared else 1.0) if asked is None else asked
    if share:
        refuse(nodes, plan.trials, share=share, alone=options.address is None)


@dataclass
class _Run:
    workspace: Workspace
    options: RunOptions
    stored: StoredResults
    tracker: Tracker
    monitor: Progress
    stack: ExitStack
    patience: Patience
    pretrained: dict[str, bytes] = field(default_factory=dict)

    def all_stages(self) -> RunSummary:
        plan = self.workspace.plan
        trained = judge(self.workspace, self.stored).results
        self.pretrained = fetch_pretrained(plan, trained, self.workspace.paths, self.monitor.note)
        check_same_start(self.stored.trials, plan, self.pretrained)
        if self.options.address and len(trained) < len(plan.trials):
            check_gpus(self.workspace, self.options, self.nodes)
        check_pretrained(plan, self.pretrained)
        self.tracker.check()
        self._prepare()
        check_feasible(self.workspace, self.options.raw)
        self._measure()
        self._train()
        return self._report()

    @cached_property
    def nodes(self) -> list[NodeGpus]:
        """The cluster's nodes with GPUs; none where trials run on CPUs."""
        if self.options.device == "cpu" or not self.cluster.num_gpus:
            return []
        return survey(self.cluster.num_gpus, local=self.cluster.local)

    @cached_property
    def cluster(self) -> Cluster:
        """Connected when the first stage has work for it: a finished sweep starts no Ray."""
        return self.stack.enter_context(
            announced(self.workspace, self.options, self.monitor, _job(self.workspace))
        )

    @cached_property
    def executor(self) -> Executor:
        """Runs tasks on the cluster."""
        from tasks.remote import RayExecutor

        _ = self.cluster  # connects
        return RayExecutor(note=self.monitor.note)

    @cached_property
    def file_executor(self) -> Executor:
        """Runs tasks that read and write files: raw downloads and prepared data lie on the driver's node."""
        from tasks.remote import RayExecutor

        return RayExecutor(driver_node_only=not self.cluster.local, note=self.monitor.note)

    def _prepare(self) -> None:
        from tasks.remote import InlineExecutor

        workspace = self.workspace
        # Left by a driver that was killed; nothing is ever read back from it, and the root's lock is ours.
        shutil.rmtree(workspace.paths.tune, ignore_errors=True)
        missing = [s for s in workspace.plan.prepared if s.prepared_id not in workspace.prepared]
        # Your own files may change below a finished sweep: listing them again is cheap and tells.
        own = {choice.name for choice in workspace.plan.sweep.datasets if choice.own}
        listed = [s for s in workspace.plan.prepared if s not in missing and s.dataset in own]
        if listed:
            prepare_missing(workspace, listed, self.options, InlineExecutor(), self.monitor)
        if missing:
            prepare_missing(workspace, missing, self.options, self.file_executor, self.monitor)
            workspace.look_again()

    def _state(self) -> State:
        """What is done by now: the store was read at the start and is written by this run alone."""
        return judge(self.workspace, self.stored)

    def _measure(self) -> None:
        """Measure what is not measured yet."""
        done = self._state().measures
        missing = [spec for spec in self.workspace.plan.measures if spec.measure_id not in done]
        if missing:
            self.monitor.stage("measure", f"on {self.cluster.num_cpus:g} CPUs", len(missing))
        for spec in missing:
            dataset = self.workspace.plan.datasets[spec.subset.prepared.dataset]
            data = self._load(spec.subset, max(spec.train_sizes))
            label = f"measure {spec.subset.prepared.dataset} {pair_name(spec.subset.class_pair)}".strip()
            record = measure_subset(spec, data, dataset, self.executor.labelled(label))
            self.stored.save(record)
            self.tracker.finish(flat_measure(record))
            self.monitor.advance(spec.measure_id)

    def _train(self) -> None:
        from orchestrator.running.requests import Requests, expected
        from orchestrator.running.trials import TrialSweep
        from orchestrator.running.waiting import bound_by_cpus

        plan, state = self.workspace.plan, self._state()
        pending = [trial for trial_id, trial in plan.trials_by_id.items() if trial_id not in state.results]
        self.monitor.trials_planned(len(plan.trials), len(state.results))
        measures = index_measures(state.measures.values())
        if not pending:
            return
        resources = trial_resources(plan.sweep.resources, self.cluster, self.options.device)
        folders = gpu_check_folders(self.workspace.paths.root)
        expectation = expected(self.nodes, plan.sweep.resources, state.measured_trials(), folders)
        usual = Requests(resources, expectation).usual(pending)
        self.monitor.slots = slots(usual, self.cluster)
        if bound := bound_by_cpus(usual):
            self.monitor.note(bound)
        self.monitor.stage("train")
        TrialSweep(
            plan=plan,
            cluster=self.cluster,
            resources=resources,
            paths=self.workspace.paths,
            stored=self.stored,
            tracker=self.tracker,
            monitor=self.monitor,
            measures=measures,
            load=self._load,
            weights_url=self.workspace.results_url,
            measured_only=frozenset(state.incomplete),
            pretrained=self.pretrained,
            time_limit=partial(time_limit, measured=state.measured_trials()),
            expectation=expectation,
        ).run(pending, _earlier_attempts(pending, state))

    def _report(self) -> RunSummary:
        self.monitor.stage("report")
        state = self._state()
        # Trials done earlier take the numbers of measures done now.
        self.tracker.reconcile(state.flat_runs(), state.failures.values(), wait=False)
        keep_run_pages(self.workspace.sweep_paths.run_pages, self.tracker.pages())
        written = self.patience.until_done(lambda: report_sweep(self.workspace, state))
        failures = state.failure_rows()
        log_report(self.tracker, self.workspace, state)
        num_planned = len(self.workspace.plan.trials)
        return RunSummary(
            planned=num_planned,
            done=len(state.results),
            failed=len(failures),
            pending=num_planned - len(state.results) - len(failures),
            failures=failures,
            report=written,
        )

    def _load(self, subset: SubsetSpec, train_size: int) -> TrialData:
        data = self.workspace.prepared[subset.prepared.prepared_id]
        return load_subset(data, subset, max_train_size=train_size)


def _job(workspace: Workspace) -> dict[str, str]:
    plan = workspace.plan
    return {
        "job_name": f"isweep {plan.sweep.name}",
        "isweep grid": f"{len(plan.trials)} trials, {len(plan.measures)} measures",
        "isweep root": str(workspace.paths.root),
    }


@contextmanager
def announced(
    workspace: Workspace, options: RunOptions, monitor: Progress, job: dict[str, str]
) -> Iterator[Cluster]:
    """Connect to the cluster that is asked for and say where trials run; Ray shows ``job`` of it."""
    monitor.stage("start", "Ray")
    with connect(
        options.address,
        num_cpus=options.num_cpus,
        dashboard=options.dashboard,
        token_file=workspace.paths.root / "ray-token",
        job=job,
    ) as cluster:
        _announce(cluster, workspace, monitor)
        yield cluster


def _announce(cluster: Cluster, workspace: Workspace, progress: Progress) -> None:
    """Say where trials run, and where its dashboard is."""
    gpus = f", {cluster.num_gpus:g} GPUs" if cluster.num_gpus else ""
    where = "this machine" if cluster.local else f"a cluster of {cluster.num_nodes} nodes"
    progress.note(f"Running on {where}: {cluster.num_cpus:g} CPUs{gpus}")
    if cluster.dashboard:
        token = workspace.paths.root / "ray-token"
        progress.note(f"Ray dashboard: {cluster.dashboard} (access token in {token})")


def slots(resources: Resources, cluster: Cluster) -> int:
    """Return how many trials fit the cluster at the same time."""
    by_cpu = cluster.num_cpus / resources.num_cpus
    by_gpu = cluster.num_gpus / resources.num_gpus if resources.num_gpus and cluster.num_gpus else by_cpu
    return max(1, int(min(by_cpu, by_gpu)))


def _earlier_attempts(pending: list[TrialSpec], state: State) -> dict[str, int]:
    return {
        trial.trial_id: state.failures[trial.trial_id].attempt
        for trial in pending
        if trial.trial_id in state.failures
    }
