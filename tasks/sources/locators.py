"""All locators that items of a raw download may have: files, members of archives, rows of array files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from search_spaces.datasets import own_dataset_spec
from search_spaces.errors import SweepError
from search_spaces.specs import PreparedSpec
from search_spaces.sweeps import OwnSourceSpec
from tasks.sources.base import RawRequest
from tasks.sources.raw import MARK, MAX_DEPTH, RefusedArchive, is_archive_name, open_archive

ARRAY_FILES = {".npz": "npz", ".h5": "hdf5", ".hdf5": "hdf5"}


def all_locators(raw: Path) -> Iterator[str]:
    """Yield the locators in a raw folder, archive, array or Parquet file, or beside a raw table; whatever a
    source would take of them.
    """
    alone = raw.is_file() and (is_archive_name(raw.name) or raw.suffix.lower() in (*ARRAY_FILES, ".parquet"))
    base = raw if raw.is_dir() else raw.parent
    for name in [raw.name] if alone else _files(base):
        yield name
        ending = os.path.splitext(name)[1].lower()
        if is_archive_name(name):
            yield from _members(base / name, name, ())
        elif ending == ".parquet":
            yield from _table_rows(base / name, name)
        elif ending in ARRAY_FILES:
            yield from _array_rows(base / name, ARRAY_FILES[ending])


def _files(base: Path) -> Iterator[str]:
    """Yield plain files in order, however deep they lie: pathlib and os.walk go down by recursion."""
    todo = [""]
    while todo:
        prefix = todo.pop()
        try:
            with os.scandir(base / prefix) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            continue
        yield from (prefix + entry.name for entry in found if entry.is_file())
        folders = [entry for entry in found if entry.is_dir(follow_symlinks=False)]
        todo += [f"{prefix}{entry.name}/" for entry in reversed(folders)]


def _members(path: Path, name: str, inner: tuple[str, ...]) -> Iterator[str]:
    try:
        members = open_archive(path, inner).members()
    except RefusedArchive:
        return
    for member in members:
        yield MARK.join((name, *inner, member))
        if is_archive_name(member) and len(inner) + 1 < MAX_DEPTH:
            yield from _members(path, name, (*inner, member))


def _table_rows(path: Path, name: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        count = pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowException, ValueError):
        return
    yield from (f"{name}{MARK}{row}" for row in range(count))


def _array_rows(path: Path, kind: str) -> Iterator[str]:
    from tasks.sources.arrays import Hdf5File, NpzFile, row_locator

    own = own_dataset_spec("own", OwnSourceSpec(kind=kind, path=str(path), domain=None))
    request = RawRequest(own, PreparedSpec(dataset="own", image_size=8, channels=1), path)
    try:
        file = NpzFile(request) if kind == "npz" else Hdf5File(request)
        shapes = {array: file.header(array).shape for array in file.names()}
    except SweepError:
        return
    for array, shape in shapes.items():
        yield from (row_locator(array, row) for row in range(shape[0] if len(shape) > 2 else 0))
