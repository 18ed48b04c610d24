"""Recipes in files of their own, and those that a search wrote.

A search writes its recipe below the root. A sweep that names it is cut to the sweep's own models
and datasets.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from orchestrator.planning.plain_yaml import not_a_mapping, read_plain
from orchestrator.planning.sweep_mistakes import RECIPE
from orchestrator.planning.written_files import is_path, read_file
from search_spaces.errors import ConfigError
from search_spaces.models import model_spec
from search_spaces.recipes import RECIPES
from search_spaces.sweeps import RecipeOverride, SweepSpec

MAX_RECIPE_FILES = 5
"""Recipe files that may start from one another."""
TUNED = "tuned"
"""Name of the recipe that was searched for the sweep itself, and key of the search's evidence in a
recipe file."""
SEARCHED = ("learning_rate", "weight_decay", "batch_size")
"""Values of a recipe that a search chooses."""
MAX_NAMED = 20
"""Pairs of model and dataset that a message names."""


def with_recipe_file(recipe: object, folder: Path, depth: int = 0) -> object:
    """Return a recipe with the content of its recipe file in place of the file's path.

    Args:
        recipe: What a sweep file says of its recipe: a name, a path, or a mapping with ``from``.
            Values that stand beside a path replace those of the file.
        folder: Folder at which relative paths start.
        depth: Number of recipe files that led to this one.
    """
    outer: object = {"from": recipe} if isinstance(recipe, str) else recipe
    if not isinstance(outer, dict):
        return recipe
    name = outer.get("from")
    if not isinstance(name, str) or not is_path(name):
        return recipe
    # The home of an unknown user stays as it is written, and is not found.
    path = folder / os.path.expanduser(name)
    if depth > MAX_RECIPE_FILES:
        raise ConfigError(
            f"A chain of more than {MAX_RECIPE_FILES} recipe files leads to {path}",
            hint="Set `from` to a known recipe in one of the files",
        )
    text = read_file(path, "recipe file", "known recipe", RECIPES)
    inner = read_plain(text, str(path))
    if isinstance(inner, dict):
        inner = with_recipe_file(inner, path.parent, depth + 1)
    if not isinstance(inner, dict):
        raise not_a_mapping(str(path), inner, RECIPE)
    beside_path = dict(outer)
    del beside_path["from"]
    merged = {**inner, **beside_path}
    overrides: list[object] = []
    for place, part in ((str(path), inner), ("The recipe of the sweep", outer)):
        rows = part.get("overrides", [])
        if not isinstance(rows, list):
            raise ConfigError(
                f"{place} has overrides that are not a list",
                hint="Write, for example, overrides: [{models: [small_cnn], learning_rate: 0.01}]",
            )
        overrides += rows
    if overrides:
        merged["overrides"] = overrides
    return merged


def tuned_path(recipe: object, sweep: object, recipes: Path | None) -> object:
    """Return a recipe with the path of a searched recipe in place of its name.

    Args:
        recipe: What a sweep file says of its recipe.
        sweep: Name of the sweep.
        recipes: Folder of the searched recipes; None if there is no root.

    Raises:
        ConfigError: The recipe is called as searched ones are, and there is no such file.
    """
    name = recipe.get("from") if isinstance(recipe, dict) else recipe
    if recipes is None or not isinstance(name, str) or name in RECIPES or is_path(name):
        return recipe
    stem = f"{TUNED}-{sweep}" if name == TUNED else name
    path = recipes / f"{stem}.yaml"
    if os.path.isfile(path):  # Path.is_file raises for a name that no file can have
        if isinstance(recipe, dict):
            return {**recipe, "from": str(path)}
        return str(path)
    if name != TUNED and not name.startswith(f"{TUNED}-"):
        return recipe  # an unknown name is reported with all other mistakes
    hint = f"Run `isweep tune {name.removeprefix(f'{TUNED}-')}` first"
    if name == TUNED:
        hint = (
            f"Run `isweep tune {sweep} --set recipe=NAME` first, where NAME is the recipe to "
            "compare with"
        )
    searched = ", ".join(sorted(file.stem for file in recipes.glob("*.yaml")))
    if searched:
        hint += f", or choose a searched recipe of this root: {searched}"
    raise ConfigError(
        f"recipe: {name} is a recipe that a search writes, but {path} does not exist", hint=hint
    )


def with_tuned_cells(sweep: SweepSpec, tuned: dict[str, Any]) -> SweepSpec:
    """Return a sweep without the searched rows of models and datasets that it does not have.

    Args:
        sweep: The sweep, with all rows of its searched recipe.
        tuned: Evidence of the search, as the recipe file holds it.

    Raises:
        ConfigError: The search lacks a model or dataset of the sweep.
    """
    models = {model_spec(choice).name for choice in sweep.models}
    datasets = {choice.name for choice in sweep.datasets}
    combinations = tuned.get("cells")
    searched = set()
    for combination in combinations if isinstance(combinations, list) else ():
        if isinstance(combination, dict) and "not_tuned" not in combination:
            searched.add((str(combination.get("model")), str(combination.get("dataset"))))
    missing = [
        f"{model} on {dataset}"
        for model in sorted(models)
        for dataset in sorted(datasets)
        if (model, dataset) not in searched
    ]
    if missing:
        searched_sweep = tuned.get("sweep")
        raise ConfigError(
            f"The searched recipe has no values for {', '.join(missing[:MAX_NAMED])}",
            hint=f"Add these models and datasets to the sweep {searched_sweep} and run "
            f"`isweep tune {searched_sweep}` again, or remove them from this sweep",
        )

    def is_wanted(row: RecipeOverride) -> bool:
        # A searched row names one model and one dataset; others were written by a person.
        if len(row.models) != 1 or len(row.datasets) != 1:
            return True
        return row.models[0] in models and row.datasets[0] in datasets

    rows = tuple(filter(is_wanted, sweep.recipe.overrides))
    return sweep.model_copy(update={"recipe": sweep.recipe.model_copy(update={"overrides": rows})})
