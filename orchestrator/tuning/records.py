"""What the store seals of a search: a record per training that is asked for, and one per result."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from orchestrator.results.records import Provenance, SealedRecord, TrialFailure
from orchestrator.tuning.cells import CellKey, Point
from search_spaces.specs import Domain
from search_spaces.tuning import SearchTrialSpec
from tasks.finding import Finding
from tasks.trials.search_result import SearchResult


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


class SearchReport(Finding):
    """What a worker tells of one attempt; see :class:`orchestrator.results.records.CellReport`."""

    started_at: float
    finished_at: float
    outcome: SearchResult | TrialFailure
    data_fingerprint: str = ""
    gpu_share: float = 0.0
    log: str = ""
