"""Limits on the product's source that a packed line cannot meet, and its declared imports."""

from __future__ import annotations

import ast
import io
import sys
import tokenize
import tomllib
from collections import Counter
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PACKAGES = ("search_spaces", "tasks", "orchestrator", "isweep")
REWRITTEN: tuple[str, ...] = (
    "orchestrator/analysis/",
    "orchestrator/analysis/experiments/",
    "orchestrator/analysis/figures/",
    "orchestrator/analysis/grouped_tables/",
    "orchestrator/analysis/results_tables/",
    "orchestrator/analysis/sentences/",
    "orchestrator/analysis/tables/",
    "isweep/",
    "orchestrator/cli/",
    "orchestrator/analysis/law_fits/",
    "orchestrator/machine/",
    "orchestrator/measuring/",
    "orchestrator/planning/",
    "orchestrator/results/",
    "orchestrator/running/",
    "orchestrator/tuning/",
    "search_spaces/",
    "tasks/",
    "tasks/measures/",
    "tasks/prepared/",
    "tasks/sources/",
    "tasks/sources/own/",
    "tasks/trials/",
)
"""Folders that have been rewritten to be read once: the strict limits hold for these."""
MAX_PER_LINE = {
    "tokens": 8.5,
    "conditional expressions": 0.015,
    "comprehensions": 0.030,
    "assignments of several": 0.008,
    "walrus": 0.001,
}
"""What a line of code may hold on average; the codebases we learn from have 5.6 to 8.5 tokens."""
KNOWN_CIRCLES = []
"""Modules that import each other, to be parted; the list may only become shorter."""
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
LAYOUT = (
    tokenize.NEWLINE,
    tokenize.NL,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
)
MAX_FUNCTION_LINES = 60
"""Lines of code of a function in a rewritten folder."""
MAX_FUNCTION_LINES_ELSEWHERE = 75
"""The same in folders that were reformatted to 100 columns, and not rewritten yet."""
MAX_FILES_IN_A_FOLDER = 25


@cache
def modules() -> dict[str, str]:
    """Text of every module of the product, by path."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


@cache
def tree_of(text: str) -> ast.Module:
    """Syntax tree of a module, which is parsed once for all tests."""
    return ast.parse(text)


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
        for node in ast.walk(tree_of(text))
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


def signs(source: str) -> Counter[str]:
    """Count how densely a module is packed; ``code`` counts its lines without text and comments."""
    tree = tree_of(source)
    text_lines = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    code_lines = [
        line
        for number, line in enumerate(source.splitlines(), 1)
        if line.strip() and not line.strip().startswith("#") and number not in text_lines
    ]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    count = Counter(code=len(code_lines))
    count["tokens"] = sum(token.type not in (*LAYOUT, tokenize.COMMENT) for token in tokens)
    for node in ast.walk(tree):
        count["walrus"] += isinstance(node, ast.NamedExpr)
        count["conditional expressions"] += isinstance(node, ast.IfExp)
        count["comprehensions"] += isinstance(node, COMPREHENSIONS)
        # A constant that is a tuple has one name, so it is not counted.
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            count["assignments of several"] += isinstance(node.targets[0], ast.Tuple)
    return count


@pytest.mark.parametrize("folder", REWRITTEN)
def test_a_rewritten_folder_is_not_packed(folder):
    count = sum(
        (signs(text) for path, text in modules().items() if path.startswith(folder)), Counter()
    )
    per_line = {name: count[name] / count["code"] for name in MAX_PER_LINE}
    assert not {name: n for name, n in per_line.items() if n > MAX_PER_LINE[name]}


@pytest.mark.parametrize("folder", REWRITTEN)
def test_a_rewritten_folder_imports_no_module_by_one_letter(folder):
    short = [
        f"{path}: {alias.name} as {alias.asname}"
        for path, text in modules().items()
        if path.startswith(folder)
        for node in ast.walk(tree_of(text))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
        if alias.asname and len(alias.asname) == 1 and not alias.name.endswith("functional")
    ]
    assert not short, "import the names that are used, or the module by its name"


def test_no_module_imports_one_that_imports_it():
    """Imports at the top of modules, those for annotations alone among them, form no circle."""
    paths = {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): text
        for path, text in modules().items()
    }
    graph = {name: imports_of(name, text, set(paths)) for name, text in paths.items()}
    circles = []
    while graph:
        free = [name for name, imports in graph.items() if not imports & graph.keys()]
        if not free:
            circles = sorted(name for name in graph if name in reachable(graph, name))
            break
        for name in free:
            del graph[name]
    assert circles == KNOWN_CIRCLES


def test_no_line_escapes_the_formatter():
    escaped = [path for path, text in modules().items() if "fmt: " in text]
    assert not escaped


def imports_of(name: str, text: str, known: set[str]) -> set[str]:
    """Return the modules of the product that a module imports, at its top or anywhere inside."""
    imports: set[str] = set()
    for node in ast.walk(tree_of(text)):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                imports.add(inner if inner in known else node.module)
    return imports & known - {name}


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Return the modules that a module imports, directly or through others."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for name in graph.get(waiting.pop(), set()) - found:
            found.add(name)
            waiting.append(name)
    return found


def imported() -> set[str]:
    """Top-level names that the product imports from other distributions."""
    nodes = [node for text in modules().values() for node in ast.walk(tree_of(text))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    top = {name.partition(".")[0] for name in names}
    return top - set(PACKAGES) - sys.stdlib_module_names


def declared(*requirements: str) -> set[str]:
    """Canonical names of requirements."""
    return {canonicalize_name(Requirement(requirement).name) for requirement in requirements}


@pytest.mark.long
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
