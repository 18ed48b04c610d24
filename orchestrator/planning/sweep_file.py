"""A preset or sweep file, read into a :class:`SweepSpec` with every mistake reported at once.

The file is YAML 1.2 (so ``1e-3`` is a number, ``no`` a word and ``12:30`` not a number of minutes), of plain
values only: see :mod:`orchestrator.planning.sweep_file`.
"""

from __future__ import annotations

import copy
import difflib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.planning.plain_yaml import plain_json, read_plain, read_text, write_plain
from search_spaces.datasets import DATASETS, dataset_spec, own_dataset_spec
from search_spaces.errors import ConfigError, SweepError, collect, unknown_name
from search_spaces.models import model_spec
from search_spaces.recipes import RECIPES
from search_spaces.specs import DEFAULT_ESTIMATORS, NAME_PATTERN, PreparedSpec
from search_spaces.sweeps import DatasetChoice, OwnSourceSpec, RecipeOverride, SweepSpec
from tasks.sources import RawRequest, check_own_kind, check_own_options, source_for

# Single values of a sweep changed for one run: ``--set recipe.epochs=3``.

WAY_OUT = "e.g. --set recipe.epochs=3 --set train_sizes='[100, 200]'"


def read_changes(words: Iterable[str]) -> dict[str, object]:
    """Read ``KEY=VALUE`` words, the value as in a sweep file.

    Raises:
        ConfigError: for a word that is none, or two values for one key.
    """
    changes: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key or not value.strip():
            raise ConfigError("--set must be KEY=VALUE", word, WAY_OUT)
        read = read_plain(value, f"--set {key}")
        if key in changes and changes[key] != read:
            raise ConfigError(f"--set {key} must be given one value", f"{changes[key]!r} and {read!r}")
        changes[key] = read
    return changes


