"""State of a sweep: the done, failed and remaining trials of its plan."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.planning.estimate_text import amount
from orchestrator.planning.plan import PlannedStatus, SweepPlan
from orchestrator.planning.runtimes import MeasuredTrial
from orchestrator.planning.workspace import Workspace
from orchestrator.results.flat_runs import FlatRun, flat_trial
from orchestrator.results.metrics import index_measures
from orchestrator.results.outlines import TrialOutline
from orchestrator.results.records import FailureRecord, MeasureRecord, TrialRecord
from orchestrator.results.rows import Row, rows_of
from orchestrator.results.store import Unreadable
from orchestrator.results.stored_results import StoredResults
from search_spaces.errors import plural
from search_spaces.specs import MeasureSpec, SubsetSpec
from tasks.trials.records import TrialStatus


@dataclass(frozen=True)
class State:
    """The done, failed and remaining trials of a plan. Every mapping has ids as keys.

    Attributes:
        results: Outlines of planned trials that have all planned measurements.
        trials: Records of all stored results, planned or not.
        measures: Stored measures of the plan's datasets.
        failures: Latest failed attempt of each planned trial that is not in ``results``. A
            trial in ``partial`` has a failure here if a later measurement of its network
            failed.
        running: Trials that an active driver is running.
        waiting: Trials in ``failures`` that an active driver will try again.
        outdated: Planned trials with a result from other data, or with other settings but the
            same id.
        partial: Outlines of results that lack a planned measurement.
        unplanned: Ids of stored results whose trials are not in the plan. isweep does not
            delete these results and does not use them.
        unreadable: Stored files that isweep cannot use, for example damaged files.
    """

    results: dict[str, TrialOutline]
    trials: Mapping[str, TrialRecord] = field(default_factory=dict)
    measures: dict[str, MeasureRecord] = field(default_factory=dict)
    failures: dict[str, FailureRecord] = field(default_factory=dict)
    running: frozenset[str] = frozenset()
    waiting: frozenset[str] = frozenset()
    outdated: frozenset[str] = frozenset()
    partial: dict[str, TrialOutline] = field(default_factory=dict)
    unplanned: frozenset[str] = frozenset()
    unreadable: list[Unreadable] = field(default_factory=list)

    def status(self, trial_id: str) -> PlannedStatus:
        """Return the status of a planned trial."""
        if trial_id in self.results:
            return PlannedStatus.DONE
        if trial_id in self.running:
            return PlannedStatus.RUNNING
        if trial_id in self.waiting:
            return PlannedStatus.WAITING
        if trial_id in self.failures:
            return PlannedStatus.FAILED
        if trial_id in self.outdated:
            return PlannedStatus.STALE
        return PlannedStatus.PENDING

    def counts(self, plan: SweepPlan) -> dict[str, int]:
        """Return the numbers of planned, done, failed and diverged trials."""
        diverged = [
            outline for outline in self.results.values() if outline.status == TrialStatus.DIVERGED
        ]
        return {
            "planned": len(plan.trials),
            "done": len(self.results),
            "failed": len(self.failures),
            "diverged": len(diverged),
        }

    def flat_runs(self) -> Iterator[FlatRun]:
        """Yield all results of planned trials as flat runs for MLflow."""
        index = index_measures(self.measures.values())
        for record in self.records:
            yield flat_trial(record, index)

    @property
    def records(self) -> list[TrialRecord]:
        """Records of all planned trials with a result, complete or partial."""
        return [self.trials[trial_id] for trial_id in (*self.results, *self.partial)]

    def rows(self) -> list[Row]:
        """Return the rows of all planned trials with a result, sorted by trial id."""
        return rows_of(self.records, self.measures.values())

    def failure_rows(self) -> list[dict[str, str]]:
        """Return failures of trials that neither run nor wait for a retry, sorted by trial id."""
        failed = sorted(self.failures.keys() - self.waiting - self.running)
        return [self.failures[trial_id].row() for trial_id in failed]

    def measured_trials(self) -> list[MeasuredTrial]:
        """Return time and memory of each finished trial. Diverged trials are not included."""
        trials = []
        for outline in (*self.results.values(), *self.partial.values()):
            if outline.status == TrialStatus.DONE:
                trials.append(_measured_trial(outline))
        return trials

    def cost(self) -> dict[str, Any]:
        """Return the cost of all trials with a result. Failed attempts are not included.

        Returns:
            A dictionary. ``gpu_hours`` is the sum of hours times share of the GPU, over all
            trials on a GPU. ``core_hours`` is the sum of hours times number of cores, over all
            other trials. ``text`` contains both numbers.
        """
        gpu_hours = 0.0
        core_hours = 0.0
        for trial in self.measured_trials():
            hours = trial.seconds * trial.share / 3600
            if trial.on_gpu:
                gpu_hours += hours
            else:
                core_hours += hours
        parts = []
        if gpu_hours:
            parts.append(f"{amount(gpu_hours)} GPU-hours")
        if core_hours or not gpu_hours:
            parts.append(f"{amount(core_hours)} core-hours")
        text = f"cost so far: {' and '.join(parts)}"
        return {"gpu_hours": gpu_hours, "core_hours": core_hours, "text": text}


def _measured_trial(outline: TrialOutline) -> MeasuredTrial:
    on_gpu = outline.device.startswith("cuda")
    share: float = outline.num_threads
    if on_gpu:
        # Older records do not contain the share. At that time, each trial had a whole GPU.
        share = outline.gpu_share or 1.0
    return MeasuredTrial(
        spec=outline.spec,
        on_gpu=on_gpu,
        share=share,
        seconds=outline.finished_at - outline.started_at,
        gpu=outline.gpu_name,
        peak_bytes=outline.peak_bytes,
    )


def read_state(
    workspace: Workspace,
    running: Iterable[str] = (),
    waiting: Iterable[str] = (),
    *,
    quick: bool = False,
) -> State:
    """Read a sweep's store and compare it with the plan.

    Args:
        workspace: Plan and store of the sweep.
        running: Ids of trials that an active driver is running.
        waiting: Ids of failed trials that an active driver will try again.
        quick: If True, read the index of outlines instead of the results. Commands use it if
            they print no number that was measured on a network.
    """
    index_path = None
    if quick:
        index_path = workspace.sweep_paths.index
    stored = StoredResults.read(workspace.results_url, index_path, quick=quick)
    return compare_with_plan(workspace, stored, running, waiting)


def compare_with_plan(
    workspace: Workspace,
    stored: StoredResults,
    running: Iterable[str] = (),
    waiting: Iterable[str] = (),
) -> State:
    """Compare stored results with the plan and with the present prepared data.

    Args:
        workspace: The plan and its prepared data.
        stored: Stored results, measures and failures.
        running: Ids of trials that an active driver is running.
        waiting: Ids of failed trials that an active driver will try again.
    """
    planned = workspace.plan.trials_by_id
    results: dict[str, TrialOutline] = {}
    partial: dict[str, TrialOutline] = {}
    outdated = set()
    for trial_id, outline in stored.trials.outlines.items():
        if trial_id not in planned:
            continue
        trial = planned[trial_id]
        # The hash in an id does not include a setting that has its default value. So if a
        # default changed, only this comparison detects it.
        is_same_network = outline.spec.network == trial.network
        if not is_same_network or _has_other_data(
            workspace, trial.network.subset, outline.data_fingerprint
        ):
            outdated.add(trial_id)
        elif outline.lacks(trial):
            partial[trial_id] = outline
        else:
            results[trial_id] = outline
    failures = {
        trial_id: failure
        for trial_id, failure in stored.failures.items()
        if trial_id in planned and trial_id not in results
    }
    return State(
        results=results,
        trials=stored.trials,
        measures=_planned_measures(workspace, stored),
        failures=failures,
        running=frozenset(running),
        waiting=frozenset(waiting),
        outdated=frozenset(outdated),
        partial=partial,
        unplanned=frozenset(stored.trials.keys() - planned.keys()),
        unreadable=list(stored.unreadable),
    )


def removed_trials_text(workspace: Workspace, state: State) -> str:
    """Return sentences about finished trials that a changed sweep file removes from the plan.

    The text is empty if there are none. Trials that were already removed at the last run do
    not count. The last sentence has no period.
    """
    if not state.unplanned:
        return ""
    stored_plan = workspace.stored_plan()
    finished = set(state.trials)
    if stored_plan is not None:
        finished &= stored_plan.trials_by_id.keys()
    num_removed = len(finished & state.unplanned)
    if num_removed == 0:
        return ""
    return (
        f"The stored sweep {workspace.plan.sweep.name} has "
        f"{plural(len(finished), 'finished trial')}, but this plan lacks {num_removed:,} of "
        "these trials. isweep keeps their results, but the new report leaves the results out. To "
        "keep both sweeps, give this sweep another `name`"
    )


def _planned_measures(workspace: Workspace, stored: StoredResults) -> dict[str, MeasureRecord]:
    """Return the stored measures of the plan.

    A measure at one train size does not depend on the other train sizes. So if a planned
    measure is missing, return measures of the same subset, even if their list of train sizes
    differs.
    """
    by_subset: defaultdict[MeasureSpec, dict[str, MeasureRecord]] = defaultdict(dict)
    for measure_id, record in stored.measures.items():
        if not _has_other_data(workspace, record.spec.subset, record.data_fingerprint):
            by_subset[_without_sizes(record.spec)][measure_id] = record
    measures: dict[str, MeasureRecord] = {}
    for spec in workspace.plan.measures:
        candidates = by_subset[_without_sizes(spec)]
        if spec.measure_id in candidates:
            measures[spec.measure_id] = candidates[spec.measure_id]
        else:
            measures.update(candidates)
    return measures


def _without_sizes(spec: MeasureSpec) -> MeasureSpec:
    return spec.model_copy(update={"train_sizes": ()})


def _has_other_data(workspace: Workspace, subset: SubsetSpec, data_fingerprint: str) -> bool:
    """Return whether a result was computed from other data than the present prepared dataset.

    Return False if the dataset is not prepared.
    """
    dataset = workspace.prepared.get(subset.prepared.prepared_id)
    return dataset is not None and dataset.fingerprint != data_fingerprint
