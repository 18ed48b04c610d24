"""What the store seals of a search: a record per training that is asked for, and one per result."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from orchestrator.results import columns as c
from orchestrator.results.records import Provenance, SealedRecord
from orchestrator.results.rows import FlatRun, milliseconds, spelled_params
from orchestrator.tuning.cells import CellKey, Point
from search_spaces.specs import Domain, pair_name
from search_spaces.tuning import SearchTrialSpec
from tasks.trials.search_result import SearchResult

VALIDATION_LOSS = "validation_loss"
VALIDATION_ACCURACY = "validation_accuracy"
EPOCHS = "epochs"


class Role(StrEnum):
    """Why a trial was run."""

    OWN = "own"
    """At the sweep's own recipe, to compare with."""
    NEIGHBOUR = "neighbour"
    """At the best point of a cell that is like this one."""
    SAMPLED = "sampled"
    FINALIST = "finalist"
    """One of the best, with another seed or class pair."""


class _OfATrial(SealedRecord):
    """What both kinds of records say of their trial.

    Attributes:
        trial_id: Of the trial.
        role: Why it is run.
        run: 0 for the search's own training of a point, then one per seed.
        spec: What is trained.
        data_fingerprint: Content hash of the prepared dataset.
    """

    folder: ClassVar[str] = "trials"

    trial_id: str
    role: Role
    run: Annotated[int, Field(ge=0, lt=2**63)]
    spec: SearchTrialSpec
    data_fingerprint: str

    @property
    def record_id(self) -> str:
        """The trial's id."""
        return self.trial_id

    @property
    def key(self) -> CellKey:
        """Whose it is."""
        network = self.spec.network
        return network.model.name, network.subset.prepared.dataset

    @property
    def point(self) -> Point:
        """Where in its space the trial lies."""
        recipe = self.spec.network.recipe
        return Point(
            learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay, batch_size=recipe.batch_size
        )


class AskedRecord(_OfATrial):
    """A training that a search has asked for, stored before it begins: a killed search goes on with it.

    Attributes:
        number: How many the search had asked for before.
    """

    file: ClassVar[str] = "asked.json"
    version: ClassVar[int] = 1

    schema_version: int = version
    number: int


class SearchRecord(_OfATrial):
    """One trial of a search with its result.

    Attributes:
        sweep: Name of the sweep that is tuned.
        domain: Of the dataset.
        gpu_share: Share of a GPU that it had.
        attempt: Which attempt this was, from 1.
        started_at: Seconds since 1970.
        finished_at: Likewise.
        provenance: What made it.
        result: What was found.
    """

    file: ClassVar[str] = "search.json"
    version: ClassVar[int] = 1

    schema_version: int = version
    sweep: str
    domain: Domain | None
    gpu_share: float = 0.0
    attempt: int = 1
    started_at: float
    finished_at: float
    provenance: Provenance = Provenance()
    result: SearchResult


def flat_search(record: SearchRecord) -> FlatRun:
    """Return a stored trial of a search as one flat run: its validation losses are a series over epochs."""
    network, result = record.spec.network, record.result
    started = milliseconds(record.started_at)
    metrics: dict[str, float] = {EPOCHS: result.epochs, c.WALL_TIME_S: record.finished_at - record.started_at}
    if result.loss is not None:
        metrics |= {VALIDATION_LOSS: result.loss, VALIDATION_ACCURACY: result.curve[-1].accuracy}
    tags = {
        c.TRIAL_ID: record.trial_id,
        c.SWEEP: record.sweep,
        c.MODEL: network.model.name,
        c.RECIPE: network.recipe.name,
        c.DATASET: network.subset.prepared.dataset,
        c.DOMAIN: record.domain or "",
        c.CLASS_PAIR: pair_name(network.subset.class_pair),
        c.TRAIN_SIZE: str(network.train_size),
        c.SEED: str(network.seed),
        c.STATUS: str(result.status),
        c.ATTEMPT: str(record.attempt),
        c.DATA_FINGERPRINT: record.data_fingerprint,
        c.CODE_VERSION: record.provenance.code_version,
        "role": str(record.role),
    }
    return FlatRun(
        record.trial_id,
        "trial",
        tags,
        spelled_params(network.model_dump(mode="json")),
        metrics,
        tuple(
            (c.EPOCH_PREFIX + name, score.epoch, value, started)
            for score in result.curve
            for name, value in ((VALIDATION_LOSS, score.loss), (VALIDATION_ACCURACY, score.accuracy))
        ),
        started,
        milliseconds(record.finished_at),
        milliseconds(record.finished_at),
    )
