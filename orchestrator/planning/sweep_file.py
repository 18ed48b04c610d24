"""A preset or sweep file, read into a :class:`SweepSpec` with every mistake reported at once.

The file is YAML 1.2 (so ``1e-3`` is a number, ``no`` a word and ``12:30`` not a number of minutes)
of plain values. What it has no use for is refused, so that no value is guessed and a hostile file
costs nothing: anchors, tags and dates, keys that stand twice, more nesting or values than any sweep
has.
"""

from __future__ import annotations

import copy
import io
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent
from ruamel.yaml.nodes import ScalarNode

from search_spaces.datasets import DATASETS, dataset_spec, own_dataset_spec
from search_spaces.errors import (
    ConfigError,
    SweepError,
    collect,
    nearest,
    nearest_path,
    unknown_name,
)
from search_spaces.models import model_spec
from search_spaces.recipes import RECIPES
from search_spaces.specs import DEFAULT_ESTIMATORS, NAME_PATTERN, PreparedSpec
from search_spaces.sweeps import DatasetChoice, RecipeChoice, RecipeOverride, SweepSpec
from tasks.prepared.listings import Listings
from tasks.sources import check_own_kind, check_own_options
from tasks.sources.base import RawRequest

MAX_FILE_BYTES, MAX_NESTING, MAX_VALUES, MAX_RECIPE_FILES = 1_000_000, 20, 20_000, 5
"""Reading goes at about 50,000 values a second, and a sweep of 100,000 trials needs a few
hundred."""
MAX_PROBLEMS = 20
"""So many are named; what is behind them is counted."""
SEE = "see README, 'Your own images', or let isweep init write one"
DATASET = "write e.g. datasets: [digits]; isweep datasets lists them"
MODEL = (
    "write e.g. models: [small_cnn], or [{from: small_cnn, name: mine}]; isweep models lists "
    "what to name"
)
RECIPE = "write e.g. recipe: {from: demo, epochs: 3}; isweep recipes lists what to start from"

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
            _report(_unknown_names(source.model_dump()))
            return source
        source = source.model_dump(mode="json", exclude_unset=True, by_alias=True)
    if isinstance(source, Mapping):
        document = dict(source)
    elif isinstance(source, Path) or _is_path(source):
        folder, origin = Path(source).parent, str(source)
        document = _document(_read_file(Path(source)), origin)
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
        raise ConfigError(f"{origin} must not be empty", hint=SEE)
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
    named = _tuned_path(document.pop("recipe", None), document.get("name"), recipes)
    recipe, tuned = _with_recipe_file(named, folder), None
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
            _problem(detail, origin, document)
            for detail in details
            # That a list is too short is no fault of its own where only its bad items made it so.
            if detail["type"] != "too_short"
            or not any(
                place != (at := detail["loc"]) and place[: len(at)] == at for place in places
            )
        ]
        if () not in places and not document.get("datasets") and not document.get("worlds"):
            problems.append(
                ConfigError(f"{origin}: a sweep needs datasets, or worlds", hint=DATASET)
            )
        names = (
            document
            if all(isinstance(document.get(k), list) for k in ("models", "datasets"))
            else {}
        )
        _report(problems + _unknown_names(names))
        raise
    _report(_unknown_names(spec.model_dump()))
    return spec if tuned is None else _with_tuned_cells(spec, tuned)


def _with_recipe_file(recipe: object, folder: Path, depth: int = 0) -> object:
    """Put the content of a recipe file in place of its path; what stands beside the path holds over
    it.
    """
    outer: object = {"from": recipe} if isinstance(recipe, str) else recipe
    name = outer.get("from") if isinstance(outer, dict) else None
    if not isinstance(outer, dict) or not isinstance(name, str) or not _is_path(name):
        return recipe
    path = folder / os.path.expanduser(
        name
    )  # the home of nobody stays as it is written, and is not there
    if depth > MAX_RECIPE_FILES:
        raise ConfigError("Recipe files must not start from one another", str(path))
    content = read_plain(
        _read_file(path, "recipe file"), str(path)
    )  # as a path, text would be quoted
    inner = (
        _with_recipe_file(content, path.parent, depth + 1) if isinstance(content, dict) else content
    )
    if not isinstance(inner, dict):
        raise ConfigError(f"{path} must be a mapping", type(inner).__name__, RECIPE)
    parts = [part["overrides"] for part in (inner, outer) if "overrides" in part]
    if not all(isinstance(rows, list) for rows in parts):
        raise ConfigError(f"overrides of {path} must be a list", "something else", RECIPE)
    rows = [row for rows in parts for row in rows]
    merged = {**inner, **{key: value for key, value in outer.items() if key != "from"}}
    return {**merged, **({"overrides": rows} if rows else {})}


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith((".yaml", ".yml"))


