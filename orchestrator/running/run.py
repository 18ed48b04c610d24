"""``isweep run``: prepare datasets, measure subsets, train trials, then fit and report.

Each stage does only the work whose results are not in the store. :func:`run_sweep` calls one
function per stage. The following modules process a trial, in this order:

1. :mod:`orchestrator.results.state` compares the plan with the store to see whether the trial
   is done.
2. :mod:`orchestrator.running.trial_source` sorts the trials that are not done
   (:mod:`orchestrator.planning.trial_order`). It puts them into a queue
   (:mod:`orchestrator.running.queue`). Whenever Ray Tune can start a trial, it takes the next
   one from this queue.
3. :mod:`orchestrator.running.trials` counts the attempt and makes the assignment for the
   worker. The assignment contains the trial, the key of its images, its CPUs, memory and GPU
   share, and the hash of the driver's code. The driver reads the images when the trial starts.
4. :mod:`orchestrator.running.workers.worker` runs the trial. :mod:`tasks.trials.trial` trains
   the network and measures it. The worker uses two actors on the driver's node
   (:mod:`orchestrator.running.actors`). One sends the images. The other stores weights,
   predictions and checkpoints.
5. :mod:`orchestrator.running.outcomes` receives the worker's result or failure on the driver.
   If the trial failed, it stores the failure first. Then it decides whether the trial is tried
   again.
6. If there is a result, :mod:`orchestrator.running.trial_source` builds its record and saves
   it with :mod:`orchestrator.results.store`.
7. :mod:`orchestrator.results.tracking` shows the result or the failure in MLflow.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.machine.cluster import RunOptions, trial_resources
from orchestrator.machine.signals import clear_stop_request
from orchestrator.machine.watch import at_forced_end
from orchestrator.planning.checks import check_feasible
from orchestrator.planning.plan import SweepPlan
from orchestrator.planning.sweep_file import SweepSource, sweep_text
from orchestrator.planning.workspace import Workspace
from orchestrator.results.mlflow_pages import read_run_pages
from orchestrator.results.provenance import provenance
from orchestrator.results.records import TrialRecord
from orchestrator.results.state import State, compare_with_plan, removed_trials_text
from orchestrator.results.storage import RetryWithBackoff
from orchestrator.results.store import ResultStore
from orchestrator.results.stored_results import StoredResults
from orchestrator.results.sweep_tracking import log_sweep, make_tracker, tracking_session
from orchestrator.results.tracking import Tracker
from orchestrator.running import preparation
from orchestrator.running.networks import check_models, check_same_start, fetch_pretrained
from orchestrator.running.progress import Progress
from orchestrator.running.stages import SweepCommand
from search_spaces.errors import SweepError, plural
from search_spaces.fingerprint import fingerprint
from search_spaces.specs import MeasureSpec, TrialSpec, pair_name
from tasks.atomic import read_whole, write_atomic
from tasks.remote import Executor, InlineExecutor

if TYPE_CHECKING:
    from orchestrator.running.actors import ActorHandles

MAX_PRODUCTS_HERE = 10**9
"""Largest number of multiplications for which the driver itself measures a subset. A subset
needs the largest train size times the number of pixel values of all training images. Such a
measurement takes less than a second, and Ray needs as long to start a task. Ray tasks measure
larger subsets."""


@dataclass(frozen=True)
class RunSummary:
    """The outcome of a run. All counts are over the whole plan.

    Attributes:
        planned: number of planned trials.
        done: number of trials with a complete result.
        failed: number of trials whose last attempt failed.
        pending: number of trials with neither a result nor a failure.
        failures: one row per failed trial, as :meth:`FailureRecord.row` returns it.
        report: path of the report, or None if no report was written.
        num_unsent_updates: number of updates that MLflow did not receive.
    """

    planned: int
    done: int
    failed: int
    pending: int
    failures: list[dict[str, str]]
    report: Path | None
    num_unsent_updates: int = 0

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 0 if every trial has a complete result, otherwise 1."""
        return 0 if self.done == self.planned else 1


