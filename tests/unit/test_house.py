"""The house keeps its size, and imports what it declares."""

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
MOST_FUNCTION_LINES, MOST_FILE_LINES = 60, 600
MOST_FILES_IN_A_FOLDER = 25
# Of the whole product. Only ever lower them: 130 files and 35,000 lines are the aim.
MOST_FILES, MOST_LINES = 132, 37_202


def modules() -> dict[str, str]:
    """Text of every module of the product, by path."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def functions() -> dict[str, int]:
    """Lines of every function of the product."""
    return {
        f"{path}:{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path, text in modules().items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


def test_files_are_short_and_few():
    lengths = {path: len(text.splitlines()) for path, text in modules().items() if text.strip()}
    assert not {path: n for path, n in lengths.items() if n > MOST_FILE_LINES}, (
        "split by what changes together"
    )
    folders = Counter(str(Path(path).parent) for path in lengths)
    assert not {folder: n for folder, n in folders.items() if n > MOST_FILES_IN_A_FOLDER}
    assert len(lengths) <= MOST_FILES
    assert sum(lengths.values()) <= MOST_LINES


def test_functions_are_short():
    long = {name: n for name, n in functions().items() if n > MOST_FUNCTION_LINES}
    assert not long, "part what is done from how it is done"


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
            runtime | declared(*extras["demo"], *extras["medical"], *extras["formats"]) | {"pydantic-core"}
        )
        assert distributions & allowed, f"{name} is imported, and no dependency of the package brings it"
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
