"""Where the search of a sweep stands, read from what is stored; nothing is trained, told or made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from orchestrator.planning.plan import Workspace
from orchestrator.results.records import FailureRecord
from orchestrator.results.store import ResultStore
from orchestrator.tuning.cells import SearchRecord, TuningCell, tuning_cells
from search_spaces.errors import SweepError
from search_spaces.specs import pair_name
from search_spaces.tuning import TuneSpec
from tasks.finding import Finding

Row = dict[str, str | int | float | None]


class SearchStanding(Finding):
    """What is stored of a search.

    Attributes:
        trials: Results, of finalists too.
        by_status: How many of them ended in each way.
        recipe: Path of the recipe; None before it is written.
        report: Path of the page; likewise.
        failed: Trials without a result whose last attempt failed.
        unreadable: Files that are not believed.
    """

    trials: int
    by_status: dict[str, int]
    recipe: str | None
    report: str | None
    failed: int = 0
    unreadable: int = 0

    @property
    def summary(self) -> str:
        """Say it in a line."""
        ways = ", ".join(f"{count} {status}" for status, count in sorted(self.by_status.items()))
        failed = f", {self.failed} failed" if self.failed else ""
        broken = f"; {self.unreadable} files not believed" if self.unreadable else ""
        recipe = f"; recipe {self.recipe}" if self.recipe else "; no recipe yet"
        return f"search: {self.trials} trials ({ways}){failed}{broken}{recipe}"


def search_standing(workspace: Workspace) -> SearchStanding | None:
    """Return where the search of a sweep stands; None where nothing was searched.

    Raises:
        SetupError: when the storage does not answer.
    """
    store = ResultStore(workspace.search_url)
    scan, failures = store.scan(SearchRecord), store.scan(FailureRecord)
    if not (scan.records or scan.unreadable or failures.records):
        return None
    recipe = workspace.paths.tuned_recipe(workspace.plan.sweep.name)
    report = workspace.sweep_paths.search_report / "search.html"
    return SearchStanding(
        trials=len(scan.records),
        by_status=dict(Counter(str(record.result.status) for record in scan.records.values())),
        recipe=str(recipe) if recipe.is_file() else None,
        report=str(report) if report.is_file() else None,
        failed=len(failures.records.keys() - scan.records.keys()),
        unreadable=len(scan.unreadable),
    )


def search_rows(workspace: Workspace) -> list[Row]:
    """Return one row per stored trial of a search, the first to finish first.

    Raises:
        SetupError: when the storage does not answer.
    """
    records = ResultStore(workspace.search_url).scan(SearchRecord).records.values()
    return [_row(record) for record in sorted(records, key=lambda record: record.finished_at)]


def _row(record: SearchRecord) -> Row:
    network, result = record.spec.network, record.result
    return {
        "trial_id": record.trial_id,
        "model": network.model.name,
        "dataset": network.subset.prepared.dataset,
        "class_pair": pair_name(network.subset.class_pair),
        "train_size": network.train_size,
        **record.point.model_dump(),
        "role": str(record.role),
        "seed": network.seed,
        "status": str(result.status),
        "epochs": result.epochs,
        "validation_loss": result.loss,
        "validation_accuracy": result.curve[-1].accuracy if result.loss is not None else None,
    }


def most_trainings(workspace: Workspace) -> tuple[int | None, str]:
    """Return how many whole trainings a search takes at most, and that in words.

    None where the sweep cannot be searched; in words why, for a sweep that says how it is to be.
    """
    sweep = workspace.plan.sweep
    try:
        cells = tuning_cells(workspace.plan)
    except SweepError as error:
        return None, f"isweep tune would refuse: {error}" if "tune" in sweep.model_fields_set else ""
    most = round(sum(_trainings(cells, sweep.tune)))
    return most, f"beside it, isweep tune would train {most} networks to the end at most"


def _trainings(cells: Iterable[TuningCell], tune: TuneSpec) -> Iterable[float]:
    """Yield the budget of each cell, and the further trainings of finalists and of the sweep's own recipe."""
    return (tune.num_trainings + (tune.finalists + 1) * (tune.seeds - 1) for _ in cells)
