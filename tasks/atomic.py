"""Write files atomically: after a crash, a file is complete or does not exist.

The content is first written to a temporary file in the same folder and flushed to the disk.
Then the temporary file is renamed. Finally the folder is flushed, because a power failure
undoes a rename that is only in memory. Temporary files have random names, so two processes can
write the same file at the same time. With :func:`replacing`, the process that renames last
determines the content.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[IO[bytes]]:
    """Open a file that replaces ``path`` when the block ends without an error.

    If the block raises an error, the file at ``path`` does not change.

    Args:
        path: Path of the file. A missing folder is created.
        durable: True to wait until the file is on the disk. With False, a power failure may
            destroy the new file.
    """
    path = Path(path)
    with _temporary_file(path) as (file, temporary):
        yield file
        if durable:
            _flush(file)
        else:
            file.flush()
        temporary.replace(path)
    if durable:
        sync_folder(path.parent)


def write_atomic(path: str | os.PathLike[str], data: bytes, *, durable: bool = True) -> None:
    """Replace the file at ``path`` with ``data``; see :func:`replacing`."""
    with replacing(path, durable=durable) as file:
        file.write(data)


def write_once(path: str | os.PathLike[str], data: bytes, *, mode: int = 0o666) -> None:
    """Write ``data`` to ``path`` unless the file exists.

    If several processes write at the same time, the file has the content of the first process.
    On a file system without hard links, a reader may see an incomplete file for a moment.
    """
    path = Path(path)
    with _temporary_file(path, mode) as (file, temporary):
        file.write(data)
        _flush(file)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        except OSError:
            _create_without_link(path, data, mode)
    sync_folder(path.parent)


def _create_without_link(path: Path, data: bytes, mode: int) -> None:
    """Write ``data`` to ``path`` unless the file exists. If writing fails, remove the file."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        return
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            _flush(file)
    except OSError:
        path.unlink()
        raise


def place_once(draft: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Create a hard link from ``path`` to the complete file ``draft`` unless ``path`` exists.

    On a file system without hard links, ``draft`` is renamed to ``path``.
    """
    try:
        os.link(draft, path)
    except FileExistsError:
        pass  # Another process was first, and its file may be open.
    except OSError:
        os.replace(draft, path)


def read_whole(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a regular file. For a pipe or a device file, return ``b""``.

    Reading a pipe could wait for a writer, and a device file such as /dev/zero has no end.
    """
    with open(path, "rb", buffering=0, opener=without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return b""
        return file.read()


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Flush a folder to the disk, so that the names of its files are stored there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def without_waiting(path: str, flags: int) -> int:
    """Open a file without waiting, even if the file is a pipe.

    Pass this function to :func:`open` as the argument ``opener``.
    """
    return os.open(path, flags | os.O_NONBLOCK)


def remove_folder(folder: Path) -> None:
    """Rename a folder, and then remove it.

    If the process is interrupted, no incomplete folder has the old name.
    """
    renamed = folder.with_name(f".removed-{secrets.token_hex(4)}")
    folder.rename(renamed)
    shutil.rmtree(renamed)


@contextmanager
def _temporary_file(path: Path, mode: int = 0o666) -> Iterator[tuple[IO[bytes], Path]]:
    """Open a temporary file in the folder of ``path``. Remove the file afterwards.

    The file has the permissions ``mode``, except those that the umask of the process removes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            yield file, temporary
    except OSError as error:
        # An error while writing, for example on a full disk, contains no file name. An error
        # while renaming contains the name of the temporary file, which no longer exists when
        # the user reads the message. Both errors get the name of the requested file.
        if error.filename is None or str(error.filename) == str(temporary):
            error.filename = str(path)
            del error.filename2
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
