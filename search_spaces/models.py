"""The table of models, and the source files of users' networks.

An architecture has the name that its library uses.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from search_spaces.errors import ConfigError, unknown_name
from search_spaces.specs import Library, ModelSpec
from search_spaces.sweeps import ModelChoice

_PAPER_SIZES = {
    "resnet18": "11 million parameters",
    "resnet34": "21 million parameters",
    "resnet50": "24 million parameters",
    "vgg13": "129 million parameters, no batch norm",
    "vgg16": "134 million parameters, no batch norm",
    "vgg19": "140 million parameters, no batch norm",
}
PAPER_MODELS = tuple(_PAPER_SIZES)
"""The six networks of Konz & Mazurowski: torchvision's architectures with random weights."""
LIBRARIES = ("torchvision", "timm")
"""Libraries whose architectures can all be used in a sweep file."""


@dataclass(frozen=True)
class ModelRow:
    """One row of the table of models.

    Attributes:
        spec: the architecture and its library.
        about: description in one line, for people who choose a network.
    """

    spec: ModelSpec
    about: str


def _row(name: str, library: Library, architecture: str, about: str) -> ModelRow:
    return ModelRow(ModelSpec(name=name, library=library, architecture=architecture), about)


def _paper_rows() -> Iterable[ModelRow]:
    """Yield the rows of the six models of the paper, then the rows of their timm versions."""
    for name, size in _PAPER_SIZES.items():
        yield _row(name, "torchvision", name, f"network of the study; {size}")
    for name, size in _PAPER_SIZES.items():
        yield _row(f"timm_{name}", "timm", name, f"timm version of this network; {size}")


_ROWS = (
    *_paper_rows(),
    _row("resnet10t", "timm", "resnet10t", "timm's ResNet-10, 5 million parameters"),
    _row(
        # It has four stages of one block each, so it trains on a CPU.
        "resnet_tiny",
        "timm",
        "test_resnet",
        "timm's smallest ResNet, 0.4 million parameters; trains on a CPU",
    ),
    _row(
        "small_cnn",
        "isweep",
        "small_cnn",
        "three convolutions, 7 thousand parameters; trains in seconds on a CPU",
    ),
    _row(
        "small_mlp",
        "isweep",
        "small_mlp",
        "two hidden layers, no convolution; trains in seconds on a CPU",
    ),
)

MODELS = {row.spec.name: row.spec for row in _ROWS}
"""Networks by name, as in sweep files. The library ``isweep`` is :mod:`tasks.trials.networks`.
An architecture has the name of its function there."""
ABOUT = {row.spec.name: row.about for row in _ROWS}
"""Description of each network in one line, for people who choose a network."""


