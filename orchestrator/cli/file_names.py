"""Add file names to the hashes in messages on a terminal.

Messages, logs and records contain keyed hashes instead of file names, because file names may
identify patients. If a user has the files and the key, messages on the terminal also show the
names.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from orchestrator.cli.options import Place
from search_spaces.errors import SweepError

MAX_NAMED = 3
"""Largest number of hashes in a message for which isweep adds the name. For each name, isweep
must list the folder."""
TABLES = (".yaml", ".yml")
"""Endings of the names of sweep files. A sweep file contains no images."""


def with_file_names(text: str, arguments: Iterable[object], place: Place) -> str:
    """Return a message with file names added after their hashes.

    Args:
        text: The message.
        arguments: Arguments of the command. isweep searches for files in paths and sweeps
            among them.
        place: Options of the command. They say where the root is, which contains the key.

    Returns:
        The message. It is unchanged if the key or the file is not on this machine.
    """
    from tasks.sources.base import HASH_PATTERN

    hashes = list(dict.fromkeys(HASH_PATTERN.findall(text)))[:MAX_NAMED]
    if not hashes or not has_key(place):
        return text
    sources = _image_sources(arguments, place)
    for file_hash in hashes:
        name = _name_of(file_hash, sources, place)
        if name is not None:
            text = text.replace(file_hash, f"{file_hash} ({name})")
    return text


def has_key(place: Place) -> bool:
    """Return whether this machine has the key of the root's hashes."""
    from tasks.sources.base import KEY_FILE, KEY_VARIABLE

    if os.environ.get(KEY_VARIABLE):
        return True
    return (place.paths.root / "prepared" / KEY_FILE).exists()


def _name_of(file_hash: str, sources: Iterable[Path], place: Place) -> str | None:
    """Return the name of the file with this hash, or None if no source contains the file."""
    from tasks.sources.locate import locate

    key_folder = place.paths.root / "prepared"
    for source in sources:
        try:
            name = locate(source, key_folder, file_hash)
        except (SweepError, OSError):
            continue
        if name is not None:
            return name
    return None


def _image_sources(arguments: Iterable[object], place: Place) -> list[Path]:
    """Return the folders and files of images among the arguments of a command."""
    sources = []
    for argument in arguments:
        if not isinstance(argument, (str, Path)):
            continue
        path = Path(argument).expanduser()
        if path.exists() and path.suffix not in TABLES:
            sources.append(path)
        else:
            sources += _sources_of_sweep(str(argument), place)
    return sources


def _sources_of_sweep(name: str, place: Place) -> list[Path]:
    """Return the paths of the user's datasets in a sweep.

    If there is no such sweep, return none.
    """
    try:
        datasets = place.open(name).plan.sweep.datasets
    except (SweepError, OSError):
        return []
    return [
        Path(dataset.user_source.path) for dataset in datasets if dataset.user_source is not None
    ]
