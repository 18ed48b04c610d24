"""Mistakes in a sweep file, in the words of the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from search_spaces.datasets import DATASETS, dataset_spec
from search_spaces.errors import (
    ConfigError,
    SweepError,
    collect,
    nearest,
    unknown_name,
)
from search_spaces.models import model_spec
from search_spaces.recipes import RECIPES
from search_spaces.specs import DEFAULT_ESTIMATORS, NAME_PATTERN
from search_spaces.sweeps import RecipeChoice, SweepSpec
from tasks.sources import check_own_kind

MAX_PROBLEMS = 20
"""So many are named; what is behind them is counted."""
DATASET = "write e.g. datasets: [digits]; isweep datasets lists them"
MODEL = (
    "write e.g. models: [small_cnn], or [{from: small_cnn, name: mine}]; isweep models lists "
    "what to name"
)
RECIPE = "write e.g. recipe: {from: demo, epochs: 3}; isweep recipes lists what to start from"


# What is wrong, in the words of a sweep file.

RULES = dict.fromkeys(("tuple_type", "list_type"), "must be a list, e.g. [a, b]")
RULES |= dict.fromkeys(("dict_type", "model_type"), "must be a mapping of keys to values")


def raise_problems(problems: list[SweepError]) -> None:
    """Raise all problems as one; the first of them where there are too many to read."""
    more = len(problems) - MAX_PROBLEMS
    collect(
        problems[:MAX_PROBLEMS]
        + ([ConfigError(f"and {more:,} more like these")] if more > 0 else [])
    )


def problem_of(detail: ErrorDetails, origin: str, document: Mapping[str, Any]) -> ConfigError:
    """Return a mistake that pydantic found, in the words of a sweep file."""
    loc, kind = detail["loc"], detail["type"]
    recipe: Any = document.get("recipe")
    if loc[:1] == ("recipe",) and len(loc) == 3 and not isinstance(recipe[loc[1]], list):
        loc = loc[:2]  # one value stands for a list of one
    where = ".".join(str(part) for part in loc) or origin
    if kind == "extra_forbidden":
        model: type[BaseModel] = SweepSpec  # whose keys belong there
        for part in detail["loc"][:-1]:
            if isinstance(part, str) and part in model.model_fields:
                model = _model_in(model.model_fields[part].annotation) or model
        known = [field.alias or name for name, field in model.model_fields.items()]
        hint = nearest(str(detail["loc"][-1]), known)
        if len(loc) == 1 and loc[0] in RecipeChoice.model_fields:
            return ConfigError(f"{where}: this key belongs into recipe", way_out=RECIPE)
        return ConfigError(f"{where}: unknown key", way_out=f"{hint}known keys: {', '.join(known)}")
    value = detail["input"]
    shown = repr(value) if not isinstance(value, dict) else f"keys {', '.join(map(str, value))}"
    message = detail["msg"].removeprefix("Value error, ")
    if kind == "missing":
        what = "value" if isinstance(detail["loc"][-1], int) else "key"
        way_out = {"recipe": RECIPE, "models": MODEL}.get(str(loc[0]), "")
        return ConfigError(f"{where}: this {what} is required", way_out=way_out)
    if not detail["loc"]:
        return ConfigError(f"{where}: {message}")  # the rule names what it found
    message = RULES.get(kind, message)
    if kind == "too_short" and detail["ctx"]["min_length"] == 1:
        message = "must not be empty"
    elif kind == "too_long":
        message = f"must have at most {detail['ctx']['max_length']} values"
    elif kind == "string_pattern_mismatch" and detail["ctx"]["pattern"] == NAME_PATTERN:
        message = "must be lower case letters, digits, - and _, at most 64, the first a letter"
    return ConfigError(f"{where}: {message[0].lower()}{message[1:]}", shown[:200])


def _model_in(annotation: object) -> type[BaseModel] | None:
    """Find the model in an annotation such as ``tuple[Model, ...]`` or ``Model | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def unknown_names(document: dict[str, Any]) -> list[SweepError]:
    """Return what is wrong with the names of models, datasets, the recipe and estimators."""
    problems: list[SweepError] = []

    def check(rule: Callable[[str], object], choice: object) -> None:
        name = choice.get("from", choice.get("from_")) if isinstance(choice, dict) else choice
        if isinstance(name, str) and len(problems) <= MAX_PROBLEMS:
            try:
                rule(name)
            except SweepError as error:
                problems.append(error)

    def own_name(name: str) -> None:
        if name in DATASETS:
            found = f"{name!r} is in the table of datasets"
            raise ConfigError("Your own dataset needs a name of its own", found, "rename it")

    def known_recipe(name: str) -> None:
        if name not in RECIPES:
            raise unknown_name("recipe", name, RECIPES)

    def known_estimator(name: str) -> None:
        if name not in DEFAULT_ESTIMATORS:
            from tasks.measures.estimators import find_estimator

            find_estimator(name)

    for choice in document.get("models", ()):
        check(model_spec, choice)
    for choice in filter(lambda choice: isinstance(choice, dict), document.get("datasets", ())):
        own = choice.get("own")
        if isinstance(own, dict):
            check(check_own_kind, own.get("kind"))
        is_own = own is not None or choice.get("made") is not None
        check(own_name if is_own else dataset_spec, choice.get("name"))
    check(known_recipe, document.get("recipe"))
    for name in document.get("estimators") or ():
        check(known_estimator, name)
    return problems
