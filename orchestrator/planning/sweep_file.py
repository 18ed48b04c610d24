"""A preset or sweep file, read into a :class:`SweepSpec` with every mistake reported at once.

The file is YAML of plain values, see :mod:`orchestrator.planning.plain_yaml`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from orchestrator.planning.plain_yaml import not_a_mapping, read_plain, write_plain
from orchestrator.planning.recipe_files import (
    SEARCHED,
    TUNED,
    tuned_path,
    with_recipe_file,
    with_tuned_cells,
)
from orchestrator.planning.sweep_changes import with_changes
from orchestrator.planning.sweep_mistakes import DATASET, problem_of, raise_problems, unknown_names
from orchestrator.planning.written_files import is_path, preset_names, preset_text, read_file
from search_spaces.datasets import own_dataset_spec
from search_spaces.errors import ConfigError, SweepError, unknown_name
from search_spaces.specs import PreparedSpec
from search_spaces.sweeps import DatasetChoice, SweepSpec
from tasks.prepared.listings import Listings
from tasks.sources import check_own_options
from tasks.sources.base import RawRequest

SEE = "Write a sweep file with `isweep init`, or copy one from 'Your own images' in the README"

SweepSource = str | Path | Mapping[str, Any] | SweepSpec
"""A preset's name, a sweep file's path, the content of one as a mapping, or a spec made in
Python."""


@dataclass(frozen=True)
class _Document:
    """The content of a sweep file.

    Attributes:
        content: Keys and values.
        origin: What messages call the file.
        folder: Folder at which relative paths of the file start.
    """

    content: dict[str, Any]
    origin: str
    folder: Path = Path()


def load_sweep(
    source: SweepSource,
    changes: Mapping[str, object] | None = None,
    *,
    recipes: Path | None = None,
    listings: Listings | None = None,
) -> SweepSpec:
    """Read a sweep from wherever it is written.

    Args:
        source: The sweep. Text is the name of a preset, or a path if it has a ``/`` or ends in
            ``.yaml`` or ``.yml``. Paths in a mapping start at the working directory.
        changes: Values by dotted key (``recipe.epochs``) that replace those of the sweep.
        recipes: Folder of the recipes that searches wrote; None if the sweep may name none.
        listings: Gets the listings of your own data whose class pairs are named.

    Raises:
        ConfigError: The sweep has mistakes. The message names the file and every mistake with its
            key, its value and what is allowed.
    """
    changes = changes or {}
    if isinstance(source, SweepSpec) and not changes:
        raise_problems(unknown_names(source.model_dump()))
        return source
    document = _read(source)
    spec = _spec_of(document, changes, recipes)
    return _with_absolute_paths(spec, document.folder, listings or Listings())


def _read(source: SweepSource) -> _Document:
    """Return the content of a sweep from wherever it is written."""
    if isinstance(source, SweepSpec):
        source = source.model_dump(mode="json", exclude_unset=True, by_alias=True)
    if isinstance(source, Mapping):
        return _Document(dict(source), "the sweep")
    if isinstance(source, Path) or is_path(source):
        path = Path(source)
        text = read_file(path, "sweep file", "preset", preset_names())
        document = _Document(_parse(text, str(source)), str(source), path.parent)
        # Modules of your own networks lie beside the sweep file, as beside a script.
        find_modules_in(path.parent)
        return document
    if source not in preset_names():
        raise unknown_name("preset", source, preset_names())
    origin = f"preset {source}"
    return _Document(_parse(preset_text(source), origin), origin)


def parse_sweep(text: str, *, origin: str, folder: Path | None = None) -> SweepSpec:
    """Read the text of a sweep file.

    Args:
        text: Content of the file.
        origin: What messages call the file.
        folder: Folder at which paths of recipe files start; None for the working directory.
    """
    return _spec_of(_Document(_parse(text, origin), origin, folder or Path()), {}, None)


def _parse(text: str, origin: str) -> dict[str, Any]:
    """Return the keys and values of a sweep file."""
    if not text.strip():
        raise ConfigError(f"{origin} is empty", hint=SEE)
    content = read_plain(text, origin)
    if not isinstance(content, dict):
        raise not_a_mapping(origin, content, SEE)
    return content


def sweep_text(spec: SweepSpec) -> str:
    """Return a sweep as the text of a sweep file, which reads back to an equal one."""
    return write_plain(spec.model_dump(mode="json", exclude_unset=True, by_alias=True))


def find_modules_in(folder: Path) -> None:
    """Let Python find modules of your own networks in a folder, after all other places."""
    name = str(folder.absolute())
    if name not in sys.path:
        sys.path.append(name)


def _spec_of(document: _Document, changes: Mapping[str, object], recipes: Path | None) -> SweepSpec:
    """Return the sweep of a file with changed values.

    Args:
        document: The file.
        changes: New values by dotted key.
        recipes: Folder of the recipes that searches wrote.
    """
    content = with_changes(document.content, changes)
    if isinstance(content.get("datasets"), list):
        for index, choice in enumerate(content["datasets"]):
            if isinstance(choice, str):
                content["datasets"][index] = {"name": choice}
    named_recipe = tuned_path(content.pop("recipe", None), content.get("name"), recipes)
    recipe = with_recipe_file(named_recipe, document.folder)
    tuned = None
    if isinstance(recipe, dict) and isinstance(recipe.get(TUNED), dict):
        tuned = recipe.pop(TUNED)
        _refuse_changes_of_searched(named_recipe)
    if recipe is not None:
        content["recipe"] = recipe
    try:
        spec = SweepSpec.model_validate_json(_plain_json(content, document.origin))
    except ValidationError as error:
        raise_problems(_problems_of(error.errors(), content, document.origin))
        raise
    raise_problems(unknown_names(spec.model_dump()))
    if tuned is not None:
        return with_tuned_cells(spec, tuned)
    return spec


def _refuse_changes_of_searched(recipe: object) -> None:
    """Refuse to replace values of a searched recipe for all models and datasets at once."""
    if not isinstance(recipe, dict):
        return
    replaced = [f"recipe.{name}" for name in SEARCHED if name in recipe]
    if replaced:
        raise ConfigError(
            f"The sweep sets {', '.join(replaced)} for all models and datasets, but its recipe was "
            "searched for each model and dataset",
            hint="Set the value for some models or datasets in recipe.overrides, or start from "
            "another recipe",
        )


def _problems_of(
    details: list[ErrorDetails], content: dict[str, Any], origin: str
) -> list[SweepError]:
    """Return all mistakes of a sweep file: those that pydantic found, and unknown names."""
    places = [detail["loc"] for detail in details]

    def is_consequence(detail: ErrorDetails) -> bool:
        """Return whether a list is too short only because its items are wrong."""
        place = detail["loc"]
        is_of_item = any(
            len(longer) > len(place) and longer[: len(place)] == place for longer in places
        )
        return detail["type"] == "too_short" and is_of_item

    problems: list[SweepError] = [
        problem_of(detail, origin, content) for detail in details if not is_consequence(detail)
    ]
    if () not in places and not content.get("datasets") and not content.get("worlds"):
        problems.append(ConfigError(f"{origin} has no datasets and no worlds", hint=DATASET))
    if isinstance(content.get("models"), list) and isinstance(content.get("datasets"), list):
        problems += unknown_names(content)
    return problems


def _with_absolute_paths(spec: SweepSpec, folder: Path, listings: Listings) -> SweepSpec:
    """Return a sweep whose paths of your own data start at the root of the file system.

    Relative paths start at the sweep file's folder, so that the file works from wherever it is run.
    """
    if all(choice.own is None for choice in spec.datasets):
        return spec  # the copies below are other objects than the datasets that worlds refer to
    datasets = tuple(_with_absolute_path(choice, folder, listings) for choice in spec.datasets)
    return spec.model_copy(update={"datasets": datasets})


def _with_absolute_path(choice: DatasetChoice, folder: Path, listings: Listings) -> DatasetChoice:
    """Return a dataset with an absolute path, and with its classes if a class pair names some."""
    if choice.own is None:
        return choice
    check_own_options(own_dataset_spec(choice.name, choice.own))
    try:
        path = folder.absolute() / Path(choice.own.path).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"datasets.{choice.name}.own.path starts with the home folder of an unknown user: "
            f"{choice.own.path}",
            hint="Write the path from / on",
        ) from None
    own_data = choice.own.model_copy(update={"path": str(path)})
    pairs = choice.class_pairs or ()
    has_names = any(isinstance(label, str) for pair in pairs for label in pair)
    if has_names and not own_data.class_names:
        # Names become indices, for which all classes are needed. Size and channels do not matter.
        prepared = PreparedSpec(dataset=choice.name, image_size=4, channels=own_data.channels)
        request = RawRequest(own_dataset_spec(choice.name, own_data), prepared, path)
        own_data = own_data.model_copy(update={"class_names": listings.of(request).label_names})
    return choice.model_copy(update={"own": own_data})


def _plain_json(document: object, origin: str) -> bytes:
    """Return a sweep as JSON.

    Numbers and arrays of NumPy, which notebooks hold, become plain numbers and lists.
    """

    def plain(value: Any) -> object:
        if hasattr(value, "tolist"):
            return value.tolist()
        raise TypeError(repr(value)[:200])

    try:
        return json.dumps(document, ensure_ascii=False, default=plain).encode()
    except TypeError as error:
        raise ConfigError(
            f"{origin} has a value that a sweep file cannot hold: {error}",
            hint="Use numbers, text, lists and mappings",
        ) from None
    except UnicodeEncodeError as error:
        letter = ascii(error.object[error.start])
        raise ConfigError(
            f"{origin} has the character {letter}, which cannot be saved as UTF-8",
            hint="Remove the character",
        ) from None
