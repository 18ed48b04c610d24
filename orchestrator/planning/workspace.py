"""One sweep below one root: its plan, its store, and which of its cells are done."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from orchestrator.planning.paths import RootPaths, SweepPaths
from orchestrator.planning.plan import SweepPlan, plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.results.store import Record, ResultStore, Unreadable
from orchestrator.running.lock import holder_pid
from search_spaces.errors import CorruptStoreError
from search_spaces.specs import MeasureSpec, PreparedSpec, TrialSpec
from tasks.prepared.dataset import PreparedDataset


@dataclass(frozen=True)
class State:
    """What is done, failed and left.

    Attributes:
        results: Believed results of planned trials, by id.
        failures: Latest failures of planned trials that have no result, by id.
        running: Ids that a live driver works on now.
        stale: Planned trials whose result was made from other data than are prepared now.
        foreign: Results of trials that are not in the plan (kept, not used).
        unreadable: Files that are not believed.
    """

    results: dict[str, Record]
    failures: dict[str, Record]
    running: frozenset[str]
    stale: frozenset[str]
    foreign: frozenset[str]
    unreadable: list[Unreadable]

    def status(self, trial_id: str) -> str:
        """Return ``done``, ``running``, ``failed``, ``stale`` or ``pending``."""
        if trial_id in self.results:
            return "done"
        if trial_id in self.running:
            return "running"
        if trial_id in self.failures:
            return "failed"
        return "stale" if trial_id in self.stale else "pending"


@dataclass(frozen=True)
class Workspace:
    """A plan and the places that belong to it."""

    plan: SweepPlan
    paths: RootPaths
    store: ResultStore

    @classmethod
    def open(cls, preset: str, root: str | None = None, storage: str | None = None) -> Workspace:
        """Read ``preset`` and find its place below ``root``.

        Args:
            preset: A preset's name or a sweep file's path.
            root: See :meth:`RootPaths.at`; it need not exist, and is not made.
            storage: fsspec URL below which results are kept; None keeps them below the root.

        Raises:
            SweepError: for whatever is wrong with the preset or the root.
        """
        plan = plan_sweep(load_sweep(preset))
        paths = RootPaths.at(root)
        folder = paths.sweep(plan.sweep.name).folder
        url = f"{storage.rstrip('/')}/{plan.sweep.name}" if storage else str(folder)
        return cls(plan, paths, ResultStore(url))

    @property
    def sweep_paths(self) -> SweepPaths:
        """Paths of this sweep."""
        return self.paths.sweep(self.plan.sweep.name)

    @cached_property
    def prepared(self) -> dict[str, PreparedDataset]:
        """Prepared datasets that are whole, by prepared id."""
        found = {}
        for spec in self.plan.prepared:
            dataset = open_prepared(self.paths, spec)
            if dataset is not None:
                found[spec.prepared_id] = dataset
        return found

    def state(self) -> State:
        """Scan the store."""
        scan = self.store.results("trials")
        planned = self.plan.trials_by_id
        results = {i: record for i, record in scan.records.items() if i in planned}
        stale = {i for i, record in results.items() if self._is_stale(planned[i], record)}
        results = {i: record for i, record in results.items() if i not in stale}
        failures = self.store.failures("trials")
        return State(
            results=results,
            failures={i: f for i, f in failures.records.items() if i in planned and i not in results},
            running=frozenset(self._running()),
            stale=frozenset(stale),
            foreign=frozenset(set(scan.records) - set(planned)),
            unreadable=scan.unreadable + failures.unreadable,
        )

    def measures(self) -> dict[str, Record]:
        """Stored measures of the plan made from the data prepared now, by measure id."""
        planned = {measure.measure_id: measure for measure in self.plan.measures}
        return {
            measure_id: record
            for measure_id, record in self.store.results("measures").records.items()
            if measure_id in planned and not self._is_stale(planned[measure_id], record)
        }

    def _is_stale(self, spec: TrialSpec | MeasureSpec, record: Record) -> bool:
        dataset = self.prepared.get(spec.subset.prepared.prepared_id)
        return dataset is not None and dataset.fingerprint != record["data_fingerprint"]

    def _running(self) -> list[str]:
        """Return what the lock's holder says it runs; the list of a killed run counts for nothing."""
        path = self.sweep_paths.progress
        holder = holder_pid(self.paths.lock)
        if holder is None or not path.exists():
            return []
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if state["pid"] != holder:
            return []
        return [str(trial_id) for trial_id in state["running"]]


def open_prepared(paths: RootPaths, spec: PreparedSpec) -> PreparedDataset | None:
    """Open a prepared dataset; None when it is missing or not whole."""
    folder = paths.prepared(spec)
    if not folder.exists():
        return None
    try:
        return PreparedDataset.open(folder)
    except CorruptStoreError:
        return None
