"""Files that are there whole or not at all, also after a crash or a power cut: the one way to write
them.

A temporary sibling is written, flushed to the disk and renamed, and the folder is flushed, since a
rename that only memory knows of is lost with the power. Siblings have names of their own, so two
processes that write the same file do not meet; the later one wins.
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
    """Open a file that takes the place of ``path`` when the block ends without an error.

    Its folder is made when missing; ``mode`` are permissions, less the process's umask. ``durable``
    waits until the disk has it; False is for what a power cut may take. After an OSError ``path``
    is as it was.
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
    """Write ``data`` unless ``path`` is there already: the first of several processes wins,
    whole.
    """
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
    """Give a finished file its place unless another is there; the draft stays where links can be
    made.
    """
    try:
        os.link(draft, path)
    except FileExistsError:
        pass  # Another process was first: its file may be in use.
    except OSError:
        os.replace(draft, path)  # A file system without hard links.


def read_whole(path: str | os.PathLike[str]) -> bytes:
    """Return a file's content; a pipe in its place is found empty, where plain reading waits for a
    writer.
    """
    with open(path, "rb", buffering=0, opener=without_waiting) as file:
        return file.read() or b""


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Bring a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def without_waiting(path: str, flags: int) -> int:
    """Open a file for :func:`open`; a pipe in its place is not waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


@contextmanager
def _sibling(path: Path, mode: int) -> Iterator[tuple[IO[bytes], Path]]:
    """Open a new file beside ``path``, and see to it that it is gone afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with os.fdopen(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb"
        ) as file:
            yield file, temporary
    except OSError as error:
        error.filename = error.filename or str(path)  # which an error of writing leaves out
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def remove_folder(folder: Path) -> None:
    """Remove a folder under another name, so that a stop on the way leaves no half of it under its
    own.
    """
    gone = folder.with_name(f".removed-{secrets.token_hex(4)}")
    folder.rename(gone)
    shutil.rmtree(gone)
