"""Find, read and hash the source files of a user's network, without running them."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from search_spaces.errors import ConfigError

_HOW_TO_NAME = (
    "Write package.module:function. The module must be installed, or be in the folder of the "
    "sweep file"
)


def source_files(reference: str) -> dict[str, Path]:
    """Return the source files that define ``package.module:function``, by module name.

    These are the module's file, and the files of all modules that it imports from the same
    top-level package or folder. Indirect imports count too. The files are read, but not run.
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
    path = _find_module(module)
    if path is None:
        raise ConfigError(f"The module {module!r} of your network was not found", hint=_HOW_TO_NAME)
    # How many packages contain the file, one inside the other.
    num_packages = module.count(".")
    if path.name == "__init__.py":
        num_packages += 1
    # The folder of the top-level package. For a module outside any package, the module's
    # folder.
    home = path.parents[max(num_packages - 1, 0)]
    files = {module: path}
    pending = [module]
    while pending:
        current = pending.pop()
        for name in (*_parent_packages(current), *_imported_names(current, files[current])):
            if name in files:
                continue
            path = _find_module(name)
            if path is not None and home in path.parents and "site-packages" not in path.parts:
                files[name] = path
                pending.append(name)
    return files


def _parent_packages(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def source_texts(reference: str) -> dict[str, str]:
    """Return the text of each source file of ``reference``, by the file's relative path."""
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


def _find_module(module: str) -> Path | None:
    """Return the file of a module without running its package; None if there is no file."""
    top, *submodules = module.split(".")
    path = _find_below(sys.path, [top, *submodules])
    if path is not None:
        return path
    # A package can be installed without a folder on sys.path. Only the top-level package is
    # looked up here: to look up a submodule, Python would run the package.
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if submodules:
        return _find_below(spec.submodule_search_locations or (), submodules)
    if spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin)
    return None


def _find_below(folders: Iterable[str], parts: list[str]) -> Path | None:
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
