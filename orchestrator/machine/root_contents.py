"""``isweep ls`` and ``isweep rm``: what lies in a root, and removing a part of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.machine.locks import exclusive
from orchestrator.planning.paths import RootPaths
from search_spaces.errors import plural
from tasks.atomic import remove_folder

SWEEP = "sweep"
PREPARED = "prepared data"


def list_root(paths: RootPaths) -> list[dict[str, Any]]:
    """Return a row per sweep, prepared dataset, recipe and store of a root, with its bytes.

    Sweeps and prepared data have different names, so that :func:`remove_from_root` can remove them
    by their names.
    """
    rows = []
    for name in paths.sweep_names():
        folder = paths.sweep(name).folder
        num_results = len([*folder.glob("trials/*/result.json")])
        rows.append(_row(SWEEP, folder, plural(num_results, "result")))
    for folder in sorted((paths.root / "prepared").glob("[!.]*/")):
        rows.append(_row(PREPARED, folder))
    for file in sorted(paths.recipes.glob("*.yaml")):
        rows.append({**_row("recipe", file), "name": file.stem})
    for what, file in (("MLflow's store", paths.mlflow_database), ("log", paths.log)):
        if file.exists():
            rows.append(_row(what, file))
    return rows


def _row(what: str, path: Path, about: str = "") -> dict[str, Any]:
    return {
        "what": what,
        "name": path.name,
        "path": str(path),
        "bytes": _size(path),
        "about": about,
        "removable": what in (SWEEP, PREPARED),
    }


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file() or file.is_symlink())


def remove_from_root(paths: RootPaths, folder: str) -> None:
    """Remove a sweep or prepared data from a root.

    Raises:
        SetupError: Another command works on the root.
    """
    with exclusive(paths.lock, f"isweep rm {Path(folder).name}"):
        remove_folder(Path(folder))
