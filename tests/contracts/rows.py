"""Names of the rows of a table in its source code, where a repeated name is still visible."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]


def row_names(path: str, table: str) -> list[str]:
    """Return the names in a table's dict, and in later assignments ``TABLE["name"] = ...``."""
    names: list[object] = []
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)):
            continue
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        if isinstance(target, ast.Name) and target.id == table and isinstance(node.value, ast.Dict):
            names += [ast.literal_eval(key) for key in node.value.keys if key is not None]
        elif isinstance(target, ast.Subscript) and ast.unparse(target.value) == table:
            names.append(ast.literal_eval(target.slice))
    return [str(name) for name in names]


def check_one_row(path: str, table: str, name: str) -> None:
    """Check that a table has one row with this name. A second row would replace the first."""
    num_rows = row_names(path, table).count(name)
    assert num_rows == 1, f"{path}, {table}: {num_rows} rows have the name {name!r}, not one"
