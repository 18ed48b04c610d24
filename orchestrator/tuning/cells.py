"""What is searched: a cell per model and dataset of a sweep, the trials of its points, their records."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Annotated, ClassVar

from pydantic import Field

from orchestrator.planning.plan import SweepPlan, Workspace
from orchestrator.results import table as c
from orchestrator.results.records import FailureRecord, Provenance, SealedRecord
from orchestrator.results.rows import FlatRun, milliseconds, spelled_params
from orchestrator.results.store import ResultStore
from search_spaces.errors import ConfigError, SweepError, collect
from search_spaces.recipes import recipe_grid
from search_spaces.specs import (
    BatchSize,
    Domain,
    LearningRate,
    ModelSpec,
    NetworkSpec,
    RecipeSpec,
    Spec,
    SubsetSpec,
    WeightDecay,
    pair_name,
)
from search_spaces.sweeps import RecipeChoice, RecipeOverride
from search_spaces.tuning import SearchSpace, SearchTrialSpec, TuneSpec, ValidationSpec, space_of
from tasks.finding import Finding
from tasks.trials.records import SearchResult

CellKey = tuple[str, str]
"""Model and dataset, by name."""
Row = dict[str, str | int | float | None]


class Point(Spec):
    """One point of a search space."""

    learning_rate: LearningRate
    weight_decay: WeightDecay
    batch_size: BatchSize

    @classmethod
    def of(cls, recipe: RecipeSpec) -> Point:
        """Return the point that a recipe stands at."""
        return cls.model_validate({name: getattr(recipe, name) for name in cls.model_fields})

    def rounded(self) -> Point:
        """Return the point with four digits: what people copy is what was run."""
        return Point(
            learning_rate=float(f"{self.learning_rate:.4g}"),
            weight_decay=float(f"{self.weight_decay:.4g}"),
            batch_size=self.batch_size,
        )


@dataclass(frozen=True)
class TuningCell:
    """One model on one dataset.

    Attributes:
        model: The network.
        subsets: Its dataset's class pairs; the search is on the first, finalists are trained on all in turn.
        train_size: Images to train and validate on.
        choice: The sweep's recipe, over which a point holds.
        space: Where points come from.
        validation: Which of the images a trial is judged on.
    """

    model: ModelSpec
    subsets: tuple[SubsetSpec, ...]
    train_size: int
    choice: RecipeChoice
    space: SearchSpace
    validation: ValidationSpec

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return self.subsets[0].prepared.dataset

    @property
    def key(self) -> CellKey:
        """Names of model and dataset."""
        return self.model.name, self.dataset

    @cached_property
    def own(self) -> Point:
        """The point that the sweep's own recipe stands at."""
        return Point.of(self._recipe(None))

    @cached_property
    def num_epochs(self) -> int:
        """Epochs of a whole training."""
        return self._recipe(None).epochs

    def contains(self, point: Point) -> bool:
        """Tell whether a point lies in the space."""
        return self.nearest(point) == point

    def nearest(self, point: Point) -> Point:
        """Return the point of the space nearest to one of another space."""
        space = self.space
        return Point(
            learning_rate=min(max(point.learning_rate, space.learning_rate[0]), space.learning_rate[1]),
            weight_decay=min(max(point.weight_decay, space.weight_decay[0]), space.weight_decay[1]),
            batch_size=min(space.batch_size, key=lambda size: abs(math.log(size / point.batch_size))),
        )

    def trial(self, point: Point, run: int = 0) -> SearchTrialSpec:
        """Return the trial of a point; run 0 is the search's, others have other seeds, splits and pairs.

        Another split each, or a choice would be that of one split.
        """
        network = NetworkSpec(
            model=self.model,
            subset=self.subsets[run % len(self.subsets)],
            train_size=self.train_size,
            recipe=self._recipe(point),
            seed=run,
        )
        validation = self.validation.model_copy(update={"split": run}) if run else self.validation
        return SearchTrialSpec(network=network, validation=validation)

    def held_to(self, tune: TuneSpec, num_train: int) -> TuningCell:
        """Return the cell with the space of a set of ``num_train`` images; see :func:`space_of`."""
        return replace(self, space=space_of(self.model, self._recipe(None).optimizer, tune, num_train))

    def _recipe(self, point: Point | None) -> RecipeSpec:
        """Return the recipe as a sweep with this point in its overrides makes it, name and all."""
        choice = self.choice
        if point is not None and point != self.own:
            row = RecipeOverride.model_validate(
                {"models": (self.model.name,), "datasets": (self.dataset,), **point.model_dump()}
            )
            choice = choice.model_copy(update={"overrides": (*choice.overrides, row)})
        return recipe_grid(choice, *self.key)[0]


