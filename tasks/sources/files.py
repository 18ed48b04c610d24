"""Finding files below a raw root without ever leaving it or opening what is not a plain file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from search_spaces.errors import DataError
from tasks.sources.base import RawRequest, SkipItem

MAX_FILE_BYTES = 384 << 20
"""Largest single file or archive member that is held whole. A multi-frame ultrasound has about 100 MiB, a
computed radiograph 30; with what decoding needs besides, a reading task stays below a GiB."""

NOISE = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})


def walk(root: Path, request: RawRequest, folders: list[str] | None = None) -> Iterator[str]:
    """Yield all plain files below ``root`` as ``/``-separated relative names, in sorted order.

    Hidden files and folders, and what file managers leave behind, are left out. The order is that of the
    names' parts, so a folder's files lie together whatever characters its name has.

    Args:
        root: Where to start; may itself be a link.
        request: For messages.
        folders: Gets the names of all folders met, empty ones too, when given.

    Raises:
        DataError: for a link that leaves the root, a linked folder, a FIFO, socket or device, or a folder
            that cannot be listed.
    """
    base = root.resolve()
    stack = [iter(_entries(base, "", request))]
    prefixes = [""]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
            prefixes.pop()
            continue
        name = prefixes[-1] + entry.name
        if entry.is_symlink() or not (
            entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)
        ):
            check_inside(base, Path(entry.path), name, request)
        if entry.is_dir(follow_symlinks=False):
            if folders is not None:
                folders.append(name)
            stack.append(iter(_entries(Path(entry.path), name, request)))
            prefixes.append(name + "/")
        else:
            yield name


def _entries(folder: Path, name: str, request: RawRequest) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        rule = f"{request.dataset.name}: every folder of the raw download must be readable"
        where = request.hashed(name) if name else "the raw folder itself"
        raise DataError(rule, f"{where}: {error.strerror}", "mend its permissions or move it") from None
    return [entry for entry in found if not is_noise(entry.name)]


def is_noise(name: str) -> bool:
    """Tell whether one part of a name is hidden or a file manager's."""
    return name.startswith(".") or name in NOISE


def check_inside(base: Path, path: Path, name: str, request: RawRequest) -> None:
    """Refuse what could lead a reader elsewhere or make it wait for ever.

    Raises:
        DataError: see :func:`walk`.
    """
    mode = path.lstat().st_mode
    where = f"{request.dataset.name}: {request.hashed(name)}"
    if stat.S_ISLNK(mode):
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):  # a dangling link, or a loop
            raise DataError(f"{where} must be a file", "a link to nothing", "remove it") from None
        if not target.is_relative_to(base) or not target.is_file():
            what = "a link to a folder or out of the raw folder"
            raise DataError(f"{where} must stay inside the raw folder", what, "replace it by the file itself")
    elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise DataError(f"{where} must be a plain file", "a FIFO, socket or device", "remove it")


def checked_name(name: str, request: RawRequest, where: str = "") -> str:
    """Return a table's file name in ``/``-separated normal form; ``where`` is its row, for messages.

    Raises:
        DataError: for an absolute name, or one with ``..``.
    """
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or "\0" in name or ":" in parts[0]:
        rule = f"{request.dataset.name}: names in a table must stay inside the raw folder"
        raise DataError(rule, where or request.hashed(name), "use names relative to the table's folder")
    return "/".join(part for part in parts if part not in ("", "."))


def resolve_name(root: Path, name: str, request: RawRequest) -> Path:
    """Return the file that a table names, which must lie below ``root``.

    Raises:
        DataError: for an absolute name, one with ``..``, or a link out.
    """
    path = root / checked_name(name, request)
    if path.is_symlink():
        check_inside(root.resolve(), path, name, request)
    return path


def open_plain(path: Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Return the bytes of a plain file.

    Raises:
        SkipItem: when it is gone, unreadable, empty, too large, or no plain file (never opened then).
    """
    try:
        # O_NONBLOCK: a file swapped for a FIFO after listing must not make us wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        raise SkipItem("file is gone or unreadable") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SkipItem("no plain file")
        if status.st_size == 0:
            raise SkipItem("empty file")
        if status.st_size > max_bytes:
            raise SkipItem("file too large")
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read()
    except OSError:
        raise SkipItem("file is gone or unreadable") from None
    finally:
        os.close(descriptor)