def run_sweep(
    source: SweepSource,
    options: RunOptions | None = None,
    *,
    progress: Progress | None = None,
    changes: Mapping[str, object] | None = None,
) -> RunSummary:
    """Compute the measures and run the trials that the store lacks. Then fit and write the
    report.

    A second call resumes a stopped run. It also runs the new trials of a changed sweep, and
    repeats trials whose files are damaged.

    Args:
        source: name of a preset, path or content of a sweep file, or name of a sweep in the
            root.
        options: options that decide where and how the command runs.
        progress: display of the progress. None means that nothing is shown.
        changes: new values for keys of the sweep file. A key may contain dots, for example
            ``{"recipe.epochs": 5}``.

    Returns:
        The outcome of the run.

    Raises:
        SweepError: the user made a mistake, or isweep cannot run on this machine or cluster.
            Results of finished trials stay in the store.
        KeyboardInterrupt: the user pressed Ctrl-C. The runs in MLflow are closed. Results of
            finished trials stay in the store.
    """
    options = options or RunOptions()
    monitor = progress or Progress()
    workspace = Workspace.open(source, options.root, options.storage, changes=changes)
    with ExitStack() as stack:
        purpose = f"isweep run {workspace.plan.sweep.name}"
        sweep = _SweepRun(purpose, workspace, options, monitor, stack)
        _check_before_start(sweep)
        state = sweep.compute_state()
        tracker = make_tracker(
            workspace,
            sweep.stored.store,
            options.mlflow_uri,
            is_enabled=options.tracking,
            print_note=monitor.note,
        )
        with tracking_session(tracker, state.flat_runs(), state.failures.values()):
            stack.enter_context(at_forced_end(lambda: tracker.close("KILLED")))
            sweep.tracker = tracker
            try:
                _start_services(sweep)
                sweep.prepare_datasets()
                # This is the third of three checks, see _check_before_start.
                check_feasible(workspace, options.raw)
                # The lists of raw files use memory, and are not needed after the preparation.
                workspace.listings.clear()
                _measure(sweep)
                _train(sweep)
                summary = _report(sweep)
            except KeyboardInterrupt:
                clear_stop_request()
                monitor.stage("stop", "ending trials and closing runs; finished trials are kept")
                _recount_results_after_stop(sweep)
                raise
        return replace(summary, num_unsent_updates=tracker.num_unsent_updates)


@dataclass
class _SweepRun(SweepCommand):
    """A run of a sweep, with the objects that its stages share.

    Attributes:
        stored: results in the store. :func:`_check_before_start` sets this attribute.
        tracker: connection that shows trials in MLflow. :func:`run_sweep` sets this attribute.
        pretrained: pretrained weights from which networks start, by
            :attr:`ModelSpec.pretrained_key`.
        actors: actors on the driver's node. Workers use them to get images, store files and
            send messages. It is None if the run has no trial to run. The actors start while
            MLflow starts.
    """

    stored: StoredResults = field(init=False)
    tracker: Tracker = field(init=False)
    pretrained: dict[str, bytes] = field(default_factory=dict)
    actors: ActorHandles | None = None

    def compute_state(self) -> State:
        """Compare the sweep's plan with the stored results, and return the sweep's state."""
        return compare_with_plan(self.workspace, self.stored)

    @property
    def trials_to_train(self) -> list[TrialSpec]:
        """The trials to train: all trials to run, except those whose stored result lacks only
        measurements.

        If the weights of such an exception are not stored or are damaged, a worker trains it
        as well.
        """
        state = self.compute_state()
        trials = _trials_to_run(self.workspace.plan, state)
        return [trial for trial in trials if trial.trial_id not in state.partial]


def _trials_to_run(plan: SweepPlan, state: State) -> list[TrialSpec]:
    """Return the trials of the plan that have no complete result on the present data.

    Some of these trials have a result that lacks only measurements. For such a trial, the
    worker measures the stored network. If the weights are not stored or are damaged, the
    worker trains the network again.
    """
    trials = plan.trials_by_id.items()
    return [trial for trial_id, trial in trials if trial_id not in state.results]


def _check_before_start(sweep: _SweepRun) -> None:
    """Lock the root. Before Ray and MLflow start, check that the run can succeed.

    ``check_feasible`` is called three times, because the sizes of more classes become known.
    The first call uses the sweep file, the prepared datasets and the lists of files. Before
    the second call, the user's data are prepared, or at least their files are listed. Before
    the third call, in :func:`run_sweep`, all datasets are prepared, so each class has a known
    size.
    """
    sweep.lock_root()
    workspace = sweep.workspace
    options = sweep.options
    with workspace.write_sweep_file_if_valid():
        sweep.stored = StoredResults.read(workspace.results_url, workspace.sweep_paths.index)
        sweep.check_stored(sweep.stored)
        # Below, the file of this sweep replaces the stored file with which the text compares.
        removed_text = removed_trials_text(workspace, sweep.compute_state())
        if removed_text:
            sweep.monitor.note(removed_text)
        if workspace.plan.sweep.predictions:
            _drop_damaged_predictions(sweep)
        preparation.check_raw(workspace, options.raw)
        check_feasible(workspace, options.raw)
        ids_to_run = {
            trial.trial_id for trial in _trials_to_run(workspace.plan, sweep.compute_state())
        }
        if ids_to_run:
            sweep.check_machine()
        check_models(workspace.plan, sweep.stored.trials)
        preparation.prepare_own(workspace, options, sweep.monitor)
        check_feasible(workspace, options.raw)
    if ids_to_run:
        _note_other_sweeps(sweep, ids_to_run)
    # Until here, a store that does not answer is reported at once. From now on, the run waits.
    sweep.stored.retry = RetryWithBackoff(sweep.monitor.note)


