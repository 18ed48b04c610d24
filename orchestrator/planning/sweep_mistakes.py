"""Convert mistakes in a sweep file to errors with the keys and values of the file."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from orchestrator.planning.plain_yaml import line_of
from search_spaces.datasets import DATASETS, dataset_spec
from search_spaces.errors import (
    MAX_SHOWN,
    ConfigError,
    SweepError,
    broken_rule,
    did_you_mean,
    plural,
    raise_all,
    rule_of,
    unknown_name,
)
from search_spaces.models import model_spec
from search_spaces.recipes import RECIPES
from search_spaces.specs import DEFAULT_ESTIMATORS, NAME_PATTERN
from search_spaces.sweeps import DatasetChoice, RecipeChoice, SweepSpec, UserSourceSpec
from tasks.sources import check_own_kind

MAX_PROBLEMS = 20
"""Largest number of problems that a message lists. If there are more, the message says only
how many more."""
DATASET = "Write, for example, `datasets: [digits]`. `isweep datasets` lists the known datasets"
MODEL = (
    "Write, for example, `models: [small_cnn]` or `models: [{from: small_cnn, name: mine}]`. "
    "`isweep models` lists the known models"
)
RECIPE = (
    "Write, for example, `recipe: {from: demo, epochs: 3}`. `isweep recipes` lists the known "
    "recipes"
)
EXAMPLES: dict[int | str, str] = {"recipe": RECIPE, "models": MODEL}
"""Hints for missing values, by the first key of the value."""
MAX_SEED_COUNT = 10
"""If `seeds` is a single number up to this one, the user may have meant a number of seeds.
Sweeps with more repetitions are rare."""


def raise_problems(problems: list[SweepError]) -> None:
    """If there are problems, raise one error. Its message lists at most MAX_PROBLEMS problems."""
    shown = problems[:MAX_PROBLEMS]
    num_more = len(problems) - len(shown)
    if num_more:
        shown.append(ConfigError(f"The sweep has {plural(num_more, 'more problem')}"))
    raise_all(shown)


def problem_of(
    detail: ErrorDetails, origin: str, document: Mapping[str, Any], text: str = ""
) -> ConfigError:
    """Convert one of pydantic's errors to an error with the key and value of the sweep file.

    Args:
        detail: Pydantic's error.
        origin: Name of the file in messages.
        document: Content of the file.
        text: Text of the file. If it is empty, the message has no line.
    """
    keys = detail["loc"]
    if not keys:  # a rule about several keys
        return ConfigError(f"{origin}: {rule_of(detail['msg'])}")
    file_keys = keys_in_file(keys, document)
    dotted = ".".join(map(str, file_keys))
    if detail["type"] == "extra_forbidden":
        return _unknown_key(keys, dotted)
    if detail["type"] == "missing":
        kind = "value" if isinstance(keys[-1], int) else "key"
        hint = EXAMPLES.get(keys[0], f"Add this {kind}")
        return ConfigError(f"The {kind} `{dotted}` is missing", hint=hint)
    if detail["input"] is None:
        line = line_of(text, file_keys) if text else None
        return _no_value(file_keys, "" if line is None else f"{origin}, line {line}: ")
    return _wrong_value(detail, file_keys)


def keys_in_file(keys: Sequence[int | str], document: Mapping[str, Any]) -> tuple[int | str, ...]:
    """Return the keys of a value as the user wrote them in the sweep file.

    Pydantic's keys differ from the user's keys in three cases. isweep has converted a mapping
    such as ``dials`` to pairs. isweep has converted a single value of the recipe to a list. If
    a value may have one of several types, pydantic adds the name of a type after the key.

    Args:
        keys: Pydantic's keys.
        document: Content of the file.
    """
    in_file: list[int | str] = []
    content: Any = document
    remaining = deque(keys)
    while remaining:
        key = remaining.popleft()
        if isinstance(content, str | Number):
            break  # the file has a single value here
        if isinstance(key, str) and isinstance(content, list | tuple):
            continue  # the name of a type
        if isinstance(key, int) and isinstance(content, Mapping):
            # Pydantic's keys are first the number of a pair, and then 0 for the pair's key or
            # 1 for its value.
            key = sorted(content, key=str)[key]
            if remaining:
                remaining.popleft()
        # A key of a mapping is text here, even if it is a number in the file. So nobody takes
        # it for the index of a list.
        value = _value_at(content, key)
        if isinstance(content, Mapping):
            in_file.append(str(key))
        elif isinstance(value, Mapping) and re.fullmatch(NAME_PATTERN, str(value.get("name", ""))):
            in_file.append(value["name"])  # a dataset or a model
        else:
            in_file.append(key)
        content = value
    return tuple(in_file)


def _value_at(content: Any, key: int | str) -> Any:
    """Return a value of a mapping or list, or None if it is missing."""
    try:
        return content[key]
    except (KeyError, IndexError, TypeError):
        return None


def _wrong_value(detail: ErrorDetails, keys: Sequence[int | str]) -> ConfigError:
    """Return the error for a value that breaks a rule of the sweep file."""
    dotted = ".".join(map(str, keys))
    kind = detail["type"]
    value = detail["input"]
    shown = repr(value)[:MAX_SHOWN]
    if isinstance(value, dict):
        shown = f"a mapping with the keys {', '.join(map(str, value))}"[:MAX_SHOWN]
    if kind == "too_short" and detail["ctx"]["min_length"] == 1:
        return ConfigError(f"`{dotted}` is empty", hint="Add at least one value")
    if kind == "too_long":
        limit = detail["ctx"]["max_length"]
        return ConfigError(f"`{dotted}` has more than {limit} values", hint="Shorten the list")
    if kind == "string_pattern_mismatch" and detail["ctx"]["pattern"] == NAME_PATTERN:
        return ConfigError(
            f"`{dotted}` is {shown}, which is not a valid name",
            hint="Use at most 64 lower case letters, digits, - and _, and begin with a letter",
        )
    if kind in ("tuple_type", "list_type"):
        hint = _list_hint(value, keys)
        return ConfigError(f"`{dotted}` is {shown}, but should be a list", hint=hint)
    if kind in ("dict_type", "model_type"):
        return ConfigError(
            f"`{dotted}` is {shown}, but should be keys with values, for example {{key: value}}"
        )
    rule = rule_of(detail["msg"])
    if isinstance(value, dict):
        return ConfigError(f"`{dotted}`: {rule}")
    return broken_rule(_numbered(keys), shown, rule)


def _no_value(keys: Sequence[int | str], place: str) -> ConfigError:
    """Return the error for a key without a value, or with the value ``null``.

    Args:
        keys: The keys that lead to the value.
        place: Beginning of the message, with the file and the line. It may be empty.
    """
    hint = "Write a value"
    if len(keys) == 1:
        field = _fields_by_key(SweepSpec).get(str(keys[0]))
        is_required = field is not None and field.is_required()
        hint = "Write a value after the colon" if is_required else f"{hint}, or remove the key"
        hint = {**EXAMPLES, "datasets": DATASET}.get(keys[0], hint)
    return ConfigError(f"{place}{_numbered(keys)} has no value", hint=hint)


def _list_hint(value: object, keys: Sequence[int | str]) -> str:
    """Return a hint on how to write a value as a list."""
    if not isinstance(value, (int, float)):
        return "Write the values in brackets, for example `[a, b]`"
    # A single number for `seeds` may mean a number of seeds. A larger number, for example 42,
    # rarely means that.
    if list(keys) == ["seeds"] and value in range(2, MAX_SEED_COUNT + 1):
        return (
            f"For {value} seeds, write `{list(range(int(value)))}`. For the one seed {value}, "
            f"write `[{value}]`"
        )
    return f"Write `[{value!r}]`"


def _numbered(keys: Sequence[int | str]) -> str:
    """Return the dotted keys in backticks. The index of a list becomes the number of a value."""
    *names, last = keys
    if isinstance(last, int):
        return f"value {last + 1} of `{'.'.join(map(str, names))}`"
    return f"`{'.'.join(map(str, keys))}`"


def _unknown_key(keys: tuple[int | str, ...], dotted: str) -> ConfigError:
    """Return the error for an unknown key of a sweep file. The error lists the known keys."""
    model: type[BaseModel] = SweepSpec
    for key in keys[:-1]:
        field = _fields_by_key(model).get(str(key))
        if field is not None:
            model = _model_in(field.annotation) or model
    if len(keys) == 1 and keys[0] in RecipeChoice.model_fields:
        return ConfigError(f"`{dotted}` is a key of `recipe`, not of the sweep itself", hint=RECIPE)
    if len(keys) == 1 and keys[0] in _fields_by_key(DatasetChoice):
        return ConfigError(
            f"`{dotted}` is a key of each entry of `datasets`, not of the sweep itself",
            hint=f"In the sweep file, write `{dotted}` below the name of the dataset",
        )
    if model is DatasetChoice and keys[-1] in _fields_by_key(UserSourceSpec):
        return ConfigError(
            f"`{dotted}` is a key of `own`, not of the entry of `datasets` itself",
            hint=f"Move `{keys[-1]}` into `own`, for example "
            "`own: {kind: folder, path: ./my-images}`",
        )
    known_keys = list(_fields_by_key(model))
    name, colon, value = str(keys[-1]).partition(":")
    if colon and name in known_keys:
        return ConfigError(
            f"`{dotted}` has no space after its first colon, so YAML reads all of it as a key",
            hint=f"Put a space after the colon: `{name}: {value}`",
        )
    similar = did_you_mean(str(keys[-1]), known_keys)
    return ConfigError(
        f"`{dotted}` is not a known key",
        hint=f"{similar}Use one of these keys: {', '.join(known_keys)}",
    )


def _fields_by_key(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields of a model by their keys in a sweep file."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _model_in(annotation: object) -> type[BaseModel] | None:
    """Return the model in an annotation such as ``tuple[Model, ...]`` or ``Model | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        model = _model_in(argument)
        if model is not None:
            return model
    return None