def tuning_cells(plan: SweepPlan) -> tuple[TuningCell, ...]:
    """Return the cells of a sweep, model by model.

    Raises:
        ConfigError: naming everything that cannot be searched: a recipe with several values of a field,
            pretrained networks, faults of the released code, a batch larger than the set, a recipe without
            epochs.
    """
    sweep, tune = plan.sweep, plan.sweep.tune
    train_size = tune.train_size or plan.largest_size
    if sweep.recipe.axes:
        raise ConfigError(
            "A sweep to be tuned has a recipe with one value of each field",
            f"several of {', '.join(sweep.recipe.axes)}",
            "give one; ranges to search stand under tune:",
        )
    if sweep.all_faults:  # seen in the data too, but only once they are prepared
        raise ConfigError(
            "A search validates on groups that no test image is of, which needs corrected data",
            f"faults {', '.join(sweep.all_faults)}",
            "tune a sweep in data_mode corrected without faults, and use its recipe",
        )
    subsets: dict[CellKey, dict[str, SubsetSpec]] = {}
    models: dict[str, ModelSpec] = {}
    for network in (trial.network for trial in plan.trials):
        models[network.model.name] = network.model
        found = subsets.setdefault((network.model.name, network.subset.prepared.dataset), {})
        found[network.subset.subset_id] = network.subset
    pretrained = sorted(name for name, model in models.items() if model.pretrained)
    if pretrained:
        raise ConfigError(
            "isweep tune searches from random weights, not pretrained ones",
            ", ".join(pretrained),
            "leave these models out of the sweep that is searched",
        )
    num_train = round(train_size * (1 - tune.validation_share))
    validation = ValidationSpec(share=tune.validation_share)
    cells: list[TuningCell] = []
    problems: dict[str, SweepError] = {}
    for (name, dataset), found in sorted(subsets.items(), key=lambda item: list(models).index(item[0][0])):
        recipe = recipe_grid(sweep.recipe, name, dataset)[0]
        try:
            if not recipe.epochs:
                raise ConfigError("A search needs a recipe with epochs", f"0 for {name} on {dataset}")
            space = space_of(models[name], recipe.optimizer, tune, num_train)
        except SweepError as error:
            problems.setdefault(str(error), error)
            continue
        cells.append(
            TuningCell(models[name], tuple(found.values()), train_size, sweep.recipe, space, validation)
        )
    collect(list(problems.values()))
    return tuple(cells)


def held_to_splits(
    cells: Sequence[TuningCell], tune: TuneSpec, num_train: Mapping[str, int]
) -> tuple[TuningCell, ...]:
    """Return the cells with batches that fit what is trained on, which whole groups make differ from plan.

    Args:
        cells: From :func:`tuning_cells`.
        tune: What the sweep says of the search.
        num_train: Images that a trial is trained on, by subset id.

    Raises:
        ConfigError: when the sweep names a batch larger than such a set, or none is small enough.
    """
    held: list[TuningCell] = []
    problems: dict[str, SweepError] = {}
    for cell in cells:
        try:
            held.append(cell.held_to(tune, min(num_train[subset.subset_id] for subset in cell.subsets)))
        except SweepError as error:
            problems.setdefault(str(error), error)
    collect(list(problems.values()))
    return tuple(held)


# What the store seals of a search: a record per training that is asked for, and one per result.

VALIDATION_LOSS = "validation_loss"
VALIDATION_ACCURACY = "validation_accuracy"
EPOCHS = "epochs"


class Role(StrEnum):
    """Why a trial was run."""

    OWN = "own"
    """At the sweep's own recipe, to compare with."""
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
        return Point.of(self.spec.network.recipe)


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

    def scores(self) -> dict[str, float | None]:
        """Return epochs that it took, and loss and accuracy on the validation images; None when diverged."""
        result = self.result
        accuracy = None if result.loss is None else result.curve[-1].accuracy
        return {EPOCHS: result.epochs, VALIDATION_LOSS: result.loss, VALIDATION_ACCURACY: accuracy}


def flat_search(record: SearchRecord) -> FlatRun:
    """Return a stored trial of a search as one flat run: its validation losses are a series over epochs."""
    network, result = record.spec.network, record.result
    started, finished = milliseconds(record.started_at), milliseconds(record.finished_at)
    scores = record.scores() | {c.WALL_TIME_S: record.finished_at - record.started_at}
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
    series = tuple(
        (c.EPOCH_PREFIX + name, score.epoch, value, started)
        for score in result.curve
        for name, value in ((VALIDATION_LOSS, score.loss), (VALIDATION_ACCURACY, score.accuracy))
    )
    metrics = {name: value for name, value in scores.items() if value is not None}
    params = spelled_params(network.model_dump(mode="json"))
    return FlatRun(record.trial_id, tags, params, metrics, series, started, finished, finished)


# Where the search of a sweep stands, read from what is stored; nothing is trained, told or made.


class SearchStanding(Finding):
    """What is stored of a search, trials of finalists too; paths of recipe and page where they are written.

    Trials that failed have no result, and files that are unreadable are not believed.
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


def most_trainings(workspace: Workspace) -> tuple[int | None, str]:
    """Return how many whole trainings a search takes at most, and that in words.

    None where the sweep cannot be searched; in words why, for a sweep that says how it is to be.
    """
    sweep, tune = workspace.plan.sweep, workspace.plan.sweep.tune
    try:
        cells = tuning_cells(workspace.plan)
    except SweepError as error:
        return None, f"isweep tune would refuse: {error}" if "tune" in sweep.model_fields_set else ""
    # The budget of each cell, and the further trainings of finalists and of the sweep's own recipe.
    most = round(len(cells) * (tune.num_trainings + (tune.finalists + 1) * (tune.seeds - 1)))
    return most, f"beside it, isweep tune would train {most} networks to the end at most"
