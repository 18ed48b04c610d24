"""``isweep ls`` and ``isweep rm``: what lies in a root, and removing a part of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.machine.locks import exclusive
from orchestrator.planning.paths import RootPaths
from search_spaces.errors import (
    plural,
)
from tasks.atomic import remove_folder

if TYPE_CHECKING:
    pass


# What lies in a root.


def list_root(paths: RootPaths) -> list[dict[str, Any]]:
    """Return one row per sweep, prepared dataset, recipe and store of a root, with its size in
    bytes.

    The names of what :func:`remove_from_root` may remove, sweeps and prepared data, differ.
    """

    def size(path: Path) -> int:
        files = path.rglob("*") if path.is_dir() else [path]
        return sum(file.lstat().st_size for file in files if file.is_file() or file.is_symlink())

    sweeps = [paths.sweep(name).folder for name in paths.sweep_names()]
    results = [len([*path.glob("trials/*/result.json")]) for path in sweeps]
    found = [
        ("sweep", path, plural(count, "result"))
        for path, count in zip(sweeps, results, strict=True)
    ]
    found += [
        ("prepared data", path, "") for path in sorted((paths.root / "prepared").glob("[!.]*/"))
    ]
    found += [("recipe", path, "") for path in sorted(paths.recipes.glob("*.yaml"))]
    stores = {"MLflow's store": paths.mlflow_database, "log": paths.log}
    found += [(what, path, "") for what, path in stores.items() if path.exists()]
    return [
        {
            "what": what,
            "name": path.stem if what == "recipe" else path.name,
            "path": str(path),
            "bytes": size(path),
            "about": about,
            "removable": what in ("sweep", "prepared data"),
        }
        for what, path, about in found
    ]


def remove_from_root(paths: RootPaths, folder: str) -> None:
    """Remove a sweep or prepared data of a root on which nobody works."""
    with exclusive(paths.lock, f"isweep rm {Path(folder).name}"):
        remove_folder(Path(folder))
