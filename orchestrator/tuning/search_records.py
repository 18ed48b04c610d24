"""What is stored of a search's trials, and how it is shown."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import Field

from orchestrator.planning.workspace import Workspace
from orchestrator.results.columns import EPOCH_PREFIX
from orchestrator.results.flat_runs import FlatRun, flat_run, milliseconds
from orchestrator.results.records import FailureRecord, ResultRecord, SealedRecord
from orchestrator.results.store import ResultStore
from orchestrator.tuning.combinations import CellKey, Point
from search_spaces.errors import plural
from search_spaces.specs import (
    pair_name,
)
from search_spaces.tuning import SearchTrialSpec
from tasks.trials.records import SearchResult

Row = dict[str, str | int | float | None]


VALIDATION_LOSS, VALIDATION_ACCURACY = "validation_loss", "validation_accuracy"


class Role(StrEnum):
    """Why a trial was run."""

    OWN = "own"
    """At the sweep's own recipe, to compare with."""
    SAMPLED = "sampled"
    FINALIST = "finalist"
    """One of the best, with another seed or class pair."""


class _OfATrial(SealedRecord):
    """What both kinds of records say of their trial; ``run`` is 0 for the search's own training of
    a point, then one per seed.
    """

    folder: ClassVar[str] = "trials"

    trial_id: str
    role: Role
    run: Annotated[int, Field(ge=0, lt=2**63)]
    spec: SearchTrialSpec
    data_fingerprint: str

    @property
    def key(self) -> CellKey:
        """Whose it is."""
        network = self.spec.network
        return network.model.name, network.subset.dataset

    @property
    def point(self) -> Point:
        """Where in its space the trial lies."""
        return Point.of(self.spec.network.recipe)


class AskedRecord(_OfATrial):
    """A training that a search has asked for, stored before it begins: a killed search goes on with
    it.

    ``number`` is how many the search had asked for before.
    """

    file: ClassVar[str] = "asked.json"
    version: ClassVar[int] = 1

    schema_version: int = version
    number: int


class SearchRecord(_OfATrial, ResultRecord):
    """One trial of a search with its result."""

    file: ClassVar[str] = "search.json"
    version: ClassVar[int] = 1

    schema_version: int = version
    spec: SearchTrialSpec
    attempt: int = 1
    result: SearchResult

    def scores(self) -> dict[str, float | None]:
        """Return epochs that it took, and loss and accuracy on the validation images; None when
        diverged.
        """
        result = self.result
        accuracy = None if result.loss is None else result.curve[-1].accuracy
        return {
            "epochs": result.epochs,
            VALIDATION_LOSS: result.loss,
            VALIDATION_ACCURACY: accuracy,
        }


def flat_search(record: SearchRecord) -> FlatRun:
    """Return a stored trial of a search as one flat run: its validation losses are a series over
    epochs.
    """
    started = milliseconds(record.started_at)
    series = tuple(
        (EPOCH_PREFIX + name, score.epoch, value, started)
        for score in record.result.curve
        for name, value in ((VALIDATION_LOSS, score.loss), (VALIDATION_ACCURACY, score.accuracy))
    )
    metrics = {name: value for name, value in record.scores().items() if value is not None}
    return flat_run(record, {"role": str(record.role)}, metrics, series, record.finished_at)


def search_standing(workspace: Workspace) -> dict[str, Any] | None:
    """Return what is stored of a sweep's search, trials of finalists too; None where nothing was
    searched.

    Counts are of trials, by status, without a result, and of unreadable files; then come paths
    where written.
    """
    store = ResultStore(workspace.search_url)
    scan, failures = store.scan(SearchRecord), store.scan(FailureRecord).records
    if not (scan.records or scan.unreadable or failures):
        return None
    by_status = Counter(str(record.result.status) for record in scan.records.values())
    num_failed, num_unreadable = len(failures.keys() - scan.records.keys()), len(scan.unreadable)
    paths = {
        "recipe": workspace.paths.tuned_recipe(workspace.plan.sweep.name),
        "report": workspace.sweep_paths.search_report / "search.html",
    }
    written = {name: str(path) if path.is_file() else None for name, path in paths.items()}
    ways = ", ".join(f"{count} {status}" for status, count in sorted(by_status.items()))
    text = f"search: {plural(len(scan.records), 'trial')}" + f" ({ways})" * bool(ways)
    text += f", {num_failed} failed" * bool(num_failed)
    text += f"; {plural(num_unreadable, 'file')} not believed" * bool(num_unreadable)
    text += f"; recipe {written['recipe']}" if written["recipe"] else "; no recipe yet"
    counts = {"trials": len(scan.records), "failed": num_failed, "unreadable": num_unreadable}
    return counts | written | {"by_status": dict(by_status), "text": text}


def search_rows(workspace: Workspace) -> list[Row]:
    """Return one row per stored trial of a search, the first to finish first."""
    records = ResultStore(workspace.search_url).scan(SearchRecord).records.values()
    return [
        {
            "trial_id": record.trial_id,
            "model": record.key[0],
            "dataset": record.key[1],
            "class_pair": pair_name(record.spec.network.subset.class_pair),
            "train_size": record.spec.network.train_size,
            **record.point.model_dump(),
            "role": str(record.role),
            "seed": record.spec.network.seed,
            "status": str(record.result.status),
            **record.scores(),
        }
        for record in sorted(records, key=lambda record: record.finished_at)
    ]
