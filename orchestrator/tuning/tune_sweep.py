"""Stages of ``isweep tune``: prepare data, check splits, search, write the results."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property

from orchestrator.machine.cluster import RunOptions, resolve_head
from orchestrator.planning.checks import check_feasible
from orchestrator.planning.plan import SweepPlan
from orchestrator.planning.sweep_file import SweepSource
from orchestrator.planning.workspace import Workspace
from orchestrator.results.storage import RetryWithBackoff
from orchestrator.results.stored_results import StoredResults
from orchestrator.results.sweep_tracking import make_tracker, tracking_session
from orchestrator.results.tracking import Tracker
from orchestrator.running.networks import check_models
from orchestrator.running.preparation import check_raw, prepare_own
from orchestrator.running.progress import Progress
from orchestrator.running.stages import SweepCommand
from orchestrator.tuning.combinations import Combination, combinations_to_tune
from orchestrator.tuning.earlier_trials import EarlierTrials
from orchestrator.tuning.outcome import TuneSummary, outcomes
from orchestrator.tuning.recipe import write_recipe
from orchestrator.tuning.search import Search
from orchestrator.tuning.search_records import SearchRecord, flat_search
from orchestrator.tuning.search_report import write_report
from search_spaces.errors import DataError, SweepError, raise_all
from search_spaces.specs import SubsetSpec
from search_spaces.tuning import SearchTrialSpec, ValidationSpec
from tasks.prepared.subsets import TrialData, load_validation, split_validation


def tune_sweep(
    source: SweepSource,
    options: RunOptions | None = None,
    *,
    progress: Progress | None = None,
    changes: Mapping[str, object] | None = None,
) -> TuneSummary:
    """Run the remaining trials of a sweep's search, and write its recipe.

    The same call resumes a stopped search, extends a changed search and repairs a damaged one.
    Arguments and errors are the same as for :func:`orchestrator.running.run.run_sweep`.
    """
    options = options or RunOptions()
    workspace = Workspace.open(source, options.root, options.storage, changes=changes)
    combinations = combinations_to_tune(workspace.plan)
    purpose = f"isweep tune {workspace.plan.sweep.name}"
    with ExitStack() as stack:
        tuning = _Tuning(purpose, workspace, options, progress or Progress(), stack, combinations)
        return tuning.all_stages()


@dataclass
class _Tuning(SweepCommand):
    """The stages of a search that tunes ``combinations``."""

    combinations: tuple[Combination, ...]

    def all_stages(self) -> TuneSummary:
        """Run all stages in order."""
        workspace = self.workspace
        options = self.options
        self.lock_root()
        if not workspace.sweep_paths.sweep_file.is_file():
            workspace.write_sweep_file()  # the file of a sweep that was run stays as it is
        check_models(workspace.plan, ())
        check_raw(workspace, options.raw)
        check_feasible(workspace, options.raw)
        recipe = workspace.paths.tuned_recipe(workspace.plan.sweep.name)
        if self.unprepared and not recipe.exists():
            self.check_machine()
        prepare_own(workspace, options, self.monitor)
        self.prepare_datasets()
        workspace.listings.clear()
        self._check_splits()
        stored = StoredResults.read(workspace.search_url)
        stored.retry = RetryWithBackoff(self.monitor.note)
        earlier = self._read(stored)
        num_known = len(earlier.records)
        search = Search(self.combinations, workspace.plan.sweep.tune)
        search.resume(earlier.trials())
        if options.address is not None and not search.is_done:
            resolve_head(options.address)
        tracker = make_tracker(
            self._as_sweep,
            stored.store,
            options.mlflow_uri,
            is_enabled=options.tracking,
            print_note=self.monitor.note,
        )
        with tracking_session(tracker, map(flat_search, earlier.records.values())):
            tracker.check()
            if not search.is_done:
                self._run(search, stored, earlier, tracker)
            num_new = len(earlier.records) - num_known
            summary = self._write(search, earlier.records, tracker, num_new)
        # isweep can count the updates that MLflow lacks only after it has tried to send all
        # updates.
        return replace(summary, num_unsent_updates=tracker.num_unsent_updates)

    def _check_splits(self) -> None:
        """Check all validation splits. Limit batch sizes to the number of training images.

        Raises:
            DataError: A subset cannot be split. The message lists all such subsets.
        """
        problems: dict[str, SweepError] = {}
        num_train: dict[str, int] = {}
        trials: dict[tuple[str, ValidationSpec], SearchTrialSpec] = {}
        for combination in self.combinations:
            for seed in range(self.workspace.plan.sweep.tune.seeds):
                trial = combination.trial(combination.sweep_point, seed)
                trials[trial.network.subset.subset_id, trial.validation] = trial
        for (subset_id, validation), trial in trials.items():
            subset = trial.network.subset
            dataset = self.workspace.prepared[subset.prepared.prepared_id]
            try:
                split = split_validation(dataset, subset, trial.network.train_size, validation)
            except SweepError as error:
                problems.setdefault(subset_id, error)
                continue
            size = split.max_train_size
            num_train[subset_id] = min(size, num_train.get(subset_id, size))
        raise_all(problems.values(), DataError)
        self.combinations = combinations_to_tune(self.workspace.plan, num_train)

    def _read(self, stored: StoredResults) -> EarlierTrials:
        """Return the stored trials of these combinations.

        Print the number of stored trials that are not used.
        """
        earlier = EarlierTrials.read(stored.store, self.combinations, self._fingerprints)
        stored.unreadable += earlier.unreadable
        self.check_stored(stored)
        if earlier.num_others:
            self.monitor.note(
                f"isweep does not use {earlier.num_others} stored trials of this sweep, "
                "because these trials belong to a search with other settings or other data"
            )
        return earlier

    @cached_property
    def _as_sweep(self) -> Workspace:
        """The search as a separate sweep. Its trials are created while the search runs."""
        plan = self.workspace.plan
        changes = {
            "name": f"{plan.sweep.name}-search",
            "train_sizes": (self.combinations[0].train_size,),
        }
        search_plan = SweepPlan(plan.sweep.model_copy(update=changes), (), (), plan.datasets)
        return Workspace(search_plan, self.workspace.paths, self.workspace.storage)

    def _run(
        self, search: Search, stored: StoredResults, earlier: EarlierTrials, tracker: Tracker
    ) -> None:
        """Run the trials of the search until it is done."""
        from orchestrator.running.trials import TrialLoop
        from orchestrator.tuning.search_trials import SearchTrials

        self.check_gpus(self.nodes)
        sweep_trials = [
            combination.trial(combination.sweep_point) for combination in self.combinations
        ]
        run = self.run_context(self._as_sweep.plan, stored, tracker, sweep_trials)
        self.monitor.stage("search")
        TrialLoop(run, SearchTrials(run, search, earlier, self._load, self._fingerprints)).run()

    def _write(
        self, search: Search, records: Mapping[str, SearchRecord], tracker: Tracker, num_new: int
    ) -> TuneSummary:
        """Write the recipe and the report of the search."""
        self.monitor.stage("report")
        sweep = self.workspace.plan.sweep
        all_outcomes = outcomes(search)
        recipe = self.workspace.paths.tuned_recipe(sweep.name)
        fingerprints: dict[str, str] = {}
        for dataset in self.workspace.prepared.values():
            fingerprints[dataset.record.dataset] = dataset.fingerprint
        write_recipe(recipe, sweep, all_outcomes, fingerprints)
        report = write_report(self.workspace, search, all_outcomes)
        if report is not None:
            tracker.log_report({"trials_done": len(records)}, report.parent)
        return TuneSummary(all_outcomes, recipe, report, num_new)

    @property
    def _fingerprints(self) -> dict[str, str]:
        """Content hashes of the datasets by prepared id."""
        prepared = self.workspace.prepared
        return {prepared_id: dataset.fingerprint for prepared_id, dataset in prepared.items()}

    def _load(self, subset: SubsetSpec, train_size: int, validation: ValidationSpec) -> TrialData:
        """Return the training and validation images of a subset."""
        dataset = self.workspace.prepared[subset.prepared.prepared_id]
        return load_validation(dataset, subset, train_size, validation)
