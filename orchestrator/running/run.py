"""``isweep run``: what is left of a sweep is prepared, measured and trained, then fitted and
reported.

:func:`run_sweep` is the whole of it, a stage a line. A trial's way from here: :mod:`.state` (is it
done?), :mod:`.predict` (when is its turn?), :mod:`.trials` (who runs it?), :mod:`.worker`,
:mod:`tasks.trials.trial`, :mod:`.store`, :mod:`.tracking`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.machine.cluster import (
    Cluster,
    RunOptions,
    connect,
    reached,
    this_machine,
    trial_resources,
)
from orchestrator.machine.gpu_problems import refuse, survey
from orchestrator.machine.gpus import NodeGpus, gpu_check_folders, gpus_here, is_logical
from orchestrator.machine.locks import locked
from orchestrator.machine.ray_folders import remove_orphans
from orchestrator.machine.signals import at_forced_end, stop_heard
from orchestrator.planning.checks import check_feasible
from orchestrator.planning.plan import SweepPlan
from orchestrator.planning.runtimes import MeasuredTrial
from orchestrator.planning.sweep_file import SweepSource, sweep_text
from orchestrator.planning.workspace import Workspace
from orchestrator.results.mlflow_connection import mlflow_uri
from orchestrator.results.mlflow_pages import read_run_pages
from orchestrator.results.provenance import provenance
from orchestrator.results.records import TrialRecord
from orchestrator.results.state import State, compare_with_plan
from orchestrator.results.storage import RetryWithBackoff
from orchestrator.results.store import ResultStore
from orchestrator.results.stored_results import StoredResults
from orchestrator.results.tracking import Tracker, log_sweep, make_tracker, open_tracker
from orchestrator.running import preparation
from orchestrator.running.progress import Progress
from search_spaces.errors import plural
from search_spaces.fingerprint import fingerprint
from search_spaces.specs import PreparedSpec, TrialSpec, pair_name
from tasks.atomic import read_whole, write_atomic
from tasks.remote import Executor, InlineExecutor, RayExecutor

if TYPE_CHECKING:
    from orchestrator.running.actors import Desk
    from orchestrator.running.trials import Run

MOST_HERE = 10**9
"""Products that the distances of a subset may take, to be measured here: in less time than a task
starts."""


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
    """Do what is left of a sweep, then fit and report; calling it again resumes, extends or
    repairs.

    Args:
        source: A preset's name, a sweep file's path or content, or the name of a sweep of the root.
        options: Where and how.
        progress: Shows what happens; None shows nothing.
        changes: Values by dotted key that hold over what the sweep says.

    Raises:
        SweepError: for a user's mistake or an unusable environment; whatever finished is kept.
        KeyboardInterrupt: on Ctrl-C, after tracked runs were closed; whatever finished is kept.
    """
    options, monitor = options or RunOptions(), progress or Progress()
    workspace = Workspace.open(source, options.root, options.storage, changes=changes)
    with ExitStack() as stack:
        sweep = _Sweep(
            f"isweep run {workspace.plan.sweep.name}", workspace, options, monitor, stack
        )
        _begin(sweep)
        state, uri = sweep.state, options.mlflow_uri
        tracker = make_tracker(
            workspace, sweep.stored.store, uri, used=options.tracking, say=monitor.note
        )
        with open_tracker(tracker, state.flat_runs(), state.failures.values()):
            stack.enter_context(at_forced_end(lambda: tracker.close("KILLED")))
            sweep.tracker = tracker
            try:
                _start(sweep)
                sweep.prepare()
                check_feasible(workspace, options.raw)
                workspace.listings.clear()
                _measure(sweep)
                _train(sweep)
                summary = _report(sweep)
            except KeyboardInterrupt:
                stop_heard()
                monitor.stage("stop", "trials end, runs are closed; what is done is kept")
                raise
        return replace(summary, num_behind=tracker.num_behind)


@dataclass
class Stages:
    """What the stages of ``isweep run`` and ``isweep tune`` share; ``purpose`` is the command, for
    people.
    """

    purpose: str
    workspace: Workspace
    options: RunOptions
    monitor: Progress
    stack: ExitStack

    def begin(self) -> None:
        """Take the root's lock, once options are seen to be right, and remove what a killed run
        left.
        """
        if self.options.tracking:
            mlflow_uri(
                self.workspace.paths, self.options.mlflow_uri
            )  # it must not wait for MLflow's start
        self.workspace.make()
        provenance()  # of the code as it is now, whatever becomes of it while trials run
        self.monitor.path = self.workspace.sweep_paths.progress
        self.stack.enter_context(locked(self.workspace, self.purpose, self.monitor.note))
        self.stack.enter_context(self.monitor.shown())
        self.monitor.stage("start", "MLflow" if self.options.tracking else "")
        remove_orphans(self.workspace.paths)

    @cached_property
    def cluster(self) -> Cluster:
        """Connected when the first stage has work for it: where all is done, no Ray starts."""
        plan, paths, monitor = self.workspace.plan, self.workspace.paths, self.monitor
        monitor.stage("start", "Ray")
        connection = connect(
            self.options.address,
            num_cpus=self.options.num_cpus,
            dashboard=self.options.dashboard,
            token_file=paths.token,
            job={
                "job_name": self.purpose,
                "isweep grid": f"{len(plan.trials)} trials, {len(plan.measures)} measures",
                "isweep root": str(paths.root),
            },
        )
        cluster = self.stack.enter_context(connection)
        gpus = f", {cluster.num_gpus:g} GPUs" if cluster.num_gpus else ""
        where = "this machine" if cluster.local else f"a cluster of {cluster.num_nodes} nodes"
        monitor.note(f"Running on {where}: {cluster.num_cpus:g} CPUs{gpus}")
        if page := cluster.dashboard:
            monitor.note(f"Ray dashboard: {page} (access token in {paths.token})")
            table = (
                f"{page}/#/jobs/01000000, Task Table"  # of the one job that a private cluster has
            )
            monitor.note(f"Trials there: {table}, Function or Class Name: IsweepTrial.train")
        return cluster

    @cached_property
    def nodes(self) -> list[NodeGpus]:
        """The cluster's nodes with GPUs; none where trials run on CPUs."""
        if self.options.device == "cpu" or not self.cluster.num_gpus:
            return []
        return survey(self.cluster.num_gpus, local=self.cluster.local)

    def check_machine(self) -> None:
        """Refuse, before anything starts, a cluster that is not there and GPUs here that no trial
        can use.
        """
        options = self.options
        if options.address is not None:
            reached(options.address)
            return
        there = 0 if options.device == "cpu" else len(gpus_here())
        device = "cpu" if there or is_logical() else options.device
        trial_resources(self.workspace.plan.sweep.resources, this_machine(options.num_cpus), device)
        if there:
            self.check_gpus(survey(there, local=True))

    def check_gpus(self, nodes: list[NodeGpus]) -> None:
        """Refuse GPUs on which no trial of the sweep could run."""
        asked, plan = self.workspace.plan.sweep.resources.num_gpus, self.workspace.plan
        shared = any(node.mps for node in nodes)
        share = (0.5 if shared else 1.0) if asked is None else asked
        if share:
            refuse(nodes, plan.trials, share=share, alone=self.options.address is None)

    def executor(self, *, reads_files: bool = False) -> Executor:
        """Return what runs tasks; raw downloads and prepared data lie on the driver's node
        alone.
        """
        return RayExecutor(
            driver_node_only=reads_files and not self.cluster.local, note=self.monitor.note
        )

    def check_stored(self, stored: StoredResults) -> None:
        """Refuse a store in which a newer version wrote; say how many files are not believed."""
        stored.check_writable()
        if damaged := stored.unreadable:
            self.monitor.note(
                f"{plural(len(damaged), 'stored file')} not believed, such as {damaged[0].path}: "
                f"{damaged[0].reason}; {self.workspace.paths.log} names each. Their cells are done "
                "anew"
            )

    @property
    def missing(self) -> list[PreparedSpec]:
        """Datasets that are to be prepared."""
        there = self.workspace.prepared
        return [spec for spec in self.workspace.plan.prepared if spec.prepared_id not in there]

    def prepare(self) -> None:
        """Prepare the datasets that are missing."""
        workspace = self.workspace
        if missing := self.missing:
            executor = self.executor(reads_files=True)
            preparation.prepare_missing(workspace, missing, self.options, executor, self.monitor)
            workspace.look_again()

    def trials_of(
        self,
        plan: SweepPlan,
        stored: StoredResults,
        tracker: Tracker,
        cells: Collection[TrialSpec],
        measured: Collection[MeasuredTrial] = (),
    ) -> Run:
        """Return what the trials of ``plan``, such as ``cells``, share: above all what each asks
        for.
        """
        from orchestrator.running.requests import Requests, expected, places
        from orchestrator.running.trials import Run

        asked, folders = plan.sweep.resources, gpu_check_folders(self.workspace.paths.root)
        resources = trial_resources(asked, self.cluster, self.options.device)
        expectation = expected(self.nodes, asked, measured, folders)
        self.monitor.slots, bound = places(Requests(resources, expectation).usual(cells))
        if bound:
            self.monitor.note(bound)
        paths, monitor = self.workspace.paths, self.monitor
        return Run(plan, paths, self.cluster, resources, stored, tracker, monitor, expectation)


