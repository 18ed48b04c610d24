"""Read a preset or sweep file as a :class:`SweepSpec`, and report all mistakes at once.

The file is YAML with plain values only, see :mod:`orchestrator.planning.plain_yaml`.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from orchestrator.planning.plain_yaml import not_a_mapping, read_plain, write_plain
from orchestrator.planning.recipe_files import resolve_recipe, without_unused_rows
from orchestrator.planning.sweep_changes import with_changes
from orchestrator.planning.sweep_mistakes import (
    DATASET,
    keys_in_file,
    problem_of,
    raise_problems,
    unknown_names,
)
from orchestrator.planning.written_files import is_path, preset_names, preset_text, read_file
from search_spaces.datasets import user_dataset_spec
from search_spaces.errors import ConfigError, SweepError, unknown_name
from search_spaces.specs import PreparedSpec
from search_spaces.sweeps import DatasetChoice, SweepSpec
from tasks.prepared.listings import Listings
from tasks.sources import check_own_options
from tasks.sources.base import RawRequest

SEE = "Write a sweep file with `isweep init`, or copy one from 'Your own images' in the README"
"""Hint for a user whose file has no keys."""
TABLE_SUFFIXES = (".csv", ".tsv")
"""Endings of the names of tables. A table cannot be a sweep file."""

SweepSource = str | Path | Mapping[str, Any] | SweepSpec
"""A sweep: the name of a preset, the path of a sweep file, the content of a sweep file, or a
:class:`SweepSpec`."""


@dataclass(frozen=True)
class _Document:
    """The content of a sweep file.

    Attributes:
        content: Keys and values.
        origin: Name of the file in messages.
        folder: Folder to which the relative paths in the file refer.
        text: Text of the file. It is empty if the sweep does not come from a file.
    """

    content: dict[str, Any]
    origin: str
    folder: Path = Path()
    text: str = ""


def load_sweep(
    source: SweepSource,
    changes: Mapping[str, object] | None = None,
    *,
    recipes: Path | None = None,
    listings: Listings | None = None,
) -> SweepSpec:
    """Read a sweep from a preset, a file, a mapping or a spec.

    Args:
        source: The sweep. Text is the name of a preset, or a path if it has a ``/`` or ends in
            ``.yaml`` or ``.yml``. Relative paths in a mapping start in the working directory.
        changes: New values by dotted key (``recipe.epochs``). They replace values of the
            sweep.
        recipes: Folder of the recipes that searches wrote, or None if there is no such folder.
        listings: Cache for listings of your own data. isweep lists data only if class pairs
            contain names of classes.

    Raises:
        ConfigError: The sweep has mistakes. The message lists all mistakes with key and value.
    """
    changes = changes or {}
    if isinstance(source, SweepSpec) and not changes:
        raise_problems(unknown_names(source.model_dump(by_alias=True)))
        return source
    document = _read(source)
    spec = _spec_of(document, changes, recipes)
    return _with_absolute_paths(spec, document.folder, listings or Listings())


def _read(source: SweepSource) -> _Document:
    """Return the content of a sweep from a preset, a file, a mapping or a spec."""
    if isinstance(source, SweepSpec):
        source = source.model_dump(mode="json", exclude_unset=True, by_alias=True)
    if isinstance(source, Mapping):
        origin = "the sweep"
        # Tuples and arrays become lists here. The reason: isweep looks for shorthands only in
        # lists.
        content = json.loads(_plain_json(dict(source), origin))
        return _Document(content, origin)
    if isinstance(source, Path) or is_path(source):
        path = Path(source)
        if os.path.isdir(path):
            raise ConfigError(
                f"{path} is a folder, not a sweep file",
                hint="Give the path of a sweep file. If the folder contains your images, "
                f"write a sweep file with `{shlex.join(['isweep', 'init', str(path)])}`",
            )
        if path.suffix.lower() in TABLE_SUFFIXES and path.is_file():
            raise ConfigError(
                f"{path} is a table, not a sweep file",
                hint=f"For a table of results, use `isweep predict --curve {path}`. For a "
                f"table of images, write a sweep file with `isweep init {path}`",
            )
        text = read_file(path, "sweep file", "preset", preset_names())
        document = _Document(_parse(text, str(source)), str(source), path.parent, text)
        # The folder of the sweep file may contain the Python modules of your own networks.
        find_modules_in(path.parent)
        return document
    if source not in preset_names():
        raise unknown_name("preset", source, preset_names())
    return _preset(source)


@cache
def _preset(name: str) -> _Document:
    """Return the content of a preset.

    The content is cached. This is safe, because :func:`with_changes` changes only a copy.
    """
    origin = f"preset {name}"
    return _Document(_parse(preset_text(name), origin), origin)


def parse_sweep(text: str, *, origin: str, folder: Path | None = None) -> SweepSpec:
    """Read the text of a sweep file.

    Args:
        text: Content of the file.
        origin: Name of the file in messages.
        folder: Folder in which paths of recipe files start. None means the working directory.
    """
    return _spec_of(_Document(_parse(text, origin), origin, folder or Path(), text), {}, None)


def _parse(text: str, origin: str) -> dict[str, Any]:
    """Return the keys and values of a sweep file."""
    if not text.strip():
        raise ConfigError(f"{origin} is empty", hint=SEE)
    content = read_plain(text, origin)
    if not isinstance(content, dict):
        raise not_a_mapping(origin, content, SEE)
    return content


def sweep_text(spec: SweepSpec) -> str:
    """Return the text of a sweep file.

    A sweep that is read from this text is equal to ``spec``.
    """
    return write_plain(spec.model_dump(mode="json", exclude_unset=True, by_alias=True))


def find_modules_in(folder: Path) -> None:
    """Let Python also import your own networks from a folder. Python searches it last."""
    name = str(folder.absolute())
    if name not in sys.path:
        sys.path.append(name)


def _spec_of(document: _Document, changes: Mapping[str, object], recipes: Path | None) -> SweepSpec:
    """Change values of a sweep file, and return its sweep.

    Args:
        document: The file.
        changes: New values by dotted key.
        recipes: Folder of the recipes that searches wrote.
    """
    content = with_changes(document.content, changes)
    if changes:
        # Here too, tuples and arrays become lists.
        content = json.loads(_plain_json(content, document.origin))
    if isinstance(content.get("datasets"), list):
        for index, choice in enumerate(content["datasets"]):
            if isinstance(choice, str):
                content["datasets"][index] = {"name": choice}
    has_empty_recipe = "recipe" in content and content["recipe"] is None
    resolved = resolve_recipe(
        content.pop("recipe", None), content.get("name"), document.folder, recipes
    )
    if resolved.recipe is not None:
        content["recipe"] = resolved.recipe
    elif has_empty_recipe:
        content["recipe"] = None  # the message says that the key has no value
    origin = document.origin
    if changes:
        origin = f"{origin} with changed values of {', '.join(map(str, changes))}"
    try:
        # A key of a sweep file is the alias of a field. The field's name itself is not a key.
        spec = SweepSpec.model_validate_json(
            _plain_json(content, document.origin), by_alias=True, by_name=False
        )
    except ValidationError as error:
        # A changed value has no line in the file.
        text = "" if changes else document.text
        raise_problems(_problems_of(error.errors(), content, origin, text))
        raise
    raise_problems(unknown_names(spec.model_dump(by_alias=True)))
    if resolved.tuned is not None:
        return without_unused_rows(spec, resolved.tuned)
    return spec


def _problems_of(
    details: list[ErrorDetails], content: dict[str, Any], origin: str, text: str
) -> list[SweepError]:
    """Return all mistakes of a sweep file: pydantic's errors and unknown names."""
    places = [detail["loc"] for detail in details]
    # If a value may have one of several types, pydantic reports an error for each type. Report
    # only the last error.
    problem_at: dict[tuple[int | str, ...], SweepError] = {}
    for detail in details:
        if not _is_consequence(detail, places):
            problem_at[keys_in_file(detail["loc"], content)] = problem_of(
                detail, origin, content, text
            )
    problems = list(problem_at.values())
    is_named = ("datasets",) in problem_at
    if (
        () not in places
        and not is_named
        and not content.get("datasets")
        and not content.get("worlds")
    ):
        problems.append(ConfigError(f"{origin} has neither `datasets` nor `worlds`", hint=DATASET))
    if isinstance(content.get("models"), list) and isinstance(content.get("datasets"), list):
        problems += unknown_names(content)
    return problems