def unknown_names(document: dict[str, Any]) -> list[SweepError]:
    """Return an error for each unknown name of a model, dataset, recipe or estimator.

    Args:
        document: Content of a sweep file, or some of its keys.
    """
    problems: list[SweepError] = []

    def check(rule: Callable[[str], object], choice: object) -> None:
        name = choice.get("from") if isinstance(choice, dict) else choice
        if isinstance(name, str) and len(problems) <= MAX_PROBLEMS:
            try:
                rule(name)
            except SweepError as error:
                problems.append(error)

    for choice in document.get("models", ()):
        check(model_spec, choice)
    for choice in document.get("datasets", ()):
        if not isinstance(choice, dict):
            continue
        own_data = choice.get("own")
        if isinstance(own_data, dict):
            check(check_own_kind, own_data.get("kind"))
        is_listed = own_data is None and choice.get("made") is None
        check(dataset_spec if is_listed else _check_free_name, choice.get("name"))
    check(_check_recipe, document.get("recipe"))
    estimators = document.get("estimators")
    if isinstance(estimators, list | tuple):
        for name in estimators:
            check(_check_estimator, name)
    return problems


def _check_free_name(name: str) -> None:
    """Raise an error if your own dataset has the name of a known dataset."""
    if name in DATASETS:
        raise ConfigError(
            f"Your dataset has the name {name!r}, which is the name of a known dataset",
            hint="Choose another name",
        )


def _check_recipe(name: str) -> None:
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)


def _check_estimator(name: str) -> None:
    if name not in DEFAULT_ESTIMATORS:
        from tasks.measures.estimators import find_estimator  # imports numpy, which takes a second

        find_estimator(name)
