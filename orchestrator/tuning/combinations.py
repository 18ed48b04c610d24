"""What is searched: a combination of model and dataset, and the trials of its points."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from orchestrator.planning.plan import SweepPlan
from search_spaces.errors import ConfigError, SweepError, collect
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
)
from search_spaces.sweeps import RecipeChoice, RecipeOverride
from search_spaces.tuning import SearchSpace, SearchTrialSpec, ValidationSpec, space_of

CellKey = tuple[str, str]
"""Model and dataset, by name."""


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
