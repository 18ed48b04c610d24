"""Read recipe files, and recipes that ``isweep tune`` wrote below the root.

A recipe that ``isweep tune`` wrote is called a tuned recipe here. It has one row for each
model and dataset. If a sweep does not have the model or the dataset of a row, the row is
ignored.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
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
"""Largest number of recipe files in a chain, in which each file refers to the next with
``from``."""
TUNED = "tuned"
"""In a sweep file, the name of the recipe that ``isweep tune`` wrote for the same sweep. In a
recipe file, the key of the results of the search."""
SEARCHED = ("learning_rate", "weight_decay", "batch_size")
"""Values of a recipe that a search chooses."""
MAX_NAMED = 20
"""Largest number of combinations of model and dataset that a message lists."""


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe of a sweep file, with the content of the recipe files that it refers to.

    Attributes:
        recipe: The recipe as a name or as a mapping. None if the sweep file has no recipe.
        tuned: Results of the search that wrote the recipe, or None if no search wrote it.
    """

    recipe: Any
    tuned: dict[str, Any] | None = None


def resolve_recipe(
    recipe: Any, sweep: object, folder: Path, recipes: Path | None
) -> ResolvedRecipe:
    """Replace the path of a recipe file, or the name of a tuned recipe, by its content.

    Args:
        recipe: The recipe in a sweep file: a name, a path, or a mapping with ``from``. Other
            values of the mapping replace values of the recipe file.
        sweep: Name of the sweep.
        folder: Folder in which relative paths start.
        recipes: Folder of the tuned recipes, or None if there is no root.

    Raises:
        ConfigError: A file is absent or wrong, or the sweep replaces values of a tuned recipe.
    """
    resolved = _with_recipe_file(
        _tuned_path(recipe, sweep, recipes), folder, "The recipe of the sweep"
    )
    if not isinstance(resolved, dict) or not isinstance(resolved.get(TUNED), dict):
        return ResolvedRecipe(resolved)
    _refuse_changes_of_tuned(recipe)
    tuned = resolved.pop(TUNED)
    return ResolvedRecipe(resolved, tuned)


def _with_recipe_file(recipe: Any, folder: Path, origin: str, depth: int = 0) -> Any:
    """Replace the path of a recipe file by its content.

    ``origin`` is the name of the recipe in messages. ``depth`` is the number of recipe files
    before this file in the chain of ``from`` keys.
    """
    name = _base_name(recipe)
    if name is None or not is_path(name):
        return recipe
    # If there is no user with the name `name`, expanduser does not change ~name. Then the path
    # does not exist.
    path = folder / os.path.expanduser(name)
    if depth > MAX_RECIPE_FILES:
        raise ConfigError(
            f"{path} is at the end of a chain of more than {MAX_RECIPE_FILES} recipe files. "
            "Each of them refers to the next with `from`",
            hint="In one of these files, set `from` to a known recipe",
        )
    base = read_plain(read_file(path, "recipe file", "known recipe", RECIPES), str(path))
    if not isinstance(base, dict):
        raise not_a_mapping(str(path), base, RECIPE)
    base = _with_recipe_file(base, path.parent, str(path), depth + 1)
    changes = dict(recipe) if isinstance(recipe, dict) else {}
    changes.pop("from", None)
    merged = {**base, **changes}
    overrides = _overrides(base, str(path)) + _overrides(changes, origin)
    if overrides:
        merged["overrides"] = overrides
    return merged


def _base_name(recipe: Any) -> str | None:
    """Return the name or path on which a recipe is based, or None if it is based on neither."""
    name = recipe.get("from") if isinstance(recipe, dict) else recipe
    return name if isinstance(name, str) else None


def _overrides(recipe: dict[str, Any], origin: str) -> list[Any]:
    """Return the overrides of a recipe. ``origin`` is the name of the recipe in messages."""
    overrides = recipe.get("overrides", [])
    if isinstance(overrides, list):
        return overrides
    raise ConfigError(
        f"{origin} has `overrides`, which is not a list",
        hint="Write, for example, `overrides: [{models: [small_cnn], learning_rate: 0.01}]`",
    )


def _tuned_path(recipe: Any, sweep: object, recipes: Path | None) -> Any:
    """Replace the name of a tuned recipe by the path of its file, which must exist."""
    name = _base_name(recipe)
    if recipes is None or name is None or name in RECIPES or is_path(name):
        return recipe
    stem = f"{TUNED}-{sweep}" if name == TUNED else name
    path = recipes / f"{stem}.yaml"
    if os.path.isfile(path):  # Path.is_file raises an error for impossible names
        if isinstance(recipe, dict):
            return {**recipe, "from": str(path)}
        return str(path)
    if not stem.startswith(f"{TUNED}-"):
        return recipe  # unknown names are reported later, with all other mistakes
    hint = f"Run `isweep tune {stem.removeprefix(f'{TUNED}-')}` first"
    if name == TUNED:
        hint = (
            f"Run `isweep tune {sweep} --set recipe=NAME` first, where NAME is the recipe to "
            "compare with"
        )
    written_names = ", ".join(sorted(file.stem for file in recipes.glob("*.yaml")))
    if written_names:
        hint += f", or choose a recipe that a search has written into this root: {written_names}"
    raise ConfigError(
        f"`isweep tune` writes the recipe {name}, but its file {path} does not exist",
        hint=hint,
    )


def _refuse_changes_of_tuned(recipe: Any) -> None:
    """Raise an error if a sweep replaces a value of a tuned recipe for all models at once."""
    if not isinstance(recipe, dict):
        return
    replaced = [f"`recipe.{name}`" for name in SEARCHED if name in recipe]
    if replaced:
        raise ConfigError(
            f"The sweep sets {', '.join(replaced)} for all models and datasets, but `isweep "
            "tune` chose separate values for each model and dataset in the sweep's recipe",
            hint="Set the value for some models or datasets in `recipe.overrides`, or start "
            "from another recipe",
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
    tuned_combinations = _tuned_combinations(tuned)
    missing = [
        f"{model} on {dataset}"
        for model in sorted(models)
        for dataset in sorted(datasets)
        if (model, dataset) not in tuned_combinations
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
        # A row that a search wrote has exactly one model and one dataset. A user wrote all
        # other rows.
        if len(row.models) != 1 or len(row.datasets) != 1:
            return True
        return row.models[0] in models and row.datasets[0] in datasets

    rows = tuple(filter(is_wanted, sweep.recipe.overrides))
    return sweep.model_copy(update={"recipe": sweep.recipe.model_copy(update={"overrides": rows})})


def _tuned_combinations(tuned: dict[str, Any]) -> set[tuple[str, str]]:
    """Return the pairs of model and dataset for which a search has values."""
    rows = tuned.get("cells")
    if not isinstance(rows, list):
        return set()
    return {
        (str(row.get("model")), str(row.get("dataset")))
        for row in rows
        if isinstance(row, dict) and "not_tuned" not in row
    }
