"""Limits on the product's source that a packed line cannot meet, and its declared imports."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections import Counter
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PACKAGES = ("search_spaces", "tasks", "orchestrator", "isweep")
REWRITTEN: tuple[str, ...] = ()
"""Folders that have been rewritten to be read once: the strict limits hold for these."""
MAX_FUNCTION_LINES = 60
"""Lines of code of a function in a rewritten folder."""
MAX_FUNCTION_LINES_ELSEWHERE = 75
"""The same in folders that were reformatted to 100 columns, and not rewritten yet."""
MAX_FILES_IN_A_FOLDER = 25


def modules() -> dict[str, str]:
    """Text of every module of the product, by path."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring, which may be as long as its reader needs."""
    num_lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is None:
        return num_lines
    docstring = function.body[0]
    return num_lines - ((docstring.end_lineno or docstring.lineno) - docstring.lineno + 1)


def functions() -> dict[str, int]:
    """Lines of code of every function of the product."""
    return {
        f"{path}:{node.name}": code_lines(node)
        for path, text in modules().items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


def test_folders_can_be_surveyed():
    folders = Counter(str(Path(path).parent) for path, text in modules().items() if text.strip())
    assert not {folder: n for folder, n in folders.items() if n > MAX_FILES_IN_A_FOLDER}


def test_functions_are_short():
    limits = {True: MAX_FUNCTION_LINES, False: MAX_FUNCTION_LINES_ELSEWHERE}
    too_long = {
        name: n for name, n in functions().items() if n > limits[name.startswith(REWRITTEN)]
    }
    assert not too_long, "separate what is done from how it is done"


def test_no_line_escapes_the_formatter():
    escaped = [path for path, text in modules().items() if "fmt: " in text]
    assert not escaped


def imported() -> set[str]:
    """Top-level names that the product imports from other distributions."""
    nodes = [node for text in modules().values() for node in ast.walk(ast.parse(text))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    top = {name.partition(".")[0] for name in names}
    return top - set(PACKAGES) - sys.stdlib_module_names


def declared(*requirements: str) -> set[str]:
    """Canonical names of requirements."""
    return {canonicalize_name(Requirement(requirement).name) for requirement in requirements}


def test_whoever_installs_the_package_gets_all_that_it_imports_and_nothing_else():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    runtime = declared(*project["dependencies"])
    homes = packages_distributions()
    used = {name: {canonicalize_name(home) for home in homes[name]} for name in imported()}
    for name, distributions in used.items():
        allowed = (
            runtime
            | declared(*extras["demo"], *extras["medical"], *extras["formats"])
            | {"pydantic-core"}
        )
        assert distributions & allowed, (
            f"{name} is imported, and no dependency of the package brings it"
        )
    # pandas writes Parquet with the one; the other's digits and pictures are read as files.
    assert runtime - set().union(*used.values()) <= {"pyarrow", "scikit-learn"}, (
        "dependencies that nobody imports"
    )


def test_the_oldest_releases_that_are_tried_are_those_that_are_allowed():
    text = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8")
    pins = [Requirement(line) for line in text.splitlines() if not line.startswith("#")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    allowed = {one.name: one for one in map(Requirement, project["dependencies"])}
    for pin in pins:
        (lower,), (tried,) = allowed[pin.name].specifier, pin.specifier
        assert (lower.operator, Version(lower.version)) == (">=", Version(tried.version)), pin.name