def _drop_damaged_predictions(sweep: _SweepRun) -> None:
    """Remove missing and damaged predictions from the results in memory, so that this run
    computes them again.
    """
    damaged = sweep.stored.drop_damaged_predictions(sweep.workspace.plan.trials_by_id)
    if damaged.num_from_weights:
        sweep.monitor.note(
            "Stored predictions are missing or damaged. For "
            f"{plural(damaged.num_from_weights, 'trial')}, isweep computes the predictions again "
            "from stored weights"
        )
    if damaged.num_retrained:
        sweep.monitor.note(
            f"isweep trains {plural(damaged.num_retrained, 'trial')} again: the stored predictions "
            "are missing or damaged, and there are no undamaged weights"
        )


def _note_other_sweeps(sweep: _SweepRun, ids_to_run: set[str]) -> None:
    """Print a note if another sweep of the root has results of trials that this run trains."""
    paths = sweep.workspace.paths
    for name in sorted(paths.sweep_names()):
        if name == sweep.workspace.plan.sweep.name:
            continue
        listing = ResultStore(str(paths.sweep(name).folder)).listing(TrialRecord)
        num_shared = len(listing.keys() & ids_to_run)
        if num_shared:
            sweep.monitor.note(
                f"The sweep {name} in this root already has results of "
                f"{plural(num_shared, 'trial')} of this run. This run trains the trials again, "
                f"because it does not use results of {name}"
            )


def _start_services(sweep: _SweepRun) -> None:
    """Load pretrained weights, start Ray if there are trials to run, and wait for MLflow.

    Meanwhile another process prepares the datasets from Python packages.
    """
    workspace = sweep.workspace
    state = sweep.compute_state()
    sweep.pretrained = fetch_pretrained(
        workspace.plan, state.results, workspace.paths, sweep.monitor.note
    )
    check_same_start(sweep.stored.trials, workspace.plan, sweep.pretrained)
    packaged_datasets = preparation.BackgroundPreparation(workspace, sweep.options, sweep.monitor)
    sweep.stack.callback(packaged_datasets.end)
    if _trials_to_run(workspace.plan, state):
        cluster = sweep.start_cluster()
        # This call raises an error if a trial requests more than the cluster has.
        trial_resources(workspace.plan.sweep.resources, cluster, sweep.options.device)
        if sweep.options.address:
            sweep.check_gpus(sweep.nodes)
        from orchestrator.running.actors import ActorHandles

        sweep.actors = ActorHandles(workspace.results_url)
        # The actors start while Ray Tune is imported, which takes a second.
        importlib.import_module("orchestrator.running.trials")
    # Wait for these datasets: the call at the end of the command only ends the process.
    packaged_datasets.end(preparation.BACKGROUND_LIMIT_S)
    sweep.tracker.check()


def _measure(sweep: _SweepRun) -> None:
    """Measure the subsets whose measures are not in the store."""
    plan = sweep.workspace.plan
    done = sweep.compute_state().measures
    subsets_to_measure = [spec for spec in plan.measures if spec.measure_id not in done]
    if subsets_to_measure:
        sweep.monitor.stage("measure", "", len(subsets_to_measure))
    for spec in subsets_to_measure:
        data = preparation.load_arrays(sweep.workspace, spec.subset, max(spec.train_sizes))
        num_products = max(spec.train_sizes) * data.train_images.size
        executor = _executor_for(sweep, spec, num_products)
        dataset = plan.datasets[spec.subset.dataset]
        record = preparation.measure_subset(spec, data, dataset, executor)
        sweep.stored.save(record)
        sweep.monitor.advance(spec.measure_id)


def _executor_for(sweep: _SweepRun, spec: MeasureSpec, num_products: int) -> Executor:
    """Return the executor for a measure: the driver itself if the measure is quick, otherwise
    the cluster.
    """
    executor: Executor = InlineExecutor()
    if num_products > MAX_PRODUCTS_HERE:
        executor = sweep.executor()
    subset = spec.subset
    return executor.with_label(f"measure {subset.dataset} {pair_name(subset.class_pair)}".strip())


