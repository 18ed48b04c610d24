"""What a sweep's store holds, and what of the plan is therefore done, failed or left."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.planning.estimate_text import amount
from orchestrator.planning.plan import CellStatus, SweepPlan
from orchestrator.planning.runtimes import MeasuredTrial
from orchestrator.planning.workspace import Workspace
from orchestrator.results.flat_runs import FlatRun, flat_trial
from orchestrator.results.metrics import index_measures
from orchestrator.results.outlines import TrialOutline
from orchestrator.results.records import (
    FailureRecord,
    MeasureRecord,
    TrialRecord,
)
from orchestrator.results.rows import Row, rows_of
from orchestrator.results.store import Unreadable
from orchestrator.results.stored_results import StoredResults
from search_spaces.specs import MeasureSpec, TrialSpec
from tasks.trials.records import TrialStatus

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """What is done, failed and left of a plan; everything by id.

    Attributes:
        results: Outlines of the believed results of planned trials that have everything asked for.
        trials: Records of these and other results.
        stale: Planned trials whose result was made from other data, or other choices under the same
            id.
        partial: Outlines of believed results that lack a measurement that is asked for now.
        foreign: Results of trials that are not in the plan (kept, not used).
    """

    results: dict[str, TrialOutline]
    trials: Mapping[str, TrialRecord] = field(default_factory=dict)
    measures: dict[str, MeasureRecord] = field(default_factory=dict)
    failures: dict[str, FailureRecord] = field(default_factory=dict)
    running: frozenset[str] = frozenset()
    stale: frozenset[str] = frozenset()
    partial: dict[str, TrialOutline] = field(default_factory=dict)
    foreign: frozenset[str] = frozenset()
    unreadable: list[Unreadable] = field(default_factory=list)

    def status(self, trial_id: str) -> CellStatus:
        """Return where a planned trial stands."""
        if trial_id in self.results:
            return CellStatus.DONE
        if trial_id in self.running:
            return CellStatus.RUNNING
        if trial_id in self.failures:
            return CellStatus.FAILED
        return CellStatus.STALE if trial_id in self.stale else CellStatus.PENDING

    def counts(self, plan: SweepPlan) -> dict[str, int]:
        """Return how many trials are planned and in each state."""
        return {
            "planned": len(plan.trials),
            "done": len(self.results),
            "failed": len(self.failures),
            "diverged": sum(one.status == TrialStatus.DIVERGED for one in self.results.values()),
        }

    def flat_runs(self) -> Iterator[FlatRun]:
        """Yield all results of planned trials as MLflow shows them."""
        index = index_measures(self.measures.values())
        return (flat_trial(record, index) for record in self.records)

    @property
    def records(self) -> list[TrialRecord]:
        """Records of all results of planned trials, with everything asked for or not."""
        return [self.trials[trial_id] for trial_id in (*self.results, *self.partial)]

    def rows(self) -> list[Row]:
        """Return the rows of all results of planned trials, ordered by trial id."""
        return rows_of(self.records, self.measures.values())

    def failure_rows(self) -> list[dict[str, str]]:
        """Return the failures as the command line and the report print them, ordered by trial
        id.
        """
        return [record.row() for _, record in sorted(self.failures.items())]

    def measured_trials(self) -> list[MeasuredTrial]:
        """Return what done trials cost; diverged ones stopped at an unknown epoch."""
        return [
            MeasuredTrial(
                spec=outline.spec,
                on_gpu=(on_gpu := outline.device.startswith("cuda")),
                # Older records know no share: the trial had the GPU to itself.
                share=(outline.gpu_share or 1.0) if on_gpu else outline.num_threads,
                seconds=outline.finished_at - outline.started_at,
                gpu=outline.gpu_name,
                peak_bytes=outline.peak_bytes,
            )
            for outline in (*self.results.values(), *self.partial.values())
            if outline.status == TrialStatus.DONE
        ]

    def cost(self) -> dict[str, Any]:
        """Return what the trials that have a result cost, in words too; failed attempts leave no
        times.

        Hours are of whole GPUs, time times share, or of cores where a trial ran without one.
        """
        hours = {True: 0.0, False: 0.0}
        for trial in self.measured_trials():
            hours[trial.on_gpu] += trial.seconds * trial.share / 3600
        gpu, core = hours[True], hours[False]
        said = [f"{amount(gpu)} GPU-hours"] * bool(gpu)
        said += [f"{amount(core)} core-hours"] * bool(core or not gpu)
        return {"gpu_hours": gpu, "core_hours": core, "text": f"cost so far {' and '.join(said)}"}


def read_state(workspace: Workspace, running: Iterable[str] = (), *, look: bool = False) -> State:
    """Read the store of a sweep and judge it; a ``look``, for what no network found, uses the
    index.
    """
    index = workspace.sweep_paths.index if look else None
    return judge(workspace, StoredResults.read(workspace.results_url, index, look=look), running)


def judge(workspace: Workspace, stored: StoredResults, running: Iterable[str] = ()) -> State:
    """Compare what is stored with the plan, the data prepared now, and what a live driver is
    ``running``.
    """
    planned = workspace.plan.trials_by_id
    known = {i: outline for i, outline in stored.trials.outlines.items() if i in planned}
    stale = {i for i, outline in known.items() if _is_stale(workspace, planned[i], outline)}
    believed = {i: outline for i, outline in known.items() if i not in stale}
    partial = {i: outline for i, outline in believed.items() if outline.lacks(planned[i])}
    results = {i: outline for i, outline in believed.items() if i not in partial}
    return State(
        results=results,
        trials=stored.trials,
        measures=_measures(workspace, stored),
        failures={i: f for i, f in stored.failures.items() if i in planned and i not in results},
        running=frozenset(running),
        stale=frozenset(stale),
        partial=partial,
        foreign=frozenset(stored.trials.keys() - planned.keys()),
        unreadable=list(stored.unreadable),
    )


def _measures(workspace: Workspace, stored: StoredResults) -> dict[str, MeasureRecord]:
    """Return the believed measures of the plan; for one that is not made yet, those of other train
    sizes.

    What is found at a train size does not depend on the others: a sweep file that was extended
    keeps it.
    """
    alike: dict[MeasureSpec, dict[str, MeasureRecord]] = {}
    for name, record in stored.measures.items():
        if not _is_stale(workspace, record.spec, record):
            alike.setdefault(record.spec.model_copy(update={"train_sizes": ()}), {})[name] = record
    found: dict[str, MeasureRecord] = {}
    for spec in workspace.plan.measures:
        same = alike.get(spec.model_copy(update={"train_sizes": ()}), {})
        own = same.get(spec.measure_id)
        found |= same if own is None else {spec.measure_id: own}
    return found


def _is_stale(
    workspace: Workspace, spec: TrialSpec | MeasureSpec, record: TrialOutline | MeasureRecord
) -> bool:
    subset = spec.network.subset if isinstance(spec, TrialSpec) else spec.subset
    dataset = workspace.prepared.get(subset.prepared.prepared_id)
    if dataset is not None and dataset.fingerprint != record.data_fingerprint:
        return True
    # An id leaves out what has its default: one that changed under the same version must not go
    # unseen.
    return (spec.network if isinstance(spec, TrialSpec) else spec) != (
        record.spec.network if isinstance(record, TrialOutline) else record.spec
    )
