"""``isweep ls`` and ``isweep rm``, which list the contents of a root and remove a sweep or
prepared data.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.machine.locks import lock_file
from orchestrator.planning.paths import RootPaths
from search_spaces.errors import plural
from tasks.atomic import remove_folder


@dataclass(frozen=True)
class RootPart:
    """A sweep, a prepared dataset, a recipe, MLflow's store or the log of a root.

    Attributes:
        what: kind of the part as text, for example ``sweep``.
        name: name of the part. No two removable parts have the same name.
        path: file or folder.
        bytes: size in bytes.
        about: note for people, for example the number of results.
        removable: True if :func:`remove_from_root` may remove it.
    """

    what: str
    name: str
    path: str
    bytes: int
    about: str = ""
    removable: bool = False

    @classmethod
    def at(cls, what: str, path: Path, about: str = "", *, removable: bool = False) -> RootPart:
        """Measure the size of the file or folder at a path. Return it as a part of the root."""
        return cls(what, path.name, str(path), size_bytes(path), about, removable)


def size_bytes(path: Path) -> int:
    """Return the size in bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file() or file.is_symlink())


def list_root(paths: RootPaths) -> list[dict[str, Any]]:
    """Return one row for each part of a root."""
    parts = []
    for name in paths.sweep_names():
        folder = paths.sweep(name).folder
        num_results = len(list(folder.glob("trials/*/result.json")))
        parts.append(RootPart.at("sweep", folder, plural(num_results, "result"), removable=True))
    for folder in sorted((paths.root / "prepared").glob("[!.]*/")):
        parts.append(RootPart.at("prepared data", folder, removable=True))
    for file in sorted(paths.recipes.glob("*.yaml")):
        parts.append(RootPart("recipe", file.stem, str(file), size_bytes(file)))
    for what, path in (("MLflow's store", paths.mlflow_database), ("log", paths.log)):
        if path.exists():
            parts.append(RootPart.at(what, path))
    return [asdict(part) for part in parts]


def remove_from_root(paths: RootPaths, folder: str) -> None:
    """Remove a sweep or prepared data of a root.

    Raises:
        SetupError: another command is using the root.
    """
    with lock_file(paths.lock, f"isweep rm {Path(folder).name}"):
        remove_folder(Path(folder))
