"""The stages of ``isweep tune``, in order: prepare, split, search, write the recipe and its
report.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property

from orchestrator.machine.cluster import RunOptions, reached
from orchestrator.planning.checks import check_feasible
from orchestrator.planning.plan import SweepPlan
from orchestrator.planning.sweep_file import SweepSource
from orchestrator.planning.workspace import Workspace
from orchestrator.results.storage import Patience
from orchestrator.results.stored_results import StoredResults
from orchestrator.results.tracking import Tracker, make_tracker, open_tracker
from orchestrator.running.preparation import check_models, check_raw, prepare_own
from orchestrator.running.progress import Progress
from orchestrator.running.run import Stages
from orchestrator.tuning.combinations import TuningCell, tuning_cells
from orchestrator.tuning.outcome import TuneSummary, outcomes
from orchestrator.tuning.recipe import write_recipe
from orchestrator.tuning.search import Earlier, Search
from orchestrator.tuning.search_records import SearchRecord, flat_search
from orchestrator.tuning.search_report import write_report
from search_spaces.errors import DataError, SweepError, collect
from search_spaces.specs import SubsetSpec
from search_spaces.tuning import ValidationSpec
from tasks.prepared.subsets import TrialData, load_validation, split_validation


def tune_sweep(
    source: SweepSource,
    options: RunOptions | None = None,
    *,
    progress: Progress | None = None,
    changes: Mapping[str, object] | None = None,
) -> TuneSummary:
    """Do what is left of a sweep's search and write its recipe; again resumes, extends or repairs
    it.

    Arguments, and what is raised, as of :func:`orchestrator.running.run.run_sweep`.
    """
    options = options or RunOptions()
    workspace = Workspace.open(source, options.root, options.storage, changes=changes)
    cells, purpose = tuning_cells(workspace.plan), f"isweep tune {workspace.plan.sweep.name}"
    with ExitStack() as stack:
        return _Tuning(
            purpose, workspace, options, progress or Progress(), stack, cells
        ).all_stages()


@dataclass
class _Tuning(Stages):
    cells: tuple[TuningCell, ...]

    def all_stages(self) -> TuneSummary:
        workspace, options, monitor = self.workspace, self.options, self.monitor
        self.begin()
        if not workspace.sweep_paths.sweep_file.is_file():
            workspace.record()  # a sweep that ran is kept as it ran
        check_models(workspace.plan, ())
        check_raw(workspace, options.raw)
        check_feasible(workspace, options.raw)
        if self.missing and not workspace.paths.tuned_recipe(workspace.plan.sweep.name).exists():
            self.check_machine()
        prepare_own(workspace, options, monitor)
        self.prepare()
        workspace.listings.clear()
        self._check_splits()
        stored = StoredResults.read(workspace.search_url)
        stored.patience = Patience(monitor.note)
        earlier = self._read(stored)
        search = Search(self.cells, workspace.plan.sweep.tune)
        search.go_on(earlier.trainings())
        records, num_known = earlier.records, len(earlier.records)
        if options.address is not None and not search.done:
            reached(options.address)
        uri, used = options.mlflow_uri, options.tracking
        tracker = make_tracker(self._as_sweep, stored.store, uri, used=used, say=monitor.note)
        with open_tracker(tracker, map(flat_search, records.values())):
            tracker.check()
            if not search.done:
                self._run(search, stored, earlier, tracker)
            summary = self._write(search, records, tracker, len(records) - num_known)
        return replace(
            summary, num_behind=tracker.num_behind
        )  # what it misses after it was told all

    def _check_splits(self) -> None:
        """Find every subset without a validation split, and batches too large, before anything is
        trained.
        """
        problems: dict[str, SweepError] = {}
        num_train: dict[str, int] = {}
        runs = range(self.workspace.plan.sweep.tune.seeds)
        trials = [cell.trial(cell.own, run) for cell in self.cells for run in runs]
        asked = {(trial.network.subset.subset_id, trial.validation): trial for trial in trials}
        for (subset_id, validation), trial in asked.items():
            subset = trial.network.subset
            data = self.workspace.prepared[subset.prepared.prepared_id]
            try:
                split = split_validation(data, subset, trial.network.train_size, validation)
                size = split.max_train_size
                num_train[subset_id] = min(size, num_train.get(subset_id, size))
            except SweepError as error:
                problems.setdefault(subset_id, error)
        collect(problems.values(), DataError)
        self.cells = tuning_cells(self.workspace.plan, num_train)

    def _read(self, stored: StoredResults) -> Earlier:
        """Return what is stored of these very cells; says how much is of others."""
        earlier = Earlier.read(stored.store, self.cells, self._fingerprints)
        stored.unreadable += earlier.unreadable
        self.check_stored(stored)
        if earlier.num_others:
            self.monitor.note(
                f"{earlier.num_others} stored trials belong to another search of this sweep; "
                "kept, "
                "not used"
            )
        return earlier

    @cached_property
    def _as_sweep(self) -> Workspace:
        """The search as a sweep of its own: its name, its train size, and cells made as it goes."""
        plan = self.workspace.plan
        about = {"name": f"{plan.sweep.name}-search", "train_sizes": (self.cells[0].train_size,)}
        search = SweepPlan(plan.sweep.model_copy(update=about), (), (), plan.datasets)
        return Workspace(search, self.workspace.paths, self.workspace.storage)

    def _run(
        self, search: Search, stored: StoredResults, earlier: Earlier, tracker: Tracker
    ) -> None:
        from orchestrator.running.trials import Trials
        from orchestrator.tuning.search_work import SearchWork

        self.check_gpus(self.nodes)
        own = [cell.trial(cell.own) for cell in self.cells]
        run = self.trials_of(self._as_sweep.plan, stored, tracker, own)
        self.monitor.stage("search")
        Trials(run, SearchWork(run, search, earlier, self._load, self._fingerprints)).run()

    def _write(
        self, search: Search, records: Mapping[str, SearchRecord], tracker: Tracker, num_new: int
    ) -> TuneSummary:
        self.monitor.stage("report")
        sweep = self.workspace.plan.sweep
        found = outcomes(search)
        recipe = self.workspace.paths.tuned_recipe(sweep.name)
        prepared = self.workspace.prepared.values()
        write_recipe(
            recipe, sweep, found, {data.record.dataset: data.fingerprint for data in prepared}
        )
        report = write_report(self.workspace, search, found)
        if report is not None:
            tracker.log_report({"trials_done": len(records)}, report.parent)
        return TuneSummary(found, recipe, report, num_new)

    @property
    def _fingerprints(self) -> dict[str, str]:
        return {name: data.fingerprint for name, data in self.workspace.prepared.items()}

    def _load(self, subset: SubsetSpec, train_size: int, validation: ValidationSpec) -> TrialData:
        data = self.workspace.prepared[subset.prepared.prepared_id]
        return load_validation(data, subset, train_size, validation)
