"""Archives read where they lie: members of a ``.zip`` or a tar, plain or packed, nothing unpacked to disk.

A member's locator is ``archive!/member``; archives in archives (ILSVRC's tar of tars) repeat the mark.
Opened archives are kept per process, so a directory is read once, and a packed tar goes forward only as
long as its members are asked for in stored order.

What an archive declares is checked before it is believed: names that lead elsewhere, links, devices,
repeated names, encryption and members that would unpack to more than their packed size can hold are
refused (:mod:`tasks.sources.archive_rules`).
"""

from __future__ import annotations

import os
import stat
from functools import lru_cache
from pathlib import Path
from typing import IO, Protocol

from tasks.sources.archive_rules import DAMAGE, RefusedArchive
from tasks.sources.base import SkipItem
from tasks.sources.files import MAX_FILE_BYTES, open_plain
from tasks.sources.packed_streams import PACKED_TARS
from tasks.sources.tar_members import TarMembers
from tasks.sources.zip_members import ZipMembers

__all__ = [
    "MARK",
    "MAX_DEPTH",
    "Archive",
    "RefusedArchive",
    "is_archive_name",
    "open_archive",
    "read_locator",
    "split_locator",
]

MARK = "!/"
ENDINGS = (".zip", ".tar", *PACKED_TARS)
MAX_DEPTH = 3


class Archive(Protocol):
    """One opened archive."""

    def members(self) -> list[str]:
        """Return the names of all plain files in it, in stored order.

        Raises:
            RefusedArchive: for damage, or anything that must not be followed.
        """
        ...

    def read(self, member: str, max_bytes: int) -> bytes:
        """Return a member's bytes.

        Raises:
            SkipItem: when it is gone, damaged, or larger than ``max_bytes``.
        """
        ...

    def open(self, member: str) -> IO[bytes]:
        """Return a seekable stream of a member, for an archive in this one."""
        ...


def is_archive_name(name: str) -> bool:
    """Tell by a file's ending whether it is an archive that we read."""
    return name.lower().endswith(ENDINGS)


def split_locator(locator: str) -> list[str]:
    """Return the file, and then the member in it, the member in that one ..."""
    parts = locator.split(MARK)
    found = [parts[0]]
    for part in parts[1:]:
        if is_archive_name(found[-1]):
            found.append(part)
        else:  # a folder whose name ends in "!"
            found[-1] += MARK + part
    return found


def read_locator(base: Path, locator: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Return the bytes of a plain file or archive member below ``base``.

    Raises:
        SkipItem: when it is gone, unreadable, damaged, empty, too large or no plain file.
    """
    parts = split_locator(locator)
    # A folder may be called "x.zip!".
    if len(parts) == 1 or os.path.isfile(base / locator):  # no error for a long name
        return open_plain(base / locator, max_bytes)
    try:
        body = open_archive(base / parts[0], tuple(parts[1:-1])).read(parts[-1], max_bytes)
    except RefusedArchive as refused:
        raise SkipItem(refused.reason) from None
    if not body:
        raise SkipItem("empty file")
    return body


def open_archive(path: Path, inner: tuple[str, ...] = ()) -> Archive:
    """Return an opened archive, or the one inside it; kept until its file changes.

    Raises:
        RefusedArchive: when it is damaged, unreadable or no plain file.
    """
    try:
        status = path.stat()
    except OSError:
        raise RefusedArchive("archive is gone or unreadable") from None
    if not stat.S_ISREG(status.st_mode):
        raise RefusedArchive("no plain file")
    return _opened(str(path), inner, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _opened(path: str, inner: tuple[str, ...], size: int, time_ns: int) -> Archive:
    name = inner[-1] if inner else path
    try:
        outer = _opened(path, inner[:-1], size, time_ns) if inner else None
        stream = outer.open(inner[-1]) if outer is not None else Path(path).open("rb")  # noqa: SIM115
        return ZipMembers(stream) if name.lower().endswith(".zip") else TarMembers(stream, name)
    except SkipItem as skip:
        raise RefusedArchive(skip.reason) from None
    except DAMAGE:
        raise RefusedArchive("damaged archive") from None