def with_changes(document: Mapping[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
    """Return a sweep file's content with values put at dotted keys; numbers in a key are places in a list.

    Raises:
        ConfigError: for a key that leads through something that has no keys.
    """
    changed = copy.deepcopy(dict(document))
    for key, value in changes.items():
        if not isinstance(key, str):
            raise ConfigError("changes must have dotted keys", repr(key), "e.g. {'recipe.epochs': 3}")
        *parents, last = key.split(".")
        holder: Any = changed
        for part in parents:
            holder = _inside(holder, part, key)
        if isinstance(holder, list):
            _ = _inside(holder, last, key)
            holder[int(last)] = value
        elif isinstance(holder, dict):
            holder[last] = value
        else:
            raise ConfigError(f"--set {key}: nothing can be set there", repr(holder), WAY_OUT)
    return changed


def _inside(holder: Any, part: str, key: str) -> Any:
    if isinstance(holder, list):
        if not part.isdecimal() or int(part) >= len(holder):
            raise ConfigError(f"--set {key}: the list has places 0 to {len(holder) - 1}", part, WAY_OUT)
        if isinstance(holder[int(part)], str):
            # A dataset or model that is written as its name alone.
            holder[int(part)] = {"name": holder[int(part)]}
        return holder[int(part)]
    if not isinstance(holder, dict):
        raise ConfigError(f"--set {key}: nothing can be set there", repr(holder), WAY_OUT)
    if part == "recipe" and isinstance(holder.get(part), str):
        holder[part] = {"from": holder[part]}
    return holder.setdefault(part, {})


# Recipes that a search wrote, named by a sweep: found below the root, and cut to the sweep's own cells.

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


MAX_FILE_BYTES = 1_000_000
MIN_SIDE = 4
MAX_RECIPE_FILES = 5
MAX_PROBLEMS = 20
"""So many are named; what is behind them is counted."""


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    folder = resources.files("search_spaces") / "presets"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


SweepSource = str | Path | Mapping[str, Any] | SweepSpec
"""A preset's name, a sweep file's path, the content of one as a mapping, or a spec made in Python."""


def load_sweep(
    source: SweepSource, changes: Mapping[str, object] | None = None, *, recipes: Path | None = None
) -> SweepSpec:
    """Read a sweep from wherever it is written.

    Args:
        source: Text is a preset's name, or a path where it has a ``/`` or ends in ``.yaml``/``.yml``. Paths
            in a mapping start at the working directory.
        changes: Values by dotted key (``recipe.epochs``) that hold over what is written.
        recipes: Folder of the recipes that searches wrote and that may be named; None knows of none.

    Raises:
        ConfigError: naming the file and every mistake in it with its key path, value and what is allowed.
    """
    if isinstance(source, SweepSpec):
        if changes:
            source = source.model_dump(mode="json", exclude_unset=True, by_alias=True)
        else:
            _report(_unknown_names(source.model_dump()))
            return source
    if isinstance(source, Mapping):
        return _own_paths(_spec_of(dict(source), "the sweep", Path(), changes or {}, recipes), Path())
    if isinstance(source, Path) or _is_path(source):
        path = Path(source)
        text = _read_file(path)
        # As a script's own folder is: modules of one's own networks lie beside the sweep file.
        find_modules_in(path.parent)
        return _own_paths(
            parse_sweep(text, origin=str(source), folder=path.parent, changes=changes, recipes=recipes),
            path.parent,
        )
    if source not in preset_names():
        raise unknown_name("preset", source, preset_names())
    text = (resources.files("search_spaces") / "presets" / f"{source}.yaml").read_text(encoding="utf-8")
    return parse_sweep(text, origin=f"preset {source}", changes=changes, recipes=recipes)


def parse_sweep(
    text: str,
    *,
    origin: str,
    folder: Path | None = None,
    changes: Mapping[str, object] | None = None,
    recipes: Path | None = None,
) -> SweepSpec:
    """Turn the text of a sweep file into a validated spec; see :func:`load_sweep` for what is raised.

    Args:
        text: YAML.
        origin: What messages call it.
        folder: Where recipe files that it names lie; None for the working directory.
        changes: See :func:`load_sweep`.
        recipes: See :func:`load_sweep`.
    """
    document = _load_yaml(text, origin)
    if not isinstance(document, dict):
        found = type(document).__name__
        raise ConfigError(
            f"{origin} must be a mapping of keys to values", found, "see README, 'Your own sweep'"
        )
    return _spec_of(document, origin, folder or Path(), changes or {}, recipes)


def sweep_text(spec: SweepSpec) -> str:
    """Write a sweep as a sweep file that :func:`load_sweep` reads back to an equal one."""
    return write_plain(spec.model_dump(mode="json", exclude_unset=True, by_alias=True))


def _spec_of(
    document: dict[str, Any],
    origin: str,
    folder: Path,
    changes: Mapping[str, object],
    recipes: Path | None,
) -> SweepSpec:
    document = with_changes(document, changes)
    if isinstance(document.get("datasets"), list):
        document["datasets"] = [{"name": d} if isinstance(d, str) else d for d in document["datasets"]]
    named = tuned_path(document.get("recipe"), document.get("name"), recipes)
    recipe, tuned = split_tuned(_with_recipe_file(named, folder))
    if tuned is not None:
        check_beside(named)
    document["recipe"] = recipe
    if document["recipe"] is None:
        del document["recipe"]
    try:
        spec = SweepSpec.model_validate_json(plain_json(document, origin))
    except ValidationError as error:
        problems: list[SweepError] = [_problem(detail, origin) for detail in _own_faults(error.errors())]
        names = document if all(isinstance(document.get(k), list) for k in ("models", "datasets")) else {}
        _report(problems + _unknown_names(names))
        raise
    _report(_unknown_names(spec.model_dump()))
    return spec if tuned is None else with_tuned_cells(spec, tuned)


def _with_recipe_file(recipe: object, folder: Path, depth: int = 0) -> object:
    """Put the content of a recipe file in place of its path; what stands beside the path holds over it."""
    outer: object = {"from": recipe} if isinstance(recipe, str) else recipe
    if not isinstance(outer, dict):
        return recipe
    name = outer.get("from")
    if not isinstance(name, str) or not _is_path(name):
        return recipe
    path = folder / os.path.expanduser(name)  # the home of nobody stays as it is written, and is not there
    if depth > MAX_RECIPE_FILES:
        raise ConfigError("Recipe files must not start from one another", str(path))
    content = _load_yaml(_read_file(path, "recipe file"), str(path))  # as a path, text would be quoted
    inner = _with_recipe_file(content, path.parent, depth + 1) if isinstance(content, dict) else content
    if not isinstance(inner, dict):
        raise ConfigError(f"{path} must be a mapping", type(inner).__name__, "see README, 'Recipes'")
    parts = [part["overrides"] for part in (inner, outer) if "overrides" in part]
    if not all(isinstance(rows, list) for rows in parts):
        raise ConfigError(f"overrides of {path} must be a list", "something else", "see README, 'Recipes'")
    rows = [row for rows in parts for row in rows]
    merged = {**inner, **{key: value for key, value in outer.items() if key != "from"}}
    return {**merged, **({"overrides": rows} if rows else {})}


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith((".yaml", ".yml"))


def _report(problems: list[SweepError]) -> None:
    """Raise all problems as one; the first of them where there are too many to read."""
    more = len(problems) - MAX_PROBLEMS
    collect(problems[:MAX_PROBLEMS] + ([ConfigError(f"and {more:,} more like these")] if more > 0 else []))


def _own_paths(spec: SweepSpec, folder: Path) -> SweepSpec:
    """Take paths of own data from the sweep file's folder: the file works from wherever it is run."""
    return spec.model_copy(update={"datasets": tuple(_own_path(choice, folder) for choice in spec.datasets)})


def _own_path(choice: DatasetChoice, folder: Path) -> DatasetChoice:
    if choice.own is None:
        return choice
    check_own_options(own_dataset_spec(choice.name, choice.own))
    try:
        path = folder / Path(choice.own.path).expanduser()
    except RuntimeError:
        rule = f"datasets.{choice.name}.own.path must start with a home folder that exists"
        raise ConfigError(rule, choice.own.path) from None
    own = choice.own.model_copy(update={"path": str(path)})
    if not own.class_names and any(
        isinstance(name, str) for pair in choice.class_pairs or () for name in pair
    ):
        own = own.model_copy(update={"class_names": _class_names(choice.name, own)})
    return choice.model_copy(update={"own": own})


def _class_names(name: str, own: OwnSourceSpec) -> tuple[str, ...]:
    """Read the names of the classes from the data: a class pair names some, and their places are needed."""
    dataset = own_dataset_spec(name, own)
    # Classes depend on neither size nor channels.
    spec = PreparedSpec(dataset=name, image_size=MIN_SIDE, channels=own.channels)
    return source_for(own.kind).list_items(RawRequest(dataset, spec, Path(own.path))).label_names


def _read_file(path: Path, kind: str = "sweep file") -> str:
    try:
        return read_text(path, kind, MAX_FILE_BYTES)
    except FileNotFoundError:
        what, names = ("presets", preset_names()) if kind == "sweep file" else ("known recipes", RECIPES)
        raise ConfigError(f"The {kind} must exist", str(path), f"{what} are: {', '.join(names)}") from None


def _load_yaml(text: str, origin: str) -> object:
    if text.isspace() or not text:
        raise ConfigError(f"{origin} must not be empty", way_out="see README, 'Your own sweep'")
    return read_plain(text, origin)


def _own_faults(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Leave out that a list is too short where only its bad items made it so."""
    places = [detail["loc"] for detail in details]

    def has_bad_item(loc: tuple[int | str, ...]) -> bool:
        return any(len(place) > len(loc) and place[: len(loc)] == loc for place in places)

    return [d for d in details if not (d["type"] == "too_short" and has_bad_item(d["loc"]))]


def _model_at(loc: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the model whose keys belong at a place in a sweep file."""
    model: type[BaseModel] = SweepSpec
    for part in loc:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return model


def _model_in(annotation: object) -> type[BaseModel] | None:
    """Find the model in an annotation such as ``tuple[Model, ...]`` or ``Model | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


RULES = {
    "tuple_type": "must be a list, e.g. [a, b]",
    "list_type": "must be a list, e.g. [a, b]",
    "dict_type": "must be a mapping of keys to values",
    "model_type": "must be a mapping of keys to values",
}
"""Rules in the words of a sweep file, by the type of the error."""
NAME_RULE = "must be lower case letters, digits, - and _, at most 64, the first a letter"


def _problem(detail: ErrorDetails, origin: str) -> ConfigError:
    where = ".".join(str(part) for part in detail["loc"]) or origin
    if detail["type"] == "extra_forbidden":
        fields = _model_at(detail["loc"][:-1]).model_fields
        known = [field.alias or name for name, field in fields.items()]
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return ConfigError(f"{where}: unknown key", way_out=f"{hint}known keys: {', '.join(known)}")
    value = detail["input"]
    shown = repr(value) if not isinstance(value, dict) else f"keys {', '.join(map(str, value))}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "missing":
        what = "value" if isinstance(detail["loc"][-1], int) else "key"
        return ConfigError(f"{where}: this {what} is required")
    if not detail["loc"]:
        return ConfigError(f"{where}: {message}")  # the rule names what it found
    message = RULES.get(detail["type"], message)
    if detail["type"] == "too_short" and detail["ctx"]["min_length"] == 1:
        message = "must not be empty"
    if detail["type"] == "too_long":
        message = f"must have at most {detail['ctx']['max_length']} values"
    if detail["type"] == "string_pattern_mismatch" and detail["ctx"]["pattern"] == NAME_PATTERN:
        message = NAME_RULE
    return ConfigError(f"{where}: {message[0].lower()}{message[1:]}", shown[:200])


def _unknown_names(document: dict[str, Any]) -> list[SweepError]:
    checks: list[tuple[Callable[[str], object], object]] = [
        *((model_spec, _from(choice)) for choice in document.get("models", ())),
        *(check for choice in document.get("datasets", ()) for check in _dataset_checks(choice)),
        (_check_recipe, _from(document.get("recipe"))),
        *((_check_estimator, name) for name in document.get("estimators") or ()),
    ]
    problems: list[SweepError] = []
    for check, name in checks:
        try:
            if isinstance(name, str):
                check(name)
        except SweepError as error:
            problems.append(error)
        if len(problems) > MAX_PROBLEMS:
            break
    return problems


def _from(choice: object) -> object:
    return choice.get("from", choice.get("from_")) if isinstance(choice, dict) else choice


def _dataset_checks(choice: object) -> list[tuple[Callable[[str], object], object]]:
    if not isinstance(choice, dict):
        return []
    own = choice.get("own")
    if choice.get("made") is not None:
        return [(_check_own_name, choice.get("name"))]
    if own is None:
        return [(dataset_spec, choice.get("name"))]
    kind = own.get("kind") if isinstance(own, dict) else None
    return [(check_own_kind, kind), (_check_own_name, choice.get("name"))]


def _check_own_name(name: str) -> None:
    if name in DATASETS:
        found = f"{name!r} is in the table of datasets"
        raise ConfigError("Your own dataset needs a name of its own", found, "rename it")


def _check_recipe(name: str) -> None:
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)


def _check_estimator(name: str) -> None:
    if name not in DEFAULT_ESTIMATORS:
        from tasks.measures.estimators import table_width

        table_width((name,), 0)


def find_modules_in(folder: Path) -> None:
    """Let modules of one's own networks be found in a folder, after all others of their name."""
    if (name := str(folder.absolute())) not in sys.path:
        sys.path.append(name)