def _is_consequence(detail: ErrorDetails, places: list[tuple[int | str, ...]]) -> bool:
    """Return whether an error is only a consequence of another error, at one of ``places``."""
    place = detail["loc"]
    if detail["type"] == "too_short":
        # The list counts as too short only because its items are wrong.
        return any(len(other) > len(place) and other[: len(place)] == place for other in places)
    if detail["type"] == "missing":
        # The line lacks the space after the colon, for example ``path:./images``.
        *parents, name = place
        siblings = [other[-1] for other in places if other and list(other[:-1]) == parents]
        return any(str(sibling).startswith(f"{name}:") for sibling in siblings)
    return False


def _with_absolute_paths(spec: SweepSpec, folder: Path, listings: Listings) -> SweepSpec:
    """Return a sweep with absolute paths of your own data.

    A relative path refers to the folder of the sweep file. It does not depend on the working
    directory.
    """
    if all(choice.user_source is None for choice in spec.datasets):
        return spec  # worlds refer to these datasets, so they must not be copied
    datasets = tuple(_with_absolute_path(choice, folder, listings) for choice in spec.datasets)
    return spec.model_copy(update={"datasets": datasets})


def _with_absolute_path(choice: DatasetChoice, folder: Path, listings: Listings) -> DatasetChoice:
    """Return a dataset with an absolute path. If class pairs contain names, add its classes."""
    if choice.user_source is None:
        return choice
    check_own_options(user_dataset_spec(choice.name, choice.user_source))
    try:
        path = folder.absolute() / Path(choice.user_source.path).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"`datasets.{choice.name}.own.path` starts with ~, but isweep cannot find this "
            f"home folder: {choice.user_source.path}",
            hint="Write the absolute path. It starts with /",
        ) from None
    own_data = choice.user_source.model_copy(update={"path": str(path)})
    pairs = choice.class_pairs or ()
    has_names = any(isinstance(label, str) for pair in pairs for label in pair)
    if has_names and not own_data.class_names:
        # To convert names to indices, isweep needs all classes. Image size and channels do not
        # matter here.
        prepared = PreparedSpec(dataset=choice.name, image_size=4, channels=own_data.channels)
        request = RawRequest(user_dataset_spec(choice.name, own_data), prepared, path)
        own_data = own_data.model_copy(update={"class_names": listings.of(request).label_names})
    return choice.model_copy(update={"user_source": own_data})


