"""Detect the kind of a user's data by file extensions, folder names and the header of a table."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tasks.sources import OWN_KINDS
from tasks.sources.dicom import is_single_image_name
from tasks.sources.own.splits import is_split_word
from tasks.sources.raw import TARS, RefusedArchive, is_archive_name, open_archive
from tasks.sources.tables import COLUMNS, MANIFESTS, column_key

MAX_HEADER_BYTES = 1 << 16
"""isweep searches for the end of a table's first line within this number of bytes."""
MAX_SUBFOLDERS = 20
"""Largest number of subfolders that are opened. A folder may have thousands of subfolders, one
for each patient."""


def detect_own_kind(path: Path) -> str | None:
    """Return the kind of user data at a path, or None if it is not recognized."""
    if os.path.isdir(path):  # Path.is_dir raises if a folder above may not be entered
        return _folder_kind(path)
    if not os.path.exists(path):
        return None
    name = path.name.lower()
    if is_archive_name(name) and _has_webdataset_samples(path):
        return "webdataset"
    if is_archive_name(name):
        return "folder"
    for kind, facts in OWN_KINDS.items():
        if name.endswith(facts.extensions):
            return kind
    return None


def unknown_kind_hint(path: Path) -> str:
    """Return the hint for a file that is neither a table nor an archive nor a file of arrays."""
    if is_single_image_name(path.name):
        return "This is a single image. Use the path of the folder whose subfolders are the classes"
    kinds = "; ".join(f"{name}: {kind.path}" for name, kind in OWN_KINDS.items())
    return f"Use one of these kinds: {kinds}. `isweep measure` also reads .npy files"


def _has_webdataset_samples(archive: Path) -> bool:
    """Return whether a tar contains an image and a .cls or .json file with the same key."""
    if archive.suffix == ".zip":
        return False
    try:
        members = open_archive(archive).members()
    except RefusedArchive:
        return False
    labeled_keys = set()
    image_keys = set()
    for member in members:
        key = member.partition(".")[0]
        if member.lower().endswith((".cls", ".json")):
            labeled_keys.add(key)
        if is_single_image_name(member):
            image_keys.add(key)
    return not labeled_keys.isdisjoint(image_keys)


@dataclass(frozen=True)
class _FolderContent:
    """The first two levels of a folder.

    Attributes:
        path: The folder.
        file_names: Names of the files in the folder, in lower case.
        subfolders: Subfolders that are not hidden.
        entries: Files and folders in the first :data:`MAX_SUBFOLDERS` subfolders.
    """

    path: Path
    file_names: list[str]
    subfolders: list[Path]
    entries: list[Path]

    @classmethod
    def of(cls, path: Path) -> _FolderContent:
        """List a folder.

        Raises:
            OSError: The folder or a subfolder cannot be listed.
        """
        file_names = []
        subfolders = []
        for entry in path.iterdir():
            if entry.is_file():
                file_names.append(entry.name.lower())
            elif entry.is_dir() and not entry.name.startswith("."):
                subfolders.append(entry)
        entries: list[Path] = []
        for subfolder in subfolders[:MAX_SUBFOLDERS]:
            entries += subfolder.iterdir()
        return cls(path, file_names, subfolders, entries)

    @property
    def entry_names(self) -> list[str]:
        """Names of the entries, in lower case."""
        return [entry.name.lower() for entry in self.entries]


def _folder_kind(path: Path) -> str:
    """Return the kind of user data in a folder.

    If no other kind is recognized, the result is ``folder``.
    """
    try:
        content = _FolderContent.of(path)
    except OSError:
        return "folder"
    if _has_table_of_images(content) or _has_parquet(content):
        return "table"
    if _has_shards(content):
        return "webdataset"
    return "folder"


def _has_table_of_images(content: _FolderContent) -> bool:
    """Return whether a folder, or its subfolder for a split, has a table of paths and labels."""
    tables = [content.path / name for name in MANIFESTS if name in content.file_names]
    if tables and not content.subfolders:
        return True
    split_tables = []
    for entry in content.entries:
        if entry.name in MANIFESTS and is_split_word(entry.parent.name):
            split_tables.append(entry)
    return any(map(_lists_images, tables[:1] + split_tables[:1]))


def _has_parquet(content: _FolderContent) -> bool:
    """Return whether there are Parquet files in the folder or at most two levels below it.

    Examples two levels below are ``<config>/train/0000.parquet`` and
    ``label=cat/split=train/0.parquet``.
    """
    if _has_extension(content.file_names + content.entry_names, ".parquet"):
        return True
    for entry in content.entries:
        is_split = is_split_word(entry.name) or "=" in entry.name
        if is_split and any(entry.glob("*.parquet")):
            return True
    return False


def _has_shards(content: _FolderContent) -> bool:
    """Return whether tars are in a folder, or in its subfolder for a split."""
    if not content.subfolders:
        return _has_extension(content.file_names, TARS)
    if any(is_split_word(folder.name) for folder in content.subfolders):
        return _has_extension(content.entry_names, TARS)
    return False


def _has_extension(names: Iterable[str], extensions: str | tuple[str, ...]) -> bool:
    return any(name.endswith(extensions) for name in names)


def _lists_images(table: Path) -> bool:
    """Return whether the first line of a table has a path column and a label column.

    This check is needed, because a table without paths may lie beside class folders.
    """
    try:
        header = {column_key(name.strip().strip('"')) for name in _header(table)}
    except (OSError, ValueError, TypeError, RuntimeError):  # pyarrow raises these or subclasses
        return False
    for column in ("path", "label"):
        if header.isdisjoint(map(column_key, (column, *COLUMNS[column]))):
            return False
    return True


def _header(table: Path) -> list[str]:
    """Return the column names of a table without reading its rows."""
    import pyarrow.parquet as pq

    suffix = table.suffix.lower()
    if suffix == ".parquet":
        return list(pq.read_schema(table).names)
    with table.open("rb") as file:
        line = file.readline(MAX_HEADER_BYTES).decode("utf-8-sig", "replace")
    if suffix == ".jsonl":
        return list(dict(json.loads(line)))
    return re.split("[,;\t|]", line)