@dataclass
class _Sweep(Stages):
    stored: StoredResults = field(init=False)
    tracker: Tracker = field(init=False)
    pretrained: dict[str, bytes] = field(default_factory=dict)
    desk: Desk | None = None

    @property
    def state(self) -> State:
        """What is done by now: the store was read at the start and is written by this run alone."""
        return compare_with_plan(self.workspace, self.stored)


def _begin(sweep: _Sweep) -> None:
    """Take the root, and refuse at once what cannot run."""
    sweep.begin()
    workspace, options, monitor = sweep.workspace, sweep.options, sweep.monitor
    with workspace.recorded_while_checked():
        stored = sweep.stored = StoredResults.read(
            workspace.results_url, workspace.sweep_paths.index
        )
        sweep.check_stored(stored)
        if workspace.plan.sweep.predictions:
            damaged = "Predictions gone or damaged"
            remade, retrained = stored.forget_damaged(workspace.plan.trials_by_id)
            if remade:
                monitor.note(f"{damaged}: {remade}; made again from kept weights")
            if retrained:
                monitor.note(f"{damaged}: {retrained}; without weights, so trained again")
        preparation.check_raw(workspace, options.raw)
        check_feasible(workspace, options.raw)
        waiting = workspace.plan.trials_by_id.keys() - sweep.state.results.keys()
        if waiting:
            sweep.check_machine()
        preparation.check_models(workspace.plan, stored.trials)
        preparation.prepare_own(workspace, options, monitor)
        check_feasible(workspace, options.raw)
    names = {*workspace.paths.sweep_names()} - {workspace.plan.sweep.name}
    for name in sorted(names) if waiting else ():
        others = ResultStore(str(workspace.paths.sweep(name).folder)).listing(TrialRecord)
        if both := len(others.keys() & waiting):
            monitor.note(
                f"{name}, another sweep of this root, has {both} of these cells: trained again here"
            )
    stored.retry = RetryWithBackoff(monitor.note)