def model_spec(choice: ModelChoice | str) -> ModelSpec:
    """Return the spec of the network that a sweep file chooses.

    The network is not built here. Building it may fail later.

    Raises:
        ConfigError: the name is unknown, the module of a user's function was not found, or the
            network does not accept these arguments.
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
    elif colon and architecture:
        spec = _with_changes(_library_spec(library, architecture), choice)
    else:
        spec = _with_changes(_table_spec(choice.from_), choice)
    if not choice.pretrained:
        return spec
    if spec.library not in LIBRARIES:
        raise ConfigError(
            f"`pretrained` is set for {choice.from_}, but only networks of torchvision and timm "
            "have pretrained weights",
            hint="Remove `pretrained`. If this is your own function, it can load weights itself",
        )
    # A name has at most 64 characters. The name before the suffix has at most 52.
    name = choice.name or f"{spec.name[:52]}_pretrained"
    return spec.model_copy(update={"name": name, "pretrained": True})


def _table_spec(name: str) -> ModelSpec:
    if name not in MODELS:
        error = unknown_name("model", name, MODELS)
        other_ways = "or write torchvision:NAME, timm:NAME or package.module:function"
        raise ConfigError(error.problem, hint=f"{error.hint}, {other_ways}")
    return MODELS[name]


def _library_spec(library: str, architecture: str) -> ModelSpec:
    name = as_name(architecture)
    if library == "timm":
        name = as_name(f"timm_{architecture}")
    return ModelSpec.model_validate(
        {"name": name, "library": library, "architecture": architecture}
    )


def _with_changes(base: ModelSpec, choice: ModelChoice) -> ModelSpec:
    """Return ``base`` with the arguments and the name in ``choice``."""
    if choice.arguments and base.library == "isweep":
        names = ", ".join(key for key, _ in choice.arguments)
        raise ConfigError(
            f"{base.name} accepts no arguments, but the sweep file sets {names}",
            hint="Remove the key `arguments` from this model",
        )
    if not choice.arguments and choice.name is None:
        # torchvision:resnet18 is resnet18 of the table: trials must have the same ids.
        for spec in MODELS.values():
            if (spec.library, spec.architecture) == (base.library, base.architecture):
                return spec
        return base
    suffix = "".join(f"_{key}_{value}" for key, value in choice.arguments)
    name = choice.name or as_name(base.name + suffix)
    return base.model_copy(update={"name": name, "arguments": choice.arguments})


def as_name(text: str) -> str:
    """Convert text to a valid name: at most 64 letters, digits, ``-`` and ``_``.

    Example:
        >>> as_name("timm_resnet50.a1_in1k")
        'timm_resnet50_a1_in1k'
    """
    name = re.sub(r"[^a-z0-9_-]+", "_", text.lower()).strip("_")
    if not name[:1].isalpha():
        name = f"m_{name}"
    return name[:64]


# The source code of users' networks.

_HOW_TO_NAME = (
    "Write package.module:function. The module must be installed, or be in the folder of the sweep "
    "file"
)


def source_files(reference: str) -> dict[str, Path]:
    """Return the source files that define ``package.module:function``, by module name.

    These are the file of the module and the files of the modules that it imports, directly or
    indirectly, from the same top-level package or folder. The files are read, but not run.
    Files of installed libraries are left out, because the version of a library identifies its
    code.

    Raises:
        ConfigError: ``reference`` is not ``package.module:function``, or the module was not
            found.
    """
    module, colon, function = reference.partition(":")
    if not colon or not _is_dotted_name(module) or not function.isidentifier():
        raise ConfigError(
            f"{reference!r} is not of the form package.module:function", hint=_HOW_TO_NAME
        )
    path = _find(module)
    if path is None:
        raise ConfigError(f"The module {module!r} of your network was not found", hint=_HOW_TO_NAME)
    # The folder of the top-level package. A module outside any package has only its own
    # folder.
    depth = module.count(".") + (path.name == "__init__.py") - 1
    home = path.parents[max(depth, 0)]
    files = {module: path}
    pending = [module]
    while pending:
        current = pending.pop()
        for name in (*_parent_packages(current), *_imported_names(current, files[current])):
            if name in files:
                continue
            path = _find(name)
            if path is None or home not in path.parents or "site-packages" in path.parts:
                continue
            files[name] = path
            pending.append(name)
    return files


def _parent_packages(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def source_texts(reference: str) -> dict[str, str]:
    """Return the source files of ``reference`` as text by relative path, to copy them."""
    texts: dict[str, str] = {}
    for name, path in source_files(reference).items():
        relative = name.replace(".", "/")
        if path.name == "__init__.py":
            relative += "/__init__"
        texts[f"{relative}.py"] = path.read_text(encoding="utf-8")
    return texts


def code_hash(reference: str) -> str:
    """Return a hash of the source code of ``package.module:function``, 16 hex digits."""
    digest = hashlib.sha256()
    for name, path in sorted(source_files(reference).items()):
        digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _find(module: str) -> Path | None:
    """Return the file of a module without running its package; None if there is no file."""
    top, *submodules = module.split(".")
    path = _find_in(sys.path, [top, *submodules])
    if path is not None:
        return path
    # A package can be installed in other ways than as a folder on sys.path. Only the top-level
    # package is looked up: to look up a submodule, Python would run the package.
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if submodules:
        return _find_in(spec.submodule_search_locations or (), submodules)
    if spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin)
    return None


def _find_in(folders: Iterable[str], parts: list[str]) -> Path | None:
    for folder in folders:
        base = Path(folder or ".").joinpath(*parts)
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path.resolve()
    return None


def _imported_names(module: str, path: Path) -> list[str]:
    """Return the names of the modules that a file imports.

    For ``from a import b`` these are ``a`` and ``a.b``, because ``b`` may be a module.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError as error:
        place = f"{path.name}, line {error.lineno}: {error.msg}"
        raise ConfigError(
            f"The source code of your network is not valid Python: {place}",
            hint="Correct this line",
        ) from None
    package = module
    if path.name != "__init__.py":
        package = module.rpartition(".")[0]
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute_name(node, package)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return list(filter(_is_dotted_name, names))


def _is_dotted_name(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _absolute_name(node: ast.ImportFrom, package: str) -> str:
    """Return the absolute name of the module in ``from … import``."""
    if not node.level:
        return node.module or ""
    ancestors = package.split(".")
    parent = ".".join(ancestors[: len(ancestors) - node.level + 1])
    if not node.module:
        return parent
    return f"{parent}.{node.module}".lstrip(".")
