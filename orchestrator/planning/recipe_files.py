"""Read recipe files, and recipes that ``isweep tune`` wrote below the root.

A recipe that ``isweep tune`` wrote is called a tuned recipe here. It has one row per model and
dataset. Rows for models or datasets that a sweep does not have are left out.
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
"""Largest number of recipe files in a chain of ``from`` keys."""
TUNED = "tuned"
"""Name of the recipe that ``isweep tune`` wrote for the same sweep. In a recipe file, it is
the key of the results of the search."""
SEARCHED = ("learning_rate", "weight_decay", "batch_size")
"""Values of a recipe that a search chooses."""
MAX_NAMED = 20
"""Largest number of combinations of model and dataset in a message."""


def with_recipe_file(recipe: object, folder: Path, depth: int = 0) -> object:
    """Replace the path of a recipe file by its content.

    Args:
        recipe: The recipe in a sweep file: a name, a path, or a mapping with ``from``. Other
            values of the mapping replace values of the recipe file.
        folder: Folder in which relative paths start.
        depth: Number of recipe files before this one in the chain of ``from`` keys.
    """
    outer: object = {"from": recipe} if isinstance(recipe, str) else recipe
    if not isinstance(outer, dict):
        return recipe
    name = outer.get("from")
    if not isinstance(name, str) or not is_path(name):
        return recipe
    # expanduser leaves the home folder of an unknown user as it is. Such a path does not
    # exist.
    path = folder / os.path.expanduser(name)
    if depth > MAX_RECIPE_FILES:
        raise ConfigError(
            f"{path} is at the end of a chain of more than {MAX_RECIPE_FILES} recipe files. "
            "Each of them refers to the next with `from`",
            hint="In one of these files, set `from` to a known recipe",
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
                f"{place} has `overrides`, which is not a list",
                hint="Write, for example, "
                "`overrides: [{models: [small_cnn], learning_rate: 0.01}]`",
            )
        overrides += rows
    if overrides:
        merged["overrides"] = overrides
    return merged


def tuned_path(recipe: object, sweep: object, recipes: Path | None) -> object:
    """Replace the name of a tuned recipe by the path of its file.

    Args:
        recipe: The recipe in a sweep file.
        sweep: Name of the sweep.
        recipes: Folder of the tuned recipes. None if there is no root.

    Raises:
        ConfigError: The name is that of a tuned recipe, but its file does not exist.
    """
    name = recipe.get("from") if isinstance(recipe, dict) else recipe
    if recipes is None or not isinstance(name, str) or name in RECIPES or is_path(name):
        return recipe
    stem = f"{TUNED}-{sweep}" if name == TUNED else name
    path = recipes / f"{stem}.yaml"
    if os.path.isfile(path):  # Path.is_file raises an error for impossible names
        if isinstance(recipe, dict):
            return {**recipe, "from": str(path)}
        return str(path)
    if name != TUNED and not name.startswith(f"{TUNED}-"):
        return recipe  # unknown names are reported later, with all other mistakes
    hint = f"Run `isweep tune {name.removeprefix(f'{TUNED}-')}` first"
    if name == TUNED:
        hint = (
            f"Run `isweep tune {sweep} --set recipe=NAME` first, where NAME is the recipe to "
            "compare with"
        )
    searched = ", ".join(sorted(file.stem for file in recipes.glob("*.yaml")))
    if searched:
        hint += f", or choose a recipe that a search has written into this root: {searched}"
    raise ConfigError(
        f"`isweep tune` writes the recipe {name}, but its file {path} does not exist",
        hint=hint,
    )


def without_unused_rows(sweep: SweepSpec, tuned: dict[str, Any]) -> SweepSpec:
    """Remove the rows of a tuned recipe whose model or dataset is not in the sweep.

    Args:
        sweep: The sweep, with all rows of its tuned recipe.
        tuned: Results of the search, as stored in the recipe file.

    Raises:
        ConfigError: The search has no values for a model and dataset of the sweep.
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
            "The recipe that `isweep tune` wrote has no values for "
            f"{', '.join(missing[:MAX_NAMED])}",
            hint=f"Add these models and datasets to the sweep {searched_sweep} and run "
            f"`isweep tune {searched_sweep}` again, or remove them from this sweep",
        )

    def is_wanted(row: RecipeOverride) -> bool:
        # A row of a search has exactly one model and one dataset. A user wrote the other rows.
        if len(row.models) != 1 or len(row.datasets) != 1:
            return True
        return row.models[0] in models and row.datasets[0] in datasets

    rows = tuple(filter(is_wanted, sweep.recipe.overrides))
    return sweep.model_copy(update={"recipe": sweep.recipe.model_copy(update={"overrides": rows})})
