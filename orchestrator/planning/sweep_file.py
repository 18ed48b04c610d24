"""A preset or sweep file, read into a :class:`SweepSpec` with every mistake reported at once.

YAML is read by the safe loader with the scalars of YAML 1.2 (so ``1e-3`` is a number, ``no`` a word and
``12:30`` not a number of minutes), without aliases, with duplicate keys refused.
"""

from __future__ import annotations

import difflib
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from search_spaces.datasets import DATASETS, dataset_spec
from search_spaces.errors import ConfigError, SweepError, collect, unknown_name
from search_spaces.models import model_spec
from search_spaces.recipes import RECIPES
from search_spaces.specs import SweepSpec
from tasks.sources import check_own_kind

MAX_FILE_BYTES = 1_000_000
MAX_NESTING = 20


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    folder = resources.files("search_spaces") / "presets"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_sweep(preset: str) -> SweepSpec:
    """Read a preset by name, or a sweep file by path (anything with a ``/`` or ending in ``.yaml``/``.yml``).

    Raises:
        ConfigError: naming the file and every mistake in it with its key path, value and what is allowed.
    """
    if "/" in preset or preset.endswith((".yaml", ".yml")):
        return _own_paths(parse_sweep(_read_file(Path(preset)), origin=preset), Path(preset).parent)
    if preset not in preset_names():
        raise unknown_name("preset", preset, preset_names())
    text = (resources.files("search_spaces") / "presets" / f"{preset}.yaml").read_text(encoding="utf-8")
    return parse_sweep(text, origin=f"preset {preset}")


def parse_sweep(text: str, *, origin: str) -> SweepSpec:
    """Turn the text of a sweep file into a validated spec; see :func:`load_sweep` for what is raised."""
    document = _load_yaml(text, origin)
    if not isinstance(document, dict):
        found = type(document).__name__
        raise ConfigError(
            f"{origin} must be a mapping of keys to values", found, "see README, 'Your own sweep'"
        )
    if isinstance(document.get("datasets"), list):
        document["datasets"] = [{"name": d} if isinstance(d, str) else d for d in document["datasets"]]
    try:
        spec = SweepSpec.model_validate_json(json.dumps(document))
    except ValidationError as error:
        problems: list[SweepError] = [_problem(detail, origin) for detail in _own_faults(error.errors())]
        names = document if all(isinstance(document.get(k), list) for k in ("models", "datasets")) else {}
        problems += _unknown_names(names, origin)
        collect(problems)
        raise
    collect(_unknown_names(spec.model_dump(), origin))
    return spec


def _own_paths(spec: SweepSpec, folder: Path) -> SweepSpec:
    """Take paths of own data from the sweep file's folder: the file works from wherever it is run."""
    datasets = tuple(
        choice
        if choice.own is None
        else choice.model_copy(
            update={
                "own": choice.own.model_copy(
                    update={"path": str(folder / Path(choice.own.path).expanduser())}
                )
            }
        )
        for choice in spec.datasets
    )
    return spec.model_copy(update={"datasets": datasets})


def _read_file(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ConfigError(
                f"A sweep file may have at most {MAX_FILE_BYTES:,} bytes", f"{path} has {size:,}", "split it"
            )
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        hint = f"presets are: {', '.join(preset_names())}"
        raise ConfigError("The sweep file must exist", str(path), hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("The sweep file must be readable UTF-8 text", f"{path}: {error}") from None


class _Loader(yaml.SafeLoader):
    """Safe loader with YAML 1.2 scalars."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own class attribute)


for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"^(?:true|false)$", "tf"),
    ("tag:yaml.org,2002:int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$",
        "-+.0123456789",
    ),
    ("tag:yaml.org,2002:null", r"^(?:null|~|)$", ["n", "~", ""]),
):
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[object] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.MarkedYAMLError(None, None, f"key {key!r} must be text", key_node.start_mark)
        if key in seen:
            raise yaml.MarkedYAMLError(None, None, f"key {key!r} stands twice", key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def _load_yaml(text: str, origin: str) -> object:
    if text.isspace() or not text:
        raise ConfigError(f"{origin} must not be empty", way_out="see README, 'Your own sweep'")
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise ConfigError(f"{origin} must not use YAML anchors or aliases", way_out="write it out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_NESTING:
                raise ConfigError(f"{origin} may nest at most {MAX_NESTING} levels deep")
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (a subclass of the safe loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{origin} must be valid YAML", str(error).replace("\n", " ")) from None


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


def _problem(detail: ErrorDetails, origin: str) -> ConfigError:
    where = ".".join(str(part) for part in detail["loc"]) or origin
    if detail["type"] == "extra_forbidden":
        known = list(_model_at(detail["loc"][:-1]).model_fields)
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return ConfigError(f"{where}: unknown key", way_out=f"{hint}known keys: {', '.join(known)}")
    value = detail["input"]
    shown = repr(value) if not isinstance(value, dict) else f"keys {', '.join(map(str, value))}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "missing":
        return ConfigError(f"{where}: this key is required")
    return ConfigError(f"{where}: {message[0].lower()}{message[1:]}", shown[:200])


def _unknown_names(document: dict[str, Any], origin: str) -> list[SweepError]:
    problems: list[SweepError] = []

    def check(lookup: Any, name: object) -> None:
        try:
            if isinstance(name, str):
                lookup(name)
        except SweepError as error:
            problems.append(error)

    for name in document.get("models", ()):
        check(model_spec, name)
    for choice in document.get("datasets", ()):
        if not isinstance(choice, dict):
            continue
        own = choice.get("own")
        if own is None:
            check(dataset_spec, choice.get("name"))
            continue
        if isinstance(own, dict):
            check(check_own_kind, own.get("kind"))
        if choice.get("name") in DATASETS:
            problems.append(
                ConfigError(
                    "Your own dataset needs a name of its own",
                    f"{choice['name']!r} is in the table of datasets",
                    "rename it",
                )
            )
    recipe = document.get("recipe")
    if isinstance(recipe, str) and recipe not in RECIPES:
        problems.append(unknown_name("recipe", recipe, RECIPES))
    return problems
