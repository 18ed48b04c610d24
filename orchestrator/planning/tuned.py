"""Recipes that a search wrote, named by a sweep: found below the root, and cut to the sweep's own cells."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from search_spaces.errors import ConfigError
from search_spaces.recipes import RECIPES
from search_spaces.sweeps import RecipeOverride, SweepSpec

TUNED = "tuned"
"""As a recipe's name, the recipe that was searched for the sweep itself; as a file's key, its evidence."""

SEARCHED = ("learning_rate", "weight_decay", "batch_size")


def tuned_path(recipe: object, sweep: object, recipes: Path | None) -> object:
    """Return ``recipe`` as a sweep file has it, with the path of a searched recipe in place of its name.

    Args:
        recipe: A name, or a mapping with one under ``from``.
        sweep: The sweep's name.
        recipes: Folder of the recipes that searches wrote.

    Raises:
        ConfigError: for ``tuned`` where no search of this sweep wrote one.
    """
    name = recipe.get("from") if isinstance(recipe, dict) else recipe
    if recipes is None or not isinstance(name, str) or name in RECIPES or not _plain_name(name):
        return recipe
    path = recipes / f"{f'{TUNED}-{sweep}' if name == TUNED else name}.yaml"
    if not os.path.isfile(path):  # which is no error for a name that no file can have
        if name != TUNED and not name.startswith(f"{TUNED}-"):
            return recipe  # reported as any unknown name
        there = ", ".join(sorted(file.stem for file in recipes.glob("*.yaml"))) or "none"
        raise ConfigError(
            "A searched recipe must have been searched below this root",
            f"recipe: {name}, but no {path}",
            f"run isweep tune {_searches(name, sweep)} first; searched recipes there: {there}",
        )
    return {**recipe, "from": str(path)} if isinstance(recipe, dict) else str(path)


def _searches(name: str, sweep: object) -> str:
    """Return what to tune for a recipe to be there; a sweep that names its own begins from another."""
    if name != TUNED:
        return name.removeprefix(f"{TUNED}-")
    return f"{sweep} --set recipe=NAME, with the recipe to begin from and to compare with,"


def split_tuned(recipe: object) -> tuple[object, dict[str, Any] | None]:
    """Return a recipe without its evidence, and the evidence; None for a recipe that was not searched."""
    if not isinstance(recipe, dict) or not isinstance(recipe.get(TUNED), dict):
        return recipe, None
    return {key: value for key, value in recipe.items() if key != TUNED}, recipe[TUNED]


def searched_cells(tuned: dict[str, Any]) -> list[tuple[object, object]]:
    """Return model and dataset of each cell that a recipe file has a choice for, by its evidence."""
    cells = tuned.get("cells")
    return [
        (cell.get("model"), cell.get("dataset"))
        for cell in (cells if isinstance(cells, list) else ())
        if isinstance(cell, dict) and "not_tuned" not in cell
    ]


def check_beside(recipe: object) -> None:
    """Refuse what a sweep says for all beside a searched recipe, whose own values would hold over it.

    Args:
        recipe: As a sweep file has it.

    Raises:
        ConfigError: naming the fields.
    """
    said = [name for name in SEARCHED if isinstance(recipe, dict) and name in recipe]
    if said:
        raise ConfigError(
            "What was searched of a recipe cannot be changed for all models and datasets beside it",
            ", ".join(f"recipe.{name}" for name in said),
            "change it for some in recipe.overrides, or start from another recipe",
        )


def with_tuned_cells(sweep: SweepSpec, tuned: dict[str, Any]) -> SweepSpec:
    """Return the sweep without searched rows of models and datasets that it does not have.

    Raises:
        ConfigError: naming every model and dataset of the sweep that the search has no recipe for.
    """
    from search_spaces.models import model_spec

    models = {model_spec(choice).name for choice in sweep.models}
    datasets = {choice.name for choice in sweep.datasets}
    rows = [row for row in sweep.recipe.overrides if _concerns(row, models, datasets)]
    searched = searched_cells(tuned)
    missing = [f"{m} on {d}" for m in sorted(models) for d in sorted(datasets) if (m, d) not in searched]
    if missing:
        raise ConfigError(
            "A searched recipe must have been searched for every model and dataset of the sweep",
            f"none for {', '.join(missing[:20])}",
            f"add them to sweep {tuned.get('sweep')} and tune it again, or leave them out here",
        )
    return sweep.model_copy(update={"recipe": sweep.recipe.model_copy(update={"overrides": tuple(rows)})})


def _concerns(row: RecipeOverride, models: set[str], datasets: set[str]) -> bool:
    """Tell whether a row that names one model and one dataset, as searched ones do, is of the sweep."""
    if len(row.models) != 1 or len(row.datasets) != 1:
        return True
    return row.models[0] in models and row.datasets[0] in datasets


def _plain_name(name: str) -> bool:
    return "/" not in name and not name.endswith((".yaml", ".yml"))
