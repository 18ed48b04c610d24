"""The table of training recipes: defaults of each recipe, and exceptions for models and datasets.

The rows ``paper`` and ``released`` are those of the released training script (its section
"learning rate, batch size and epochs").
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
    """Return an exception for some models, timm's versions included; no datasets mean all."""
    timm_models = tuple(f"timm_{name}" for name in models)
    return RecipeOverride.model_validate(
        {"models": models + timm_models, "datasets": datasets, **changes}
    )


_VGGS = ("vgg13", "vgg16", "vgg19")
_RELEASED = (
    _exception(_VGGS, learning_rate=1e-4),
    _exception(_VGGS, "svhn", learning_rate=1e-6),
    # The released script divides its table of batch sizes by five, which leaves these.
    _exception(("resnet18",), batch_size=40),
    _exception(("resnet34",), batch_size=25),
    _exception(("resnet50",), batch_size=12),
    _exception(_VGGS, batch_size=6),
)


@dataclass(frozen=True)
class Recipe:
    """One row of the table.

    Attributes:
        about: one line for people who choose a recipe.
        fields: fields of :class:`~search_spaces.specs.RecipeSpec` that are not at their default.
        exceptions: other values for some models and datasets; later ones take precedence.
    """

    about: str
    fields: dict[str, object]
    exceptions: tuple[RecipeOverride, ...] = ()


RECIPES: dict[str, Recipe] = {
    # The released optimizer, rates, batch sizes and epochs. Corrected: one logit per class,
    # bfloat16 in place of unscaled float16, and the loss as the mean over examples.
    "paper": Recipe(
        "the study's training, corrected; other rates and batches for some networks; for a GPU",
        {"precision": "bfloat16"},
        _RELEASED,
    ),
    "released": Recipe(
        "exactly as the study's code trained, faults included",
        {"precision": "float16_unscaled", "num_outputs": 1000, "test_loss": "mean_of_batch_means"},
        _RELEASED,
    ),
    # Inputs scaled to [0, 1], and enough steps to fit a few hundred images. The constant rate is
    # low enough that batch norm's running statistics describe the last weights.
    "demo": Recipe(
        "short trainings of small images on CPU cores",
        {"epochs": 20, "learning_rate": 5e-4, "batch_size": 32, "input_scale": 1 / 255},
        (_exception(("small_cnn", "small_mlp"), epochs=30, learning_rate=2e-3),),
    ),
    "smoke": Recipe(
        "two epochs, to see that everything works",
        {"epochs": 2, "batch_size": 16, "input_scale": 1 / 255},
    ),
}
"""Recipe by the name that sweep files use."""


def recipe_spec(name: str, model: str, dataset: str) -> RecipeSpec:
    """Return the recipe ``name`` for one model on one dataset.

    Raises:
        ConfigError: there is no such recipe.
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
        # No names mean all.
        matches_model = not override.models or model in override.models
        matches_dataset = not override.datasets or dataset in override.datasets
        if matches_model and matches_dataset:
            for name, (value,) in override.changes.items():
                fields[name] = value
    return fields


def recipe_grid(choice: RecipeChoice, model: str, dataset: str) -> tuple[RecipeSpec, ...]:
    """Return the recipes of ``choice`` for one model and dataset, one for each point of its axes.

    A recipe whose changes change nothing keeps the name and identity of the one it starts from.
    """
    base = recipe_spec(choice.from_, model, dataset)
    axes = choice.changes
    overridden = _overridden_fields(choice.overrides, model, dataset)
    grid: dict[str, RecipeSpec] = {}
    for point in itertools.product(*axes.values()):
        changes: dict[str, object] = dict(zip(axes, point, strict=True))
        changes.update(overridden)
        different = {key: value for key, value in changes.items() if value != getattr(base, key)}
        suffixes = [f"{key}={str(different[key]).lower()}" for key in sorted(different)]
        name = "+".join([base.name, *suffixes])
        # By name: points that an override makes equal are one recipe.
        grid[name] = RecipeSpec.model_validate({**base.model_dump(), **different, "name": name})
    return tuple(grid.values())


RELEASED_MODELS = ("vgg13", "resnet18", "vgg16", "vgg19", "resnet34", "resnet50")
RELEASED_DATASETS = {"mnist": 10, "cifar10": 10, "svhn": 10, "imagenet": 1000}
RELEASED_TRAIN_SIZES = (500, 750, 1000, 1250, 1500, 1750)


@cache
def released_pairs() -> dict[tuple[str, str, int], ClassPair]:
    """Return the class pairs of the released script by (model, natural dataset, train size).

    The script seeds Python's generator once and draws two classes for each of them, in the order of
    its loops (``docs/faults.md``, F8). For ImageNet it draws again if both classes together have
    fewer than N + 750 images. That would change all later draws, and cannot be excluded here. The
    first class of a pair is label 0. ImageNet's pairs are indices of all 1,000 classes, but the
    images are always tench and goldfish (F4).

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
