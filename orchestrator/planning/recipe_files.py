"""Recipes in files of their own, and those that a search wrote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from orchestrator.planning.plain_yaml import MAX_RECIPE_FILES, read_plain
from orchestrator.planning.sweep_mistakes import RECIPE
from orchestrator.planning.written_files import is_path, read_file
from search_spaces.errors import (
    ConfigError,
)
from search_spaces.models import model_spec
from search_spaces.recipes import RECIPES
from search_spaces.sweeps import RecipeOverride, SweepSpec


def with_recipe_file(recipe: object, folder: Path, depth: int = 0) -> object:
    """Put the content of a recipe file in place of its path; what stands beside the path holds over
    it.
    """
    outer: object = {"from": recipe} if isinstance(recipe, str) else recipe
    name = outer.get("from") if isinstance(outer, dict) else None
    if not isinstance(outer, dict) or not isinstance(name, str) or not is_path(name):
        return recipe
    path = folder / os.path.expanduser(
        name
    )  # the home of nobody stays as it is written, and is not there
    if depth > MAX_RECIPE_FILES:
        raise ConfigError("Recipe files must not start from one another", str(path))
    content = read_plain(
        read_file(path, "recipe file"), str(path)
    )  # as a path, text would be quoted
    inner = (
        with_recipe_file(content, path.parent, depth + 1) if isinstance(content, dict) else content
    )
    if not isinstance(inner, dict):
        raise ConfigError(f"{path} must be a mapping", type(inner).__name__, RECIPE)
    parts = [part["overrides"] for part in (inner, outer) if "overrides" in part]
    if not all(isinstance(rows, list) for rows in parts):
        raise ConfigError(f"overrides of {path} must be a list", "something else", RECIPE)
    rows = [row for rows in parts for row in rows]
    merged = {**inner, **{key: value for key, value in outer.items() if key != "from"}}
    return {**merged, **({"overrides": rows} if rows else {})}


# Recipes that a search wrote, named by a sweep: found below the root, and cut to the sweep's own
# cells.

TUNED = "tuned"
"""As a recipe's name, the recipe that was searched for the sweep itself; as a file's key, its
evidence."""
SEARCHED = ("learning_rate", "weight_decay", "batch_size")


def tuned_path(recipe: object, sweep: object, recipes: Path | None) -> object:
    """Return ``recipe`` with the path of a searched recipe in place of its name."""
    name = recipe.get("from") if isinstance(recipe, dict) else recipe
    if recipes is None or not isinstance(name, str) or name in RECIPES or is_path(name):
        return recipe
    path = recipes / f"{f'{TUNED}-{sweep}' if name == TUNED else name}.yaml"
    if os.path.isfile(path):  # which is no error for a name that no file can have
        return {**recipe, "from": str(path)} if isinstance(recipe, dict) else str(path)
    if name != TUNED and not name.startswith(f"{TUNED}-"):
        return recipe  # reported as any unknown name
    there = ", ".join(sorted(file.stem for file in recipes.glob("*.yaml"))) or "none"
    search = name.removeprefix(f"{TUNED}-")
    if name == TUNED:
        search = f"{sweep} --set recipe=NAME, with the recipe to begin from and to compare with,"
    raise ConfigError(
        "A searched recipe must have been searched below this root",
        f"recipe: {name}, but no {path}",
        f"run isweep tune {search} first; searched recipes there: {there}",
    )


def with_tuned_cells(sweep: SweepSpec, tuned: dict[str, Any]) -> SweepSpec:
    """Return the sweep without searched rows of models and datasets that it does not have."""
    models = {model_spec(choice).name for choice in sweep.models}
    datasets = {choice.name for choice in sweep.datasets}
    cells = tuned["cells"] if isinstance(tuned.get("cells"), list) else ()
    found = [cell for cell in cells if isinstance(cell, dict) and "not_tuned" not in cell]
    searched = [(cell.get("model"), cell.get("dataset")) for cell in found]
    missing = [
        f"{m} on {d}" for m in sorted(models) for d in sorted(datasets) if (m, d) not in searched
    ]
    if missing:
        raise ConfigError(
            "A searched recipe must have been searched for every model and dataset of the sweep",
            f"none for {', '.join(missing[:20])}",
            f"add them to sweep {tuned.get('sweep')} and tune it again, or leave them out here",
        )

    def concerns(row: RecipeOverride) -> bool:
        one_cell = len(row.models) == len(row.datasets) == 1  # as searched rows have
        return not one_cell or (row.models[0] in models and row.datasets[0] in datasets)

    rows = tuple(filter(concerns, sweep.recipe.overrides))
    return sweep.model_copy(update={"recipe": sweep.recipe.model_copy(update={"overrides": rows})})