def _recount_results_after_stop(sweep: _SweepRun) -> None:
    """Count the stored results again after a stop, because somebody may have deleted the
    sweep's folder.

    If the store is remote, do not count. The store may answer slowly, and the user waits for
    the end of the command. Also do not count if the root was moved: its lock file is then not at
    its path, and the results are kept in the new place.
    """
    workspace = sweep.workspace
    if "://" in workspace.results_url or not workspace.paths.lock.exists():
        return
    with suppress(OSError, SweepError):
        num_lost = sweep.stored.drop_deleted_results()
        if num_lost:
            sweep.monitor.done = len(sweep.compute_state().results)
            sweep.monitor.note(
                f"{num_lost} finished results were removed from the store while this command ran"
            )


def _train(sweep: _SweepRun) -> None:
    """Run the trials that have no complete result."""
    plan = sweep.workspace.plan
    state = sweep.compute_state()
    trials_to_run = _trials_to_run(plan, state)
    sweep.monitor.planned = len(plan.trials)
    sweep.monitor.done = len(state.results)
    if not trials_to_run:
        return
    from orchestrator.running.trial_source import SweepTrials
    from orchestrator.running.trials import TrialLoop

    measured = state.measured_trials()
    run = sweep.run_context(plan, sweep.stored, sweep.tracker, trials_to_run, measured)
    run.actors = sweep.actors
    sweep.monitor.stage("train")
    source = SweepTrials(
        run,
        trials_to_run,
        partial(preparation.load_arrays, sweep.workspace),
        state=state,
        store_url=sweep.workspace.results_url,
        pretrained=sweep.pretrained,
    )
    TrialLoop(run, source).run()


def _report(sweep: _SweepRun) -> RunSummary:
    """Fit the results that the store contains now, and write the report.

    The results are counted again, because another process may have removed files meanwhile.
    """
    workspace, stored, tracker = sweep.workspace, sweep.stored, sweep.tracker
    monitor = sweep.monitor
    monitor.stage("report")
    num_lost = stored.drop_deleted_results()
    RetryWithBackoff(monitor.note).until_done(stored.store.keep_id)
    if num_lost:
        monitor.note(
            f"{num_lost} finished results were removed from the store while this command ran. To "
            "compute these results again, run the same command again"
        )
    state = sweep.compute_state()
    # The runs of earlier trials in MLflow get the new measures too.
    tracker.reconcile(state.flat_runs(), state.failures.values(), wait=False)
    tracker.save_run_pages(workspace.sweep_paths.run_pages)
    report = RetryWithBackoff(monitor.note).until_done(lambda: _write_report(workspace, state))
    log_sweep(tracker, workspace, state)
    failures = state.failure_rows()
    num_planned, num_done = len(workspace.plan.trials), len(state.results)
    return RunSummary(
        planned=num_planned,
        done=num_done,
        failed=len(failures),
        pending=num_planned - num_done - len(failures),
        failures=failures,
        report=report,
    )


def _write_report(workspace: Workspace, state: State) -> Path | None:
    """Return the path of the report. Write the report if it does not exist or is not up to
    date.
    """
    paths = workspace.sweep_paths
    sources = _report_sources(workspace, state)
    page = paths.report / "report.html"
    with suppress(OSError):
        if page.exists() and read_whole(paths.report_hash) == _report_hash(paths.report, sources):
            return page
    from orchestrator.analysis.report import report_sweep

    path = report_sweep(workspace, state)
    write_atomic(paths.report_hash, _report_hash(paths.report, sources), durable=False)
    return path


def _report_sources(workspace: Workspace, state: State) -> list[str]:
    """Return the texts that decide the content of a report. If they are unchanged, the report
    is up to date.
    """
    records = (*state.records, *state.measures.values(), *state.failures.values())
    pages = read_run_pages(workspace.sweep_paths.run_pages)
    links = [f"{pages.prefix} {pages.runs.get(trial_id)}" for trial_id in state.results]
    return [
        sweep_text(workspace.plan.sweep),
        provenance().text(),
        *(record.text() for record in records),
        *links,
        repr(state.unreadable),
    ]


def _report_hash(folder: Path, sources: list[str]) -> bytes:
    """Return a hash of a report's sources, and of the paths and times of its present files."""
    files = sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*.*"))
    return fingerprint([sources, files]).encode()
