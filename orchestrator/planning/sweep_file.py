"""A preset or sweep file, read into a :class:`SweepSpec` with every mistake reported at once.

The file is YAML 1.2 (so ``1e-3`` is a number, ``no`` a word and ``12:30`` not a number of minutes)
of plain values. What it has no use for is refused, so that no value is guessed and a hostile file
costs nothing: anchors, tags and dates, keys that stand twice, more nesting or values than any sweep
has.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.planning.plain_yaml import read_plain, write_plain
from orchestrator.planning.recipe_files import (
    SEARCHED,
    TUNED,
    tuned_path,
    with_recipe_file,
    with_tuned_cells,
)
from orchestrator.planning.sweep_changes import with_changes
from orchestrator.planning.sweep_mistakes import DATASET, problem_of, raise_problems, unknown_names
from orchestrator.planning.written_files import is_path, read_file
from search_spaces.datasets import own_dataset_spec
from search_spaces.errors import (
    ConfigError,
    SweepError,
    unknown_name,
)
from search_spaces.specs import PreparedSpec
from search_spaces.sweeps import DatasetChoice, SweepSpec
from tasks.prepared.listings import Listings
from tasks.sources import check_own_options
from tasks.sources.base import RawRequest

SEE = "see README, 'Your own images', or let isweep init write one"

SweepSource = str | Path | Mapping[str, Any] | SweepSpec
"""A preset's name, a sweep file's path, the content of one as a mapping, or a spec made in
Python."""


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    folder = resources.files("search_spaces") / "presets"
    return sorted(
        Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def load_sweep(
    source: SweepSource,
    changes: Mapping[str, object] | None = None,
    *,
    recipes: Path | None = None,
    listings: Listings | None = None,
) -> SweepSpec:
    """Read a sweep from wherever it is written.

    Text is a preset's name, or a path where it has a ``/`` or ends in ``.yaml``/``.yml``; paths in
    a mapping start at the working directory. ``changes`` by dotted key (``recipe.epochs``) hold
    over what is written; ``recipes`` is the folder of the recipes that searches wrote and that may
    be named. ``listings`` get those of own data whose class pairs are named. ConfigError names the
    file and every mistake in it with its key, value and what is allowed.
    """
    changes, folder, origin = changes or {}, Path(), "the sweep"
    if isinstance(source, SweepSpec):
        if not changes:
            raise_problems(unknown_names(source.model_dump()))
            return source
        source = source.model_dump(mode="json", exclude_unset=True, by_alias=True)
    if isinstance(source, Mapping):
        document = dict(source)
    elif isinstance(source, Path) or is_path(source):
        folder, origin = Path(source).parent, str(source)
        document = _document(read_file(Path(source)), origin)
        # As a script's own folder is: modules of one's own networks lie beside the sweep file.
        find_modules_in(folder)
    elif source in preset_names():
        origin = f"preset {source}"
        text = (resources.files("search_spaces") / "presets" / f"{source}.yaml").read_text(
            encoding="utf-8"
        )
        document = _document(text, origin)
    else:
        raise unknown_name("preset", source, preset_names())
    spec = _spec_of(document, origin, folder, changes, recipes)
    return _own_paths(spec, folder, listings or Listings())


def parse_sweep(text: str, *, origin: str, folder: Path | None = None) -> SweepSpec:
    """Read the text of a sweep file, which messages call ``origin``; its recipe files lie in
    ``folder``.
    """
    return _spec_of(_document(text, origin), origin, folder or Path(), {}, None)


def _document(text: str, origin: str) -> dict[str, Any]:
    if not text.strip():
        raise ConfigError(f"{origin} must not be empty", way_out=SEE)
    document = read_plain(text, origin)
    if not isinstance(document, dict):
        raise ConfigError(
            f"{origin} must be a mapping of keys to values", type(document).__name__, SEE
        )
    return document


def sweep_text(spec: SweepSpec) -> str:
    """Write a sweep as a sweep file that :func:`load_sweep` reads back to an equal one."""
    return write_plain(spec.model_dump(mode="json", exclude_unset=True, by_alias=True))


def find_modules_in(folder: Path) -> None:
    """Let modules of one's own networks be found in a folder, after all others of their name."""
    if (name := str(folder.absolute())) not in sys.path:
        sys.path.append(name)


