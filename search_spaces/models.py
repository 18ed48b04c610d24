"""The table of models. Architectures keep their library's own names."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from search_spaces.errors import ConfigError, unknown_name
from search_spaces.specs import ModelSpec
from search_spaces.sweeps import ModelChoice

_WAY_OUT = "write package.module:function, with the module in the sweep file's folder or installed"


def source_files(reference: str) -> dict[str, Path]:
    """Return the files that define a network of one's own, ``package.module:function``, by module
    name.

    It is found as Python finds modules (a sweep file's folder is searched first), and read, not
    run: the module's own file and, of the modules that it imports, those of the same top-level
    package or folder, and theirs in turn. Installed libraries are told by their versions instead.

    Raises:
        ConfigError: when ``reference`` is not ``package.module:function``, or its module is not
            found.
    """
    module, colon, function = reference.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), function)):
        raise ConfigError(
            "A network of your own is named package.module:function", repr(reference), _WAY_OUT
        )
    path = _find(module)
    if path is None:
        raise ConfigError("The module of your own network must be found", repr(module), _WAY_OUT)
    # What lies in the same top-level package, or beside the module where it has none.
    home = path.parents[max(module.count(".") + (path.name == "__init__.py") - 1, 0)]
    found, pending = {module: path}, [module]
    while pending:
        current = pending.pop()
        parts = current.split(".")
        parents = (".".join(parts[:depth]) for depth in range(1, len(parts)))
        for name in (*parents, *_imports(current, found)):
            path = None if name in found else _find(name)
            if path is not None and home in path.parents and "site-packages" not in path.parts:
                found[name] = path
                pending.append(name)
    return found


def source_texts(reference: str) -> dict[str, str]:
    """Return the source of ``reference`` as texts by relative path: all that another machine
    needs.
    """
    texts = {}
    for name, path in source_files(reference).items():
        inside = name.replace(".", "/")
        relative = f"{inside}/__init__.py" if path.name == "__init__.py" else f"{inside}.py"
        texts[relative] = path.read_text(encoding="utf-8")
    return texts


def code_hash(reference: str) -> str:
    """Return a hash of the source of ``reference``: 16 hex digits that change with any of its
    lines.
    """
    digest = hashlib.sha256()
    for name, path in sorted(source_files(reference).items()):
        digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _find(module: str) -> Path | None:
    top, *inside = module.split(".")
    path = _file(sys.path, module.split("."))
    if path is not None:
        return path
    # Installed by other ways than a folder on the path. Only the top is asked for: to look for a
    # submodule, Python would run its package.
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or not inside:
        return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
    return _file(spec.submodule_search_locations or (), inside)


def _file(folders: Iterable[str], parts: list[str]) -> Path | None:
    for folder in folders:
        base = Path(folder or ".").joinpath(*parts)
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path.resolve()
    return None


def _imports(module: str, found: dict[str, Path]) -> list[str]:
    path = found[module]
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError as error:
        where = f"{path.name}, line {error.lineno}: {error.msg}"
        raise ConfigError("The source of your own network must be Python", where) from None
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = (
                package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            )
            base = ".".join([*filter(None, above), *([node.module] if node.module else [])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return [name for name in names if name and all(part.isidentifier() for part in name.split("."))]


PAPER_MODELS = ("resnet18", "resnet34", "resnet50", "vgg13", "vgg16", "vgg19")
"""The six models of Konz & Mazurowski: torchvision's, randomly initialised, VGGs without batch
norm."""


def _row(name: str, library: str, architecture: str) -> ModelSpec:
    return ModelSpec.model_validate(
        {"name": name, "library": library, "architecture": architecture}
    )


MODELS: dict[str, ModelSpec] = {
    row.name: row
    for row in (
        *(_row(name, "torchvision", name) for name in PAPER_MODELS),
        *(_row(f"timm_{name}", "timm", name) for name in PAPER_MODELS),
        _row("resnet10t", "timm", "resnet10t"),
        # timm's smallest ResNet (four stages of one block, 0.4 million parameters): a real ResNet
        # for CPUs.
        _row("resnet_tiny", "timm", "test_resnet"),
        _row("small_cnn", "isweep", "small_cnn"),
        _row("small_mlp", "isweep", "small_mlp"),
    )
}


LIBRARIES = ("torchvision", "timm")
ABOUT = {
    "small_cnn": "three convolutions, 7 thousand parameters: seconds on a CPU",
    "small_mlp": "two hidden layers, no convolution: seconds on a CPU",
    "test_resnet": "timm's smallest ResNet, 0.4 million parameters: a real ResNet for CPUs",
    "resnet10t": "timm's ResNet-10, 5 million parameters",
    "resnet18": "11 million parameters",
    "resnet34": "21 million parameters",
    "resnet50": "24 million parameters",
    "vgg13": "129 million parameters, no batch norm",
    "vgg16": "134 million parameters, no batch norm",
    "vgg19": "140 million parameters, no batch norm",
}


def about(spec: ModelSpec) -> str:
    """Say in a line what a network of the table is."""
    whose = {"torchvision": "of the study; ", "timm": "timm's own version; "}
    return (
        whose.get(spec.library, "") * (spec.architecture in PAPER_MODELS) + ABOUT[spec.architecture]
    )


def model_spec(choice: ModelChoice | str) -> ModelSpec:
    """Return the network that ``choice`` names; whether it can be built is found out where it is
    built.

    Raises:
        ConfigError: for a name that is in no table, with the nearest and all known names; for one's
            own function whose module is not found; for arguments that a network of the table does
            not take.
    """
    if isinstance(choice, str):
        choice = ModelChoice.model_validate(choice)
    library, colon, architecture = choice.from_.partition(":")
    if colon and library not in LIBRARIES:
        spec = ModelSpec(
            name=choice.name or as_name(architecture),
            library="own",
            architecture=choice.from_,
            arguments=choice.arguments,
            code=code_hash(choice.from_),
        )
    else:
        spec = _of_library(choice, library, architecture)
    if not choice.pretrained:
        return spec
    if spec.library not in LIBRARIES:
        rule = "pretrained needs a network of torchvision or timm"
        raise ConfigError(
            rule, choice.from_, "leave it out: your own function may load weights itself"
        )
    return spec.model_copy(
        update={"name": choice.name or f"{spec.name[:52]}_pretrained", "pretrained": True}
    )


def _of_library(choice: ModelChoice, library: str, architecture: str) -> ModelSpec:
    """Return a network of the table, whose name ``library`` is then, or any of a library."""
    if architecture:
        name = as_name(f"timm_{architecture}" if library == "timm" else architecture)
        base = _row(name, library, architecture)
        known = (
            row
            for row in MODELS.values()
            if (row.library, row.architecture) == (library, architecture)
        )
        plain = next(known, base)
    elif choice.from_ not in MODELS:
        way_out = "or torchvision:NAME, timm:NAME, or package.module:function of your own"
        error = unknown_name("model", choice.from_, MODELS)
        raise ConfigError(error.rule, error.value, f"{error.way_out}; {way_out}")
    else:
        base = plain = MODELS[choice.from_]
    if choice.arguments and base.library == "isweep":
        named = f"{', '.join(key for key, _ in choice.arguments)} for {base.name}"
        raise ConfigError(
            "Networks of isweep's own take no arguments", named, "leave arguments out"
        )
    if not choice.arguments and choice.name is None:
        return plain
    suffix = "".join(f"_{key}_{value}" for key, value in choice.arguments)
    name = choice.name or as_name(base.name + suffix)
    return base.model_copy(update={"name": name, "arguments": choice.arguments})


def as_name(text: str) -> str:
    """Return ``text`` with what may not stand in a name replaced.

    Example:
        >>> as_name("timm_resnet50.a1_in1k")
        'timm_resnet50_a1_in1k'
    """
    name = re.sub(r"[^a-z0-9_-]+", "_", text.lower()).strip("_")
    return (name if name[:1].isalpha() else f"m_{name}")[:64]
