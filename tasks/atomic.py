"""Atomic files: complete or absent, even after a crash or a power cut.

A temporary file is written in the same folder, flushed to the disk and renamed. Then the folder is
flushed too, since a power cut loses a rename that is only in memory. Temporary files have random
names, so two processes can write the same file; the later one wins.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(
    path: str | os.PathLike[str], *, mode: int = 0o666, durable: bool = True
) -> Iterator[IO[bytes]]:
    """Open a file that replaces ``path`` when the block ends without an error.

    After an error ``path`` is as it was.

    Args:
        path: its folder is created if it is missing.
        mode: permissions, of which the process's umask takes some.
        durable: wait until the disk has the file. False is for files that a power cut may lose.
    """
    path = Path(path)
    with _sibling(path, mode) as (file, temporary):
        yield file
        if durable:
            _flush(file)
        else:
            file.flush()
        temporary.replace(path)
    if durable:
        sync_folder(path.parent)


def write_atomic(path: str | os.PathLike[str], data: bytes, *, durable: bool = True) -> None:
    """Replace the file at ``path`` with ``data``, as :func:`replacing` does."""
    with replacing(path, durable=durable) as file:
        file.write(data)


def write_once(path: str | os.PathLike[str], data: bytes, *, mode: int = 0o666) -> None:
    """Write ``data`` unless ``path`` exists. Of several processes the first one wins."""
    path = Path(path)
    with _sibling(path, mode) as (file, temporary):
        file.write(data)
        _flush(file)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
    sync_folder(path.parent)


def place_once(draft: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Link the complete file ``draft`` as ``path`` unless ``path`` exists.

    On a file system without hard links, ``draft`` is renamed to ``path``.
    """
    try:
        os.link(draft, path)
    except FileExistsError:
        pass  # Another process was first, and its file may be in use.
    except OSError:
        os.replace(draft, path)


def read_whole(path: str | os.PathLike[str]) -> bytes:
    """Return a file's content. A pipe in its place reads as empty, and is not waited for."""
    with open(path, "rb", buffering=0, opener=without_waiting) as file:
        return file.read() or b""


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Flush a folder to the disk: the names of its files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def without_waiting(path: str, flags: int) -> int:
    """Open a file as the ``opener`` of :func:`open`; a pipe in its place is not waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


@contextmanager
def _sibling(path: Path, mode: int) -> Iterator[tuple[IO[bytes], Path]]:
    """Open a temporary file in the folder of ``path``, and remove it afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            yield file, temporary
    except OSError as error:
        # An error of writing, as on a full disk, does not name its file.
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def remove_folder(folder: Path) -> None:
    """Remove a folder, after renaming it: an interruption leaves no half of it under its name."""
    renamed = folder.with_name(f".removed-{secrets.token_hex(4)}")
    folder.rename(renamed)
    shutil.rmtree(renamed)
