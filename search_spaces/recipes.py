"""The table of training recipes, with exceptions for some models and datasets.

The values in the rows ``paper`` and ``released`` come from the released training script
(section "learning rate, batch size and epochs").
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from search_spaces.errors import unknown_name
from search_spaces.specs import RELEASED_SEED, ClassPair, RecipeSpec
from search_spaces.sweeps import RecipeChoice, RecipeOverride


def _exception(models: tuple[str, ...], *datasets: str, **changes: object) -> RecipeOverride:
    """Return recipe values for some models and for their timm versions.

    If ``datasets`` is empty, the values apply to all datasets.
    """
    timm_models = tuple(f"timm_{name}" for name in models)
    return RecipeOverride.model_validate(
        {"models": models + timm_models, "datasets": datasets, **changes}
    )


_VGGS = ("vgg13", "vgg16", "vgg19")
_RELEASED = (
    _exception(_VGGS, learning_rate=1e-4),
    _exception(_VGGS, "svhn", learning_rate=1e-6),
    # The released script divides its batch sizes by five. These are the results.
    _exception(("resnet18",), batch_size=40),
    _exception(("resnet34",), batch_size=25),
    _exception(("resnet50",), batch_size=12),
    _exception(_VGGS, batch_size=6),
)


@dataclass(frozen=True)
class Recipe:
    """One row of the table of recipes.

    Attributes:
        about: description in one line, for people who choose a recipe.
        fields: fields of :class:`~search_spaces.specs.RecipeSpec` that differ from their
            defaults.
        exceptions: other values for some models and datasets. If two exceptions set the same
            field, the later one counts.
    """

    about: str
    fields: dict[str, object]
    exceptions: tuple[RecipeOverride, ...] = ()


RECIPES: dict[str, Recipe] = {
    # Optimizer, learning rates, batch sizes and epochs come from the released code. Three
    # faults are corrected: there is one logit per class, bfloat16 replaces unscaled float16,
    # and the loss is the mean over examples.
    "paper": Recipe(
        "the training of the study, with its faults corrected; for GPUs",
        {"precision": "bfloat16"},
        _RELEASED,
    ),
    "released": Recipe(
        "the training of the study, with all faults of its code",
        {"precision": "float16_unscaled", "num_outputs": 1000, "test_loss": "mean_of_batch_means"},
        _RELEASED,
    ),
    # Inputs are scaled to [0, 1]. The number of steps is enough to fit a few hundred images.
    # The constant learning rate is low, so that batch norm's running statistics fit the final
    # weights.
    "demo": Recipe(
        "short training on small images, for CPUs",
        {"epochs": 20, "learning_rate": 5e-4, "batch_size": 32, "input_scale": 1 / 255},
        (_exception(("small_cnn", "small_mlp"), epochs=30, learning_rate=2e-3),),
    ),
    "smoke": Recipe(
        "two epochs, to check that everything works",
        {"epochs": 2, "batch_size": 16, "input_scale": 1 / 255},
    ),
}
"""Recipes by name, as in sweep files."""


def recipe_spec(name: str, model: str, dataset: str) -> RecipeSpec:
    """Return the recipe ``name`` for one model on one dataset.

    Raises:
        ConfigError: the table has no such recipe.
    """
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    recipe = RECIPES[name]
    changes = _overridden_fields(recipe.exceptions, model, dataset)
    return RecipeSpec.model_validate({"name": name, **recipe.fields, **changes})


def _overridden_fields(
    overrides: Iterable[RecipeOverride], model: str, dataset: str
) -> dict[str, object]:
    """Return the fields that overrides change for one model on one dataset."""
    fields: dict[str, object] = {}
    for override in overrides:
        # An empty list of names matches all names.
        matches_model = not override.models or model in override.models
        matches_dataset = not override.datasets or dataset in override.datasets
        if matches_model and matches_dataset:
            # Every field of an override has exactly one value.
            for name, (value,) in override.changes.items():
                fields[name] = value
    return fields


def recipe_grid(choice: RecipeChoice, model: str, dataset: str) -> tuple[RecipeSpec, ...]:
    """Return the recipes of ``choice`` for one model and dataset, one for each grid point.

    If a grid point equals the recipe in the table, it keeps the name of this recipe. Its
    trials then have the same ids as without a grid.
    """
    base = recipe_spec(choice.from_, model, dataset)
    axes = choice.changes
    overridden = _overridden_fields(choice.overrides, model, dataset)
    grid: dict[str, RecipeSpec] = {}
    for point in itertools.product(*axes.values()):
        values: dict[str, object] = {**dict(zip(axes, point, strict=True)), **overridden}
        changes = {key: value for key, value in values.items() if value != getattr(base, key)}
        suffixes = [f"{key}={str(changes[key]).lower()}" for key in sorted(changes)]
        name = "+".join([base.name, *suffixes])
        # An override can make grid points equal. Equal points have the same name and become
        # one recipe.
        grid[name] = RecipeSpec.model_validate({**base.model_dump(), **changes, "name": name})
    return tuple(grid.values())


RELEASED_MODELS = ("vgg13", "resnet18", "vgg16", "vgg19", "resnet34", "resnet50")
RELEASED_DATASETS = {"mnist": 10, "cifar10": 10, "svhn": 10, "imagenet": 1000}
RELEASED_TRAIN_SIZES = (500, 750, 1000, 1250, 1500, 1750)


@cache
def released_pairs() -> dict[tuple[str, str, int], ClassPair]:
    """Return the class pairs of the released script by (model, natural dataset, train size).

    The script seeds Python's random generator once. Then it draws two classes for each key, in
    the order of its loops (``docs/faults.md``, F8). If two classes of ImageNet together have
    fewer than N + 750 images, the script draws again. A second draw would change all later
    pairs. This function cannot know whether the script drew again.

    The first class of a pair has label 0. ImageNet's pairs are indices into all 1,000 classes,
    but the images are always tench and goldfish (F4).

    Example:
        >>> released_pairs()["vgg13", "mnist", 500]
        (9, 8)
    """
    generator = random.Random(RELEASED_SEED)
    pairs: dict[tuple[str, str, int], ClassPair] = {}
    for model in RELEASED_MODELS:
        for dataset, num_classes in RELEASED_DATASETS.items():
            for train_size in RELEASED_TRAIN_SIZES:
                first, second = generator.sample(range(num_classes), 2)
                pairs[model, dataset, train_size] = (first, second)
    return pairs