def _start(sweep: _Sweep) -> None:
    """Fetch what networks start from; start Ray, where trials wait, while MLflow gives its first
    answer.
    """
    workspace, known = sweep.workspace, sweep.state.results
    weights = preparation.fetch_pretrained(
        workspace.plan, known, workspace.paths, sweep.monitor.note
    )
    preparation.check_same_start(sweep.stored.trials, workspace.plan, weights)
    sweep.pretrained = weights
    meanwhile = preparation.Meanwhile(workspace, sweep.options, sweep.monitor)
    sweep.stack.callback(meanwhile.end)
    if len(known) < len(workspace.plan.trials):
        trial_resources(workspace.plan.sweep.resources, sweep.cluster, sweep.options.device)
        if sweep.options.address:
            sweep.check_gpus(sweep.nodes)
        from orchestrator.running.actors import Desk
        from orchestrator.running.trials import Trials  # noqa: F401  # which takes a second

        sweep.desk = Desk(workspace.results_url)
    meanwhile.end(preparation.HERE_S)
    sweep.tracker.check()


def _measure(sweep: _Sweep) -> None:
    """Measure the subsets that are not measured yet."""
    plan, done = sweep.workspace.plan, sweep.state.measures
    missing = [spec for spec in plan.measures if spec.measure_id not in done]
    if missing:
        sweep.monitor.stage("measure", "", len(missing))
    for spec in missing:
        dataset = plan.datasets[spec.subset.dataset]
        data = preparation.load_arrays(sweep.workspace, spec.subset, max(spec.train_sizes))
        label = f"measure {spec.subset.dataset} {pair_name(spec.subset.class_pair)}".strip()
        here = max(spec.train_sizes) * data.train_images.size <= MOST_HERE
        executor = InlineExecutor() if here else sweep.executor()
        record = preparation.measure_subset(spec, data, dataset, executor.labelled(label))
        sweep.stored.save(record)
        sweep.monitor.advance(spec.measure_id)


