"""Records of a search's trials, and tables of these records for commands."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import Field

from orchestrator.planning.workspace import Workspace
from orchestrator.results.columns import EPOCH_PREFIX
from orchestrator.results.flat_runs import CurvePoint, FlatRun, flat_run, milliseconds
from orchestrator.results.records import FailureRecord, ResultRecord, StoredRecord
from orchestrator.results.store import ResultStore
from orchestrator.tuning.combinations import CombinationKey, Point, Training
from search_spaces.errors import plural
from search_spaces.specs import pair_name
from search_spaces.tuning import SearchTrialSpec
from tasks.trials.records import SearchResult

Row = dict[str, str | int | float | None]
"""One row of a table about a search, by column."""
VALIDATION_LOSS = "validation_loss"
"""Column and metric: loss on the validation images, nat."""
VALIDATION_ACCURACY = "validation_accuracy"
"""Column and metric: accuracy on the validation images."""


class Role(StrEnum):
    """Reason why a search runs a trial."""

    SWEEP_RECIPE = "own"
    """Trial with the sweep's recipe. All other trials are compared with it."""
    SAMPLED = "sampled"
    """Trial at a point that the sampler proposed."""
    FINALIST = "finalist"
    """Trial at one of the best points, with another seed or class pair."""


class _SearchTrialRecord(StoredRecord):
    """Base class of the records about a trial of a search.

    Attributes:
        role: Reason why the search runs the trial.
        run: Number of the training: 0 in the sampling phase, and 1 or more for further
            trainings of a finalist.
        spec: The trial.
        data_fingerprint: Content hash of the prepared dataset.
    """

    folder: ClassVar[str] = "trials"

    trial_id: str
    role: Role
    run: Annotated[int, Field(ge=0, lt=2**63)]
    spec: SearchTrialSpec
    data_fingerprint: str

    @property
    def key(self) -> CombinationKey:
        """Names of the trial's model and dataset."""
        network = self.spec.network
        return network.model.name, network.subset.dataset

    @property
    def point(self) -> Point:
        """The trial's point of the search space."""
        return Point.of(self.spec.network.recipe)

    @property
    def training(self) -> Training:
        """The point and the seed of the trial."""
        return Training(self.point, self.run)


class RequestRecord(_SearchTrialRecord):
    """A trial that a search has requested.

    The record is stored before the training begins. So if a search is killed, the next search
    can continue with this trial.

    Attributes:
        number: Number of trials that the search had requested before.
    """

    file: ClassVar[str] = "asked.json"
    version: ClassVar[int] = 1

    schema_version: int = version
    number: int


class SearchRecord(_SearchTrialRecord, ResultRecord):
    """A trial of a search, with its result."""

    file: ClassVar[str] = "search.json"
    version: ClassVar[int] = 1

    schema_version: int = version
    spec: SearchTrialSpec
    attempt: int = 1
    result: SearchResult

    def scores(self) -> dict[str, float | None]:
        """Return the number of epochs, and the loss and accuracy on the validation images.

        If the trial diverged, loss and accuracy are None.
        """
        result = self.result
        accuracy = None
        if result.loss is not None:
            accuracy = result.curve[-1].accuracy
        return {
            "epochs": result.epochs,
            VALIDATION_LOSS: result.loss,
            VALIDATION_ACCURACY: accuracy,
        }


def flat_search(record: SearchRecord) -> FlatRun:
    """Convert a trial of a search to a flat run, with its validation losses as a curve."""
    started_ms = milliseconds(record.started_at)
    series: list[CurvePoint] = []
    for score in record.result.curve:
        for name, value in ((VALIDATION_LOSS, score.loss), (VALIDATION_ACCURACY, score.accuracy)):
            series.append(CurvePoint(EPOCH_PREFIX + name, score.epoch, value, started_ms))
    metrics = {name: value for name, value in record.scores().items() if value is not None}
    tags = {"role": str(record.role)}
    return flat_run(record, tags, metrics, tuple(series), record.finished_at)


def search_standing(workspace: Workspace) -> dict[str, Any] | None:
    """Return a summary of the stored trials of a sweep's search, including finalists.

    Returns:
        None if the sweep has no search. Otherwise a dictionary: ``trials``, ``failed`` and
        ``unreadable`` are numbers of trials, of failed trials and of files that cannot be
        used. ``by_status`` contains the number of trials by status. ``recipe`` and ``report``
        are paths or None. ``text`` is the summary as text.
    """
    store = ResultStore(workspace.search_url)
    results = store.scan(SearchRecord)
    failures = store.scan(FailureRecord).records
    if not (results.records or results.unreadable or failures):
        return None
    paths = {
        "recipe": workspace.paths.tuned_recipe(workspace.plan.sweep.name),
        "report": workspace.sweep_paths.search_report / "search.html",
    }
    written = {name: str(path) if path.is_file() else None for name, path in paths.items()}
    by_status = Counter(str(record.result.status) for record in results.records.values())
    standing = {
        "trials": len(results.records),
        "failed": len(failures.keys() - results.records.keys()),
        "unreadable": len(results.unreadable),
        **written,
        "by_status": dict(by_status),
    }
    return standing | {"text": _standing_text(standing)}


def _standing_text(standing: dict[str, Any]) -> str:
    """Return the summary of a search as text."""
    text = f"search: {plural(standing['trials'], 'trial')}"
    if standing["by_status"]:
        counts = [f"{count} {status}" for status, count in sorted(standing["by_status"].items())]
        text += f" ({', '.join(counts)})"
    if standing["failed"]:
        text += f", {standing['failed']} failed"
    if standing["unreadable"]:
        text += f"; {plural(standing['unreadable'], 'file')} cannot be used"
    if standing["recipe"]:
        return f"{text}; the recipe is {standing['recipe']}"
    return f"{text}; the recipe is not written yet"


def search_rows(workspace: Workspace) -> list[Row]:
    """Return one row per trial of a search, in the order in which the trials ended."""
    records = ResultStore(workspace.search_url).scan(SearchRecord).records.values()
    rows: list[Row] = []
    for record in sorted(records, key=lambda record: record.finished_at):
        network = record.spec.network
        model, dataset = record.key
        rows.append(
            {
                "trial_id": record.trial_id,
                "model": model,
                "dataset": dataset,
                "class_pair": pair_name(network.subset.class_pair),
                "train_size": network.train_size,
                **record.point.model_dump(),
                "role": str(record.role),
                "seed": network.seed,
                "status": str(record.result.status),
                **record.scores(),
            }
        )
    return rows
