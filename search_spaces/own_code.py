"""A network of one's own: where its source lies, and a hash of all of it that can change what it builds.

``package.module:function`` is found as Python finds modules; a sweep file's folder is searched first. The
source is read, not run. It is the module's own file and, of the modules that it imports, those of the same
top-level package or folder, and theirs in turn; installed libraries are told by their versions instead.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from search_spaces.errors import ConfigError

_WAY_OUT = "write package.module:function, with the module in the sweep file's folder or installed"


def source_files(reference: str) -> dict[str, Path]:
    """Return the files that define ``reference``, by module name.

    Raises:
        ConfigError: when ``reference`` is not ``package.module:function``, or its module is not found.
    """
    module, colon, function = reference.partition(":")
    parts = [*module.split("."), function]
    if not colon or not all(part.isidentifier() for part in parts):
        raise ConfigError("A network of your own is named package.module:function", repr(reference), _WAY_OUT)
    path = _find(module)
    if path is None:
        raise ConfigError("The module of your own network must be found", repr(module), _WAY_OUT)
    found = {module: path}
    pending = [module]
    while pending:
        current = pending.pop()
        for name in (*_parents(current), *_imports(current, found)):
            path = _find(name)
            if name not in found and path is not None and _is_neighbour(path, found[module], module):
                found[name] = path
                pending.append(name)
    return found


def source_texts(reference: str) -> dict[str, str]:
    """Return the source of ``reference`` as texts by relative path: all that another machine needs."""
    texts = {}
    for name, path in source_files(reference).items():
        inside = name.replace(".", "/")
        relative = f"{inside}/__init__.py" if path.name == "__init__.py" else f"{inside}.py"
        texts[relative] = path.read_text(encoding="utf-8")
    return texts


def code_hash(reference: str) -> str:
    """Return a hash of the source of ``reference``: 16 hex digits that change with any of its lines.

    Raises:
        ConfigError: see :func:`source_files`; also when a file is no Python.
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
    # Installed by other ways than a folder on the path. Only the top is asked for: to look for a submodule,
    # Python would run its package.
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


def _parents(module: str) -> list[str]:
    parts = module.split(".")[:-1]
    return [".".join(parts[: depth + 1]) for depth in range(len(parts))]


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
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*filter(None, above), *([node.module] if node.module else [])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return [name for name in names if name and all(part.isidentifier() for part in name.split("."))]


def _is_neighbour(path: Path, first: Path, module: str) -> bool:
    """Tell whether ``path`` lies in the top-level package of ``module``, or beside it where it has none."""
    depth = module.count(".") + (first.name == "__init__.py")
    return first.parents[max(depth - 1, 0)] in path.parents and "site-packages" not in path.parts