def _train(sweep: _Sweep) -> None:
    """Train the cells that are left, and measure on kept networks what is asked for now."""
    workspace, plan, state, monitor = (
        sweep.workspace,
        sweep.workspace.plan,
        sweep.state,
        sweep.monitor,
    )
    pending = [
        trial for trial_id, trial in plan.trials_by_id.items() if trial_id not in state.results
    ]
    monitor.planned, monitor.done = len(plan.trials), len(state.results)
    if not pending:
        return
    from orchestrator.running.trials import GridWork, Trials

    run = sweep.trials_of(plan, sweep.stored, sweep.tracker, pending, state.measured_trials())
    run.desk = sweep.desk
    monitor.stage("train")
    load, url = partial(preparation.load_arrays, workspace), workspace.results_url
    work = GridWork(run, pending, load, state=state, keep_url=url, pretrained=sweep.pretrained)
    Trials(run, work).run()


def _report(sweep: _Sweep) -> RunSummary:
    """Fit and report what the store holds now, whatever this run believes to have put there."""
    workspace, stored, tracker, monitor = (
        sweep.workspace,
        sweep.stored,
        sweep.tracker,
        sweep.monitor,
    )
    monitor.stage("report")
    if lost := stored.forget_removed():
        monitor.note(
            f"{lost} finished results were removed from the store while this command ran: "
            "run it again, and they are made anew"
        )
    state = sweep.state
    # Trials done earlier take the numbers of measures done now.
    tracker.reconcile(state.flat_runs(), state.failures.values(), wait=False)
    tracker.save_run_pages(workspace.sweep_paths.run_pages)
    written = RetryWithBackoff(monitor.note).until_done(lambda: _written(workspace, state))
    log_sweep(tracker, workspace, state)
    failures, num_planned = state.failure_rows(), len(workspace.plan.trials)
    return RunSummary(
        planned=num_planned,
        done=len(state.results),
        failed=len(failures),
        pending=num_planned - len(state.results) - len(failures),
        failures=failures,
        report=written,
    )


def _written(workspace: Workspace, state: State) -> Path | None:
    """Write the report, which takes seconds, unless what it is made of and its files are as they
    were.
    """
    paths, about = workspace.sweep_paths, provenance()
    records = (*state.records, *state.measures.values(), *state.failures.values())
    made_of = [
        sweep_text(workspace.plan.sweep),
        about.text(),
        *(record.text() for record in records),
    ]
    pages = read_run_pages(paths.run_pages)
    made_of += [f"{pages.prefix} {pages.runs.get(trial_id)}" for trial_id in state.results]
    made_of.append(repr(state.unreadable))

    def mark() -> bytes:
        files = sorted((str(path), path.stat().st_mtime_ns) for path in paths.report.rglob("*.*"))
        return fingerprint([made_of, files]).encode()

    page = paths.report / "report.html"
    with suppress(OSError):
        if page.exists() and read_whole(paths.report_made_of) == mark():
            return page
    from orchestrator.analysis.report import report_sweep

    written = report_sweep(workspace, state)
    write_atomic(paths.report_made_of, mark(), durable=False)
    return written
