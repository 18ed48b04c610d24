"""Pack folders into archives like a user."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path


def tar_mode(name: str) -> str:
    packers = {".gz": "gz", ".tgz": "gz", ".bz2": "bz2", ".tbz2": "bz2", ".xz": "xz", ".txz": "xz"}
    return f"w:{packers.get(Path(name).suffix, '')}"


def pack(folder: Path, path: Path, prefix: str = "") -> Path:
    """Write the files of a folder into a zip or tar, by the ending of ``path``, under their names
    in it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    names = [prefix + file.relative_to(folder).as_posix() for file in files]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file, name in zip(files, names, strict=True):
                archive.write(file, name)
    else:
        with tarfile.open(path, tar_mode(path.name)) as archive:
            for file, name in zip(files, names, strict=True):
                archive.add(file, name)
    return path
