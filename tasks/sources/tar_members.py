"""Members of a ``.tar``, plain or packed (POSIX.1-2001 and GNU tar, as read by :mod:`tarfile`)."""

from __future__ import annotations

import io
import tarfile
import threading
from typing import IO, Self

from tasks.sources.archive_rules import DAMAGE, MAX_MEMBERS, MAX_RATIO, RefusedArchive, checked_member
from tasks.sources.base import SkipItem
from tasks.sources.files import MAX_FILE_BYTES
from tasks.sources.packed_streams import PACKED_TARS, open_packed

MAX_TAR_HEADER = 1 << 20


class _BoundedInfo(tarfile.TarInfo):
    """A tar header that refuses to announce a name of gigabytes."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        plain = (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)
        if info.type not in plain and info.size > MAX_TAR_HEADER:
            raise RefusedArchive("an archive with a huge header")
        if info.size < 0:  # tarfile would read to the end, or go round in circles
            raise RefusedArchive("an archive with a negative size")
        return info


class TarMembers:
    """A tar, plain or packed, whose members become known as it is read forward."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._packed = name.lower().endswith(PACKED_TARS)
        self._left = MAX_RATIO * (file.seek(0, io.SEEK_END) + 1)
        file.seek(0)
        self._file = open_packed(file, name) if self._packed else file
        self._archive = tarfile.open(fileobj=self._file, mode="r:", tarinfo=_BoundedInfo)  # noqa: SIM115
        self._members: dict[str, tarfile.TarInfo] = {}
        self._whole = False
        self._refused: RefusedArchive | None = None
        self._lock = threading.RLock()

    def _next(self) -> bool:
        """Read one more header; False at the end. What was refused once stays refused: an opened archive is
        kept, and who asks again must not get the members after the one that was refused.
        """
        if self._refused is None:
            try:
                return self._read_header()
            except RefusedArchive as refused:
                self._refused = refused
        raise RefusedArchive(self._refused.reason)

    def _read_header(self) -> bool:
        info = self._archive.next()
        if info is None:
            # tarfile takes a damaged header for the end; a real end is zeros or nothing.
            self._file.seek(self._archive.offset)
            if self._file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise RefusedArchive("damaged archive")
            self._whole = True
            return False
        name = checked_member(info.name)
        if info.size < 0:  # by an extended header
            raise RefusedArchive("an archive with a negative size")
        if info.isdir():
            return True
        self._left -= info.size
        if self._left < 0:
            raise RefusedArchive("an archive that declares more than its packed size can hold")
        if not info.isreg() or info.issparse():
            raise RefusedArchive("an archive with links, devices or sparse files")
        if name is not None:
            if name in self._members:
                raise RefusedArchive("an archive with repeated names")
            self._members[name] = info
            if len(self._members) > MAX_MEMBERS:
                raise RefusedArchive(f"an archive with more than {MAX_MEMBERS:,} members")
        return True

    def members(self) -> list[str]:
        """Return the names of all plain files, in stored order."""
        with self._lock:
            try:
                while not self._whole and self._next():
                    pass
            except DAMAGE:
                raise RefusedArchive("damaged archive") from None
            return list(self._members)

    def _find(self, member: str) -> tarfile.TarInfo:
        while member not in self._members and not self._whole and self._next():
            pass
        if member not in self._members:
            raise SkipItem("file is gone or unreadable")
        return self._members[member]

    def read(self, member: str, max_bytes: int) -> bytes:
        """Return a member's bytes, of at most ``max_bytes``."""
        with self._lock:
            try:
                info = self._find(member)
                if info.size > max_bytes:
                    raise SkipItem("file too large")
                self._file.seek(info.offset_data)
                body = self._file.read(info.size)
            except (*DAMAGE, MemoryError):
                raise SkipItem("damaged archive member") from None
            if len(body) != info.size:
                raise SkipItem("damaged archive member")
            return body

    def open(self, member: str) -> IO[bytes]:
        """Return a seekable stream of a member, for an archive in this one."""
        if self._packed:
            return io.BytesIO(self.read(member, MAX_FILE_BYTES))
        with self._lock:
            stream = self._archive.extractfile(self._find(member))
        if stream is None:
            raise SkipItem("no plain file")
        return stream