def _read_file(path: Path, kind: str = "sweep file") -> str:
    try:
        return read_text(path, kind, MAX_FILE_BYTES)
    except FileNotFoundError:
        what, names = (
            ("presets", preset_names()) if kind == "sweep file" else ("known recipes", RECIPES)
        )
        hint = f"{what} are: {', '.join(names)}; {nearest_path(path)}"
        raise ConfigError(f"The {kind} must exist", str(path), hint) from None


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


# Single values of a sweep changed for one run: ``--set recipe.epochs=3``.

HINT = "e.g. --set recipe.epochs=3 --set train_sizes='[100, 200]'"


def read_changes(words: Iterable[str]) -> dict[str, object]:
    """Read ``KEY=VALUE`` words, the value as in a sweep file; each key once."""
    changes: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key or not value.strip():
            raise ConfigError("--set must be KEY=VALUE", word, HINT)
        read = read_plain(value, f"--set {key}")
        if key in changes and changes[key] != read:
            raise ConfigError(
                f"--set {key} must be given one value", f"{changes[key]!r} and {read!r}"
            )
        changes[key] = read
    return changes


def with_changes(document: Mapping[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
    """Return a sweep file's content with values put at dotted keys; numbers in a key are places in
    a list.
    """
    changed = copy.deepcopy(dict(document))
    for key, value in changes.items():
        if not isinstance(key, str):
            raise ConfigError(
                "changes must have dotted keys", repr(key), "e.g. {'recipe.epochs': 3}"
            )
        *parents, last = key.split(".")
        holder: Any = changed
        for part in parents:
            place = _place_in(holder, part, key)
            # A dataset, model or recipe that is written as its name alone.
            if isinstance(holder, list) and isinstance(holder[place], str):
                holder[place] = {"name": holder[place]}
            elif part == "recipe" and isinstance(holder.get(part), str):
                holder[part] = {"from": holder[part]}
            holder = holder[place] if isinstance(holder, list) else holder.setdefault(part, {})
        holder[_place_in(holder, last, key)] = value
    return changed


def _place_in(holder: Any, part: str, key: str) -> Any:
    """Return what a part of a dotted key is in a list or a mapping."""
    if isinstance(holder, dict):
        return part
    if not isinstance(holder, list):
        raise ConfigError(f"--set {key}: nothing can be set there", repr(holder), HINT)
    if not part.isdecimal() or int(part) >= len(holder):
        raise ConfigError(f"--set {key}: the list has places 0 to {len(holder) - 1}", part, HINT)
    return int(part)


# Recipes that a search wrote, named by a sweep: found below the root, and cut to the sweep's own
# cells.

TUNED = "tuned"
"""As a recipe's name, the recipe that was searched for the sweep itself; as a file's key, its
evidence."""
SEARCHED = ("learning_rate", "weight_decay", "batch_size")


def _tuned_path(recipe: object, sweep: object, recipes: Path | None) -> object:
    """Return ``recipe`` with the path of a searched recipe in place of its name."""
    name = recipe.get("from") if isinstance(recipe, dict) else recipe
    if recipes is None or not isinstance(name, str) or name in RECIPES or _is_path(name):
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


def _with_tuned_cells(sweep: SweepSpec, tuned: dict[str, Any]) -> SweepSpec:
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


# What is wrong, in the words of a sweep file.

RULES = dict.fromkeys(("tuple_type", "list_type"), "must be a list, e.g. [a, b]")
RULES |= dict.fromkeys(("dict_type", "model_type"), "must be a mapping of keys to values")


def _report(problems: list[SweepError]) -> None:
    """Raise all problems as one; the first of them where there are too many to read."""
    more = len(problems) - MAX_PROBLEMS
    collect(
        problems[:MAX_PROBLEMS]
        + ([ConfigError(f"and {more:,} more like these")] if more > 0 else [])
    )


def _problem(detail: ErrorDetails, origin: str, document: Mapping[str, Any]) -> ConfigError:
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
            return ConfigError(f"{where}: this key belongs into recipe", hint=RECIPE)
        return ConfigError(f"{where}: unknown key", hint=f"{hint}known keys: {', '.join(known)}")
    value = detail["input"]
    shown = repr(value) if not isinstance(value, dict) else f"keys {', '.join(map(str, value))}"
    message = detail["msg"].removeprefix("Value error, ")
    if kind == "missing":
        what = "value" if isinstance(detail["loc"][-1], int) else "key"
        hint = {"recipe": RECIPE, "models": MODEL}.get(str(loc[0]), "")
        return ConfigError(f"{where}: this {what} is required", hint=hint)
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


def _unknown_names(document: dict[str, Any]) -> list[SweepError]:
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


# YAML 1.2 of plain data.

YAML_WORDS = (
    ("character '\\t'", "a tab; indent with blanks", False),
    (
        "cannot start any token",
        ("a sign that no value can begin with; put the text in quotes"),
        False,
    ),
    (
        "alphabetic or numeric character",
        ("* or & at the beginning of a value; put the text in quotes"),
        False,
    ),
    (
        "mapping values are not allowed",
        "a colon that cannot be here; write key: value, one a line, "
        "indented "
        "like the others, and text with a colon in quotes",
        False,
    ),
    ("could not find expected ':'", "no key: value; a blank must stand behind the colon", True),
    ("parsing a flow", "a bracket that is not closed, or no comma between its values", True),
    ("found unexpected end of stream", "a quote that is not closed", True),
    ("escape", "a backslash in double quotes; write / in a path, or take single quotes", False),
    (
        "expected <block end>",
        ("a line that is not indented like those above it, or a sign too many"),
        False,
    ),
    ("expected the node content", "a sign that cannot be here", False),
    ("found another document", "a second document; take --- out", False),
)
"""Part of what the parser says, what is wrong in a user's words, and whether to name where it
begins."""


def read_text(path: Path, kind: str, max_bytes: int) -> str:
    """Return the text of a file that somebody wrote, which messages call ``kind``; no pipe is
    waited for.

    FileNotFoundError where there is none; ConfigError where it is no file, too long, or no UTF-8.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            found = (
                "a folder; isweep init writes a file for one"
                if path.is_dir()
                else "no regular file"
            )
            raise ConfigError(f"A {kind} must be a file", f"{path} is {found}")
        if status.st_size > max_bytes:
            rule = f"A {kind} may have at most {max_bytes:,} bytes"
            raise ConfigError(rule, f"{path} has {status.st_size:,}", "split it")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        hint = "save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise ConfigError(
            f"The {kind} must be readable UTF-8 text", f"{path}: {error}", hint
        ) from None


def read_plain(text: str, origin: str) -> object:
    """Read one YAML document, which messages call ``origin``; a :class:`ConfigError` names a place
    in it.
    """
    try:
        _check_plain(text, origin)
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        told = ", ".join(filter(None, (error.context, error.problem)))
        found, opened = next((found for part, *found in YAML_WORDS if part in told), (told, False))
        mark = (opened and error.context_mark) or error.problem_mark or error.context_mark
        if isinstance(error, DuplicateKeyError):
            key = str(error.problem).partition(" with value")[0].removeprefix("found duplicate ")
            found = f"{key} stands twice"
        place = f"line {mark.line + 1}, column {mark.column + 1}"
        raise ConfigError(f"{origin} must be valid YAML", f"{place}: {found}") from None
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{origin} must be valid YAML", " ".join(str(error).split())) from None


def write_plain(document: object) -> str:
    """Write plain values so that :func:`read_plain` reads them back; short lists stand on one
    line.
    """
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = None
    writer.width = 100
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    buffer = io.StringIO()
    writer.dump(document, buffer)
    return buffer.getvalue()


def _check_plain(text: str, origin: str) -> None:
    """Refuse what a sweep file has no use for, before anything is made of it."""
    reader, depth = YAML(typ="safe", pure=True), 0
    for number, event in enumerate(reader.parse(text)):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        resolved = ""
        if isinstance(event, ScalarEvent) and event.implicit[0]:
            resolved = str(reader.resolver.resolve(ScalarNode, event.value, event.implicit))
        if number > 2 * MAX_VALUES:
            what, hint = f"more than {MAX_VALUES:,} values", "split it"
        elif depth > MAX_NESTING:
            what, hint = f"more than {MAX_NESTING} levels of nesting", "write it flatter"
        elif isinstance(event, AliasEvent) or getattr(event, "anchor", None) is not None:
            what, hint = "an anchor or alias", "write it out"
        elif getattr(event, "version", None) is not None:
            what, hint = "a %YAML line", "take it out: the file is read as YAML 1.2"
        elif (tag := getattr(event, "tag", None)) is not None:
            what, hint = f"the tag {str(tag)[:60]}", "take it out"
        elif resolved.endswith((":timestamp", ":merge", ":value")):
            what, hint = repr(event.value[:60]), "put text in quotes"
        else:
            continue
        place = f"line {event.start_mark.line + 1}, column {event.start_mark.column + 1}: {what}"
        raise ConfigError(f"{origin} must hold plain values only", place, hint)


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