def _spec_of(
    document: dict[str, Any],
    origin: str,
    folder: Path,
    changes: Mapping[str, object],
    recipes: Path | None,
) -> SweepSpec:
    document = with_changes(document, changes)
    if isinstance(document.get("datasets"), list):
        document["datasets"] = [
            {"name": d} if isinstance(d, str) else d for d in document["datasets"]
        ]
    named = tuned_path(document.pop("recipe", None), document.get("name"), recipes)
    recipe, tuned = with_recipe_file(named, folder), None
    if isinstance(recipe, dict) and isinstance(recipe.get(TUNED), dict):
        tuned = recipe.pop(TUNED)
    said = [
        name for name in SEARCHED if tuned is not None and isinstance(named, dict) and name in named
    ]
    if said:
        raise ConfigError(
            "What was searched of a recipe cannot be changed for all models and datasets beside it",
            ", ".join(f"recipe.{name}" for name in said),
            "change it for some in recipe.overrides, or start from another recipe",
        )
    if recipe is not None:
        document["recipe"] = recipe
    try:
        spec = SweepSpec.model_validate_json(_plain_json(document, origin))
    except ValidationError as error:
        details = error.errors()
        places = [detail["loc"] for detail in details]
        problems: list[SweepError] = [
            problem_of(detail, origin, document)
            for detail in details
            # That a list is too short is no fault of its own where only its bad items made it so.
            if detail["type"] != "too_short"
            or not any(
                place != (at := detail["loc"]) and place[: len(at)] == at for place in places
            )
        ]
        if () not in places and not document.get("datasets") and not document.get("worlds"):
            problems.append(
                ConfigError(f"{origin}: a sweep needs datasets, or worlds", way_out=DATASET)
            )
        names = (
            document
            if all(isinstance(document.get(k), list) for k in ("models", "datasets"))
            else {}
        )
        raise_problems(problems + unknown_names(names))
        raise
    raise_problems(unknown_names(spec.model_dump()))
    return spec if tuned is None else with_tuned_cells(spec, tuned)


def _own_paths(spec: SweepSpec, folder: Path, listings: Listings) -> SweepSpec:
    """Take paths of own data from the sweep file's folder: the file works from wherever it is
    run.
    """

    def own_path(choice: DatasetChoice) -> DatasetChoice:
        if choice.own is None:
            return choice
        check_own_options(own_dataset_spec(choice.name, choice.own))
        try:
            path = folder.absolute() / Path(choice.own.path).expanduser()
        except RuntimeError:
            rule = f"datasets.{choice.name}.own.path must start with a home folder that exists"
            raise ConfigError(rule, choice.own.path) from None
        own = choice.own.model_copy(update={"path": str(path)})
        pairs = choice.class_pairs or ()
        if not own.class_names and any(isinstance(name, str) for pair in pairs for name in pair):
            # A pair names some, and their places are needed; they depend on neither size nor
            # channels.
            prepared = PreparedSpec(dataset=choice.name, image_size=4, channels=own.channels)
            request = RawRequest(own_dataset_spec(choice.name, own), prepared, path)
            names = listings.of(request).label_names
            own = own.model_copy(update={"class_names": names})
        return choice.model_copy(update={"own": own})

    if all(choice.own is None for choice in spec.datasets):
        return spec  # a copy would have datasets of its own, which one of worlds must not
    return spec.model_copy(update={"datasets": tuple(map(own_path, spec.datasets))})


def _plain_json(document: object, origin: str) -> bytes:
    """Return a sweep as JSON; NumPy's numbers and arrays, which notebooks hold, as what is in
    them.
    """

    def plain(value: Any) -> object:
        if hasattr(value, "tolist"):
            return value.tolist()
        raise TypeError(repr(value)[:200])

    try:
        return json.dumps(document, ensure_ascii=False, default=plain).encode()
    except TypeError as error:
        hint = "use numbers, text, lists and mappings"
        raise ConfigError(f"{origin} must hold plain values only", str(error), hint) from None
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{origin} must be Unicode text", ascii(error.object[error.start])
        ) from None
