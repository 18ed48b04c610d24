"""From what a message prints of a file back to the file, for who holds the root's key.

Messages and records name a file by its keyed hash and a row of a table, which is no secret, by its number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath

from search_spaces.datasets import own_dataset_spec
from search_spaces.errors import SweepError
from search_spaces.specs import PreparedSpec
from search_spaces.sweeps import OwnSourceSpec
from tasks.sources.arrays import ArrayFile, Hdf5File, NpzFile, row_locator
from tasks.sources.base import RawRequest
from tasks.sources.manifest import table_paths
from tasks.sources.parquet import num_rows
from tasks.sources.privacy import hash_key, keyed_hash, spell
from tasks.sources.raw import MARK, MAX_DEPTH, RefusedArchive, is_archive_name, open_archive, walk

HASH = re.compile(r"\b[0-9a-f]{16}\b")
ROW = re.compile(r"(?:(\w+) )?row (?:(\w+)/)?(\d+)|(\d+)")
ARRAY_FILES: dict[str, Callable[[RawRequest], ArrayFile]] = {
    ".npz": NpzFile,
    ".h5": Hdf5File,
    ".hdf5": Hdf5File,
}


def locate(raw: Path, key_folder: Path, said: str) -> str | None:
    """Return the file, archive member or row below ``raw`` that a message or record tells of.

    Args:
        raw: Raw folder or file, or a table.
        key_folder: Folder with the prepared datasets, where the key lies.
        said: What was printed: 16 hex digits, ``row 12``, ``train row 12``, ``row 3 of`` a hash, or a line
            with one of these in it.
    """
    row = ROW.search(HASH.sub("", said)) if "row" in said or said.strip().isdigit() else None
    found = HASH.search(said)
    name = _hashed(raw, key_folder, found[0]) if found else None
    if row is None or (found is not None and name is None):
        return name
    folder, array, number = row[1] or "", row[2], row[3] or row[4]
    if name is not None:
        return f"{name}{MARK}{number}"
    if raw.suffix.lower() in ARRAY_FILES:
        return row_locator(array or "images", int(number))
    return table_paths(_request(raw), folder).get(int(number))


def _hashed(raw: Path, key_folder: Path, hashed: str) -> str | None:
    key = hash_key(key_folder)
    return next((name for name in _locators(raw) if spell(keyed_hash(key, name)) == hashed), None)


def _request(raw: Path) -> RawRequest:
    own = own_dataset_spec("own", OwnSourceSpec(kind="folder", path=str(raw), domain=None))
    return RawRequest(own, PreparedSpec(dataset="own", image_size=8, channels=1), raw)


def _locators(raw: Path) -> Iterator[str]:
    """Yield all that items of any source may be called: files, members of archives, rows."""
    suffix = raw.suffix.lower()
    alone = raw.is_file() and (suffix in (*ARRAY_FILES, ".parquet") or is_archive_name(raw.name))
    base = raw if raw.is_dir() else raw.parent
    for name in [raw.name] if alone else walk(base, _request(base), strict=False):
        yield name
        ending = PurePath(name).suffix.lower()
        if is_archive_name(name):
            yield from _members(base / name, name, ())
        elif ending == ".parquet":
            yield from (f"{name}{MARK}{row}" for row in range(num_rows(base / name)))
        elif ending in ARRAY_FILES:
            yield from _array_rows(base / name)


def _members(path: Path, name: str, inner: tuple[str, ...]) -> Iterator[str]:
    try:
        members = open_archive(path, inner).members()
    except RefusedArchive:  # it is named itself
        return
    for member in members:
        yield MARK.join((name, *inner, member))
        if is_archive_name(member) and len(inner) + 1 < MAX_DEPTH:
            yield from _members(path, name, (*inner, member))


def _array_rows(path: Path) -> Iterator[str]:
    try:
        file = ARRAY_FILES[path.suffix.lower()](_request(path))
        shapes = {array: file.header(array).shape for array in file.names()}
    except SweepError:
        return
    for array, shape in shapes.items():
        yield from (row_locator(array, row) for row in range(shape[0] if len(shape) > 2 else 0))