def _plain_json(document: object, origin: str) -> bytes:
    """Return a sweep as JSON.

    Numbers and arrays of NumPy are converted to plain numbers and lists.
    """

    def plain(value: Any) -> object:
        if hasattr(value, "tolist"):
            return value.tolist()
        raise TypeError(repr(value)[:200])

    def check_keys(pairs: list[tuple[str, object]]) -> None:
        counts = Counter(key for key, _ in pairs)
        repeated = next((key for key, count in counts.items() if count > 1), None)
        if repeated is not None:
            raise ConfigError(
                f"{origin} has the key {repeated!r} twice in one mapping, once as a number and "
                "once as text",
                hint="Remove one of them",
            )

    try:
        text = json.dumps(document, ensure_ascii=False, default=plain)
        json.loads(text, object_pairs_hook=check_keys)
        return text.encode()
    except TypeError as error:
        raise ConfigError(
            f"{origin} has a value that is not allowed in a sweep file: {error}",
            hint="Use numbers, text, lists and mappings",
        ) from None
    except UnicodeEncodeError as error:
        letter = ascii(error.object[error.start])
        raise ConfigError(
            f"{origin} has the character {letter}, which cannot be saved as UTF-8",
            hint="Remove the character",
        ) from None
    except (ValueError, RecursionError):  # a circular reference, or more levels than JSON allows
        raise ConfigError(
            f"{origin} has a list or mapping that contains itself, or too many nested levels",
            hint="Write each value in full, with fewer levels",
        ) from None
