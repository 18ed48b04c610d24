"""Combinations of model and dataset that a search tunes, and the trials for their points."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from orchestrator.planning.plan import SweepPlan
from search_spaces.errors import ConfigError, SweepError, raise_all
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

CombinationKey = tuple[str, str]
"""Names of a model and a dataset."""


class Point(Spec):
    """A point of a search space: one value of each searched field."""

    learning_rate: LearningRate
    weight_decay: WeightDecay
    batch_size: BatchSize

    @classmethod
    def of(cls, recipe: RecipeSpec) -> Point:
        """Return the point of a recipe."""
        return cls.model_validate({name: getattr(recipe, name) for name in cls.model_fields})


class Training(NamedTuple):
    """A training of one combination.

    Attributes:
        point: Point of the search space, or the point of the sweep's recipe.
        seed: 0 in the sampling phase. 1 and up for further trainings of a finalist. The stored
            records call it ``run``.
    """

    point: Point
    seed: int

    @property
    def is_of_sampling(self) -> bool:
        """True if the training belongs to the sampling phase."""
        return self.seed == 0


@dataclass(frozen=True)
class Combination:
    """A model on a dataset, to be tuned.

    Attributes:
        model: The model.
        subsets: One subset per class pair of the dataset. The search uses the first subset.
            The further trainings of finalists use all subsets.
        train_size: Number of images, including the validation images.
        choice: The sweep's recipe. A point of the search replaces three fields of this recipe.
        space: The ranges to search.
        validation: Rule for the choice of the validation images.
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
    def key(self) -> CombinationKey:
        """Names of model and dataset."""
        return self.model.name, self.dataset

    @cached_property
    def sweep_point(self) -> Point:
        """The values in the sweep's recipe. All other points are compared with this point."""
        return Point.of(self.sweep_recipe)

    @cached_property
    def sweep_recipe(self) -> RecipeSpec:
        """The sweep's recipe, without any value from the search."""
        return recipe_grid(self.choice, *self.key)[0]

    def contains(self, point: Point) -> bool:
        """Return whether a point is in the search space."""
        return self.clip(point) == point

    def clip(self, point: Point) -> Point:
        """Return the nearest point in the search space."""
        space = self.space

        def distance(batch_size: int) -> float:
            return abs(math.log(batch_size / point.batch_size))

        return Point(
            learning_rate=_clip_to(point.learning_rate, space.learning_rate),
            weight_decay=_clip_to(point.weight_decay, space.weight_decay),
            batch_size=min(space.batch_size, key=distance),
        )

    def trial(self, point: Point, seed: int = 0) -> SearchTrialSpec:
        """Return a trial of a point.

        Args:
            point: A point of the search space, or the point of the sweep's recipe.
            seed: 0 for the training during the search. The further trainings of finalists have
                other seeds, class pairs and validation images, so that no choice depends on
                one split.
        """
        network = NetworkSpec(
            model=self.model,
            subset=self.subsets[seed % len(self.subsets)],
            train_size=self.train_size,
            recipe=self._recipe_at(point),
            seed=seed,
        )
        validation = self.validation
        if seed:
            validation = validation.model_copy(update={"split": seed})
        return SearchTrialSpec(network=network, validation=validation)

    def _recipe_at(self, point: Point) -> RecipeSpec:
        """Return the sweep's recipe with the values of a point as an override."""
        if point == self.sweep_point:
            return self.sweep_recipe
        override = RecipeOverride.model_validate(
            {"models": (self.model.name,), "datasets": (self.dataset,), **point.model_dump()}
        )
        changes = {"overrides": (*self.choice.overrides, override)}
        return recipe_grid(self.choice.model_copy(update=changes), *self.key)[0]


def _clip_to(value: float, limits: tuple[float, float]) -> float:
    low, high = limits
    return min(max(value, low), high)


def combinations_to_tune(
    plan: SweepPlan, num_train: Mapping[str, int] | None = None
) -> tuple[Combination, ...]:
    """Return the combinations of a sweep, model by model.

    Args:
        plan: Plan of the sweep.
        num_train: Number of training images by subset id. It limits the batch size. If it is
            None, isweep computes the number from the validation share.

    Raises:
        ConfigError: A combination cannot be tuned. The message lists all problems.
    """
    _check_searchable(plan)
    sweep = plan.sweep
    tune = sweep.tune
    train_size = tune.train_size or plan.largest_size
    num_train_by_share = round(train_size * (1 - tune.validation_share))
    models: dict[str, ModelSpec] = {}
    subsets: defaultdict[CombinationKey, dict[str, SubsetSpec]] = defaultdict(dict)
    for trial in plan.trials:
        network = trial.network
        subset = network.subset
        models[network.model.name] = network.model
        subsets[network.model.name, subset.dataset][subset.subset_id] = subset
    model_order = list(models)
    combinations: list[Combination] = []
    problems: dict[str, SweepError] = {}
    for key in sorted(subsets, key=lambda key: model_order.index(key[0])):
        model_name, dataset = key
        sizes = [(num_train or {}).get(name, num_train_by_share) for name in subsets[key]]
        recipe = recipe_grid(sweep.recipe, model_name, dataset)[0]
        try:
            space = space_of(models[model_name], recipe.optimizer, tune, min(sizes))
        except SweepError as error:
            problems.setdefault(str(error), error)
            continue
        combinations.append(
            Combination(
                model=models[model_name],
                subsets=tuple(subsets[key].values()),
                train_size=train_size,
                choice=sweep.recipe,
                space=space,
                validation=ValidationSpec(share=tune.validation_share),
            )
        )
    raise_all(problems.values())
    return tuple(combinations)


def _check_searchable(plan: SweepPlan) -> None:
    """Raise an error if a search cannot tune the sweep at any train size."""
    sweep = plan.sweep
    if sweep.recipe.axes:
        raise ConfigError(
            f"The recipe has several values of {', '.join(sweep.recipe.axes)}, but a search "
            "needs exactly one value of each",
            hint="In the recipe, set one value of each. Write the ranges of the search under the "
            "key `tune`",
        )
    # The prepared data would also show this problem, but only after the preparation.
    if sweep.all_faults:
        raise ConfigError(
            f"A search needs corrected data, but the sweep has the faults "
            f"{', '.join(sweep.all_faults)}",
            hint="Run `isweep tune` on a sweep with `data_mode: corrected` and no faults. "
            "Then set `recipe` in this sweep to the recipe that the search wrote",
        )
    models = {trial.network.model.name: trial.network.model for trial in plan.trials}
    pretrained = sorted(name for name, model in models.items() if model.pretrained)
    if pretrained:
        raise ConfigError(
            "A search cannot tune pretrained networks, but the list `models` contains "
            f"{', '.join(pretrained)}",
            hint="Remove these models from the sweep",
        )
