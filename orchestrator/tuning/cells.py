"""What is searched: a cell per model and dataset of a sweep, the trials of its points, their
records.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import Field

from orchestrator.planning.plan import SweepPlan
from orchestrator.planning.workspace import Workspace
from orchestrator.results.store import FailureRecord, ResultRecord, ResultStore, SealedRecord
from orchestrator.results.table import EPOCH_PREFIX, FlatRun, flat_run, milliseconds
from search_spaces.errors import ConfigError, SweepError, collect, plural
from search_spaces.recipes import recipe_grid
from search_spaces.specs import (
    BatchSize,
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
from search_spaces.tuning import SearchSpace, SearchTrialSpec, ValidationSpec, space_of
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


@dataclass(frozen=True)
class TuningCell:
    """One model on one dataset; ``choice`` is the sweep's recipe, over which a point holds.

    Of ``subsets``, the class pairs, the search is on the first; finalists are trained on all in
    turn.
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
        return Point.of(self.own_recipe)

    @cached_property
    def own_recipe(self) -> RecipeSpec:
        """The sweep's own recipe."""
        return recipe_grid(self.choice, *self.key)[0]

    def contains(self, point: Point) -> bool:
        """Tell whether a point lies in the space."""
        return self.nearest(point) == point

    def nearest(self, point: Point) -> Point:
        """Return the point of the space nearest to one of another space."""
        space = self.space
        return Point(
            learning_rate=min(
                max(point.learning_rate, space.learning_rate[0]), space.learning_rate[1]
            ),
            weight_decay=min(max(point.weight_decay, space.weight_decay[0]), space.weight_decay[1]),
            batch_size=min(
                space.batch_size, key=lambda size: abs(math.log(size / point.batch_size))
            ),
        )

    def trial(self, point: Point, run: int = 0) -> SearchTrialSpec:
        """Return the trial of a point; run 0 is the search's, others have other seeds, splits and
        pairs.

        Another split each, or a choice would be that of one split.
        """
        recipe = self.own_recipe
        if point != self.own:  # as a sweep with this point in its overrides makes it, name and all
            cell = {"models": (self.model.name,), "datasets": (self.dataset,)}
            row = RecipeOverride.model_validate({**cell, **point.model_dump()})
            changes = {"overrides": (*self.choice.overrides, row)}
            recipe = recipe_grid(self.choice.model_copy(update=changes), *self.key)[0]
        network = NetworkSpec(
            model=self.model,
            subset=self.subsets[run % len(self.subsets)],
            train_size=self.train_size,
            recipe=recipe,
            seed=run,
        )
        validation = self.validation.model_copy(update={"split": run}) if run else self.validation
        return SearchTrialSpec(network=network, validation=validation)


def tuning_cells(
    plan: SweepPlan, num_train: Mapping[str, int] | None = None
) -> tuple[TuningCell, ...]:
    """Return the cells of a sweep, model by model; ConfigError names everything that cannot be
    searched.

    Batches fit what is trained on: ``num_train`` images by subset id, or as many as the share says.
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
        found = subsets.setdefault((network.model.name, network.subset.dataset), {})
        found[network.subset.subset_id] = network.subset
    pretrained = sorted(name for name, model in models.items() if model.pretrained)
    if pretrained:
        raise ConfigError(
            "isweep tune searches from random weights, not pretrained ones",
            ", ".join(pretrained),
            "leave these models out of the sweep that is searched",
        )
    by_share = round(train_size * (1 - tune.validation_share))
    validation = ValidationSpec(share=tune.validation_share)
    cells: list[TuningCell] = []
    problems: dict[str, SweepError] = {}
    for (name, dataset), found in sorted(
        subsets.items(), key=lambda item: list(models).index(item[0][0])
    ):
        recipe = recipe_grid(sweep.recipe, name, dataset)[0]
        try:
            if not recipe.epochs:
                raise ConfigError(
                    "A search needs a recipe with epochs", f"0 for {name} on {dataset}"
                )
            fewest = min((num_train or {}).get(subset_id, by_share) for subset_id in found)
            space = space_of(models[name], recipe.optimizer, tune, fewest)
        except SweepError as error:
            problems.setdefault(str(error), error)
            continue
        cells.append(
            TuningCell(
                models[name], tuple(found.values()), train_size, sweep.recipe, space, validation
            )
        )
    collect(problems.values())
    return tuple(cells)


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
