"""Find the file, archive member or row that a hash or row number in a message stands for.

Messages and records contain the keyed hash of a file instead of its name. They identify a row
by its number, which is not confidential.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from search_spaces.datasets import user_dataset_spec
from search_spaces.errors import SweepError
from search_spaces.specs import PreparedSpec
from search_spaces.sweeps import UserSourceSpec
from tasks.sources.arrays.files import ARRAY_FILES, row_locator
from tasks.sources.base import HASH_PATTERN, UNKEYED, RawRequest, hash_key
from tasks.sources.manifest import table_paths
from tasks.sources.own.splits import is_split_word
from tasks.sources.parquet_images import count_rows, holds_images
from tasks.sources.raw import (
    MARK,
    MAX_DEPTH,
    RefusedArchive,
    is_archive_name,
    open_archive,
    search_folder,
)

ROW_PATTERN = re.compile(r"(?:(?P<word>[\w-]+) )?row (?:(?P<array>\w+)/)?(?P<number>\d+)")
"""Pattern of a row in a message. Examples are ``row 12``, ``train row 12`` for a table in the
folder ``train``, and ``row test_images/12`` for an array file."""


@dataclass(frozen=True)
class _MessageRow:
    """A row in a message.

    Attributes:
        number: Number of the row, as programs such as spreadsheets show it.
        split_folder: Name of the folder with the row's table, if each split has a table; else
            empty.
        array: Name of the array in an array file; ``images`` if the message names none.
    """

    number: int
    split_folder: str = ""
    array: str = "images"


def locate(raw: Path, key_folder: Path, text: str) -> str | None:
    """Return the locator of the file or row that a message names.

    Args:
        raw: Folder or file of the raw data.
        key_folder: Folder of the prepared datasets, which contains the key of the hashes.
        text: A hash (16 hex digits), ``row 12``, a row number alone, or a line with one of
            these.

    Returns:
        The locator, see :mod:`tasks.sources.raw`; None if nothing matches.

    Raises:
        SetupError: The key is missing or damaged.
    """
    hash_match = HASH_PATTERN.search(text)
    row = _parse_row(text)
    key = hash_key(key_folder, create=False) if hash_match else UNKEYED
    dataset = user_dataset_spec("own", UserSourceSpec(kind="folder", path=str(raw), domain=None))
    spec = PreparedSpec(dataset="own", image_size=8, channels=1)
    request = RawRequest(dataset, spec, raw, key)
    if hash_match is None:
        return None if row is None else _locator_of_row(row, raw, request)
    for locator in _all_locators(raw, request):
        if request.hashed(locator) == hash_match[0]:
            return locator if row is None else f"{locator}{MARK}{row.number}"
    return None


def _parse_row(text: str) -> _MessageRow | None:
    """Return the row that a text names; None if it names none."""
    # A hash may consist of digits, or end with digits. These digits are not a row number.
    if text.strip().isdecimal() and not HASH_PATTERN.search(text):
        return _MessageRow(int(text))
    match = ROW_PATTERN.search(HASH_PATTERN.sub("", text))
    if match is None:
        return None
    word = match["word"] or ""
    split_folder = word if is_split_word(word) else ""
    return _MessageRow(int(match["number"]), split_folder, match["array"] or _MessageRow.array)


def _locator_of_row(row: _MessageRow, raw: Path, request: RawRequest) -> str | None:
    """Return the locator of a row in a message without a hash; None if there is no such row."""
    extension = raw.suffix.lower()
    if extension in ARRAY_FILES:
        locator = row_locator(row.array, row.number)
    elif extension == ".parquet" and holds_images(raw):
        locator = f"{raw.name}{MARK}{row.number}"
    else:
        return table_paths(request, row.split_folder).get(row.number)
    return locator if locator in _all_locators(raw, request) else None


def _all_locators(raw: Path, request: RawRequest) -> Iterator[str]:
    """Yield the locator of every file, archive member and row that an item could have."""
    base = raw if raw.is_dir() else raw.parent
    contains_items = raw.suffix.lower() in (*ARRAY_FILES, ".parquet") or is_archive_name(raw.name)
    if raw.is_file() and contains_items:
        names = [raw.name]
    else:  # a folder, or a table of paths, whose files are below its folder
        names = search_folder(base, request, strict=False).files
    for name in names:
        yield name
        extension = PurePath(name).suffix.lower()
        if is_archive_name(name):
            yield from _members(base / name, name, ())
        elif extension == ".parquet":
            for row_number in range(count_rows(base / name)):
                yield f"{name}{MARK}{row_number}"
        elif extension in ARRAY_FILES:
            yield from _array_rows(base / name, request)


def _array_rows(path: Path, request: RawRequest) -> Iterator[str]:
    """Yield the locators of the rows of every array that could hold images."""
    with suppress(SweepError):
        file = ARRAY_FILES[path.suffix.lower()](replace(request, raw=path))
        for array in file.names():
            with suppress(SweepError):
                shape = file.header(array).shape
                if len(shape) > 2:
                    for row in range(shape[0]):
                        yield row_locator(array, row)


def _members(path: Path, name: str, inner: tuple[str, ...]) -> Iterator[str]:
    """Yield the locators of an archive's members, and of the members of archives inside it."""
    with suppress(RefusedArchive):  # messages contain the hash of a refused archive itself
        for member in open_archive(path, inner).members():
            yield MARK.join((name, *inner, member))
            if is_archive_name(member) and len(inner) + 1 < MAX_DEPTH:
                yield from _members(path, name, (*inner, member))
